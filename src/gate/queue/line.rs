//! The line before one model: how many run, who waits and whose [turn](super::turns) it is, and whether the model is in
//! memory.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::turns::{Turns, Waiting};
use super::{EntryId, Event, Flow, Found, Limits, WHOLE};
use crate::exchange::{ModelLoad, Place, Refusal, RefusalCode, Residence};
use crate::ollama::Slots;

/// How much of the average the latest request makes.
const LATEST: f32 = 0.2;
/// What a request is taken to last before any has been measured.
const USUAL: f32 = 5.0;
/// Longest wait that is worth a number.
const LONGEST: f32 = 600.0;

/// The line before one model.
#[derive(Debug, Default)]
pub(super) struct Line {
    memory: Memory,
    /// Requests that the server has and has not answered.
    sent: u32,
    /// When the first of them was sent, if it was not in memory then and none has been answered since. An Ollama lists a
    /// model as in memory from when it begins to load.
    loads: Option<Instant>,
    slots: Slots,
    running: u32,
    /// How many had a slot so far.
    begun: u32,
    /// Those who run that are not the owner's.
    lent: u32,
    turns: Turns,
    /// What all who wait count.
    queued: u64,
    /// Seconds that they have waited in all, until `counted`.
    waited: f64,
    counted: Option<Instant>,
    /// Tickets that wait.
    tickets: usize,
    /// Seconds that a request keeps its slot, on average.
    lasts: Option<f32>,
    /// Whether somebody stands elsewhere than when it was told last, and when that was.
    moved: bool,
    told: Option<Instant>,
}

/// Whether a model is in memory, as far as is known.
#[derive(Debug, Clone, Copy, Default)]
struct Memory {
    /// The last look found it there.
    seen: bool,
    /// The server does not say whether it is there.
    unknown: bool,
    /// When it answered last, as far as no look was better informed.
    answered: Option<Instant>,
}

// === impl Line ===

impl Line {
    pub(super) fn set_slots(&mut self, slots: Slots) {
        self.slots = Slots { at_once: slots.at_once.max(1), ..slots };
    }

    pub(super) fn join(&mut self, flow: Flow, weight: f64, waiting: Waiting, now: Instant) {
        self.count_wait(now);
        self.queued += u64::from(waiting.counts);
        self.tickets += usize::from(waiting.ticket);
        self.moved = true;
        self.turns.join(flow, weight, waiting);
    }

    /// Takes one out who waits.
    pub(super) fn leave(&mut self, flow: Flow, id: EntryId, now: Instant) {
        if let Some(waiting) = self.turns.leave(flow, id) {
            self.left(waiting, now);
        }
    }

    /// Gives a slot to whose turn it is, if there is a free one for them.
    pub(super) fn grant(&mut self, limits: &Limits, now: Instant) -> Option<(Flow, EntryId)> {
        let slots = self.slots.tried();
        if self.running >= slots {
            return None;
        }
        // One that is only tried is nothing that could be kept for the owner.
        let for_others = if limits.reserve > 0 { self.slots.at_once.saturating_sub(limits.reserve) } else { slots };
        let others_may = self.lent < for_others.max(1);
        let Some((flow, waiting)) = self.turns.take(others_may) else {
            if self.turns.is_empty() {
                // Nobody wanted what is free: whoever had more than others has taken nothing from them.
                self.turns = Turns::default();
            }
            return None;
        };
        self.left(waiting, now);
        self.running += 1;
        self.begun = self.begun.wrapping_add(1);
        self.lent += u32::from(flow != Flow::Owner);
        Some((flow, waiting.id))
    }

    /// A request is on its way to the server.
    pub(super) fn send(&mut self, now: Instant) {
        if self.sent == 0 && !self.memory.is_there() {
            self.loads = Some(now);
        }
        self.sent += 1;
    }

    /// A request was answered, or given up.
    pub(super) fn is_answered(&mut self) {
        self.sent -= 1;
        self.loads = self.loads.filter(|_| self.sent > 0);
    }

    /// The server answered as one does that has the model in memory.
    pub(super) fn ran(&mut self, now: Instant) {
        self.loads = None;
        self.memory.witness(now);
    }

    /// The server has unloaded it on request.
    pub(super) fn unloaded(&mut self) {
        self.memory = Memory::default();
    }

    /// A look at the server that began then is over.
    pub(super) fn look(&mut self, began: Instant, found: Option<&Found>) {
        self.memory.look(began, found.map_or(Some(false), |found| found.loaded));
        if let Some(found) = found.filter(|found| found.loaded == Some(true)) {
            // Its first answer may be one that says nothing before its end.
            self.loads = self.loads.filter(|since| began < *since + found.load_time);
        }
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
        let residence = match self.memory.is_there() {
            _ if self.loads.is_some() => Residence::Loading,
            true => Residence::Memory,
            false if self.sent > 0 => Residence::Loading,
            false if self.memory.unknown => Residence::Unknown,
            false => Residence::Disk,
        };
        let queued = requests(self.queued);
        ModelLoad { residence, running: self.running, queued, begun: self.begun, waited: self.waited }
    }

    /// What is said to who cannot wait here.
    pub(super) fn busy(&self) -> Refusal {
        let slots = u16::try_from(self.slots.at_once).unwrap_or(u16::MAX).max(1);
        let wait = requests(self.queued) * self.lasts.unwrap_or(USUAL) / f32::from(slots);
        let wait = wait.clamp(1.0, LONGEST);
        let waiting = self.turns.len();
        let message = format!("{waiting} requests wait for this model here already, for some {} s", wait.round());
        Refusal::new(RefusalCode::Busy, message).after(Duration::from_secs_f32(wait))
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

    /// When tickets are to be told where they stand, as of `now`, with such a `pause` in between.
    pub(super) fn due(&self, now: Instant, pause: Duration) -> Option<Instant> {
        (self.moved && self.tickets > 0).then(|| self.told.map_or(now, |told| now.max(told + pause)))
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

    fn left(&mut self, waiting: Waiting, now: Instant) {
        self.count_wait(now);
        self.queued -= u64::from(waiting.counts);
        self.tickets -= usize::from(waiting.ticket);
        self.moved = true;
    }

    /// Adds what was waited since the last time, before another number waits.
    fn count_wait(&mut self, now: Instant) {
        let since = self.counted.replace(now).map_or(Duration::ZERO, |then| now.saturating_duration_since(then));
        self.waited += f64::from(requests(self.queued)) * since.as_secs_f64();
    }
}

// === impl Memory ===

impl Memory {
    fn is_there(&self) -> bool {
        self.seen || self.answered.is_some()
    }

    /// It has answered.
    fn witness(&mut self, now: Instant) {
        self.answered = Some(now);
    }

    /// A look at the server that began then is over. One that began before the model answered does not know of that.
    fn look(&mut self, began: Instant, seen: Option<bool>) {
        (self.seen, self.unknown) = (seen == Some(true), seen.is_none());
        if let Some(seen) = seen {
            self.answered = self.answered.filter(|answered| !seen && *answered >= began);
        }
    }
}

/// A sum of what entries count, as requests.
fn requests(counts: u64) -> f32 {
    // At most some hundreds, of which a float knows the thousandths.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let requests = (counts as f64 / f64::from(WHOLE)) as f32;
    requests
}
