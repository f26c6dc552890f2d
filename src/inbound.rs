//! Accepts peers: handshake, trust, hellos; then sends them reports and hands their exchanges to the gate.
//!
//! What a stranger can cause is bounded at each step: handshakes under way ([`door`]), connections in all, of one address and
//! of one key ([`census`]), the time for a hello, its size, the streams it may open. Who is revoked is turned away and, if it
//! is here, thrown out at once; where a scope is lowered, what needs more of it ends.

mod census;
mod denial;
mod door;
mod telling;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use crate::gate::{self, Gate};
use crate::id::{Id, NodeName, Scope};
use crate::pairing::{Dealer, Desk, Session};
use crate::peers::backoff::Budget;
use crate::peers::{Caller, until_revoked};
use crate::route::classify;
use crate::transport::connection::{Control, ControlError};
use crate::transport::incoming::Opening;
use crate::transport::{CloseCode, Connection, Incoming, Transport};
use crate::trust::{Book, Direction, Encounter, Met, Snapshot, Standing, Trust, until_name_is_free};
use crate::wire::control::{Hello, Message, Refused};
use census::{Asking, Census, Place};
use denial::Reader;
use door::{Admittance, Door};
use telling::{Heartbeat, Told, converse};

pub use denial::NotNow;

/// How long a stranger may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Exchanges of one connection whose head is still awaited. A peer sends it in one go; without a bound, heads that never
/// end would be gathered on every stream there may be.
const MAX_HEADS: usize = 32;
/// Lines in the log at more than `debug` about peers that are turned away.
const LOUD: usize = 30;
/// See `LOUD`.
const LOUD_WITHIN: Duration = Duration::from_secs(60);

/// What accepting peers needs.
#[derive(Debug, Clone)]
pub struct InboundSettings {
    /// Our own ID.
    pub me: Id,
    /// What we answer to a hello.
    pub hello: Hello,
    /// Where peers come in.
    pub transport: Transport,
    /// Whom to let in.
    pub book: Book,
    /// Where people and peers agree to be paired.
    pub desk: Desk,
    /// Where their exchanges go, and what the reports say.
    pub gate: Arc<Gate>,
    /// Why nothing is shared at the moment.
    pub not_now: NotNow,
    /// Who is told who has called.
    pub callers: mpsc::Sender<Caller>,
    /// How many times faster than real ones the servers are: see [`Config`](crate::config::Config).
    pub tempo: f64,
    /// How late reports are: see there.
    pub report_delay: Duration,
}

/// The side that accepts peers. Clones share it.
#[derive(Debug, Clone)]
pub struct Inbound {
    settings: Arc<InboundSettings>,
    /// The exchanges that run.
    exchanges: TaskTracker,
    census: Census,
    heartbeat: Heartbeat,
    loud: Arc<Mutex<Budget>>,
}

// === impl Inbound ===

impl Inbound {
    /// Accepts nobody before it [runs](Self::run).
    pub fn new(settings: InboundSettings) -> Self {
        Self {
            settings: Arc::new(settings),
            exchanges: TaskTracker::new(),
            census: Census::default(),
            heartbeat: Heartbeat::new(),
            loud: Arc::new(Mutex::new(Budget::new(LOUD, LOUD_WITHIN))),
        }
    }

    /// Resolves when no exchange runs and all that was answered has arrived. New ones are taken all the while: whether
    /// they get in is the gate's business.
    pub async fn idle(&self) {
        self.exchanges.close();
        self.exchanges.wait().await;
    }

