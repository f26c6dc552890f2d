//! Somebody who speaks QUIC, and whatever else they like over it.
#![allow(dead_code)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ollana::{Id, NodeName};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rcgen::PublicKeyData as _;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::PrivateKeyDer;
use rustls::sign::CertifiedKey;

use super::node::within;
use super::shown;

// What stands on the wire, written down here once more: an attacker has no use of our constants.
pub const REQUEST: u8 = 0x01;
pub const RESPONSE: u8 = 0x02;
pub const DATA: u8 = 0x03;
pub const END: u8 = 0x04;
pub const ACK: u8 = 0x05;
pub const BROKEN: u8 = 0x06;
pub const TICKET: u8 = 0x07;
pub const HELLO: u8 = 0x20;
pub const REFUSED: u8 = 0x21;
pub const REPORT: u8 = 0x22;
pub const TRUST: u8 = 0x23;

/// A port of our own, and what is shown there.
pub struct Evil {
    pub endpoint: Endpoint,
    config: quinn::ClientConfig,
}

/// A connection of ours, on which a hello was answered.
pub struct Session {
    pub connection: Connection,
    pub say: SendStream,
    pub hear: Frames,
}

/// What comes over a stream, cut into frames.
pub struct Frames {
    pub stream: RecvStream,
    unread: Vec<u8>,
}

/// An answer, as far as it came.
#[derive(Debug)]
pub struct Said {
    pub status: u16,
    pub body: Vec<u8>,
    /// Whether it came to its end.
    pub whole: bool,
}

/// A key of our own with a certificate by the book, and its ID.
pub fn key() -> (CertifiedKey, Id) {
    key_named("localhost")
}

/// The same, with this name in the certificate.
pub fn key_named(name: &str) -> (CertifiedKey, Id) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let id = Id::of_spki(&pair.subject_public_key_info());
    let certificate = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&pair).unwrap();
    let private = PrivateKeyDer::try_from(pair.serialize_der()).unwrap();
    let signing = aws_lc_rs::sign::any_supported_type(&private).unwrap();
    (CertifiedKey::new(vec![certificate.der().clone()], signing), id)
}

/// A frame.
pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&[kind], &length[1..], payload].concat()
}

/// The payload of a request's head.
pub fn head(method: &str, target: &str, fields: &[(&str, &str)], has_body: bool) -> Vec<u8> {
    let mut out = vec![u8::from(has_body), u8::try_from(method.len()).unwrap()];
    out.extend(method.as_bytes());
    out.extend(u32::try_from(target.len()).unwrap().to_be_bytes());
    out.extend(target.as_bytes());
    for (name, value) in fields {
        out.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
        out.extend(name.as_bytes());
        out.extend(u32::try_from(value.len()).unwrap().to_be_bytes());
        out.extend(value.as_bytes());
    }
    out
}

/// A hello in this name.
pub fn hello(name: &str) -> Vec<u8> {
    let instance = ollana::internals::id::Instance::random();
    let hello = ollana::internals::wire::control::Hello::of(NodeName::lossy(name), instance);
    frame(HELLO, &serde_json::to_vec(&hello).unwrap())
}

// === impl Evil ===

impl Evil {
    /// Somebody with a key of their own.
    pub fn new() -> Self {
        Self::showing(Some(key().0))
    }

    /// Somebody who shows this, or nothing.
    pub fn showing(shown: Option<CertifiedKey>) -> Self {
        Self::with(shown::client(shown, default_provider()))
    }

    /// Somebody who speaks TLS like this.
    pub fn with(config: rustls::ClientConfig) -> Self {
        Self::speaking(Arc::new(QuicClientConfig::try_from(config).unwrap()))
    }

    /// Somebody who does TLS their own way.
    pub fn speaking(crypto: Arc<dyn quinn::crypto::ClientConfig>) -> Self {
        let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        Self { endpoint, config: quinn::ClientConfig::new(crypto) }
    }

