//! How long to wait before dialling again, how often to dial strangers, and how often to speak of them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The first wait after a failure or a loss: a node that is restarted is back in a moment.
const FIRST: Duration = Duration::from_millis(250);
/// The longest: a machine that was switched on again should not stay unused for long where no beacon announces it.
const LONGEST: Duration = Duration::from_secs(30);
/// Someone who said no will say it again; a person has to act first.
pub const AFTER_REFUSAL: Duration = Duration::from_secs(20);

/// The wait after so many failures in a row, without jitter.
pub fn after(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.min(8)).min(LONGEST)
}

/// 0.8 to 1.2 times `wait`, so that nodes cut off together do not come back together.
pub fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.8..1.2))
}

/// So many times in any stretch of time of one length, at once or spread over it.
#[derive(Debug)]
pub struct Budget {
    times: usize,
    within: Duration,
    /// When it was taken, the latest last; as many as may be taken.
    taken: VecDeque<Instant>,
}

// === impl Budget ===

impl Budget {
    /// `times` within any stretch of time as long as `within`.
    pub const fn new(times: usize, within: Duration) -> Self {
        Self { times, within, taken: VecDeque::new() }
    }

    /// Takes one, if there is one left.
    pub fn take(&mut self, now: Instant) -> bool {
        let there = self.next(now) <= now;
        if there {
            if self.taken.len() >= self.times {
                self.taken.pop_front();
            }
            self.taken.push_back(now);
        }
        there
    }

    /// When there is one to take.
    pub fn next(&self, now: Instant) -> Instant {
        match self.taken.front() {
            Some(first) if self.taken.len() >= self.times => (*first + self.within).max(now),
            _ => now,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_stretch_of_time_sees_more_than_its_share(waits in proptest::collection::vec(0u64..300, 1..100)) {
            let within = Duration::from_secs(1);
            let mut budget = Budget::new(10, within);
            let mut now = Instant::now();
            let mut taken = Vec::new();
            for wait in waits {
                now += Duration::from_millis(wait);
                let next = budget.next(now);
                let took = budget.take(now);
                prop_assert_eq!(took, next <= now);
                if took {
                    taken.push(now);
                }
                let recent = taken.iter().filter(|at| now.duration_since(**at) < within).count();
                prop_assert!(recent <= 10);
                prop_assert!(took || recent == 10, "nothing is kept back");
            }
        }
    }
}