    /// Accepts peers until the transport is closed. Dropping the future ends all their connections.
    pub async fn run(self) {
        let mut handshakes = JoinSet::new();
        let mut connections = JoinSet::new();
        let InboundSettings { transport, book, .. } = &*self.settings;
        let mut door = Door::default();
        let mut trust = book.watch();
        let mut known = addresses_of_trusted(&trust.borrow_and_update());
        loop {
            tokio::select! {
                stranger = transport.accept() => {
                    let Some(stranger) = stranger else { return };
                    if trust.has_changed().unwrap_or_default() {
                        known = addresses_of_trusted(&trust.borrow_and_update());
                    }
                    let address = stranger.address();
                    match door.admit(address.ip(), stranger.has_proved_address(), &known) {
                        Admittance::Enter(way) => {
                            handshakes.spawn(async move { (address, way, stranger.shake_hands().await) });
                        }
                        // Who has proved it is not asked.
                        Admittance::Prove => drop(stranger.prove_address()),
                        Admittance::Refuse => {
                            tracing::debug!(%address, "too many strangers at the door");
                            stranger.refuse();
                        }
                    }
                }
                Some(shaken) = handshakes.join_next() => match shaken {
                    Ok((address, way, shaken)) => {
                        door.leave(address.ip(), way);
                        match shaken {
                            Ok(connection) => drop(connections.spawn(self.clone().serve(connection))),
                            Err(error) => tracing::debug!(%address, %error, "no handshake"),
                        }
                    }
                    Err(error) => log_panic(error),
                },
                // A connection whose task panicked is over: its handles are gone.
                Some(ended) = connections.join_next() => ended.unwrap_or_else(log_panic),
            }
        }
    }

