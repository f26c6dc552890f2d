//! What is kept of invitations: never the secret, and what is counted when one is redeemed.

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::writer::Writer;
use super::{Met, Trust, TrustError};
use crate::id::{Id, Scope};

/// Invitations at once. Each is looked through when somebody redeems one.
pub(super) const MAX_OPEN: usize = 256;

/// An invitation as its maker keeps it. Neither number nor key tells the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invited {
    /// Which one of those that are kept, counted from 1: what people type.
    #[serde(default)]
    pub place: u32,
    /// Which one; whoever holds the invitation knows it.
    pub number: String,
    /// The public key of the pair that its secret makes, in hexadecimal: good for checking a proof, not for giving one.
    pub key: String,
    /// What whoever redeems it may do at our gate.
    pub scope: Scope,
    /// Whether we send them prompts.
    #[serde(rename = "use")]
    pub use_: bool,
    /// How many keys may redeem it.
    pub uses: u32,
    /// Until when, in seconds since 1970.
    pub until: u64,
    /// Who has.
    #[serde(default)]
    pub redeemed: Vec<Id>,
}

// === impl Ledger ===

impl Ledger {
    /// Keeps one more. Those that have expired go.
    pub(super) fn invite(&mut self, invited: Invited, now: u64) -> Result<(), TrustError> {
        self.invitations.retain(|kept| now < kept.until);
        if self.invitations.len() >= MAX_OPEN {
            return Err(TrustError::TooManyInvitations);
        }
        // Not that of another, nor of one that went while later ones are kept: what somebody reads in a list stays true.
        let place = self.invitations.iter().map(|kept| kept.place).max().unwrap_or(0).saturating_add(1);
        self.invitations.push(Invited { place, ..invited });
        Ok(())
    }

    /// Takes one back.
    pub(super) fn uninvite(&mut self, number: &str) -> bool {
        let before = self.invitations.len();
        self.invitations.retain(|kept| kept.number != number);
        self.invitations.len() < before
    }

    /// Somebody has proved to hold this one. A key is counted once: who did not hear our answer may ask again, and what a
    /// person decided on it since stands.
    pub(super) fn redeem(&mut self, number: &str, met: &Met, now: u64) -> bool {
        let revoked = self.pins.get(&met.id).is_some_and(|pin| pin.trust == Trust::Revoked);
        let Some(kept) = self.invitations.iter_mut().find(|kept| kept.number == number) else { return false };
        if revoked || now >= kept.until {
            return false;
        }
        if kept.redeemed.contains(&met.id) {
            return true;
        }
        if kept.redeemed.len() >= usize::try_from(kept.uses).unwrap_or(usize::MAX) {
            return false;
        }
        kept.redeemed.push(met.id);
        let (scope, use_) = (kept.scope, kept.use_);
        // What a person has decided on this key by name says more than an invitation that went through other hands.
        if self.pins.get(&met.id).is_none_or(|pin| pin.trust != Trust::Trusted) {
            self.trust(met.id, met.name.clone(), met.address.clone(), scope, use_, now);
        }
        true
    }
}

// === impl Writer ===

impl Writer {
    pub(super) fn invitations(&self) -> Vec<Invited> {
        self.ledger.invitations.clone()
    }

    pub(super) fn invitation_key(&self, number: &str) -> Option<String> {
        self.ledger.invitations.iter().find(|kept| kept.number == number).map(|kept| kept.key.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeName, Use};
    use crate::trust::{Direction, Standing};

    fn met(n: u8) -> Met {
        Met {
            id: Id::from_bytes([n; 32]),
            name: NodeName::lossy(&format!("n{n}")),
            address: None,
            direction: Direction::Inbound,
        }
    }

    fn with(uses: u32) -> Ledger {
        let mut ledger = Ledger::default();
        let invited = Invited {
            place: 0,
            number: "a".to_owned(),
            key: String::new(),
            scope: Scope::Infer,
            use_: false,
            uses,
            until: 100,
            redeemed: Vec::new(),
        };
        ledger.invite(invited, 0).unwrap();
        ledger
    }

    fn standing(ledger: &Ledger, n: u8) -> Option<Standing> {
        ledger.pins.get(&met(n).id).map(crate::trust::Pin::standing)
    }

    #[test]
    fn an_invitation_trusts_as_many_keys_as_it_says_and_counts_each_once() {
        let mut ledger = with(2);
        for n in [1, 1, 2, 1] {
            assert!(ledger.redeem("a", &met(n), 10));
        }
        let trusted = Standing { trust: Trust::Trusted, use_: Use::No, scope: Scope::Infer };
        assert_eq!((standing(&ledger, 1), standing(&ledger, 2)), (Some(trusted), Some(trusted)));
        assert!(!ledger.redeem("a", &met(3), 10), "it is used up");
        assert!(!ledger.redeem("b", &met(3), 10), "there is none");
        assert_eq!(standing(&ledger, 3), None);
    }

    #[test]
    fn an_invitation_ends_with_its_time_or_when_it_is_taken_back() {
        assert!(!with(1).redeem("a", &met(1), 100));
        let mut ledger = with(1);
        assert!(ledger.uninvite("a") && !ledger.uninvite("a"));
        assert!(!ledger.redeem("a", &met(1), 10));
    }

    #[test]
    fn an_invitation_changes_nothing_that_a_person_decided() {
        let mut ledger = with(9);
        ledger.revoke(met(1).id, 5);
        assert!(!ledger.redeem("a", &met(1), 10), "a tombstone beats it");
        ledger.trust(met(2).id, met(2).name, None, Scope::None, false, 5);
        assert!(ledger.redeem("a", &met(2), 10));
        assert_eq!(standing(&ledger, 2).unwrap().scope, Scope::None);
        ledger.redeem("a", &met(3), 10);
        ledger.trust(met(3).id, met(3).name, None, Scope::Manage, true, 11);
        assert!(ledger.redeem("a", &met(3), 12));
        assert_eq!(standing(&ledger, 3).unwrap().scope, Scope::Manage);
    }

    #[test]
    fn there_are_only_so_many_and_the_expired_ones_go() {
        let mut ledger = with(1);
        let one = ledger.invitations[0].clone();
        for n in 1..MAX_OPEN {
            ledger.invite(Invited { number: n.to_string(), ..one.clone() }, 0).unwrap();
        }
        assert!(matches!(ledger.invite(one.clone(), 0), Err(TrustError::TooManyInvitations)));
        ledger.invite(Invited { until: 300, ..one }, 200).unwrap();
        assert_eq!(ledger.invitations.len(), 1);
    }
}
