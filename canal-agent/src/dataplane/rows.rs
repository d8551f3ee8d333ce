//! Rows in the kernel: equal rows are written once, and stay as long as a column names them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use canal_common::policy::{MAX_ROWS, MAX_RULES};

use super::{
    ids::{Ids, Pool},
    tables::Tables,
};
use crate::compile::{Row, RuleId, pages};

#[derive(Debug)]
pub(super) struct Rows {
    pool: Pool,
    by_content: HashMap<Row, u32>,
    written: BTreeMap<u32, Written>,
    rules: Ids<Arc<RuleId>>,
}

#[derive(Debug)]
struct Written {
    content: Row,
    pages: Vec<u32>,
    users: usize,
}

/// Why a row could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError<E: std::error::Error + 'static> {
    #[error(transparent)]
    TooBig(#[from] pages::TooBig),
    #[error("all {} rows are in use", MAX_ROWS - 1)]
    Full,
    #[error(transparent)]
    Write(E),
}

impl Rows {
    /// `reserved`: rows that an earlier process wrote and that are still read.
    pub(super) fn new(reserved: impl IntoIterator<Item = u32>) -> Self {
        Self {
            pool: Pool::new(MAX_ROWS, reserved),
            by_content: HashMap::new(),
            written: BTreeMap::new(),
            rules: Ids::new(Pool::new(MAX_RULES, [])),
        }
    }

    pub(super) fn begin(&mut self) {
        self.pool.begin();
        self.rules.pool().begin();
    }

    pub(super) fn release_reserved(&mut self) {
        self.pool.release_reserved();
    }

    pub(super) fn len(&self) -> usize {
        self.written.values().map(|w| w.pages.len()).sum()
    }

    /// The rule behind an id in the kernel.
    pub(super) fn rule(&self, id: u32) -> Option<&Arc<RuleId>> {
        self.rules.iter().find(|(_, known)| *known == id).map(|(rule, _)| rule)
    }

    /// Writes `row` unless an equal one is there; its id is the caller's until [`Rows::release`].
    pub(super) fn acquire<T: Tables>(
        &mut self,
        tables: &mut T,
        row: &Row,
    ) -> Result<u32, RowError<T::Error>> {
        if let Some(id) = self.by_content.get(row) {
            if let Some(written) = self.written.get_mut(id) {
                written.users += 1;
                return Ok(*id);
            }
        }
        let rules = &mut self.rules;
        // Without room for another rule its hits count for "no rule": verdicts do not depend on it.
        let tree =
            pages::encode(row, &mut |rule| rule.and_then(|rule| rules.ensure(rule)).map_or(0, |(id, _)| id))?;
        let mut ids: Vec<u32> = Vec::with_capacity(tree.pages.len());
        for _ in 0..tree.pages.len() {
            match self.pool.take() {
                Some(id) => ids.push(id),
                None => {
                    ids.into_iter().for_each(|id| self.pool.give_back(id));
                    return Err(RowError::Full);
                }
            }
        }
        for (at, id) in ids.iter().enumerate() {
            tables.write_row(*id, &tree.pages[at].resolve(|child| ids[child])).map_err(RowError::Write)?;
        }
        let root = ids[tree.root];
        self.by_content.insert(row.clone(), root);
        self.written.insert(root, Written { content: row.clone(), pages: ids, users: 1 });
        Ok(root)
    }

    pub(super) fn release(&mut self, root: u32) {
        let Some(written) = self.written.get_mut(&root) else { return };
        written.users -= 1;
        if written.users == 0 {
            if let Some(written) = self.written.remove(&root) {
                self.by_content.remove(&written.content);
                written.pages.into_iter().for_each(|id| self.pool.give_back(id));
            }
        }
    }
}
