//! The TLS between nodes: each bad kind of peer is refused as a client and as a server, the good one is known by its key.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

mod peers;
mod quic;

use std::io::Cursor;
use std::sync::Arc;

use ollana::internals::identity::Identity;
use ollana::internals::tls::{AuthenticatedPeer, TlsError, client_config, server_config};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::ServerName;
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, ClientConnection, Error, HandshakeKind, NamedGroup, PeerIncompatible, ServerConfig,
    ServerConnection, SignatureScheme,
};

use peers::{Done, Refused, certificates, claiming, client, handshake, id, rudely, server, shows};

struct Node {
    identity: Identity,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

fn node() -> Node {
    let identity = Identity::ephemeral().unwrap();
    let (client, server) = (client_config(&identity).unwrap(), server_config(&identity).unwrap());
    Node { identity, client, server }
}

/// Dials a node as a peer that shows `key`.
fn dial(node: &Node, key: CertifiedKey) -> Result<Done, Refused> {
    handshake(&Arc::new(client(Some(key), default_provider())), &node.server)
}

/// Is dialled by a node as a peer that shows `key`.
fn be_dialled(node: &Node, key: CertifiedKey) -> Result<Done, Refused> {
    handshake(&node.client, &Arc::new(server(key)))
}

/// Why a node refuses a peer that shows `key`: as a client and as a server, and it is always the node that does.
fn refusals(key: &CertifiedKey) -> [Error; 2] {
    let node = node();
    let Err(Refused::ByServer(as_client)) = dial(&node, key.clone()) else { panic!("not refused as a client") };
    let Err(Refused::ByClient(as_server)) = be_dialled(&node, key.clone()) else { panic!("not refused as a server") };
    [as_client, as_server]
}

#[test]
fn nodes_know_each_other_by_their_keys() {
    let (a, b) = (node(), node());
    let done = handshake(&a.client, &b.server).unwrap();
    let seen_by = |certificates: Option<&[_]>| AuthenticatedPeer::from_handshake(certificates.unwrap()).unwrap().id();
    assert_eq!(seen_by(done.client.peer_certificates()), b.identity.id());
    assert_eq!(seen_by(done.server.peer_certificates()), a.identity.id());
    assert_eq!(done.server.alpn_protocol(), Some(&b"ollana/1"[..]));
    assert_eq!(done.server.server_name(), None, "no name is sent");
}

#[test]
fn a_peer_is_its_key_whatever_names_dates_and_extensions_its_certificate_has() {
    let node = node();
    for name in ["good", "other", "expired", "named", "extension"] {
        let done = dial(&node, shows(name, name)).unwrap();
        let peer = AuthenticatedPeer::from_handshake(done.server.peer_certificates().unwrap()).unwrap();
        assert_eq!(peer.id(), id(name));
        let done = be_dialled(&node, shows(name, name)).unwrap();
        let peer = AuthenticatedPeer::from_handshake(done.client.peer_certificates().unwrap()).unwrap();
        assert_eq!(peer.id(), id(name));
    }
}

#[test]
fn keys_that_are_not_ed25519_are_refused() {
    for name in ["rsa", "p256"] {
        let expected = Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure);
        assert_eq!(refusals(&rudely(shows(name, name))), [expected.clone(), expected]);
        // A peer that minds what it was offered does not get that far.
        let node = node();
        assert!(dial(&node, shows(name, name)).is_err());
        assert!(be_dialled(&node, shows(name, name)).is_err());
    }
}

#[test]
fn someone_elses_certificate_without_its_key_is_refused() {
    let expected = Error::InvalidCertificate(CertificateError::BadSignature);
    assert_eq!(refusals(&rudely(shows("good", "other"))), [expected.clone(), expected]);
    // With a key of another kind: the scheme gives it away.
    let expected = Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon);
    assert_eq!(refusals(&rudely(shows("good", "p256"))), [expected.clone(), expected]);
}

#[test]
fn a_signature_under_a_scheme_that_was_not_offered_is_refused() {
    let key = claiming(shows("good", "good"), SignatureScheme::ECDSA_NISTP256_SHA256);
    let expected = Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon);
    assert_eq!(refusals(&key), [expected.clone(), expected]);
}

#[test]
fn an_unknown_critical_extension_is_refused() {
    for error in refusals(&shows("critical-extension", "critical-extension")) {
        assert!(error.to_string().contains("UnsupportedCriticalExtension"), "{error}");
    }
}

#[test]
fn more_than_one_certificate_is_refused() {
    let mut twice = shows("good", "good");
    twice.cert.extend(certificates("good"));
    for key in [shows("chain", "chain"), twice] {
        for error in refusals(&key) {
            assert!(error.to_string().contains("NotOneCertificate(2)"), "{error}");
        }
    }
}

#[test]
fn what_is_no_certificate_is_refused() {
    let good = certificates("good")[0].to_vec();
    let mut longer = good.clone();
    longer.push(0);
    for bytes in [vec![], good[..good.len() / 2].to_vec(), longer] {
        let mut key = shows("good", "good");
        key.cert = vec![bytes.into()];
        assert!(refusals(&rudely(key)).iter().all(|error| matches!(error, Error::InvalidCertificate(_))));
    }
}

