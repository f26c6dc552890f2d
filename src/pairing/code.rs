//! The commitment and the code: what they are computed from.

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::hmac;
use serde::{Deserialize, Serialize};

use crate::id::Id;
use crate::wire::dealing::Hex;

/// Six digits: what people compare without a slip, and one guess in a million.
const CODES: u64 = 1_000_000;

/// One TLS session, as both ends know it and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Session {
    /// Our own ID.
    pub me: Id,
    /// The proved ID of the other end.
    pub peer: Id,
    /// Whether we opened the connection.
    pub dialled: bool,
    /// What the TLS exporter (RFC 8446, 7.5) gives both ends of this session.
    pub secret: [u8; 32],
}

/// Six digits for people to compare. No log line may hold it, so `Debug` does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Code(String);

// === impl Session ===

impl Session {
    /// What the exporter is asked for. Beyond the label it needs no context: the MACs have it.
    pub const LABEL: &'static [u8] = b"EXPORTER-ollana-1-trust";

    /// Whether this end is the initiator of a pairing.
    pub(super) fn initiates(&self) -> bool {
        self.me < self.peer
    }

    /// HMAC-SHA-256 under the session's secret, over what it is for, who is who, who dialled, and these parts. All but the
    /// purposes have a fixed length and those end with a zero, so no two lists of parts read the same.
    pub(super) fn mac(&self, purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
        let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.secret));
        mac.update(b"ollana-1 ");
        mac.update(purpose.as_bytes());
        mac.update(&[0, u8::from(self.initiates() == self.dialled)]);
        let (first, second) = if self.initiates() { (self.me, self.peer) } else { (self.peer, self.me) };
        mac.update(first.as_bytes());
        mac.update(second.as_bytes());
        for part in parts {
            mac.update(part);
        }
        mac.sign().as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// What binds the initiator to its nonce.
    pub fn commitment(&self, nonce: &Hex<32>) -> Hex<32> {
        Hex(self.mac("commitment", &[&nonce.0]))
    }

    /// Whether this is the nonce that the initiator was committed to.
    pub(super) fn opens(&self, commitment: &Hex<32>, nonce: &Hex<32>) -> bool {
        verify_slices_are_equal(&self.commitment(nonce).0, &commitment.0).is_ok()
    }

    /// The code that both show. Of 2^64 values each code is hit as often as the next, up to one in 10^13.
    pub fn code(&self, initiator: &Hex<32>, responder: &Hex<32>) -> Code {
        let mac = self.mac("code", &[&initiator.0, &responder.0]);
        let number = mac.first_chunk().copied().map_or(0, u64::from_be_bytes) % CODES;
        Code(format!("{number:06}"))
    }
}

/// Without the secret.
impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("peer", &self.peer).field("dialled", &self.dialled).finish_non_exhaustive()
    }
}

// === impl Code ===

impl Code {
    /// The six digits.
    pub fn digits(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Code")
    }
}
