//! Owns: nanoseconds that each of Canal's programs takes for a packet of real traffic. Does not: run while figures
//! are taken, for the statistics cost something themselves.

use std::time::Duration;

use anyhow::Result;
use bpf_tests::{
    load::{self, Congestion, Receiver},
    topology::{RunStatistics, Topology},
};

/// One program on one node under one traffic.
#[derive(Debug)]
pub(super) struct HookCost {
    pub(super) topology: String,
    pub(super) traffic: &'static str,
    pub(super) hook: String,
    pub(super) runs: u64,
    pub(super) ns: f64,
}

/// Of a topology with Canal; none of another.
pub(super) fn cost(topology: &Topology, duration: Duration) -> Result<Vec<HookCost>> {
    let path = topology.path();
    let mut costs = Vec::new();
    if topology.run_times()?.is_empty() {
        return Ok(costs);
    }
    let mut under = |traffic, load: &dyn Fn() -> Result<()>| -> Result<()> {
        let before = topology.run_times()?;
        let statistics = RunStatistics::enable()?;
        load()?;
        drop(statistics);
        for (hook, after) in topology.run_times()? {
            let before = before.get(&hook).copied().unwrap_or_default();
            let (runs, ns) = (after.runs - before.runs, after.ns - before.ns);
            if runs > 0 {
                #[expect(clippy::cast_precision_loss, reason = "a mean for people")]
                let ns = ns as f64 / runs as f64;
                costs.push(HookCost { topology: topology.kind().to_string(), traffic, hook, runs, ns });
            }
        }
        Ok(())
    };
    under("udp_64", &|| load::datagrams(path, 64, Receiver::Polls, duration).map(drop))?;
    under("tcp_bulk", &|| load::bulk(path, 1, Congestion::Default, duration).map(drop))?;
    under("crr", &|| load::connections(path, duration).map(drop))?;
    Ok(costs)
}
