//! Whose turn it is before one model.
//!
//! Who came first is served first, but no peer is served more than [`LEAD`] turns ahead of its share: weighted fair queueing
//! (Demers, Keshav, Shenker 1989) that begins to count only there. Strict turns would cost those dear who have two questions
//! at a time once, and nobody gains by it but who happens to have one: in the simulation of issue 4, at 95 % load, p99 of the
//! time to the first token is 42 s for who came first is first, 42 s with a lead of two turns, 44 s with one and 52 s with
//! none, and without the bound one peer's thousand is the end of all others.
//!
//! The line has a clock: so many turns has had who waited all the while, with a weight of one. Each peer has the time at which
//! its next turn is due, which moves on by one over its weight with every grant, and is never behind the clock when it begins
//! to wait. What waits comes up when it came or, where its peer is ahead, [`LEAD`] turns before that one is due; the earliest
//! is next. A grant counts as one whether a request follows or not, or a peer that took slots and left them would always be
//! next. What a request will cost is not known before it ran, so requests are what is shared, and not seconds.
//!
//! A key costs nothing, so strangers may be any number of peers: while somebody waits whom a person trusts, all strangers
//! together have no more than every other turn.

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
    peers: BTreeMap<Flow, Share>,
    /// The first of each peer that waits: of those whom a person trusts, and of strangers.
    known: BTreeSet<First>,
    strangers: BTreeSet<First>,
    /// Whether the last of the peers that was granted was a stranger.
    stranger: bool,
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
        self.owner.len() + self.peers.values().map(|share| share.waiting.len()).sum::<usize>()
    }

    pub(super) fn join(&mut self, flow: Flow, weight: f64, waiting: Waiting) {
        if flow == Flow::Owner {
            return self.owner.push_back(waiting);
        }
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

    pub(super) fn leave(&mut self, flow: Flow, id: EntryId) -> Option<Waiting> {
        if flow == Flow::Owner {
            let at = self.owner.iter().position(|waiting| waiting.id == id)?;
            return self.owner.remove(at);
        }
        self.change(flow, |share| {
            let at = share.waiting.iter().position(|(waiting, _)| waiting.id == id)?;
            share.waiting.remove(at).map(|(waiting, _)| waiting)
        })?
    }

    /// Takes out whose turn it is; a peer only if `peers_may`.
    pub(super) fn take(&mut self, peers_may: bool) -> Option<(Flow, Waiting)> {
        let peer = self.next().filter(|_| peers_may);
        match peer {
            Some(flow) if self.owner.is_empty() || self.owners >= OWNERS_IN_A_ROW => {
                self.owners = 0;
                self.stranger = flow.is_stranger();
                Some((flow, self.grant(flow)?))
            }
            _ => {
                let waiting = self.owner.pop_front()?;
                self.owners = if peer.is_some() { self.owners + 1 } else { 0 };
                Some((Flow::Owner, waiting))
            }
        }
    }

    /// All who wait, in the order in which they are granted if nobody comes or goes.
    pub(super) fn in_order(&self) -> impl Iterator<Item = Waiting> + use<> {
        let mut turns = self.clone();
        std::iter::from_fn(move || turns.take(true).map(|(_, waiting)| waiting))
    }

    /// Which of the peers is next.
    fn next(&self) -> Option<Flow> {
        let first = match (self.known.first(), self.strangers.first()) {
            (Some(known), Some(stranger)) if self.stranger || known < stranger => known,
            (known, stranger) => stranger.or(known)?,
        };
        Some(first.flow)
    }

    fn grant(&mut self, flow: Flow) -> Option<Waiting> {
        let weight = self.peers.get(&flow)?.weight;
        self.clock += self.weights.max(weight).recip();
        // Whom a person trusts may have had more than a share beside strangers, which is nobody's loss now.
        let latest = self.clock + f64::from(LEAD + 1) / weight;
        self.change(flow, |share| {
            share.due = (share.due + weight.recip()).min(latest);
            share.waiting.pop_front().map(|(waiting, _)| waiting)
        })?
    }

    /// Does something to a peer's share, and keeps all that follows from it.
    fn change<T>(&mut self, flow: Flow, what: impl FnOnce(&mut Share) -> T) -> Option<T> {
        let share = self.peers.get_mut(&flow)?;
        let (before, weight) = (share.first(flow), share.weight);
        let done = what(share);
        let (after, firsts) =
            (share.first(flow), if flow.is_stranger() { &mut self.strangers } else { &mut self.known });
        if let Some(before) = before {
            self.weights -= weight;
            firsts.remove(&before);
        }
        match after {
            Some(after) => {
                self.weights += share.weight;
                firsts.insert(after);
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
