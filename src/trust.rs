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

/// What is believed of a key that was not met before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It is pinned.
    #[default]
    FirstUse,
    /// Nothing without `ollana trust`.
    Paired,
}

/// The policies of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Who may use our Ollama.
    pub inbound: Policy,
    /// Whose Ollama gets our prompts.
    pub outbound: Policy,
    /// How long providers are used as they are met.
    pub first_use_window: std::time::Duration,
}

impl Default for TrustPolicy {
    fn default() -> Self {
        Self {
            inbound: Policy::FirstUse,
            outbound: Policy::FirstUse,
            first_use_window: std::time::Duration::from_secs(86_400),
        }
    }
}
