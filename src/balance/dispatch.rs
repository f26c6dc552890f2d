//! One request's walk: whom it is for, where it goes, what came of it, and perhaps once more.

use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::time::Instant;
use tower::ServiceExt as _;
use tower::retry::budget::Budget as _;

use super::aim::Aim;
use super::attempt::{Outcome, attempt};
use super::errand::Errand;
use super::journal::Entry;
use super::members::{Member, Members};
use super::replay::Replay;
use super::seek::{Found, Lost};
use super::{Inner, RETRIES, SUSPENSE, breaker, choose, refuse};
use crate::digests::Holder;
use crate::exchange::{Body, ExchangeError, PEER_HEADER, REFUSAL_HEADER, REQUEST_HEADER, Refusal, ResetCode};
use crate::route::{self, Dialect, Kind, ModelName};

/// What a try was for.
struct Asked<'a> {
    errand: &'a Errand,
    /// The digest under which the member has the model that is asked for.
    digest: Option<String>,
}

/// What to do about an outcome.
enum Verdict {
    /// The application gets it.
    Pass,
    /// So too, although it failed: it may have been acted on, and is not for us to do twice.
    Fail,
    /// Someone else may do better, or the same one if it is not to blame, and nothing was run: no budget needed.
    Elsewhere,
    /// Someone else may do better, but this one has worked on it.
    ElsewhereWithinBudget,
}

// === impl Inner ===

