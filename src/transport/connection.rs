//! One connection between two nodes that have proved their keys.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use quinn::{ConnectionError, VarInt};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::canonical;
use super::incoming::Incoming;
use super::stream::{Reader, StreamError, Writer};
use crate::exchange::limits;
use crate::id::Id;
use crate::tls::AuthenticatedPeer;
use crate::wire::control::{Message, MessageError, printable};
use crate::wire::frame::Event;

/// Exchanges that a peer may have open. Above it a dialler waits, and what it waits for is a queue with a bound of its own.
#[expect(clippy::cast_possible_truncation, reason = "some thousands at most")]
const MAX_STREAMS: u32 = limits::REQUESTS_EACH as u32;
/// What all requests of one peer may have in flight. An Ollama reads what it is sent, so little of it is used, and a peer
/// that wants us to hold memory gets no more than this.
const REQUESTS_WINDOW: u32 = 16 * 1024 * 1024;
/// What a peer gets that may do nothing here: the control stream, and a few exchanges to be told so.
const UNWANTED_STREAMS: u32 = 8;
/// See `UNWANTED_STREAMS`.
const UNWANTED_WINDOW: u32 = 64 * 1024;

/// A connection. Clones are handles to the same one; it ends when it is closed or when the last handle is gone.
#[derive(Debug, Clone)]
pub struct Connection {
    pub(super) quic: quinn::Connection,
    peer: AuthenticatedPeer,
    /// The exchanges that we have opened.
    exchanges: TaskTracker,
}

impl Connection {
    pub(super) fn new(quic: quinn::Connection, peer: AuthenticatedPeer) -> Self {
        Self { quic, peer, exchanges: TaskTracker::new() }
    }

    /// The ID of who is at the other end.
    pub fn id(&self) -> Id {
        self.peer.id()
    }

    /// Where it is now; a peer may change its address.
    pub fn address(&self) -> SocketAddr {
        canonical(self.quic.remote_address())
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.quic.rtt()
    }

    /// A secret that both ends of this TLS session derive for this label and nobody else can (RFC 8446, 7.5).
    ///
    /// # Errors
    /// [`Closed`] if the library will not: never in practice, for the lengths are constants.
    pub fn export(&self, label: &[u8]) -> Result<[u8; 32], Closed> {
        let mut secret = [0; 32];
        match self.quic.export_keying_material(&mut secret, label, b"") {
            Ok(()) => Ok(secret),
            Err(error) => Err(Closed::Failed(format!("no keying material: {error:?}"))),
        }
    }

    /// What the other side may open from here on: `wanted` peers as much as they need, others enough to be told why not.
    pub fn admit(&self, wanted: bool) {
        let (streams, window) =
            if wanted { (MAX_STREAMS, REQUESTS_WINDOW) } else { (UNWANTED_STREAMS, UNWANTED_WINDOW) };
        self.quic.set_max_concurrent_bi_streams(streams.into());
        self.quic.set_receive_window(window.into());
    }

    /// Counts as one exchange that we have opened, until it is dropped.
    pub(super) fn exchange(&self) -> TaskTrackerToken {
        self.exchanges.token()
    }

    /// Resolves when no exchange runs that we have opened.
    pub async fn unused(&self) {
        self.exchanges.close();
        self.exchanges.wait().await;
    }

    /// Ends the connection and all that runs over it, at once.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.quic.close(code.into(), reason.as_bytes());
    }

    /// Resolves when the connection is over, and why.
    pub async fn closed(&self) -> Closed {
        self.quic.closed().await.into()
    }

    /// Opens the control stream: the dialler's first stream.
    ///
    /// # Errors
    /// [`StreamError::Lost`].
    pub async fn open_control(&self) -> Result<Control, StreamError> {
        let (send, recv) = self.quic.open_bi().await.map_err(|error| StreamError::Lost(error.into()))?;
        Ok(Control { writer: Writer::new(send), reader: Reader::new(recv) })
    }

    /// Waits for the control stream that the dialler opens.
    ///
    /// # Errors
    /// [`StreamError::Lost`].
    pub async fn accept_control(&self) -> Result<Control, StreamError> {
        let (send, recv) = self.quic.accept_bi().await.map_err(|error| StreamError::Lost(error.into()))?;
        Ok(Control { writer: Writer::new(send), reader: Reader::new(recv) })
    }

    /// Waits for the next exchange that the dialler opens.
    ///
    /// # Errors
    /// Why the connection is over.
    pub async fn accept_exchange(&self) -> Result<Incoming, Closed> {
        let (send, recv) = self.quic.accept_bi().await?;
        Ok(Incoming::new(Writer::new(send), Reader::new(recv)))
    }
}

