//! `COUNTERS`, summed over the CPUs.

use std::path::Path;

use aya::maps::{Map, MapData, MapError, PerCpuArray};
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
        let pins = Pins::open(bpffs).map_err(|e| MapError::IoError(std::io::Error::other(e.to_string())))?;
        let data = MapData::from_pin(pins.table(names::COUNTERS))?;
        Ok(Self { map: PerCpuArray::try_from(Map::PerCpuArray(data))? })
    }

    /// Everything that was counted at least once, by hook and reason.
    pub fn read(&self) -> Result<Vec<CounterStatus>, MapError> {
        let mut rows = Vec::new();
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                let per_cpu = self.map.get(&(*hook as u32 * REASONS + *reason as u32), 0)?;
                let (packets, bytes) =
                    per_cpu.iter().fold((0, 0), |(packets, bytes), c| (packets + c.packets, bytes + c.bytes));
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
