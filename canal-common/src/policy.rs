//! Compiled policy: `PEERS`, `NETS`, `SETS`, `ROWS` and `RULE_HITS`.
//!
//! A verdict is three array reads, however many rules there are: the peer's address has a *class* (addresses
//! with the same membership in every predicate that a local endpoint uses), the endpoint's *set* maps the class
//! to a *row*, and the row maps (protocol, port) to a verdict. A row is a page of at most [`FANOUT`] ascending
//! bounds; a larger one is a tree of pages.

use crate::abi;

/// `PEERS` ([`crate::Ip4`] →) and `NETS` ([`crate::addr::Prefix`] →). Class 0: member of no predicate.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Class {
    pub class: u32,
}

/// Value of a set's inner array (class →).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RowRef {
    /// Index into `ROWS`; row 0 denies everything.
    pub row: u32,
}

/// Bounds in one page.
pub const FANOUT: usize = 16;

/// Pages read for one verdict at the most: four levels by destination port, four by source port.
pub const MAX_DEPTH: usize = 8;

/// `ROWS`: the verdict for a key is at the last bound that is not above it. A zeroed page denies everything.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Row {
    /// Ascending [`key`]s, the first is 0; unused ones are `u32::MAX`.
    pub bounds: [u32; FANOUT],
    pub verdicts: [Verdict; FANOUT],
}

impl Row {
    pub const DENY_ALL: Self = Self { bounds: [0; FANOUT], verdicts: [Verdict::from_bits(0); FANOUT] };

    /// Where `key` falls: four compares, and no branch, which would be sixteen paths to the kernel's verifier.
    #[inline(always)]
    pub const fn slot(&self, key: u32) -> usize {
        let mut at = 0;
        let mut step = FANOUT / 2;
        while step > 0 {
            // One when the bound is not above the key: the borrow of `bound - key - 1`.
            let bound = self.bounds[(at + step) & (FANOUT - 1)] as u64;
            let not_above = bound.wrapping_sub(key as u64 + 1) >> 63;
            at += step * not_above as usize;
            step /= 2;
        }
        at & (FANOUT - 1)
    }
}

/// What a row is searched by: protocol, then destination port (ICMP: type and code).
#[inline(always)]
pub const fn key(proto: u8, port: u16) -> u32 {
    (proto as u32) << 16 | port as u32
}

/// ICMP type and code in the place of a port.
#[inline(always)]
pub const fn icmp_port(icmp_type: u8, code: u8) -> u16 {
    (icmp_type as u16) << 8 | code as u16
}

/// From the top: one bit of log, two bits of kind, one that is zero in the tables, 28 bits of decision id or row index.
///
/// A decision is how an evaluation ended and what it met on the way: whether it allows, the rule that decided, the Log
/// rules before it. User space gives the ids out; 0 is "no rule, no log".
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Verdict {
    pub bits: u32,
}

impl Verdict {
    pub const DENY: u32 = 0;
    pub const ALLOW: u32 = 1;
    /// Go on in another page with the same key.
    pub const PAGE: u32 = 2;
    /// Go on in another page by protocol and *source* port.
    pub const BY_SRC_PORT: u32 = 3;

    const LOG: u32 = 1 << 31;
    const TO_HOST: u32 = 1 << 28;
    const KIND_SHIFT: u32 = 29;
    const KIND_MASK: u32 = 3;
    const ID_MASK: u32 = (1 << 28) - 1;

    pub const fn from_bits(bits: u32) -> Self {
        Self { bits }
    }

    pub const fn new(kind: u32, id: u32) -> Self {
        Self { bits: (kind & Self::KIND_MASK) << Self::KIND_SHIFT | (id & Self::ID_MASK) }
    }

    /// A final verdict that user space is told of: the evaluation met a Log rule.
    #[must_use]
    pub const fn with_log(self) -> Self {
        Self { bits: self.bits | Self::LOG }
    }

    #[inline(always)]
    pub const fn kind(self) -> u32 {
        self.bits >> Self::KIND_SHIFT & Self::KIND_MASK
    }

