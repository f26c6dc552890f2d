//! Whose turn it is: the line before each model, decided without I/O and without a clock.
//!
//! Feed it what happened (`handle_*`), then ask what follows from it ([`Queue::poll_event`], [`Queue::poll_changed`]) and
//! when to come back ([`Queue::poll_timeout`]). An **entry** is a request that is here, or a ticket for one that comes
//! later; it waits in the [`Line`] of its model until it is granted one of the model's slots, and keeps that until it
//! ends. Whatever it was doing, [`Queue::handle_end`] takes it out and gives back what it had.
//!
//! Ollama puts no bound on what waits for a model and has no notion of who asks. So at most as many are sent there as its
//! runner works on at a time, also while the model is loaded, and the rest waits here: bounded, in all and for each peer,
//! and fairly between them.

mod line;
mod turns;
mod words;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Instant;

use crate::exchange::{ModelLoad, Place, Refusal, RefusalCode};
use crate::ollama::Slots;
use line::Line;
pub(super) use words::{Arrival, EntryId, Event, Flow, Found, Limits, Model};

/// What one whole request counts, in which fractions of one can be added up and taken away again without a rest.
const WHOLE: u32 = 1_000_000;
/// A ticket says how many stand for one request. More than this is no use to anybody, and makes a queue look empty.
const MAX_COPIES: u8 = 8;
/// Orders to load a model that are at the server at once: of all others than the owner, and of one of them. Ollama queues
/// what it has to load, and where 512 wait (`OLLAMA_MAX_QUEUE`) it turns everybody away, its owner too.
const MAX_LOADS: usize = 32;
const MAX_LOADS_EACH: usize = 4;

