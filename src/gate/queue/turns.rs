//! Whose turn it is before one model.
//!
//! Who came first is served first, but no peer is served more than [`LEAD`] turns, and the one that is due, ahead of its
//! share: weighted fair queueing (Demers, Keshav, Shenker 1989) that begins to count only there. Strict turns would cost
//! those dear who have two questions at a time once, and nobody gains by it but who happens to have one: in a simulation, at
//! 95 % load, p99 of the time to the first token is 42 s for who came first is first, 42 s with a lead of two turns, 44 s
//! with one and 52 s with none, and without the bound one peer's thousand is the end of all others.
//!
//! There is a clock: so many turns has had who waited all the while, with a weight of one. Each peer has the time at which its
//! next turn is due, which moves on by one over its weight with every grant, and is never behind the clock when it begins
//! to wait. What waits comes up when it came or, where its peer is ahead, [`LEAD`] turns before that one is due; the earliest
//! is next. A grant counts as one whether a request follows or not, or a peer that took slots and left them would always be
//! next. What a request will cost is not known before it ran, so requests are what is shared, and not seconds.
//!
//! A key costs nothing, so strangers may be any number of peers: while somebody waits whom a person trusts, all strangers
//! together have no more than every other turn. So they and those who are trusted have a clock each, since one that both moved
//! would run ahead of whoever has less than a share, and they all would seem to be owed turns; between the two a tilt says
//! who has had more of late.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{EntryId, Flow};

/// So many turns a peer may have ahead of its share.
pub(super) const LEAD: u16 = 2;
/// The owner is first, but of so many grants and one more the peers have one while they wait: an owner's batch of a
/// thousand would else be the end of all that others have begun to wait for.
pub(super) const OWNERS_IN_A_ROW: u32 = 8;
/// Peers whose turns are remembered though they do not wait. Keys cost nothing; those who are least ahead go first.
const MAX_FLOWS: usize = 1024;

/// One who waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) id: EntryId,
    /// What it counts, of [`WHOLE`](super::WHOLE).
    pub(super) counts: u32,
    pub(super) ticket: bool,
}

/// Who waits, in which order.
#[derive(Debug, Clone, Default)]
pub(super) struct Turns {
    owner: VecDeque<Waiting>,
    /// Grants of the owner's since others wait for one.
    owners: u32,
    /// Those whom a person trusts.
    known: Class,
    strangers: Class,
    /// Whether the last of the peers that was granted was a stranger.
    stranger: bool,
    /// By how many turns of one of them those who are known are ahead of strangers, while both wait.
    tilt: f64,
}

/// Peers among whom turns are shared.
#[derive(Debug, Clone, Default)]
struct Class {
    peers: BTreeMap<Flow, Share>,
    /// The first of each that waits.
    firsts: BTreeSet<First>,
    clock: f64,
    /// What all weigh that wait.
    weights: f64,
}

#[derive(Debug, Clone, Default)]
struct Share {
    /// Who waits, and what the clock was when they came.
    waiting: VecDeque<(Waiting, f64)>,
    /// As of the latest arrival.
    weight: f64,
    /// When its next turn is due.
    due: f64,
}

/// The first of a peer's, by when it comes up; of those that come up at once, who came first.
#[derive(Debug, Clone, Copy)]
struct First {
    up: f64,
    id: EntryId,
    flow: Flow,
}

