//! A row as the kernel reads it: pages of at most [`FANOUT`] bounds, a tree where there are more.

use std::collections::HashMap;

use canal_common::policy::{self, FANOUT, MAX_DEPTH, Verdict, key};

use super::verdict::{Decision, Final, Row};

/// Levels by destination port; as many again by source port.
const LEVELS: u32 = 4;
const _: () = assert!(2 * LEVELS as usize == MAX_DEPTH);
/// Bounds that this many levels hold.
pub const MAX_BOUNDS: usize = FANOUT.pow(LEVELS);

/// A page whose children are positions in its [`PageTree`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Page {
    pub bounds: [u32; FANOUT],
    pub slots: [Slot; FANOUT],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Allow or deny.
    Verdict(Verdict),
    /// Go on in this page.
    Page(usize),
    /// Go on in this page by source port.
    BySrcPort(usize),
}

/// Pages, children before parents, no two equal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PageTree {
    pub pages: Vec<Page>,
    /// Where a search begins; as a rule the last page, unless that would be another's equal.
    pub root: usize,
}

/// A row has more bounds than a tree of pages holds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "policy row: {bounds} bounds by {by} port, the limit is {MAX_BOUNDS}; merge port ranges of its rules"
)]
pub struct TooBig {
    pub bounds: usize,
    /// `destination` or `source`.
    pub by: &'static str,
}

/// `number`: the kernel's number for a decision, 0 for those of which nothing is to be told.
pub fn encode(row: &Row, number: &mut dyn FnMut(&Final) -> u32) -> Result<PageTree, TooBig> {
    let mut builder = Builder::default();
    let mut verdict = |decided: &Final| {
        let kind = if decided.allow { Verdict::ALLOW } else { Verdict::DENY };
        let verdict = Verdict::new(kind, number(decided));
        Slot::Verdict(if decided.logs.is_empty() { verdict } else { verdict.with_log() })
    };
    let mut slots = Vec::with_capacity(row.0.len());
    for (bound, decision) in &row.0 {
        let slot = match decision {
            Decision::Final(decided) => verdict(decided),
            Decision::BySrcPort(by) => {
                let by = by.iter().map(|(bound, decided)| (*bound, verdict(decided))).collect();
                Slot::BySrcPort(builder.tree(by, "source")?)
            }
        };
        slots.push((*bound, slot));
    }
    let root = builder.tree(slots, "destination")?;
    Ok(PageTree { pages: builder.pages, root })
}

impl PageTree {
    /// What the kernel will answer; `port` is the destination port, or ICMP type and code, or 0.
    pub fn lookup(&self, protocol: u8, src_port: u16, port: u16) -> Verdict {
        let (mut page, mut wanted) = (self.root, key(protocol, port));
        for _ in 0..MAX_DEPTH {
            let found = &self.pages[page];
            let slot = policy::Row { bounds: found.bounds, ..policy::Row::DENY_ALL }.slot(wanted);
            match found.slots[slot] {
                Slot::Verdict(verdict) => return verdict,
                Slot::Page(next) => page = next,
                Slot::BySrcPort(next) => (page, wanted) = (next, key(protocol, src_port)),
            }
        }
        Verdict::default()
    }
}

impl Page {
    /// The kernel's form, once the children have their places.
    pub fn resolve(&self, row_of: impl Fn(usize) -> u32) -> policy::Row {
        let verdicts = self.slots.map(|slot| match slot {
            Slot::Verdict(verdict) => verdict,
            Slot::Page(page) => Verdict::new(Verdict::PAGE, row_of(page)),
            Slot::BySrcPort(page) => Verdict::new(Verdict::BY_SRC_PORT, row_of(page)),
        });
        policy::Row { bounds: self.bounds, verdicts }
    }

    /// Positions of the children.
    pub fn children(&self) -> impl Iterator<Item = usize> {
        self.slots.into_iter().filter_map(|slot| match slot {
            Slot::Verdict(_) => None,
            Slot::Page(page) | Slot::BySrcPort(page) => Some(page),
        })
    }
}

#[derive(Default)]
struct Builder {
    pages: Vec<Page>,
    places: HashMap<Page, usize>,
}

impl Builder {
    fn tree(&mut self, mut slots: Vec<(u32, Slot)>, by: &'static str) -> Result<usize, TooBig> {
        // Rules that the kernel does not tell apart need no bound between them.
        slots.dedup_by(|next, kept| next.1 == kept.1);
        if slots.len() > MAX_BOUNDS {
            return Err(TooBig { bounds: slots.len(), by });
        }
        while slots.len() > FANOUT {
            slots = slots.chunks(FANOUT).map(|chunk| (chunk[0].0, Slot::Page(self.page(chunk)))).collect();
        }
        Ok(self.page(&slots))
    }

    fn page(&mut self, slots: &[(u32, Slot)]) -> usize {
        let mut page =
            Page { bounds: [u32::MAX; FANOUT], slots: [Slot::Verdict(Verdict::from_bits(0)); FANOUT] };
        for (at, (bound, slot)) in slots.iter().enumerate() {
            // Who comes to a page is not below its first bound; as 0 it lets equal pages be one.
            page.bounds[at] = if at == 0 { 0 } else { *bound };
            page.slots[at] = *slot;
        }
        *self.places.entry(page).or_insert_with_key(|page| {
            self.pages.push(page.clone());
            self.pages.len() - 1
        })
    }
}
