//! What each server would cost a request: its [score](super::score) from what the server reports, what this node knows
//! beside that, and what of the conversation it has cached; and the [plan] that follows.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::breaker::{Outcome, slow_start};
use super::demand::Sight;
use super::errand::Errand;
use super::members::{Member, View};
use super::plan::{self, Candidate, Knowledge, Plan};
use super::priors::Usual;
use super::refuse;
use super::score::{Score, Server, score};
use super::seek::Found;
use super::{Known, MOST_LATE, MOST_LATE_AT_ONE};
use crate::exchange::{Decision, Load, Look, ModelInfo, ModelLoad, Refusal, Residence, Weighed};
use crate::id::Id;
use crate::route::ModelName;

/// After so long without anything to do a server is measured again, whatever is held against it, and after as long as the
/// request should take there, so that a slow one is not measured all the time.
const MEASURED_AGAIN: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(60));
/// Servers that are told of one decision, the best first.
const MAX_TOLD: usize = 16;

/// What the weighing goes by beside the candidates.
pub(super) struct Scales<'a> {
    pub(super) known: &'a Known,
    pub(super) errand: &'a Errand,
    /// The model that is asked for.
    pub(super) model: &'a ModelName,
    /// Where it queues already.
    pub(super) held: &'a [Queues],
}

/// Where a request queues.
pub(super) struct Queues {
    pub(super) id: Id,
    /// What is before it there, as the gate says.
    pub(super) ahead: f32,
    /// How many times longer than one may expect it has waited; 1 if it has not.
    pub(super) overdue: f64,
}

/// What came out.
pub(super) struct Weighing<'a> {
    scales: &'a Scales<'a>,
    candidates: Vec<Weight>,
    /// Whether any of them lists the model.
    listed: bool,
    plan: Plan,
    /// How long it would have to wait for a slot if that is too long.
    too_long: Option<Duration>,
}

/// One candidate on the scales.
struct Weight {
    member: Arc<Member>,
    server: Server,
    cached: f64,
    candidate: Candidate,
    /// Its report of the model.
    load: ModelLoad,
    /// Where it stands in the queue there.
    ahead: Option<f32>,
    /// Whether its breaker is open for who is not there yet.
    left_alone: bool,
}

// === impl Scales ===

