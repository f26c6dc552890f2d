//! How many requests a runner works on at a time, which Ollama tells nobody.
//!
//! It begins with what is told (`OLLAMA_NUM_PARALLEL`, the runner's arguments) or with one, Ollama's default, and then goes
//! by evidence:
//! - **At once**: requests whose times at work overlap were worked on at once. A time at work is known exactly where the
//!   answer says its durations, since they leave out the wait for a slot (`llmServer.Completion` waits for its semaphore
//!   before the runner begins to count); else from the first byte to the last.
//! - **Late**: a request that was handed over behind `k` others and was begun only when one of them ended says that there
//!   are no more than `k` slots. One exact observation ends a probe, two lower what is believed. Where only the first
//!   byte is known a long prompt looks much the same; then most of the wait must have been before that end, it takes
//!   four times as many, and no number of them says less than was seen at once since the model was loaded.
//!
//! More than is believed cannot be seen unless it is tried: now and then, when others wait, one more may be handed over
//! (a **probe**), and until that ends whoever else ends makes room for another, or the runner might never be seen with one
//! more at work. It costs them only that they are bound to this server a little early. After a probe that succeeds the
//! next may follow at once; after one that fails the next waits ten minutes, then twenty, forty, an hour; a tenth of that if
//! only first bytes say so.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// After a probe that failed.
const BACK_OFF: Duration = Duration::from_secs(600);
/// At most so long after one that failed.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(3600);
/// Nothing serves more from one runner that a node stands before.
const MOST: u32 = 256;
/// Finished times at work that are kept to compare with.
const KEPT: usize = 16;
/// Open requests that are looked at; a gate hands over little more than there are slots.
const OPEN: usize = 2 * MOST as usize;
/// What an exact observation weighs, and one by first bytes.
const EXACT: u32 = 4;
const ROUGH: u32 = 1;
/// So much says that a probe has failed, and twice that what is believed is too much.
const FAILED: u32 = 4;

/// How many requests of a model to hand over at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots {
    /// So many.
    pub at_once: u32,
    /// Whether one more may be tried if others wait: it may turn out that the runner works on it too.
    pub probe: bool,
}

// === impl Slots ===

impl From<u32> for Slots {
    /// So many for certain.
    fn from(at_once: u32) -> Self {
        Self { at_once, probe: false }
    }
}

impl Slots {
    /// How many to hand over if there are so many: with the one more that may be tried.
    pub fn tried(self) -> u32 {
        self.at_once.saturating_add(u32::from(self.probe))
    }
}

/// What is known of one model's runner.
#[derive(Debug)]
pub(super) struct Learner {
    believed: u32,
    /// What the server's environment or its runner's arguments say. Not tried beyond.
    told: Option<u32>,
    /// Whether evidence has shown it.
    shown: bool,
    /// The most that were seen at work at once since the model was loaded.
    seen: u32,
    embeds: bool,
    open: Vec<Open>,
    past: VecDeque<Work>,
    /// The request that is one more than is believed.
    probe: Option<u64>,
    not_before: Option<Instant>,
    back_off: Duration,
    /// Evidence that this many are too many, and the most slots that it speaks for.
    late: (u32, u32),
    /// Overlaps and waits shorter than this are no evidence: a network, a scheduler, a tokenizer may take that long.
    margin: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Open {
    id: u64,
    handed: Instant,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// A time at work.
#[derive(Debug, Clone, Copy)]
struct Work {
    handed: Instant,
    from: Instant,
    to: Instant,
}

/// How a request ended, as far as it says when it was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// The answer said how long the work took, and how long it waited before.
    Exact {
        /// Evaluating and generating, just before its end.
        work: Duration,
        /// What is left of the whole time without that and without loading.
        waited: Duration,
        /// The whole time, since it had reached the server.
        total: Duration,
    },
    /// It had these bytes, of which the first came by itself.
    Streamed,
    /// Nothing can be said: it was given up, failed, or was read slowly.
    Unknown,
}

// === impl Learner ===

impl Learner {
    /// Nothing is known yet. Shorter overlaps and waits than `margin` say nothing.
    pub(super) fn new(margin: Duration) -> Self {
        Self {
            believed: 1,
            told: None,
            shown: false,
            seen: 0,
            embeds: false,
            open: Vec::new(),
            past: VecDeque::new(),
            probe: None,
            not_before: None,
            back_off: BACK_OFF,
            late: (0, 0),
            margin,
        }
    }

