//! Whom the balancer knows: the endpoints that the `Discover` stream brought, what they report, and how much of ours
//! they carry. One task writes the set, everybody reads the latest.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::discover::Change;

use super::choose::Candidate;
use super::departed::{Departed, Lent, Memory};
use crate::exchange::{Endpoint, Health, Load as Busy, ModelInfo, Report};
use crate::id::{Id, NodeName, Scope, Use, means};
use crate::route::{Dialect, ModelName};

/// How long a server that failed comes after all others: longer than one quick failure takes, short enough that a
/// server which is well again has its share within the 5 s that issue 4 wants.
const STUMBLE: Duration = Duration::from_secs(1);

/// Of what was sent to one server so much is remembered until its load has it: some thousand a round trip.
const MAX_SENT: usize = 1024;

/// How long after a change of its models through this node a server may have one that it has not reported: its gate looks
/// again at once, but not more often than every 300 ms, and then a report crosses.
const CHANGED: Duration = Duration::from_secs(2);

/// All members, in the order of their IDs, and what those had that left. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Members {
    present: Arc<BTreeMap<Id, Arc<Member>>>,
    departed: Arc<Memory>,
}

/// One endpoint and what is counted of it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<dyn Endpoint>,
    report: watch::Receiver<Arc<Report>>,
    busy: watch::Receiver<Arc<Busy>>,
    health: watch::Receiver<Health>,
    seen: Mutex<Seen>,
    load: Arc<Load>,
    /// What was sent there, or queues there, and may not be in what it says of its load: the number under which it was
    /// opened ([`Endpoint::opened`]), and the model.
    sent: Mutex<VecDeque<(u64, ModelName)>>,
    /// Since when it is one.
    since: Instant,
}

/// What its reports said.
#[derive(Debug, Default)]
struct Seen {
    /// The latest.
    view: Arc<View>,
    /// The latest that lent something, if this one does not.
    lent: Option<Lent>,
}

/// A report, made ready to be asked.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) report: Arc<Report>,
    /// The name under which each model is listed, by that name as Ollama compares names.
    models: HashMap<ModelName, String>,
}

/// What this node has running at one other. Outlives a connection: a peer that is dialled again still has it.
#[derive(Debug, Default)]
struct Load {
    own: AtomicU32,
    stumbled: Mutex<Option<Instant>>,
    /// Whether a request of ours was ever answered there.
    served: AtomicBool,
    /// When a request of ours last changed its models.
    changed: Mutex<Option<Instant>>,
}

/// One request in flight at a member, counted until this is dropped: at the end of the answer's body.
#[derive(Debug)]
pub(super) struct InFlight {
    load: Arc<Load>,
    /// Whether it changes models.
    changes: bool,
}

/// Why a member cannot take a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The connection is over.
    Gone,
    /// It does not answer at the moment.
    Suspect,
    /// A person has to say `ollana trust` here.
    Pending,
    /// A person said no.
    NotUsed,
    /// It does not lend to us: a person has to say `ollana trust` there.
    NotLentToUs,
    /// It has no healthy Ollama to lend.
    NoOllama,
    /// It is about to stop.
    Draining,
}

// === impl Members ===

impl Members {
    pub(super) fn values(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.present.values()
    }

    pub(super) fn get(&self, id: &Id) -> Option<&Arc<Member>> {
        self.present.get(id)
    }

    /// Those who left a moment ago.
    pub(super) fn departed(&self) -> impl Iterator<Item = &Departed> {
        self.departed.iter()
    }

    /// Everyone whom `text` may mean, who left a moment ago included: what was meant for them is not another one's.
    pub(super) fn meant(&self, text: &str) -> Vec<(Id, NodeName)> {
        let all: Vec<_> = self
            .values()
            .map(|member| (member.id(), member.label()))
            .chain(self.departed().map(|departed| (departed.id, departed.label.clone())))
            .collect();
        match text.parse::<Id>() {
            Ok(whole) => all.into_iter().filter(|(id, _)| *id == whole).collect(),
            Err(_) => all.into_iter().filter(|(id, label)| means(text, label, id)).collect(),
        }
    }

    fn insert(&mut self, id: Id, endpoint: Arc<dyn Endpoint>) -> Arc<Member> {
        let before = self.present.get(&id).map(|member| (member.load.clone(), member.lent()));
        let departed = Arc::make_mut(&mut self.departed).take(&id);
        let member = Arc::new(match (before, departed) {
            (Some((load, lent)), _) => Member::new(endpoint, load, lent),
            (None, Some(departed)) => {
                let load = Load { served: departed.served.into(), ..Load::default() };
                Member::new(endpoint, Arc::new(load), Some(departed.lent))
            }
            (None, None) => Member::new(endpoint, Arc::default(), None),
        });
        Arc::make_mut(&mut self.present).insert(id, member.clone());
        member
    }

