//! Spreads requests over the servers that can take them: the [`Router`].
//!
//! A [`tower::Service`] of our own over a `Discover` stream of endpoints, since `tower::balance` picks in `poll_ready`,
//! before it has seen the request. A request walks `look (which model?) → aim (who may?) → choose (who is best?) →
//! attempt → perhaps once more`, a file each. Endpoints are cheap to clone and always ready; their load counts until the
//! end of an answer's body.
//!
//! What is tried again, and when (DESIGN §5): only before the first byte went to the application, only if the body can
//! be sent again ([`replay`]), at most twice, never where the last one failed, never what changes models.
//! - Where nothing was run (the connection is gone, the peer fell silent, it is about to stop, its Ollama is away) the
//!   next is tried at once: that adds no work to anyone, and hundreds may wait at a server that is killed.
//! - Where something may have run (Ollama broke off, a 5xx, a 404 for a model that should be there, a full queue) a
//!   retry also has to be within the budget, so that a failing mesh is not given twice the load.

mod aim;
mod attempt;
mod choose;
mod members;
mod pins;
mod refuse;
mod replay;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
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

use self::aim::Aim;
use self::attempt::{Outcome, attempt};
use self::members::{Member, Members, Obstacle};
use self::pins::Pins;
use self::replay::{Replay, Reserve};
use crate::exchange::{Body, Endpoint, ExchangeError, PEER_HEADER, REFUSAL_HEADER, Refusal, ResetCode};
use crate::id::{Id, NodeName};
use crate::route::{self, Kind, Route};

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
    /// How long after the start requests wait for a server to turn up; [`GRACE`] but in tests.
    pub grace: Duration,
}

/// A handle to the balancer, cheap to clone. With the last one the task that follows the endpoints ends.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    name: NodeName,
    members: watch::Receiver<Members>,
    pins: Pins,
    budget: TpsBudget,
    reserve: Arc<Reserve>,
    grace_ends: Instant,
    following: TaskTracker,
    _following: AbortOnDropHandle<()>,
}

