//! One outbound connection: hellos, then the control stream for as long as it lives.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use crate::exchange::{Health, Report};
use crate::id::Id;
use crate::transport::connection::{Control, ControlError};
use crate::transport::remote::Face;
use crate::transport::{CloseCode, Closed, Connection, Transport};
use crate::trust::{Book, Direction, Met, Presence, Trust};
use crate::wire::control::{Hello, Message, Refused};

use super::machine::{Failed, LinkId};

/// A provider speaks every second. Three of its heartbeats lost, and it is unreachable (DESIGN.md §4).
pub const SILENCE: Duration = Duration::from_secs(3);
/// How long the other side may take for its hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection on which both have said hello.
#[derive(Debug)]
pub struct Opening {
    pub connection: Connection,
    pub control: Control,
    pub hello: Hello,
}

/// Dials an address, proves keys, exchanges hellos.
///
/// # Errors
/// [`Failed`], for the state machine and for people.
pub async fn open(transport: Transport, address: SocketAddr, ours: Hello, book: Book) -> Result<Opening, Failed> {
    let failed = |id: Option<Id>, refused, reason: String| Failed { id, refused, reason };
    let connection = transport.dial(address).await.map_err(|error| failed(None, false, error.to_string()))?;
    let id = connection.id();
    if book.watch().borrow().standing(&id).trust == Trust::Revoked {
        connection.close(CloseCode::Revoked, "revoked");
        return Err(failed(Some(id), true, "its key is revoked on this node".to_owned()));
    }
    match tokio::time::timeout(HELLO_TIMEOUT, greet(&connection, ours)).await {
        Ok(Ok((control, Ok(hello)))) => match hello.agree() {
            Ok(_) => Ok(Opening { connection, control, hello }),
            Err(refused) => {
                connection.close(CloseCode::Version, &refused.reason);
                Err(failed(Some(id), true, refused.reason))
            }
        },
        Ok(Ok((_, Err(refused)))) => Err(failed(Some(id), true, format!("it refuses this node: {}", refused.reason))),
        Ok(Err(error)) => {
            // The stream's error says little where the connection's says all.
            let closed = tokio::time::timeout(Duration::from_millis(50), connection.closed()).await.ok();
            let refused = closed.as_ref().is_some_and(is_refusal);
            Err(failed(Some(id), refused, closed.map_or_else(|| error.to_string(), |closed| closed.to_string())))
        }
        Err(_) => Err(failed(Some(id), false, format!("no hello within {} s", HELLO_TIMEOUT.as_secs()))),
    }
}

async fn greet(connection: &Connection, ours: Hello) -> Result<(Control, Result<Hello, Refused>), ControlError> {
    let mut control = connection.open_control().await?;
    control.send(&Message::Hello(ours)).await?;
    match control.receive().await? {
        Message::Hello(hello) => Ok((control, Ok(hello))),
        Message::Refused(refused) => Ok((control, Err(refused))),
        Message::Report(_) => Err(ControlError::Ended),
    }
}

/// Whether the other side said no, rather than having gone away.
pub fn is_refusal(closed: &Closed) -> bool {
    [CloseCode::Revoked, CloseCode::Version, CloseCode::SameKey].iter().any(|code| closed.is(*code))
}

/// What a link tells the actor.
#[derive(Debug)]
pub enum Event {
    /// It fell silent, or speaks again.
    Silence(LinkId, bool),
    /// It is over.
    Lost(LinkId, Closed),
}

/// What following a connection needs.
#[derive(Debug)]
pub struct Follow {
    pub link: LinkId,
    pub connection: Connection,
    pub hello: Hello,
    pub book: Book,
    pub face: watch::Sender<Face>,
    pub report: watch::Sender<Arc<Report>>,
    pub health: Arc<watch::Sender<Health>>,
    pub heard: watch::Sender<Instant>,
    pub events: mpsc::Sender<Event>,
    /// Keeps the pin from being given up for another's as long as the connection lasts.
    pub presence: Option<Presence>,
}

impl Follow {
    /// Reads the control stream until the connection is over.
    pub async fn run(mut self, mut control: Control) {
        let lost = loop {
            let received = tokio::select! {
                received = tokio::time::timeout(SILENCE, control.receive()) => received,
                closed = self.connection.closed() => break closed,
            };
            match received {
                Ok(Ok(Message::Report(report))) => {
                    self.spoke().await;
                    self.take(report).await;
                }
                Ok(Ok(_)) => {
                    self.connection.close(CloseCode::Protocol, "a second hello");
                    break Closed::Failed("it said hello twice".to_owned());
                }
                Ok(Err(error)) => {
                    tracing::debug!(peer = %self.hello.name, %error, "control stream");
                    self.connection.close(CloseCode::Protocol, "the control stream broke");
                    break self.closed_or(error.to_string()).await;
                }
                Err(_) => {
                    if self.health.send_replace(Health::Gone) != Health::Gone {
                        let _ = self.events.send(Event::Silence(self.link, true)).await;
                    }
                }
            }
        };
        self.health.send_replace(Health::Gone);
        let _ = self.events.send(Event::Lost(self.link, lost)).await;
    }

    async fn spoke(&self) {
        self.heard.send_replace(Instant::now());
        if self.health.send_replace(Health::Healthy) == Health::Gone {
            let _ = self.events.send(Event::Silence(self.link, false)).await;
        }
    }

    /// Takes a report in. A provider is pinned before anyone sees that it provides.
    async fn take(&mut self, report: Report) {
        let provides = |report: &Report| report.provider;
        if provides(&report) && !provides(&self.report.borrow()) {
            let met = Met {
                id: self.connection.id(),
                name: self.hello.name.clone(),
                address: Some(self.connection.address().to_string()),
                direction: Direction::Outbound { provider: true },
            };
            match self.book.meet(met).await {
                Ok(encounter) => {
                    self.presence = Some(encounter.presence);
                    // Before the report is there: whoever reads that it provides finds at once whether it is used.
                    self.face.send_modify(|face| face.use_ = encounter.standing.use_);
                }
                Err(error) => tracing::error!(peer = %self.hello.name, %error, "cannot pin it, so it is not used"),
            }
        }
        let report = Arc::new(report);
        self.report.send_if_modified(|known| {
            let changed = **known != *report;
            *known = report;
            changed
        });
    }

    async fn closed_or(&self, otherwise: String) -> Closed {
        match self.connection.closed().await {
            Closed::ByUs => Closed::Failed(otherwise),
            closed => closed,
        }
    }
}
