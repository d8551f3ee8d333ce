//! Owns: how the demo looks: a row for each step, written when the step is done.
//! Promises: every row is readable at any width; colour and the line that says what runs now appear on a terminal
//! only, colour not with `NO_COLOR`. Does not: know what any step is about.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use bpf_tests::sweep;

use crate::run;

/// Below this the three columns of text would be too thin: expected and seen go below each other.
const NARROW: usize = 96;
/// Longer lines are hard to follow.
const WIDEST: usize = 136;
/// Of a file or a pipe.
const ELSEWHERE: usize = 120;
const MARGIN: usize = 3;
const GAP: usize = 2;
const TIME: usize = 7;

/// What a step saw.
#[derive(Debug)]
pub(super) struct Seen {
    as_expected: bool,
    text: String,
    evidence: Vec<String>,
}

impl Seen {
    pub(super) fn that(as_expected: bool, text: impl Into<String>) -> Self {
        Self { as_expected, text: text.into(), evidence: Vec::new() }
    }

    /// Lines to show below the row, as they are.
    pub(super) fn with(mut self, evidence: Vec<String>) -> Self {
        self.evidence = evidence;
        self
    }
}

#[derive(Debug)]
pub(super) struct Screen {
    style: Style,
    terminal: bool,
    steps: usize,
    failures: usize,
}

#[derive(Debug, Clone, Copy)]
struct Style {
    width: usize,
    colour: bool,
}

impl Screen {
    pub(super) fn of_terminal() -> Self {
        let terminal = io::stdout().is_terminal();
        let width = if terminal { terminal_width() } else { None };
        Self {
            style: Style {
                width: width.unwrap_or(ELSEWHERE).clamp(40, WIDEST),
                colour: terminal && run::wants_colour(),
            },
            terminal,
            steps: 0,
            failures: 0,
        }
    }

    pub(super) fn failures(&self) -> usize {
        self.failures
    }

    pub(super) fn header(&self) {
        let style = self.style;
        if let Some(columns) = style.columns() {
            let cells = ["", "EXPECTED", "SEEN"].map(str::to_owned);
            put(&format!("\n{}", style.dim(beside(columns, ' ', &cells, "TIME").trim_end())));
        }
    }

    pub(super) fn section(&self, title: &str) {
        put(&format!("\n{}", self.style.bold(title)));
    }

    /// Takes the step and writes its row; true if it went as expected.
    pub(super) fn step(&mut self, what: &str, expected: &str, take: impl FnOnce() -> Result<Seen>) -> bool {
        if self.terminal {
            print!("\r {} {}", self.style.dim("…"), clip(what, self.style.width.saturating_sub(MARGIN + 1)));
            drop(io::stdout().flush());
        }
        let start = Instant::now();
        let seen = take().unwrap_or_else(|error| Seen::that(false, format!("error: {error:#}")));
        sweep::stop_if_interrupted();
        if self.terminal {
            print!("\r\x1b[K");
        }
        put(self.style.row(what, expected, &seen, start.elapsed()).trim_end());
        self.steps += 1;
        self.failures += usize::from(!seen.as_expected);
        seen.as_expected
    }

    pub(super) fn conclude(&self, took: Duration) {
        let (style, time) = (self.style, run::seconds(took));
        let Self { steps, failures, .. } = self;
        let line = match failures {
            0 => style.paint("1;32", &format!("{steps} of {steps} as expected, in {time}")),
            _ => style.paint("1;31", &format!("{failures} of {steps} NOT as expected, in {time}")),
        };
        put(&format!("\n{line}"));
    }
}

impl Style {
    /// Widths of step, expected and seen, if there is room for them beside each other.
    fn columns(self) -> Option<[usize; 3]> {
        let text = self.width.checked_sub(MARGIN + TIME + 3 * GAP).filter(|_| self.width >= NARROW)?;
        let (what, expected) = (text * 32 / 100, text * 32 / 100);
        Some([what, expected, text - what - expected])
    }

    fn row(self, what: &str, expected: &str, seen: &Seen, took: Duration) -> String {
        let mark = if seen.as_expected { '✓' } else { '✗' };
        let time = run::seconds(took);
        let mut row = match self.columns() {
            Some(columns) => beside(columns, mark, &[what, expected, &seen.text].map(str::to_owned), &time),
            None => self.below(mark, what, expected, &seen.text, &time),
        };
        let colour = if seen.as_expected { "32" } else { "1;31" };
        row = row.replacen(mark, &self.paint(colour, &mark.to_string()), 1);
        for line in &seen.evidence {
            for part in wrap(line, self.width.saturating_sub(MARGIN + 4), true) {
                let _ = writeln!(row, "{:MARGIN$}{}", "", self.dim(&format!("│ {part}")));
            }
        }
        row
    }