/// What to do about an outcome.
enum Verdict {
    /// The application gets it.
    Pass,
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
            name: settings.name,
            members,
            pins: Pins::default(),
            budget: TpsBudget::new(BUDGET_WINDOW, BUDGET_A_SECOND, BUDGET_SHARE),
            reserve: Arc::default(),
            grace_ends: Instant::now() + settings.grace,
            following,
            _following: AbortOnDropHandle::new(task),
        }))
    }

    /// Resolves if it follows the endpoints no more, which is a bug: it does as long as there is a handle.
    pub async fn ended(&self) {
        self.0.following.wait().await;
    }

    /// Those that can take a request now, or why nobody can.
    pub async fn providers(&self) -> Result<Vec<Arc<dyn Endpoint>>, Refusal> {
        let mut members = self.0.members.clone();
        let suspense_ends = Instant::now() + SUSPENSE;
        loop {
            let snapshot = members.borrow_and_update().clone();
            match aim::providers(&snapshot) {
                Ok(providers) => return Ok(providers.iter().map(|member| member.endpoint.clone()).collect()),
                Err(refusal) => self.0.wait_for_more(&mut members, suspense_ends, refusal).await?,
            }
        }
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Router").field(&self.0.name).finish()
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
        let (aim, body) = aim_of(kind, &mut parts, body).await?;
        let path = parts.uri.path().to_owned();
        // What changes models, or was sent to one node, is tried there and nowhere else.
        let replay = match aim {
            Aim::Model(_) | Aim::Any => Replay::new(body, self.reserve.clone()),
            Aim::Chosen(_) | Aim::Manage => Replay::once(body),
        };
        let mut members = self.members.clone();
        let suspense_ends = Instant::now() + SUSPENSE;
        let mut tried = BTreeSet::new();
        // An Ollama's answer that another one was to better: better than nothing if none does.
        let mut last = None;
        self.budget.deposit();
        loop {
            let snapshot = members.borrow_and_update().clone();
            let member = match aim.candidates(&snapshot, &tried, &self.name, &self.pins, &path) {
                Ok(candidates) => pick(&candidates),
                Err(refusal) if tried.is_empty() => {
                    self.wait_for_more(&mut members, suspense_ends, refusal).await?;
                    continue;
                }
                Err(_) => None,
            };
            // After a first try somebody else was there a moment ago, or we would not be here again.
            let Some(member) = member else { return last.unwrap_or_else(|| Err(refuse::nobody(&snapshot))) };
            tried.insert(member.id());
            tracing::debug!(peer = %member.label(), model = aim.model().map(tracing::field::display), attempt = tried.len(), "request goes to");
            if let Some(model) = aim.model() {
                self.pins.using(model, member.view().digest(model).unwrap_or_default());
            }

            let may_move = |members: &Members| {
                tried.len() <= RETRIES as usize
                    && matches!(aim, Aim::Model(_) | Aim::Any)
                    && replay.is_possible()
                    && aim
                        .candidates(members, &tried, &self.name, &self.pins, &path)
                        .is_ok_and(|candidates| !candidates.is_empty())
            };
            let outcome = attempt(&member, again(&parts, replay.body()), members.clone(), may_move).await;
            let verdict = self.judge(&outcome, &aim, &member, &path);
            let again = match verdict {
                Verdict::Pass => false,
                Verdict::Elsewhere => may_move(&members.borrow()),
                Verdict::ElsewhereWithinBudget => may_move(&members.borrow()) && self.budget.withdraw(),
            };
            let result = self.settle(outcome, &member);
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
    fn judge(&self, outcome: &Outcome, aim: &Aim, member: &Member, path: &str) -> Verdict {
        let verdict = match outcome {
            Outcome::Lost(_)
            | Outcome::Failed(
                ExchangeError::Unreachable(_) | ExchangeError::Lost(_) | ExchangeError::Reset(_, ResetCode::Forbidden),
            ) => Verdict::Elsewhere,
            Outcome::Failed(ExchangeError::Body(_)) => return Verdict::Pass,
            Outcome::Failed(_) => Verdict::ElsewhereWithinBudget,
            Outcome::Answered(response) => match response.headers().get(REFUSAL_HEADER).map(HeaderValue::as_bytes) {
                Some(b"draining" | b"not-lent" | b"no-ollama") => Verdict::Elsewhere,
                Some(b"busy") => Verdict::ElsewhereWithinBudget,
                Some(_) => Verdict::Pass,
                None if response.status() == StatusCode::NOT_FOUND => {
                    let reported = aim.model().is_some_and(|model| member.view().digest(model).is_some());
                    return if reported { Verdict::ElsewhereWithinBudget } else { Verdict::Pass };
                }
                // Ollama's own routes that may come here change nothing, so they may run twice. What else stands behind
                // a gate is not ours to repeat once it has answered.
                None if response.status().is_server_error() && is_ollamas(path) => Verdict::ElsewhereWithinBudget,
                None => Verdict::Pass,
            },
        };
        if matches!(verdict, Verdict::Pass) {
            if let Some(model) = aim.model() {
                self.pins.answered(model);
            }
        } else {
            member.stumbled();
            if let Some(model) = aim.model() {
                self.pins.failed(model);
            }
        }
        verdict
    }

    /// An outcome as the application would get it.
    fn settle(&self, outcome: Outcome, member: &Member) -> Result<Response<Body>, Refusal> {
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
                    ExchangeError::Reset(_, ResetCode::Forbidden) => refuse::not_let_in(member, &self.name),
                    _ => refuse::broke_off(&error),
                })
            }
            Outcome::Lost(health) => {
                tracing::debug!(peer = %member.label(), ?health, "given up");
                Err(refuse::broke_off(&ExchangeError::Unreachable(member.label())))
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

/// What decides who may take it. Reads as much of the body as it takes to know the model.
async fn aim_of(kind: Kind, parts: &mut Parts, body: Body) -> Result<(Aim, Body), Refusal> {
    if let Some(choice) = take_choice(&mut parts.headers) {
        return Ok((Aim::Chosen(choice), body));
    }
    match kind {
        Kind::Manage => Ok((Aim::Manage, body)),
        Kind::BodyModel => {
            let (model, body) = route::find_model(parts, body)
                .await
                .map_err(|error| error.into_refusal().unwrap_or_else(|broken| refuse::bad_body(&broken)))?;
            Ok((model.map_or(Aim::Any, Aim::Model), body))
        }
        Kind::PathModel(model) => Ok((Aim::Model(route::ModelName::new(&model)), body)),
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

fn is_ollamas(path: &str) -> bool {
    path.starts_with("/api/") || path.starts_with("/v1/")
}
