//! Accepts peers: handshake, trust, hellos; then sends them reports and hands their exchanges to the gate.
//!
//! What a stranger can cause is bounded at each step: handshakes under way, connections in all and of one key, the time
//! for a hello, its size, the streams it may open. Who is revoked is turned away and, if it is here, thrown out at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::exchange::Report;
use crate::gate::{self, Gate};
use crate::id::{Id, NodeName, Scope};
use crate::peers::Caller;
use crate::transport::connection::{Control, ControlError};
use crate::transport::stream::StreamError;
use crate::transport::{CloseCode, Connection, Incoming, Transport};
use crate::trust::{Book, Direction, Met, Presence, Snapshot, Trust};
use crate::wire::control::{Hello, Message};

/// Handshakes under way at once. Each costs some 100 kB and a signature; a LAN finishes one in milliseconds.
const MAX_HANDSHAKES: usize = 128;
/// From this many on, a stranger proves its address first: what comes from forged ones then costs nothing.
const PROVE_ADDRESS_ABOVE: usize = 16;
/// Connections in all.
const MAX_CONNECTIONS: usize = 1024;
/// Connections of one key: one, and a few more while old ones die.
const MAX_CONNECTIONS_A_KEY: usize = 4;
/// How long a stranger may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A report at least this often: three missed ones make this node unreachable for the peer.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Changes within this time go out as one report.
const COALESCE: Duration = Duration::from_millis(20);

/// What accepting peers needs.
#[derive(Debug, Clone)]
pub struct Inbound {
    /// Our own ID.
    pub me: Id,
    /// What we answer to a hello.
    pub hello: Hello,
    /// Where peers come in.
    pub transport: Transport,
    /// Whom to let in.
    pub book: Book,
    /// Where their exchanges go, and what the reports say.
    pub gate: Arc<Gate>,
    /// Who is told who has called.
    pub callers: mpsc::Sender<Caller>,
    /// The exchanges under way, until the peers have all of their answers.
    pub exchanges: TaskTracker,
}