impl<'a> Scales<'a> {
    /// Weighs the candidates; nothing if there are none.
    pub(super) fn weigh(&'a self, candidates: Vec<Arc<Member>>) -> Option<Weighing<'a>> {
        let sights: Vec<(Arc<View>, Arc<Load>)> =
            candidates.iter().map(|member| (member.view(), member.busy())).collect();
        let infos: Vec<&ModelInfo> = sights.iter().filter_map(|(view, _)| Some(view.entry(self.model)?.1)).collect();
        let usual = self.errand.usual(Usual::of(infos.iter().copied()));
        let (unlisted, tempo) = (ModelInfo::default(), self.known.node.preferences.tempo);
        let mut prefixes = self.known.prefixes();
        let mut weights: Vec<_> = candidates
            .into_iter()
            .zip(&sights)
            .map(|(member, (view, load))| {
                let (name, info) = view.entry(self.model).unwrap_or((self.model.as_written(), &unlisted));
                let elsewhere = infos.iter().copied().filter(|other| !std::ptr::eq(*other, info));
                let assumed = view.machine.assume(tempo, info, elsewhere);
                let server = Server::of(name, load, &view.report.models, &view.machine, assumed, usual, tempo);
                if server.residence == Residence::Disk {
                    // What it had cached went with the model.
                    prefixes.forget_model(&member.id(), name);
                }
                let cached = self.errand.cached_at(&prefixes, &member, name, load.of(name).begun);
                self.weight(member, server, name, load, usual, cached)
            })
            .collect();
        drop(prefixes);
        // Where all have failed, any is as good as none: the failure is the application's to see.
        if weights.iter().all(|weight| !weight.candidate.eligible) {
            weights.iter_mut().for_each(|weight| weight.candidate.eligible = true);
        }
        // Of a model that nobody lists nothing is remembered: it would push out one that is used.
        let listed = !infos.is_empty();
        if listed {
            self.note(&mut weights);
        }
        let all: Vec<Candidate> = weights.iter().map(|weight| weight.candidate).collect();
        let plan = plan::plan(&all, rand::random_range(0..=usize::MAX >> 1))?;
        let too_long = self.too_long(&all, plan);
        if let Plan::Tickets(index, _) | Plan::Send(index) = plan
            && all.get(index).is_some_and(|candidate| candidate.due)
        {
            self.known.demand().spend(self.model);
        }
        Some(Weighing { scales: self, candidates: weights, listed, plan, too_long })
    }

    fn weight(
        &self,
        member: Arc<Member>,
        server: Server,
        name: &str,
        load: &Load,
        usual: Usual,
        cached: f64,
    ) -> Weight {
        let request = usual.request(self.errand.prompt(), cached);
        let standing = member.dealings.standing_at(self.model, server.usual(&request));
        let held = self.held.iter().find(|held| held.id == member.id());
        let local = member.is_local();
        let server = Server {
            unreported: member.unreported(self.model, load),
            own: standing.own.into(),
            ahead: held.map(|held| f64::from(held.ahead)),
            slowness: standing.slowness,
            caution: standing.caution.max(held.map_or(1.0, |held| held.overdue)),
            newcomer: slow_start(self.known.clock.of(member.age())),
            preference: if local { 1.0 / self.known.node.preferences.prefer_local } else { 1.0 },
            ..server
        };
        let candidate = Candidate {
            score: score(&server, &request),
            eligible: standing.left_alone.is_none() || (held.is_some() && standing.keeps_places),
            free: server.has_free_slot(),
            knowledge: if local { Knowledge::Exact } else { Knowledge::Reported },
            local,
            held: held.is_some(),
            due: false,
            idle: false,
        };
        let (ahead, left_alone) = (held.map(|held| held.ahead), standing.left_alone.is_some());
        Weight { member, server, cached, candidate, load: load.of(name), ahead, left_alone }
    }

    /// Adds what follows from how they were used.
    fn note(&self, weights: &mut [Weight]) {
        let (clock, tempo) = (&self.known.clock, self.known.node.preferences.tempo);
        let sight = |weight: &Weight| Sight {
            id: weight.member.id(),
            load: ModelLoad { waited: weight.load.waited * tempo, ..weight.load },
            cost: weight.server.loading() * tempo,
            evicts: weight.server.eviction.is_some(),
            busy: weight.server.others_are_busy(),
        };
        let sights: Vec<Sight> = weights.iter().map(sight).collect();
        let noted = self.known.demand().look(self.model, &sights, clock.now());
        for (Weight { candidate, .. }, noted) in weights.iter_mut().zip(noted) {
            let service = Duration::try_from_secs_f64(candidate.score.service).unwrap_or(Duration::MAX);
            candidate.due = noted.due;
            candidate.idle = noted.idle >= clock.of(service).clamp(MEASURED_AGAIN.0, MEASURED_AGAIN.1);
        }
    }

    /// How long it would wait, if that is too long to begin with.
    fn too_long(&self, all: &[Candidate], plan: Plan) -> Option<Duration> {
        let Plan::Tickets(best, _) = plan else { return None };
        let wait = Duration::try_from_secs_f64(all.get(best)?.score.wait).unwrap_or(Duration::MAX);
        (self.held.is_empty() && wait > self.known.node.preferences.max_wait).then_some(wait)
    }
}

// === impl Weighing ===

impl Weighing<'_> {
    /// What is to be done.
    pub(super) fn decision(&self) -> Decision {
        match self.plan {
            _ if self.too_long.is_some() => Decision::Refuse,
            Plan::Send(_) => Decision::Send,
            Plan::Tickets(..) => Decision::Queue,
            Plan::Stay => Decision::Stay,
        }
    }

    /// For the account of the request, and a line in the log.
    pub(super) fn look(&self) -> Look {
        let mut order: Vec<(usize, &Weight)> = self.candidates.iter().enumerate().collect();
        order.sort_by(|(_, a), (_, b)| a.candidate.score.total.total_cmp(&b.candidate.score.total));
        let told = |(index, weight): &(usize, &Weight)| weight.told(self.is_chosen(*index));
        Look { after_ms: 0, decision: self.decision(), servers: order.iter().take(MAX_TOLD).map(told).collect() }
    }

    /// Who gets it, if it is to be sent.
    pub(super) fn sends(&self) -> Option<Found> {
        let Plan::Send(index) = self.plan else { return None };
        let member = &self.candidates.get(index)?.member;
        Some(Found { member: member.clone(), slot: None, promised: self.promised(member.id()) })
    }

