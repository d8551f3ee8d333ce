//! Back-off with jitter: 100 ms, doubling to 5 s, each wait drawn from its upper half so that a cluster's nodes
//! do not come back in step.

use std::time::Duration;

use rand::Rng;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST, longest: LONGEST }
    }
}

impl Backoff {
    /// For lost races between nodes that are all alive: they end in milliseconds.
    pub fn short() -> Self {
        Self { next: Duration::from_millis(10), longest: Duration::from_secs(1) }
    }

    /// For what an operator has to put right first.
    pub fn patient() -> Self {
        Self { next: FIRST, longest: Duration::from_mins(1) }
    }

    /// How long to wait before the next attempt.
    pub fn delay(&mut self) -> Duration {
        let ceiling = self.next;
        self.next = (ceiling * 2).min(self.longest);
        ceiling.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    pub fn reset(&mut self) {
        self.next = FIRST;
    }

    pub async fn wait(&mut self) {
        tokio::time::sleep(self.delay()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_from_a_tenth_of_a_second_to_five_and_stay_there() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..12).map(|_| backoff.delay()).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST, "{waits:?}");
        assert!(waits[11] >= LONGEST / 2 && waits[11] <= LONGEST, "{waits:?}");
        backoff.reset();
        assert!(backoff.delay() <= FIRST);
    }
}