impl Inbound {
    /// Accepts peers until the transport is closed. Dropping the future ends all their connections.
    pub async fn run(self) {
        let mut handshakes = JoinSet::new();
        let mut connections = JoinSet::new();
        let census = Census::default();
        let heartbeat = Heartbeat(Instant::now());
        loop {
            tokio::select! {
                stranger = self.transport.accept() => {
                    let Some(stranger) = stranger else { return };
                    if handshakes.len() >= MAX_HANDSHAKES || connections.len() >= MAX_CONNECTIONS {
                        tracing::debug!(address = %stranger.address(), "too many strangers at the door");
                        stranger.refuse();
                        continue;
                    }
                    let stranger = if handshakes.len() >= PROVE_ADDRESS_ABOVE {
                        match stranger.prove_address() {
                            Some(proved) => proved,
                            None => continue,
                        }
                    } else {
                        stranger
                    };
                    handshakes.spawn(async move { (stranger.address(), stranger.shake_hands().await) });
                }
                Some(Ok((address, connection))) = handshakes.join_next() => match connection {
                    Ok(connection) => {
                        connections.spawn(self.clone().serve(connection, census.clone(), heartbeat));
                    }
                    Err(error) => tracing::debug!(%address, %error, "no handshake"),
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }

    /// One connection, from the hello to its end.
    async fn serve(self, connection: Connection, census: Census, heartbeat: Heartbeat) {
        let (id, address) = (connection.id(), connection.address());
        let mut trust = self.book.watch();
        if trust.borrow_and_update().standing(&id).trust == Trust::Revoked {
            tracing::debug!(?id, %address, "a revoked key was turned away");
            connection.close(CloseCode::Revoked, "this key is revoked here");
            return;
        }
        let Some(_place) = census.enter(id) else {
            connection.close(CloseCode::Busy, "too many connections of one key");
            return;
        };
        let welcomed = tokio::select! {
            welcomed = tokio::time::timeout(HELLO_TIMEOUT, self.welcome(&connection)) => welcomed,
            () = revoked(&mut trust, id) => return connection.close(CloseCode::Revoked, "this key is revoked here"),
        };
        let (control, name, _presence) = match welcomed {
            Ok(Ok(Some(welcome))) => welcome,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => {
                tracing::debug!(?id, %address, %error, "no hello");
                return connection.close(CloseCode::Protocol, "no hello that can be read");
            }
            Err(_) => return connection.close(CloseCode::Protocol, "no hello in time"),
        };
        tracing::debug!(peer = %name, %id, %address, "a peer came in");
        let reports = async {
            let error = send_reports(control, self.gate.report(), self.book.watch(), id, heartbeat).await;
            if lets_go(&error) {
                // It has a newer connection, or none that it needs; answers that run over this one may still end well.
                tracing::debug!(peer = %name, "a peer wants no more reports here");
                std::future::pending::<()>().await;
            }
            error
        };
        let exchanges = accept_exchanges(&connection, &self.gate, &self.exchanges, self.book.watch(), &name);
        tokio::select! {
            closed = connection.closed() => tracing::debug!(peer = %name, reason = %closed, "a peer left"),
            // Only ends with the connection.
            () = exchanges => {}
            error = reports => {
                tracing::debug!(peer = %name, %error, "cannot report to a peer");
                connection.close(CloseCode::Protocol, "the control stream broke");
            }
            () = revoked(&mut trust, id) => {
                tracing::info!(peer = %name, %id, "revoked: its connection ends");
                connection.close(CloseCode::Revoked, "this key is revoked here");
            }
        }
    }

    /// Hellos, both ways, and the trust book's decision. `None` if there is nothing more to say.
    async fn welcome(
        &self,
        connection: &Connection,
    ) -> Result<Option<(Control, NodeName, Option<Presence>)>, ControlError> {
        let (id, address) = (connection.id(), connection.address());
        let mut control = connection.accept_control().await?;
        let Message::Hello(theirs) = control.receive().await? else { return Err(ControlError::Ended) };
        if let Err(refused) = theirs.agree() {
            tracing::warn!(peer = %theirs.name, %address, reason = %refused.reason, "a peer is refused");
            let reason = refused.reason.clone();
            control.send(&Message::Refused(refused)).await?;
            control.finish().await;
            connection.close(CloseCode::Version, &reason);
            return Ok(None);
        }
        let caller = Caller { id, hello: theirs.clone(), address };
        if id == self.me {
            // Ourselves, or a copy of us: the dialler learns from our hello which, and hangs up.
            control.send(&Message::Hello(self.hello.clone())).await?;
            let _ = self.callers.send(caller).await;
            let _ = connection.closed().await;
            return Ok(None);
        }
        let presence = self.meet(&caller).await;
        control.send(&Message::Hello(self.hello.clone())).await?;
        let _ = self.callers.send(caller).await;
        Ok(Some((control, theirs.name, presence)))
    }

    async fn meet(&self, caller: &Caller) -> Option<Presence> {
        let (name, address) = (&caller.hello.name, caller.address);
        let met = Met {
            id: caller.id,
            name: name.clone(),
            address: Some(address.to_string()),
            direction: Direction::Inbound,
        };
        match self.book.meet(met).await {
            Ok(encounter) => Some(encounter.presence),
            Err(error) => {
                tracing::error!(peer = %name, %error, "cannot pin it, so it may do nothing here");
                None
            }
        }
    }
}

/// Whether the dialler has given the control stream up, rather than broken the protocol or been lost.
fn lets_go(error: &ControlError) -> bool {
    matches!(error, ControlError::Stream(StreamError::Reset(_) | StreamError::Stopped(_)))
}

/// Resolves when the key is revoked.
async fn revoked(trust: &mut watch::Receiver<Arc<Snapshot>>, id: Id) {
    if trust.wait_for(|trust| trust.standing(&id).trust == Trust::Revoked).await.is_err() {
        // The book is gone: the node stops, and this connection with it.
        std::future::pending().await
    }
}

/// Tells a peer how things are: at once, on every change, and as a heartbeat.
async fn send_reports(
    mut control: Control,
    mut report: watch::Receiver<Arc<Report>>,
    mut trust: watch::Receiver<Arc<Snapshot>>,
    id: Id,
    heartbeat: Heartbeat,
) -> ControlError {
    let mut last = None;
    let mut due = Instant::now();
    loop {
        let scope = trust.borrow_and_update().standing(&id).scope;
        let now = report_for(scope, &report.borrow_and_update());
        if last.as_ref() != Some(&now) || Instant::now() >= due {
            if let Err(error) = control.send(&Message::Report(now.clone())).await {
                return error;
            }
            last = Some(now);
            due = heartbeat.after(Instant::now());
        }
        tokio::select! {
            () = tokio::time::sleep_until(due) => {}
            _ = report.changed() => tokio::time::sleep(COALESCE).await,
            _ = trust.changed() => {}
            // A dialler says nothing more on the control stream.
            message = control.receive() => return match message {
                Ok(_) => ControlError::Ended,
                Err(error) => error,
            },
        }
    }
}

/// What a peer of this scope is told: whom we do not trust learns that we lend, and that it may not borrow.
fn report_for(scope: Scope, report: &Report) -> Report {
    match scope {
        Scope::None => Report { provider: report.provider, scope, ..Report::default() },
        Scope::Infer | Scope::Manage => Report { scope, ..report.clone() },
    }
}

/// Hands each exchange to the gate, in a task of its own. The tasks end with the connection.
async fn accept_exchanges(
    connection: &Connection,
    gate: &Arc<Gate>,
    tracker: &TaskTracker,
    trust: watch::Receiver<Arc<Snapshot>>,
    name: &NodeName,
) {
    let id = connection.id();
    let mut exchanges = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = connection.accept_exchange() => incoming,
            Some(_) = exchanges.join_next() => continue,
        };
        let Ok(incoming) = incoming else { return };
        let caller = gate::Caller::Peer { id, name: name.clone(), scope: trust.borrow().standing(&id).scope };
        exchanges.spawn(tracker.track_future(serve_exchange(incoming, Arc::clone(gate), caller, name.clone())));
    }
}

async fn serve_exchange(incoming: Incoming, gate: Arc<Gate>, caller: gate::Caller, peer: NodeName) {
    let served = async {
        let (request, responder) = incoming.request(&peer).await?;
        responder.answer(gate.serve(caller, request)).await
    };
    if let Err(error) = served.await {
        tracing::debug!(%peer, %error, "an exchange broke off");
    }
}

/// One clock for the heartbeats to all peers: they are due together, and a node at rest is woken once a second for all of
/// them and not once for each.
#[derive(Debug, Clone, Copy)]
struct Heartbeat(Instant);

impl Heartbeat {
    /// When the next one is due after a report at `now`: the first beat that is not close upon it, and at most one and a
    /// half of [`HEARTBEAT`] later, of which a peer waits for three.
    fn after(self, now: Instant) -> Instant {
        let since = (now + HEARTBEAT / 2).saturating_duration_since(self.0);
        let beats = u32::try_from(since.as_millis() / HEARTBEAT.as_millis()).unwrap_or(u32::MAX);
        self.0 + HEARTBEAT.saturating_mul(beats.saturating_add(1))
    }
}

/// How many connections each key has.
#[derive(Debug, Clone, Default)]
struct Census(Arc<Mutex<HashMap<Id, usize>>>);

impl Census {
    fn enter(&self, id: Id) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(id).or_default();
        if *count >= MAX_CONNECTIONS_A_KEY {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Place { census: self.clone(), id })
    }
}