#[test]
fn a_client_without_a_certificate_is_refused() {
    let refused = handshake(&Arc::new(client(None, default_provider())), &node().server);
    assert!(matches!(refused, Err(Refused::ByServer(Error::NoCertificatesPresented))), "{refused:?}");
}

#[test]
fn certificates_alone_make_no_peer_unless_they_are_one_of_a_node() {
    assert!(matches!(AuthenticatedPeer::from_handshake(&[]), Err(TlsError::NotOneCertificate(0))));
    let chain = certificates("chain");
    assert!(matches!(AuthenticatedPeer::from_handshake(&chain), Err(TlsError::NotOneCertificate(2))));
    for name in ["rsa", "p256", "critical-extension"] {
        let refused = AuthenticatedPeer::from_handshake(&certificates(name));
        assert!(matches!(refused, Err(TlsError::Certificate(_))), "{name}");
    }
}

#[test]
fn another_alpn_or_none_is_refused_on_both_sides() {
    let node = node();
    for protocols in [vec![], vec![b"h3".to_vec()], vec![b"ollana/2".to_vec()], vec![b"ollana/1 ".to_vec()]] {
        let mut config = client(Some(shows("good", "good")), default_provider());
        config.alpn_protocols = protocols.clone();
        let refused = handshake(&Arc::new(config), &node.server);
        assert!(matches!(refused, Err(Refused::ByServer(Error::NoApplicationProtocol))), "{refused:?}");

        let mut config = server(shows("good", "good"));
        config.alpn_protocols = protocols;
        // A server that shares no protocol should refuse itself; one that chooses none is refused by the node.
        let refused = handshake(&node.client, &Arc::new(config));
        let (Err(Refused::ByClient(error)) | Err(Refused::ByServer(error))) = refused else { panic!("not refused") };
        assert_eq!(error, Error::NoApplicationProtocol);
    }
}

#[test]
fn tls_1_2_is_refused_on_both_sides() {
    // Over TCP's form of TLS, as QUIC cannot even say 1.2.
    let node = node();
    let name = ServerName::try_from("ollana").unwrap();
    let old = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(peers::takes_anything())
        .with_client_cert_resolver(client(Some(shows("good", "good")), default_provider()).client_auth_cert_resolver);
    let mut client = ClientConnection::new(Arc::new(old), name.clone()).unwrap();
    let mut server = ServerConnection::new(node.server.clone()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    server.read_tls(&mut Cursor::new(hello)).unwrap();
    let refused = server.process_new_packets().unwrap_err();
    assert!(matches!(refused, Error::PeerIncompatible(_)), "{refused:?}");

    let old = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(peers::server(shows("good", "good")).cert_resolver);
    let mut client = ClientConnection::new(node.client, name).unwrap();
    let mut server = ServerConnection::new(Arc::new(old)).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    server.read_tls(&mut Cursor::new(hello)).unwrap();
    let refused = server.process_new_packets().unwrap_err();
    assert!(matches!(refused, Error::PeerIncompatible(_)), "a node does not offer 1.2: {refused:?}");
}

#[test]
fn the_key_exchange_is_hybrid_at_the_first_try() {
    let (a, b) = (node(), node());
    let done = handshake(&a.client, &b.server).unwrap();
    for (group, kind) in [
        (done.client.negotiated_key_exchange_group(), done.client.handshake_kind()),
        (done.server.negotiated_key_exchange_group(), done.server.handshake_kind()),
    ] {
        assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
        assert_eq!(kind, Some(HandshakeKind::Full));
    }
}

#[test]
fn of_the_classical_exchanges_only_x25519_is_taken() {
    let node = node();
    let with = |group| {
        let mut provider = default_provider();
        provider.kx_groups = vec![group];
        handshake(&Arc::new(client(Some(shows("good", "good")), provider)), &node.server)
    };
    let done = with(kx_group::X25519).unwrap();
    assert_eq!(done.server.negotiated_key_exchange_group().unwrap().name(), NamedGroup::X25519);
    assert!(matches!(with(kx_group::SECP256R1), Err(Refused::ByServer(Error::PeerIncompatible(_)))));
}

#[test]
fn nobody_comes_back_with_a_ticket() {
    let node = node();
    // A client that would like to resume, at a node.
    let eager = Arc::new(client(Some(shows("good", "good")), default_provider()));
    for _ in 0..3 {
        let done = handshake(&eager, &node.server).unwrap();
        assert_eq!(done.client.tls13_tickets_received(), 0);
        assert_eq!(done.server.handshake_kind(), Some(HandshakeKind::Full));
        assert!(done.client.zero_rtt_keys().is_none());
    }
    // A node, at a server that hands out tickets.
    let generous = Arc::new(server(shows("good", "good")));
    for _ in 0..3 {
        let done = handshake(&node.client, &generous).unwrap();
        assert!(done.client.tls13_tickets_received() > 0, "the server does offer them");
        assert_eq!(done.client.handshake_kind(), Some(HandshakeKind::Full));
    }
    // The two that are willing do resume, or this test would show nothing.
    handshake(&eager, &generous).unwrap();
    assert_eq!(handshake(&eager, &generous).unwrap().client.handshake_kind(), Some(HandshakeKind::Resumed));
}
