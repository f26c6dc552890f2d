//! One outbound connection: hellos, then the control stream for as long as it lives.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot, watch};

use crate::exchange::{Denial, Load, Report};
use crate::id::{Id, Scope};
use crate::pairing::{Dealer, Session};
use crate::transport::connection::{Control, ControlError};
use crate::transport::remote::Face;
use crate::transport::{CloseCode, Closed, ConnectError, Connection, Pulse, Transport, Unreached};
use crate::trust::{Book, Direction, Met, Presence, Snapshot, until_name_is_free};
use crate::wire::control::{Hello, Message, Refused};

use super::allowance::Allowance;
use super::machine::{Failed, LinkId};

/// A provider speaks every second. Three of its heartbeats lost, and it is unreachable: requests go elsewhere, and the
/// connection stays.
pub const SILENCE: Duration = Duration::from_secs(3);
/// How long the other side may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// What a report costs a peer, and each model in it: an honest provider sends at most one in 20 ms, and one with 1,000 models
/// seldom more than one a second.
const REPORT_COST: Duration = Duration::from_millis(10);
/// See `REPORT_COST`.
const MODEL_COST: Duration = Duration::from_micros(100);
/// Changes of what a peer lets this node do that are logged, of one connection: a person changes it now and then.
const MOST_TOLD: u32 = 20;
/// After a message about trust: a pairing has three a side.
const DEALING_PAUSE: Duration = Duration::from_millis(10);
/// The trust book takes no more than so many new keys at once. Who was not taken is told to it again after this.
const MEET_AGAIN: Duration = Duration::from_secs(30);
/// What people read of a peer whose task panicked.
pub const BUG: &str = "a bug in this node ended it";
/// What people read of a peer whose key is revoked on this node.
const REVOKED_HERE: &str = "its key is revoked on this node";

/// A connection on which both have said hello.
#[derive(Debug)]
pub struct Opening {
    pub connection: Connection,
    pub control: Control,
    pub hello: Hello,
    pub session: Session,
}

/// Dials an address, proves keys, exchanges hellos.
///
/// # Errors
/// [`Failed`], for the state machine and for people.
pub async fn open(
    transport: Transport,
    address: SocketAddr,
    me: Id,
    ours: Hello,
    book: Book,
) -> Result<Opening, Failed> {
    let connection = match transport.dial(address).await {
        Ok(connection) => connection,
        Err(error) => return Err(Failed::unreached(address, &error).await),
    };
    let id = connection.id();
    let trust = book.snapshot();
    let known = trust.pin(&id).map(|pin| pin.name.clone());
    let failed = |name, refused, reason| Failed { id: Some(id), name, refused, denial: None, reason, advice: None };
    if trust.standing(&id).is_revoked() {
        connection.close(CloseCode::Revoked, "revoked");
        return Err(failed(known, true, REVOKED_HERE.to_owned()));
    }
    match tokio::time::timeout(HELLO_TIMEOUT, greet(&connection, ours)).await {
        Ok(Ok((control, Ok(hello)))) => match hello.agree() {
            Ok(_) => match connection.export(Session::LABEL) {
                Ok(secret) => {
                    let session = Session { me, peer: id, dialled: true, secret };
                    Ok(Opening { connection, control, hello, session })
                }
                Err(error) => Err(failed(Some(hello.name), false, error.to_string())),
            },
            Err(reason) => {
                connection.close(CloseCode::Version, "no common version");
                Err(Failed { denial: Some(Denial::Version), ..failed(Some(hello.name), true, reason) })
            }
        },
        Ok(Ok((_, Err(refused)))) => {
            let denial = if refused.code == Refused::VERSION { Denial::Version } else { Denial::Unknown };
            Err(Failed { denial: Some(denial), ..failed(known, true, refused.sentence()) })
        }
        Ok(Err(error)) => {
            // The stream's error says little where the connection's says all.
            let closed = tokio::time::timeout(Duration::from_millis(50), connection.closed()).await.ok();
            let refused = closed.as_ref().is_some_and(is_refusal);
            let denial = closed.as_ref().and_then(denial);
            let reason = closed.map_or_else(|| error.to_string(), |closed| closed.to_string());
            Err(Failed { denial, ..failed(known, refused, reason) })
        }
        Err(_) => Err(failed(known, false, format!("no hello within {} s", HELLO_TIMEOUT.as_secs()))),
    }
}

impl Failed {
    /// A dial whose task panicked.
    pub fn by_a_bug() -> Self {
        Self { id: None, name: None, refused: false, denial: None, reason: BUG.to_owned(), advice: None }
    }

