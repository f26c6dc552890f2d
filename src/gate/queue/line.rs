//! The line before one model: who is next, and whether the model is in memory.
//!
//! Between peers it is start-time fair queueing (Goyal, Vin, Cheng 1996): the line has a clock that stands at the start of
//! what was granted last; each peer has the time at which its next may start, which moves on by one over its weight with
//! every grant, and is never behind the clock when it begins to wait. The earliest start is next, of equal ones who came
//! first. So over any time in which two peers wait, their grants differ by no more than one each over their weights,
//! whatever each of them does: how many it has waiting, how many tickets it withdraws. A grant counts as one whether a
//! request follows or not, or a peer that took slots and left them would always be next.
//!
//! A key costs nothing, so strangers may be any number of peers: while somebody waits whom a person trusts, all strangers
//! together have no more than every other turn.
//!
//! What a request will cost is not known before it ran, so requests are what is shared, and not seconds.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::{EntryId, Event, Flow, Limits, TELL, WHOLE, Why};
use crate::exchange::{ModelLoad, Place, Residence};

/// The owner is first, but of so many grants and one more the peers have one while they wait: an owner's batch of a
/// thousand would else be the end of all that others have begun to wait for.
pub(super) const OWNERS_IN_A_ROW: u32 = 8;
/// Peers whose turn is remembered though they do not wait. Keys cost nothing; those who were served longest ago go first.
const MAX_FLOWS: usize = 1024;
/// How long a look at the server's models may take and still be one from before (`ollama::watching` gives it as long). A
/// look that began before a model answered does not know that it is in memory.
const OLD_LOOK: Duration = Duration::from_secs(5);
/// A model that has answered counts as in memory for so long if no look finds it there: a look is due every 5 s, and takes
/// as long at most.
const WITNESS: Duration = Duration::from_secs(12);
/// How much of the average the latest request makes.
const LATEST: f32 = 0.2;
/// What a request is taken to last before any has been measured.
const USUAL: f32 = 5.0;
/// Longest wait that is worth a number.
const LONGEST: f32 = 600.0;

/// The line before one model.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) memory: Memory,
    /// Requests that the server has and has not answered.
    pub(super) sent: u32,
    slots: u32,
    running: u32,
    /// How many had a slot so far.
    begun: u32,
    /// Those who run that are not the owner's.
    lent: u32,
    turns: Turns,
    /// What all who wait count.
    queued: u64,
    /// Tickets that wait.
    tickets: usize,
    /// Seconds that a request keeps its slot, on average.
    lasts: Option<f32>,
    /// Whether somebody stands elsewhere than when it was told last, and when that was.
    moved: bool,
    told: Option<Instant>,
}

/// One who waits.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiting {
    pub(super) id: EntryId,
    /// What it counts, of [`WHOLE`].
    pub(super) counts: u32,
    pub(super) ticket: bool,
}

/// Whether a model is in memory, as far as is known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Memory {
    /// The last look found it there.
    seen: bool,
    /// When it answered last, as far as no look was better informed.
    answered: Option<Instant>,
}

/// Who waits, in which order.
#[derive(Debug, Clone, Default)]
struct Turns {
    flows: BTreeMap<Flow, Share>,
    /// The start of what was granted last.
    clock: f64,
    /// Grants of the owner's since others wait for one.
    owners: u32,
    /// Whether the last of the others that was granted was a stranger.
    stranger: bool,
}

#[derive(Debug, Clone, Default)]
struct Share {
    waiting: VecDeque<Waiting>,
    /// As of the latest arrival.
    weight: f64,
    /// When the first of them may start.
    start: f64,
}

// === impl Line ===

impl Line {
    pub(super) fn set_slots(&mut self, slots: u32) {
        self.slots = slots.max(1);
    }

    pub(super) fn join(&mut self, flow: Flow, weight: f64, waiting: Waiting) {
        self.queued += u64::from(waiting.counts);
        self.tickets += usize::from(waiting.ticket);
        self.moved = true;
        self.turns.join(flow, weight, waiting);
    }

