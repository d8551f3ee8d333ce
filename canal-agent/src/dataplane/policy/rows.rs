//! Rows in the kernel: equal rows are written once, and stay as long as a column names them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use canal_common::policy::MAX_RULES;

use super::ids::{Ids, Pool, Prefer};
use crate::{
    compile::{Final, OverBudget, Row, pages},
    dataplane::tables::Tables,
};

#[derive(Debug)]
pub(super) struct Rows {
    pool: Pool,
    by_content: HashMap<Arc<Row>, u32>,
    written: HashMap<u32, Written>,
    decisions: Ids<Arc<Final>>,
    /// Decision id → rows that name it.
    decision_users: HashMap<u32, usize>,
    /// Pages of all rows.
    pages: usize,
    /// Of the last row written.
    serial: u64,
}

/// A row as it was once acquired; it may have gone since.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remembered {
    root: u32,
    serial: u64,
}

#[derive(Debug)]
struct Written {
    /// Tells it from rows that had or will have its id.
    serial: u64,
    content: Arc<Row>,
    pages: Vec<u32>,
    decisions: BTreeSet<u32>,
    users: usize,
}

/// Why a row could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError<E: std::error::Error + 'static> {
    #[error(transparent)]
    TooBig(#[from] pages::TooBig),
    #[error(transparent)]
    OverBudget(#[from] OverBudget),
    #[error("all {0} rows are in use; raise --max-rows, or use fewer distinct rules and peer selectors")]
    Full(u32),
    #[error(transparent)]
    Write(E),
}

impl Rows {
    /// `reserved`: rows that an earlier process wrote and that are still read.
    pub(super) fn new(limit: u32, reserved: impl IntoIterator<Item = u32>) -> Self {
        Self {
            pool: Pool::new(limit, Prefer::Fresh, reserved),
            by_content: HashMap::new(),
            written: HashMap::new(),
            decisions: Ids::new(Pool::new(MAX_RULES, Prefer::Fresh, [])),
            decision_users: HashMap::new(),
            pages: 0,
            serial: 0,
        }
    }

    pub(super) fn begin(&mut self) {
        self.pool.begin();
        self.decisions.pool().begin();
    }

    pub(super) fn rest(&self) -> bool {
        self.pool.rests() || self.decisions.rests()
    }

    /// Rows of an earlier process that nothing reads any more.
    pub(super) fn give_back(&mut self, rows: impl IntoIterator<Item = u32>) {
        rows.into_iter().for_each(|row| self.pool.give_back(row));
    }

    pub(super) fn len(&self) -> usize {
        self.pages
    }

    /// The decision behind an id in the kernel.
    pub(super) fn decided(&self, id: u32) -> Option<&Arc<Final>> {
        self.decisions.content(id)
    }

    pub(super) fn decisions(&self) -> impl Iterator<Item = (u32, &Arc<Final>)> {
        self.decisions.iter()
    }

    /// Writes `row` unless an equal one is there; its id is the caller's until [`Rows::release`].
    pub(super) fn acquire<T: Tables>(&mut self, tables: &mut T, row: Row) -> Result<u32, RowError<T::Error>> {
        if let Some(id) = self.by_content.get(&row).copied() {
            self.share(id);
            return Ok(id);
        }
        let mut decisions = BTreeSet::new();
        let written = self.write(tables, &row, &mut decisions);
        match written {
            Ok(pages) => {
                let root = *pages.last().expect("a row has at least one page");
                for decision in &decisions {
                    *self.decision_users.entry(*decision).or_default() += 1;
                }
                let content = Arc::new(row);
                self.by_content.insert(content.clone(), root);
                self.pages += pages.len();
                self.serial += 1;
                let written = Written { serial: self.serial, content, pages, decisions, users: 1 };
                self.written.insert(root, written);
                Ok(root)
            }
            Err(error) => {
                self.drop_decisions(decisions);
                Err(error)
            }
        }
    }

    /// Writes the pages of `row`, the one where a search begins as the last.
    fn write<T: Tables>(
        &mut self,
        tables: &mut T,
        row: &Row,
        named: &mut BTreeSet<u32>,
    ) -> Result<Vec<u32>, RowError<T::Error>> {
        let known = &mut self.decisions;
        let mut fresh = Vec::new();
        // Without room for another one its hits count for "no rule": verdicts do not depend on it.
        let tree = pages::encode(row, &mut |decided| {
            if decided.is_nameless() {
                return 0;
            }
            let id = known.get(decided).map(|id| (id, false));
            let (id, is_fresh) = id.or_else(|| known.ensure(&Arc::new(decided.clone()))).unwrap_or_default();
            if id != 0 {
                named.insert(id);
            }
            fresh.extend(is_fresh.then_some(id));
            id
        })?;
        // What an id counted before is not this decision's.
        fresh.into_iter().try_for_each(|id| tables.clear_hits(id)).map_err(RowError::Write)?;
        let mut ids: Vec<u32> = Vec::with_capacity(tree.pages.len());
        for _ in 0..tree.pages.len() {
            let Some(id) = self.pool.take() else {
                self.give_back(ids);
                return Err(RowError::Full(self.pool.limit() - 1));
            };
            ids.push(id);
        }
        // Children come first: what a page points at stands before it does.
        for (at, id) in ids.iter().enumerate() {
            if let Err(error) = tables.write_row(*id, &tree.pages[at].resolve(|child| ids[child])) {
                self.give_back(ids);
                return Err(RowError::Write(error));
            }
        }
        let root = ids.remove(tree.root);
        ids.push(root);
        Ok(ids)
    }

    /// For [`Rows::acquire_again`]: the row, which is held.
    pub(super) fn remember(&self, root: u32) -> Option<Remembered> {
        Some(Remembered { root, serial: self.written.get(&root)?.serial })
    }

    /// The row, if it still is there; its id is the caller's as from [`Rows::acquire`].
    pub(super) fn acquire_again(&mut self, Remembered { root, serial }: Remembered) -> Option<u32> {
        let written = self.written.get_mut(&root).filter(|written| written.serial == serial)?;
        written.users += 1;
        Some(root)
    }

    /// Another column names the row.
    pub(super) fn share(&mut self, root: u32) {
        if let Some(written) = self.written.get_mut(&root) {
            written.users += 1;
        }
    }

    /// A column names the row no more. Rows of an earlier process are not counted.
    pub(super) fn release(&mut self, root: u32) {
        let Some(written) = self.written.get_mut(&root) else { return };
        written.users -= 1;
        if written.users == 0
            && let Some(written) = self.written.remove(&root)
        {
            self.by_content.remove(&written.content);
            self.pages -= written.pages.len();
            self.give_back(written.pages);
            for decision in &written.decisions {
                if let Some(users) = self.decision_users.get_mut(decision) {
                    *users -= 1;
                }
            }
            self.drop_decisions(written.decisions);
        }
    }

    pub(super) fn release_all(&mut self, roots: impl IntoIterator<Item = u32>) {
        roots.into_iter().filter(|root| *root != 0).for_each(|root| self.release(root));
    }

    fn drop_decisions(&mut self, decisions: impl IntoIterator<Item = u32>) {
        for decision in decisions {
            if self.decision_users.get(&decision).is_none_or(|users| *users == 0) {
                self.decision_users.remove(&decision);
                self.decisions.remove(decision);
            }
        }
    }
}