    /// What the gate may do now.
    pub(super) fn now(&self, now: Instant) -> Slots {
        let at_once = if self.embeds { 1 } else { self.believed };
        Slots { at_once, probe: self.may_probe(now) }
    }

    /// How many, if it is more than a guess.
    pub(super) fn known(&self) -> Option<u32> {
        if self.embeds {
            return Some(1);
        }
        (self.shown || self.told.is_some()).then_some(self.believed)
    }

    /// What the server says of itself, or nothing (any more).
    pub(super) fn told(&mut self, told: Option<u32>) {
        let told = told.map(|told| told.clamp(1, MOST));
        if self.told == told {
            return;
        }
        self.told = told;
        if let Some(told) = told {
            self.believed = told;
            self.shown = false;
            self.seen = 0;
            self.late = (0, 0);
        }
    }

    /// The model was loaded anew, perhaps with other settings: it may be tried again at once.
    pub(super) fn reloaded(&mut self) {
        self.back_off = BACK_OFF;
        self.not_before = None;
        self.seen = 0;
        self.late = (0, 0);
        self.past.clear();
    }

    /// A request is handed over. Embedding models run one whatever is set (`sched.go`: `numParallel = 1` for what cannot
    /// complete), and are known by being asked for nothing else.
    pub(super) fn handed(&mut self, id: u64, embeds: bool, now: Instant) {
        self.embeds = embeds && (self.embeds || (!self.shown && self.open.is_empty()));
        if self.open.len() == OPEN {
            return;
        }
        self.open.push(Open { id, handed: now, first: None, last: None });
        if self.probe.is_none() && self.handed_over() > self.believed {
            self.probe = Some(id);
        }
    }

    /// Its last byte until now came then, its first at `first`.
    pub(super) fn byte(&mut self, id: u64, first: Instant, last: Instant) {
        if let Some(open) = self.open.iter_mut().find(|open| open.id == id) {
            let had_none = open.first.is_none();
            open.first = open.first.or(Some(first));
            open.last = Some(last);
            let work = Work { handed: open.handed, from: first, to: last };
            if !had_none {
                self.overlap(work, Some(id));
            }
        }
    }

    /// It is over. `alone`: whether nobody but this gate uses the server, as far as it can be seen; else a wait is no
    /// evidence.
    pub(super) fn ended(&mut self, id: u64, ended: Ended, alone: bool, now: Instant) {
        let Some(index) = self.open.iter().position(|open| open.id == id) else { return };
        // In the order in which they were handed over.
        let mut open = self.open.remove(index);
        if let Ended::Exact { total, .. } = ended {
            // Its way there may have been long, and others have overtaken it.
            open.handed = open.handed.max(now.checked_sub(total).unwrap_or(open.handed));
        }
        let work = match ended {
            Ended::Exact { work, .. } => now.checked_sub(work).map(|from| Work { handed: open.handed, from, to: now }),
            Ended::Streamed => open.first.map(|from| Work { handed: open.handed, from, to: open.last.unwrap_or(from) }),
            Ended::Unknown => None,
        };
        let Some(work) = work else { return self.resolved(id, now) };
        let more = self.overlap(work, None);
        if !more && alone {
            self.waited(&open, work, ended, now);
        }
        if self.past.len() == KEPT {
            self.past.pop_front();
        }
        self.past.push_back(work);
        self.resolved(id, now);
    }

    fn may_probe(&self, now: Instant) -> bool {
        let bound = self.told.unwrap_or(MOST);
        !self.embeds
            && self.believed < bound
            && self.handed_over() <= self.believed
            && (self.probe.is_some() || self.not_before.is_none_or(|then| now >= then))
    }

    fn handed_over(&self) -> u32 {
        u32::try_from(self.open.len()).unwrap_or(u32::MAX)
    }

