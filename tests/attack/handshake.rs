//! Who somebody is, is the key that signed the handshake, and nothing that they say of themselves.

use std::any::Any;
use std::io::Cursor;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ollana::internals::id::Use;
use ollana::internals::peers::PeerState;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::crypto::{ExportKeyingMaterialError, KeyPair, Keys, PacketKey, Session};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{ConnectError, ConnectionId, Side, TransportError};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};

use super::evil::{Evil, key};
use super::fake_ollama::FakeOllama;
use super::node::{Node, node, read, until, within};
use super::shown::{self, certificates, rudely, shows};
use super::stranger::{Stranger, lends};

/// A node that lends, and whose Ollama answers.
pub async fn lender(ollama: &FakeOllama) -> Node {
    let provider = node("gpu1").lends(ollama).start().await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    provider
}

/// Nothing of the attack shows: nobody is known, nothing has come to Ollama, and who comes properly is let in.
async fn is_untouched(provider: &Node, ollama: &FakeOllama) {
    assert!(provider.view().peers().is_empty(), "{:?}", provider.view().peers());
    assert_eq!(ollama.counts().of("/api/generate"), 0);
    Evil::new().meet(provider.mesh, "honest").await.map(drop).expect("who has a key is let in");
}

/// Somebody who shows this is refused because of this, and leaves no trace.
async fn refused(shown: Option<rustls::sign::CertifiedKey>, why: &str) {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let reason = Evil::showing(shown).is_turned_away(provider.mesh).await;
    assert!(reason.contains(why), "{reason}");
    is_untouched(&provider, &ollama).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attackers_key_with_a_victims_name_gets_nothing_of_the_victims() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let victim = node("laptop").dials(provider.mesh).start().await;
    victim.until_lent(provider.id(), "m").await;
    // Name in the hello, in the certificate, and in every header that might be believed.
    let (shown, id) = super::evil::key_named("laptop");
    let attacker = Evil::showing(Some(shown)).meet(provider.mesh, "laptop").await.unwrap();
    let fields = [("ollana-peer", "gpu1"), ("from", "laptop"), ("x-forwarded-for", "127.0.0.1")];
    let said = attacker.ask("POST", "/api/generate", &fields, br#"{"model":"m","prompt":"x"}"#).await.unwrap();
    assert_eq!(said.status, 403, "{}", said.text());
    assert_eq!(ollama.counts().of("/api/generate"), 0);
    let named = |id| provider.peer(id).map(|peer| peer.name.to_string());
    assert_ne!(named(id).as_deref(), Some("laptop"), "a name that is taken is not shown again");
    assert_eq!(named(victim.id()).as_deref(), Some("laptop"));
    // The victim is what it was.
    let (status, _) = read(victim.post("/api/generate", &super::node::prompt("m", 1)).await).await;
    assert_eq!(status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_victims_certificate_without_its_key_is_refused() {
    refused(Some(rudely(shows("good", "other"))), "BadSignature").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_certificate_is_refused() {
    refused(None, "certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_certificates_are_refused() {
    let mut two = shows("good", "good");
    two.cert.extend(certificates("other"));
    refused(Some(two), "NotOneCertificate(2)").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_rsa_key_is_refused() {
    refused(Some(rudely(shows("rsa", "rsa"))), "ApplicationVerificationFailure").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_p256_key_is_refused() {
    refused(Some(rudely(shows("p256", "p256"))), "ApplicationVerificationFailure").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_critical_extension_is_refused() {
    refused(Some(shows("critical-extension", "critical-extension")), "UnsupportedCriticalExtension").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_certificate_is_as_good_as_any_for_dates_mean_nothing() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let expired = Evil::showing(Some(shows("expired", "expired"))).meet(provider.mesh, "old").await.unwrap();
    let said = expired.ask("GET", "/api/version", &[], b"").await.unwrap();
    assert_eq!(said.status, 200);
    provider.until_peer(shown::id("expired"), |peer| peer.name.to_string() == "old").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_alpn_or_none_is_refused() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    for protocols in [vec![], vec![b"h3".to_vec()], vec![b"ollana/0".to_vec(), b"OLLANA/1".to_vec()]] {
        let mut config = shown::client(Some(key().0), default_provider());
        config.alpn_protocols = protocols;
        let reason = Evil::with(config).is_turned_away(provider.mesh).await;
        assert!(reason.contains("120") || reason.to_lowercase().contains("application"), "{reason}");
    }
    is_untouched(&provider, &ollama).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_1_2_is_refused() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let reason = Evil::speaking(Arc::new(Old)).is_turned_away(provider.mesh).await;
    assert!(reason.contains("aborted by peer") && reason.contains("cryptographic"), "{reason}");
    is_untouched(&provider, &ollama).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn early_data_and_saved_tickets_are_of_no_use() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    // One configuration for all, so that whatever is handed out is kept in it.
    let evil = Evil::new();
    let config = {
        let config = shown::client(Some(key().0), default_provider());
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
    };
    for _ in 0..3 {
        let connecting = evil.endpoint.connect_with(config.clone(), provider.mesh, "ollana").unwrap();
        // quinn gives early data whenever there is a ticket that allows it.
        let connecting = connecting.into_0rtt().map(drop).expect_err("a ticket was kept, and is used");
        let connection = within(connecting).await.unwrap();
        let handshake = connection.handshake_data().unwrap();
        let handshake = handshake.downcast::<quinn::crypto::rustls::HandshakeData>().unwrap();
        assert_eq!(handshake.protocol.as_deref(), Some(&b"ollana/1"[..]));
        // A whole hello and its answer, so that tickets had time to come.
        let (mut say, hear) = connection.open_bi().await.unwrap();
        say.write_all(&super::evil::hello("eager")).await.unwrap();
        assert!(within(super::evil::Frames::of(hear).next()).await.is_some());
        connection.close(0u32.into(), b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_claimed_in_headers_or_body_is_nobodys() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).paired().start().await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    // Somebody is trusted with all there is; who they are is no secret, for beacons say it.
    let boss = Stranger::new("boss");
    provider.trust(boss.id, ollana::internals::id::Scope::Manage).await;
    let attacker = Evil::new().meet(provider.mesh, "boss").await.unwrap();
    let id = boss.id.to_string();
    let fields = [
        ("ollana-peer", id.as_str()),
        ("ollana-id", &id),
        ("ollana-scope", "manage"),
        ("authorization", "Bearer manage"),
        ("x-forwarded-user", "boss"),
        ("forwarded", "for=127.0.0.1"),
        ("host", "127.0.0.1:11434"),
        ("origin", "http://localhost"),
    ];
    for (method, path) in [("POST", "/api/generate"), ("DELETE", "/api/delete"), ("GET", "/api/tags")] {
        let body = format!(r#"{{"model":"m","prompt":"x","id":"{id}","scope":"manage","peer":"{id}"}}"#);
        let body = if method == "GET" { "" } else { &body };
        let said = attacker.ask(method, path, &fields, body.as_bytes()).await.unwrap();
        assert_eq!(said.status, 403, "{method} {path}: {}", said.text());
    }
    let counts = ollama.counts();
    assert!(["/api/generate", "/api/delete"].iter().all(|path| counts.of(path) == 0), "{:?}", counts.requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_squats_on_a_name_is_used_for_nothing_once_the_real_one_was_met() {
    let ollama = FakeOllama::start(&["m"]).await;
    let real = lender(&ollama).await;
    let squatter = Stranger::new("GPU1");
    let user = node("laptop").dials(real.mesh).start().await;
    user.until_lent(real.id(), "m").await;
    // It comes with the same name in other letters, and has a model that the real one has not.
    let _met = within(squatter.dial(user.mesh)).await;
    let mut back = within(squatter.accept_politely()).await;
    back.control.send(&lends("bait")).await.unwrap();
    let peer = user.until_lent(squatter.id, "bait").await;
    assert_eq!((peer.use_, peer.state), (Use::Pending, PeerState::Connected));
    for path in ["/api/generate", "/@gpu1/api/generate", "/@GPU1/api/generate"] {
        let (status, why) = read(user.post(path, &super::node::prompt("bait", 1)).await).await;
        assert!(matches!(status.as_u16(), 404 | 503), "{path}: {status} {why}");
    }
    let answer = user.post("/@gpu1/api/generate", &super::node::prompt("m", 1)).await;
    assert_eq!(answer.headers()["ollana-peer"], "gpu1");
    assert_eq!(read(answer).await.0, 200);
    let asked = tokio::time::timeout(Duration::from_millis(100), back.connection.accept_exchange()).await;
    assert!(asked.is_err(), "the squatter was asked something");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_with_control_and_bidirectional_characters_are_harmless_wherever_they_are_shown() {
    let provider = node("gpu1").start().await;
    let (shown, id) = key();
    let evil = Evil::showing(Some(shown));
    let connection = evil.dial(provider.mesh).await.unwrap();
    let (mut say, hear) = connection.open_bi().await.unwrap();
    let name = "gpu1\u{1b}]0;owned\u{7}\u{202e}\u{2066}\u{200b}\r\n<script>";
    let hello = serde_json::json!({
        "protocol": 1, "oldest_protocol": 1, "name": name, "instance": 7, "version": "9\u{1b}[2J\u{202e}",
    });
    say.write_all(&super::evil::frame(super::evil::HELLO, hello.to_string().as_bytes())).await.unwrap();
    let mut hear = super::evil::Frames::of(hear);
    let answer = within(hear.next()).await;
    assert!(answer.is_some_and(|(kind, _)| kind == super::evil::HELLO));
    let peer = provider.until_peer(id, |_| true).await;
    let shown = format!("{} {}", peer.name, peer.version);
    let odd = |c: char| c.is_control() || "\u{200b}\u{202e}\u{2066}<".contains(c);
    assert!(!shown.chars().any(odd), "{shown:?}");
    let page: String = {
        let address: SocketAddr = provider.view().info().status_page.unwrap();
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        text
    };
    assert!(!page.contains('\u{1b}') && !page.contains('\u{202e}') && !page.contains("<script>"), "{page}");
}

/// TLS 1.3 as QUIC wants it, but for the first message, which is one of TLS 1.2.
struct Old;

struct OldSession {
    real: Box<dyn Session>,
    said: bool,
}

impl quinn::crypto::ClientConfig for Old {
    fn start_session(
        self: Arc<Self>,
        version: u32,
        server_name: &str,
        params: &TransportParameters,
    ) -> Result<Box<dyn Session>, ConnectError> {
        let config = QuicClientConfig::try_from(shown::client(Some(key().0), default_provider())).unwrap();
        let real = Arc::new(config).start_session(version, server_name, params)?;
        Ok(Box::new(OldSession { real, said: false }))
    }
}

/// The first message of a client that knows nothing later than TLS 1.2, without the head of its record.
fn hello_of_1_2() -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(shown::takes_anything())
        .with_no_client_auth();
    let mut client = ClientConnection::new(Arc::new(config), ServerName::try_from("ollana").unwrap()).unwrap();
    let mut record = Cursor::new(Vec::new());
    client.write_tls(&mut record).unwrap();
    record.into_inner().split_off(5)
}

impl Session for OldSession {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.real.initial_keys(dst_cid, side)
    }
    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        self.real.handshake_data()
    }
    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.real.peer_identity()
    }
    fn early_crypto(&self) -> Option<(Box<dyn quinn::crypto::HeaderKey>, Box<dyn PacketKey>)> {
        self.real.early_crypto()
    }
    fn early_data_accepted(&self) -> Option<bool> {
        self.real.early_data_accepted()
    }
    fn is_handshaking(&self) -> bool {
        self.real.is_handshaking()
    }
    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.real.read_handshake(buf)
    }
    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.real.transport_parameters()
    }
    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let before = buf.len();
        let keys = self.real.write_handshake(buf);
        if !std::mem::replace(&mut self.said, true) {
            buf.truncate(before);
            buf.extend(hello_of_1_2());
        }
        keys
    }
    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.real.next_1rtt_keys()
    }
    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.real.is_valid_retry(orig_dst_cid, header, payload)
    }
    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        self.real.export_keying_material(output, label, context)
    }
}