    /// Takes one out who waits.
    pub(super) fn leave(&mut self, flow: Flow, id: EntryId) {
        if let Some(waiting) = self.turns.leave(flow, id) {
            self.left(waiting);
        }
    }

    /// Gives a slot to whose turn it is, if there is a free one for them.
    pub(super) fn grant(&mut self, limits: &Limits) -> Option<(Flow, EntryId)> {
        if self.running >= self.slots {
            return None;
        }
        let others_may = self.lent < self.slots.saturating_sub(limits.reserve).max(1);
        let Some((flow, waiting)) = self.turns.take(others_may) else {
            if self.turns.is_empty() {
                // Nobody wanted what is free: whoever had more than others has taken nothing from them.
                self.turns = Turns::default();
            }
            return None;
        };
        self.left(waiting);
        self.running += 1;
        self.begun = self.begun.wrapping_add(1);
        self.lent += u32::from(flow != Flow::Owner);
        Some((flow, waiting.id))
    }

    /// A slot is free again.
    pub(super) fn give_back(&mut self, flow: Flow) {
        self.running -= 1;
        self.lent -= u32::from(flow != Flow::Owner);
    }

    /// A request had its slot for so long.
    pub(super) fn took(&mut self, time: Duration) {
        let time = time.as_secs_f32();
        self.lasts = Some(self.lasts.map_or(time, |lasts| lasts + LATEST * (time - lasts)));
    }

    pub(super) fn load(&self) -> ModelLoad {
        let residence = match (self.memory.is_there(), self.sent) {
            (true, _) => Residence::Memory,
            (false, 0) => Residence::Disk,
            (false, _) => Residence::Loading,
        };
        ModelLoad { residence, running: self.running, queued: requests(self.queued), begun: self.begun }
    }

    /// What is said to who cannot wait here.
    pub(super) fn busy(&self) -> Why {
        let slots = u16::try_from(self.slots).unwrap_or(u16::MAX).max(1);
        let wait = requests(self.queued) * self.lasts.unwrap_or(USUAL) / f32::from(slots);
        Why::Busy(self.turns.len(), Duration::from_secs_f32(wait.clamp(1.0, LONGEST)))
    }

    /// What comes before this one.
    pub(super) fn place(&self, id: EntryId) -> Option<Place> {
        let mut ahead = 0;
        for waiting in self.turns.in_order() {
            if waiting.id == id {
                return Some(Place { ahead: requests(ahead) });
            }
            ahead += u64::from(waiting.counts);
        }
        None
    }

    /// When tickets are to be told where they stand, as of `now`.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        (self.moved && self.tickets > 0).then(|| self.told.map_or(now, |told| now.max(told + TELL)))
    }

    /// Tells the tickets where they stand.
    pub(super) fn tell(&mut self, now: Instant, events: &mut VecDeque<Event>) {
        (self.moved, self.told) = (false, Some(now));
        let mut ahead = 0;
        for waiting in self.turns.in_order() {
            if waiting.ticket {
                events.push_back(Event::Moved(waiting.id, Place { ahead: requests(ahead) }));
            }
            ahead += u64::from(waiting.counts);
        }
    }

    fn left(&mut self, waiting: Waiting) {
        self.queued -= u64::from(waiting.counts);
        self.tickets -= usize::from(waiting.ticket);
        self.moved = true;
    }
}

// === impl Memory ===

impl Memory {
    fn is_there(&self) -> bool {
        self.seen || self.answered.is_some()
    }

    /// It has answered.
    pub(super) fn witness(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    /// A look at the server is over.
    pub(super) fn look(&mut self, now: Instant, seen: bool) {
        self.seen = seen;
        self.answered = self.answered.filter(|answered| !seen && now < *answered + OLD_LOOK);
    }

    /// How long it counts as there though the last look did not find it.
    pub(super) fn until(&self) -> Option<Instant> {
        self.answered.filter(|_| !self.seen).map(|answered| answered + WITNESS)
    }

    /// Whether that is over just now.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let over = self.until().is_some_and(|until| until <= now);
        if over {
            self.answered = None;
        }
        over
    }
}

