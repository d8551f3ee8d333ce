//! Records in the `EVENTS` ring.

use crate::{Ip4, abi};

/// A dropped packet. Sampled: at most [`EVENTS_PER_TICK`] a CPU in each tick of 2^30 ns.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Event {
    /// Nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub time_ns: u64,
    pub src: Ip4,
    pub dst: Ip4,
    pub src_port: u16,
    pub dst_port: u16,
    pub proto: u8,
    /// A [`crate::reason::Hook`].
    pub hook: u8,
    /// A [`crate::reason::Reason`].
    pub reason: u8,
    pub _pad: u8,
    /// Interface the packet was seen on.
    pub ifindex: u32,
    /// Deciding rule, or 0.
    pub rule: u32,
    /// Bytes on that interface.
    pub len: u32,
    pub _reserved: u32,
}

pub const EVENTS_PER_TICK: u32 = 128;
/// Bytes in the ring.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// `EVENT_BUDGET`: one CPU's account.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EventBudget {
    /// Tick of 2^30 ns that `sent` belongs to.
    pub tick: u32,
    pub sent: u32,
    /// Events that found no budget or no room in the ring.
    pub lost: u64,
}

abi!(Event = 40 align 8, EventBudget = 16 align 8);
