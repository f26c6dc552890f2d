//! How long to wait before dialling again, and how often to dial at all.

use std::time::{Duration, Instant};

/// The first wait after a failure or a loss: a node that is restarted is back in a moment.
const FIRST: Duration = Duration::from_millis(250);
/// The longest: a machine that was switched on again should not stay unused for long where no beacon announces it.
const LONGEST: Duration = Duration::from_secs(30);
/// Someone who said no will say it again; a person has to act first.
pub const AFTER_REFUSAL: Duration = Duration::from_secs(20);
/// At most this many dials a second, whatever beacons say (DESIGN.md §4).
const DIALS_A_SECOND: u32 = 10;

/// The wait after so many failures in a row, without jitter.
pub fn after(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.min(8)).min(LONGEST)
}

/// 0.8 to 1.2 times `wait`, so that nodes cut off together do not come back together.
pub fn jitter(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.8..1.2))
}

/// A token bucket for dials.
#[derive(Debug)]
pub struct Budget {
    tokens: f64,
    at: Instant,
}

impl Budget {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        Self { tokens: f64::from(DIALS_A_SECOND), at: now }
    }

    /// Takes one dial's worth, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.tokens = self.at_time(now);
        self.at = now;
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// When the next dial is possible.
    pub fn next(&self, now: Instant) -> Instant {
        let missing = (1.0 - self.at_time(now)).max(0.0);
        now + Duration::from_secs_f64(missing / f64::from(DIALS_A_SECOND))
    }

    fn at_time(&self, now: Instant) -> f64 {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(DIALS_A_SECOND);
        (self.tokens + earned).min(f64::from(DIALS_A_SECOND))
    }
}