    /// Takes so many bytes of each stream, and no more before those are read.
    pub fn hearing(mut self, bytes: u32) -> Self {
        let mut transport = quinn::TransportConfig::default();
        transport.stream_receive_window(bytes.into());
        self.config.transport_config(Arc::new(transport));
        self
    }

    /// From another address of this machine.
    pub fn at(mut self, address: Ipv4Addr) -> Self {
        self.endpoint = Endpoint::client((address, 0).into()).unwrap();
        self
    }

    /// Dials. That it succeeds says only that we are content.
    pub async fn dial(&self, node: SocketAddr) -> Result<Connection, ConnectionError> {
        within(self.endpoint.connect_with(self.config.clone(), node, "ollana").unwrap()).await
    }

    /// Dials, says hello in this name, and waits for an answer.
    pub async fn meet(&self, node: SocketAddr, name: &str) -> Result<Session, ConnectionError> {
        let connection = self.dial(node).await?;
        let opened = within(connection.open_bi()).await;
        let (mut say, hear) = opened?;
        let _ = say.write_all(&hello(name)).await;
        let mut hear = Frames::of(hear);
        match within(hear.next()).await {
            Some((HELLO, _)) => Ok(Session { connection, say, hear }),
            Some((kind, payload)) => panic!("{kind:#x}: {}", String::from_utf8_lossy(&payload)),
            None => Err(within(connection.closed()).await),
        }
    }

    /// The reason why a node will not even be greeted by us.
    pub async fn is_turned_away(&self, node: SocketAddr) -> String {
        match self.meet(node, "evil").await {
            Ok(_) => panic!("it was let in"),
            Err(error) => error.to_string(),
        }
    }
}

// === impl Session ===

impl Session {
    /// One exchange, read to its end or its break.
    pub async fn ask(&self, method: &str, target: &str, fields: &[(&str, &str)], body: &[u8]) -> Option<Said> {
        let mut bytes = frame(REQUEST, &head(method, target, fields, !body.is_empty()));
        if !body.is_empty() {
            bytes.extend(frame(DATA, body));
            bytes.extend(frame(END, &[]));
        }
        self.send(&bytes).await
    }

    /// Any bytes on a stream of their own, and what comes back.
    pub async fn send(&self, bytes: &[u8]) -> Option<Said> {
        let (mut send, recv) = within(self.connection.open_bi()).await.ok()?;
        let _ = send.write_all(bytes).await;
        let _ = send.finish();
        within(Frames::of(recv).answer()).await
    }
}

// === impl Frames ===

impl Frames {
    pub fn of(stream: RecvStream) -> Self {
        Self { stream, unread: Vec::new() }
    }

    /// The next frame; nothing at the stream's end, however it ended.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some((header, rest)) = self.unread.split_first_chunk::<4>() {
                let length = u32::from_be_bytes([0, header[1], header[2], header[3]]) as usize;
                if rest.len() >= length {
                    let (kind, payload) = (header[0], rest[..length].to_vec());
                    self.unread.drain(..4 + length);
                    return Some((kind, payload));
                }
            }
            let chunk = self.stream.read_chunk(64 * 1024, true).await.ok()??;
            self.unread.extend_from_slice(&chunk.bytes);
        }
    }

    /// An answer, if there is one.
    pub async fn answer(&mut self) -> Option<Said> {
        let mut said = None;
        while let Some((kind, payload)) = self.next().await {
            match (kind, &mut said) {
                (RESPONSE, None) => {
                    let status = u16::from_be_bytes([payload[1], payload[2]]);
                    said = Some(Said { status, body: Vec::new(), whole: payload[0] & 1 == 0 });
                }
                (DATA, Some(said)) => said.body.extend(payload),
                (END, Some(said)) => said.whole = true,
                _ => {}
            }
        }
        said
    }
}

// === impl Said ===

impl Said {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
