//! One try of a request: who takes it, what came of it, and whether somebody else may do better.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Response, StatusCode};
use tokio::time::Instant;
use tower::ServiceExt as _;

use super::aim::Aim;
use super::attempt::{Outcome, attempt};
use super::errand::Errand;
use super::members::{Member, Members};
use super::seek::{Found, Lost, WaitingRoom};
use super::walk::Walk;
use super::{Known, breaker, choose, refuse};
use crate::digests::Holder;
use crate::exchange::{Body, Cause, ExchangeError, PEER_HEADER, Progress, Refusal, RefusalCode, ResetCode};
use crate::route::ModelName;

/// Finds a server for a request, sends it there, and says what came of it.
#[derive(Debug, Clone)]
pub(super) struct Once {
    known: Arc<Known>,
    room: WaitingRoom,
}

/// What came of a try.
#[derive(Debug)]
pub(super) struct Tried {
    /// As the application would get it.
    pub(super) result: Result<Response<Body>, Refusal>,
    pub(super) verdict: Verdict,
}

/// What a try was for.
struct Asked<'a> {
    errand: &'a Errand,
    /// The digest under which the member has the model that is asked for.
    digest: Option<String>,
}

/// What to do about an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The application gets it.
    Pass,
    /// So too, although it failed: it may have been acted on, and is not for us to do twice.
    Fail,
    /// Nothing was run, and the same one or another may take it, once there is one: no budget needed.
    Again,
    /// Someone else may do better, and nothing was run: no budget needed.
    Elsewhere,
    /// Someone else may do better, and this one should have: within the budget.
    ElsewhereWithinBudget,
    /// A server had all of it and failed: once more at most, within the budget, or one request would take every server
    /// down that it can.
    OnceMore,
}

// === impl Once ===

impl tower::Service<Arc<Walk>> for Once {
    type Response = Tried;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Tried, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, walk: Arc<Walk>) -> Self::Future {
        let once = self.clone();
        Box::pin(async move { Ok(once.run(&walk).await) })
    }
}

impl Once {
    /// Tries over what is known.
    pub(super) fn new(known: Arc<Known>, room: WaitingRoom) -> Self {
        Self { known, room }
    }

    async fn run(&self, walk: &Walk) -> Tried {
        let errand = &walk.errand;
        let (found, asked) = loop {
            let found = match self.find(errand).await {
                Ok(found) => found,
                Err(lost) => {
                    // After a first try somebody else was there a moment ago, or we would not be here again.
                    let result = match walk.take_last() {
                        Some(result) => result,
                        None => Err(lost.into_refusal().await),
                    };
                    return Tried { result, verdict: Verdict::Pass };
                }
            };
            let asked = Asked { errand, digest: digest_of(&errand.aim, &found.member) };
            if self.claims(&asked, &found.member) {
                break (found, asked);
            }
        };
        let (member, slot) = (found.member.clone(), found.slot.is_some());
        errand.tried_at(&member);
        errand.entry.tries(&member, slot);
        errand.recorded_at(&self.known, &member);
        tracing::debug!(
            request = %errand.entry.id(), peer = %member.label(), model = errand.aim.model().map(tracing::field::display),
            attempt = errand.tries(), slot, "request goes to"
        );
        // Whether the gate has it nobody knows before it answers.
        let may_be_given_up = |members: &Members| errand.repeatable && walk.may_move(members, &self.known.node);
        let members = self.known.members.clone();
        let (progress, mut request) = (Progress::default(), walk.request());
        request.extensions_mut().insert(progress.clone());
        let outcome = attempt(found, errand, request, &progress, members, may_be_given_up).await;
        let verdict = self.judge(&outcome, progress.has_started(), &asked, &member);
        Tried { result: self.settle(outcome, &asked, &member), verdict }
    }

    /// Whether the member has the weights that this node keeps to for the model, or is the first to be asked for it.
    fn claims(&self, asked: &Asked<'_>, member: &Member) -> bool {
        let Some((model, digest)) = asked.weights() else { return true };
        let holder = Holder { id: member.id(), name: member.label() };
        let kept = asked.errand.kept(&self.known.node);
        self.known.node.digests.claim(model, digest, holder, kept.as_ref().map(|kept| &*kept.digest))
    }

    /// Who takes it next. What takes a slot may have to wait for one; for all else whoever has least to do will do.
    async fn find(&self, errand: &Arc<Errand>) -> Result<Found, Lost> {
        if errand.runs {
            let Ok(found) = self.room.clone().oneshot(errand.clone()).await;
            return found;
        }
        let mut members = self.known.members.clone();
        let since = Instant::now();
        loop {
            let snapshot = members.borrow_and_update().clone();
            match errand.candidates(&snapshot, &self.known.node) {
                Ok(candidates) => {
                    let least = choose::least_busy(&candidates);
                    return least
                        .map(Found::without_slot)
                        .ok_or_else(|| Lost::Refused(refuse::nobody(&snapshot).refusal));
                }
                Err(unmet) if !errand.has_failed() => {
                    let (known, grace_ends) = (&self.known, self.known.grace_ends);
                    known.wait_for_more(&mut members, since, grace_ends, unmet).await.map_err(Lost::Refused)?;
                }
                Err(unmet) => return Err(Lost::Refused(unmet.refusal)),
            }
        }
    }

