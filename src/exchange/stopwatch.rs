//! How long somebody was waited for, in many pieces: a server, and not the application that reads the answer; or a reader,
//! and not the server that has nothing to say.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Runs while somebody is waited for. One task stops and starts it, any may read it.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    began: Instant,
    /// Microseconds that were waited, up to the last stop.
    waited: AtomicU64,
    /// When it was started, in microseconds after it began and one more; 0 while it stands.
    since: AtomicU64,
    /// Microseconds that do not count each time.
    forgives: u64,
}

// === impl Stopwatch ===

impl Stopwatch {
    /// One that runs.
    pub(crate) fn started() -> Self {
        Self { began: Instant::now(), waited: AtomicU64::new(0), since: AtomicU64::new(1), forgives: 0 }
    }

    /// One that stands.
    pub(crate) fn stopped() -> Self {
        Self { since: AtomicU64::new(0), ..Self::started() }
    }

    /// The same, where so much of each piece does not count: what a busy machine takes before it does what is due.
    pub(crate) fn forgiving(each: Duration) -> Self {
        Self { forgives: u64::try_from(each.as_micros()).unwrap_or(u64::MAX), ..Self::stopped() }
    }

    /// Somebody is waited for.
    pub(crate) fn start(&self) {
        if self.since.load(Ordering::Relaxed) == 0 {
            self.since.store(self.micros() + 1, Ordering::Relaxed);
        }
    }

    /// No longer.
    pub(crate) fn stop(&self) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since > 0 {
            self.waited.fetch_add(self.piece(since), Ordering::Relaxed);
        }
    }

    /// How long it was waited for, up to now.
    pub(crate) fn waited(&self) -> Duration {
        Duration::from_micros(self.waited.load(Ordering::Relaxed)) + self.silence()
    }

    /// How long it has run since it was started last; nothing while it stands.
    pub(crate) fn silence(&self) -> Duration {
        let since = self.since.load(Ordering::Relaxed);
        Duration::from_micros(if since > 0 { self.piece(since) } else { 0 })
    }

    /// What counts of a piece that began then.
    fn piece(&self, since: u64) -> u64 {
        (self.micros() + 1).saturating_sub(since).saturating_sub(self.forgives)
    }

    fn micros(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_while_it_runs_and_only_then() {
        let watch = Stopwatch::started();
        std::thread::sleep(Duration::from_millis(5));
        watch.stop();
        let waited = watch.waited();
        assert!(waited >= Duration::from_millis(5));
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(watch.waited(), waited, "it stands");
        watch.stop();
        watch.start();
        watch.start();
        std::thread::sleep(Duration::from_millis(5));
        assert!(watch.waited() >= waited + Duration::from_millis(5), "it runs on while it is read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_is_forgiven_each_time_and_a_byte_now_and_then_is_not() {
        let watch = Stopwatch::forgiving(Duration::from_millis(20));
        let waits = async |times: u32, ms: u64| {
            for _ in 0..times {
                watch.start();
                tokio::time::advance(Duration::from_millis(ms)).await;
                watch.stop();
            }
        };
        waits(1000, 20).await;
        assert_eq!(watch.waited(), Duration::ZERO);
        waits(100, 50).await;
        assert_eq!(watch.waited(), Duration::from_secs(3));
        watch.start();
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(watch.waited(), Duration::from_millis(62_980), "also while it runs");
    }
}