// === impl Turns ===

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.owner.is_empty() && self.known.is_empty() && self.strangers.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.owner.len() + self.known.len() + self.strangers.len()
    }

    pub(super) fn join(&mut self, flow: Flow, weight: f64, waiting: Waiting) {
        match self.class(flow) {
            Some(class) => class.join(flow, weight, waiting),
            None => self.owner.push_back(waiting),
        }
    }

    pub(super) fn leave(&mut self, flow: Flow, id: EntryId) -> Option<Waiting> {
        match self.class(flow) {
            Some(class) => class.leave(flow, id),
            None => {
                let at = self.owner.iter().position(|waiting| waiting.id == id)?;
                self.owner.remove(at)
            }
        }
    }

    /// Takes out whose turn it is; a peer only if `peers_may`.
    pub(super) fn take(&mut self, peers_may: bool) -> Option<(Flow, Waiting)> {
        let peers_wait = peers_may && !(self.known.is_empty() && self.strangers.is_empty());
        if peers_wait && (self.owner.is_empty() || self.owners >= OWNERS_IN_A_ROW) {
            self.owners = 0;
            return self.take_peer();
        }
        let waiting = self.owner.pop_front()?;
        self.owners = if peers_wait { self.owners + 1 } else { 0 };
        Some((Flow::Owner, waiting))
    }

    /// All who wait, in the order in which they are granted if nobody comes or goes.
    pub(super) fn in_order(&self) -> impl Iterator<Item = Waiting> + use<> {
        let mut turns = self.clone();
        std::iter::from_fn(move || turns.take(true).map(|(_, waiting)| waiting))
    }

    fn take_peer(&mut self) -> Option<(Flow, Waiting)> {
        let (known, strangers) = (self.known.weights, self.strangers.weights);
        let (both, ahead) = match (self.known.is_empty(), self.strangers.is_empty()) {
            (false, false) => (true, self.tilt > 0.0),
            (is_nobody_known, _) => (false, is_nobody_known),
        };
        self.stranger = if both { ahead && !self.stranger } else { ahead };
        let lead = f64::from(LEAD);
        self.tilt = match (both, self.stranger) {
            (false, _) => 0.0,
            (true, true) => (self.tilt - strangers.recip()).max(-lead),
            (true, false) => (self.tilt + known.recip()).min(lead),
        };
        if self.stranger { self.strangers.take() } else { self.known.take() }
    }

    /// Whom this one shares turns with; nobody if it is the owner.
    fn class(&mut self, flow: Flow) -> Option<&mut Class> {
        match flow {
            Flow::Owner => None,
            _ if flow.is_stranger() => Some(&mut self.strangers),
            _ => Some(&mut self.known),
        }
    }
}

// === impl Class ===

impl Class {
    fn is_empty(&self) -> bool {
        self.firsts.is_empty()
    }

    fn len(&self) -> usize {
        self.peers.values().map(|share| share.waiting.len()).sum()
    }

    fn join(&mut self, flow: Flow, weight: f64, waiting: Waiting) {
        if self.peers.len() >= MAX_FLOWS && !self.peers.contains_key(&flow) {
            let idle = self.peers.iter().filter(|(_, share)| share.waiting.is_empty());
            let first = idle.min_by(|(_, one), (_, other)| one.due.total_cmp(&other.due)).map(|(flow, _)| *flow);
            first.and_then(|flow| self.peers.remove(&flow));
        }
        let clock = self.clock;
        self.peers.entry(flow).or_default();
        self.change(flow, |share| {
            if share.waiting.is_empty() {
                share.due = share.due.max(clock);
            }
            share.weight = weight;
            share.waiting.push_back((waiting, clock));
        });
    }

    fn leave(&mut self, flow: Flow, id: EntryId) -> Option<Waiting> {
        self.change(flow, |share| {
            let at = share.waiting.iter().position(|(waiting, _)| waiting.id == id)?;
            share.waiting.remove(at).map(|(waiting, _)| waiting)
        })?
    }

    fn take(&mut self) -> Option<(Flow, Waiting)> {
        let flow = self.firsts.first()?.flow;
        let weight = self.peers.get(&flow)?.weight;
        self.clock += self.weights.max(weight).recip();
        let waiting = self.change(flow, |share| {
            share.due += weight.recip();
            share.waiting.pop_front().map(|(waiting, _)| waiting)
        });
        Some((flow, waiting??))
    }

    /// Does something to a peer's share, and keeps all that follows from it.
    fn change<T>(&mut self, flow: Flow, what: impl FnOnce(&mut Share) -> T) -> Option<T> {
        let share = self.peers.get_mut(&flow)?;
        let (before, weight) = (share.first(flow), share.weight);
        let done = what(share);
        if let Some(before) = before {
            self.weights -= weight;
            self.firsts.remove(&before);
        }
        match share.first(flow) {
            Some(after) => {
                self.weights += share.weight;
                self.firsts.insert(after);
            }
            // There is nothing to remember of who is not ahead.
            None if share.due <= self.clock => drop(self.peers.remove(&flow)),
            None => {}
        }
        Some(done)
    }
}

// === impl Share ===

impl Share {
    fn first(&self, flow: Flow) -> Option<First> {
        let (waiting, came) = self.waiting.front()?;
        Some(First { up: came.max(self.due - f64::from(LEAD) / self.weight), id: waiting.id, flow })
    }
}

// === impl First ===

impl PartialEq for First {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for First {}

impl PartialOrd for First {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for First {
    fn cmp(&self, other: &Self) -> Ordering {
        self.up.total_cmp(&other.up).then(self.id.cmp(&other.id))
    }
}