/// All lines before one server.
#[derive(Debug)]
pub(super) struct Queue {
    limits: Limits,
    lines: BTreeMap<Model, Line>,
    entries: HashMap<EntryId, Entry>,
    /// How many of each wait; none that is zero.
    waiting: HashMap<Flow, usize>,
    next: u64,
    draining: bool,
    events: VecDeque<Event>,
    changed: BTreeSet<Model>,
    due: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    flow: Flow,
    model: Model,
    stage: Stage,
    /// Whether it needs no slot.
    free: bool,
    /// When it was granted.
    since: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// A slot is kept for it.
    Granted,
    /// Ollama has it and has not answered.
    Sent,
    /// Its answer has begun.
    Answered,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lines: BTreeMap::new(),
            entries: HashMap::new(),
            waiting: HashMap::new(),
            next: 0,
            draining: false,
            events: VecDeque::new(),
            changed: BTreeSet::new(),
            due: None,
        }
    }

    /// One more wants to run. If a slot is free it has it at once: an [`Event`] says so.
    ///
    /// Where all places are taken, whoever has the most of them loses its last one to who has fewer: a peer cannot keep
    /// others out by waiting in great numbers. Nor can strangers by being many: a trusted peer takes a place of theirs, and
    /// they never take one of a trusted peer's.
    pub(super) fn handle_arrival(&mut self, now: Instant, arrival: Arrival) -> Result<EntryId, Refusal> {
        let Arrival { flow, weight, model, slots, copies } = arrival;
        if self.draining && flow != Flow::Owner {
            return Err(RefusalCode::Draining.into());
        }
        let id = self.enter(now, flow, &model, Stage::Waiting, false);
        let line = self.lines.entry(model.clone()).or_default();
        line.set_slots(slots);
        let counts = WHOLE / u32::from(copies.unwrap_or(1).clamp(1, MAX_COPIES));
        line.join(flow, weight, turns::Waiting { id, counts, ticket: copies.is_some() }, now);
        *self.waiting.entry(flow).or_default() += 1;
        self.grant(now, &model);
        let room = match self.stage(id) {
            Some(Stage::Waiting) => self.make_room(now, id, flow, &model),
            _ => Ok(()),
        };
        // If it may not stay too: it may have brought news of a slot, and others have moved up.
        self.moved(now, &model);
        room.map(|()| id)
    }

    /// One more runs that no slot is needed for: an order to load a model, or to unload it.
    pub(super) fn handle_order(&mut self, now: Instant, flow: Flow, model: &Model) -> EntryId {
        self.lines.entry(model.clone()).or_default();
        self.enter(now, flow, model, Stage::Granted, true)
    }

    /// The same of an order to load a model, unless so many are there that this one has to wait for a slot like all else.
    pub(super) fn handle_load(&mut self, now: Instant, flow: Flow, model: &Model) -> Option<EntryId> {
        let loads = || self.entries.values().filter(|entry| entry.free && entry.flow != Flow::Owner);
        let own = || loads().filter(|entry| entry.flow == flow).count();
        let is_free = flow == Flow::Owner || (loads().count() < MAX_LOADS && own() < MAX_LOADS_EACH);
        is_free.then(|| self.handle_order(now, flow, model))
    }

    /// What was granted is on its way to the server.
    pub(super) fn handle_sent(&mut self, now: Instant, id: EntryId) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.stage == Stage::Granted) else { return };
        entry.stage = Stage::Sent;
        let Some(line) = self.lines.get_mut(&entry.model) else { return };
        line.send(now);
        self.changed.insert(entry.model.clone());
    }

    /// The server has answered; `ran` says whether as one does that has the model in memory.
    pub(super) fn handle_answer(&mut self, now: Instant, id: EntryId, ran: bool) {
        let Some(entry) = self.entries.get_mut(&id).filter(|entry| entry.stage == Stage::Sent) else { return };
        entry.stage = Stage::Answered;
        let Some(line) = self.lines.get_mut(&entry.model) else { return };
        line.is_answered();
        if ran {
            line.ran(now);
        }
        self.changed.insert(entry.model.clone());
    }

    /// The server has unloaded a model on request.
    pub(super) fn handle_unloaded(&mut self, model: &Model) {
        if let Some(line) = self.lines.get_mut(model) {
            line.unloaded();
            self.changed.insert(model.clone());
        }
    }

    /// One is over, or waits no more: whatever it had is free. Nothing happens if it is gone already.
    pub(super) fn handle_end(&mut self, now: Instant, id: EntryId) {
        let Some(entry) = self.entries.remove(&id) else { return };
        let Entry { flow, model, stage, free, since } = entry;
        let Some(line) = self.lines.get_mut(&model) else { return };
        match stage {
            Stage::Waiting => {
                line.leave(flow, id, now);
                self.waits_no_more(flow);
            }
            Stage::Granted | Stage::Sent | Stage::Answered => {
                if stage == Stage::Sent {
                    line.is_answered();
                }
                if !free {
                    line.give_back(flow);
                    if stage == Stage::Answered {
                        line.took(now.saturating_duration_since(since));
                    }
                }
            }
        }
        self.grant(now, &model);
        self.moved(now, &model);
    }

    /// A look at the server that `began` then found these models. Lines of others go once nobody is in them.
    pub(super) fn handle_look(&mut self, now: Instant, began: Instant, found: &BTreeMap<&str, Found>) {
        for (model, found) in found {
            if !self.lines.contains_key(*model) && found.loaded != Some(false) {
                self.lines.insert(Model::from(*model), Line::default());
            }
        }
        let models: Vec<Model> = self.lines.keys().cloned().collect();
        for model in models {
            let Some(line) = self.lines.get_mut(&model) else { continue };
            let of_it = found.get(&*model);
            line.look(began, of_it);
            match of_it {
                Some(found) => {
                    line.set_slots(found.slots);
                    self.grant(now, &model);
                }
                None if !self.entries.values().any(|entry| entry.model == model) => {
                    self.lines.remove(&model);
                }
                None => {}
            }
            self.moved(now, &model);
        }
    }

    /// So many requests of a model run at a time, from now on.
    pub(super) fn handle_slots(&mut self, now: Instant, slots: impl Fn(&str) -> Slots) {
        let models: Vec<Model> = self.lines.keys().cloned().collect();
        for model in models {
            if let Some(line) = self.lines.get_mut(&model) {
                line.set_slots(slots(&model));
            }
            self.grant(now, &model);
            self.moved(now, &model);
        }
    }

    /// Nobody but the owner waits any longer. Who comes later is not this one's business.
    pub(super) fn handle_closed(&mut self, now: Instant, why: RefusalCode) {
        let others = |(id, entry): (&EntryId, &Entry)| {
            (entry.stage == Stage::Waiting && entry.flow != Flow::Owner).then_some(*id)
        };
        let mut waiting: Vec<EntryId> = self.entries.iter().filter_map(others).collect();
        waiting.sort_unstable();
        for id in waiting {
            self.refuse(now, id, why.into());
        }
    }

    /// The same for good: the owner's own requests are all that is taken from now on.
    pub(super) fn handle_drain(&mut self, now: Instant) {
        self.draining = true;
        self.handle_closed(now, RefusalCode::Draining);
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.due = None;
        for line in self.lines.values_mut() {
            if line.due(now, self.limits.tell).is_some_and(|due| due <= now) {
                line.tell(now, &mut self.events);
            }
            self.due = earlier(self.due, line.due(now, self.limits.tell));
        }
    }

    /// The next thing to tell.
    pub(super) fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next model of which [`Queue::load`] may say something else than before.
    pub(super) fn poll_changed(&mut self) -> Option<Model> {
        self.changed.pop_first()
    }

    /// When to call [`Queue::handle_timeout`], or a little before there is anything to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// How busy a model is; nothing if it is on disk and nobody wants it.
    pub(super) fn load(&self, model: &str) -> Option<ModelLoad> {
        let load = self.lines.get(model).map(Line::load)?;
        let at_rest = ModelLoad { begun: load.begun, waited: load.waited, ..ModelLoad::default() };
        (load != at_rest).then_some(load)
    }

    /// Where an entry stands in its line; nothing if it does not wait.
    pub(super) fn place(&self, id: EntryId) -> Option<Place> {
        let entry = self.entries.get(&id).filter(|entry| entry.stage == Stage::Waiting)?;
        self.lines.get(&entry.model)?.place(id)
    }

    /// The line's name, shared if there is one by this name already.
    pub(super) fn named(&self, model: &str) -> Model {
        self.lines.get_key_value(model).map_or_else(|| Model::from(model), |(name, _)| name.clone())
    }

    // === inside ===

    fn enter(&mut self, now: Instant, flow: Flow, model: &Model, stage: Stage, free: bool) -> EntryId {
        let id = EntryId(self.next);
        self.next += 1;
        self.entries.insert(id, Entry { flow, model: model.clone(), stage, free, since: now });
        id
    }

    fn stage(&self, id: EntryId) -> Option<Stage> {
        self.entries.get(&id).map(|entry| entry.stage)
    }

    /// Gives free slots to those whose turn it is.
    fn grant(&mut self, now: Instant, model: &Model) {
        let Some(line) = self.lines.get_mut(model) else { return };
        let mut granted = Vec::new();
        while let Some(next) = line.grant(&self.limits, now) {
            granted.push(next);
        }
        for (flow, id) in granted {
            self.waits_no_more(flow);
            if let Some(entry) = self.entries.get_mut(&id) {
                (entry.stage, entry.since) = (Stage::Granted, now);
            }
            self.events.push_back(Event::Granted(id));
        }
    }

    /// Holds those who wait to their number, now that this one is among them.
    fn make_room(&mut self, now: Instant, id: EntryId, flow: Flow, model: &Model) -> Result<(), Refusal> {
        let Limits { waiting, waiting_each, waiting_strangers, .. } = self.limits;
        let own = self.waiting.get(&flow).copied().unwrap_or_default();
        let others = || self.waiting.iter().filter(|(flow, _)| **flow != Flow::Owner).map(|(flow, n)| (*n, *flow));
        let strangers = || others().filter(|(_, of)| of.is_stranger());
        let in_all = |(all, of_strangers), (n, of): (usize, Flow)| {
            (all + n, of_strangers + if of.is_stranger() { n } else { 0 })
        };
        let (all, of_strangers) = others().fold((0, 0), in_all);
        let is_stranger = flow.is_stranger();
        let loser = match flow {
            Flow::Owner if own <= waiting => return Ok(()),
            Flow::Owner => id,
            _ if own > waiting_each => id,
            _ if all <= waiting && (!is_stranger || of_strangers <= waiting_strangers) => return Ok(()),
            _ => {
                let most = match is_stranger {
                    // Strangers make room among themselves alone: a key costs nothing.
                    true => strangers().max().filter(|(n, _)| *n > own),
                    false => strangers().max().or_else(|| others().max().filter(|(n, _)| *n > own)),
                };
                most.and_then(|(_, most)| self.last_of(most)).unwrap_or(id)
            }
        };
        let of = if loser == id { Some(model.clone()) } else { self.entries.get(&loser).map(|e| e.model.clone()) };
        let why = of.and_then(|of| self.lines.get(&of)).map_or_else(|| RefusalCode::Busy.into(), Line::busy);
        if loser == id {
            self.forget(id, now);
            return Err(why);
        }
        self.refuse(now, loser, why);
        Ok(())
    }

    /// The last of a flow's that wait.
    fn last_of(&self, flow: Flow) -> Option<EntryId> {
        let its = |(_, entry): &(&EntryId, &Entry)| entry.flow == flow && entry.stage == Stage::Waiting;
        self.entries.iter().filter(its).map(|(id, _)| *id).max()
    }

    /// Takes out one who waits.
    fn forget(&mut self, id: EntryId, now: Instant) {
        let Some(Entry { flow, model, .. }) = self.entries.remove(&id) else { return };
        if let Some(line) = self.lines.get_mut(&model) {
            line.leave(flow, id, now);
        }
        self.waits_no_more(flow);
    }

    fn refuse(&mut self, now: Instant, id: EntryId, why: Refusal) {
        let Some(model) = self.entries.get(&id).map(|entry| entry.model.clone()) else { return };
        self.forget(id, now);
        self.events.push_back(Event::Refused(id, why));
        self.moved(now, &model);
    }

    fn waits_no_more(&mut self, flow: Flow) {
        if let Some(count) = self.waiting.get_mut(&flow) {
            *count -= 1;
            if *count == 0 {
                self.waiting.remove(&flow);
            }
        }
    }

    /// Somebody came, went or runs: others stand elsewhere now.
    fn moved(&mut self, now: Instant, model: &Model) {
        self.changed.insert(model.clone());
        if let Some(line) = self.lines.get(model) {
            self.due = earlier(self.due, line.due(now, self.limits.tell));
        }
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    [one, other].into_iter().flatten().min()
}

#[cfg(test)]
mod tests;
