//! `COUNTERS`, summed over the CPUs.

use std::path::Path;

use aya::{
    Pod,
    maps::{Map, MapData, MapError, PerCpuArray, PerCpuValues},
};
use canal_common::{
    names,
    reason::{Counter, Hook, REASONS, Reason},
};

use super::pins::Pins;
use crate::api::wire::CounterStatus;

pub struct Counters {
    map: PerCpuArray<MapData, Counter>,
}

impl Counters {
    /// From the pin: works without an agent, too.
    pub fn open(bpffs: &Path) -> Result<Self, MapError> {
        Ok(Self { map: per_cpu(bpffs, names::COUNTERS)? })
    }

    /// Everything that was counted at least once, by hook and reason.
    pub fn read(&self) -> Result<Vec<CounterStatus>, MapError> {
        let mut rows = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let per_cpu = self.map.get(&(*hook as u32 * REASONS + *reason as u32), 0)?;
                let packets = sum(&per_cpu, |cpu| cpu.packets);
                let bytes = sum(&per_cpu, |cpu| cpu.bytes);
                if packets > 0 {
                    rows.push(CounterStatus {
                        hook: hook.slug().to_owned(),
                        reason: reason.slug().to_owned(),
                        sentence: reason.sentence().to_owned(),
                        drop: reason.is_drop(),
                        packets,
                        bytes,
                    });
                }
            }
        }
        Ok(rows)
    }
}

/// A pinned per-CPU table.
pub(super) fn per_cpu<V: Pod>(bpffs: &Path, table: &str) -> Result<PerCpuArray<MapData, V>, MapError> {
    PerCpuArray::try_from(Map::PerCpuArray(pinned(bpffs, table)?))
}

pub(super) fn pinned(bpffs: &Path, table: &str) -> Result<MapData, MapError> {
    let pins = Pins::open(bpffs).map_err(|e| MapError::IoError(std::io::Error::other(e.to_string())))?;
    MapData::from_pin(pins.table(table))
}

/// One field of a per-CPU value over all CPUs.
pub(super) fn sum<V: Pod>(cpus: &PerCpuValues<V>, field: impl Fn(&V) -> u64) -> u64 {
    cpus.iter().map(field).fold(0, u64::wrapping_add)
}
