//! What happens to keys that nobody has decided on.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What happens to keys that nobody has decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Lending: may they use our Ollama?
    pub inbound: Policy,
    /// Using: do they get our prompts?
    pub outbound: Policy,
    /// How long after the first provider new ones are used without asking.
    pub first_use_window: Duration,
}

/// One direction's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Keys are pinned when they are met.
    #[default]
    FirstUse,
    /// Nothing without `ollana trust`; what first use pinned earlier does not count either.
    Paired,
}

// === impl TrustPolicy ===

impl Default for TrustPolicy {
    fn default() -> Self {
        // A day: whoever sets up a few machines has them all on within it.
        let first_use_window = Duration::from_secs(24 * 60 * 60);
        Self { inbound: Policy::FirstUse, outbound: Policy::FirstUse, first_use_window }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FirstUse => "first-use",
            Self::Paired => "paired",
        })
    }
}

impl FromStr for Policy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "first-use" => Ok(Self::FirstUse),
            "paired" => Ok(Self::Paired),
            _ => Err(ParsePolicyError),
        }
    }
}

/// Not a policy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a trust policy is first-use or paired")]
pub struct ParsePolicyError;
