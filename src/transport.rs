//! The only user of quinn: one UDP socket, connections whose two ends have proved their keys, and what goes over them.
//!
//! - here: the endpoint; [`Transport::dial`] and [`Transport::accept`].
//! - [`connection`]: one connection, its control stream, its exchanges.
//! - [`stream`]: frames over a QUIC stream, and bodies over frames.
//! - [`pulse`]: how a peer is: whether it speaks, and what it owes.
//! - [`reach`]: why a dial got no answer.
//! - [`remote`]: the user's side of exchanges; a remote peer is an [`Endpoint`](crate::exchange::Endpoint).
//! - [`incoming`]: the provider's side of an exchange.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{AckFrequencyConfig, EndpointConfig, IdleTimeout, TokioRuntime, TransportConfig, VarInt};
use quinn_proto::HashedConnectionIdGenerator;
use socket2::{Domain, Protocol, Socket, Type};

use crate::identity::Identity;
use crate::tls::{self, AuthenticatedPeer, TlsError};

pub mod connection;
pub mod incoming;
pub mod pulse;
pub mod reach;
pub mod remote;
pub mod stream;

pub use connection::{CloseCode, Closed, Connection};
pub use incoming::Incoming;
pub use pulse::Pulse;
pub use reach::Unreached;
pub use remote::Remote;

/// A running answer ends after this much silence. Long enough for a laptop to change its Wi-Fi.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Asked after so much silence whether the other side is still there. The provider's heartbeat speaks more often, so it is
/// sent only where something is wrong: QUIC counts the idle time from it, so answers end 15 to 17 s after the silence
/// began, and a peer that was started anew can say so.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// A LAN answers within this; quinn's 333 ms, meant for the internet, would pace the first packets and slow the first
/// retransmission. A longer path corrects it with the first sample.
const INITIAL_RTT: Duration = Duration::from_millis(10);
/// What may be on its way before the first acknowledgement, and for a stream of tokens, which never fills a window, for
/// good. While a network is cut an answer goes on being sent into the silence. Once that has filled the window quinn sends
/// nothing more, acknowledgements included, but a probe after ever longer waits, and the connection is given up although
/// the network is whole again (shown by `tests/hosts`: 14 kB, the default, are over after a few seconds). This is the
/// longest silence ([`IDLE_TIMEOUT`]) of ten answers at 40 tokens a second, and on a LAN of 1 Gbit/s 8 ms.
const INITIAL_WINDOW: u64 = 1024 * 1024;
/// What one request may have in flight before its reader has taken it: 1 MiB is the bandwidth-delay product of
/// 10 Gbit/s at 0.8 ms, for blobs of many GB. Also the bound on what a slow reader makes us hold.
const REQUEST_WINDOW: u32 = 1024 * 1024;
/// What one answer may have in flight before the application has taken it: 1 Gbit/s at 2 ms. Answers are words; what is
/// large goes the other way.
const ANSWER_WINDOW: u32 = 256 * 1024;
/// What all answers of one provider may have in flight. Far above `ANSWER_WINDOW` for each reader that stalls, or they
/// would stop the others and the reports, and the provider would seem to be silent (half a hundred stalled downloads did
/// so when this was 48 MiB). What is held is what our own applications do not read.
const ANSWERS_WINDOW: u32 = 256 * 1024 * 1024;
/// What a caller may have in flight before it has said hello: one hello.
const STRANGER_WINDOW: u32 = 16 * 1024;
/// What we hold for one connection until it is acknowledged.
const SEND_WINDOW: u64 = 8 * 1024 * 1024;
/// Socket buffers of several MB take 64 concurrent requests from 7.5 k/s to 18.8 k/s; the kernel caps what it will not
/// give (`net.core.rmem_max`), which `ollana doctor` shows.
const SOCKET_BUFFER: usize = 4 * 1024 * 1024;
/// Handshakes that may wait to be looked at before further ones are refused.
const MAX_WAITING_HANDSHAKES: usize = 256;
/// What is kept of datagrams for a handshake that nobody has looked at yet, for one and for all: more than any first
/// flight. quinn's own bounds are 10 and 100 MiB, of any stranger's choosing.
const WAITING_BYTES: u64 = 16 * 1024;
/// See [`WAITING_BYTES`].
const ALL_WAITING_BYTES: u64 = 1024 * 1024;
/// How long a handshake may take. A LAN needs milliseconds; a lossy one some retransmissions.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// The node's end of all its QUIC connections.
#[derive(Debug, Clone)]
pub struct Transport {
    endpoint: quinn::Endpoint,
    client: quinn::ClientConfig,
}

