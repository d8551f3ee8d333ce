//! The `EVENTS` ring: sampled drops and new flows that met a Log rule, kept for whoever asks.

use std::collections::VecDeque;

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use canal_common::{
    event::{Event, Kind},
    names,
};

use super::tables::take;

/// How many of the latest are remembered of either sort.
const KEPT: usize = 256;

pub struct Events {
    ring: RingBuf<MapData>,
    drops: VecDeque<Event>,
    logged: VecDeque<Event>,
}

impl Events {
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self { ring: take(ebpf, names::EVENTS)?, drops: VecDeque::new(), logged: VecDeque::new() })
    }

    /// Takes what the kernel has written since.
    pub fn drain(&mut self) {
        while let Some(item) = self.ring.next() {
            if item.len() == size_of::<Event>() {
                // SAFETY: the length was checked, the record is plain data; the ring aligns to 8 bytes but
                // nothing here depends on it.
                let event = unsafe { item.as_ptr().cast::<Event>().read_unaligned() };
                let kind = Kind::from_index(event.kind);
                if kind.is_some_and(Kind::is_drop) {
                    keep(&mut self.drops, event);
                }
                if kind.is_some_and(Kind::is_logged) {
                    keep(&mut self.logged, event);
                }
            }
        }
    }

    /// The latest dropped packets, the oldest first.
    pub fn drops(&self) -> impl Iterator<Item = &Event> {
        self.drops.iter()
    }

    /// The latest flows that met a Log rule, the oldest first; the denied ones are among the drops as well.
    pub fn logged(&self) -> impl Iterator<Item = &Event> {
        self.logged.iter()
    }
}

fn keep(latest: &mut VecDeque<Event>, event: Event) {
    if latest.len() == KEPT {
        latest.pop_front();
    }
    latest.push_back(event);
}
