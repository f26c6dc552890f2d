//! What is known of each model, and how the answers add to it. No I/O and no clock: whoever calls says what time it is.
//!
//! Two kinds of samples come together in one estimate of the speed of decoding. The end of an answer says how many tokens it
//! had and how long they took, exactly, but only then, and an answer may last for minutes. While it runs its frames are
//! counted: every beat, each answer that is under way adds the frames since the last beat, turned into tokens by what the
//! ends have shown ([`Model`]). Both go into [`Decode`](super::estimate::Decode), where two that agree and differ much from what is
//! known make a jump; so a server that becomes four times slower is noticed some three to five seconds later.
//!
//! A running answer is no evidence while its reader leaves frames unread, nor where one silence makes up most of its time:
//! Ollama holds back what may become the call of a tool, and says nothing while it generates it. While another request's
//! prompt is evaluated the runner decodes more slowly, which is no fault of the server, and the evidence counts half.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Work;
use super::active::{Active, Loading, Moment};
use super::crowd::Crowd;
use super::meter::Meter;
use super::model::Model;
use super::said::Said;
use crate::exchange::Pace;
use crate::ollama::slots::Slots;

/// Models that are remembered; the one that was not used for longest goes first.
const MOST_MODELS: usize = 512;
/// What a busy machine's scheduler takes anyhow, however fast the server's time goes.
const SHORTEST: Duration = Duration::from_millis(25);
/// Beats after which a server that became slow is tried again: half a minute. One prompt in so long is what it costs if it is
/// slow still.
pub(super) const REST: u32 = 30;

/// Everything that is learned.
#[derive(Debug)]
pub(super) struct Learner {
    models: BTreeMap<Arc<str>, Model>,
    runs: BTreeMap<u64, Active>,
    crowd: Crowd,
    next: u64,
    used: u64,
    beat: Duration,
    /// `OLLAMA_NUM_PARALLEL`, where it could be read.
    told: Option<u32>,
    /// The owner's own requests that are under way.
    direct: u32,
}

// === impl Learner ===

impl Learner {
    /// Nothing is known. Running answers are looked at every `beat`.
    pub(super) fn new(beat: Duration) -> Self {
        Self {
            models: BTreeMap::new(),
            runs: BTreeMap::new(),
            crowd: Crowd::default(),
            next: 0,
            used: 0,
            beat,
            told: None,
            direct: 0,
        }
    }

    /// A request is handed over. `resident`: whether its model was in memory when that was last looked at.
    pub(super) fn begin(&mut self, model: &str, work: Work, resident: bool, now: Instant) -> (u64, Arc<Meter>) {
        let id = self.next;
        self.next += 1;
        let meter = Arc::new(Meter::new(now));
        let cold = !resident && !self.runs.values().any(|run| *run.model == *model);
        let model = self.model(model);
        let slots = match self.models.get_mut(&model) {
            Some(known) => {
                known.slots.handed(id, work == Work::Embed, now);
                known.slots.now(now).at_once
            }
            None => 1,
        };
        // While a model is loaded those that run have the server as before.
        let in_crowd = |run: &Active| *run.model == *model && run.load != Loading::Awaited;
        let load = if resident || self.runs.values().any(in_crowd) { Loading::None } else { Loading::Awaited };
        if load == Loading::None {
            self.crowd.enter(&model, slots, now);
        }
        let began = Moment { at: now, alone: self.crowd.alone(&model, now) };
        let active = Active { model, work, meter: meter.clone(), cold, load, began, first: None, mark: None };
        self.runs.insert(id, active);
        (id, meter)
    }

    /// The first byte of its answer's body has come.
    pub(super) fn first(&mut self, id: u64, now: Instant) {
        let Some(model) = self.runs.get(&id).map(|run| run.model.clone()) else { return };
        self.is_loaded(&model, now);
        let Some(run) = self.runs.get_mut(&id) else { return };
        run.first = Some(Moment { at: now, alone: self.crowd.alone(&run.model, now) });
        if let Some(model) = self.models.get_mut(&run.model) {
            model.slots.byte(id, now, now);
        }
    }

    /// It is over. `said` is nothing if it failed, `whole` whether it came to its end.
    pub(super) fn over(&mut self, id: u64, said: Said, whole: bool, now: Instant) {
        let Some(run) = self.runs.remove(&id) else { return };
        let waited = run.load == Loading::Awaited;
        let end = Moment { at: now, alone: self.crowd.alone(&run.model, now) };
        let (reading, margin) = (run.meter.read(), self.margin());
        if let Some(model) = self.models.get_mut(&run.model) {
            let said = said.within(end.since(run.began).0);
            model.ended = Some(now);
            model.learn(&run, said, whole, end, reading);
            let ended = run.ended(said, whole, reading, margin);
            model.slots.ended(id, ended, self.direct == 0, now);
        }
        let slots = self.models.get(&run.model).map_or(1, |model| model.slots.now(now).at_once);
        if !waited {
            self.crowd.leave(&run.model, slots, now);
        }
    }

