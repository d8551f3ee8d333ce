//! The `EVENTS` ring: sampled drops, kept for whoever asks why a packet did not arrive.

use std::collections::VecDeque;

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use canal_common::{event::Event, names};

use super::tables::take;

/// How many of the latest drops are remembered.
const KEPT: usize = 256;

pub struct Events {
    ring: RingBuf<MapData>,
    latest: VecDeque<Event>,
}

impl Events {
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self { ring: take(ebpf, names::EVENTS)?, latest: VecDeque::new() })
    }

    /// Takes what the kernel has written since.
    pub fn drain(&mut self) {
        while let Some(item) = self.ring.next() {
            if item.len() == size_of::<Event>() {
                // SAFETY: the length was checked, the record is plain data; the ring aligns to 8 bytes but
                // nothing here depends on it.
                let event = unsafe { item.as_ptr().cast::<Event>().read_unaligned() };
                if self.latest.len() == KEPT {
                    self.latest.pop_front();
                }
                self.latest.push_back(event);
            }
        }
    }

    pub fn latest(&self) -> impl Iterator<Item = &Event> {
        self.latest.iter()
    }
}
