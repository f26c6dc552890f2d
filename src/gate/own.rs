//! When the owner's own applications used the server by this gate: it may be shared only while its owner does not need it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};

/// While a request runs its owner is said to use the server so often: well below the shortest time that sharing may wait
/// for (30 s).
const WHILE_IT_RUNS: Duration = Duration::from_secs(10);

/// The owner's use. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct OwnUse(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    running: AtomicU32,
    last: watch::Sender<Option<Instant>>,
    begun: Notify,
}

/// One of the owner's requests, until it is dropped.
#[derive(Debug)]
pub(super) struct Using(OwnUse);

// === impl OwnUse ===

impl OwnUse {
    /// A request of the owner's is here.
    pub(super) fn begin(&self) -> Using {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        self.now();
        self.0.begun.notify_one();
        Using(self.clone())
    }

    /// When it was used last, as of now.
    pub(super) fn last(&self) -> watch::Receiver<Option<Instant>> {
        self.0.last.subscribe()
    }

    /// Keeps that true while requests run, for ever.
    pub(super) async fn keep_up(&self) {
        loop {
            self.0.begun.notified().await;
            while self.0.running.load(Ordering::Relaxed) > 0 {
                self.now();
                tokio::time::sleep(WHILE_IT_RUNS).await;
            }
        }
    }

    fn now(&self) {
        self.0.last.send_replace(Some(Instant::now()));
    }
}

// === impl Using ===

impl Drop for Using {
    fn drop(&mut self) {
        self.0.0.running.fetch_sub(1, Ordering::Relaxed);
        self.0.now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_is_use_from_its_beginning_to_its_end() {
        let own = OwnUse::default();
        let mut last = own.last();
        assert_eq!(*last.borrow_and_update(), None);
        let keeping = tokio::spawn({
            let own = own.clone();
            async move { own.keep_up().await }
        });
        let using = own.begin();
        let first = last.wait_for(Option::is_some).await.unwrap().unwrap();
        for _ in 0..3 {
            last.changed().await.unwrap();
            assert!(*last.borrow_and_update() >= Some(first), "it runs on");
        }
        drop(using);
        assert!(last.has_changed().unwrap());
        keeping.abort();
    }
}
