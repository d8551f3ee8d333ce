//! A sign of life, given by who does long work at each step of it that has come to its end, and read by who judges whether the
//! work goes on. Costs next to nothing: it may be given with every write to the kernel.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Clones are one pulse.
#[derive(Debug, Clone)]
pub struct Pulse {
    began: Instant,
    /// Milliseconds from then to the last beat, and one; 0 before there is one.
    last: Arc<AtomicU64>,
}

impl Pulse {
    pub fn new() -> Self {
        Self { began: Instant::now(), last: Arc::default() }
    }

    /// A step has come to its end.
    pub fn beat(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX - 1);
        self.last.store(now + 1, Ordering::Relaxed);
    }

    /// How long ago the last beat was; `None` before there is one.
    pub fn silence_at(&self, now: Instant) -> Option<Duration> {
        let last = self.last.load(Ordering::Relaxed).checked_sub(1)?;
        Some(now.saturating_duration_since(self.began + Duration::from_millis(last)))
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}
