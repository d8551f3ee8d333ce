//! `RULE_HITS` and `EVENT_BUDGET`, summed over the CPUs: what became of each decision, and what was not told.

use std::path::Path;

use aya::maps::{MapData, MapError, PerCpuArray};
use canal_common::{event::EventBudget, names, policy};

use super::counters::{per_cpu, sum};

/// Of one decision, since its tables were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// New flows that were judged so.
    pub flows: u64,
    /// Events about it that were not sent.
    pub lost: u64,
}

pub struct HitCounters {
    hits: PerCpuArray<MapData, policy::Hits>,
    budget: PerCpuArray<MapData, EventBudget>,
}

impl HitCounters {
    /// From the pins.
    pub fn open(bpffs: &Path) -> Result<Self, MapError> {
        Ok(Self { hits: per_cpu(bpffs, names::RULE_HITS)?, budget: per_cpu(bpffs, names::EVENT_BUDGET)? })
    }

    pub fn of(&self, decision: u32) -> Result<Hits, MapError> {
        let cpus = self.hits.get(&decision, 0)?;
        Ok(Hits { flows: sum(&cpus, |cpu| cpu.flows), lost: sum(&cpus, |cpu| cpu.lost) })
    }

    /// Events that belong to no decision and were not sent.
    pub fn lost_without_decision(&self) -> Result<u64, MapError> {
        Ok(sum(&self.budget.get(&0, 0)?, |cpu| cpu.lost))
    }
}
