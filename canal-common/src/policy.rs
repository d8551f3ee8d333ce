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

/// Three bits of kind, 28 bits of rule id or row index.
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

    const ID_MASK: u32 = (1 << 28) - 1;

    pub const fn from_bits(bits: u32) -> Self {
        Self { bits }
    }

    pub const fn new(kind: u32, id: u32) -> Self {
        Self { bits: kind << 29 | (id & Self::ID_MASK) }
    }

    #[inline(always)]
    pub const fn kind(self) -> u32 {
        self.bits >> 29
    }

    /// Rule id of a final verdict, row index otherwise.
    #[inline(always)]
    pub const fn id(self) -> u32 {
        self.bits & Self::ID_MASK
    }
}

/// `RULE_HITS`: rule id → new flows that this rule decided on one CPU.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Hits {
    pub flows: u64,
}

/// Size of `RULE_HITS`. Rule 0 is "no rule": a default, a missing set.
pub const MAX_RULES: u32 = 65536;
/// Size of `SETS`; set 0 denies.
pub const MAX_SETS: u32 = 4096;
/// Size of `ROWS`.
pub const MAX_ROWS: u32 = 65536;

abi!(
    Class = 4 align 4,
    RowRef = 4 align 4,
    Verdict = 4 align 4,
    Row = 128 align 4,
    Hits = 8 align 8,
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
    fn a_zeroed_page_denies_every_key() {
        for key in [0, 1, key(6, 80), key(255, 65535), u32::MAX] {
            assert_eq!(Row::DENY_ALL.verdicts[Row::DENY_ALL.slot(key)].kind(), Verdict::DENY);
        }
    }
}