    fn remove(&mut self, id: &Id) {
        let Some(member) = Arc::make_mut(&mut self.present).remove(id) else { return };
        // Whom a person waits to trust, or does not want, leaves nothing behind.
        if let Some(lent) = member.lent().filter(|_| !member.is_local() && member.endpoint.use_() == Use::Yes) {
            let served = member.load.served.load(Ordering::Relaxed);
            let departed = Departed { id: *id, label: member.label(), lent, served };
            Arc::make_mut(&mut self.departed).add(departed);
        }
    }
}

// === impl Member ===

impl Member {
    fn new(endpoint: Arc<dyn Endpoint>, load: Arc<Load>, lent: Option<Lent>) -> Self {
        let (report, busy, health) = (endpoint.report(), endpoint.load(), endpoint.health());
        let seen = Mutex::new(Seen { lent, ..Seen::default() });
        Self { endpoint, report, busy, health, seen, load, sent: Mutex::default(), since: Instant::now() }
    }

    pub(super) fn id(&self) -> Id {
        self.endpoint.id()
    }

    pub(super) fn label(&self) -> NodeName {
        self.endpoint.label()
    }

    pub(super) fn is_local(&self) -> bool {
        self.endpoint.is_local()
    }

    pub(super) fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    /// The latest report. The first to see a new one indexes it, and counts what it says beyond our own requests.
    pub(super) fn view(&self) -> Arc<View> {
        self.look().view.clone()
    }

    fn look(&self) -> MutexGuard<'_, Seen> {
        let report = self.report.borrow().clone();
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&seen.view.report, &report) {
            let before = std::mem::replace(&mut seen.view, Arc::new(View::new(report)));
            if self.lends_by(&seen.view) {
                seen.lent = None;
            } else if self.lends_by(&before) {
                seen.lent = Some(Lent { view: before, until: Instant::now() });
            }
        }
        seen
    }

    /// What it lends, or lent a moment ago.
    fn lent(&self) -> Option<Lent> {
        let seen = self.look();
        match self.lends_by(&seen.view) {
            true => Some(Lent { view: seen.view.clone(), until: Instant::now() }),
            false => seen.lent.clone().filter(Lent::is_fresh),
        }
    }

    /// Whether it has this model, or had it when it lent something a moment ago.
    pub(super) fn knows(&self, model: &ModelName) -> bool {
        let seen = self.look();
        seen.view.digest(model).is_some() || seen.lent.as_ref().is_some_and(|lent| lent.has(model))
    }

    /// The same of these weights of it.
    pub(super) fn knows_as(&self, model: &ModelName, digest: &str) -> bool {
        let seen = self.look();
        let lent = seen.lent.as_ref().filter(|lent| lent.is_fresh());
        let known = seen.view.digest(model).or_else(|| lent?.view.digest(model));
        known.is_some_and(|known| known.is_empty() || known == digest)
    }

    /// Whether its report says what it lends to us.
    pub(super) fn lends(&self) -> bool {
        self.lends_by(&self.view())
    }

    fn lends_by(&self, view: &View) -> bool {
        view.report.provider && (self.is_local() || view.report.scope >= Scope::Infer)
    }

    /// Whether a person said not to use it.
    pub(super) fn is_unwanted(&self) -> bool {
        !self.is_local() && self.endpoint.use_() == Use::No
    }

    /// What keeps it from taking any request at all. Whether it has the model is asked apart.
    pub(super) fn obstacle(&self) -> Option<Obstacle> {
        let view = self.view();
        let report = &view.report;
        match (*self.health.borrow(), self.endpoint.use_()) {
            (Health::Gone, _) => return Some(Obstacle::Gone),
            // Whether it may be used is a question only where there is something to use.
            _ if !report.provider => return Some(Obstacle::NoOllama),
            (_, Use::Pending) if !self.is_local() => return Some(Obstacle::Pending),
            (_, Use::No) if !self.is_local() => return Some(Obstacle::NotUsed),
            (Health::Suspect, _) => return Some(Obstacle::Suspect),
            _ => {}
        }
        if !self.is_local() && report.scope < Scope::Infer {
            Some(Obstacle::NotLentToUs)
        } else if report.draining {
            Some(Obstacle::Draining)
        } else {
            None
        }
    }

    /// Whether its server understands requests of this dialect.
    pub(super) fn suits(&self, dialect: Dialect) -> bool {
        dialect.suits(self.view().report.api, self.is_local())
    }

    /// Whether we may change models there. Our own gate serves its owner.
    pub(super) fn lets_manage(&self) -> bool {
        self.is_local() || self.view().report.scope >= Scope::Manage
    }

    pub(super) fn candidate(&self) -> Candidate {
        let load = &self.load;
        let stumbled = *load.stumbled.lock().unwrap_or_else(PoisonError::into_inner);
        Candidate {
            load: load.own.load(Ordering::Relaxed).max(self.busy.borrow().inflight),
            local: self.is_local(),
            stumbled: stumbled.is_some_and(|at| at.elapsed() < STUMBLE),
        }
    }

    /// Counts one more request, until the guard is dropped. `changes`: whether it changes models.
    pub(super) fn begin(&self, changes: bool) -> InFlight {
        self.load.own.fetch_add(1, Ordering::Relaxed);
        InFlight { load: self.load.clone(), changes }
    }

    /// Whether it may have models that it has not reported yet, since they were made through this node a moment ago.
    pub(super) fn has_changed(&self) -> bool {
        let changed = *self.load.changed.lock().unwrap_or_else(PoisonError::into_inner);
        changed.is_some_and(|at| at.elapsed() < CHANGED)
    }

    /// How busy it says that it is.
    pub(super) fn busy(&self) -> Arc<Busy> {
        self.busy.borrow().clone()
    }

    /// How long it has been there.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Requests of this node's own that run or wait there, of whatever model.
    pub(super) fn own(&self) -> u32 {
        self.load.own.load(Ordering::Relaxed)
    }

    /// Something for this model was just sent there, or queues there.
    pub(super) fn sent(&self, model: Option<&ModelName>) {
        let (Some(model), Some(number)) = (model, self.endpoint.opened()) else { return };
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        if sent.len() >= MAX_SENT {
            sent.pop_front();
        }
        sent.push_back((number, model.clone()));
    }

    /// What was sent or queued there for this model that a load does not know of.
    pub(super) fn unreported(&self, model: &ModelName, load: &Busy) -> u32 {
        let mut sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
        while sent.front().is_some_and(|(number, _)| *number <= load.counted) {
            sent.pop_front();
        }
        u32::try_from(sent.iter().filter(|(_, of)| of == model).count()).unwrap_or(u32::MAX)
    }

    /// It answered a request of ours.
    pub(super) fn served(&self) {
        self.load.served.store(true, Ordering::Relaxed);
    }

    /// It failed: for a moment the others come first.
    pub(super) fn stumbled(&self) {
        *self.load.stumbled.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }
}