    /// One connection, from the hello to its end.
    async fn serve(self, connection: Connection) {
        let (id, address) = (connection.id(), connection.address());
        let InboundSettings { me, book, desk, gate, .. } = &*self.settings;
        let Some(place) = self.census.enter(id, address.ip(), is_trusted(book.snapshot().standing(&id))) else {
            return connection.close(CloseCode::Busy, "too many connections");
        };
        let mut trust = book.watch();
        let welcomed = tokio::select! {
            biased;
            () = until_revoked(&mut trust, id) => {
                tracing::debug!(%id, %address, "a revoked key was turned away");
                return connection.close(CloseCode::Revoked, "this key is revoked here");
            }
            () = place.is_lost() => return connection.close(CloseCode::Busy, "too many connections"),
            welcomed = tokio::time::timeout(HELLO_TIMEOUT, self.welcome(&connection)) => welcomed,
        };
        let (control, caller, met) = match welcomed {
            Ok(Ok(Some(welcome))) => welcome,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(%id, %address, %error, "no hello");
                return connection.close(CloseCode::Protocol, "no hello that can be read");
            }
            Err(_) => return connection.close(CloseCode::Protocol, "no hello in time"),
        };
        let name = caller.hello.name.clone();
        tracing::debug!(peer = %name, %id, %address, "a peer came in");
        let dealer = match connection.export(Session::LABEL) {
            Ok(secret) => {
                let session = Session { me: *me, peer: id, dialled: false, secret };
                Dealer::new(desk, book, session, name.clone(), address)
            }
            Err(error) => return tracing::debug!(peer = %name, %error, "no session"),
        };
        let opened = Arc::new(AtomicU64::new(0));
        let told = Told {
            report: gate.report(),
            load: gate.load(),
            trust: book.watch(),
            reader: Reader { id, name: name.clone(), policy: book.policy(), not_now: self.settings.not_now.clone() },
            counted: opened.clone(),
            coalesce: telling::COALESCE.div_f64(self.settings.tempo),
            delay: self.settings.report_delay,
        };
        let reports = converse(control, dealer, told, self.heartbeat);
        tokio::select! {
            closed = connection.closed() => tracing::debug!(peer = %name, reason = %closed, "a peer left"),
            // Only ends with the connection.
            () = self.accept_exchanges(&connection, &name, &place, &opened) => {}
            () = place.is_lost() => {
                tracing::debug!(peer = %name, %address, "its place is another's");
                connection.close(CloseCode::Busy, "too many connections");
            }
            () = keep_limits(&connection, book.watch()) => {}
            () = self.keep_met(&caller, met) => {}
            error = reports => {
                tracing::debug!(peer = %name, %error, "cannot report to a peer");
                connection.close(CloseCode::Protocol, "the control stream broke");
            }
            () = until_revoked(&mut trust, id) => {
                tracing::info!(peer = %name, %id, "key revoked: closing its connection");
                connection.close(CloseCode::Revoked, "this key is revoked here");
            }
        }
    }

    /// Hellos, both ways, and the trust book's decision. `None` if there is nothing more to say.
    async fn welcome(
        &self,
        connection: &Connection,
    ) -> Result<Option<(Control, Caller, Option<Encounter>)>, ControlError> {
        let (id, address) = (connection.id(), connection.address());
        let InboundSettings { me, hello: ours, callers, .. } = &*self.settings;
        let mut control = connection.accept_control().await?;
        let Message::Hello(theirs) = control.receive().await? else { return Err(ControlError::Ended) };
        if let Err(reason) = theirs.agree() {
            if self.loud() {
                tracing::warn!(peer = %theirs.name, %address, %reason, "a peer is refused");
            }
            control.send(&Message::Refused(Refused::version())).await?;
            control.finish().await;
            connection.close(CloseCode::Version, "no common version");
            return Ok(None);
        }
        let caller = Caller { id, hello: theirs.clone(), address };
        if id == *me {
            // Ourselves, or a copy of us: the dialler learns from our hello which, and hangs up.
            control.send(&Message::Hello(ours.clone())).await?;
            let _ = callers.send(caller).await;
            let _ = connection.closed().await;
            return Ok(None);
        }
        let met = self.meet(&caller).await;
        control.send(&Message::Hello(ours.clone())).await?;
        let _ = callers.send(caller.clone()).await;
        Ok(Some((control, caller, met)))
    }

    /// Keeps a peer present, and meets it again once its name no longer keeps it out. Never resolves.
    async fn keep_met(&self, caller: &Caller, mut met: Option<Encounter>) {
        let mut trust = self.settings.book.watch();
        while met.as_ref().is_some_and(Encounter::waits_for_name) {
            until_name_is_free(&mut trust, &caller.id, &caller.hello.name).await;
            met = self.meet(caller).await;
        }
        std::future::pending().await
    }

    async fn meet(&self, caller: &Caller) -> Option<Encounter> {
        let (name, address) = (&caller.hello.name, caller.address);
        let met = Met {
            id: caller.id,
            name: name.clone(),
            address: Some(address.to_string()),
            direction: Direction::Inbound,
        };
        match self.settings.book.meet(met).await {
            Ok(encounter) => Some(encounter),
            Err(error) => {
                if self.loud() {
                    tracing::error!(peer = %name, %error, "cannot pin it, so it may do nothing here");
                }
                None
            }
        }
    }

    /// Hands each exchange to the gate, in a task of its own. The tasks end with the connection.
    async fn accept_exchanges(&self, connection: &Connection, name: &NodeName, place: &Place, opened: &Arc<AtomicU64>) {
        let mut running = JoinSet::new();
        let heads = Arc::new(Semaphore::new(MAX_HEADS));
        loop {
            let next = async {
                // Never closed, so there is always a permit to wait for.
                let permit = Arc::clone(&heads).acquire_owned().await.ok();
                (permit, connection.accept_exchange().await)
            };
            let (permit, incoming) = tokio::select! {
                next = next => next,
                Some(ended) = running.join_next() => {
                    ended.unwrap_or_else(log_panic);
                    continue;
                }
            };
            let Ok(incoming) = incoming else { return };
            let (id, name, opened) = (connection.id(), name.clone(), opened.clone());
            running.spawn(self.clone().exchange(incoming, permit, id, name, place.asks(), opened));
        }
    }

    async fn exchange(
        self,
        incoming: Incoming,
        head: Option<OwnedSemaphorePermit>,
        id: Id,
        peer: NodeName,
        _asking: Asking,
        opened: Arc<AtomicU64>,
    ) {
        let InboundSettings { book, gate, .. } = &*self.settings;
        let served = async {
            let opening = incoming.open(&peer).await;
            if opening.is_err() {
                opened.fetch_add(1, Ordering::Release);
            }
            let opening = opening?;
            let _running = self.exchanges.token();
            drop(head);
            // As it stands at each moment: what the peer was when it opened the stream is long ago if it took its time.
            let caller = {
                let (book, name) = (book.clone(), peer.clone());
                move || {
                    let standing = book.snapshot().standing(&id);
                    let (scope, trusted) = (standing.scope, is_trusted(standing));
                    gate::Caller::Peer { id, name: name.clone(), scope, trusted }
                }
            };
            let scope = book.snapshot().standing(&id).scope;
            // Counted once the gate knows of it, so that a load which says that it is counted has it.
            // Boxed: a task is as large as all that it waits for, and each await within another keeps a copy.
            let (needed, answered): (_, Pin<Box<dyn Future<Output = _> + Send>>) = match opening {
                Opening::Request(request, responder) => {
                    let needed = classify(request.method(), request.uri().path()).needs().unwrap_or(Scope::Infer);
                    let answer = Box::pin(gate.serve(caller(), request));
                    opened.fetch_add(1, Ordering::Release);
                    (needed, Box::pin(responder.answer(answer)))
                }
                Opening::Ticket(ask, waiting) => {
                    let ticket = gate.queue(caller, &ask);
                    opened.fetch_add(1, Ordering::Release);
                    // Only what runs a model waits for a slot.
                    (Scope::Infer, Box::pin(waiting.queue(ticket, &peer)))
                }
            };
            tokio::select! {
                answered = answered => answered,
                // Only what was let in can be let out; what was refused says so.
                () = until_below(book.watch(), id, needed), if scope >= needed => {
                    tracing::info!(%peer, %needed, "permission withdrawn: cancelling its running request");
                    Ok(())
                }
            }
        };
        if let Err(error) = served.await {
            tracing::debug!(%peer, %error, "an exchange broke off");
        }
    }

    fn loud(&self) -> bool {
        self.loud.lock().unwrap_or_else(PoisonError::into_inner).take(std::time::Instant::now())
    }
}