/// One connection's place; free again when it is dropped.
#[derive(Debug)]
struct Place {
    census: Census,
    id: Id,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.census.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::ModelInfo;

    #[test]
    fn one_key_has_few_connections_and_gets_its_places_back() {
        let census = Census::default();
        let id = Id::from_bytes([1; 32]);
        let mut places: Vec<_> = (0..MAX_CONNECTIONS_A_KEY).map(|_| census.enter(id).unwrap()).collect();
        assert!(census.enter(id).is_none());
        assert!(census.enter(Id::from_bytes([2; 32])).is_some());
        places.pop();
        assert!(census.enter(id).is_some());
        places.clear();
        assert!(census.0.lock().unwrap().is_empty());
    }

    #[test]
    fn heartbeats_to_all_peers_are_due_together_and_soon_enough() {
        let heartbeat = Heartbeat(Instant::now());
        for ms in (0..5000).step_by(50) {
            let now = heartbeat.0 + Duration::from_millis(ms);
            let (due, wait) = (heartbeat.after(now), heartbeat.after(now) - now);
            assert_eq!((due - heartbeat.0).as_millis() % HEARTBEAT.as_millis(), 0);
            assert!(wait > HEARTBEAT / 2 && wait <= HEARTBEAT * 3 / 2, "{wait:?} after {ms} ms");
        }
    }

    #[test]
    fn whom_we_do_not_trust_learns_no_model() {
        let report = Report {
            provider: true,
            inflight: 3,
            models: [("m".to_owned(), ModelInfo::default())].into(),
            ..Report::default()
        };
        let told = report_for(Scope::None, &report);
        assert!(told.provider && told.models.is_empty() && told.inflight == 0 && told.scope == Scope::None);
        assert_eq!(report_for(Scope::Infer, &report).models, report.models);
    }
}