// === impl View ===

impl View {
    pub(super) fn new(report: Arc<Report>) -> Self {
        let models = report.models.keys().map(|name| (ModelName::new(name), name.clone())).collect();
        Self { models, report }
    }

    /// How many models it has.
    pub(super) fn models(&self) -> usize {
        self.models.len()
    }

    /// The name under which it lists a model, and what it says of it.
    pub(super) fn entry(&self, model: &ModelName) -> Option<(&str, &ModelInfo)> {
        let name = self.models.get(model)?;
        Some((name, self.report.models.get(name)?))
    }

    /// The digest of a model it has; empty if it did not say.
    pub(super) fn digest(&self, model: &ModelName) -> Option<&str> {
        self.entry(model).map(|(_, info)| &*info.digest)
    }
}

// === impl InFlight ===

impl InFlight {
    /// Its answer's head is there: what it changes may be done.
    pub(super) fn answered(&self) {
        if self.changes {
            *self.load.changed.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.answered();
        self.load.own.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Keeps the set up to date with `discover`, until that ends and for as long as it is polled. Readers of `members` are
/// also woken when a member's report or health changes.
pub(super) async fn follow<D>(discover: D, members: watch::Sender<Members>)
where
    D: Stream<Item = Result<Change<Id, Arc<dyn Endpoint>>, Infallible>> + Send,
{
    let mut discover = std::pin::pin!(discover.fuse());
    let mut changes = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(change) = discover.next() => match change {
                Ok(Change::Insert(id, endpoint)) => {
                    tracing::debug!(peer = %endpoint.label(), %id, "may be balanced over");
                    members.send_modify(|members| {
                        let member = members.insert(id, endpoint);
                        changes.push(changed(Arc::downgrade(&member), member.report.clone(), member.health.clone()));
                    });
                }
                Ok(Change::Remove(id)) => {
                    tracing::debug!(%id, "is no longer balanced over");
                    members.send_modify(|members| members.remove(&id));
                }
                Err(never) => match never {},
            },
            Some(seen) = changes.next(), if !changes.is_empty() => {
                if let Some((member, report, health)) = seen
                    && let Some(strong) = Weak::upgrade(&member)
                {
                    // Counted now, while our own requests are those that the report was about.
                    strong.view();
                    changes.push(changed(member, report, health));
                    members.send_modify(|_| {});
                }
            }
            else => std::future::pending().await,
        }
    }
}

type Watched = (Weak<Member>, watch::Receiver<Arc<Report>>, watch::Receiver<Health>);

/// Resolves once the member's report or health has changed; to nothing once it is no more.
async fn changed(
    member: Weak<Member>,
    mut report: watch::Receiver<Arc<Report>>,
    mut health: watch::Receiver<Health>,
) -> Option<Watched> {
    let over = tokio::select! {
        changed = report.changed() => changed.is_err(),
        changed = health.changed() => changed.is_err(),
    };
    (!over).then_some((member, report, health))
}
