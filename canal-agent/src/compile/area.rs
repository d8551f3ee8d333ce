//! The space of packets that verdicts divide: protocol and destination port, times source port.

use std::collections::BTreeMap;

use canal_common::policy::key;

use super::budget::{OverBudget, Pieces};

/// One past the last key.
const KEYS: u32 = 1 << 24;
/// One past the last port.
const PORTS: u32 = 1 << 16;

/// Disjoint half-open intervals, ascending, none touching the next.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Intervals(Vec<(u32, u32)>);

impl Intervals {
    pub(super) fn new(mut raw: Vec<(u32, u32)>) -> Self {
        raw.retain(|(low, high)| low < high);
        raw.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::with_capacity(raw.len());
        for (low, high) in raw {
            match merged.last_mut() {
                Some(last) if low <= last.1 => last.1 = last.1.max(high),
                _ => merged.push((low, high)),
            }
        }
        Self(merged)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn intersect(&self, other: &Self) -> Self {
        let (mut i, mut j, mut both) = (0, 0, Vec::new());
        while let (Some(a), Some(b)) = (self.0.get(i), other.0.get(j)) {
            let (low, high) = (a.0.max(b.0), a.1.min(b.1));
            if low < high {
                both.push((low, high));
            }
            if a.1 < b.1 { i += 1 } else { j += 1 }
        }
        Self(both)
    }

    fn complement(&self, end: u32) -> Self {
        let mut gaps = Vec::with_capacity(self.0.len() + 1);
        let mut from = 0;
        for (low, high) in &self.0 {
            gaps.push((from, *low));
            from = *high;
        }
        gaps.push((from, end));
        Self::new(gaps)
    }
}

/// Source ports; protocols without ports have all of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum SrcPorts {
    All,
    Some(Intervals),
}

impl SrcPorts {
    fn of(intervals: Intervals) -> Self {
        if intervals.0 == [(0, PORTS)] { Self::All } else { Self::Some(intervals) }
    }

    pub(super) fn from_ranges(inclusive: impl IntoIterator<Item = (u16, u16)>) -> Self {
        Self::of(Intervals::new(
            inclusive.into_iter().map(|(low, high)| (low.into(), u32::from(high) + 1)).collect(),
        ))
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Some(intervals) if intervals.is_empty())
    }

    fn intervals(&self) -> Intervals {
        match self {
            Self::All => Intervals(vec![(0, PORTS)]),
            Self::Some(intervals) => intervals.clone(),
        }
    }

    /// What a piece with these takes of the budget.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::All => 1,
            Self::Some(intervals) => 1 + intervals.0.len(),
        }
    }

    pub(super) fn intersect(&self, other: &Self) -> Self {
        match (self, other) {
            (Self::All, same) | (same, Self::All) => same.clone(),
            (Self::Some(a), Self::Some(b)) => Self::of(a.intersect(b)),
        }
    }

    pub(super) fn without(&self, other: &Self) -> Self {
        match other {
            Self::All => Self::Some(Intervals::default()),
            Self::Some(taken) => Self::of(self.intervals().intersect(&taken.complement(PORTS))),
        }
    }
}

/// All keys of one list of intervals, each with the same source ports.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Area {
    pub(super) keys: Intervals,
    pub(super) src: SrcPorts,
}

impl Area {
    pub(super) fn everything() -> Self {
        Self { keys: Intervals(vec![(0, KEYS)]), src: SrcPorts::All }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() || self.src.is_empty()
    }

    pub(super) fn keep(&mut self, keys: &Intervals) {
        self.keys = self.keys.intersect(keys);
    }

    pub(super) fn drop(&mut self, keys: &Intervals) {
        self.keys = self.keys.intersect(&keys.complement(KEYS));
    }
}

/// Every port, type and code of these protocols.
pub(super) fn protocols(numbers: impl IntoIterator<Item = u8>) -> Intervals {
    Intervals::new(numbers.into_iter().map(|n| (key(n, 0), key(n, 0) + PORTS)).collect())
}

/// Ports (both ends belong) of each of these protocols.
pub(super) fn ports(numbers: &[u8], ranges: &[(u16, u16)]) -> Intervals {
    let of = |n: u8| ranges.iter().map(move |(low, high)| (key(n, *low), key(n, *high) + 1));
    Intervals::new(numbers.iter().flat_map(|n| of(*n)).collect())
}

/// Keys from `low` to before `high` with some source ports.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    pub(super) low: u32,
    pub(super) high: u32,
    pub(super) src: SrcPorts,
}

/// What no rule has decided yet: disjoint in keys.
#[derive(Debug, Default)]
pub(super) struct Open {
    cells: BTreeMap<u32, (u32, SrcPorts)>,
    pieces: Pieces,
}

