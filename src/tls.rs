//! Proof that a peer holds its key, and of nothing else.
//!
//! TLS 1.3 with a certificate on both sides. The verifiers here check that the other side signed the handshake with the
//! key in its one certificate; they look at no name, no date and no issuer. Who may do what is for
//! [`trust`](crate::trust) to say, after the proof.
//!
//! What keeps a proof from being old: nothing is resumed and no 0-RTT is accepted, so each connection is a full handshake,
//! and a revoked key finds no ticket to come back with.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::SingleCertAndKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, PeerIncompatible, ServerConfig,
    SignatureScheme, SupportedCipherSuite,
};

use crate::id::Id;
use crate::identity::Identity;

/// The protocol's name in the handshake. Another major version is another name, and no connection.
pub const ALPN: &[u8] = b"ollana/1";

/// What to pass where a TLS library wants a server's name. It is neither sent nor looked at.
pub const SERVER_NAME: &str = "ollana";

/// The `SubjectPublicKeyInfo` of an Ed25519 key up to the key's 32 bytes (RFC 8410, 4). The algorithm has no parameters,
/// so there is one encoding only, and one ID to a key.
const ED25519_SPKI: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
const ED25519_SPKI_LEN: usize = ED25519_SPKI.len() + 32;

/// How this node dials.
///
/// # Errors
/// If the TLS library rejects what is built in here.
pub fn client_config(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(ProvesPossession { algorithms: provider.signature_verification_algorithms });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified_key())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// How this node is dialled.
///
/// # Errors
/// If the TLS library rejects what is built in here.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(provider());
    let verifier = Arc::new(ProvesPossession { algorithms: provider.signature_verification_algorithms });
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(identity.certified_key())));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    // Nothing is sent to a client before its certificate was verified.
    config.send_half_rtt_data = false;
    // Else the client's order counts: ChaCha20 is what both use as soon as one of them has no AES.
    config.ignore_client_order = !aes_in_hardware();
    Ok(Arc::new(config))
}

/// A peer that has proved to hold the key with this ID.
///
/// Made in one place only, from the certificates of a finished handshake; who is handed one need not ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AuthenticatedPeer {
    id: Id,
}

// === impl AuthenticatedPeer ===

impl AuthenticatedPeer {
    /// The peer that sent `certificates` in a handshake under [`client_config`] or [`server_config`].
    ///
    /// Only to be called once that handshake is **finished**. The certificates alone prove nothing, anyone can show
    /// them; it is the handshake that did not finish without a signature by their key.
    ///
    /// # Errors
    /// If this is not what such a handshake would have let through.
    pub fn from_handshake(certificates: &[CertificateDer<'_>]) -> Result<Self, TlsError> {
        let [certificate] = certificates else {
            return Err(TlsError::NotOneCertificate(certificates.len()));
        };
        Ok(Self { id: id_of(certificate).map_err(TlsError::Certificate)? })
    }

    /// The ID of its key.
    pub fn id(&self) -> Id {
        self.id
    }
}

/// Why there is no TLS, or no peer.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The settings built in here do not fit the library.
    #[error("cannot set up TLS: {0}")]
    Config(#[source] rustls::Error),
    /// A node has one key and one certificate; a chain would mean something, and here it must not.
    #[error("a node shows one certificate, this peer showed {0}")]
    NotOneCertificate(usize),
    /// Not a certificate around an Ed25519 key.
    #[error("this peer's certificate is none of a node: {0}")]
    Certificate(#[source] rustls::Error),
}

/// One verifier for both directions: nodes are equals.
#[derive(Debug)]
struct ProvesPossession {
    algorithms: WebPkiSupportedAlgorithms,
}

// === impl ProvesPossession ===

impl ProvesPossession {
    /// What can be said of a certificate before the signature: it is the only one, and it holds an Ed25519 key.
    fn check(certificate: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if !intermediates.is_empty() {
            return Err(refuse(TlsError::NotOneCertificate(intermediates.len() + 1)));
        }
        id_of(certificate).map(drop)
    }

    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // The library offers the other side our schemes, but does not hold it to them.
        if signed.scheme != SignatureScheme::ED25519 {
            return Err(PeerIncompatible::NoSignatureSchemesInCommon.into());
        }
        id_of(certificate)?;
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }
}

impl ServerCertVerifier for ProvesPossession {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Self::check(end_entity, intermediates)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for ProvesPossession {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Self::check(end_entity, intermediates)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls13RequiredForQuic.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// The ID of the key in a certificate. Read by the same parser that the signature is checked with, so that there are no
/// two opinions on which key it is; it also refuses critical extensions that it does not know.
fn id_of(certificate: &CertificateDer<'_>) -> Result<Id, rustls::Error> {
    let spki = ParsedCertificate::try_from(certificate)?.subject_public_key_info();
    if spki.len() != ED25519_SPKI_LEN || !spki.starts_with(&ED25519_SPKI) {
        return Err(CertificateError::ApplicationVerificationFailure.into());
    }
    Ok(Id::of_spki(&spki))
}

fn refuse(error: TlsError) -> rustls::Error {
    CertificateError::Other(rustls::OtherError(Arc::new(error))).into()
}

/// What both ends speak. Every node is an Ollana, so there is nothing older to be friends with: one hybrid key exchange
/// that also stands against a later quantum computer, and its classical half for a build that lacks it.
fn provider() -> CryptoProvider {
    CryptoProvider {
        cipher_suites: cipher_suites(),
        kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519],
        ..aws_lc_rs::default_provider()
    }
}

/// AES-128 first: the key exchange is of that strength, and it has a quarter fewer rounds than AES-256. Without AES in
/// hardware (a Raspberry Pi 4) ChaCha20 is several times faster. QUIC cannot do without AES-128, its first packets
/// use it (RFC 9001, 5.2).
fn cipher_suites() -> Vec<SupportedCipherSuite> {
    let mut suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    if !aes_in_hardware() {
        suites.swap(0, 1);
    }
    suites
}

fn aes_in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    let found = std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    let found = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found = false;
    found
}
