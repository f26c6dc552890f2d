//! What this node has had to do with one server: what of its requests runs there, and how they fared. Outlives a
//! connection: a server that is dialled again has what it had, and is known for what it did.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Outcome, Pass};
use super::clock::Clock;
use super::judgement::{Judgement, Promise};
use crate::exchange::stopwatch::Stopwatch;
use crate::route::ModelName;

/// How long a server that failed comes after all others where nothing but what is in flight counts: longer than one quick
/// failure takes, short enough that a server which is well again has its share within the 5 s of a slow start.
const STUMBLE: Duration = Duration::from_secs(1);

/// How long after a change of its models through this node a server may have one that it has not reported: its gate looks
/// again at once, but not more often than every 300 ms, and then a report crosses.
const CHANGED: Duration = Duration::from_secs(2);

/// A single answer may be so many times as long as the average, and some servers say nothing before its end.
const LONG: u32 = 8;

/// Models of one server of which something is remembered: more than any machine runs in a day.
const MAX_MODELS: usize = 128;

/// What this node has had to do with one server.
#[derive(Debug, Default)]
pub(super) struct Dealings {
    clock: Clock,
    own: AtomicU32,
    stumbled: Mutex<Option<Instant>>,
    /// Whether a request of ours was ever answered there.
    served: AtomicBool,
    /// When a request of ours last changed its models.
    changed: Mutex<Option<Instant>>,
    models: Mutex<HashMap<ModelName, Record>>,
}

/// The same of one of its models.
#[derive(Debug, Default)]
struct Record {
    own: u32,
    judgement: Judgement,
    /// How long a usual request takes by what is known of the server, in its time.
    usual: Option<Duration>,
    breaker: Breaker,
    running: HashMap<u64, Running>,
    used: Option<Instant>,
    numbers: u64,
    /// Whether it ever answered a request of ours.
    served: bool,
}

/// One that runs, of which it is known how long it should take.
#[derive(Debug)]
struct Running {
    watch: Arc<Stopwatch>,
    /// In the servers' time.
    promise: Promise,
    /// Whether its answer has begun.
    answered: bool,
}

/// What stands against a server, for a model.
#[derive(Debug, Clone, Copy)]
pub(super) struct Standing {
    /// Requests of ours that are there.
    pub(super) own: u32,
    /// How many times slower than it says it is.
    pub(super) slowness: f64,
    /// What is held against it for the moment.
    pub(super) caution: f64,
    /// How long until new requests may go there; nothing if they may.
    pub(super) left_alone: Option<Duration>,
    /// Whether those may that queue there already.
    pub(super) keeps_places: bool,
}

/// One request in flight at a server, counted until this is dropped: at the end of the answer's body.
#[derive(Debug)]
pub(super) struct InFlight {
    dealings: Arc<Dealings>,
    /// What is measured of it, if it runs a model.
    run: Option<Run>,
    /// Whether it changes models.
    changes: bool,
}

#[derive(Debug)]
struct Run {
    model: ModelName,
    number: u64,
    pass: Option<Pass>,
    watch: Arc<Stopwatch>,
    /// What it should take, in the servers' time; nothing where nobody could know, as where the model has to be loaded first.
    promise: Option<Promise>,
}

// === impl Dealings ===

