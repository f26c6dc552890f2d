//! Who this node is: one Ed25519 key, made at first start and kept in the state directory.
//!
//! The key is the identity. The X.509 certificate around it exists because TLS wants one; it is made anew from the key
//! at each start, and nobody looks at the names or dates in it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519, PublicKeyData as _, SigningKey as _};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha512};

use crate::id::Id;
use crate::private_file::{self, FileError};

/// The key's file name in the state directory.
pub const KEY_FILE: &str = "identity.key";

/// An Ed25519 key in PEM has some 120 to 200 bytes; comments around it are nobody's need but harmless.
const KEY_FILE_LIMIT: u64 = 16 * 1024;

/// What is signed to derive the key of stateless resets. TLS 1.3 never signs this: what it signs begins with 64 spaces
/// (RFC 8446, 4.4.3).
const RESET_LABEL: &[u8] = b"ollana/1 quic stateless reset key";

/// This node's key and the certificate around it. Cheap to clone.
#[derive(Clone)]
pub struct Identity {
    id: Id,
    certified: Arc<CertifiedKey>,
    reset_key: [u8; 64],
}

// === impl Identity ===

impl Identity {
    /// The identity kept in `dir`, the state directory; both are made if they are absent.
    ///
    /// Two processes that make it at the same time end with the same key: the file is never overwritten, and who comes
    /// second reads what the first wrote.
    ///
    /// # Errors
    /// If the directory or the file cannot be read or written, or if the file is damaged, a link, or open to others.
    /// Then nothing on the disk was changed: a new key would be a new node, which only a person should decide.
    pub fn load_or_create(dir: &Path) -> Result<Self, IdentityError> {
        private_file::make_dir(dir)?;
        if let Some(identity) = Self::load(dir)? {
            return Ok(identity);
        }
        let path = dir.join(KEY_FILE);
        let key = KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::Generate)?;
        if private_file::create(&path, key.serialize_pem().as_bytes())? {
            let identity = Self::from_key(&key)?;
            tracing::info!(id = %identity.id, "made this node's key, {}", path.display());
            return Ok(identity);
        }
        // Somebody else's first start was faster. What has the name and is not there to be read is a dangling link.
        match private_file::read(&path, KEY_FILE_LIMIT)? {
            Some(pem) => Self::from_pem(&path, &pem),
            None => Err(FileError::Link(path).into()),
        }
    }

    /// The identity kept in `dir`, if there is one. Makes nothing.
    ///
    /// # Errors
    /// As [`Identity::load_or_create`].
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(KEY_FILE);
        private_file::read(&path, KEY_FILE_LIMIT)?.map(|pem| Self::from_pem(&path, &pem)).transpose()
    }

    /// A new identity that is written to no file, for tests.
    ///
    /// # Errors
    /// If the system has no randomness to give.
    #[cfg(feature = "internals")]
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::from_key(&KeyPair::generate_for(&PKCS_ED25519).map_err(IdentityError::Generate)?)
    }

    /// The ID of this node's key.
    pub fn id(&self) -> Id {
        self.id
    }

    /// The key of QUIC's stateless resets (RFC 9000, 10.3): the same after each start, so that a node which restarted
    /// can tell its peers at once that their old connections are gone.
    pub fn reset_key(&self) -> [u8; 64] {
        self.reset_key
    }

    /// Key and certificate as rustls takes them.
    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.certified.clone()
    }

    fn from_pem(path: &Path, pem: &[u8]) -> Result<Self, IdentityError> {
        // What the parser says is not passed on: it may quote the file.
        let damaged = || IdentityError::Damaged(path.to_owned());
        let pem = std::str::from_utf8(pem).map_err(|_| damaged())?;
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ED25519).map_err(|_| damaged())?;
        Self::from_key(&key)
    }

    fn from_key(key: &KeyPair) -> Result<Self, IdentityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "ollana");
        let certificate = params.self_signed(key).map_err(IdentityError::Certificate)?;
        let pkcs8 = PrivatePkcs8KeyDer::from(key.serialized_der());
        let signer = rustls::crypto::aws_lc_rs::sign::any_eddsa_type(&pkcs8).map_err(IdentityError::Signer)?;
        Ok(Self {
            id: Id::of_spki(&key.subject_public_key_info()),
            certified: Arc::new(CertifiedKey::new(vec![certificate.der().clone()], signer)),
            reset_key: reset_key(key)?,
        })
    }
}

