//! Who may do what: the trust book, its store and a watch of snapshots.
//!
//! A **pin** records that a key was met and proved. First use makes pins as keys are met: lending (who may use our
//! Ollama) gives `infer`, using (whose Ollama gets our prompts) ends with the first-use window. `manage` is only ever
//! given by a person, and what a person decided no meeting changes. The rules are in `ledger`, without I/O or clock; the
//! file's form is in `file`; `writer` keeps the two in step.
//!
//! Over the pins lies what vouchers say ([`Statement`]): whom nobody here has decided on is used by a voucher's word. It is
//! worked out and never stored as a pin, and `vouching` has its rules.
//!
//! Nothing is granted that is not on the disk: a change counts, and watchers see it, once it was written. What somebody
//! else writes there counts within a second ([`Book::keep_up`]).

mod book;
mod error;
mod file;
mod forget;
mod invitations;
mod ledger;
mod list;
mod origins;
mod policy;
mod told;
mod vouching;
mod window;
mod writer;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::id::{Id, NodeName, Scope, Use};
pub use book::Book;
pub use error::TrustError;
pub use forget::Forgotten;
pub use invitations::Invited;
pub use list::{Imported, List};
pub use policy::{ParsePolicyError, Policy, TrustPolicy};
pub use vouching::{MAX_VOUCHES, Said, Statement, VOUCH_SPAN, Vouch, Voucher};
pub use window::Window;

/// The book's file name in the state directory.
pub const TRUST_FILE: &str = "trust.toml";

/// Pins by first use that are kept. Four times what a /24 network can hold, and with some 250 bytes each the file is
/// still written in milliseconds.
pub const MAX_FIRST_USE: usize = 1024;

/// How a key came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Pinned by the program when it was met.
    FirstUse,
    /// Pinned by a person.
    Trusted,
    /// Used because somebody who is trusted as a voucher says so. Never in the file: it is worked out.
    Vouched,
    /// Refused for good, until a person trusts it again.
    Revoked,
    /// Not pinned.
    #[default]
    None,
}

/// What the book says of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// How the key came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
}

/// One key in the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The key.
    pub id: Id,
    /// What its node is called: a label, never authority.
    pub name: NodeName,
    /// Where it was last reached, or came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How it came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
    /// Whether the servers that it vouches for are used too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub voucher: bool,
    /// When it was pinned, in seconds since 1970.
    pub first_met: u64,
    /// When it was last met, in seconds since 1970, to the hour.
    pub last_met: u64,
}

/// A key that has just been proved, and what its node says of itself.
#[derive(Debug, Clone)]
pub struct Met {
    /// The proved key.
    pub id: Id,
    /// The name its hello gives.
    pub name: NodeName,
    /// Where it is.
    pub address: Option<String>,
    /// Who opened the connection.
    pub direction: Direction,
}

/// Who opened the connection, and so which of the two risks it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer: it wants to use us.
    Inbound,
    /// We did: we may want to use it. To be met again when it becomes a provider later.
    Outbound {
        /// Whether it lends an Ollama.
        provider: bool,
    },
}

/// What came of a meeting.
#[derive(Debug)]
pub struct Encounter {
    /// What the peer may do and is used for. Of a peer without a pin this says more than a [`Snapshot`] can.
    pub standing: Standing,
    /// What people should hear of.
    pub news: Option<News>,
    /// To be kept as long as the connection lasts.
    pub presence: Presence,
}

/// As long as one of these exists the peer is not idle, and its pin is not given up for another.
#[derive(Debug, Clone)]
pub struct Presence(#[expect(dead_code, reason = "held for its count")] Arc<()>);

/// What a meeting has to tell. The book has logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Pinned by first use.
    FirstMet,
    /// It waits for a person to type `ollana trust`.
    Waiting,
    /// It claims a name that is known with another key, one that was revoked included. That gives it nothing: a person
    /// decides.
    NameTaken {
        /// The key that has the name.
        by: Id,
    },
    /// A known key bears a new name.
    Renamed {
        /// The name before.
        from: NodeName,
    },
    /// Too many keys are new: this one is not pinned. Perhaps later.
    Crowded,
}

