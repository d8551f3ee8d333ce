//! How long the programs on the nodes ran, by the kernel's own statistics.

use std::{
    collections::BTreeMap,
    fs,
    os::fd::{FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use serde_json::Value;

use super::Topology;
use crate::{bpf::bpf, cmd::Cmd};

/// Of one program since it was loaded, as far as [`RunStatistics`] were on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunTime {
    pub runs: u64,
    pub ns: u64,
}

/// While this lives the kernel counts runs and time of every program, which costs each of them two looks at a clock.
#[derive(Debug)]
pub struct RunStatistics {
    _open: OwnedFd,
}

impl RunStatistics {
    pub fn enable() -> Result<Self> {
        /// `BPF_ENABLE_STATS` of `enum bpf_cmd`, `BPF_STATS_RUN_TIME` of `enum bpf_stats_type` (linux/bpf.h, 5.8).
        const ENABLE_STATS: libc::c_long = 32;
        const RUN_TIME: u32 = 0;
        let mut kind = RUN_TIME;
        let fd = bpf(ENABLE_STATS, &mut kind)
            .context("cannot switch on the kernel's statistics of BPF programs")?;
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self { _open: unsafe { OwnedFd::from_raw_fd(fd) } })
    }
}

impl Topology {
    /// Of every program that Canal attached, as `n<node> <interface>-<program>`; of none in another topology.
    pub fn run_times(&self) -> Result<BTreeMap<String, RunTime>> {
        let mut all = BTreeMap::new();
        for node in self.nodes().map_or(Vec::new(), |(one, two)| vec![one, two]) {
            let Ok(links) = fs::read_dir(node.bpffs().join("canal/links")) else { continue };
            for link in links.flatten() {
                let path = link.path().display().to_string();
                let link_info = ask(Cmd::line("bpftool -j link show pinned").arg(&path))?;
                let id = link_info["prog_id"].as_u64().with_context(|| format!("{path} has no program"))?;
                let program = ask(Cmd::line("bpftool -j prog show id").arg(id.to_string()))?;
                // Absent until the statistics were on for the first time.
                let count = |name: &str| program[name].as_u64().unwrap_or_default();
                let name = format!("n{} {}", node.number(), link.file_name().display());
                all.insert(name, RunTime { runs: count("run_cnt"), ns: count("run_time_ns") });
            }
        }
        Ok(all)
    }
}

/// An object, or the only one in a list.
fn ask(command: Cmd) -> Result<Value> {
    let answer: Value = serde_json::from_str(&command.run()?).context("bpftool's answer")?;
    Ok(answer.get(0).cloned().unwrap_or(answer))
}