/// The ID only: whoever prints this must not learn more.
impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Ed25519 is deterministic (RFC 8032, 5.1.6), so a signature that is never shown is a secret which only the key's holder
/// can make, and can make again; its hash has no structure left.
fn reset_key(key: &KeyPair) -> Result<[u8; 64], IdentityError> {
    let signature = key.sign(RESET_LABEL).map_err(IdentityError::Certificate)?;
    Ok(Sha512::digest(signature).into())
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file or its directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not an Ed25519 key, or no longer.
    #[error(
        "{0} is damaged: it holds no Ed25519 key in PEM (PKCS#8). Put back a good copy, \
         or move it away to begin as a new node, which peers must trust anew"
    )]
    Damaged(PathBuf),
    /// No randomness, most likely.
    #[error("cannot make a key: {0}")]
    Generate(#[source] rcgen::Error),
    /// The certificate could not be made.
    #[error("cannot make this node's certificate: {0}")]
    Certificate(#[source] rcgen::Error),
    /// The TLS library does not take the key.
    #[error("cannot sign with this node's key: {0}")]
    Signer(#[source] rustls::Error),
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn state() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("share/ollana");
        (temp, dir)
    }

    #[test]
    fn the_first_start_makes_a_private_key_and_the_next_keeps_it() {
        let (_temp, dir) = state();
        let first = Identity::load_or_create(&dir).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&dir), mode(&dir.join(KEY_FILE))), (0o700, 0o600));
        assert!(fs::read_to_string(dir.join(KEY_FILE)).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        let again = Identity::load_or_create(&dir).unwrap();
        assert_eq!(first.id(), again.id());
        assert_eq!(first.reset_key(), again.reset_key());
        assert_ne!(first.reset_key(), Identity::ephemeral().unwrap().reset_key());
    }

    #[test]
    fn starts_at_the_same_moment_end_with_one_key() {
        let (_temp, dir) = state();
        let ids: Vec<Id> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| Identity::load_or_create(&dir).unwrap().id())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(ids.iter().all(|id| *id == ids[0]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn a_key_of_openssl_is_taken() {
        // `openssl genpkey -algorithm ed25519` writes PKCS#8 version 1. This is RFC 8410's example key (10.3).
        let pem = "-----BEGIN PRIVATE KEY-----\n\
                   MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
                   -----END PRIVATE KEY-----\n";
        let spki = "302a300506032b657003210019bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";
        let spki = data_encoding::HEXLOWER.decode(spki.as_bytes()).unwrap();
        assert_eq!(Identity::from_pem(Path::new("x"), pem.as_bytes()).unwrap().id(), Id::of_spki(&spki));
    }

    #[test]
    fn a_damaged_key_is_refused_and_left_as_it_is() {
        let (_temp, dir) = state();
        Identity::load_or_create(&dir).unwrap();
        let path = dir.join(KEY_FILE);
        let good = fs::read(&path).unwrap();
        let p256 = KeyPair::generate().unwrap().serialize_pem();
        for damaged in [&b""[..], &good[..good.len() / 2], &b"\xff\xfe"[..], p256.as_bytes()] {
            fs::write(&path, damaged).unwrap();
            let error = Identity::load_or_create(&dir).unwrap_err().to_string();
            assert!(error.contains("identity.key is damaged") && error.contains("move it away"), "{error}");
            assert!(!error.contains('\n'));
            assert_eq!(fs::read(&path).unwrap(), damaged);
        }
        // One bit of the secret turned: the public half beside it no longer fits.
        let mut turned = pem::decode(&good);
        turned[20] ^= 1;
        fs::write(&path, pem::encode(&turned)).unwrap();
        assert!(matches!(Identity::load_or_create(&dir), Err(IdentityError::Damaged(_))));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_a_link_is_refused() {
        let (_temp, dir) = state();
        Identity::load_or_create(&dir).unwrap();
        let path = dir.join(KEY_FILE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = Identity::load_or_create(&dir).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&path, dir.join("elsewhere")).unwrap();
        symlink(dir.join("elsewhere"), &path).unwrap();
        assert!(Identity::load_or_create(&dir).unwrap_err().to_string().contains("symbolic link"));
        fs::remove_file(&path).unwrap();
        symlink(dir.join("nowhere"), &path).unwrap();
        assert!(Identity::load_or_create(&dir).unwrap_err().to_string().contains("symbolic link"));
        assert!(!dir.join("nowhere").exists());
    }

    #[test]
    fn debug_shows_the_id_and_no_key() {
        let identity = Identity::ephemeral().unwrap();
        assert_eq!(format!("{identity:?}"), format!("Identity {{ id: {:?}, .. }}", identity.id()));
    }

    mod pem {
        use data_encoding::BASE64;

        pub(super) fn decode(pem: &[u8]) -> Vec<u8> {
            let text = std::str::from_utf8(pem).unwrap();
            let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
            BASE64.decode(body.as_bytes()).unwrap()
        }

        pub(super) fn encode(der: &[u8]) -> String {
            format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", BASE64.encode(der))
        }
    }
}