    /// A model answers: all that waited for it run now.
    fn is_loaded(&mut self, model: &Arc<str>, now: Instant) {
        let slots = self.slots(model, now).at_once;
        let waited = |run: &&mut Active| run.model == *model && run.load == Loading::Awaited;
        for run in self.runs.values_mut().filter(waited) {
            self.crowd.enter(model, slots, now);
            run.load = Loading::Over(1.0);
        }
        for run in self.runs.values_mut().filter(|run| run.model == *model && run.first.is_none()) {
            if let Loading::Over(part) = &mut run.load {
                *part = self.crowd.part(model);
            }
        }
    }

    /// Those of which nothing has run for [`REST`] beats may be as fast again as they were.
    pub(super) fn rest(&mut self, now: Instant) {
        let rest = self.beat * REST;
        for (name, model) in &mut self.models {
            let resting = model.ended.is_some_and(|ended| now.saturating_duration_since(ended) >= rest);
            if resting && !self.runs.values().any(|run| run.model == *name) {
                model.rested();
            }
        }
    }

    /// Looks at what is under way.
    pub(super) fn beat(&mut self) {
        let margin = self.margin();
        let some_evaluate = self.runs.values().any(|run| run.first.is_none());
        let mut rates: BTreeMap<Arc<str>, (f64, f64)> = BTreeMap::new();
        for (id, run) in &mut self.runs {
            let Some(first) = run.first else { continue };
            let reading = run.meter.read();
            // What was read late was perhaps said long before.
            if let (Some(model), true) = (self.models.get_mut(&run.model), reading.late < margin) {
                model.slots.byte(*id, first.at, reading.last);
            }
            let last = Moment { at: reading.last, alone: self.crowd.alone(&run.model, reading.last) };
            if let Some((frames, alone)) = run.passed(last, reading, self.beat) {
                let rate = rates.entry(run.model.clone()).or_default();
                *rate = (rate.0 + frames, rate.1 + alone);
            }
        }
        for (model, (frames, alone)) in rates {
            // How many tokens a frame has only ends of answers have shown: one for Ollama, any number for others. Taken for too
            // slow, a server would get nothing more to show that it is not.
            if let Some(model) = self.models.get_mut(&model)
                && let Some(tokens_a_frame) = model.tokens_a_frame.known()
            {
                let tokens = frames * tokens_a_frame;
                // A quarter of the weight of what an end says: there are many of them.
                model.decodes(tokens / alone, tokens / 4.0, if some_evaluate { 0.5 } else { 1.0 });
            }
        }
    }

    /// Whether anything is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many requests of a model to hand over.
    pub(super) fn slots(&self, model: &str, now: Instant) -> Slots {
        match self.models.get(model) {
            Some(model) => model.slots.now(now),
            None => Slots { at_once: self.told.unwrap_or(1), probe: self.told.is_none() },
        }
    }

    /// What the server's environment says of all models, and its runners' arguments of some.
    pub(super) fn told(&mut self, all: Option<u32>, runners: &BTreeMap<String, u32>) {
        self.told = all;
        for name in runners.keys() {
            self.model(name);
        }
        for (name, model) in &mut self.models {
            model.slots.told(runners.get(&**name).copied().or(all));
        }
    }

    /// These models were loaded anew.
    pub(super) fn loaded<'a>(&mut self, models: impl Iterator<Item = &'a str>) {
        for name in models {
            if let Some(model) = self.models.get_mut(name) {
                model.slots.reloaded();
            }
        }
    }

    /// So many of the owner's own requests are under way.
    pub(super) fn direct(&mut self, direct: u32) {
        self.direct = direct;
    }

    /// What is known of all models.
    pub(super) fn paces(&self) -> impl Iterator<Item = (&str, Pace)> {
        self.models.iter().map(|(name, model)| (&**name, model.pace()))
    }

    /// What is shorter says nothing of who ran at once.
    fn margin(&self) -> Duration {
        (self.beat / 10).max(SHORTEST)
    }

    /// Makes room for a model, and its name.
    fn model(&mut self, name: &str) -> Arc<str> {
        self.used += 1;
        if let Some((name, _)) = self.models.get_key_value(name) {
            let name = name.clone();
            if let Some(model) = self.models.get_mut(&name) {
                model.used = self.used;
            }
            return name;
        }
        if self.models.len() >= MOST_MODELS {
            let idle = self.models.iter().filter(|(name, _)| !self.runs.values().any(|run| run.model == **name));
            if let Some(oldest) = idle.min_by_key(|(_, model)| model.used).map(|(name, _)| name.clone()) {
                self.models.remove(&oldest);
            }
        }
        let name: Arc<str> = name.into();
        if self.models.len() < MOST_MODELS {
            self.models.insert(name.clone(), Model::new(self.used, self.told, self.margin()));
        }
        name
    }
}

#[cfg(test)]
mod tests;
