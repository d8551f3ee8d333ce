//! `RULE_HITS` and `EVENT_BUDGET`, summed over the CPUs: what became of each decision, and what was not told.

use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, PerCpuArray};
use canal_common::{
    event::EventBudget,
    names,
    policy::{self, MAX_RULES, hits_index},
};

use super::counters::{per_cpu, pinned, sum};

/// Of one decision, since its tables were made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// New flows that were judged so.
    pub flows: u64,
    /// Events about it that were not sent.
    pub lost: u64,
}

pub struct HitCounters {
    hits: Array<MapData, policy::Hits>,
    budget: PerCpuArray<MapData, EventBudget>,
}

impl HitCounters {
    /// From the pins.
    pub fn open(bpffs: &Path) -> Result<Self, MapError> {
        let hits = Array::try_from(Map::Array(pinned(bpffs, names::RULE_HITS)?))?;
        Ok(Self { hits, budget: per_cpu(bpffs, names::EVENT_BUDGET)? })
    }

    pub fn of(&self, decision: u32) -> Result<Hits, MapError> {
        let mut sum = Hits::default();
        for index in indices(&self.hits, decision) {
            let policy::Hits { flows, lost, .. } = self.hits.get(&index, 0)?;
            sum.flows = sum.flows.wrapping_add(flows);
            sum.lost = sum.lost.wrapping_add(lost);
        }
        Ok(sum)
    }

    /// Events that belong to no decision and were not sent.
    pub fn lost_without_decision(&self) -> Result<u64, MapError> {
        Ok(sum(&self.budget.get(&0, 0)?, |cpu| cpu.lost))
    }
}

/// Where the CPUs count this decision.
pub(super) fn indices(hits: &Array<MapData, policy::Hits>, decision: u32) -> Vec<u32> {
    (0..hits.len() / MAX_RULES).filter_map(|cpu| hits_index(cpu, decision)).collect()
}
