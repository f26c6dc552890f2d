//! The same configurations under quinn, on loopback.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ollana::internals::tls::{AuthenticatedPeer, SERVER_NAME};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Connection, Endpoint};
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::CertificateDer;

use super::node;
use super::peers::{client, rudely, shows};

fn endpoint(server: Option<&Arc<rustls::ServerConfig>>, client: &Arc<rustls::ClientConfig>) -> Endpoint {
    let here = SocketAddr::from((Ipv6Addr::LOCALHOST, 0));
    let mut endpoint = match server {
        Some(config) => {
            let config = QuicServerConfig::try_from(config.clone()).unwrap();
            Endpoint::server(quinn::ServerConfig::with_crypto(Arc::new(config)), here).unwrap()
        }
        None => Endpoint::client(here).unwrap(),
    };
    let config = QuicClientConfig::try_from(client.clone()).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(config)));
    endpoint
}

fn peer_of(connection: &Connection) -> AuthenticatedPeer {
    let identity = connection.peer_identity().unwrap();
    let certificates = identity.downcast_ref::<Vec<CertificateDer<'static>>>().unwrap();
    AuthenticatedPeer::from_handshake(certificates).unwrap()
}

#[tokio::test]
async fn two_nodes_meet_over_quic_and_never_by_0_rtt() {
    let (a, b) = (node(), node());
    let (dialler, listener) = (endpoint(None, &a.client), endpoint(Some(&b.server), &b.client));
    for _ in 0..2 {
        let connecting = dialler.connect(listener.local_addr().unwrap(), SERVER_NAME).unwrap();
        let connecting = connecting.into_0rtt().map(drop).expect_err("0-RTT");
        let (out, come) = tokio::join!(connecting, async { listener.accept().await.unwrap().await });
        let (out, come) = (out.unwrap(), come.unwrap());
        assert_eq!(peer_of(&out).id(), b.identity.id());
        assert_eq!(peer_of(&come).id(), a.identity.id());
        out.close(0u32.into(), b"");
        come.closed().await;
    }
}

#[tokio::test]
async fn an_impostor_gets_no_connection_over_quic() {
    let b = node();
    let listener = endpoint(Some(&b.server), &b.client);
    let config = Arc::new(client(Some(rudely(shows("good", "other"))), default_provider()));
    let impostor = endpoint(None, &config);
    let connecting = impostor.connect(listener.local_addr().unwrap(), SERVER_NAME).unwrap();
    let (out, come) = tokio::join!(
        async {
            // A client in TLS 1.3 is done before the server has judged it; the refusal comes right after.
            match connecting.await {
                Ok(connection) => connection.closed().await,
                Err(error) => error,
            }
        },
        async { listener.accept().await.unwrap().await }
    );
    let bad_certificate = |error: &quinn::ConnectionError| error.to_string().contains("BadSignature");
    assert!(bad_certificate(&come.unwrap_err()));
    assert!(matches!(out, quinn::ConnectionError::ConnectionClosed(_)), "{out:?}");
}
