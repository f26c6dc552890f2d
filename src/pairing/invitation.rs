//! Invitations: how a machine that nobody sits at comes to trust another, and to be trusted.
//!
//! Whoever makes one is given a text with the maker's ID and addresses and a secret of 256 random bits. The secret makes an
//! Ed25519 key pair and a number. The maker keeps number and public key: whoever reads its files cannot redeem what is in
//! them. A node that is started with the text dials the addresses, and when the key that answers there is the maker's (TLS
//! has proved it; to anybody else it says nothing of the invitation at all) it says the number and signs this very session:
//! the TLS exporter, both IDs, who dialled. The maker answers with a MAC under the public key over the same, which proves
//! that it knows the invitation; or, whatever is wrong (number, proof, time, uses), with the same empty answer. Neither
//! learns the secret from the other, and nothing that was said in one session is good in another.

use std::str::FromStr;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};

use super::code::Session;
use crate::id::{Id, NodeName, Scope};
use crate::trust::Invited;
use crate::wire::dealing::{Hex, Redeem};

/// The longest text of an invitation that is read: the addresses of a machine with very many of them.
pub const MAX_TEXT: usize = 16 * 1024;
/// Addresses that are dialled, of those that the text has.
const MAX_ADDRESSES: usize = 16;

/// Raised when an older ollana would misread an invitation.
const VERSION: u32 = 1;

/// An invitation as whoever is invited has it. It holds a secret, so there is no `Debug`.
#[derive(Clone)]
pub struct Invitation {
    /// What its maker is called.
    pub name: NodeName,
    /// Its maker's key.
    pub id: Id,
    /// Where its maker may be found: `HOST:PORT`.
    pub addresses: Vec<String>,
    secret: [u8; 32],
}

/// The text.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    name: NodeName,
    id: Id,
    addresses: Vec<String>,
    secret: String,
}

/// Why a text is no invitation. It does not quote it: there may be a secret in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvitationError {
    /// Not what `ollana invite` prints.
    #[error("this is no invitation as `ollana invite` prints it")]
    Unclear,
    /// Made by a later version.
    #[error("the invitation is of version {0}, which this ollana does not know: bring it up to date")]
    Newer(u32),
    /// The library has no key for it.
    #[error("no key can be made of the invitation")]
    Key,
}

// === impl Invitation ===

impl Invitation {
    /// A new one, by the node with this name and ID, to be found at these addresses.
    pub fn new(name: NodeName, id: Id, addresses: Vec<String>) -> Self {
        Self { name, id, addresses, secret: rand::random() }
    }

    /// What its maker keeps of it.
    ///
    /// # Errors
    /// [`InvitationError::Key`], never in practice.
    pub fn kept(&self, scope: Scope, use_: bool, uses: u32, until: u64) -> Result<Invited, InvitationError> {
        Ok(Invited {
            // The book gives it one.
            place: 0,
            number: HEXLOWER.encode(&self.number().0),
            key: HEXLOWER.encode(self.pair()?.public_key().as_ref()),
            scope,
            use_,
            uses,
            until,
            redeemed: Vec::new(),
        })
    }

    /// The text to hand over.
    ///
    /// # Errors
    /// [`InvitationError::Unclear`], never in practice.
    pub fn to_text(&self) -> Result<String, InvitationError> {
        let text = Text {
            version: VERSION,
            name: self.name.clone(),
            id: self.id,
            addresses: self.addresses.clone(),
            secret: BASE32_NOPAD.encode(&self.secret),
        };
        let body = toml::to_string(&text).map_err(|_| InvitationError::Unclear)?;
        Ok(format!("# An invitation. Whoever has it may use it, so keep it as you keep a key.\n{body}"))
    }

    /// What the invited says to its maker.
    pub(super) fn redeem(&self, session: &Session) -> Result<Redeem, InvitationError> {
        let proof = self.pair()?.sign(&session.mac("invitation", &[]));
        let proof = proof.as_ref().first_chunk().copied().ok_or(InvitationError::Key)?;
        Ok(Redeem { invitation: self.number(), proof: Hex(proof) })
    }

    /// Whether this answer comes from whoever made it.
    pub(super) fn is_answered_by(&self, answer: &Hex<32>, session: &Session) -> bool {
        let Ok(pair) = self.pair() else { return false };
        verify_slices_are_equal(&answer_to(pair.public_key().as_ref(), session).0, &answer.0).is_ok()
    }

    fn number(&self) -> Hex<16> {
        Hex(self.derive(b"number").first_chunk().copied().unwrap_or_default())
    }

    fn pair(&self) -> Result<Ed25519KeyPair, InvitationError> {
        Ed25519KeyPair::from_seed_unchecked(&self.derive(b"key")).map_err(|_| InvitationError::Key)
    }

    fn derive(&self, purpose: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        let mut mac = hmac::Context::with_key(&key);
        mac.update(b"ollana-1 invitation ");
        mac.update(purpose);
        mac.sign().as_ref().first_chunk().copied().unwrap_or_default()
    }
}

