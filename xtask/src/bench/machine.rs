//! Owns: what machine this is, and whether it had anything else to do meanwhile.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::run;

/// Enough to judge figures by, and nothing that names the machine.
pub(super) fn describe(root: &Path) -> Value {
    let file = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = file("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = file("/proc/meminfo");
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next());
    let commit = run::answer(run::command("git", root).args(["describe", "--always", "--dirty"]));
    json!({
        "cpu": model.map(|(_, name)| name.trim()),
        "cpus": std::thread::available_parallelism().map(usize::from).ok(),
        "memory_kib": memory.and_then(|kib| kib.parse::<u64>().ok()),
        "congestion_control": file("/proc/sys/net/ipv4/tcp_congestion_control").trim(),
        "kernel": file("/proc/sys/kernel/osrelease").trim(),
        "canal": commit.ok().map(|commit| commit.trim().to_owned()),
    })
}

/// Measures how much of the machine's user time went to others.
pub(super) struct Quietness {
    begin: Instant,
    ticks: i64,
    own_ticks: i64,
}

/// `USER_HZ`, which the kernel promises to user space on every architecture that Rust runs on.
const TICK_MS: i64 = 10;

impl Quietness {
    pub(super) fn start() -> Result<Self> {
        Ok(Self { begin: Instant::now(), ticks: user_ticks()?, own_ticks: own_user_ticks()? })
    }

    /// Share of one processor that other processes took, in user mode: what they do in the kernel cannot be told
    /// from what the measured paths do there.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub(super) fn others(&self) -> Result<f64> {
        let others = (user_ticks()? - self.ticks) - (own_user_ticks()? - self.own_ticks);
        Ok((others.max(0) * TICK_MS) as f64 / self.begin.elapsed().as_millis().max(1) as f64)
    }
}

/// Measures how much of the machine's time a load took, in every mode and by whomever: what a path costs is spent in
/// the generators' system calls as well as in soft interrupts.
pub(super) struct Busy {
    begin: Instant,
    ticks: i64,
}

impl Busy {
    pub(super) fn start() -> Result<Self> {
        Ok(Self { begin: Instant::now(), ticks: busy_ticks()? })
    }

    /// Processor seconds for each of `amount`, which came about in `elapsed` of the time since the start; warm-ups took
    /// the rest, and went on in the same way.
    #[expect(clippy::cast_precision_loss, reason = "a share for people")]
    pub(super) fn seconds_per(&self, amount: f64, elapsed: Duration) -> Result<f64> {
        let busy = ((busy_ticks()? - self.ticks) * TICK_MS) as f64 / 1000.0;
        let share = elapsed.as_secs_f64() / self.begin.elapsed().as_secs_f64();
        Ok(busy * share / amount)
    }
}

/// `user` and `nice` of all processors (proc(5)).
fn user_ticks() -> Result<i64> {
    processor_ticks(&[0, 1])
}

/// All but `idle`, `iowait` and what other machines on the same hardware took: `user`, `nice`, `system`, `irq` and
/// `softirq`.
fn busy_ticks() -> Result<i64> {
    processor_ticks(&[0, 1, 2, 5, 6])
}

/// The sum of these columns for all processors (proc(5)).
fn processor_ticks(columns: &[usize]) -> Result<i64> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields: Vec<&str> = stat.lines().next().unwrap_or_default().split_whitespace().skip(1).collect();
    let tick = |column: &usize| fields.get(*column)?.parse::<i64>().ok();
    columns.iter().map(tick).sum::<Option<i64>>().context("/proc/stat has no times")
}

/// Of this process with all its threads, and of the children that it has waited for: the twelfth and the fourteenth
/// field behind its name, which may contain anything.
fn own_user_ticks() -> Result<i64> {
    let stat = fs::read_to_string("/proc/self/stat").context("cannot read /proc/self/stat")?;
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, fields)| fields.split_whitespace().collect()).unwrap_or_default();
    let field = |at: usize| fields.get(at)?.parse::<i64>().ok();
    field(11)
        .zip(field(13))
        .map(|(own, childrens)| own + childrens)
        .context("/proc/self/stat has no user time")
}