    /// Looks at what came of a try, remembers what it says of the member, and says whether another should be tried.
    /// `started`: whether the server is known to have had the whole request.
    fn judge(&self, outcome: &Outcome, started: bool, asked: &Asked<'_>, member: &Member) -> Verdict {
        let verdict = match outcome {
            Outcome::Failed(
                ExchangeError::Unreachable(_)
                | ExchangeError::NotRun(..)
                | ExchangeError::Reset(_, ResetCode::Forbidden | ResetCode::NotRun),
            ) => Verdict::Elsewhere,
            Outcome::Failed(ExchangeError::Reset(_, ResetCode::Late)) => {
                let members = self.known.members.borrow().clone();
                let others = asked.errand.candidates(&members, &self.known.node);
                let again = asked.errand.was_late_at(member, !others.is_ok_and(|others| !others.is_empty()));
                if let Some((model, digest)) = asked.weights() {
                    self.known.node.digests.failed(model, digest);
                }
                return if again { Verdict::Again } else { Verdict::Elsewhere };
            }
            Outcome::Failed(ExchangeError::Body(_)) => return Verdict::Pass,
            // The request that ended this server may end the next one.
            Outcome::Failed(ExchangeError::Ended(..) | ExchangeError::Reset(_, ResetCode::Ended)) => Verdict::Fail,
            Outcome::Lost(_) | Outcome::Failed(_) if !asked.errand.repeatable => Verdict::Fail,
            Outcome::Lost(_) | Outcome::Failed(ExchangeError::Lost(_)) if !started => Verdict::Elsewhere,
            Outcome::Lost(_) | Outcome::Failed(_) => Verdict::OnceMore,
            Outcome::Answered(response) => match RefusalCode::of(response).map(RefusalCode::cause) {
                Some(Cause::Full | Cause::Closed) => Verdict::Elsewhere,
                Some(Cause::Final | Cause::PerhapsRun) => Verdict::Pass,
                None if response.status() == StatusCode::NOT_FOUND => match asked.digest {
                    Some(_) if asked.errand.repeatable => {
                        // Else one that has nothing, and says so quickly, would draw all there is.
                        if let Some(model) = asked.errand.aim.model() {
                            member.dealings.failed(model, breaker::Outcome::Failed);
                        }
                        Verdict::ElsewhereWithinBudget
                    }
                    // It never said that it has the model. Another one that may have it could be asked.
                    None if asked.errand.repeatable && asked.errand.aim.model().is_some() => return Verdict::Elsewhere,
                    _ => return Verdict::Pass,
                },
                None if response.status().is_server_error() && asked.errand.repeatable => Verdict::OnceMore,
                None => Verdict::Pass,
            },
        };
        let refused = matches!(outcome, Outcome::Answered(answer) if RefusalCode::of(answer).is_some());
        let passes = matches!(verdict, Verdict::Pass);
        match passes {
            // In its gate's words, and no answer of its server's.
            true if refused => return verdict,
            true => member.dealings.served(asked.errand.aim.model()),
            false => member.dealings.stumbled(),
        }
        match asked.weights() {
            Some((model, digest)) if passes => self.known.node.digests.answered(model, digest),
            Some((model, digest)) => self.known.node.digests.failed(model, digest),
            None => {}
        }
        verdict
    }

    /// An outcome as the application would get it.
    fn settle(&self, outcome: Outcome, asked: &Asked<'_>, member: &Member) -> Result<Response<Body>, Refusal> {
        let broke_off = if asked.errand.repeatable && asked.errand.aim.may_move() {
            refuse::broke_off
        } else {
            refuse::broke_off_once
        };
        match outcome {
            Outcome::Answered(mut response) => {
                asked.errand.entry.came(response.status().as_u16().to_string());
                if let Ok(label) = HeaderValue::from_str(member.label().as_str()) {
                    response.headers_mut().insert(PEER_HEADER, label);
                }
                Ok(response)
            }
            Outcome::Failed(error) => {
                asked.errand.entry.came(error.to_string());
                tracing::debug!(request = %asked.errand.entry.id(), peer = %member.label(), %error, "no answer");
                Err(match &error {
                    ExchangeError::Body(_) => refuse::bad_body(&error),
                    ExchangeError::Reset(_, ResetCode::Forbidden) => refuse::not_let_in(member, &self.known.node.name),
                    // Nothing was run.
                    ExchangeError::Unreachable(_)
                    | ExchangeError::NotRun(..)
                    | ExchangeError::Reset(_, ResetCode::Late | ResetCode::NotRun) => refuse::broke_off(&error),
                    ExchangeError::Ended(..) | ExchangeError::Reset(_, ResetCode::Ended) => refuse::ended(&error),
                    _ => broke_off(&error),
                })
            }
            Outcome::Lost(health) => {
                asked.errand.entry.came("it fell silent".to_owned());
                tracing::debug!(request = %asked.errand.entry.id(), peer = %member.label(), ?health, "given up");
                Err(broke_off(&ExchangeError::Lost(member.label())))
            }
        }
    }
}

// === impl Asked ===

impl<'a> Asked<'a> {
    /// The model it is routed by, and the digest under which the member has it.
    fn weights(&self) -> Option<(&'a ModelName, &str)> {
        Some((self.errand.aim.model()?, self.digest.as_deref()?))
    }
}

/// The digest under which the member has the model that is asked for; empty if it did not say.
fn digest_of(aim: &Aim, member: &Member) -> Option<String> {
    member.view().digest(aim.model()?).map(str::to_owned)
}