    fn below(self, mark: char, what: &str, expected: &str, seen: &str, time: &str) -> String {
        let room = self.width.saturating_sub(MARGIN);
        let mut text = String::new();
        let first = room.saturating_sub(TIME + GAP);
        for (n, part) in wrap(what, first, false).into_iter().enumerate() {
            let (mark, time) = if n == 0 { (mark, time) } else { (' ', "") };
            let line = format!(" {mark} {part:first$}{:GAP$}{time:>TIME$}", "");
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for (label, cell) in [("expected", expected), ("seen", seen)] {
            for (n, part) in wrap(cell, room.saturating_sub(12), false).into_iter().enumerate() {
                let label = if n == 0 { label } else { "" };
                let _ = writeln!(text, "{:MARGIN$}  {label:8}  {part}", "");
            }
        }
        text
    }

    fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn beside(columns: [usize; 3], mark: char, cells: &[String; 3], time: &str) -> String {
    let mut wrapped = [0, 1, 2].map(|n: usize| wrap(&cells[n], columns[n], false).into_iter());
    let mut text = String::new();
    let (mut mark, mut time) = (mark, time);
    loop {
        let parts = wrapped.each_mut().map(Iterator::next);
        if parts.iter().all(Option::is_none) {
            return text;
        }
        let mut line = format!(" {mark} ");
        for (part, width) in parts.into_iter().zip(columns) {
            let _ = write!(line, "{:width$}{:GAP$}", part.unwrap_or_default(), "");
        }
        let _ = write!(line, "{time:>TIME$}");
        let _ = writeln!(text, "{}", line.trim_end());
        (mark, time) = (' ', "");
    }
}

/// A reader that has gone away is no reason to stop in the middle: the cluster must still be removed.
pub(super) fn put(line: &str) {
    drop(writeln!(io::stdout(), "{line}"));
}

/// Breaks at spaces, and inside a word that is longer than a line; `keep` leaves the spaces at the beginning.
fn wrap(text: &str, width: usize, keep: bool) -> Vec<String> {
    let width = width.max(8);
    let indent = if keep { text.len() - text.trim_start().len() } else { 0 };
    if keep && text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    let mut lines = Vec::new();
    let mut line = " ".repeat(indent.min(width / 2));
    let mut is_empty = true;
    for word in text.split_whitespace() {
        let mut word: Vec<char> = word.chars().collect();
        loop {
            let used = line.chars().count() + usize::from(!is_empty);
            if used + word.len() <= width {
                break;
            }
            if is_empty {
                let rest = word.split_off(width.saturating_sub(used).max(1).min(word.len()));
                line.extend(word);
                word = rest;
            }
            lines.push(std::mem::take(&mut line));
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.extend(word);
        is_empty = false;
    }
    if !line.trim().is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

fn clip(text: &str, width: usize) -> String {
    text.chars().take(width).collect()
}

fn terminal_width() -> Option<usize> {
    let tty = File::open("/dev/tty").ok()?;
    let answer = Command::new("stty").arg("size").stdin(tty).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(answer.stdout).ok()?;
    text.split_whitespace().nth(1)?.parse().ok().filter(|width| *width > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOOK: Duration = Duration::from_millis(1234);

    fn style(width: usize) -> Style {
        Style { width, colour: false }
    }

    fn seen() -> Seen {
        Seen::that(true, "10 of 10 answered, 0.09 ms on average").with(vec!["  a line as it is".to_owned()])
    }

    #[test]
    fn no_line_is_wider_than_the_terminal_and_no_word_is_lost() {
        let (what, expected) = ("ping from a pod to a pod of another node", "10 of 10 answered");
        for width in 40..=WIDEST {
            let row = style(width).row(what, expected, &seen(), TOOK);
            for line in row.lines() {
                assert!(line.chars().count() <= width, "{width}: {line:?}");
            }
            let words: Vec<&str> = row.split_whitespace().collect();
            for word in what.split(' ').chain(expected.split(' ')).chain(["✓", "0.09", "average", "1.2"]) {
                assert!(words.contains(&word), "{width}: {word} in {row}");
            }
        }
    }

    #[test]
    fn columns_stand_below_each_other_and_a_failure_is_marked() {
        let row = style(100).row("a", "b", &Seen::that(false, "c"), TOOK);
        let header = beside(style(100).columns().unwrap(), ' ', &["", "b", "c"].map(str::to_owned), "");
        assert_eq!(row.find('b').unwrap() - '✗'.len_utf8(), header.find('b').unwrap() - 1);
        assert!(row.starts_with(" ✗ a ") && row.ends_with("1.2 s\n"), "{row:?}");
    }

    #[test]
    fn colour_is_only_written_where_it_is_wanted() {
        let coloured = Style { width: 100, colour: true }.row("a", "b", &seen(), TOOK);
        assert!(coloured.contains("\x1b[32m✓\x1b[0m"));
        assert!(!style(100).row("a", "b", &seen(), TOOK).contains('\x1b'));
    }

    #[test]
    fn long_words_are_broken_and_evidence_keeps_its_indentation() {
        assert_eq!(wrap("abcdefghijkl", 8, false), ["abcdefgh", "ijkl"]);
        assert_eq!(wrap("ab abcdefghijkl", 8, false), ["ab", "abcdefgh", "ijkl"]);
        assert_eq!(wrap("    \"key\": 1", 40, true), ["    \"key\": 1"]);
        assert_eq!(wrap("", 8, false), [""]);
    }
}
