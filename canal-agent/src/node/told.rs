//! What the log has been told, so that it hears of each problem once when it appears and once when it is over.

use std::{borrow::Cow, collections::BTreeMap};

use tracing::{info, warn};

/// Characters of a text in the log. Some of it may be an object's, of any length; `canalctl status` has all of it.
const LONGEST: usize = 500;

#[derive(Debug, Default)]
pub(super) struct Told {
    problems: Vec<String>,
    invalid: BTreeMap<String, String>,
}

impl Told {
    pub(super) fn problems(&mut self, now: Vec<String>) {
        for problem in now.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{}", cut(problem));
        }
        for problem in self.problems.iter().filter(|problem| !now.contains(problem)) {
            info!("over: {}", cut(problem));
        }
        self.problems = now;
    }

    /// Objects that cannot be used, by key.
    pub(super) fn invalid(&mut self, now: BTreeMap<String, String>) {
        for (key, reason) in now.iter().filter(|(key, reason)| self.invalid.get(*key) != Some(reason)) {
            warn!(key, reason = &*cut(reason), "this object cannot be used");
        }
        for key in self.invalid.keys().filter(|key| !now.contains_key(*key)) {
            info!(key, "this object can be used again, or is gone");
        }
        self.invalid = now;
    }
}

fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{} […]", &text[..end]).into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_of_any_length_takes_little_of_the_log() {
        let fits = "é".repeat(LONGEST);
        assert_eq!(cut(&fits), fits);
        assert_eq!(cut(&"é".repeat(1_000_000)), format!("{fits} […]"));
    }
}
