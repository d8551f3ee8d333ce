//! What the log has been told, so that it hears of each problem once when it appears and once when it is over.

use std::collections::BTreeMap;

use tracing::{info, warn};

#[derive(Debug, Default)]
pub(super) struct Told {
    problems: Vec<String>,
    invalid: BTreeMap<String, String>,
}

impl Told {
    pub(super) fn problems(&mut self, now: Vec<String>) {
        for problem in now.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{problem}");
        }
        for problem in self.problems.iter().filter(|problem| !now.contains(problem)) {
            info!("over: {problem}");
        }
        self.problems = now;
    }

    /// Objects that cannot be used, by key.
    pub(super) fn invalid(&mut self, now: BTreeMap<String, String>) {
        for (key, reason) in now.iter().filter(|(key, reason)| self.invalid.get(*key) != Some(reason)) {
            warn!(key, reason, "this object cannot be used");
        }
        for key in self.invalid.keys().filter(|key| !now.contains_key(*key)) {
            info!(key, "this object can be used again, or is gone");
        }
        self.invalid = now;
    }
}
