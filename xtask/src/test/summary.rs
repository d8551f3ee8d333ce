//! Owns: counting test results, and the last lines of `cargo xtask test`.

use std::{ops::AddAssign, time::Duration};

use comfy_table::{Cell, CellAlignment, Table, presets};

use super::Layer;
use crate::run;

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) passed: u64,
    pub(super) failed: u64,
    pub(super) skipped: u64,
}

impl Counts {
    /// What a line of a test program's output adds: nothing, unless it is
    /// `test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`.
    pub(super) fn in_line(line: &str) -> Self {
        let mut counts = Self::default();
        let plain = without_colour(line);
        let Some((_, results)) = plain.strip_prefix("test result: ").and_then(|rest| rest.split_once(". "))
        else {
            return counts;
        };
        for part in results.split(';') {
            let mut words = part.split_whitespace();
            let (Some(number), Some(name)) = (words.next(), words.next()) else { continue };
            let Ok(number) = number.parse() else { continue };
            match name {
                "passed" => counts.passed = number,
                "failed" => counts.failed = number,
                "ignored" => counts.skipped = number,
                _ => {}
            }
        }
        counts
    }

    /// The tests that ran. A skipped one did not.
    pub(super) fn total(self) -> u64 {
        self.passed + self.failed
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Drops `ESC [ … m`.
fn without_colour(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(character);
        }
    }
    plain
}

/// What happened, layer by layer.
#[derive(Debug, Default)]
pub(super) struct Summary {
    layers: Vec<(Layer, Counts, Duration)>,
    failures: Vec<String>,
}

impl Summary {
    pub(super) fn add(&mut self, layer: Layer, counts: Counts, took: Duration) {
        self.layers.push((layer, counts, took));
    }

    pub(super) fn fail(&mut self, what: String) {
        self.failures.push(what);
    }

    pub(super) fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for (_, counts, _) in &self.layers {
            sum += *counts;
        }
        sum
    }

    pub(super) fn is_failure(&self) -> bool {
        !self.failures.is_empty() || self.counts().failed > 0
    }

    pub(super) fn print(&self, took: Duration) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(["LAYER", "PASSED", "FAILED", "SKIPPED", "TIME"]);
        for (layer, counts, time) in &self.layers {
            let number = |value: u64| Cell::new(value).set_alignment(CellAlignment::Right);
            table.add_row([
                Cell::new(layer),
                number(counts.passed),
                number(counts.failed),
                number(counts.skipped),
                Cell::new(run::seconds(*time)).set_alignment(CellAlignment::Right),
            ]);
        }
        println!("\n{table}");
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        println!("{}", self.last_line(took));
    }

    fn last_line(&self, took: Duration) -> String {
        let Counts { passed, failed, skipped } = self.counts();
        format!("{passed} passed, {failed} failed, {skipped} skipped in {}", run::seconds(took))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(passed: u64, failed: u64, skipped: u64) -> Counts {
        Counts { passed, failed, skipped }
    }

    #[test]
    fn results_are_read_from_the_line_that_ends_a_test_program_and_from_no_other() {
        for (line, expected) in [
            (
                "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s",
                counts(5, 0, 1),
            ),
            (
                "test result: \x1b[31mFAILED\x1b(B\x1b[m. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
                counts(3, 2, 0),
            ),
            ("test a_test ... ok", counts(0, 0, 0)),
            ("running 5 tests", counts(0, 0, 0)),
            ("test result: ok. many passed", counts(0, 0, 0)),
            ("test result:", counts(0, 0, 0)),
            ("\x1b", counts(0, 0, 0)),
            ("", counts(0, 0, 0)),
        ] {
            assert_eq!(Counts::in_line(line), expected, "{line:?}");
        }
    }

    #[test]
    fn the_sum_of_the_layers_is_the_last_line() {
        let mut summary = Summary::default();
        summary.add(Layer::Unit, counts(40, 0, 1), Duration::from_secs(1));
        summary.add(Layer::Programs, counts(2, 1, 0), Duration::from_secs(2));
        assert_eq!(summary.last_line(Duration::from_secs(3)), "42 passed, 1 failed, 1 skipped in 3.0 s");
        assert!(summary.is_failure());
    }

    #[test]
    fn a_failure_without_a_failed_test_still_fails() {
        let mut summary = Summary::default();
        summary.add(Layer::Unit, counts(40, 0, 0), Duration::ZERO);
        assert!(!summary.is_failure());
        summary.fail("layer programs ran no test".to_owned());
        assert!(summary.is_failure());
    }
}
