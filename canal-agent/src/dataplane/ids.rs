//! Kernel ids for things that are known by their content.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Small integers from 1 up. The one that was freed longest ago is taken first, and only in a later round than the
/// one that freed it: a program that still runs may hold it.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    limit: u32,
    next: u32,
    reserved: BTreeSet<u32>,
    free: VecDeque<u32>,
    resting: Vec<u32>,
}

impl Pool {
    /// Ids below `limit`, without those that an earlier process uses.
    pub(super) fn new(limit: u32, reserved: impl IntoIterator<Item = u32>) -> Self {
        let reserved = reserved.into_iter().collect();
        Self { limit, next: 1, reserved, free: VecDeque::new(), resting: Vec::new() }
    }

    /// A new round: what was freed until now may be taken.
    pub(super) fn begin(&mut self) {
        self.free.extend(self.resting.drain(..));
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        // Fresh ids first: the freed ones rest as long as there is room.
        while self.next < self.limit {
            let id = self.next;
            self.next += 1;
            if !self.reserved.contains(&id) {
                return Some(id);
            }
        }
        self.free.pop_front()
    }

    pub(super) fn give_back(&mut self, id: u32) {
        self.resting.push(id);
    }

    /// Ids that were reserved are nobody's now.
    pub(super) fn release_reserved(&mut self) {
        self.release_reserved_but(&BTreeSet::new());
    }

    /// As above, but those in `taken` have found a new owner.
    pub(super) fn release_reserved_but(&mut self, taken: &BTreeSet<u32>) {
        let passed = self.next;
        let (stay, go): (BTreeSet<u32>, BTreeSet<u32>) =
            std::mem::take(&mut self.reserved).into_iter().partition(|id| taken.contains(id));
        self.reserved = stay;
        self.resting.extend(go.into_iter().filter(|id| *id > 0 && *id < passed));
    }
}

/// Contents and their ids.
#[derive(Debug, Clone)]
pub(super) struct Ids<T> {
    pool: Pool,
    by_content: BTreeMap<T, u32>,
}

impl<T: Ord + Clone> Ids<T> {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, by_content: BTreeMap::new() }
    }

    pub(super) fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    pub(super) fn get(&self, content: &T) -> Option<u32> {
        self.by_content.get(content).copied()
    }

    /// The id of `content`, and whether it is new; `None` when there is no room.
    pub(super) fn ensure(&mut self, content: &T) -> Option<(u32, bool)> {
        if let Some(id) = self.by_content.get(content) {
            return Some((*id, false));
        }
        let id = self.pool.take()?;
        self.by_content.insert(content.clone(), id);
        Some((id, true))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&T, u32)> {
        self.by_content.iter().map(|(content, id)| (content, *id))
    }

    /// Frees every id whose content `keep` rejects.
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&T, u32) -> bool) {
        let pool = &mut self.pool;
        self.by_content.retain(|content, id| {
            let kept = keep(content, *id);
            if !kept {
                pool.give_back(*id);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_id_is_not_taken_in_the_round_that_freed_it() {
        let mut pool = Pool::new(3, []);
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(1), Some(2), None));
        pool.give_back(1);
        assert_eq!(pool.take(), None);
        pool.begin();
        assert_eq!(pool.take(), Some(1));
    }

    #[test]
    fn ids_of_an_earlier_process_are_left_alone_until_released() {
        let mut pool = Pool::new(4, [1, 3]);
        assert_eq!((pool.take(), pool.take()), (Some(2), None));
        pool.release_reserved();
        pool.begin();
        assert_eq!((pool.take(), pool.take(), pool.take()), (Some(1), Some(3), None));
    }
}
