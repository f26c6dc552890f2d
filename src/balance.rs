//! Spreads requests over the servers that can take them: the [`Router`].
//!
//! A [`tower::Service`] of our own over a `Discover` stream of endpoints, since `tower::balance` picks in `poll_ready`,
//! before it has seen the request. A request walks `look (which model?) → aim (who may?) → choose (who is best?) →
//! attempt → perhaps once more`, a file each. Endpoints are cheap to clone and always ready; their load counts until the
//! end of an answer's body.
//!
//! What is tried again, and when (DESIGN §5): only before the first byte went to the application, only if the body can
//! be sent again ([`replay`]), at most twice, never where the last one failed, never what changes models.
//! - Where nothing was run (the gate never acknowledged it or did not let it in, it is about to stop, its Ollama is away)
//!   the next is tried at once: that adds no work to anyone, and hundreds may wait at a server that is killed.
//! - Where something may have run, only what may be done twice is tried again: Ollama's own routes that may come here
//!   change nothing; what else stands behind a gate is not ours to repeat. If the peer was lost, at once; if it still
//!   answers (Ollama broke off, a 5xx, a 404 for a model that should be there, a full queue), within the budget, so that
//!   a failing mesh is not given twice the load.

mod aim;
mod attempt;
#[cfg_attr(not(test), expect(dead_code, reason = "dispatch does not use it yet"))]
mod breaker;
mod choose;
mod departed;
#[cfg_attr(not(test), expect(dead_code, reason = "dispatch does not use it yet"))]
mod judgement;
mod members;
#[cfg_attr(not(test), expect(dead_code, reason = "dispatch does not use it yet"))]
mod plan;
#[cfg_attr(not(test), expect(dead_code, reason = "dispatch does not use it yet"))]
mod prefix;
#[cfg_attr(not(test), expect(dead_code, reason = "dispatch does not use it yet"))]
mod priors;
mod refuse;
mod replay;
#[cfg_attr(not(test), expect(dead_code, reason = "dispatch does not use it yet"))]
mod score;
#[cfg(test)]
mod simulation;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::discover::Change;
use tower::retry::budget::{Budget as _, TpsBudget};

use self::aim::{Aim, Search};
use self::attempt::{Outcome, attempt};
use self::members::{Member, Members, Obstacle};
use self::replay::{Replay, Reserve};
use crate::digests::{Digests, Holder};
use crate::exchange::{Body, Endpoint, ExchangeError, PEER_HEADER, REFUSAL_HEADER, Refusal, ResetCode};
use crate::id::{Id, NodeName};
use crate::route::{self, Dialect, Kind, ModelName, Route};

/// How long after its start a node lets requests wait for a first server to turn up: what a node that joins a running
/// mesh may take to be able to use it (issue 2).
pub const GRACE: Duration = Duration::from_secs(1);

/// How long a request waits where all who could take it are suspect: a little longer than the silence after which they
/// count as unreachable (DESIGN §4), so that by then each was heard of again or is known to be gone. A few lost datagrams
/// make a server suspect, and are no reason to send an application away.
const SUSPENSE: Duration = Duration::from_millis(3500);

/// Tries beside the first.
const RETRIES: u32 = 2;
/// The budget of retries: a share of the requests of the last ten seconds, and one a second for those who send few.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);
const BUDGET_A_SECOND: u32 = 1;
const BUDGET_SHARE: f32 = 0.2;

/// What a [`Router`] has to know of its node.
#[derive(Debug, Clone)]
pub struct RouterSettings {
    /// The node's own name, for the commands that a refusal says to type elsewhere.
    pub name: NodeName,
    /// Its own ID.
    pub id: Id,
    /// Where applications find it, for the commands that a refusal says to type here.
    pub listen: Option<SocketAddr>,
    /// Whether others than this machine's applications ask here (`--listen-open`): then nothing runs on the account of its
    /// owner.
    pub open: bool,
    /// Which weights each model's name stands for.
    pub digests: Digests,
    /// How long after the start requests wait for a server to turn up; [`GRACE`] but in tests.
    pub grace: Duration,
}

/// A handle to the balancer, cheap to clone. With the last one the task that follows the endpoints ends.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    node: RouterSettings,
    members: watch::Receiver<Members>,
    budget: TpsBudget,
    reserve: Arc<Reserve>,
    grace_ends: Instant,
    following: TaskTracker,
    _following: AbortOnDropHandle<()>,
}

/// What a try was for.
struct Asked<'a> {
    aim: &'a Aim,
    /// The digest under which the member has the model that is asked for.
    digest: Option<String>,
    /// Whether it may be done twice.
    repeatable: bool,
}

/// What to do about an outcome.
enum Verdict {
    /// The application gets it.
    Pass,
    /// So too, although it failed: it may have been acted on, and is not for us to do twice.
    Fail,
    /// Someone else may do better, and nothing was run: no budget needed.
    Elsewhere,
    /// Someone else may do better, but this one has worked on it.
    ElsewhereWithinBudget,
}