    /// A final verdict on something that leads to the node itself, which does not take it; set by the kernel programs.
    #[must_use]
    #[inline(always)]
    pub const fn to_host(self) -> Self {
        Self { bits: self.bits | Self::TO_HOST }
    }

    /// Policy allows, and the node itself does not take it.
    #[inline(always)]
    pub const fn is_to_host(self) -> bool {
        self.kind() == Self::ALLOW && self.bits & Self::TO_HOST != 0
    }

    #[inline(always)]
    pub const fn allows(self) -> bool {
        self.kind() == Self::ALLOW && self.bits & Self::TO_HOST == 0
    }

    #[inline(always)]
    pub const fn logs(self) -> bool {
        self.bits & Self::LOG != 0
    }

    /// Decision id of a final verdict, row index otherwise.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        self.bits & Self::ID_MASK
    }
}

/// `RULE_HITS`: decision id → what became of it on one CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hits {
    /// New flows that were judged so; a flow that is judged again counts again.
    pub flows: u64,
    /// Events about it that were not sent: over its limit, over the CPU's, or the ring was full. Stays 0 for
    /// decision 0, see [`crate::event::EventBudget::lost`].
    pub lost: u64,
    /// Tick of 2^30 ns that `sent` belongs to.
    pub tick: u32,
    pub sent: u32,
}

/// Decisions in `RULE_HITS`. Decision 0 is "no rule": a default, a missing set.
pub const MAX_RULES: u32 = 65536;

/// Where a CPU counts a decision's hits. Not a per-CPU table, of which the kernel allocates every element by itself, which
/// takes it longer than all other tables together; each CPU has a part of its own all the same.
#[inline(always)]
pub const fn hits_index(cpu: u32, decision: u32) -> Option<u32> {
    if decision < MAX_RULES { Some(cpu.wrapping_mul(MAX_RULES) + decision) } else { None }
}

/// Size of `SETS`; set 0 denies.
pub const MAX_SETS: u32 = 4096;
/// Size of `ROWS`.
pub const MAX_ROWS: u32 = 65536;

abi!(
    Class = 4 align 4,
    RowRef = 4 align 4,
    Verdict = 4 align 4,
    Row = 128 align 4,
    Hits = 24 align 8,
);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn slot_is_the_last_bound_not_above_the_key(mut bounds in proptest::collection::vec(1..u32::MAX, 0..FANOUT), key in 0..u32::MAX) {
            bounds.push(0);
            bounds.sort_unstable();
            bounds.dedup();
            let mut row = Row { bounds: [u32::MAX; FANOUT], verdicts: Row::DENY_ALL.verdicts };
            row.bounds[..bounds.len()].copy_from_slice(&bounds);
            let expected = bounds.iter().rposition(|b| *b <= key);
            prop_assert_eq!(Some(row.slot(key)), expected);
        }
    }

    #[test]
    fn a_verdict_gives_back_what_it_was_made_of() {
        for kind in [Verdict::DENY, Verdict::ALLOW, Verdict::PAGE, Verdict::BY_SRC_PORT] {
            for id in [0, 1, MAX_RULES - 1, (1 << 28) - 1] {
                let verdict = Verdict::new(kind, id);
                assert_eq!((verdict.kind(), verdict.id(), verdict.logs()), (kind, id, false));
                let logged = verdict.with_log();
                assert_eq!((logged.kind(), logged.id(), logged.logs()), (kind, id, true));
                assert_eq!(logged.allows(), kind == Verdict::ALLOW);
                let to_host = logged.to_host();
                assert_eq!((to_host.kind(), to_host.id(), to_host.logs()), (kind, id, true));
                assert_eq!((to_host.allows(), to_host.is_to_host()), (false, kind == Verdict::ALLOW));
            }
        }
    }

    #[test]
    fn a_zeroed_page_denies_every_key() {
        for key in [0, 1, key(6, 80), key(255, 65535), u32::MAX] {
            assert_eq!(Row::DENY_ALL.verdicts[Row::DENY_ALL.slot(key)].kind(), Verdict::DENY);
        }
    }
}
