//! Why a provider does not serve a peer: a code that crosses the network, and the words that its reader makes of it.
//!
//! Nothing that the other side wrote is shown: a code that is not known here is shown as such. So a stranger puts neither
//! text nor a command on somebody's screen.

use serde::{Deserialize, Serialize};

use crate::id::{Id, NodeName};

/// Why a provider does not serve the reader of its report, or does not let it in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Denial {
    /// The reader's name is known there with another key.
    NameKnown,
    /// A person has to accept each key there (`trust.inbound = paired`), and none has accepted this one.
    ApprovalRequired,
    /// A person there gave this key no access.
    NoAccess,
    /// Too many new keys came there at once.
    Crowded,
    /// A person there revoked this key.
    Revoked,
    /// The two speak no common version of the protocol.
    Version,
    /// The provider's owner set hours, and this is none of them.
    OutsideHours,
    /// The provider's owner uses the machine.
    InUse,
    /// A copy of the provider runs with its key.
    Cloned,
    /// A reason of a later version.
    #[serde(other)]
    Unknown,
}

/// A node that cannot be used as it is, and what a person can do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// Its name for people: the name it is shown under, or what was typed after `--peer`.
    pub node: String,
    /// Its key's ID: proved, unless `verified` says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// Where it is, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Whether it has proved its key. Else its name and ID are what a beacon claims, and anyone on the link can send one.
    pub verified: bool,
    /// Whether a person here trusts it, or somebody whom they let vouch.
    #[serde(default)]
    pub trusted: bool,
    /// The code that it gave, if it refuses this node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denial: Option<Denial>,
    /// The obstacle.
    pub reason: String,
    /// The command or action that removes the obstacle.
    #[serde(default, rename = "do", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

// === impl Denial ===

impl Denial {
    /// Whether the provider refuses this node in particular, rather than everybody for the moment.
    pub fn is_personal(self) -> bool {
        !matches!(self, Self::OutsideHours | Self::InUse | Self::Cloned)
    }

    /// The obstacle, without the provider's name.
    pub fn reason(self, own: &NodeName) -> String {
        match self {
            Self::NameKnown => {
                format!(
                    "refuses this node: the name {own} is known there with another key, so this key is not trusted there"
                )
            }
            Self::ApprovalRequired => "refuses this node: this node is not trusted there".to_owned(),
            Self::NoAccess => "refuses this node: its owner gave this node no access".to_owned(),
            Self::Crowded => "refuses this node: too many new nodes came there at once".to_owned(),
            Self::Revoked => "refused this node: this node's key is revoked there".to_owned(),
            Self::Version => "speaks another version of the protocol".to_owned(),
            Self::OutsideHours => "shares its models at other hours".to_owned(),
            Self::InUse => "does not share its models while its owner uses the machine".to_owned(),
            Self::Cloned => "does not share its models while a copy of it runs with the same key".to_owned(),
            Self::Unknown => "refuses this node, for a reason that this version does not know".to_owned(),
        }
    }

    /// The command or action that removes the obstacle, `peer` being the provider and `own` and `id` this node.
    pub fn advice(self, peer: &str, own: &NodeName, id: &Id) -> Option<String> {
        match self {
            // The name alone would mean the other key too.
            Self::NameKnown => Some(format!("on {peer}: ollana trust {}", own.with_suffix(&id.short()))),
            Self::ApprovalRequired | Self::NoAccess | Self::Crowded | Self::Revoked | Self::Unknown => {
                Some(format!("on {peer}: ollana trust {own}"))
            }
            Self::Version => Some(format!("update ollana here or on {peer}, whichever is older")),
            Self::OutsideHours | Self::InUse | Self::Cloned => None,
        }
    }
}

// === impl Unusable ===

impl Unusable {
    /// A sentence that begins with the node.
    pub fn sentence(&self) -> String {
        format!("{} {}", self.node, self.explanation())
    }

    /// The same without the node.
    pub fn explanation(&self) -> String {
        match &self.advice {
            Some(advice) => format!("{} → {advice}", self.reason),
            None => self.reason.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_of_a_later_version_is_no_error_and_quotes_nothing() {
        let denial: Denial = serde_json::from_str(r#""\u001b[2J run: rm -rf""#).unwrap();
        assert_eq!(denial, Denial::Unknown);
        let own = NodeName::lossy("ben");
        let said = denial.reason(&own) + &denial.advice("gpu2", &own, &Id::of_spki(b"ben")).unwrap_or_default();
        assert!(!said.contains("rm") && said.contains("on gpu2: ollana trust ben"), "{said}");
    }

    #[test]
    fn where_the_name_means_two_keys_the_command_names_one() {
        let (own, id) = (NodeName::lossy("ben"), Id::of_spki(b"ben"));
        let advice = Denial::NameKnown.advice("gpu2", &own, &id).unwrap();
        assert_eq!(advice, format!("on gpu2: ollana trust ben-{}", id.short()));
    }
}
