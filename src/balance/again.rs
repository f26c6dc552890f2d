//! Once more or not: the policy of tower's retry, which tries again what [`Once`] says may go better elsewhere.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use tower::ServiceBuilder;
use tower::retry::budget::{Budget as _, TpsBudget};
use tower::retry::{Policy, Retry};

use super::Known;
use super::once::{Once, Tried, Verdict};
use super::seek::WaitingRoom;
use super::walk::Walk;

/// The budget of retries: a share of the requests of the last ten seconds, and one a second for those who send few.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const BUDGET_A_SECOND: u32 = 1;
const BUDGET_SHARE: f32 = 0.2;

/// Takes a request to an answer, in as many tries as it may have.
pub(super) type Tries = Retry<Again, Once>;

/// When to try once more.
#[derive(Debug, Clone)]
pub(super) struct Again {
    known: Arc<Known>,
    budget: Arc<TpsBudget>,
}

/// Tries over what is known of the mesh. Who has to wait for a slot does so in `room`.
pub(super) fn tries(known: Arc<Known>, room: WaitingRoom) -> Tries {
    let budget = Arc::new(TpsBudget::new(BUDGET_WINDOW, BUDGET_A_SECOND, BUDGET_SHARE));
    ServiceBuilder::new().retry(Again { known: known.clone(), budget }).service(Once::new(known, room))
}

// === impl Again ===

impl Policy<Arc<Walk>, Tried, Infallible> for Again {
    type Future = Ready<()>;

    fn retry(&mut self, walk: &mut Arc<Walk>, tried: &mut Result<Tried, Infallible>) -> Option<Ready<()>> {
        let Ok(tried) = tried else { return None };
        let may_move = || {
            let members = self.known.members.borrow().clone();
            walk.may_move(&members, &self.known.node)
        };
        let again = match tried.verdict {
            Verdict::Pass | Verdict::Fail => false,
            Verdict::Again => walk.can_be_sent_again(),
            Verdict::Elsewhere => may_move(),
            Verdict::ElsewhereWithinBudget => may_move() && self.budget.withdraw(),
            Verdict::OnceMore => walk.errand.failed_whole() == 1 && may_move() && self.budget.withdraw(),
        };
        again.then(|| {
            walk.put_aside(match &mut tried.result {
                Ok(answer) => Ok(mem::take(answer)),
                Err(refusal) => Err(refusal.clone()),
            });
            ready(())
        })
    }

    /// Every request pays in; it is the same one however often it is tried.
    fn clone_request(&mut self, walk: &Arc<Walk>) -> Option<Arc<Walk>> {
        if walk.errand.tries() == 0 {
            self.budget.deposit();
        }
        Some(walk.clone())
    }
}