impl Inner {
    /// Takes a request to an answer, or says why there is none.
    pub(super) async fn dispatch(
        &self,
        kind: Kind,
        request: Request<Body>,
        entry: Entry,
    ) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let (aim, body) = aim_of(&kind, &mut parts, body).await?;
        // What changes models, or was sent to one node, is tried there and nowhere else.
        let replay = if aim.may_move() { Replay::new(body, self.reserve.clone()) } else { Replay::once(body) };
        let mut errand = Errand::new(aim, parts.uri.path(), Dialect::of(&parts), entry);
        errand.runs = route::runs_model(&parts.method, &parts.uri) && errand.aim.model().is_some();
        errand.repeatable = route::is_repeatable(&parts.method, &parts.uri);
        errand.changes = kind == Kind::Manage;
        if errand.runs {
            let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            errand.read(&replay, &self.known, length.unwrap_or(0)).await;
        }
        let errand = Arc::new(errand);
        if let Ok(id) = HeaderValue::from_str(&errand.entry.id().to_string()) {
            // For the log of the other side.
            parts.headers.insert(REQUEST_HEADER, id);
        }
        // An Ollama's answer that another one was to better: better than nothing if none does.
        let mut last = None;
        self.budget.deposit();
        loop {
            let found = match self.find(&errand).await {
                Ok(found) => found,
                // After a first try somebody else was there a moment ago, or we would not be here again.
                Err(lost) => match last {
                    Some(result) => return result,
                    None => return Err(lost.into_refusal().await),
                },
            };
            let (member, slot) = (found.member.clone(), found.slot.is_some());
            let asked = Asked { errand: &errand, digest: digest_of(&errand.aim, &member) };
            if let Some((model, digest)) = asked.weights() {
                let holder = Holder { id: member.id(), name: member.label() };
                let kept = errand.kept(&self.known.node);
                if !self.known.node.digests.claim(model, digest, holder, kept.as_ref().map(|kept| &*kept.digest)) {
                    continue;
                }
            }
            errand.tried_at(&member);
            errand.entry.tries(&member, slot);
            errand.recorded_at(&self.known, &member);
            tracing::debug!(
                request = %errand.entry.id(), peer = %member.label(), model = errand.aim.model().map(tracing::field::display),
                attempt = errand.tries(), slot, "request goes to"
            );
            let may_move = |members: &Members| {
                errand.tries() <= RETRIES as usize
                    && errand.aim.may_move()
                    && replay.is_possible()
                    && errand.candidates(members, &self.known.node).is_ok_and(|candidates| !candidates.is_empty())
            };
            // Whether the gate has it nobody knows before it answers.
            let may_be_given_up = |members: &Members| errand.repeatable && may_move(members);
            let request = again(&parts, replay.body());
            let outcome = attempt(found, &errand, request, self.known.members.clone(), may_be_given_up).await;
            let again = match self.judge(&outcome, &asked, &member) {
                Verdict::Pass | Verdict::Fail => false,
                Verdict::Elsewhere => may_move(&self.known.members.borrow()),
                Verdict::ElsewhereWithinBudget => may_move(&self.known.members.borrow()) && self.budget.withdraw(),
            };
            let result = self.settle(outcome, &asked, &member);
            if !again {
                return match (result, last) {
                    (Err(_), Some(Ok(answer))) => Ok(answer),
                    (result, _) => result,
                };
            }
            last = Some(result);
        }
    }

    /// Who takes it next. What takes a slot may have to wait for one; for all else whoever has least to do will do.
    async fn find(&self, errand: &Arc<Errand>) -> Result<Found, Lost> {
        if errand.runs {
            // The room fails in one way only: it is full.
            return match self.room.clone().oneshot(errand.clone()).await {
                Ok(found) => found,
                Err(_) => Err(Lost::Refused(refuse::room_is_full())),
            };
        }
        let mut members = self.known.members.clone();
        let suspense_ends = Instant::now() + SUSPENSE;
        loop {
            let snapshot = members.borrow_and_update().clone();
            match errand.candidates(&snapshot, &self.known.node) {
                Ok(candidates) => {
                    let least = choose::least_busy(&candidates);
                    return least.map(Found::without_slot).ok_or_else(|| Lost::Refused(refuse::nobody(&snapshot)));
                }
                Err(refusal) if errand.tries() == 0 => {
                    let (known, grace_ends) = (&self.known, self.known.grace_ends);
                    let waits = known.wait_for_more(&mut members, suspense_ends, grace_ends, refusal);
                    waits.await.map_err(Lost::Refused)?;
                }
                Err(refusal) => return Err(Lost::Refused(refusal)),
            }
        }
    }

    /// Looks at what came of a try, remembers what it says of the member, and says whether another should be tried.
    fn judge(&self, outcome: &Outcome, asked: &Asked<'_>, member: &Member) -> Verdict {
        let verdict = match outcome {
            Outcome::Failed(ExchangeError::Unreachable(_) | ExchangeError::Reset(_, ResetCode::Forbidden)) => {
                Verdict::Elsewhere
            }
            Outcome::Failed(ExchangeError::Reset(_, ResetCode::Late)) => {
                asked.errand.was_late_at(member);
                if let Some((model, digest)) = asked.weights() {
                    self.known.node.digests.failed(model, digest);
                }
                return Verdict::Elsewhere;
            }
            Outcome::Failed(ExchangeError::Body(_)) => return Verdict::Pass,
            Outcome::Lost(_) | Outcome::Failed(_) if !asked.errand.repeatable => Verdict::Fail,
            Outcome::Lost(_) | Outcome::Failed(ExchangeError::Lost(_)) => Verdict::Elsewhere,
            Outcome::Failed(_) => Verdict::ElsewhereWithinBudget,
            Outcome::Answered(response) => match response.headers().get(REFUSAL_HEADER).map(HeaderValue::as_bytes) {
                Some(b"draining" | b"not-lent" | b"no-ollama") => Verdict::Elsewhere,
                Some(b"busy" | b"crowded" | b"no-room") => Verdict::ElsewhereWithinBudget,
                Some(_) => Verdict::Pass,
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
                None if response.status().is_server_error() && asked.errand.repeatable => {
                    Verdict::ElsewhereWithinBudget
                }
                None => Verdict::Pass,
            },
        };
        let passes = matches!(verdict, Verdict::Pass);
        if passes {
            member.dealings.served();
        } else {
            member.dealings.stumbled();
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
                    ExchangeError::Unreachable(_) | ExchangeError::Reset(_, ResetCode::Late) => {
                        refuse::broke_off(&error)
                    }
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

/// What decides who may take it. Reads as much of the body as it takes to know the model.
async fn aim_of(kind: &Kind, parts: &mut Parts, body: Body) -> Result<(Aim, Body), Refusal> {
    if let Some(choice) = take_choice(&mut parts.headers) {
        return Ok((Aim::Chosen(choice), body));
    }
    match kind {
        Kind::Manage => Ok((Aim::Manage, body)),
        Kind::BodyModel => {
            let (model, body) = route::find_model(parts, body)
                .await
                .map_err(|error| error.into_refusal().unwrap_or_else(|broken| refuse::bad_body(&broken)))?;
            Ok((model.map_or(Aim::Any, Aim::of), body))
        }
        Kind::PathModel(model) => Ok((Aim::of(ModelName::new(model)), body)),
        Kind::Root | Kind::Tags | Kind::Ps | Kind::V1Models | Kind::Any | Kind::Owner(_) => Ok((Aim::Any, body)),
    }
}

/// The node that the request chose. The header goes no further: it was for us.
fn take_choice(headers: &mut HeaderMap) -> Option<String> {
    let choice = headers.remove(PEER_HEADER)?;
    let choice = String::from_utf8_lossy(choice.as_bytes()).trim().to_owned();
    (!choice.is_empty()).then_some(choice)
}

/// The request once more, with this body.
fn again(parts: &Parts, body: Body) -> Request<Body> {
    let mut request = Request::new(body);
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = parts.uri.clone();
    *request.version_mut() = parts.version;
    *request.headers_mut() = parts.headers.clone();
    request
}
