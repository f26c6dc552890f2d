//! Spreads requests over the servers that can take them: the [`Router`].
//!
//! A [`tower::Service`] of our own over a `Discover` stream of endpoints, since `tower::balance` picks in `poll_ready`,
//! before it has seen the request. A request walks `dispatch (what is asked for?) → once (aim: who may? seek: who is best,
//! and when? attempt: what came of it?) → perhaps again`, a file each, of which [`again`], [`once`] and [`seek`] are tower's
//! retry, the service it retries, and the room in which that waits. Endpoints are cheap to clone and always ready; their
//! load counts until the end of an answer's body.
//!
//! The rules for trying again: only before the first byte went to the application, only if the body can be sent again
//! ([`replay`]), never where it failed before, never what changes models.
//! - Where nothing was run (it was never sent, the gate did not let it in, is full or about to stop, its Ollama is away or
//!   did not get all of it, the peer was lost before it said that the server had all of it) the next is tried at once, as
//!   long as there is one: that adds no work to anyone, and hundreds may wait at a server that is killed. So it is where a
//!   request came too late for the slot that was kept for it, which the same server may be asked for once more.
//! - Where a server had all of it and failed (it broke off, answered 5xx, or the peer was lost meanwhile), what may be done
//!   twice is tried once more at most, within a budget: a request that fails every server is not to be taken to all of
//!   them, and a failing mesh is not given twice the load.
//! - Where the server's process ended meanwhile, it is not tried again: it may be what ended it.

mod again;
mod aim;
mod around;
mod attempt;
mod breaker;
mod choose;
mod clock;
mod dealings;
mod demand;
mod departed;
mod dispatch;
mod errand;
mod journal;
mod judgement;
mod members;
mod once;
mod plan;
mod prefix;
mod priors;
mod refuse;
mod replay;
mod score;
mod seek;
#[cfg(test)]
mod simulation;
mod unreported;
mod walk;
mod weigh;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use http::{HeaderValue, Request, Response, StatusCode};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};
use tower::discover::Change;

use self::again::Tries;
use self::around::Around;
use self::clock::Clock;
use self::demand::Demand;
use self::journal::Journal;
use self::members::Members;
use self::prefix::Prefixes;
use self::refuse::Unmet;
use self::replay::Reserve;
use crate::digests::Digests;
use crate::exchange::limits;
use crate::exchange::{Account, Body, Caveat, Endpoint, REQUEST_HEADER, Refusal, RefusalCode, Unusable};
use crate::id::{Id, NodeName};
use crate::route::{self, Dialect, ModelName, Route};

/// How long after its start a node lets requests wait for a first server to turn up: what a node that joins a running
/// mesh may take to be able to use it.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long a request waits at a time where all who could take it are suspect. One that is silent is known to be gone after
/// 3 s; one that speaks and acknowledges nothing for as long as a connection may be silent is broken. A few lost datagrams
/// or a machine that has too much to do make a server suspect, and are no reason to send an application away.
const SUSPENSE: Duration = Duration::from_secs(15);

/// How long it waits for one to come back that was lost: a connection that is replaced is back at once, one that was
/// silent for too long is dialled anew.
const RETURN: Duration = Duration::from_secs(1);

/// How often a request may come too late for a slot at one server, or its ticket's turn be over before that was heard of,
/// and it be placed there again.
const MOST_LATE: usize = 2;
/// The same where there is no other server: on a machine that has far too much to do, each of many requests is late now and
/// then, and nothing was run. At 2 s that a slot is kept, that is 20 s at most for a server that always says so.
const MOST_LATE_AT_ONE: usize = 10;

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
    /// What its owner prefers.
    pub preferences: Preferences,
    /// How long after the start requests wait for a server to turn up; [`GRACE`] but in tests.
    pub grace: Duration,
}

/// What the owner of a node prefers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preferences {
    /// How many requests may wait for a slot at a time.
    pub waiting: usize,
    /// A request that would have to wait longer for a slot is refused at once.
    pub max_wait: Duration,
    /// How many times sooner another node must be done than this one's own Ollama to be preferred. 1.2: what is equal runs
    /// here, where nobody on the network sees it.
    pub prefer_local: f64,
    /// How many times faster than real ones the servers are: 1, but in benchmarks with simulated ones, where what happens
    /// in seconds has to happen sooner.
    pub tempo: f64,
}

/// A handle to the balancer, cheap to clone. With the last one the task that follows the endpoints ends.
#[derive(Clone)]
pub struct Router(Arc<Inner>);

struct Inner {
    known: Arc<Known>,
    tries: Tries,
    journal: Journal,
    reserve: Arc<Reserve>,
    following: TaskTracker,
    _following: AbortOnDropHandle<()>,
}

/// What is known where a request is to go.
#[derive(Debug)]
struct Known {
    node: RouterSettings,
    members: watch::Receiver<Members>,
    /// What its servers' times are told by.
    clock: Clock,
    /// What was sent where.
    prefixes: Mutex<Prefixes>,
    /// How the servers of each model were used.
    demand: Mutex<Demand>,
    /// Until then requests wait for a first server to turn up.
    grace_ends: Instant,
}

// === impl Preferences ===

impl Default for Preferences {
    fn default() -> Self {
        Self { waiting: limits::WAITING_EACH, max_wait: Duration::MAX, prefer_local: 1.2, tempo: 1.0 }
    }
}