    /// A dial that led to nobody.
    async fn unreached(address: SocketAddr, error: &ConnectError) -> Self {
        let mut failed = Self { reason: error.to_string(), ..Self::by_a_bug() };
        if error.is_silence() {
            let why = Unreached::diagnose(address).await;
            (failed.reason, failed.advice) = (why.reason(address), why.advice(address));
        }
        failed
    }
}

async fn greet(connection: &Connection, ours: Hello) -> Result<(Control, Result<Hello, Refused>), ControlError> {
    let mut control = connection.open_control().await?;
    control.send(&Message::Hello(ours)).await?;
    match control.receive().await? {
        Message::Hello(hello) => Ok((control, Ok(hello))),
        Message::Refused(refused) => Ok((control, Err(refused))),
        Message::Report(_) | Message::Load(_) | Message::Trust(_) | Message::Vouching(_) => Err(ControlError::Ended),
    }
}

/// Whether the other side said no, rather than having gone away.
pub fn is_refusal(closed: &Closed) -> bool {
    [CloseCode::Revoked, CloseCode::Version, CloseCode::SameKey].iter().any(|code| closed.is(*code))
}

/// The denial that the other side's code stands for, where it said no.
pub fn denial(closed: &Closed) -> Option<Denial> {
    match () {
        () if closed.is(CloseCode::Revoked) => Some(Denial::Revoked),
        () if closed.is(CloseCode::Version) => Some(Denial::Version),
        () => None,
    }
}

/// What a link tells the actor.
#[derive(Debug)]
pub enum Event {
    /// It fell silent, or speaks again.
    Silence(LinkId, bool),
    /// It is over.
    Lost(LinkId, Closed),
    /// Its node has changed what this one may do there.
    Access(LinkId, Access),
}

/// This node's access to a provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing, and why.
    Refused(Denial),
    /// This.
    Granted(Scope),
}

impl Access {
    /// The access that a report gives; nothing where its node shares nothing.
    pub fn of(report: &Report) -> Option<Self> {
        match (report.provider, report.scope) {
            (false, _) => None,
            (true, Scope::None) => Some(Self::Refused(report.denial.unwrap_or(Denial::Unknown))),
            (true, scope) => Some(Self::Granted(scope)),
        }
    }
}

/// What following a connection needs. The task is the only one that ends the connection or says how it is.
#[derive(Debug)]
pub struct Follow {
    pub link: LinkId,
    pub connection: Connection,
    pub hello: Hello,
    pub book: Book,
    pub face: watch::Sender<Face>,
    pub report: watch::Sender<Arc<Report>>,
    pub load: watch::Sender<Arc<Load>>,
    pub pulse: Arc<Pulse>,
    pub heard: watch::Sender<Instant>,
    pub events: mpsc::Sender<Event>,
    /// The access of this node when the peer last shared something.
    pub access: Option<Access>,
    /// How often the log was told of that.
    pub access_told: u32,
    /// When the trust book was told of it as a provider.
    pub met: Option<Instant>,
    /// Whether its name keeps it from being used.
    pub blocked: bool,
    /// Keeps the pin from being given up for another's as long as the connection lasts.
    pub presence: Option<Presence>,
}

