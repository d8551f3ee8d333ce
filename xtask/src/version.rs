//! Owns: reading version numbers out of what programs print about themselves.

use std::fmt;

/// Major, minor, patch; what a program leaves out counts as zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32, pub(crate) u32);

impl Version {
    /// The first word of `text` that starts with a number and a dot: `bpf-linker 0.13.0`, `etcd Version: 3.4.23`,
    /// `6.18.0-1-amd64`, `rustc 1.96.0 (…)`, `v1.2`.
    pub(crate) fn find(text: &str) -> Option<Self> {
        text.split_whitespace().find_map(Self::parse_word)
    }

    fn parse_word(word: &str) -> Option<Self> {
        let word = word.trim_start_matches(['v', '(', '"']);
        let end = word.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(word.len());
        let mut parts = word[..end].split('.');
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        let patch = parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
        Some(Self(major, minor, patch))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_print() {
        for (text, expected) in [
            ("bpf-linker 0.13.0", Some(Version(0, 13, 0))),
            ("etcd Version: 3.4.23\nGit SHA: Not provided", Some(Version(3, 4, 23))),
            ("6.18.0-1-amd64", Some(Version(6, 18, 0))),
            ("6.6-rc1", Some(Version(6, 6, 0))),
            ("rustc 1.97.0-nightly (e50aa6fba 2026-05-19)", Some(Version(1, 97, 0))),
            ("LLVM version: 22.1.4", Some(Version(22, 1, 4))),
            ("v1.2", Some(Version(1, 2, 0))),
            ("no digits here", None),
            ("5 apples", None),
            ("99999999999999.1", None),
            ("", None),
        ] {
            assert_eq!(Version::find(text), expected, "{text}");
        }
    }

    #[test]
    fn versions_compare_as_numbers_and_not_as_text() {
        assert!(Version(6, 18, 0) > Version(6, 6, 0));
        assert!(Version(0, 9, 9) < Version(0, 13, 0));
    }
}