// === impl Router ===

impl Router {
    /// Balances over whatever `discover` brings. `unusable` returns the known nodes that cannot be used: a request that no
    /// node can take is refused with their reasons. Has to be called within a tokio runtime.
    pub fn spawn<D>(
        settings: RouterSettings,
        discover: D,
        unusable: impl Fn() -> Vec<Unusable> + Send + Sync + 'static,
    ) -> Self
    where
        D: Stream<Item = Result<Change<Id, Arc<dyn Endpoint>>, Infallible>> + Send + 'static,
    {
        let clock = Clock::new(settings.preferences.tempo);
        let around = Around::new(settings.name.clone(), settings.id, unusable);
        let (sender, members) = watch::channel(Members::new(clock, around));
        let following = TaskTracker::new();
        let task = following.spawn(members::follow(discover, sender));
        following.close();
        let places = settings.preferences.waiting;
        let (grace_ends, prefixes) = (Instant::now() + settings.grace, Mutex::new(Prefixes::new()));
        let demand = Mutex::default();
        let known = Arc::new(Known { members, clock, prefixes, demand, grace_ends, node: settings });
        Self(Arc::new(Inner {
            tries: again::tries(known.clone(), seek::waiting_room(known.clone(), places)),
            known,
            journal: Journal::default(),
            reserve: Arc::default(),
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
        let mut members = self.0.known.members.clone();
        let since = Instant::now();
        loop {
            let snapshot = members.borrow_and_update().clone();
            match aim::providers(&snapshot, dialect) {
                Ok(providers) => return Ok(providers.iter().map(|member| member.endpoint.clone()).collect()),
                Err(unmet) => {
                    let known = &self.0.known;
                    known.wait_for_more(&mut members, since, known.grace_ends, unmet).await?;
                }
            }
        }
    }

    /// How the latest requests went, the latest first.
    pub fn accounts(&self) -> Vec<Account> {
        self.0.journal.accounts()
    }

    /// What this node holds against each server, by the model's name there; nothing where it holds nothing.
    pub fn caveats(&self) -> BTreeMap<Id, BTreeMap<String, Caveat>> {
        let known = &self.0.known;
        let members = known.members.borrow().clone();
        members.values().map(|member| (member.id(), member.caveats(&known.clock))).collect()
    }

    /// Whether requests for a model go where it has this digest; not known if the name was not used yet.
    pub fn keeps_to(&self, model: &ModelName, digest: &str) -> bool {
        self.0.known.node.digests.of(model).is_some_and(|kept| kept.digest == digest)
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Router").field(&self.0.known.node.name).finish()
    }
}

impl tower::Service<Request<Body>> for Router {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    /// Resolves to an Ollama's answer, with the name of its node in [`PEER_HEADER`](crate::exchange::PEER_HEADER), or to a refusal in the shape of the
    /// API that was called.
    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let Route { kind, api } = route::classify(request.method(), request.uri().path());
            let (parts, body) = request.into_parts();
            let entry = inner.journal.begin(&parts);
            let _unanswered = entry.watch();
            let answer = inner.dispatch(kind, Request::from_parts(parts, body), entry.clone()).await;
            let mut response = match answer {
                Ok(response) => {
                    entry.answered(response.status().as_u16(), None);
                    response
                }
                Err(refusal) => {
                    let (code, status) = (refusal.code, refusal.code.status().as_u16());
                    let response = route::render(api, &refusal);
                    let known = || refuse::beside(&inner.known.members.borrow());
                    // The application gets Ollama's own words; who asks why is told more.
                    let beside = if code == RefusalCode::NoModel { known() } else { None };
                    let message =
                        beside.map_or(refusal.message.clone(), |beside| format!("{}; {beside}", refusal.message));
                    tracing::debug!(request = %entry.id(), code = code.to_wire(), status, "refused: {message}");
                    entry.answered(status, Some(message));
                    entry.ended();
                    response
                }
            };
            if let Ok(id) = HeaderValue::from_str(&entry.id().to_string()) {
                response.headers_mut().insert(REQUEST_HEADER, id);
            }
            Ok(response)
        })
    }
}

// === impl Known ===

impl Known {
    /// What was sent where. Never held for longer than a look.
    fn prefixes(&self) -> MutexGuard<'_, Prefixes> {
        self.prefixes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the servers of each model were used. As briefly.
    fn demand(&self) -> MutexGuard<'_, Demand> {
        self.demand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the members to change: while some may be back in a moment, where there has been nobody since `since`, and
    /// until `grace_ends`, those of the node's first moments or of one that was lost. After that, or if no change could help,
    /// the refusal holds.
    pub(super) async fn wait_for_more(
        &self,
        members: &mut watch::Receiver<Members>,
        since: Instant,
        grace_ends: Instant,
        unmet: Unmet,
    ) -> Result<(), Refusal> {
        let Unmet { refusal, awaited } = unmet;
        let awaited = awaited.map(|awaited| since + awaited).max(members.borrow().awaited(since));
        let until = match refusal.code.status() {
            StatusCode::SERVICE_UNAVAILABLE => grace_ends.max(awaited.unwrap_or(grace_ends)),
            StatusCode::NOT_FOUND => grace_ends,
            _ => return Err(refusal),
        };
        match tokio::time::timeout_at(until, members.changed()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(refusal),
        }
    }
}
