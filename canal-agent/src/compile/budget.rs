//! What compiled policy may take of memory. A short text can stand for very much: ports times source ports times Log
//! rules, or the many meanings of a port name.
//!
//! Promises: counted before it is taken.

use std::sync::Arc;

use super::{pages::MAX_BOUNDS, verdict::RuleId};

/// Pieces that one row may be made of, an interval of source ports or a note counting as one more: several times what a
/// row in the kernel has room for.
pub(super) const PIECES: usize = 4 * MAX_BOUNDS;
/// Predicates and intervals that the steps of one policy may consist of in one direction, a step counting as [`STEP`].
pub(super) const STEPS: usize = 16 * MAX_BOUNDS;
/// What a step takes apart from its predicates and intervals.
pub(super) const STEP: usize = 8;

/// Compiled, a policy would take more memory than it may.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
pub enum OverBudget {
    #[error(
        "policy row: its rules divide ports, source ports and Log rules into more than {PIECES} pieces; merge port ranges, \
         or use fewer source ports and Log rules"
    )]
    Row,
    #[error(
        "{0}: with it the policy has more than {STEPS} combinations of ports and peers; split the policy, or use port \
         numbers, or port names that endpoints give to fewer ports"
    )]
    Policy(Arc<RuleId>),
}

/// Counts the pieces of one stage of making a row.
#[derive(Debug, Default)]
pub(super) struct Pieces(usize);

impl Pieces {
    pub(super) fn take(&mut self, count: usize) -> Result<(), OverBudget> {
        self.0 = self.0.saturating_add(count);
        if self.0 > PIECES { Err(OverBudget::Row) } else { Ok(()) }
    }

    pub(super) fn give_back(&mut self, count: usize) {
        self.0 = self.0.saturating_sub(count);
    }
}

/// What is left for the steps of one policy.
#[derive(Debug)]
pub(super) struct Room(usize);

/// There is not enough of it.
#[derive(Debug)]
pub(super) struct NoRoom;

impl Default for Room {
    fn default() -> Self {
        Self(STEPS)
    }
}

impl Room {
    pub(super) fn left(&self) -> usize {
        self.0
    }

    pub(super) fn take(&mut self, count: usize) -> Result<(), NoRoom> {
        self.0 = self.0.checked_sub(count).ok_or(NoRoom)?;
        Ok(())
    }
}
