//! Records in the `EVENTS` ring.

use crate::{Ip4, abi, list::list};

list! {
    /// Why user space is told of a packet.
    Kind:
    Dropped = 0 "dropped" "the packet was dropped",
    LoggedAllowed = 1 "logged-allowed" "a new flow met a Log rule and was allowed",
    LoggedDenied = 2 "logged-denied" "a new flow met a Log rule and was denied: the packet was dropped",
}

impl Kind {
    pub const fn is_drop(self) -> bool {
        matches!(self, Self::Dropped | Self::LoggedDenied)
    }

    pub const fn is_logged(self) -> bool {
        matches!(self, Self::LoggedAllowed | Self::LoggedDenied)
    }
}

/// A dropped packet, or the first packet of a flow that met a Log rule (also of one that is judged again). Sampled on
/// each CPU, in each tick of 2^30 ns: at most [`crate::settings::Settings::events_per_tick`] for one decision, and at
/// most [`EVENTS_PER_CPU`] in all.
///
/// A flow between two pods of one node is judged twice and may be told of twice, once for each decision.
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
    /// A [`crate::reason::Reason`] when it was dropped, else 0: what becomes of it is not known yet.
    pub reason: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// Interface the packet was seen on.
    pub ifindex: u32,
    /// See [`crate::policy::Verdict`]; 0 when no rule decided.
    pub decision: u32,
    /// Bytes on that interface.
    pub len: u32,
    pub _reserved: u32,
}

/// What one CPU sends in one tick, whatever it is about.
pub const EVENTS_PER_CPU: u32 = 128;
/// What one CPU sends in one tick about one decision, unless configured.
pub const EVENTS_PER_DECISION: u32 = 10;
/// Bytes in the ring.
pub const EVENTS_BYTES: u32 = 256 * 1024;

/// `EVENT_BUDGET`: one CPU's account.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct EventBudget {
    /// Tick of 2^30 ns that `sent` belongs to.
    pub tick: u32,
    pub sent: u32,
    /// Events without a decision that found no budget or no room in the ring; those with one are in
    /// [`crate::policy::Hits::lost`].
    pub lost: u64,
}

abi!(Event = 40 align 8, EventBudget = 16 align 8);
