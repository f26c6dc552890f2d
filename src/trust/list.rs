//! Lists of decisions that one node writes and others take over: what configuration management ships.
//!
//! ```toml
//! version = 1
//!
//! [[peer]]
//! id = "MFZWI3D-BONSGYC-YLTMRWG-C43ENR5-QXGZDMM-FZWI3DP-BONSGYY-LTMRWAD"
//! name = "gpu1"
//! address = "192.168.1.5:11435"   # may be left out
//! trust = "trusted"               # or "revoked", which needs no more than the ID
//! use = true
//! scope = "infer"                 # none, infer or manage
//! voucher = true                  # whom it vouches for is used too; left out where that is not so
//! ```
//!
//! It holds no times and stands in the order of the IDs: the same decisions give the same text, and two lists are merged
//! by putting one behind the other. Where a key stands in it twice the later entry counts, but a revocation always does.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::{Snapshot, Trust};
use crate::id::{Id, NodeName, Scope, Use};

/// Raised when an older ollana would misread a list.
const VERSION: u32 = 1;

const HEADER: &str = "\
# Whom an ollana trusts, by `ollana trust export`. `ollana trust import FILE` takes it over on another node.
";

/// A list of decisions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct List {
    version: u32,
    #[serde(default, rename = "peer", skip_serializing_if = "Vec::is_empty")]
    peers: Vec<Listed>,
}

/// One key in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listed {
    /// The key.
    pub id: Id,
    /// What its node is called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<NodeName>,
    /// Where it was last reached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What was decided.
    pub trust: Decision,
    /// Whether it is sent prompts.
    #[serde(default, rename = "use", skip_serializing_if = "std::ops::Not::not")]
    pub use_: bool,
    /// What it may do.
    #[serde(default, skip_serializing_if = "is_none")]
    pub scope: Scope,
    /// Whether the servers that it vouches for are used too. As with the scope, what the list says counts.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub voucher: bool,
}

/// What a person can decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// To trust.
    Trusted,
    /// To refuse.
    Revoked,
}

/// What an import has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Keys that are trusted now, or otherwise than before.
    pub trusted: usize,
    /// Keys that are revoked now.
    pub revoked: usize,
    /// Keys that stood as the list has them.
    pub unchanged: usize,
    /// Keys that the list trusts and that stay revoked here.
    pub stay_revoked: usize,
    /// Keys that were trusted and are not in the list.
    pub dropped: usize,
}

/// Why a text is no list.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// Not what this program writes.
    #[error("this is no list of `ollana trust export`: {0}")]
    Unclear(String),
    /// Written by a later version.
    #[error("the list is of version {0}, which this ollana does not know: use the ollana that wrote it")]
    Newer(u32),
}

// === impl List ===

impl List {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let listed = |pin: &super::Pin| {
            let trust = match pin.trust {
                Trust::Trusted => Decision::Trusted,
                Trust::Revoked => Decision::Revoked,
                Trust::FirstUse | Trust::Vouched | Trust::None => return None,
            };
            Some(Listed {
                id: pin.id,
                name: Some(pin.name.clone()),
                address: pin.address.clone(),
                trust,
                use_: pin.use_ == Use::Yes,
                scope: pin.scope,
                voucher: pin.is_voucher(),
            })
        };
        Self { version: VERSION, peers: snapshot.pins().filter_map(listed).collect() }
    }

    /// Reads a list.
    ///
    /// # Errors
    /// [`ListError`]; unknown fields are errors, since a slip in `scope` must not read as if it were not there.
    pub fn parse(text: &str) -> Result<Self, ListError> {
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let unclear =
            |error: toml::de::Error| ListError::Unclear(error.to_string().lines().collect::<Vec<_>>().join(", "));
        // A list behind another list begins anew with its version.
        let mut lists = text.split_inclusive('\n').fold(vec![String::new()], |mut lists, line| {
            if line.trim_start().starts_with("version") {
                lists.push(String::new());
            }
            if let Some(last) = lists.last_mut() {
                last.push_str(line);
            }
            lists
        });
        let first = lists.remove(0);
        if lists.is_empty() || first.lines().any(|line| !line.trim().is_empty() && !line.trim().starts_with('#')) {
            return Err(ListError::Unclear("it does not begin with `version = 1`".to_owned()));
        }
        let mut peers = Vec::new();
        for list in lists {
            let Versioned { version } = toml::from_str(&list).map_err(unclear)?;
            if version > VERSION {
                return Err(ListError::Newer(version));
            }
            peers.extend(toml::from_str::<Self>(&list).map_err(unclear)?.peers);
        }
        Ok(Self { version: VERSION, peers })
    }

    /// The list as text.
    ///
    /// # Errors
    /// Never in practice: there is nothing in it that TOML cannot hold.
    pub fn to_text(&self) -> Result<String, ListError> {
        let body = toml::to_string(self).map_err(|error| ListError::Unclear(error.to_string()))?;
        Ok(format!("{HEADER}{body}"))
    }

    /// What it says of each key.
    fn decisions(&self) -> BTreeMap<Id, &Listed> {
        let mut decisions: BTreeMap<Id, &Listed> = BTreeMap::new();
        for listed in &self.peers {
            let revoked = decisions.get(&listed.id).is_some_and(|before| before.trust == Decision::Revoked);
            if !revoked {
                decisions.insert(listed.id, listed);
            }
        }
        decisions
    }
}

