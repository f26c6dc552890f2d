//! A token bucket: so many at once, so many a second.

use std::time::Instant;

/// Bounds what strangers can make us do, without a timer of its own.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    tokens: f64,
    capacity: f64,
    per_second: f64,
    filled: Option<Instant>,
}

impl Bucket {
    /// A full bucket of `capacity` tokens that gains `per_second`.
    pub(super) fn new(capacity: u32, per_second: f64) -> Self {
        Self { tokens: f64::from(capacity), capacity: f64::from(capacity), per_second, filled: None }
    }

    /// Takes a token if there is one.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = self.filled.map_or(0.0, |filled| now.saturating_duration_since(filled).as_secs_f64());
        self.filled = Some(now);
        self.tokens = self.capacity.min(self.tokens + passed * self.per_second);
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(3, 2.0);
        assert_eq!((0..10).filter(|_| bucket.take(start)).count(), 3);
        let later = start + Duration::from_secs(1);
        assert_eq!((0..10).filter(|_| bucket.take(later)).count(), 2);
        let much_later = start + Duration::from_secs(1000);
        assert_eq!((0..10).filter(|_| bucket.take(much_later)).count(), 3);
    }
}
