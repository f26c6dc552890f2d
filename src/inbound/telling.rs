//! What a peer is told over its control stream, for as long as it is here: what this node lends and how busy it is, and what
//! has to do with trust.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::denial::Reader;
use crate::exchange::{Load, Report};
use crate::id::Scope;
use crate::pairing::Dealer;
use crate::transport::connection::{Control, ControlError};
use crate::trust::Snapshot;
use crate::wire::control::Message;

/// A report at least this often: three missed ones make this node unreachable for the peer.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// After a message about trust: a pairing has three a side. Also what keeps a stranger from making the book be looked at as
/// often as it can send.
const DEALING_PAUSE: Duration = Duration::from_millis(10);
/// Changes within this time go out as one report.
pub(super) const COALESCE: Duration = Duration::from_millis(20);

/// What one peer is told of.
pub(super) struct Told {
    pub(super) report: watch::Receiver<Arc<Report>>,
    pub(super) load: watch::Receiver<Arc<Load>>,
    pub(super) trust: watch::Receiver<Arc<Snapshot>>,
    pub(super) reader: Reader,
    /// Exchanges and tickets of this connection that the gate knows of.
    pub(super) counted: Arc<AtomicU64>,
    /// Changes within this time go out as one.
    pub(super) coalesce: Duration,
    /// What is said is older by this.
    pub(super) delay: Duration,
}

/// Tells a peer how things are: at once, on every change, and as a heartbeat. Beside that deals with trust.
pub(super) async fn converse(
    mut control: Control,
    mut dealer: Dealer,
    mut told: Told,
    heartbeat: Heartbeat,
) -> ControlError {
    let (mut last_report, mut last_load) = (None, None);
    let mut due = Instant::now();
    // What is not to be said yet.
    let mut outbox = VecDeque::new();
    loop {
        let book = told.trust.borrow_and_update().clone();
        let scope = book.standing(&told.reader.id).scope;
        let report = told.reader.report(&book, &told.report.borrow_and_update());
        if last_report.as_ref() != Some(&report) {
            if let Err(error) = control.send(&Message::Report(report.clone())).await {
                return error;
            }
            last_report = Some(report);
        }
        let (load, now) = (told.load(scope), Instant::now());
        if last_load.as_ref() != Some(&load) || now >= due {
            outbox.push_back((now + told.delay, load.clone()));
            last_load = Some(load);
            due = heartbeat.after(now);
        }
        while outbox.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, load)) = outbox.pop_front() else { break };
            if let Err(error) = control.send(&Message::Load(load)).await {
                return error;
            }
        }
        let next = outbox.front().map_or(due, |(at, _)| due.min(*at));
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            _ = told.report.changed() => tokio::time::sleep(told.coalesce).await,
            _ = told.load.changed() => tokio::time::sleep(told.coalesce).await,
            _ = told.trust.changed() => {}
            message = dealer.next() => {
                if let Err(error) = control.send(&message).await {
                    return error;
                }
            }
            // A dialler says nothing more on the control stream but what has to do with trust.
            message = control.receive() => match message {
                Ok(message) => {
                    if dealer.heard(message).await.is_err() {
                        return ControlError::Ended;
                    }
                    tokio::time::sleep(DEALING_PAUSE).await;
                }
                Err(error) => return error,
            },
        }
    }
}

// === impl Told ===

impl Told {
    /// How busy this node is, as far as it is the peer's business.
    fn load(&mut self, scope: Scope) -> Load {
        // Before the load is looked at: what was counted by then is in it.
        let counted = self.counted.load(Ordering::Acquire);
        let load = self.load.borrow_and_update().clone();
        match scope {
            Scope::None => Load { counted, ..Load::default() },
            Scope::Infer | Scope::Manage => Load { counted, ..Load::clone(&load) },
        }
    }
}

/// One clock for the heartbeats to all peers: they are due together, and a node at rest is woken once a second for all of
/// them and not once for each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heartbeat(Instant);

impl Heartbeat {
    /// One whose first beat is now.
    pub(super) fn new() -> Self {
        Self(Instant::now())
    }

    /// When the next one is due after a report at `now`: the first beat that is not close upon it, and at most one and a
    /// half of [`HEARTBEAT`] later, of which a peer waits for three.
    fn after(self, now: Instant) -> Instant {
        let since = (now + HEARTBEAT / 2).saturating_duration_since(self.0);
        let beats = u32::try_from(since.as_millis() / HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
        self.0 + HEARTBEAT.saturating_mul(beats.saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heartbeats_to_all_peers_are_due_together_and_soon_enough() {
        let heartbeat = Heartbeat::new();
        for ms in (0..5000).step_by(50) {
            let now = heartbeat.0 + Duration::from_millis(ms);
            let (due, wait) = (heartbeat.after(now), heartbeat.after(now) - now);
            assert_eq!((due - heartbeat.0).as_millis() % HEARTBEAT.as_millis(), 0);
            assert!(wait > HEARTBEAT / 2 && wait <= HEARTBEAT * 3 / 2, "{wait:?} after {ms} ms");
        }
    }
}