/// Told to a [`Follow`] when its connection no longer stands for the peer: whether to close it at once, and why. Where
/// nothing is told but the sender dropped, what runs may come to its end.
pub type Retired = oneshot::Receiver<(CloseCode, &'static str)>;

// === impl Follow ===

impl Follow {
    /// Reads the control stream until the connection is over, or stands for nobody any more. In that case it is kept
    /// for what still runs over it.
    pub async fn run(mut self, mut control: Control, dealer: Dealer, retired: Retired) {
        let (connection, mut trust, id) = (self.connection.clone(), self.book.watch(), self.connection.id());
        let over = async {
            tokio::select! {
                closed = connection.closed() => closed,
                () = revoked(&mut trust, id) => {
                    connection.close(CloseCode::Revoked, "revoked");
                    Closed::Failed(REVOKED_HERE.to_owned())
                }
            }
        };
        let mut over = pin!(over);
        let lost = tokio::select! {
            closed = &mut over => Ok(closed),
            lost = self.read(&mut control, dealer) => Ok(lost),
            why = retired => Err(why.ok()),
        };
        self.pulse.gone();
        match lost {
            Ok(lost) => {
                let _ = self.events.send(Event::Lost(self.link, lost)).await;
            }
            Err(Some((code, reason))) => connection.close(code, reason),
            Err(None) => {
                tokio::select! {
                    _ = over => {}
                    () = connection.unused() => connection.close(CloseCode::Replaced, "a newer connection is used"),
                }
            }
        }
    }

    async fn read(&mut self, control: &mut Control, mut dealer: Dealer) -> Closed {
        let mut silent_at = tokio::time::Instant::now() + SILENCE;
        let mut allowance = Allowance::default();
        let (mut trust, id, name) = (self.book.watch(), self.connection.id(), self.hello.name.clone());
        loop {
            let received = tokio::select! {
                received = tokio::time::timeout_at(silent_at, control.receive()) => received,
                () = until_name_is_free(&mut trust, &id, &name), if self.blocked => {
                    self.meet().await;
                    continue;
                }
                message = dealer.next() => {
                    // What cannot be sent cannot be received either.
                    let _ = control.send(&message).await;
                    continue;
                }
            };
            silent_at = tokio::time::Instant::now() + SILENCE;
            match received {
                Ok(Ok(Message::Report(report))) => {
                    self.spoke().await;
                    let cost = REPORT_COST + MODEL_COST * u32::try_from(report.models.len()).unwrap_or(u32::MAX);
                    self.take(report).await;
                    allowance.spend(cost).await;
                }
                Ok(Ok(Message::Load(load))) => {
                    self.spoke().await;
                    // No two are equal for long: what has not changed is said by the heartbeat alone.
                    self.load.send_replace(Arc::new(load));
                    allowance.spend(REPORT_COST).await;
                }
                Ok(Ok(message @ (Message::Trust(_) | Message::Vouching(_)))) => {
                    if let Err(error) = dealer.heard(message).await {
                        self.connection.close(CloseCode::Protocol, "out of place");
                        return Closed::Failed(error.to_string());
                    }
                    tokio::time::sleep(DEALING_PAUSE).await;
                }
                Ok(Ok(_)) => {
                    self.connection.close(CloseCode::Protocol, "a second hello");
                    return Closed::Failed("it said hello twice".to_owned());
                }
                Ok(Err(error)) => {
                    tracing::debug!(peer = %self.hello.name, %error, "control stream");
                    self.connection.close(CloseCode::Protocol, "the control stream broke");
                    return self.closed_or(error.to_string()).await;
                }
                Err(_) => {
                    if self.pulse.gone() {
                        let _ = self.events.send(Event::Silence(self.link, true)).await;
                    }
                }
            }
        }
    }

    async fn spoke(&self) {
        self.heard.send_replace(Instant::now());
        if self.pulse.spoke() {
            let _ = self.events.send(Event::Silence(self.link, false)).await;
        }
    }

    /// Takes a report in. A provider is pinned before anyone sees that it provides.
    async fn take(&mut self, report: Report) {
        let unpinned = || self.book.snapshot().pin(&self.connection.id()).is_none();
        let again = |met: Instant| met.elapsed() >= MEET_AGAIN && unpinned();
        if report.provider && self.met.is_none_or(again) {
            self.meet().await;
        }
        let access = Access::of(&report).filter(|access| self.access.replace(*access) != Some(*access));
        let report = Arc::new(report);
        self.report.send_if_modified(|known| {
            let changed = **known != *report;
            if changed {
                *known = report;
            }
            changed
        });
        if let Some(access) = access.filter(|_| self.access_told < MOST_TOLD) {
            self.access_told += 1;
            let _ = self.events.send(Event::Access(self.link, access)).await;
        }
    }

    async fn meet(&mut self) {
        self.met = Some(Instant::now());
        let met = Met {
            id: self.connection.id(),
            name: self.hello.name.clone(),
            address: Some(self.connection.address().to_string()),
            direction: Direction::Outbound { provider: true },
        };
        self.blocked = false;
        match self.book.meet(met).await {
            Ok(encounter) => {
                self.blocked = encounter.waits_for_name();
                self.presence = Some(encounter.presence);
                // Before the report is there: whoever reads that it provides finds at once whether it is used.
                self.face.send_modify(|face| face.use_ = encounter.standing.use_);
            }
            Err(error) => tracing::error!(peer = %self.hello.name, %error, "cannot pin it, so it is not used"),
        }
    }

    async fn closed_or(&self, otherwise: String) -> Closed {
        match self.connection.closed().await {
            Closed::ByUs => Closed::Failed(otherwise),
            closed => closed,
        }
    }
}

/// Resolves when the key is revoked, also if it is already.
pub async fn revoked(trust: &mut watch::Receiver<Arc<Snapshot>>, id: Id) {
    if trust.wait_for(|trust| trust.standing(&id).is_revoked()).await.is_err() {
        // The book is gone: the node stops, and this connection with it.
        std::future::pending().await
    }
}