impl FromStr for Invitation {
    type Err = InvitationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        if text.len() > MAX_TEXT {
            return Err(InvitationError::Unclear);
        }
        let Versioned { version } = toml::from_str(text).map_err(|_| InvitationError::Unclear)?;
        if version > VERSION {
            return Err(InvitationError::Newer(version));
        }
        let Text { name, id, mut addresses, secret, .. } =
            toml::from_str(text).map_err(|_| InvitationError::Unclear)?;
        let secret = BASE32_NOPAD.decode(secret.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        addresses.truncate(MAX_ADDRESSES);
        Ok(Self { name, id, addresses, secret: secret.ok_or(InvitationError::Unclear)? })
    }
}

// === the maker's side ===

/// Whether a proof was made with the key that is kept, in hexadecimal; without one, as much work for nothing.
pub(super) fn is_proved(kept: Option<&str>, proof: &Hex<64>, session: &Session) -> bool {
    // The key that fits no proof is one like any other: an encoding of a point that nobody has the secret of.
    let key = kept.and_then(|key| HEXLOWER.decode(key.as_bytes()).ok());
    let known = key.is_some();
    let key = key.unwrap_or_else(|| NOBODYS.to_vec());
    UnparsedPublicKey::new(&ED25519, &key).verify(&session.mac("invitation", &[]), &proof.0).is_ok() && known
}

/// The base point of Ed25519.
const NOBODYS: [u8; 32] = {
    let mut bytes = [0x66; 32];
    bytes[0] = 0x58;
    bytes
};

/// What the maker answers.
pub(super) fn answer(kept: &str, session: &Session) -> Hex<32> {
    answer_to(&HEXLOWER.decode(kept.as_bytes()).unwrap_or_default(), session)
}

fn answer_to(key: &[u8], session: &Session) -> Hex<32> {
    let said = session.mac("invited", &[]);
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &said);
    Hex(tag.as_ref().first_chunk().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> Id {
        Id::from_bytes([n; 32])
    }

    fn session(maker: bool, secret: u8) -> Session {
        let (me, peer) = if maker { (id(1), id(2)) } else { (id(2), id(1)) };
        Session { me, peer, dialled: !maker, secret: [secret; 32] }
    }

    fn invitation() -> Invitation {
        Invitation::new(NodeName::lossy("gpu1"), id(1), vec!["10.0.0.1:11435".to_owned()])
    }

    #[test]
    fn who_holds_it_can_prove_it_and_is_answered_by_who_made_it() {
        let invitation = invitation();
        let kept = invitation.kept(Scope::Infer, false, 1, 9).unwrap();
        let given: Invitation = invitation.to_text().unwrap().parse().unwrap();
        assert_eq!((given.id, &given.name, &given.addresses), (id(1), &invitation.name, &invitation.addresses));
        let redeem = given.redeem(&session(false, 7)).unwrap();
        assert_eq!(HEXLOWER.encode(&redeem.invitation.0), kept.number);
        assert!(is_proved(Some(&kept.key), &redeem.proof, &session(true, 7)));
        assert!(given.is_answered_by(&answer(&kept.key, &session(true, 7)), &session(false, 7)));
    }

    #[test]
    fn a_proof_is_good_in_its_own_session_and_for_its_own_invitation_only() {
        let (one, other) = (invitation(), invitation());
        let key = |invitation: &Invitation| invitation.kept(Scope::Infer, false, 1, 9).unwrap().key;
        let proof = one.redeem(&session(false, 7)).unwrap().proof;
        assert!(!is_proved(Some(&key(&one)), &proof, &session(true, 8)), "another session");
        assert!(!is_proved(Some(&key(&other)), &proof, &session(true, 7)), "another invitation");
        assert!(!is_proved(None, &proof, &session(true, 7)), "none");
        assert!(!is_proved(Some("not a key"), &proof, &session(true, 7)));
        let reversed = Session { dialled: true, ..session(true, 7) };
        assert!(!is_proved(Some(&key(&one)), &proof, &reversed), "the other direction");
        assert!(!one.is_answered_by(&answer(&key(&other), &session(true, 7)), &session(false, 7)));
        assert!(!one.is_answered_by(&answer(&key(&one), &session(true, 8)), &session(false, 7)));
    }

    #[test]
    fn what_its_maker_keeps_is_not_the_secret_and_makes_no_proof() {
        let invitation = invitation();
        let kept = invitation.kept(Scope::Infer, false, 1, 9).unwrap();
        let text = invitation.to_text().unwrap();
        let secret = BASE32_NOPAD.encode(&invitation.secret);
        assert!(text.contains(&secret));
        let on_disk = toml::to_string(&kept).unwrap();
        assert!(!on_disk.contains(&secret) && !on_disk.contains(&HEXLOWER.encode(&invitation.secret)), "{on_disk}");
    }

    #[test]
    fn what_is_no_invitation_is_refused_without_being_quoted() {
        let good = invitation().to_text().unwrap();
        for (text, expected) in [
            (String::new(), InvitationError::Unclear),
            (good.replace("secret = \"", "secret = \"x"), InvitationError::Unclear),
            (good.replace("version = 1", "version = 2"), InvitationError::Newer(2)),
            (good[..good.len() / 2].to_owned(), InvitationError::Unclear),
            (format!("{good}{}", "#".repeat(MAX_TEXT)), InvitationError::Unclear),
        ] {
            assert_eq!(text.parse::<Invitation>().err(), Some(expected));
        }
    }
}
