//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

/// Between two looks at a condition that cannot announce itself.
const PAUSE: Duration = Duration::from_millis(30);

/// Looks until the condition holds or the deadline has passed; looks at least once.
pub fn until(deadline: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + deadline;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        thread::sleep(PAUSE);
    }
}

/// Tries until it succeeds or the deadline has passed; the error is the last one, with what was awaited.
pub fn eventually<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let mut last = anyhow!("never tried");
    let mut value = None;
    until(deadline, || match attempt() {
        Ok(v) => {
            value = Some(v);
            true
        }
        Err(e) => {
            last = e;
            false
        }
    });
    value.ok_or_else(|| last.context(format!("waited {deadline:?} for: {what}")))
}
