//! Whom the balancer knows: the endpoints that the `Discover` stream brought, what they report, and how much of ours
//! they carry. One task writes the set, everybody reads the latest.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt as _};
use tokio::sync::watch;
use tokio::time::Instant;
use tower::discover::Change;

use super::around::Around;
use super::breaker::slow_start;
use super::choose::Candidate;
use super::clock::Clock;
use super::dealings::{Dealings, Standing};
use super::departed::{Departed, Lent, Memory};
use super::priors::Machine;
use super::unreported::Unreported;
use super::{RETURN, SUSPENSE};
use crate::exchange::{Caveat, Denial, Endpoint, Health, Load, ModelInfo, Report};
use crate::id::{Id, NodeName, Scope, Use, means};
use crate::route::{Dialect, ModelName};

/// All members, in the order of their IDs, and what those had that left. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Members {
    present: Arc<BTreeMap<Id, Arc<Member>>>,
    departed: Arc<Memory>,
    clock: Clock,
    around: Around,
}

/// One endpoint and what is counted of it.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) endpoint: Arc<dyn Endpoint>,
    report: watch::Receiver<Arc<Report>>,
    busy: watch::Receiver<Arc<Load>>,
    health: watch::Receiver<Health>,
    seen: Mutex<Seen>,
    pub(super) dealings: Arc<Dealings>,
    /// What was sent there, or queues there, and may not be in what it says of its load.
    unreported: Mutex<Unreported>,
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
    /// How fast it is, as far as its models tell.
    pub(super) machine: Machine,
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
    /// None yet, whose servers will go by this clock.
    pub(super) fn new(clock: Clock, around: Around) -> Self {
        Self { clock, around, ..Self::default() }
    }

    /// Those who are none, for the words of a refusal.
    pub(super) fn around(&self) -> &Around {
        &self.around
    }

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

    /// Whether it answered requests of this node for this model, and is here or left a moment ago.
    pub(super) fn has_run(&self, id: &Id, model: &ModelName) -> bool {
        let present = self.get(id).map(|member| &member.dealings);
        let departed = self.departed().filter(|departed| departed.id == *id).map(|departed| &departed.dealings);
        present.into_iter().chain(departed).any(|dealings| dealings.has_run(model))
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

    /// Until when it is waited for those who may be back in a moment, where nobody could be used since `since`.
    pub(super) fn awaited(&self, since: Instant) -> Option<Instant> {
        let here = self.values().filter(|member| member.is_used()).filter_map(|member| match member.obstacle()? {
            Obstacle::Suspect => Some(since + SUSPENSE),
            Obstacle::Gone => member.lent().map(|_| since + RETURN),
            // By a connection that has just taken another one's place.
            Obstacle::NoOllama if member.has_said_nothing() => member.lent().map(|lent| lent.until + RETURN),
            _ => None,
        });
        here.chain(self.departed().map(|departed| departed.lent.until + RETURN)).max()
    }

    fn insert(&mut self, id: Id, endpoint: Arc<dyn Endpoint>) -> Arc<Member> {
        let before = self.present.get(&id).map(|member| (member.dealings.clone(), member.lent()));
        let departed = Arc::make_mut(&mut self.departed).take(&id);
        let member = Arc::new(match (before, departed) {
            (Some((dealings, lent)), _) => Member::new(endpoint, dealings, lent),
            (None, Some(departed)) => Member::new(endpoint, departed.dealings, Some(departed.lent)),
            (None, None) => Member::new(endpoint, Arc::new(Dealings::new(self.clock)), None),
        });
        Arc::make_mut(&mut self.present).insert(id, member.clone());
        member
    }

    fn remove(&mut self, id: &Id) {
        let Some(member) = Arc::make_mut(&mut self.present).remove(id) else { return };
        // Whom a person waits to trust, or does not want, leaves nothing behind.
        if let Some(lent) = member.lent().filter(|_| !member.is_local() && member.endpoint.use_() == Use::Yes) {
            let dealings = member.dealings.clone();
            let departed = Departed { id: *id, label: member.label(), lent, dealings };
            Arc::make_mut(&mut self.departed).add(departed);
        }
    }
}

// === impl Member ===

impl Member {
    fn new(endpoint: Arc<dyn Endpoint>, dealings: Arc<Dealings>, lent: Option<Lent>) -> Self {
        let (report, busy, health) = (endpoint.report(), endpoint.load(), endpoint.health());
        let seen = Mutex::new(Seen { lent, ..Seen::default() });
        Self { endpoint, report, busy, health, seen, dealings, unreported: Mutex::default(), since: Instant::now() }
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
    pub(super) fn lent(&self) -> Option<Lent> {
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

    /// Whether its first report is still to come.
    fn has_said_nothing(&self) -> bool {
        *self.view().report == Report::default()
    }

    /// Whether a person said not to use it.
    pub(super) fn is_unwanted(&self) -> bool {
        !self.is_local() && self.endpoint.use_() == Use::No
    }

    /// Whether it gets prompts of ours.
    pub(super) fn is_used(&self) -> bool {
        self.is_local() || self.endpoint.use_() == Use::Yes
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

    /// Why it does not serve this node, as it says.
    pub(super) fn denial(&self) -> Option<Denial> {
        self.view().report.denial
    }

    /// Whether it refuses this node although this node would use it.
    pub(super) fn refuses(&self) -> bool {
        self.obstacle() == Some(Obstacle::NotLentToUs)
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
        Candidate {
            load: self.dealings.own().max(self.busy.borrow().inflight),
            local: self.is_local(),
            stumbled: self.dealings.has_stumbled(),
        }
    }

    /// How busy it says that it is.
    pub(super) fn busy(&self) -> Arc<Load> {
        self.busy.borrow().clone()
    }

    /// What is held against it, by the model's name there.
    #[expect(clippy::cast_possible_truncation, reason = "for people to read")]
    pub(super) fn caveats(&self, clock: &Clock) -> BTreeMap<String, Caveat> {
        let (view, newcomer) = (self.view(), slow_start(clock.of(self.age())));
        let caveat = |(model, standing): (ModelName, Standing)| {
            let caveat = Caveat {
                slowness: standing.slowness as f32,
                caution: standing.caution.max(newcomer) as f32,
                left_alone_s: standing.left_alone.map(|wait| wait.as_secs_f32()),
            };
            Some((view.entry(&model)?.0.to_owned(), caveat)).filter(|_| !caveat.is_nothing())
        };
        self.dealings.standings().into_iter().filter_map(caveat).collect()
    }

    /// How long it has been there.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Something for this model was just sent there, or queues there with so many tickets in all.
    pub(super) fn sent(&self, model: Option<&ModelName>, copies: u8) {
        let (Some(model), Some(number)) = (model, self.endpoint.opened()) else { return };
        self.lock_unreported().sent(number, model, copies);
    }

    /// What was sent or queued there for this model that a load does not know of.
    pub(super) fn unreported(&self, model: &ModelName, load: &Load) -> f64 {
        self.lock_unreported().of(model, load.counted, self.endpoint.opened().unwrap_or_default())
    }

    fn lock_unreported(&self) -> MutexGuard<'_, Unreported> {
        self.unreported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl View ===

impl View {
    pub(super) fn new(report: Arc<Report>) -> Self {
        let models = report.models.keys().map(|name| (ModelName::new(name), name.clone())).collect();
        let machine = Machine::of(report.models.values());
        Self { models, machine, report }
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
