//! `RULE_HITS` and `EVENT_BUDGET`, summed over the CPUs: what became of each decision, and what was not told.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    ptr::{self, NonNull},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{Array, IterableMap as _, Map, MapData, MapError, PerCpuArray};
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
    hits: Memory,
    budget: PerCpuArray<MapData, EventBudget>,
}

impl HitCounters {
    /// From the pins.
    pub fn open(bpffs: &Path) -> Result<Self, MapError> {
        let hits = Array::try_from(Map::Array(pinned(bpffs, names::RULE_HITS)?))?;
        Ok(Self { hits: Memory::of(&hits)?, budget: per_cpu(bpffs, names::EVENT_BUDGET)? })
    }

    pub fn of(&self, decision: u32) -> Hits {
        let each = indices(self.hits.len, decision).map(|index| self.hits.read(index));
        each.fold(Hits::default(), |sum, one| Hits {
            flows: sum.flows.wrapping_add(one.flows),
            lost: sum.lost.wrapping_add(one.lost),
        })
    }

    /// Events that belong to no decision and were not sent.
    pub fn lost_without_decision(&self) -> Result<u64, MapError> {
        Ok(sum(&self.budget.get(&0, 0)?, |cpu| cpu.lost))
    }
}

/// Where the CPUs count this decision in a table of so many elements.
pub(super) fn indices(len: u32, decision: u32) -> impl Iterator<Item = u32> {
    (0..len / MAX_RULES).filter_map(move |cpu| hits_index(cpu, decision))
}

/// The table as memory of this process. Many decisions times many CPUs would be as many system calls.
struct Memory {
    at: NonNull<policy::Hits>,
    /// In elements.
    len: u32,
}

// SAFETY: whoever holds it reads it, by atomic loads.
unsafe impl Send for Memory {}

impl Memory {
    fn of(table: &Array<MapData, policy::Hits>) -> Result<Self, MapError> {
        let len = table.len();
        // SAFETY: the kernel chooses where; the result is looked at before it is used.
        let at = unsafe {
            libc::mmap(
                ptr::null_mut(),
                bytes(len),
                libc::PROT_READ,
                libc::MAP_SHARED,
                table.map().fd().as_fd().as_raw_fd(),
                0,
            )
        };
        match NonNull::new(at).filter(|at| at.as_ptr() != libc::MAP_FAILED) {
            Some(at) => Ok(Self { at: at.cast(), len }),
            None => Err(io::Error::last_os_error().into()),
        }
    }

    fn read(&self, index: u32) -> Hits {
        if index >= self.len {
            return Hits::default();
        }
        // SAFETY: an element of the table, which is there as long as this is, and aligned as the kernel aligns it.
        let element = unsafe { self.at.add(index as usize).as_ptr() };
        // SAFETY: fields of it; the kernel's writes are of whole words, too.
        let [flows, lost] = unsafe {
            [&raw mut (*element).flows, &raw mut (*element).lost].map(|field| AtomicU64::from_ptr(field))
        };
        Hits { flows: flows.load(Ordering::Relaxed), lost: lost.load(Ordering::Relaxed) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `of` with this size, and nothing borrows from it.
        unsafe { libc::munmap(self.at.as_ptr().cast(), bytes(self.len)) };
    }
}

fn bytes(len: u32) -> usize {
    len as usize * size_of::<policy::Hits>()
}
