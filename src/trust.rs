//! Who may do what: the trust book, its store and a watch of snapshots.

use crate::id::{Scope, Use};
use serde::{Deserialize, Serialize};

/// How a key came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Pinned by the program when it was met.
    FirstUse,
    /// Pinned by a person.
    Trusted,
    /// Used because someone trusted says so.
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