impl Dealings {
    /// None so far, with a server that goes by this clock.
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, ..Self::default() }
    }

    /// Requests of this node that run or wait there, of whatever model.
    pub(super) fn own(&self) -> u32 {
        self.own.load(Ordering::Relaxed)
    }

    /// It answered a request of ours, for this model if for any.
    pub(super) fn served(&self, model: Option<&ModelName>) {
        self.served.store(true, Ordering::Relaxed);
        if let Some(model) = model {
            entry(&mut lock(&self.models), model, self.clock.now()).served = true;
        }
    }

    /// Whether it ever answered a request of ours for this model.
    pub(super) fn has_run(&self, model: &ModelName) -> bool {
        lock(&self.models).get(model).is_some_and(|record| record.served)
    }

    /// Whether it ever did.
    pub(super) fn has_served(&self) -> bool {
        self.served.load(Ordering::Relaxed)
    }

    /// It failed: for a moment the others come first.
    pub(super) fn stumbled(&self) {
        *lock(&self.stumbled) = Some(self.clock.now());
    }

    /// Whether it failed a moment ago.
    pub(super) fn has_stumbled(&self) -> bool {
        lock(&self.stumbled).is_some_and(|at| self.clock.now().saturating_duration_since(at) < STUMBLE)
    }

    /// Whether it may have models that it has not reported yet, since they were made through this node a moment ago.
    pub(super) fn has_changed(&self) -> bool {
        lock(&self.changed).is_some_and(|at| self.clock.now().saturating_duration_since(at) < CHANGED)
    }

    /// How it stands with a model of which a usual request takes so many seconds there, by all that is known of the server.
    pub(super) fn standing_at(&self, model: &ModelName, usual: f64) -> Standing {
        // No record is made for it: a model that was only asked for would push out one that is used.
        if let Some(record) = lock(&self.models).get_mut(model) {
            record.usual = Duration::try_from_secs_f64(usual).ok().map(|usual| self.clock.of(usual));
        }
        self.standing(model)
    }

    /// The same by what was known of the server last.
    pub(super) fn standing(&self, model: &ModelName) -> Standing {
        let now = self.clock.now();
        let models = lock(&self.models);
        let Some(record) = models.get(model) else {
            return Standing { own: 0, slowness: 1.0, caution: 1.0, left_alone: None, keeps_places: true };
        };
        let late = |running: &Running| {
            let (promise, so_far) = running.so_far(&self.clock);
            record.judgement.slowness_with(promise, so_far, record.usual.unwrap_or(promise.usual), now)
        };
        let slowness = record.usual.map_or(1.0, |usual| record.judgement.slowness(usual, now));
        Standing {
            own: record.own,
            slowness: record.running.values().map(late).fold(slowness, f64::max),
            caution: record.breaker.caution(now),
            left_alone: record.breaker.wait(now),
            keeps_places: record.breaker.keeps_places(now),
        }
    }

    /// How it stands with every model of which something is remembered.
    pub(super) fn standings(&self) -> Vec<(ModelName, Standing)> {
        let models: Vec<ModelName> = lock(&self.models).keys().cloned().collect();
        models.into_iter().map(|model| (model.clone(), self.standing(&model))).collect()
    }

    /// Something else than a request that passed went wrong there: a ticket, or an answer that had begun.
    pub(super) fn failed(&self, model: &ModelName, outcome: Outcome) {
        let now = self.clock.now();
        let mut models = lock(&self.models);
        let breaker = &mut entry(&mut models, model, now).breaker;
        if let Some(pass) = breaker.pass(now) {
            breaker.settle(pass, outcome, now);
        }
    }

    /// Counts one more request, until the guard is dropped. `changes`: whether it changes models.
    pub(super) fn begin(self: &Arc<Self>, changes: bool) -> InFlight {
        self.own.fetch_add(1, Ordering::Relaxed);
        InFlight { dealings: self.clone(), run: None, changes }
    }
}

/// The record of a model, at the cost of one that was not used for longer.
fn entry<'a>(models: &'a mut HashMap<ModelName, Record>, model: &ModelName, now: Instant) -> &'a mut Record {
    if models.len() >= MAX_MODELS && !models.contains_key(model) {
        let idle = models.iter().filter(|(_, record)| record.own == 0);
        let oldest = idle.min_by_key(|(_, record)| record.used).map(|(name, _)| name.clone());
        if let Some(oldest) = oldest {
            models.remove(&oldest);
        }
    }
    let record = models.entry(model.clone()).or_default();
    record.used = Some(now);
    record
}

/// A panic elsewhere does not make the numbers wrong.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Record ===

impl Record {
    /// Whether it is as one of a model that was never used.
    fn says_nothing(&self) -> bool {
        self.own == 0 && !self.served && self.judgement.says_nothing() && self.breaker.says_nothing()
    }
}

// === impl Running ===

impl Running {
    /// What can be held against the server so far: how long it should have taken, and how long it was waited for. How long
    /// an answer goes on that has begun is its own business, as long as it says something now and then.
    fn so_far(&self, clock: &Clock) -> (Promise, Duration) {
        let Promise { time, usual } = self.promise;
        match self.answered {
            true => (Promise { time: time.saturating_mul(LONG), usual }, clock.of(self.watch.silence())),
            false => (self.promise, clock.of(self.watch.waited())),
        }
    }
}

// === impl InFlight ===

impl InFlight {
    /// It runs this model, and should take so long once it has a slot; not known where the model is to be loaded first.
    pub(super) fn runs(mut self, model: &ModelName, promised: Option<Duration>) -> Self {
        let clock = &self.dealings.clock;
        let now = clock.now();
        let mut models = lock(&self.dealings.models);
        let record = entry(&mut models, model, now);
        record.own += 1;
        record.numbers += 1;
        let (number, watch) = (record.numbers, Arc::new(Stopwatch::started()));
        let promise = promised.map(|promised| {
            let time = clock.of(promised);
            Promise { time, usual: *record.usual.get_or_insert(time) }
        });
        if let Some(promise) = promise {
            record.running.insert(number, Running { watch: watch.clone(), promise, answered: false });
        }
        let pass = record.breaker.pass(now);
        drop(models);
        self.run = Some(Run { model: model.clone(), number, pass, watch, promise });
        self
    }