// === impl Ledger ===

impl Ledger {
    pub(super) fn import(&mut self, list: &List, me: Option<Id>, replace: bool, now: u64) -> Imported {
        let mut imported = Imported::default();
        let decisions = list.decisions();
        for listed in decisions.values().filter(|listed| Some(listed.id) != me) {
            let before = self.pins.get(&listed.id).cloned();
            let revoked = before.as_ref().is_some_and(|pin| pin.trust == Trust::Revoked);
            match listed.trust {
                Decision::Revoked if revoked => imported.unchanged += 1,
                Decision::Revoked => {
                    self.revoke(listed.id, now);
                    if let (Some(pin), Some(name)) = (self.pins.get_mut(&listed.id), &listed.name) {
                        pin.name = name.clone();
                    }
                    imported.revoked += 1;
                }
                Decision::Trusted if revoked => imported.stay_revoked += 1,
                Decision::Trusted => {
                    let name = listed.name.clone().or_else(|| before.as_ref().map(|pin| pin.name.clone()));
                    let name = name.unwrap_or_else(|| NodeName::lossy(&listed.id.short()));
                    self.trust(listed.id, name, listed.address.clone(), listed.scope, listed.use_, now);
                    self.set_voucher(&listed.id, listed.voucher);
                    let says = |pin: &super::Pin| (pin.standing(), pin.is_voucher());
                    match before.as_ref().map(says) == self.pins.get(&listed.id).map(says) {
                        true => imported.unchanged += 1,
                        false => imported.trusted += 1,
                    }
                }
            }
        }
        if replace {
            let before = self.pins.len();
            self.pins.retain(|id, pin| pin.trust != Trust::Trusted || decisions.contains_key(id));
            imported.dropped = before - self.pins.len();
        }
        self.tidy();
        imported
    }
}

fn is_none(scope: &Scope) -> bool {
    *scope == Scope::None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::TrustPolicy;

    fn id(n: u8) -> Id {
        Id::from_bytes([n; 32])
    }

    fn decided() -> Ledger {
        let mut ledger = Ledger::default();
        ledger.trust(id(1), NodeName::lossy("gpu1"), Some("gpu1.lan:11435".to_owned()), Scope::Manage, true, 1);
        ledger.trust(id(2), NodeName::lossy("laptop"), None, Scope::None, false, 2);
        ledger.revoke(id(3), 3);
        ledger
    }

    fn list(ledger: &Ledger) -> List {
        List::of(&ledger.snapshot(&TrustPolicy::default(), 0))
    }

    #[test]
    fn what_is_exported_is_imported_as_it_was_and_a_second_time_changes_nothing() {
        let text = list(&decided()).to_text().unwrap();
        let mut other = Ledger::default();
        let read = List::parse(&text).unwrap();
        let imported = other.import(&read, None, false, 9);
        assert_eq!(imported, Imported { trusted: 2, revoked: 1, ..Imported::default() });
        assert_eq!(list(&other).to_text().unwrap(), text);
        assert_eq!(other.import(&read, None, false, 10), Imported { unchanged: 3, ..Imported::default() });
    }

    #[test]
    fn two_lists_behind_each_other_are_one_and_a_revocation_wins_whichever_comes_first() {
        let mut against = Ledger::default();
        against.revoke(id(1), 1);
        let (for_, against) = (list(&decided()).to_text().unwrap(), list(&against).to_text().unwrap());
        for text in [format!("{for_}{against}"), format!("{against}\n{for_}")] {
            let mut ledger = Ledger::default();
            ledger.import(&List::parse(&text).unwrap(), None, false, 1);
            assert_eq!(ledger.pins[&id(1)].trust, Trust::Revoked);
            assert_eq!(ledger.pins[&id(2)].trust, Trust::Trusted);
        }
    }

    #[test]
    fn a_list_never_lifts_a_tombstone_and_replacing_drops_only_what_was_trusted() {
        let mut ledger = Ledger::default();
        ledger.revoke(id(1), 1);
        ledger.revoke(id(8), 1);
        ledger.trust(id(9), NodeName::lossy("old"), None, Scope::Manage, true, 1);
        let imported = ledger.import(&list(&decided()), Some(id(2)), true, 2);
        assert_eq!(imported, Imported { revoked: 1, stay_revoked: 1, dropped: 1, ..Imported::default() });
        for n in [1, 3, 8] {
            assert_eq!(ledger.pins[&id(n)].trust, Trust::Revoked, "{n}");
        }
        assert!(!ledger.pins.contains_key(&id(9)) && !ledger.pins.contains_key(&id(2)), "nobody lists themselves");
    }

    #[test]
    fn what_is_no_list_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "version"),
            ("[[peer]]\n", "version"),
            ("version = 2\n", "version 2"),
            ("version = 1\n[[peer]]\nid = \"x\"\ntrust = \"trusted\"\n", "56"),
            (&list(&decided()).to_text().unwrap().replace("scope", "scop"), "scop"),
            (&list(&decided()).to_text().unwrap().replace("\"trusted\"", "\"first-use\""), "first-use"),
        ] {
            let error = List::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains('\n'), "{reason}: {error}");
        }
    }
}