    /// How many were worked on at once at most while this one was; whether that is news. `open`: which of the open ones
    /// it is, if it is one.
    fn overlap(&mut self, new: Work, id: Option<u64>) -> bool {
        let others = self.open.iter().filter(|open| Some(open.id) != id);
        let others = others.filter_map(|open| Some(Work { handed: open.handed, from: open.first?, to: open.last? }));
        let all: Vec<Work> = others.chain(self.past.iter().copied()).chain([new]).collect();
        let at_work = |work: &Work, then: Instant| work.from <= then && work.to >= then + self.margin;
        let moments = all.iter().map(|work| work.from).filter(|then| at_work(&new, *then));
        let most = moments.map(|then| all.iter().filter(|work| at_work(work, then)).count()).max().unwrap_or(0);
        let most = u32::try_from(most).unwrap_or(MOST).min(MOST);
        self.seen = self.seen.max(most);
        if most > self.late.1 {
            self.late = (0, 0);
        }
        if most > 1 && most == self.believed {
            self.shown = true;
        }
        if most <= self.believed {
            return false;
        }
        tracing::debug!(slots = most, "more requests of a model run at once than was known");
        self.believed = most;
        self.shown = true;
        self.embeds = false;
        self.back_off = BACK_OFF;
        self.not_before = None;
        self.probe = None;
        true
    }

    /// Whether this one was begun only when another had ended, and what follows from that.
    fn waited(&mut self, open: &Open, work: Work, ended: Ended, now: Instant) {
        let (waited, sure) = match ended {
            Ended::Exact { waited, .. } => (waited, EXACT),
            _ => (work.from.saturating_duration_since(open.handed), ROUGH),
        };
        let slack = 2 * self.margin;
        if waited < slack {
            return;
        }
        let between = |one: Instant, other: Instant| other.saturating_duration_since(one);
        let gave_way = |past: &Work| match sure {
            EXACT => between(past.to, work.from) <= slack && between(work.from, past.to) <= slack,
            _ => past.to <= work.from && between(open.handed, past.to) >= 2 * between(past.to, work.from),
        };
        // Where several may have, the first is believed: it says the least, since more were still there.
        let Some(ended) = self.past.iter().filter(|past| gave_way(past)).map(|past| past.to).min() else { return };
        // Those that were there before it and had not ended before its turn came: they held slots, or stood before it for one.
        // One that ended when this was handed over made room at the gate, not at the server.
        let turn = match sure {
            EXACT => work.from.checked_sub(slack).unwrap_or(work.from).max(open.handed),
            _ => ended,
        };
        // Of those that were handed over together nobody knows who was there first.
        let before = |handed: Instant| handed <= open.handed + self.margin;
        let open_before = self.open.iter().filter(|other| before(other.handed)).count();
        let held = |past: &&Work| before(past.handed) && past.to >= turn && past.to > open.handed;
        let past_before = self.past.iter().filter(held).count();
        let Ok(slots) = u32::try_from(open_before + past_before) else { return };
        if slots == 0 || slots > self.believed || (sure == ROUGH && slots < self.seen) {
            return;
        }
        self.late = (self.late.0 + sure, self.late.1.max(slots));
        let (late, slots) = self.late;
        if slots == self.believed && late >= FAILED {
            self.failed(sure, now);
            self.shown = true;
        } else if slots < self.believed && late >= 2 * FAILED {
            tracing::debug!(slots, "fewer requests of a model run at once than was thought");
            self.believed = slots;
            self.shown = true;
            self.late = (0, 0);
            self.failed(sure, now);
        }
    }

    fn failed(&mut self, sure: u32, now: Instant) {
        self.late = (0, 0);
        // It has shown what it could, however long it runs.
        self.probe = None;
        // While it waits for long already this is no further failure.
        if self.not_before.is_none_or(|then| then <= now + 10 * self.margin) {
            self.not_before = Some(now + if sure == EXACT { self.back_off } else { self.back_off / 10 });
            self.back_off = (2 * self.back_off).min(LONGEST_BACK_OFF);
        }
    }

    /// A probe that ends without evidence is tried again soon, but not at once.
    fn resolved(&mut self, id: u64, now: Instant) {
        if self.probe == Some(id) {
            self.probe = None;
            let soon = now + 10 * self.margin;
            self.not_before = Some(self.not_before.map_or(soon, |then| then.max(soon)));
        }
    }
}

#[cfg(test)]
mod tests;