/// Resolves once the book lets this peer do less than `needed`. Never if nobody writes the book any more.
async fn until_below(mut trust: watch::Receiver<Arc<Snapshot>>, id: Id, needed: Scope) {
    if trust.wait_for(|book| book.standing(&id).scope < needed).await.is_err() {
        std::future::pending().await
    }
}

/// Whether a person has said what it may do here.
fn is_trusted(standing: Standing) -> bool {
    // Not whom others vouch for: that is about whom we use, and gives nothing here.
    standing.trust == Trust::Trusted
}

/// Where those were last met whom a person trusts.
fn addresses_of_trusted(book: &Snapshot) -> HashSet<IpAddr> {
    let trusted = book.pins().filter(|pin| is_trusted(pin.standing()));
    let addresses = trusted.filter_map(|pin| pin.address.as_deref()?.parse::<SocketAddr>().ok());
    addresses.map(|address| address.ip().to_canonical()).collect()
}

/// Lets a peer open as much as the trust book lets it use.
async fn keep_limits(connection: &Connection, mut trust: watch::Receiver<Arc<Snapshot>>) {
    let id = connection.id();
    let mut before = None;
    loop {
        let wanted = trust.borrow_and_update().standing(&id).scope > Scope::None;
        if before.replace(wanted) != Some(wanted) {
            connection.admit(wanted);
        }
        if trust.changed().await.is_err() {
            return;
        }
    }
}

fn log_panic(error: tokio::task::JoinError) {
    if error.is_panic() {
        tracing::error!(%error, "a task of a peer panicked; this is a bug");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_others_vouch_for_has_none_of_the_places_that_are_kept() {
        let of = |trust| is_trusted(Standing { trust, ..Standing::default() });
        assert!(of(Trust::Trusted));
        assert!(!of(Trust::Vouched) && !of(Trust::FirstUse) && !of(Trust::None));
    }
}
