//! Why a peer is not served here, as the code that it is told. It has proved its key: nobody else learns what the trust book
//! says, and of other keys it says no more than that one has this name.

use std::fmt;
use std::sync::Arc;

use crate::exchange::{Denial, Report};
use crate::id::{Id, NodeName, Scope};
use crate::trust::{Policy, Snapshot, Trust, TrustPolicy};

/// Says why nothing is shared at the moment, if the owner wants it so.
#[derive(Clone)]
pub struct NotNow(Arc<dyn Fn() -> Option<Denial> + Send + Sync>);

impl NotNow {
    /// Asks this function.
    pub fn new(ask: impl Fn() -> Option<Denial> + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }
}

impl fmt::Debug for NotNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NotNow").field(&(self.0)()).finish()
    }
}

/// The peer that reads a report, and the rules for it.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) id: Id,
    /// The name that its hello gave.
    pub(super) name: NodeName,
    pub(super) policy: TrustPolicy,
    pub(super) not_now: NotNow,
}

impl Reader {
    /// The report for it: a peer that this node does not trust learns that it shares something, and why not with that
    /// peer.
    pub(super) fn report(&self, book: &Snapshot, report: &Report) -> Report {
        let scope = book.standing(&self.id).scope;
        match scope {
            Scope::None => {
                Report { provider: report.provider, denial: Some(self.denial(book)), scope, ..Report::default() }
            }
            Scope::Infer | Scope::Manage => {
                // When the owner is at the machine is the business of those alone who may use it.
                let denial = (self.not_now.0)().filter(|_| !report.provider);
                Report { scope, denial, ..report.clone() }
            }
        }
    }

    /// Why it may do nothing here.
    fn denial(&self, book: &Snapshot) -> Denial {
        // A revoked key has its name still.
        let others_name = book.pins().any(|pin| pin.id != self.id && pin.name.is(self.name.as_str()));
        match book.standing(&self.id).trust {
            Trust::Revoked => Denial::Revoked,
            Trust::Trusted => Denial::NoAccess,
            _ if others_name => Denial::NameKnown,
            _ if self.policy.inbound == Policy::Paired => Denial::ApprovalRequired,
            Trust::None => Denial::Crowded,
            Trust::FirstUse | Trust::Vouched => Denial::NoAccess,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::ModelInfo;

    fn reader(not_now: Option<Denial>) -> Reader {
        Reader {
            id: Id::of_spki(b"reader"),
            name: NodeName::lossy("reader"),
            policy: TrustPolicy::default(),
            not_now: NotNow::new(move || not_now),
        }
    }

    #[test]
    fn a_peer_without_access_learns_no_model_and_not_when_the_owner_is_there() {
        let models = [("m".to_owned(), ModelInfo::default())].into();
        let report = Report { provider: true, models, ..Report::default() };
        let book = Snapshot::default();
        let told = reader(Some(Denial::InUse)).report(&book, &report);
        assert!(told.provider && told.models.is_empty() && told.scope == Scope::None);
        assert_eq!(told.denial, Some(Denial::Crowded));
        let paired = TrustPolicy { inbound: Policy::Paired, ..TrustPolicy::default() };
        let told = Reader { policy: paired, ..reader(None) }.report(&book, &report);
        assert_eq!(told.denial, Some(Denial::ApprovalRequired));
    }
}
