//! Errors for people: one line, from the outside in, nothing said twice.

use std::fmt::Write as _;

/// Many errors name their cause themselves; a cause that the text before already contains is left out.
pub fn one_line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            let _ = write!(line, ": {text}");
        }
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot look at /nope: {0}")]
    struct Looks(#[source] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let error = anyhow::Error::from(Looks(missing()));
        assert_eq!(one_line(&error), "cannot look at /nope: entity not found");
        let error = Err::<(), _>(missing()).context("cannot start").unwrap_err();
        assert_eq!(one_line(&error), "cannot start: entity not found");
    }
}