/// The book at one moment, as it is in effect under the node's policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pins: BTreeMap<Id, Pin>,
    /// By whose word a key is used.
    vouched_by: BTreeMap<Id, Vec<Id>>,
    /// Whom this node vouches for.
    vouches: Vec<Said>,
    /// The record of the first-use window.
    opening: window::Opening,
    /// When something in it has had its time, in seconds since 1970.
    expires: Option<u64>,
}

// === impl Encounter ===

impl Encounter {
    /// Whether nothing is decided on the key, since another is known by its name: see [`until_name_is_free`].
    pub fn waits_for_name(&self) -> bool {
        self.standing.trust == Trust::None && matches!(self.news, Some(News::NameTaken { .. }))
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// What the book says of `id`; of a key without a pin, nothing: [`Standing::default`].
    pub fn standing(&self, id: &Id) -> Standing {
        self.pins.get(id).map(Pin::standing).unwrap_or_default()
    }

    /// The pin of `id`.
    pub fn pin(&self, id: &Id) -> Option<&Pin> {
        self.pins.get(id)
    }

    /// All pins, tombstones included, in the order of their IDs.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values()
    }

    /// Why first use decides nothing on the key `id` whose node is called `name`: another key is known by that name. Nothing
    /// if the key itself is in the book.
    pub fn name_conflict(&self, id: &Id, name: &NodeName) -> Option<NameConflict> {
        if self.pins.contains_key(id) {
            return None;
        }
        let holder = holder_of(self.pins.values(), name, id)?;
        Some(NameConflict { with: holder.id, revoked: holder.trust == Trust::Revoked })
    }

    /// The first-use window as it is at `now`, in seconds since 1970.
    pub fn window(&self, now: u64) -> Window {
        self.opening.at(now)
    }
}

/// The other key that is known by this name, a revoked one included: else its owner could come back under the name with a new
/// key. Of several the one that counts most.
fn holder_of<'a>(pins: impl Iterator<Item = &'a Pin>, name: &NodeName, but: &Id) -> Option<&'a Pin> {
    let holds = |pin: &&Pin| pin.id != *but && pin.name.is(name.as_str());
    pins.filter(holds).min_by_key(|pin| (pin.trust == Trust::Revoked, Reverse(pin.last_met), pin.id))
}

/// A key that is not in the book, with the name of one that is: a person decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NameConflict {
    /// The key that is known by the name.
    pub with: Id,
    /// Whether that key was revoked.
    pub revoked: bool,
}

/// Resolves once no other key is known by this name, or the key itself is in the book.
pub async fn until_name_is_free(trust: &mut watch::Receiver<Arc<Snapshot>>, id: &Id, name: &NodeName) {
    if trust.wait_for(|trust| trust.name_conflict(id, name).is_none()).await.is_err() {
        // The book is gone: the node stops.
        std::future::pending().await
    }
}

// === impl Pin ===

impl Pin {
    /// What the book says of this key.
    pub fn standing(&self) -> Standing {
        Standing { trust: self.trust, use_: self.use_, scope: self.scope }
    }
}

// === impl Standing ===

impl Standing {
    /// Whether it was refused by a person.
    pub fn is_revoked(&self) -> bool {
        self.trust == Trust::Revoked
    }

    /// How it stands as a provider: where nobody decided on a provider, it waits.
    #[must_use]
    pub fn as_provider(mut self) -> Self {
        if self.use_ == Use::No && matches!(self.trust, Trust::None | Trust::FirstUse) {
            self.use_ = Use::Pending;
        }
        self
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FirstUse => "first-use",
            Self::Trusted => "trusted",
            Self::Vouched => "vouched",
            Self::Revoked => "revoked",
            Self::None => "none",
        })
    }
}

#[cfg(test)]
mod tests;
