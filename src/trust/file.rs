//! `trust.toml`: the ledger on the disk.

use std::collections::btree_map::Entry;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ledger::{Ledger, bury};
use super::{Invited, Pin, Statement, Trust, TrustError, Vouch};
use crate::id::Scope;

/// Bound of the file in bytes. First use can fill some 400 KB of it; the rest, tens of thousands of pins, a person would
/// have to type.
pub(super) const LIMIT: u64 = 16 * 1024 * 1024;

/// Raised when an older ollana would misread the file.
const VERSION: u32 = 1;

const HEADER: &str = "\
# Whom this node trusts. `ollana trust` and `ollana revoke` change it. A node that runs takes in what is edited here
# within a second; save it in one step (as editors do) and keep its mode at 0600.
# Times are seconds since 1970 (date -d @N).
";

/// Unknown fields are errors: a slip in `scope` must not read as if it were not there.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BookFile {
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    first_provider_met: Option<u64>,
    #[serde(default, skip_serializing_if = "is_zero")]
    first_use_spent: u64,
    #[serde(default, rename = "peer", skip_serializing_if = "Vec::is_empty")]
    peers: Vec<Pin>,
    #[serde(default, rename = "invitation", skip_serializing_if = "Vec::is_empty")]
    invitations: Vec<Invited>,
    #[serde(default, rename = "vouch", skip_serializing_if = "Vec::is_empty")]
    vouches: Vec<Vouch>,
    #[serde(default, rename = "statement", skip_serializing_if = "Vec::is_empty")]
    statements: Vec<Statement>,
}

/// Only what says how to read the rest.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads what [`write()`] wrote, or a person did.
pub(super) fn parse(path: &Path, content: &[u8]) -> Result<Ledger, TrustError> {
    let damaged = |line, reason| TrustError::Damaged { path: path.to_owned(), line, reason };
    let text = std::str::from_utf8(content).map_err(|_| damaged(None, "it is not UTF-8".to_owned()))?;
    let in_toml = |error: toml::de::Error| {
        let line = error.span().and_then(|span| text.get(..span.start)).map(|before| before.matches('\n').count() + 1);
        damaged(line, error.message().lines().collect::<Vec<_>>().join(", "))
    };
    let Versioned { version } = toml::from_str(text).map_err(in_toml)?;
    if version > VERSION {
        return Err(TrustError::Newer { path: path.to_owned(), version });
    }
    let file: BookFile = toml::from_str(text).map_err(in_toml)?;
    let mut ledger = Ledger {
        first_provider_met: file.first_provider_met,
        first_use_spent: file.first_use_spent,
        invitations: file.invitations,
        vouches: file.vouches,
        statements: file.statements,
        ..Ledger::default()
    };
    for mut pin in file.peers {
        let who = format!("{}, {}", pin.name, pin.id);
        let wrong = |what| Err(damaged(None, format!("{what} ({who})")));
        match pin.trust {
            // A voucher's word makes no pin: else it could stand here for ever, and with any scope.
            Trust::None | Trust::Vouched => return wrong("a peer's trust is first-use, trusted or revoked"),
            Trust::FirstUse if pin.scope > Scope::Infer => {
                return wrong("first use never gives manage; with trust = \"trusted\" a person does");
            }
            Trust::FirstUse if pin.voucher => {
                return wrong("first use makes nobody a voucher; with trust = \"trusted\" a person does");
            }
            // Whatever else stands there: someone meant to keep it out.
            Trust::Revoked => bury(&mut pin),
            Trust::FirstUse | Trust::Trusted => {}
        }
        match ledger.pins.entry(pin.id) {
            Entry::Vacant(place) => place.insert(pin),
            Entry::Occupied(_) => return wrong("one ID stands there twice"),
        };
    }
    ledger.tidy();
    Ok(ledger)
}

/// The whole file.
pub(super) fn write(path: &Path, ledger: &Ledger) -> Result<String, TrustError> {
    let file = BookFile {
        version: VERSION,
        first_provider_met: ledger.first_provider_met,
        first_use_spent: ledger.first_use_spent,
        peers: ledger.pins.values().cloned().collect(),
        invitations: ledger.invitations.clone(),
        vouches: ledger.vouches.clone(),
        statements: ledger.statements.clone(),
    };
    // A time beyond TOML's integers, out of a broken clock, is all that can be wrong here.
    let body = toml::to_string(&file).map_err(|error| TrustError::Damaged {
        path: path.to_owned(),
        line: None,
        reason: error.to_string(),
    })?;
    Ok(format!("{HEADER}{body}"))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(seconds: &u64) -> bool {
    *seconds == 0
}
