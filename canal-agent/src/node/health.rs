//! How the agent is, for those who watch it from outside: probes and the service manager. Written by whoever does the work,
//! read by anybody, also while the one who writes is stuck.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

use crate::pulse::Pulse;

/// The node's thread wakes every 10 s without a reason, and in a long apply cycle every step of it is a sign of life.
const STUCK: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Health {
    /// Of the node's thread.
    pulse: Pulse,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    ready: Result<(), String>,
    /// What the service manager was told last.
    said: String,
}

impl Health {
    pub fn new() -> Self {
        let ready = Err("the agent has just started".to_owned());
        let state = Arc::new(Mutex::new(State { ready, said: String::new() }));
        Self { pulse: Pulse::new(), state }
    }

    /// The node's thread makes progress.
    pub fn beat(&self) {
        self.pulse.beat();
    }

    /// For those who do a part of its work.
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Why the agent counts as stuck, if so.
    pub fn stuck(&self) -> Option<String> {
        self.stuck_at(Instant::now())
    }

    fn stuck_at(&self, now: Instant) -> Option<String> {
        let silence = self.pulse.silence_at(now)?;
        (silence > STUCK)
            .then(|| format!("the thread that writes the tables hangs since {} s", silence.as_secs()))
    }

    /// Ready, or why not. Tells whether that is another answer than before.
    pub fn set_ready(&self, ready: Result<(), String>) -> bool {
        let mut state = self.state();
        let changed = state.ready != ready;
        state.ready = ready;
        changed
    }

    pub fn not_ready(&self) -> Option<String> {
        self.state().ready.clone().err()
    }

    /// One line for the service manager, which hears each only once.
    pub fn say(&self, status: &str) {
        let mut state = self.state();
        if state.said != status {
            status.clone_into(&mut state.said);
            let _ = sd_notify::notify(&[NotifyState::Status(status)]);
        }
    }

    /// Feeds the service manager's watchdog, if there is one, for as long as nothing is stuck.
    pub async fn feed_watchdog(self) {
        let Some(interval) = sd_notify::watchdog_enabled() else { return };
        let mut tick = tokio::time::interval(interval / 3);
        loop {
            tick.tick().await;
            if self.stuck().is_none() {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_come_round_is_stuck_and_one_that_is_not_there_yet_is_not() {
        let health = Health::new();
        let later = |seconds| Instant::now() + Duration::from_secs(seconds);
        assert_eq!(health.stuck_at(later(3600)), None);
        health.beat();
        assert_eq!(health.stuck_at(later(29)), None);
        assert!(
            health.stuck_at(later(32)).unwrap().contains("hangs since 3"),
            "{:?}",
            health.stuck_at(later(32))
        );
        health.pulse().beat();
        assert_eq!(health.stuck(), None);
    }
}