/// Why there is no transport.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The keys or the cipher suites.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The cipher suites do not serve for QUIC.
    #[error("TLS does not fit QUIC: {0}")]
    Suite(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address cannot be dialled at all.
    #[error("cannot dial it: {0}")]
    Address(#[from] quinn::ConnectError),
    /// The handshake failed.
    #[error("{}", connection::Closed::from(.0.clone()))]
    Handshake(#[from] quinn::ConnectionError),
    /// Nobody answered.
    #[error("no answer within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// The certificate is not one of ours.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

// === impl ConnectError ===

impl ConnectError {
    /// Whether nothing came back, rather than a no.
    pub fn is_silence(&self) -> bool {
        matches!(self, Self::TimedOut | Self::Handshake(quinn::ConnectionError::TimedOut))
    }
}

/// A UDP socket for [`Transport::new`], with buffers for a LAN. An IPv6 address takes IPv4 as well where the system can.
///
/// # Errors
/// As the system says, above all that the address is taken.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // The kernel gives what it may; less is slower, not wrong.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.bind(&address.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

impl Transport {
    /// Starts QUIC on `socket`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`TransportError`], only if the machine or the build is at fault.
    pub fn new(identity: &Identity, socket: UdpSocket) -> Result<Self, TransportError> {
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls::client_config(identity)?)?));
        // Whom we dial answers on our streams and opens none.
        client.transport_config(Arc::new(transport_config(0, ANSWER_WINDOW, ANSWERS_WINDOW)));
        let mut server =
            quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls::server_config(identity)?)?));
        // Whoever dials us has its control stream; [`Connection::admit`] gives it more.
        server
            .transport_config(Arc::new(transport_config(1, REQUEST_WINDOW, STRANGER_WINDOW)))
            .max_incoming(MAX_WAITING_HANDSHAKES)
            .incoming_buffer_size(WAITING_BYTES)
            .incoming_buffer_size_total(ALL_WAITING_BYTES);

        // A node that was killed and comes back can tell its peers that their connections are over (RFC 9000 §10.3),
        // since neither the key of that message nor the one that marks its connection IDs changes with the run.
        let reset_key = hmac::Key::new(hmac::HMAC_SHA256, &identity.reset_key());
        let mark = hmac::sign(&reset_key, b"ollana connection ids");
        let mark = mark.as_ref().first_chunk().copied().map_or(0, u64::from_be_bytes);
        let mut config = EndpointConfig::new(Arc::new(reset_key));
        config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(mark)));
        let endpoint = quinn::Endpoint::new(config, Some(server), socket, Arc::new(TokioRuntime))?;
        Ok(Self { endpoint, client })
    }

    /// Where the socket is bound.
    ///
    /// # Errors
    /// As the system says.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Dials an address; who answers there is known when it has proved its key, not before.
    ///
    /// # Errors
    /// [`ConnectError`]. Dropping the future gives up.
    pub async fn dial(&self, address: SocketAddr) -> Result<Connection, ConnectError> {
        // The name is a formality: no verifier looks at names, and it keeps real ones off the wire.
        let connecting = self.endpoint.connect_with(self.client.clone(), address, tls::SERVER_NAME)?;
        finish(connecting).await
    }

    /// The next stranger at the door, or `None` once the transport is closed.
    pub async fn accept(&self) -> Option<Stranger> {
        self.endpoint.accept().await.map(Stranger)
    }

    /// Says goodbye on every connection and waits, bounded, until the peers have heard it.
    pub async fn close(&self) {
        self.endpoint.close(CloseCode::Goodbye.into(), b"this node stops");
        let _ = tokio::time::timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
    }
}

/// Someone who sent a first packet: from an address that may be forged, with a key that is not known.
#[derive(Debug)]
pub struct Stranger(quinn::Incoming);

impl Stranger {
    /// Where the packet says that it comes from.
    pub fn address(&self) -> SocketAddr {
        canonical(self.0.remote_address())
    }

    /// Whether packets that are sent there arrive: it has given the proof that [`Stranger::prove_address`] asks for.
    pub fn has_proved_address(&self) -> bool {
        self.0.remote_address_validated()
    }

    /// Lets the handshake go on until the key is proved.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn shake_hands(self) -> Result<Connection, ConnectError> {
        finish(self.0.accept()?).await
    }

    /// Asks for proof of the address first (RFC 9000 §8.1.2), which costs us no memory. Gives back who has given it already.
    pub fn prove_address(self) -> Option<Self> {
        self.0.retry().err().map(|proved| Self(proved.into_incoming()))
    }

    /// Turns it away in one packet.
    pub fn refuse(self) {
        self.0.refuse();
    }
}

async fn finish(connecting: quinn::Connecting) -> Result<Connection, ConnectError> {
    let quic = tokio::time::timeout(HANDSHAKE_TIMEOUT, connecting).await.map_err(|_| ConnectError::TimedOut)??;
    let certificates =
        quic.peer_identity().and_then(|any| any.downcast::<Vec<rustls::pki_types::CertificateDer<'_>>>().ok());
    let peer = AuthenticatedPeer::from_handshake(certificates.as_deref().map_or(&[], Vec::as_slice))?;
    Ok(Connection::new(quic, peer))
}

/// Settings of connections on which the other side may open so many streams, and have so much in flight on each and on
/// all of them.
fn transport_config(streams: u32, stream_window: u32, window: u32) -> TransportConfig {
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(
            u32::try_from(IDLE_TIMEOUT.as_millis()).unwrap_or(u32::MAX),
        ))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        // Nothing uses them.
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .stream_receive_window(VarInt::from_u32(stream_window))
        .receive_window(VarInt::from_u32(window))
        .send_window(SEND_WINDOW);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(INITIAL_WINDOW);
    config.congestion_controller_factory(Arc::new(congestion));
    let mut acks = AckFrequencyConfig::default();
    // Fewer acknowledgements on a network that loses little: measured at 10 (`benches/exchange.rs`).
    acks.ack_eliciting_threshold(VarInt::from_u32(10));
    config.ack_frequency_config(Some(acks));
    config
}

/// An address as people write it: IPv4 inside an IPv6 socket is IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => v6.ip().to_ipv4_mapped().map_or(address, |v4| SocketAddr::from((v4, v6.port()))),
        SocketAddr::V4(_) => address,
    }
}
