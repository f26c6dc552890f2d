//! The model of one Ollama, without a clock of its own: the ideal moves it event by event, the simulated
//! Ollama as real time goes by.
//!
//! A runner works on as many requests as it has slots, each of them at the speed of the server, divided by the runners that
//! work, slowed by the batch it runs in. Requests for a loaded model wait for a slot without bound, first come first
//! served. Those for other models stand in one queue of which only the head is looked at: its model is loaded, one at a
//! time, into the place of the idle runner that was used least recently, or when one is idle. A runner keeps what it
//! has evaluated of the last conversations, until it is unloaded.

mod cache;

use std::collections::VecDeque;

use super::workload::{MODELS, ServerSpec, batch, work};
use cache::Cache;

/// Seconds of work that count as none: what the precision of numbers leaves.
const NOTHING: f64 = 1e-6;

/// A request, as a server sees it.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    /// Unique.
    pub id: u64,
    pub conversation: u32,
    pub model: usize,
    /// Tokens.
    pub prompt: f64,
    /// Tokens.
    pub output: f64,
}

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// Its prompt is evaluated: the first token is there.
    First(u64),
    Done(u64, Stages),
}

/// When a job got how far, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stages {
    pub came: f64,
    /// Its model was there.
    pub ready: f64,
    pub started: f64,
    pub first: f64,
    pub done: f64,
}

/// One server.
#[derive(Debug)]
pub struct Server {
    pub spec: ServerSpec,
    /// Part of its speed that it has at present.
    factor: f64,
    runners: [Runner; MODELS],
    /// Those whose model was not loaded when they came.
    pending: VecDeque<Waiting>,
    loading: Option<Loading>,
    working: Vec<Working>,
    /// Until when the work is accounted for.
    advanced: f64,
    /// When the first of those that work is through with the prompt or the answer.
    next_stage: f64,
    /// When loads began.
    pub loads: Vec<f64>,
    /// Tokens of prompts, and those of them that were in the cache.
    pub prompt_tokens: f64,
    pub cached_tokens: f64,
}

#[derive(Debug, Default)]
struct Runner {
    loaded: bool,
    used: f64,
    queue: VecDeque<Waiting>,
    cache: Cache,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    job: Job,
    stages: Stages,
}

#[derive(Debug, Clone, Copy)]
struct Loading {
    model: usize,
    ends: f64,
}

#[derive(Debug)]
struct Working {
    job: Job,
    stages: Stages,
    /// Work that is left.
    prompt: f64,
    output: f64,
    rate: f64,
    first_said: bool,
}

// === impl Server ===

impl Server {
    pub fn new(spec: ServerSpec, loaded: Option<usize>) -> Self {
        let mut runners: [Runner; MODELS] = Default::default();
        if let Some(model) = loaded {
            runners[model].loaded = true;
        }
        Self {
            spec,
            factor: 1.0,
            runners,
            pending: VecDeque::new(),
            loading: None,
            working: Vec::new(),
            advanced: 0.0,
            next_stage: f64::INFINITY,
            loads: Vec::new(),
            prompt_tokens: 0.0,
            cached_tokens: 0.0,
        }
    }

    // What it is doing.

    pub fn is_loaded(&self, model: usize) -> bool {
        self.runners[model].loaded
    }

    pub fn loading(&self) -> Option<usize> {
        self.loading.map(|loading| loading.model)
    }

    /// Models that are loaded or about to be.
    pub fn occupied(&self) -> usize {
        self.loaded().count() + usize::from(self.loading.is_some())
    }

    pub fn loaded(&self) -> impl Iterator<Item = usize> {
        (0..MODELS).filter(|model| self.runners[*model].loaded)
    }

    pub fn running(&self, model: usize) -> usize {
        self.working.iter().filter(|working| working.job.model == model).count()
    }

    /// Requests for the model that wait, whatever for.
    pub fn queued(&self, model: usize) -> usize {
        self.runners[model].queue.len() + self.pending.iter().filter(|waiting| waiting.job.model == model).count()
    }

    pub fn is_pending(&self, model: usize) -> bool {
        self.pending.iter().any(|waiting| waiting.job.model == model)
    }

    /// Whether a loaded model has nothing to do.
    pub fn has_idle(&self) -> bool {
        self.loaded().any(|model| self.is_idle(model))
    }

    fn is_idle(&self, model: usize) -> bool {
        self.runners[model].queue.is_empty() && self.running(model) == 0
    }

    /// When something happens next by itself.
    pub fn next_event(&self) -> f64 {
        self.loading.map_or(f64::INFINITY, |loading| loading.ends).min(self.next_stage)
    }

    /// Tokens that each answer has by now whose first one was said.
    pub fn said(&mut self, now: f64) -> impl Iterator<Item = (u64, usize)> {
        self.advance(now);
        self.working.iter().filter(|working| working.first_said).map(|Working { job, output, .. }| {
            let left = output.max(0.0) / work(job.model, 0.0, job.output);
            (job.id, (job.output * (1.0 - left)) as usize)
        })
    }

    // What happens to it. Times never go back.

    pub fn submit(&mut self, now: f64, job: Job) {
        self.advance(now);
        let stages = Stages { came: now, ..Stages::default() };
        if self.is_loaded(job.model) {
            self.enqueue(now, Waiting { job, stages });
        } else {
            self.pending.push_back(Waiting { job, stages });
            self.schedule(now);
        }
        self.plan(now);
    }