    /// Where it is to queue.
    pub(super) fn queues_at(&self) -> impl Iterator<Item = &Arc<Member>> {
        let Plan::Tickets(best, second) = self.plan else { return [None, None].into_iter().flatten() };
        let member = |index: usize| self.candidates.get(index).map(|weight| &weight.member);
        [member(best), second.and_then(member)].into_iter().flatten()
    }

    /// Whether the best of those where it is to queue has a slot free, as far as is known.
    pub(super) fn finds_slot(&self) -> bool {
        let Plan::Tickets(best, _) = self.plan else { return false };
        self.candidates.get(best).is_some_and(|weight| weight.candidate.free)
    }

    /// How long it should take there once it has a slot; nothing where the model has to be loaded first, which takes as long
    /// as it takes, or may not be there at all.
    pub(super) fn promised(&self, id: Id) -> Option<Duration> {
        let Score { promised, warm, .. } =
            self.candidates.iter().find(|weight| weight.member.id() == id)?.candidate.score;
        Duration::try_from_secs_f64(promised).ok().filter(|_| warm && self.listed)
    }

    /// How long it should wait there for a slot, in seconds.
    pub(super) fn wait(&self, id: Id) -> f64 {
        let weight = self.candidates.iter().find(|weight| weight.member.id() == id);
        weight.map_or(0.0, |weight| weight.candidate.score.wait)
    }

    /// Whether who had a place there may still have the request. Said or seen between two looks counts too: a server that
    /// begins to fail has free slots for all who queue. Where no other is any better, its slot is one.
    pub(super) fn still_lets(&self, member: &Member) -> bool {
        let lets = |member: &Member| member.dealings.standing(self.scales.model).keeps_places;
        let mut others = self.candidates.iter().map(|weight| &weight.member).filter(|other| other.id() != member.id());
        member.is_used() && (lets(member) || !others.any(|other| lets(other)))
    }

    /// How often its turn may be over before it was heard of.
    pub(super) fn most_late(&self) -> usize {
        if self.candidates.len() > 1 { MOST_LATE } else { MOST_LATE_AT_ONE }
    }

    /// A gate would not queue it, or cannot.
    pub(super) fn failed(&self, member: &Member, outcome: Outcome) {
        member.dealings.failed(self.scales.model, outcome);
    }

    /// How long until it is to be looked at again.
    pub(super) fn look_again(&self) -> Duration {
        plan::next_look(rand::random()).div_f64(self.scales.known.node.preferences.tempo)
    }

    /// Why it is not even queued.
    pub(super) fn refusal(&self) -> Refusal {
        refuse::too_long(self.scales.model, self.too_long.unwrap_or_default())
    }

    fn is_chosen(&self, index: usize) -> bool {
        match self.plan {
            Plan::Send(best) => index == best,
            Plan::Tickets(best, second) => index == best || Some(index) == second,
            Plan::Stay => self.candidates.get(index).is_some_and(|weight| weight.candidate.held),
        }
    }
}

impl fmt::Display for Weighing<'_> {
    /// Each candidate with its score and what that is made of: why a request goes where it goes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, weight) in self.candidates.iter().enumerate() {
            let separator = if index > 0 { "; " } else { "" };
            let chosen = if self.is_chosen(index) { "*" } else { "" };
            let Weight { member, cached, candidate, ahead, left_alone, .. } = weight;
            write!(f, "{separator}{chosen}{}: {}, {cached:.0} tokens cached", member.label(), candidate.score)?;
            if let Some(ahead) = ahead {
                write!(f, ", {ahead} ahead there")?;
            }
            if *left_alone {
                f.write_str(", left alone")?;
            }
        }
        Ok(())
    }
}

// === impl Weight ===

impl Weight {
    #[expect(clippy::cast_possible_truncation, reason = "for people to read")]
    fn told(&self, chosen: bool) -> Weighed {
        let Self { member, server, cached, candidate, ahead, left_alone, .. } = self;
        let Score { wait, load, service, externality, price, factor, total, warm, .. } = candidate.score;
        Weighed {
            peer: member.label(),
            id: member.id(),
            chosen,
            warm,
            running: server.running as u32,
            queued: (server.queued + server.unreported) as f32,
            slots: server.slots as u32,
            ahead: *ahead,
            left_alone: *left_alone,
            due: candidate.due,
            idle: candidate.idle,
            cached_tokens: *cached as u32,
            wait_s: wait as f32,
            load_s: load as f32,
            service_s: service as f32,
            others_s: (externality + price) as f32,
            factor: factor as f32,
            score_s: total as f32,
        }
    }
}
