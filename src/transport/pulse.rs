//! How a peer is, as seen from one connection to it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::watch;

use crate::exchange::Health;

/// A gate acknowledges a head within a round trip. After this long without, the peer is suspect: new
/// requests go to others first.
const ACK_TIMEOUT: Duration = Duration::from_millis(500);

/// Two know something of it: who reads the control stream, whether it [speaks](Self::spoke); each exchange, whether its
/// head was [acknowledged](Self::acknowledges). What a gate owes is not paid by words: while an acknowledgement is late
/// the peer is suspect, whatever it says meanwhile. Where the exchange is given up, for it moved on or nobody wants it
/// any more, nothing is owed; the peer stays suspect until it speaks again, and is then given another chance.
///
/// | | `spoke` | late | paid, the last | `gone` |
/// |---|---|---|---|---|
/// | healthy | healthy | suspect | | gone |
/// | suspect, something owed | suspect | suspect | healthy | gone |
/// | suspect, nothing owed | healthy | suspect | | gone |
/// | gone, something owed | suspect | gone | gone | gone |
/// | gone, nothing owed | healthy | gone | | gone |
#[derive(Debug)]
pub struct Pulse {
    health: watch::Sender<Health>,
    /// Acknowledgements that are late. It is looked at under the lock of `health`, after it was changed; so whoever comes
    /// last to the lock sees what the others did.
    owed: AtomicU32,
}

/// An acknowledgement that is late, until this is dropped.
struct Owed<'a>(&'a Pulse);

// === impl Pulse ===

impl Pulse {
    /// Of a peer that has just said hello.
    pub fn new() -> Self {
        Self { health: watch::Sender::new(Health::Healthy), owed: AtomicU32::new(0) }
    }

    /// How it is from here on.
    pub fn watch(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// It has spoken. Says whether it was taken for gone.
    pub fn spoke(&self) -> bool {
        self.turn(|_, owes| if owes { Health::Suspect } else { Health::Healthy }) == Health::Gone
    }

    /// It has fallen silent, or the connection is over. Says whether that is news.
    pub fn gone(&self) -> bool {
        self.turn(|_, _| Health::Gone) != Health::Gone
    }

    /// Waits for an acknowledgement, however long it takes. If that is too long, whatever the reason, the peer is suspect
    /// until it comes.
    pub(super) async fn acknowledges<T, E>(&self, acknowledgement: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut acknowledgement = std::pin::pin!(acknowledgement);
        match tokio::time::timeout(ACK_TIMEOUT, &mut acknowledgement).await {
            Ok(done) => done,
            Err(_) => {
                let owed = self.owe();
                let done = acknowledgement.await?;
                owed.paid();
                Ok(done)
            }
        }
    }

    /// Resolves once it counts as gone.
    pub(super) async fn until_gone(&self) {
        // What `wait_for` gives back holds the lock of `health`. It must not be held when the exchange that waits here
        // ends, whose end may want it.
        drop(self.watch().wait_for(|health| *health == Health::Gone).await);
    }

    fn owe(&self) -> Owed<'_> {
        self.owed.fetch_add(1, Ordering::Relaxed);
        self.turn(|now, _| if now == Health::Healthy { Health::Suspect } else { now });
        Owed(self)
    }

    /// Turns it to what `to` makes of how it is and of whether it owes anything; gives back how it was.
    fn turn(&self, to: impl FnOnce(Health, bool) -> Health) -> Health {
        let mut before = Health::Gone;
        self.health.send_if_modified(|health| {
            before = *health;
            *health = to(before, self.owed.load(Ordering::Relaxed) > 0);
            *health != before
        });
        before
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Owed ===

impl Owed<'_> {
    /// It came after all: a peer that owes nothing else is well again.
    fn paid(self) {
        let pulse = self.0;
        drop(self);
        pulse.turn(|now, owes| if now == Health::Suspect && !owes { Health::Healthy } else { now });
    }
}

impl Drop for Owed<'_> {
    /// Takes no lock: an exchange may be dropped anywhere, also by one who is looking at the peer's health.
    fn drop(&mut self) {
        self.0.owed.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Arc;

    use tokio::sync::oneshot;
    use tokio::task::JoinHandle;

    use super::*;

    /// An exchange that waits for its acknowledgement; the sender is the gate.
    fn exchange(pulse: &Arc<Pulse>) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let (gate, acknowledgement) = oneshot::channel();
        let pulse = Arc::clone(pulse);
        let waiting = tokio::spawn(async move {
            let acknowledgement = async {
                acknowledgement.await.unwrap();
                Ok::<_, Infallible>(())
            };
            pulse.acknowledges(acknowledgement).await.unwrap();
        });
        (gate, waiting)
    }

