//! Kernel ids for things that are known by their content.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    hash::Hash,
};

/// Which ids a pool hands out first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prefer {
    /// Those never used: the others rest as long as there is room.
    Fresh,
    /// Those that were freed: numbers stay small, for tables that are as long as their largest id.
    Freed,
}

/// Small integers from 1 up. Among those that were freed, the one that was freed longest ago is taken first, and only
/// in a later round than the one that freed it: a program that still runs may hold it.
#[derive(Debug, Clone)]
pub(super) struct Pool {
    limit: u32,
    prefer: Prefer,
    /// Everything from here on is fresh, but for `reserved`.
    next: u32,
    /// In use before this process came.
    reserved: BTreeSet<u32>,
    free: VecDeque<u32>,
    resting: Vec<u32>,
}

impl Pool {
    /// Ids below `limit`; those in `reserved` are taken until they are given back.
    pub(super) fn new(limit: u32, prefer: Prefer, reserved: impl IntoIterator<Item = u32>) -> Self {
        let reserved = reserved.into_iter().filter(|id| *id < limit).collect();
        Self { limit, prefer, next: 1, reserved, free: VecDeque::new(), resting: Vec::new() }
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// A new round: what was freed until now may be taken.
    pub(super) fn begin(&mut self) {
        for id in self.resting.drain(..) {
            // Beyond `next` it is found as a fresh one.
            if !self.reserved.remove(&id) || id < self.next {
                self.free.push_back(id);
            }
        }
    }

    /// Something was freed in this round.
    pub(super) fn rests(&self) -> bool {
        !self.resting.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        match self.prefer {
            Prefer::Fresh => self.fresh().or_else(|| self.free.pop_front()),
            Prefer::Freed => self.free.pop_front().or_else(|| self.fresh()),
        }
    }

    fn fresh(&mut self) -> Option<u32> {
        while self.next < self.limit {
            let id = self.next;
            self.next += 1;
            if !self.reserved.contains(&id) {
                return Some(id);
            }
        }
        None
    }

    pub(super) fn give_back(&mut self, id: u32) {
        if (1..self.limit).contains(&id) {
            self.resting.push(id);
        }
    }
}

/// Contents and their ids.
#[derive(Debug, Clone)]
pub(super) struct Ids<T> {
    pool: Pool,
    by_content: HashMap<T, u32>,
    by_id: BTreeMap<u32, T>,
}

impl<T: Hash + Eq + Clone> Ids<T> {
    pub(super) fn new(pool: Pool) -> Self {
        Self { pool, by_content: HashMap::new(), by_id: BTreeMap::new() }
    }

    pub(super) fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    pub(super) fn rests(&self) -> bool {
        self.pool.rests()
    }

    pub(super) fn get<Q: Hash + Eq + ?Sized>(&self, content: &Q) -> Option<u32>
    where
        T: Borrow<Q>,
    {
        self.by_content.get(content).copied()
    }

    pub(super) fn content(&self, id: u32) -> Option<&T> {
        self.by_id.get(&id)
    }

    /// The id of `content`, and whether it is new; `None` when there is no room.
    pub(super) fn ensure(&mut self, content: &T) -> Option<(u32, bool)> {
        if let Some(id) = self.by_content.get(content) {
            return Some((*id, false));
        }
        let id = self.pool.take()?;
        self.name(content, id);
        Some((id, true))
    }

    /// From now on `id`, which was taken from the pool, stands for `content`.
    pub(super) fn name(&mut self, content: &T, id: u32) {
        self.by_content.insert(content.clone(), id);
        self.by_id.insert(id, content.clone());
    }

    /// Frees the id together with its meaning.
    pub(super) fn remove(&mut self, id: u32) {
        if let Some(content) = self.by_id.remove(&id) {
            self.by_content.remove(&content);
            self.pool.give_back(id);
        }
    }

    /// Takes the meaning from an id that stays taken.
    pub(super) fn unname(&mut self, id: u32) -> Option<T> {
        let content = self.by_id.remove(&id)?;
        self.by_content.remove(&content);
        Some(content)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.by_id.iter().map(|(id, content)| (*id, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_id_is_not_taken_in_the_round_that_freed_it() {
        for prefer in [Prefer::Fresh, Prefer::Freed] {
            let mut pool = Pool::new(3, prefer, []);
            assert_eq!((pool.take(), pool.take(), pool.take()), (Some(1), Some(2), None));
            pool.give_back(1);
            assert_eq!(pool.take(), None);
            pool.begin();
            assert_eq!((pool.take(), pool.take()), (Some(1), None));
        }
    }

    #[test]
    fn ids_of_an_earlier_process_are_left_alone_until_given_back() {
        for prefer in [Prefer::Fresh, Prefer::Freed] {
            let mut pool = Pool::new(4, prefer, [1, 3, 99]);
            pool.give_back(3);
            pool.give_back(99);
            assert_eq!((pool.take(), pool.take()), (Some(2), None));
            pool.give_back(1);
            pool.begin();
            let taken: BTreeSet<_> = [pool.take(), pool.take()].into();
            assert_eq!((taken, pool.take()), ([Some(1), Some(3)].into(), None));
        }
    }

    #[test]
    fn a_reserved_id_that_was_not_passed_yet_is_handed_out_once() {
        let mut pool = Pool::new(5, Prefer::Freed, [2, 3]);
        pool.give_back(3);
        pool.begin();
        let taken: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(taken, [1, 3, 4]);
    }

    #[test]
    fn numbers_stay_small_where_freed_ids_are_preferred() {
        let mut pool = Pool::new(1000, Prefer::Freed, []);
        for _ in 0..100 {
            pool.begin();
            let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
            assert!(a < 5 && b < 5, "{a} {b}");
            pool.give_back(a);
            pool.give_back(b);
        }
    }

    #[test]
    fn a_content_keeps_its_id_until_it_is_removed() {
        let mut ids = Ids::new(Pool::new(3, Prefer::Freed, []));
        assert_eq!(
            (ids.ensure(&"a"), ids.ensure(&"b"), ids.ensure(&"c")),
            (Some((1, true)), Some((2, true)), None)
        );
        assert_eq!(
            (ids.ensure(&"b"), ids.get(&"a"), ids.content(2)),
            (Some((2, false)), Some(1), Some(&"b"))
        );
        ids.remove(1);
        assert_eq!((ids.get(&"a"), ids.content(1)), (None, None));
        ids.pool().begin();
        assert_eq!(ids.ensure(&"c"), Some((1, true)));
    }
}