// === impl Router ===

impl Router {
    /// Balances over whatever `discover` brings. Has to be called within a tokio runtime.
    pub fn spawn<D>(settings: RouterSettings, discover: D) -> Self
    where
        D: Stream<Item = Result<Change<Id, Arc<dyn Endpoint>>, Infallible>> + Send + 'static,
    {
        let (sender, members) = watch::channel(Members::default());
        let following = TaskTracker::new();
        let task = following.spawn(members::follow(discover, sender));
        following.close();
        Self(Arc::new(Inner {
            members,
            budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_A_SECOND, BUDGET_SHARE),
            reserve: Arc::default(),
            grace_ends: Instant::now() + settings.grace,
            node: settings,
            following,
            _following: AbortOnDropHandle::new(task),
        }))
    }

    /// Resolves if it follows the endpoints no more, which is a bug: it does as long as there is a handle.
    pub async fn ended(&self) {
        self.0.following.wait().await;
    }

    /// Those that can take a request of this dialect now, or why nobody can.
    pub async fn providers(&self, dialect: Dialect) -> Result<Vec<Arc<dyn Endpoint>>, Refusal> {
        let mut members = self.0.members.clone();
        let suspense_ends = Instant::now() + SUSPENSE;
        loop {
            let snapshot = members.borrow_and_update().clone();
            match aim::providers(&snapshot, dialect) {
                Ok(providers) => return Ok(providers.iter().map(|member| member.endpoint.clone()).collect()),
                Err(refusal) => self.0.wait_for_more(&mut members, suspense_ends, refusal).await?,
            }
        }
    }

    /// Whether requests for a model go where it has this digest; not known if the name was not used yet.
    pub fn keeps_to(&self, model: &ModelName, digest: &str) -> bool {
        self.0.node.digests.of(model).is_some_and(|kept| kept.digest == digest)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Router").field(&self.0.node.name).finish()
    }
}

impl tower::Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Resolves to an Ollama's answer, with the name of its node in [`PEER_HEADER`], or to a refusal in the shape of the
    /// API that was called.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let Route { kind, api } = route::classify(request.method(), request.uri().path());
            Ok(inner.dispatch(kind, request).await.unwrap_or_else(|refusal| {
                tracing::debug!(code = refusal.code, status = refusal.status.as_u16(), "refused: {}", refusal.message);
                route::render(api, &refusal)
            }))
        })
    }
}

// === impl Inner ===

