//! Peers that do as they like, and a handshake without sockets.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ollana::Id;
use ollana::internals::tls::ALPN;
use rcgen::PublicKeyData as _;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::quic::{ClientConnection, ServerConnection, Version};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, Signer, SigningKey, SingleCertAndKey};
use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureAlgorithm, SignatureScheme,
};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("certs").join(name)
}

/// The ID of the key in `certs/NAME.key.pem`.
pub fn id(name: &str) -> Id {
    let key = rcgen::KeyPair::from_pem(&fs::read_to_string(file(&format!("{name}.key.pem"))).unwrap()).unwrap();
    Id::of_spki(&key.subject_public_key_info())
}

/// What `certs/NAME.pem` shows.
pub fn certificates(name: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_file_iter(file(&format!("{name}.pem"))).unwrap().map(Result::unwrap).collect()
}

/// Certificate and key out of `certs`, each by its name.
pub fn shows(certificate: &str, key: &str) -> CertifiedKey {
    let key = PrivateKeyDer::from_pem_file(file(&format!("{key}.key.pem"))).unwrap();
    CertifiedKey::new(certificates(certificate), aws_lc_rs::sign::any_supported_type(&key).unwrap())
}

/// Signs with whatever it has, whether the other side offered to accept that or not.
pub fn rudely(shown: CertifiedKey) -> CertifiedKey {
    CertifiedKey { key: Arc::new(Rude { key: shown.key, claims: None }), ..shown }
}

/// Signs with what it has and calls it something else.
pub fn claiming(shown: CertifiedKey, scheme: SignatureScheme) -> CertifiedKey {
    CertifiedKey { key: Arc::new(Rude { key: shown.key, claims: Some(scheme) }), ..shown }
}

#[derive(Debug)]
struct Rude {
    key: Arc<dyn SigningKey>,
    claims: Option<SignatureScheme>,
}

impl SigningKey for Rude {
    fn choose_scheme(&self, _offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        let own = [
            SignatureScheme::ED25519,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PSS_SHA512,
        ];
        let signer = self.key.choose_scheme(&own)?;
        let scheme = self.claims.unwrap_or(signer.scheme());
        Some(Box::new(RudeSigner { signer, scheme }))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        self.key.algorithm()
    }
}

#[derive(Debug)]
struct RudeSigner {
    signer: Box<dyn Signer>,
    scheme: SignatureScheme,
}

impl Signer for RudeSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.signer.sign(message)
    }

    fn scheme(&self) -> SignatureScheme {
        self.scheme
    }
}

/// Takes whatever the other side shows, so that only the node under test can refuse.
#[derive(Debug)]
struct TakesAnything;

impl ServerCertVerifier for TakesAnything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for TakesAnything {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A verifier for configurations that the tests build themselves.
pub fn takes_anything() -> Arc<dyn ServerCertVerifier> {
    Arc::new(TakesAnything)
}

/// A client that shows `key`, or nothing, and does all it can to be let back in with a ticket.
pub fn client(key: Option<CertifiedKey>, provider: CryptoProvider) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TakesAnything));
    let mut config = match key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    config
}

/// A server that shows `key` and hands out tickets for 0-RTT.
pub fn server(key: CertifiedKey) -> ServerConfig {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(TakesAnything))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.max_early_data_size = u32::MAX;
    config
}

/// A finished handshake.
#[derive(Debug)]
pub struct Done {
    pub client: ClientConnection,
    pub server: ServerConnection,
}

/// Who ended a handshake, and why.
#[derive(Debug)]
pub enum Refused {
    ByClient(Error),
    ByServer(Error),
}

/// TLS as QUIC carries it (RFC 9001), without QUIC.
pub fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Done, Refused> {
    let server_name = ServerName::try_from("ollana").unwrap();
    let mut client = ClientConnection::new(client.clone(), Version::V1, server_name, vec![]).unwrap();
    let mut server = ServerConnection::new(server.clone(), Version::V1, vec![]).unwrap();
    loop {
        // By levels of encryption: a message must not straddle two of them, and QUIC keeps them apart.
        let to_server = flight(|level| client.write_hs(level).is_some());
        for level in &to_server {
            server.read_hs(level).map_err(Refused::ByServer)?;
        }
        let to_client = flight(|level| server.write_hs(level).is_some());
        for level in &to_client {
            client.read_hs(level).map_err(Refused::ByClient)?;
        }
        if to_server.is_empty() && to_client.is_empty() {
            assert!(!client.is_handshaking() && !server.is_handshaking());
            return Ok(Done { client, server });
        }
    }
}

fn flight(mut write: impl FnMut(&mut Vec<u8>) -> bool) -> Vec<Vec<u8>> {
    let mut levels = Vec::new();
    loop {
        let mut level = Vec::new();
        let more = write(&mut level);
        if !level.is_empty() {
            levels.push(level);
        }
        if !more {
            return levels;
        }
    }
}