    /// Its answer's head is there: what it changes may be done.
    pub(super) fn answered(&self) {
        if self.changes {
            *lock(&self.dealings.changed) = Some(self.dealings.clock.now());
        }
    }

    /// What it comes to, as far as the server is concerned: known with the head of the answer.
    pub(super) fn comes_to(&mut self, outcome: Outcome) {
        let Some(run) = &mut self.run else { return };
        let now = self.dealings.clock.now();
        let mut models = lock(&self.dealings.models);
        let record = entry(&mut models, &run.model, now);
        if let Some(running) = record.running.get_mut(&run.number) {
            running.answered = true;
        }
        if let Some(pass) = run.pass.take() {
            record.breaker.settle(pass, outcome, now);
        }
    }

    /// In the middle of its answer.
    pub(super) fn broke_off(&self) {
        if let Some(run) = &self.run {
            self.dealings.failed(&run.model, Outcome::Failed);
        }
    }

    /// The server is waited for from here on, or has said something.
    pub(super) fn waits(&self, waits: bool) {
        match &self.run {
            Some(run) if waits => run.watch.start(),
            Some(run) => run.watch.stop(),
            None => {}
        }
    }

    /// It was answered to its end: what it took counts, once.
    pub(super) fn done(&mut self) {
        let Some(Run { model, number, watch, promise, .. }) = &mut self.run else { return };
        let Some(promise) = promise.take() else { return };
        let now = self.dealings.clock.now();
        let mut models = lock(&self.dealings.models);
        let record = entry(&mut models, model, now);
        record.running.remove(number);
        record.judgement.observe(promise, self.dealings.clock.of(watch.waited()), now);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.answered();
        self.dealings.own.fetch_sub(1, Ordering::Relaxed);
        let Some(run) = self.run.take() else { return };
        let now = self.dealings.clock.now();
        let mut models = lock(&self.dealings.models);
        let record = entry(&mut models, &run.model, now);
        record.own = record.own.saturating_sub(1);
        if let Some((promise, so_far)) =
            record.running.remove(&run.number).map(|running| running.so_far(&self.dealings.clock))
            && so_far > promise.time
        {
            // Whoever waited has given up, and will come again.
            record.judgement.observe(promise, so_far, now);
        }
        if let Some(pass) = run.pass {
            record.breaker.settle(pass, Outcome::Unknown, now);
        }
        if record.says_nothing() {
            models.remove(&run.model);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_head_and_then_nothing_is_held_against_a_server_and_a_long_answer_is_not() {
        let (dealings, model) = (Arc::<Dealings>::default(), ModelName::new("m"));
        let slowness = || dealings.standing(&model).slowness;
        let begin = || {
            let mut request = dealings.begin(false).runs(&model, Some(SECOND));
            request.comes_to(Outcome::Served);
            request.waits(false);
            request
        };
        let long = begin();
        for _ in 0..100 {
            long.waits(true);
            advance(SECOND).await;
            long.waits(false);
        }
        assert_eq!(slowness(), 1.0, "it says something now and then");
        drop(long);
        assert_eq!(slowness(), 1.0, "the application may go when it likes");
        let silent = begin();
        silent.waits(true);
        advance(8 * SECOND).await;
        assert_eq!(slowness(), 1.0, "perhaps it says all at the end");
        advance(92 * SECOND).await;
        let held = slowness();
        assert!(held > 2.0, "{held}");
        drop(silent);
        assert!(slowness() > 2.0, "and not forgotten because nobody waits any more");
    }

    #[tokio::test(start_paused = true)]
    async fn made_up_models_push_out_no_judgement() {
        let (dealings, slow) = (Arc::<Dealings>::default(), ModelName::new("slow"));
        let mut request = dealings.begin(false).runs(&slow, Some(SECOND));
        request.comes_to(Outcome::Served);
        advance(50 * SECOND).await;
        request.done();
        drop(request);
        dealings.served(Some(&ModelName::new("used")));
        for n in 0..3 * MAX_MODELS {
            let made_up = ModelName::new(&format!("m{n}"));
            assert_eq!(dealings.standing_at(&made_up, 1.0).slowness, 1.0);
            let mut asked = dealings.begin(false).runs(&made_up, None);
            asked.comes_to(Outcome::Served);
        }
        assert!(dealings.standing(&slow).slowness > 2.0);
        assert!(dealings.has_run(&ModelName::new("used")) && !dealings.has_run(&slow));
        assert_eq!(dealings.standings().len(), 2);
    }
}