impl Inner {
    async fn dispatch(&self, kind: Kind, request: Request<Body>) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let (aim, body) = aim_of(&kind, &mut parts, body).await?;
        let path = parts.uri.path().to_owned();
        let repeatable = route::is_repeatable(&parts.method, &parts.uri);
        let changes = kind == Kind::Manage;
        let dialect = Dialect::of(&parts);
        // What changes models, or was sent to one node, is tried there and nowhere else.
        let replay = if aim.may_move() { Replay::new(body, self.reserve.clone()) } else { Replay::once(body) };
        let mut members = self.members.clone();
        let suspense_ends = Instant::now() + SUSPENSE;
        let mut tried = BTreeSet::new();
        // An Ollama's answer that another one was to better: better than nothing if none does.
        let mut last = None;
        self.budget.deposit();
        loop {
            let snapshot = members.borrow_and_update().clone();
            let kept = aim.model().and_then(|model| self.node.digests.of(model));
            let search = Search {
                members: &snapshot,
                tried: &tried,
                kept: kept.as_ref(),
                node: &self.node,
                path: &path,
                dialect,
            };
            let member = match aim.candidates(&search) {
                Ok(candidates) => pick(&candidates),
                Err(refusal) if tried.is_empty() => {
                    self.wait_for_more(&mut members, suspense_ends, refusal).await?;
                    continue;
                }
                Err(_) => None,
            };
            // After a first try somebody else was there a moment ago, or we would not be here again.
            let Some(member) = member else { return last.unwrap_or_else(|| Err(refuse::nobody(&snapshot))) };
            let asked = Asked { aim: &aim, digest: digest_of(&aim, &member), repeatable };
            if let Some((model, digest)) = asked.weights() {
                let holder = Holder { id: member.id(), name: member.label() };
                if !self.node.digests.claim(model, digest, holder, kept.as_ref().map(|kept| &*kept.digest)) {
                    continue;
                }
            }
            tried.insert(member.id());
            tracing::debug!(peer = %member.label(), model = aim.model().map(tracing::field::display), attempt = tried.len(), "request goes to");

            let may_move = |members: &Members| {
                let kept = aim.model().and_then(|model| self.node.digests.of(model));
                let search =
                    Search { members, tried: &tried, kept: kept.as_ref(), node: &self.node, path: &path, dialect };
                tried.len() <= RETRIES as usize
                    && aim.may_move()
                    && replay.is_possible()
                    && aim.candidates(&search).is_ok_and(|candidates| !candidates.is_empty())
            };
            // While it waits nobody knows whether the gate has acknowledged it.
            let may_be_given_up = |members: &Members| repeatable && may_move(members);
            let request = again(&parts, replay.body());
            let outcome = attempt(&member, request, changes, members.clone(), may_be_given_up).await;
            let again = match self.judge(&outcome, &asked, &member) {
                Verdict::Pass | Verdict::Fail => false,
                Verdict::Elsewhere => may_move(&members.borrow()),
                Verdict::ElsewhereWithinBudget => may_move(&members.borrow()) && self.budget.withdraw(),
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

    /// Looks at what came of a try, remembers what it says of the member, and says whether another should be tried.
    fn judge(&self, outcome: &Outcome, asked: &Asked<'_>, member: &Member) -> Verdict {
        let verdict = match outcome {
            Outcome::Failed(ExchangeError::Unreachable(_) | ExchangeError::Reset(_, ResetCode::Forbidden)) => {
                Verdict::Elsewhere
            }
            Outcome::Failed(ExchangeError::Body(_)) => return Verdict::Pass,
            Outcome::Lost(_) | Outcome::Failed(_) if !asked.repeatable => Verdict::Fail,
            Outcome::Lost(_) | Outcome::Failed(ExchangeError::Lost(_)) => Verdict::Elsewhere,
            Outcome::Failed(_) => Verdict::ElsewhereWithinBudget,
            Outcome::Answered(response) => match response.headers().get(REFUSAL_HEADER).map(HeaderValue::as_bytes) {
                Some(b"draining" | b"not-lent" | b"no-ollama") => Verdict::Elsewhere,
                Some(b"busy") => Verdict::ElsewhereWithinBudget,
                Some(_) => Verdict::Pass,
                None if response.status() == StatusCode::NOT_FOUND => match asked.digest {
                    Some(_) if asked.repeatable => Verdict::ElsewhereWithinBudget,
                    // It never said that it has the model. Another one that may have it could be asked.
                    None if asked.repeatable && asked.aim.model().is_some() => return Verdict::Elsewhere,
                    _ => return Verdict::Pass,
                },
                None if response.status().is_server_error() && asked.repeatable => Verdict::ElsewhereWithinBudget,
                None => Verdict::Pass,
            },
        };
        let passes = matches!(verdict, Verdict::Pass);
        if passes {
            member.served();
        } else {
            member.stumbled();
        }
        match asked.weights() {
            Some((model, digest)) if passes => self.node.digests.answered(model, digest),
            Some((model, digest)) => self.node.digests.failed(model, digest),
            None => {}
        }
        verdict
    }

    /// An outcome as the application would get it.
    fn settle(&self, outcome: Outcome, asked: &Asked<'_>, member: &Member) -> Result<Response<Body>, Refusal> {
        let broke_off =
            if asked.repeatable && asked.aim.may_move() { refuse::broke_off } else { refuse::broke_off_once };
        match outcome {
            Outcome::Answered(mut response) => {
                if let Ok(label) = HeaderValue::from_str(member.label().as_str()) {
                    response.headers_mut().insert(PEER_HEADER, label);
                }
                Ok(response)
            }
            Outcome::Failed(error) => {
                tracing::debug!(peer = %member.label(), %error, "no answer");
                Err(match &error {
                    ExchangeError::Body(_) => refuse::bad_body(&error),
                    ExchangeError::Reset(_, ResetCode::Forbidden) => refuse::not_let_in(member, &self.node.name),
                    // The gate has not acknowledged it.
                    ExchangeError::Unreachable(_) => refuse::broke_off(&error),
                    _ => broke_off(&error),
                })
            }
            Outcome::Lost(health) => {
                tracing::debug!(peer = %member.label(), ?health, "given up");
                Err(broke_off(&ExchangeError::Lost(member.label())))
            }
        }
    }

    /// Waits for the members to change, in the first moments of the node or while some are suspect; after that, or if no
    /// change could help, the refusal holds.
    async fn wait_for_more(
        &self,
        members: &mut watch::Receiver<Members>,
        suspense_ends: Instant,
        refusal: Refusal,
    ) -> Result<(), Refusal> {
        let suspense = members.borrow().values().any(|member| member.obstacle() == Some(Obstacle::Suspect));
        let until = match refusal.status {
            StatusCode::SERVICE_UNAVAILABLE if suspense => suspense_ends.max(self.grace_ends),
            StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE => self.grace_ends,
            _ => return Err(refusal),
        };
        match tokio::time::timeout_at(until, members.changed()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(refusal),
        }
    }
}

// === impl Asked ===

impl<'a> Asked<'a> {
    /// The model it is routed by, and the digest under which the member has it.
    fn weights(&self) -> Option<(&'a ModelName, &str)> {
        Some((self.aim.model()?, self.digest.as_deref()?))
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

fn pick(candidates: &[Arc<Member>]) -> Option<Arc<Member>> {
    let known: Vec<_> = candidates.iter().map(|member| member.candidate()).collect();
    candidates.get(choose::choose(&known, rand::random_range(0..=usize::MAX >> 1))?).cloned()
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