/// The control stream.
#[derive(Debug)]
pub struct Control {
    writer: Writer,
    reader: Reader,
}

/// Why the control stream came to no good end.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What came over it.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// It ended, which a living peer never does.
    #[error("it ended the control stream")]
    Ended,
}

impl Control {
    /// Sends a message.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn send(&mut self, message: &Message) -> Result<(), ControlError> {
        Ok(self.writer.frame(message.encode()?).await?)
    }

    /// The next message. Cancel-safe.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn receive(&mut self) -> Result<Message, ControlError> {
        match self.reader.next().await? {
            Some(Event::Frame(kind, payload)) => Ok(Message::decode(kind, &payload)?),
            Some(Event::Data(_)) => Err(StreamError::Unexpected(crate::wire::frame::Kind::Data).into()),
            None => Err(ControlError::Ended),
        }
    }

    /// Ends our side and waits, bounded, until the peer has all that was sent.
    pub async fn finish(mut self) {
        let heard = self.writer.stopped();
        self.writer.finish();
        let _ = tokio::time::timeout(Duration::from_secs(1), heard).await;
    }
}

/// Why a node ends a connection, as it stands on the wire (QUIC application error codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseCode {
    /// The node stops.
    Goodbye,
    /// The key is revoked there.
    Revoked,
    /// No common version of the protocol.
    Version,
    /// What came was not the protocol.
    Protocol,
    /// A node dialled itself, or a copy of itself.
    SameKey,
    /// A newer connection took this one's place.
    Replaced,
    /// Too many connections.
    Busy,
}

impl CloseCode {
    const ALL: [Self; 7] =
        [Self::Goodbye, Self::Revoked, Self::Version, Self::Protocol, Self::SameKey, Self::Replaced, Self::Busy];

    fn from_wire(wire: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| VarInt::from(*code).into_inner() == wire)
    }
}

impl From<CloseCode> for VarInt {
    fn from(code: CloseCode) -> Self {
        Self::from_u32(match code {
            CloseCode::Goodbye => 0,
            CloseCode::Revoked => 1,
            CloseCode::Version => 2,
            CloseCode::Protocol => 3,
            CloseCode::SameKey => 4,
            CloseCode::Replaced => 5,
            CloseCode::Busy => 6,
        })
    }
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Closed {
    /// The peer closed it: its code and its words, made harmless.
    ByPeer(u64, String),
    /// We closed it.
    ByUs,
    /// Nothing was heard for so long that it counts as dead.
    Silent,
    /// The peer does not know of it: it was started anew.
    Restarted,
    /// TLS or QUIC failed.
    Failed(String),
}

impl Closed {
    /// Whether the peer closed it with this code.
    pub fn is(&self, code: CloseCode) -> bool {
        matches!(self, Self::ByPeer(theirs, _) if *theirs == VarInt::from(code).into_inner())
    }
}

impl From<ConnectionError> for Closed {
    fn from(error: ConnectionError) -> Self {
        match error {
            ConnectionError::ApplicationClosed(close) => {
                Self::ByPeer(close.error_code.into_inner(), printable(&String::from_utf8_lossy(&close.reason)))
            }
            ConnectionError::LocallyClosed => Self::ByUs,
            ConnectionError::TimedOut => Self::Silent,
            ConnectionError::Reset => Self::Restarted,
            // The other side's words, and it has proved no key: only the number is taken.
            ConnectionError::ConnectionClosed(close) => {
                Self::Failed(format!("it ended the connection ({})", close.error_code))
            }
            other => Self::Failed(printable(&other.to_string())),
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // By its code: what it says beside that may be made to deceive.
            Self::ByPeer(code, _) => match CloseCode::from_wire(*code) {
                Some(CloseCode::Goodbye) => f.write_str("peer is shutting down"),
                Some(CloseCode::Revoked) => f.write_str("this node's key is revoked there"),
                Some(CloseCode::Version) => f.write_str("it speaks another version of the protocol"),
                Some(CloseCode::Protocol) => f.write_str("it closed the connection after a protocol error"),
                Some(CloseCode::SameKey) => f.write_str("it has the same key as this node"),
                Some(CloseCode::Replaced) => f.write_str("it closed the connection, since it uses a newer one"),
                Some(CloseCode::Busy) => f.write_str("it has too many connections"),
                None => write!(f, "it closed the connection (code {code})"),
            },
            Self::ByUs => f.write_str("this node closed the connection"),
            Self::Silent => f.write_str("it fell silent"),
            Self::Restarted => f.write_str("it was restarted"),
            Self::Failed(reason) => f.write_str(reason),
        }
    }
}