    /// So that a timer which is due has fired.
    async fn passes(time: Duration) {
        tokio::time::sleep(time + Duration::from_millis(2)).await;
    }

    fn health(pulse: &Pulse) -> Health {
        *pulse.watch().borrow()
    }

    #[tokio::test(start_paused = true)]
    async fn a_gate_that_acknowledges_in_time_is_never_suspect() {
        let pulse = Arc::new(Pulse::new());
        let changes = pulse.watch();
        let (gate, exchange) = exchange(&pulse);
        passes(ACK_TIMEOUT - Duration::from_millis(10)).await;
        gate.send(()).unwrap();
        exchange.await.unwrap();
        passes(ACK_TIMEOUT).await;
        assert!(!changes.has_changed().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_makes_it_suspect_until_all_of_it_is_paid_and_words_pay_nothing() {
        let pulse = Arc::new(Pulse::new());
        let [(first, one), (second, two)] = [exchange(&pulse), exchange(&pulse)];
        passes(ACK_TIMEOUT).await;
        assert_eq!(health(&pulse), Health::Suspect);
        for _ in 0..100 {
            assert!(!pulse.spoke());
            assert_eq!(health(&pulse), Health::Suspect);
            passes(Duration::from_secs(1)).await;
        }
        first.send(()).unwrap();
        one.await.unwrap();
        assert_eq!(health(&pulse), Health::Suspect);
        second.send(()).unwrap();
        two.await.unwrap();
        assert_eq!(health(&pulse), Health::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_owed_to_an_exchange_ends_with_it_and_the_next_word_makes_it_well() {
        let pulse = Arc::new(Pulse::new());
        for _ in 0..10 {
            let (_gate, exchange) = exchange(&pulse);
            passes(ACK_TIMEOUT).await;
            exchange.abort();
            assert!(exchange.await.unwrap_err().is_cancelled());
            passes(ACK_TIMEOUT).await;
            // Else the next request would find out anew, and lose half a second by it.
            assert_eq!(health(&pulse), Health::Suspect);
            assert!(!pulse.spoke());
            assert_eq!(health(&pulse), Health::Healthy);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_acknowledgement_that_cannot_come_any_more_is_owed_no_more() {
        let pulse = Pulse::new();
        let breaks = async {
            passes(ACK_TIMEOUT).await;
            Err::<(), _>("the stream broke")
        };
        pulse.acknowledges(breaks).await.unwrap_err();
        assert_eq!(health(&pulse), Health::Suspect);
        pulse.spoke();
        assert_eq!(health(&pulse), Health::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn it_comes_back_as_well_as_it_can_be() {
        let pulse = Arc::new(Pulse::new());
        let (gate, exchange) = exchange(&pulse);
        passes(ACK_TIMEOUT).await;
        assert!(pulse.gone() && !pulse.gone());
        // While it is gone nothing but its word brings it back.
        assert_eq!(health(&pulse), Health::Gone);
        assert!(pulse.spoke() && !pulse.spoke());
        assert_eq!(health(&pulse), Health::Suspect, "an exchange that has not seen it gone waits still");
        pulse.gone();
        gate.send(()).unwrap();
        exchange.await.unwrap();
        assert_eq!(health(&pulse), Health::Gone, "a late datagram is no word");
        assert!(pulse.spoke());
        assert_eq!(health(&pulse), Health::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn an_exchange_ends_by_the_peer_being_gone_though_it_waits_for_an_acknowledgement_and_somebody_looks() {
        let pulse = Arc::new(Pulse::new());
        let exchanges: Vec<_> = (0..10)
            .map(|_| {
                let pulse = Arc::clone(&pulse);
                tokio::spawn(async move {
                    tokio::select! {
                        Err(never) = pulse.acknowledges(std::future::pending::<Result<(), Infallible>>()) => match never {},
                        () = pulse.until_gone() => {}
                    }
                })
            })
            .collect();
        passes(ACK_TIMEOUT).await;
        assert_eq!(health(&pulse), Health::Suspect);
        pulse.gone();
        for exchange in exchanges {
            exchange.await.unwrap();
        }
        assert_eq!(pulse.owed.load(Ordering::Relaxed), 0);
        // Dropped by one who is looking.
        let owed = pulse.owe();
        let watch = pulse.watch();
        let look = watch.borrow();
        drop(owed);
        drop(look);
        assert!(pulse.spoke());
        assert_eq!(health(&pulse), Health::Healthy);
    }
}
