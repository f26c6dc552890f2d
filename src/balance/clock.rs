//! The servers' time: what is held against a server, and for how long, is a matter of how fast servers work. It is real time
//! but in benchmarks, where simulated servers are so many times as fast as real ones and so has to be all that follows them.

use std::time::{Duration, Instant};

use tokio::time::Instant as RealInstant;

/// Tells the servers' time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    began: RealInstant,
    tempo: f64,
}

// === impl Clock ===

impl Clock {
    /// One that goes so many times faster than real time.
    pub(super) fn new(tempo: f64) -> Self {
        Self { began: RealInstant::now(), tempo }
    }

    /// By the runtime's clock, so that a test without time to lose has breakers that close again.
    pub(super) fn now(&self) -> Instant {
        self.began.into_std() + self.of(self.began.elapsed())
    }

    /// So much real time.
    pub(super) fn of(&self, real: Duration) -> Duration {
        // Far from what a duration holds: nothing here is older than the process.
        Duration::try_from_secs_f64(real.as_secs_f64() * self.tempo).unwrap_or(real)
    }
}

impl Default for Clock {
    /// Real time.
    fn default() -> Self {
        Self::new(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn servers_that_are_fast_age_fast() {
        let (real, fast) = (Clock::default(), Clock::new(20.0));
        let (real_began, fast_began) = (real.now(), fast.now());
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(real.now() - real_began, Duration::from_secs(3));
        assert_eq!(fast.now() - fast_began, Duration::from_secs(60));
        assert_eq!(fast.of(Duration::from_millis(50)), Duration::from_secs(1));
    }
}