    /// Nobody waits for the job any more.
    pub fn cancel(&mut self, now: f64, id: u64) {
        self.advance(now);
        if let Some(at) = self.working.iter().position(|working| working.job.id == id) {
            let Working { job, .. } = self.working.swap_remove(at);
            let runner = &mut self.runners[job.model];
            runner.cache.release(job.conversation);
            runner.used = now;
        }
        for runner in &mut self.runners {
            runner.queue.retain(|waiting| waiting.job.id != id);
        }
        self.pending.retain(|waiting| waiting.job.id != id);
        for model in 0..MODELS {
            self.start(now, model);
        }
        self.schedule(now);
        self.plan(now);
    }

    pub fn set_factor(&mut self, now: f64, factor: f64) {
        self.advance(now);
        self.factor = factor;
        self.plan(now);
    }

    /// Does what [`next_event`](Self::next_event) announced for `now`.
    pub fn step(&mut self, now: f64, events: &mut Vec<Event>) {
        self.advance(now);
        if let Some(Loading { model, .. }) = self.loading.take_if(|loading| loading.ends <= now) {
            self.runners[model].loaded = true;
            self.runners[model].used = now;
        }
        let mut freed = [false; MODELS];
        let mut index = 0;
        while let Some(working) = self.working.get_mut(index) {
            if working.prompt <= NOTHING {
                working.prompt = 0.0;
                if !working.first_said {
                    working.first_said = true;
                    working.stages.first = now;
                    events.push(Event::First(working.job.id));
                }
            }
            if working.prompt > 0.0 || working.output > NOTHING {
                index += 1;
                continue;
            }
            let Working { job, mut stages, .. } = self.working.swap_remove(index);
            stages.done = now;
            freed[job.model] = true;
            self.runners[job.model].cache.give_back(now, job.conversation, job.prompt + job.output);
            events.push(Event::Done(job.id, stages));
        }
        for model in (0..MODELS).filter(|model| freed[*model]) {
            self.runners[model].used = now;
            self.start(now, model);
        }
        self.schedule(now);
        self.plan(now);
    }

    fn enqueue(&mut self, now: f64, mut waiting: Waiting) {
        waiting.stages.ready = now;
        let model = waiting.job.model;
        self.runners[model].queue.push_back(waiting);
        self.start(now, model);
    }

    /// Looks at the head of those whose model was not loaded.
    fn schedule(&mut self, now: f64) {
        while self.loading.is_none() {
            let Some(waiting) = self.pending.front().copied() else { return };
            let model = waiting.job.model;
            if self.is_loaded(model) {
                self.pending.pop_front();
                self.enqueue(now, waiting);
                continue;
            }
            if self.loaded().count() >= self.spec.most_loaded {
                let used = |model: &usize| self.runners[*model].used;
                let idle = self.loaded().filter(|model| self.is_idle(*model));
                let Some(victim) = idle.min_by(|one, other| used(one).total_cmp(&used(other))) else { return };
                self.runners[victim].loaded = false;
                self.runners[victim].cache.clear();
            }
            self.loading = Some(Loading { model, ends: now + self.spec.load_time(model) });
            self.loads.push(now);
        }
    }

    /// Fills the slots of a runner.
    fn start(&mut self, now: f64, model: usize) {
        while self.running(model) < self.spec.slots {
            let Some(Waiting { job, mut stages }) = self.runners[model].queue.pop_front() else { return };
            stages.started = now;
            let cached = self.runners[model].cache.take(now, job.conversation, self.spec.slots);
            let new = (job.prompt - cached.min(job.prompt - 1.0)).max(1.0);
            self.prompt_tokens += job.prompt;
            self.cached_tokens += job.prompt - new;
            self.runners[model].used = now;
            self.working.push(Working {
                job,
                stages,
                prompt: work(model, new, 0.0),
                output: work(model, 0.0, job.output),
                rate: 1.0,
                first_said: false,
            });
        }
    }

    /// Accounts for the work since the last time.
    fn advance(&mut self, now: f64) {
        let elapsed = now - self.advanced;
        self.advanced = now;
        if elapsed <= 0.0 {
            return;
        }
        for working in &mut self.working {
            let mut done = elapsed * working.rate;
            if working.prompt > 0.0 {
                let of_prompt = done.min(working.prompt);
                working.prompt -= of_prompt;
                done -= of_prompt;
                if working.prompt < 1e-9 {
                    working.prompt = 0.0;
                }
            }
            if working.prompt <= 0.0 {
                working.output -= done;
            }
        }
    }

    /// How fast everything goes from now on, and when the next of them is through with something.
    fn plan(&mut self, now: f64) {
        let mut running = [0; MODELS];
        for working in &self.working {
            running[working.job.model] += 1;
        }
        let runners = running.iter().filter(|count| **count > 0).count().max(1);
        let share = self.spec.speed * self.factor / runners as f64;
        let mut soonest = f64::INFINITY;
        for working in &mut self.working {
            working.rate = share * batch(running[working.job.model]);
            let left = if working.prompt > 0.0 { working.prompt } else { working.output.max(0.0) };
            soonest = soonest.min(left / working.rate);
        }
        // A little later, so that then it is through in spite of rounding.
        self.next_stage = now + soonest + 1e-7;
    }
}
