//! What a program costs, by the kernel's own statistics.
//!
//! BPF_PROG_RUN can repeat a program, but all runs of one call get the same packet, and what the first one wrapped or
//! unwrapped is another packet to the second. So each run is a call with a fresh packet, and what a run takes is told by
//! the kernel's statistics of the program ([`RunStatistics`]), not by the time of the call. They hold the reading of the
//! clock as well: take the time of [`Lab::idle_run`] off. Between two runs the kernel makes a packet and frees it, so
//! that caches and branch predictors are rather those of a path than those of a loop. A redirect is decided and not
//! carried out.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use canal_common::{names, reason::Hook};

use super::{Context, Lab};
use crate::{
    cmd::Cmd,
    topology::{RunStatistics, RunTime},
};

/// Of a loaded program.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// After the verifier's rewriting.
    pub instructions: u32,
    /// That the verifier walked through.
    pub verified: u32,
    /// Bytes of machine code.
    pub machine_code: u32,
}

impl Lab {
    /// Nanoseconds of one run, in the mean over these packets, and the actions that came of them.
    pub fn cost(&mut self, hook: Hook, frames: &[Vec<u8>], context: Context) -> Result<(f64, Vec<i32>)> {
        cost(self.object.program(hook.slug()), frames, context)
    }

    /// The same of a program that does next to nothing: a question without cases.
    pub fn idle_run(&mut self, runs: usize) -> Result<f64> {
        // A frame of a header alone, of no protocol.
        let frames = vec![vec![0; 14]; runs];
        cost(self.object.program(names::JUDGE), &frames, Context::default()).map(|(ns, _)| ns)
    }

    pub fn size(&mut self, hook: Hook) -> Result<Size> {
        let program = self.object.program(hook.slug());
        let info = program.info()?;
        let shown = Cmd::line("bpftool -j prog show id").arg(info.id().to_string()).run()?;
        let shown: serde_json::Value = serde_json::from_str(&shown).context("bpftool's answer")?;
        let machine_code = shown["bytes_jited"].as_u64().context("the program is not compiled")?;
        Ok(Size {
            instructions: info.size_translated().context("no size of the program")? / 8,
            verified: u32::try_from(told(program, "verified_insns")?)?,
            machine_code: u32::try_from(machine_code)?,
        })
    }
}

fn cost(program: &SchedClassifier, frames: &[Vec<u8>], context: Context) -> Result<(f64, Vec<i32>)> {
    let context = context.bytes();
    let statistics = RunStatistics::enable()?;
    let before = run_time(program)?;
    let mut actions = Vec::with_capacity(frames.len());
    for frame in frames {
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::default() };
        actions.push(program.test_run(options)?.return_value.cast_signed());
    }
    let after = run_time(program)?;
    drop(statistics);
    let (runs, ns) = (after.runs - before.runs, after.ns - before.ns);
    ensure!(runs == frames.len() as u64, "{} packets, and {runs} runs", frames.len());
    #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
    Ok((ns as f64 / runs as f64, actions))
}

fn run_time(program: &SchedClassifier) -> Result<RunTime> {
    Ok(RunTime { runs: told(program, "run_cnt")?, ns: told(program, "run_time_ns")? })
}

/// A number that the kernel shows of a program's file descriptor (`bpf_prog_show_fdinfo`).
fn told(program: &SchedClassifier, name: &str) -> Result<u64> {
    let path = format!("/proc/thread-self/fdinfo/{}", program.fd()?.as_fd().as_raw_fd());
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.and_then(|number| number.trim().parse().ok()).with_context(|| format!("{path} does not tell {name}"))
}