impl Open {
    pub(super) fn everything() -> Self {
        Self { cells: [(0, (KEYS, SrcPorts::All))].into(), pieces: Pieces::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    fn insert(&mut self, low: u32, high: u32, src: SrcPorts) -> Result<(), OverBudget> {
        self.pieces.take(src.weight())?;
        self.cells.insert(low, (high, src));
        Ok(())
    }

    /// Gives what lies in `area` to `taken`.
    pub(super) fn take(
        &mut self,
        area: &Area,
        mut taken: impl FnMut(Piece) -> Result<(), OverBudget>,
    ) -> Result<(), OverBudget> {
        area.keys.0.iter().try_for_each(|(low, high)| self.take_keys(*low, *high, &area.src, &mut taken))
    }

    fn take_keys(
        &mut self,
        low: u32,
        high: u32,
        src: &SrcPorts,
        taken: &mut impl FnMut(Piece) -> Result<(), OverBudget>,
    ) -> Result<(), OverBudget> {
        let before =
            self.cells.range(..low).next_back().filter(|(_, (end, _))| *end > low).map(|(start, _)| *start);
        let touched: Vec<u32> =
            before.into_iter().chain(self.cells.range(low..high).map(|(start, _)| *start)).collect();
        for start in touched {
            let Some((end, open)) = self.cells.remove(&start) else { continue };
            self.pieces.give_back(open.weight());
            if start < low {
                self.insert(start, low, open.clone())?;
            }
            if end > high {
                self.insert(high, end, open.clone())?;
            }
            let (low, high) = (start.max(low), end.min(high));
            let left = open.without(src);
            if !left.is_empty() {
                self.insert(low, high, left)?;
            }
            let src = open.intersect(src);
            if !src.is_empty() {
                taken(Piece { low, high, src })?;
            }
        }
        Ok(())
    }

    /// What of it lies in `area`, and stays.
    pub(super) fn meeting(&self, area: &Area) -> impl Iterator<Item = Piece> {
        let within = move |(low, high): (u32, u32)| {
            let before = self.cells.range(..low).next_back();
            before.into_iter().chain(self.cells.range(low..high)).filter_map(move |(start, (end, src))| {
                let (low, high, src) = (low.max(*start), high.min(*end), src.intersect(&area.src));
                (low < high && !src.is_empty()).then_some(Piece { low, high, src })
            })
        };
        area.keys.0.iter().copied().flat_map(within)
    }

    /// All that is left.
    pub(super) fn into_pieces(self) -> impl Iterator<Item = Piece> {
        self.cells.into_iter().map(|(low, (high, src))| Piece { low, high, src })
    }

    /// From disjoint pieces, of which several may have the same keys.
    pub(super) fn from_pieces(pieces: Vec<Piece>) -> Result<Self, OverBudget> {
        let mut open = Self::default();
        let mut last: Option<(u32, u32)> = None;
        sweep(pieces.into_iter().map(|p| (p.low, p.high, p.src)).collect(), |low, high, srcs| {
            let all = srcs.iter().flat_map(|src| src.intervals().0).collect();
            let src = SrcPorts::of(Intervals::new(all));
            // It goes on where the last one ends.
            if let Some((start, end)) = last
                && end == low
                && let Some(cell) = open.cells.get_mut(&start)
                && cell.1 == src
            {
                cell.0 = high;
                last = Some((start, high));
                return Ok(());
            }
            last = Some((low, high));
            open.insert(low, high, src)
        })?;
        Ok(open)
    }
}

/// Calls `visit` for each stretch of keys over which the same items lie, ascending, until it fails.
pub(super) fn sweep<T>(
    mut items: Vec<(u32, u32, T)>,
    mut visit: impl FnMut(u32, u32, &[&T]) -> Result<(), OverBudget>,
) -> Result<(), OverBudget> {
    items.sort_by_key(|(low, _, _)| *low);
    let mut bounds: Vec<u32> = items.iter().flat_map(|(low, high, _)| [*low, *high]).collect();
    bounds.sort_unstable();
    bounds.dedup();
    let mut active: Vec<&(u32, u32, T)> = Vec::new();
    let mut rest = items.iter().peekable();
    for pair in bounds.windows(2) {
        let [low, high] = *pair else { continue };
        active.retain(|(_, end, _)| *end > low);
        while let Some(item) = rest.next_if(|(start, _, _)| *start <= low) {
            active.push(item);
        }
        if !active.is_empty() {
            let here: Vec<&T> = active.iter().map(|(_, _, item)| item).collect();
            visit(low, high, &here)?;
        }
    }
    Ok(())
}

/// Pairs of first source port and what holds from there on, for items that divide all source ports.
pub(super) fn by_src_port<T: Clone + Eq>(items: &[&(SrcPorts, T)]) -> Vec<(u32, T)> {
    let mut starts: Vec<(u32, T)> = items
        .iter()
        .flat_map(|(src, item)| src.intervals().0.into_iter().map(|(low, _)| (low, item.clone())))
        .collect();
    starts.sort_by_key(|(low, _)| *low);
    starts.dedup_by(|next, kept| next.1 == kept.1);
    starts
}
