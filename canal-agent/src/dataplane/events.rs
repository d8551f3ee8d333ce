//! The `EVENTS` ring: sampled drops and new flows that met a Log rule.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{MapData, MapError, RingBuf},
};
use canal_common::{event::Event, names};
use tokio::io::{Interest, unix::AsyncFd};

use super::tables::take;

/// The least time between two hints that the ring has something: a flood of events wakes nobody more often.
const PACE: Duration = Duration::from_millis(50);

pub struct Events {
    ring: RingBuf<MapData>,
}

impl Events {
    pub fn adopt(ebpf: &mut Ebpf) -> Result<Self, MapError> {
        Ok(Self { ring: take(ebpf, names::EVENTS)? })
    }

    /// Takes what the kernel has written since, the oldest first.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(item) = self.ring.next() {
            if item.len() == size_of::<Event>() {
                // SAFETY: the length was checked, the record is plain data; the ring aligns to 8 bytes but
                // nothing here depends on it.
                events.push(unsafe { item.as_ptr().cast::<Event>().read_unaligned() });
            }
        }
        events
    }

    /// What [`watch`] waits on.
    pub fn ring(&self) -> io::Result<OwnedFd> {
        self.ring.as_fd().try_clone_to_owned()
    }
}

/// Calls `hint` when there is something to drain, until that says `false`. The kernel wakes us when it writes to a ring
/// that was drained, so whoever is told must drain.
pub async fn watch(ring: OwnedFd, mut hint: impl FnMut() -> bool) -> io::Result<()> {
    // SAFETY: an owned descriptor is open, and the same one, for as long as it lives.
    let ring = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?;
    loop {
        ring.readable().await?.clear_ready();
        if !hint() {
            return Ok(());
        }
        tokio::time::sleep(PACE).await;
    }
}
