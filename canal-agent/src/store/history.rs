//! Whether what a store says now goes on from what it said before, or is another history: of a store that was wiped, or of a
//! backup that was put back. Pure.
//!
//! The revision alone does not tell: a backup may be put back with a revision far ahead of all that was ever seen, and with
//! the old cluster's id. But in one history each new revision is written by an entry of the cluster's log (raft) of its own, so
//! the revision never grows by more than the log does; and who puts a backup back begins a new log.
//! Source: etcd, `Documentation/learning/data_model.md` and `op-guide/recovery.md`.

use serde::{Deserialize, Serialize};

/// What is remembered of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Past {
    pub cluster_id: u64,
    /// All that was told up to here is known.
    pub revision: i64,
    /// `None`: the server does not tell of its log.
    pub mark: Option<Mark>,
}

/// A point in a store's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub revision: i64,
    /// An entry of the log that was written when the store had this revision, at the latest.
    pub index: u64,
}

/// What a store says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    pub cluster_id: u64,
    pub revision: i64,
    /// An entry of the log that was written when the store had this revision, at the earliest.
    pub index: Option<u64>,
}

impl Past {
    /// Why what a store says now cannot be what became of this past, if so.
    pub fn breaks_off(&self, now: Now) -> Option<&'static str> {
        if now.cluster_id != self.cluster_id {
            return Some("another etcd cluster answers");
        }
        if now.revision < self.revision {
            return Some("the store has gone back in time");
        }
        let (Some(mark), Some(index)) = (self.mark, now.index) else { return None };
        let written = u64::try_from(now.revision.saturating_sub(mark.revision)).unwrap_or(0);
        (mark.index.saturating_add(written) > index)
            .then_some("the store has more history than its log: a backup was put back")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAST: Past = Past { cluster_id: 7, revision: 120, mark: Some(Mark { revision: 100, index: 150 }) };

    fn breaks_off(cluster_id: u64, revision: i64, index: Option<u64>) -> bool {
        PAST.breaks_off(Now { cluster_id, revision, index }).is_some()
    }

    #[test]
    fn a_history_goes_on_while_its_log_grows_with_it() {
        for (revision, index) in [(120, Some(170)), (120, Some(400)), (5000, Some(5050)), (120, None)] {
            assert!(!breaks_off(7, revision, index), "{revision} {index:?}");
        }
    }

    #[test]
    fn wiped_and_restored_stores_break_off_however_far_their_revision_is() {
        for (revision, index) in [
            (119, Some(1000)),
            (119, None),
            // A backup of revision 110, and what was written since.
            (130, Some(24)),
            (900, Some(794)),
            // The same with a revision moved ahead.
            (1_000_000_110, Some(4)),
            (i64::MAX, Some(170)),
        ] {
            assert!(breaks_off(7, revision, index), "{revision} {index:?}");
        }
        assert!(breaks_off(8, 120, Some(170)));
    }
}
