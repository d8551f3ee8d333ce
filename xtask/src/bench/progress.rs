//! Owns: the line that says what is measured now and how long it all takes yet.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::run;

pub(super) struct Progress {
    total: usize,
    done: usize,
    start: Instant,
    last_line: Option<Instant>,
}

/// Between two lines where none can be written over.
const QUIET: Duration = Duration::from_secs(30);

impl Progress {
    pub(super) fn new(total: usize) -> Self {
        Self { total, done: 0, start: Instant::now(), last_line: None }
    }

    /// The next of the total begins.
    pub(super) fn next(&mut self, what: &str) {
        let left = self.left().map_or(String::new(), |left| format!(", {} left", run::seconds(left)));
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K  {what}{left}");
            std::io::stderr().flush().ok();
        } else if self.last_line.is_none_or(|at| at.elapsed() >= QUIET) {
            eprintln!("  {what}{left}");
            self.last_line = Some(Instant::now());
        }
        self.done += 1;
    }

    /// As if all took as long as those before.
    fn left(&self) -> Option<Duration> {
        let done = u32::try_from(self.done).ok()?;
        let left = u32::try_from(self.total - self.done).ok()?;
        self.start.elapsed().checked_div(done).map(|each| each * left)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if std::io::stderr().is_terminal() {
            eprint!("\r\x1b[K");
        }
    }
}
