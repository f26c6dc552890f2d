//! Listings that are made for a request, as many as needed and no more.
//!
//! Whoever asks wants to know how things are now, not how they were: only a listing that began after they asked will do.
//! But a peer that asks a thousand times for a model that is not there must not make Ollama list its disk a thousand times.
//! So there is one listing at a time, all who asked before it began share it, and the next one begins after a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::State;
use crate::exchange::ExchangeError;

/// From the beginning of one listing to that of the next. Who comes alone never waits; a flood makes ten a second.
const PAUSE: Duration = Duration::from_millis(100);

/// After somebody changed models through us: so long the last look may be of before. The watch looks twice within it (every
/// 5 s, and each look may take as long), or finds that it cannot, and then nothing is lent.
const DOUBT: Duration = Duration::from_secs(15);

/// The latest listing, and whose turn it is to make the next.
#[derive(Debug, Default)]
pub(super) struct Fresh {
    latest: Mutex<Option<Latest>>,
    changes: AtomicU32,
    changed: std::sync::Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Latest {
    began: Instant,
    /// Or what went wrong.
    listed: Result<Arc<State>, String>,
}

/// Models are being changed, until this is dropped.
#[derive(Debug)]
pub struct Changing(Arc<Fresh>);

// === impl Fresh ===

impl Fresh {
    /// A listing that began after now, made by `list` unless somebody else has asked for one too.
    pub(super) async fn listing(
        &self,
        list: impl Future<Output = Result<State, ExchangeError>>,
        broken: impl FnOnce(String) -> ExchangeError,
    ) -> Result<Arc<State>, ExchangeError> {
        let asked = Instant::now();
        // Fair, and let go if whoever holds it gives up.
        let mut latest = self.latest.lock().await;
        if let Some(Latest { began, listed }) = &*latest {
            if *began >= asked {
                return listed.clone().map_err(broken);
            }
            tokio::time::sleep_until(*began + PAUSE).await;
        }
        let began = Instant::now();
        let listed = list.await.map(Arc::new);
        let kept = listed.as_ref().map(Arc::clone).map_err(ToString::to_string);
        *latest = Some(Latest { began, listed: kept });
        listed
    }

    /// Somebody changes models, until what this gives is dropped.
    pub(super) fn change(self: &Arc<Self>) -> Changing {
        self.changes.fetch_add(1, Ordering::SeqCst);
        Changing(self.clone())
    }

    /// Whether the last look may be of before a change.
    pub(super) fn is_in_doubt(&self) -> bool {
        let changed = || *self.changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.changes.load(Ordering::SeqCst) > 0 || changed().is_some_and(|at| at.elapsed() < DOUBT)
    }
}

// === impl Changing ===

impl Drop for Changing {
    fn drop(&mut self) {
        *self.0.changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Instant::now());
        self.0.changes.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::future::join_all;
    use std::sync::atomic::AtomicUsize;

    #[tokio::test(start_paused = true)]
    async fn however_many_ask_there_is_one_listing_at_a_time_and_few_a_second() {
        let (fresh, made) = (Fresh::default(), AtomicUsize::new(0));
        let ask = || async {
            let list = async {
                made.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(10)).await;
                Ok(State::default())
            };
            fresh.listing(list, |why| ExchangeError::Body(why.into())).await.unwrap();
        };
        ask().await;
        assert_eq!(made.load(Ordering::SeqCst), 1);
        let begun = Instant::now();
        // A thousand at once, and another thousand that come while the listing runs.
        let late = async {
            tokio::time::sleep(PAUSE).await;
            join_all((0..1000).map(|_| ask())).await;
        };
        tokio::join!(join_all((0..1000).map(|_| ask())), late);
        assert_eq!(made.load(Ordering::SeqCst), 3);
        assert!(begun.elapsed() < 4 * PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_given_a_listing_that_began_before_they_asked() {
        let fresh = Fresh::default();
        let of = |version: &str| {
            let state = State { version: version.to_owned(), ..State::default() };
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                Ok(state)
            }
        };
        let ask = |version| fresh.listing(of(version), |why| ExchangeError::Body(why.into()));
        let second = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            ask("second").await.unwrap()
        };
        let (first, second) = tokio::join!(ask("first"), second);
        assert_eq!((&*first.unwrap().version, &*second.version), ("first", "second"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_changed_is_in_doubt_for_a_while() {
        let fresh = Arc::new(Fresh::default());
        assert!(!fresh.is_in_doubt());
        let changing = fresh.change();
        tokio::time::sleep(DOUBT * 2).await;
        assert!(fresh.is_in_doubt());
        drop(changing);
        tokio::time::sleep(DOUBT - Duration::from_secs(1)).await;
        assert!(fresh.is_in_doubt());
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(!fresh.is_in_doubt());
    }
}