// === impl Turns ===

impl Turns {
    fn is_empty(&self) -> bool {
        self.flows.values().all(|share| share.waiting.is_empty())
    }

    fn len(&self) -> usize {
        self.flows.values().map(|share| share.waiting.len()).sum()
    }

    fn join(&mut self, flow: Flow, weight: f64, waiting: Waiting) {
        if self.flows.len() >= MAX_FLOWS && !self.flows.contains_key(&flow) {
            let idle = self.flows.iter().filter(|(_, share)| share.waiting.is_empty());
            let first = idle.min_by(|(_, one), (_, other)| one.start.total_cmp(&other.start)).map(|(flow, _)| *flow);
            first.and_then(|flow| self.flows.remove(&flow));
        }
        let share = self.flows.entry(flow).or_default();
        if share.waiting.is_empty() {
            share.start = share.start.max(self.clock);
        }
        share.weight = weight;
        share.waiting.push_back(waiting);
    }

    fn leave(&mut self, flow: Flow, id: EntryId) -> Option<Waiting> {
        let share = self.flows.get_mut(&flow)?;
        let at = share.waiting.iter().position(|waiting| waiting.id == id)?;
        let waiting = share.waiting.remove(at);
        self.tidy();
        waiting
    }

    /// Takes out whose turn it is.
    fn take(&mut self, others_may: bool) -> Option<(Flow, Waiting)> {
        let (flow, contested) = self.next(others_may)?;
        let share = self.flows.get_mut(&flow)?;
        let waiting = share.waiting.pop_front()?;
        if flow == Flow::Owner {
            self.owners = if contested { self.owners + 1 } else { 0 };
        } else {
            self.owners = 0;
            self.stranger = flow.is_stranger();
            // Turn and turn about with strangers, a start may be behind one that was granted before.
            self.clock = self.clock.max(share.start);
            share.start += share.weight.recip();
        }
        self.tidy();
        Some((flow, waiting))
    }

    /// Whose turn it is, and whether the owner and others both want it.
    fn next(&self, others_may: bool) -> Option<(Flow, bool)> {
        let owner = self.flows.get(&Flow::Owner).is_some_and(|share| !share.waiting.is_empty());
        let heads = self.flows.iter().filter_map(|(flow, share)| Some((share.start, share.waiting.front()?.id, *flow)));
        let others: Vec<_> = heads.filter(|(_, _, flow)| *flow != Flow::Owner && others_may).collect();
        let known = self.stranger && others.iter().any(|(_, _, flow)| !flow.is_stranger());
        let others = others.into_iter().filter(|(_, _, flow)| !known || !flow.is_stranger());
        let first = others.min_by(|one, other| one.0.total_cmp(&other.0).then(one.1.cmp(&other.1)));
        match first {
            Some((_, _, flow)) if !owner || self.owners >= OWNERS_IN_A_ROW => Some((flow, owner)),
            other => owner.then_some((Flow::Owner, other.is_some())),
        }
    }

    /// All who wait, in the order in which they are granted if nobody comes or goes.
    fn in_order(&self) -> Vec<Waiting> {
        let mut turns = self.clone();
        let mut order = Vec::with_capacity(self.len());
        while let Some((_, waiting)) = turns.take(true) {
            order.push(waiting);
        }
        order
    }

    /// Forgets the shares of which nothing has to be remembered.
    fn tidy(&mut self) {
        let clock = self.clock;
        let behind = |flow: &Flow, share: &Share| *flow == Flow::Owner || share.start <= clock;
        self.flows.retain(|flow, share| !share.waiting.is_empty() || !behind(flow, share));
    }
}

/// A sum of what entries count, as requests.
fn requests(counts: u64) -> f32 {
    // At most some hundreds, of which a float knows the thousandths.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let requests = (counts as f64 / f64::from(WHOLE)) as f32;
    requests
}
