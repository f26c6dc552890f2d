//! Slots, loads and words.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};

use super::{Settings, Shared, shapes};

/// The words that an Ollama with this model says to this prompt, `count` of them.
pub fn expected(model: &str, prompt: &str, count: usize) -> String {
    (0..count).map(|i| word(model, prompt, i)).collect()
}

/// A runner a model: how many run at a time.
#[derive(Debug, Default)]
pub(crate) struct Runners(Mutex<BTreeMap<String, Arc<Runner>>>);

#[derive(Debug)]
struct Runner {
    /// Fair and without a bound, as Ollama's queue for a loaded model is.
    slots: Arc<Semaphore>,
    loading: tokio::sync::Mutex<()>,
    /// Requests that have a slot or wait for one.
    here: AtomicUsize,
}

/// One of a runner's requests.
#[derive(Debug)]
struct Here(Arc<Runner>);

/// A slot, for as long as an answer needs it.
#[derive(Debug)]
pub(crate) struct Slot {
    _slot: OwnedSemaphorePermit,
    _here: Here,
    /// Time that the load took.
    pub(crate) load: Duration,
}

/// Counts a request as waiting until it is dropped.
struct Waiting<'a>(&'a Shared);

// === impl Runners ===

impl Runners {
    fn of(&self, model: &str, parallel: usize) -> Arc<Runner> {
        let mut runners = self.0.lock().unwrap();
        let new = || {
            Arc::new(Runner { slots: Arc::new(Semaphore::new(parallel)), loading: Default::default(), here: 0.into() })
        };
        runners.entry(model.to_owned()).or_insert_with(new).clone()
    }
}

/// Waits for a slot of this model, and loads it first if it is not in memory.
pub(crate) async fn slot(shared: &Shared, model: &str) -> Slot {
    let settings = shared.settings.lock().unwrap().clone();
    let runner = shared.runners.of(model, settings.parallel);
    let here = Here::enter(&runner, shared);
    let waiting = Waiting::new(shared);
    let slot = runner.slots.clone().acquire_owned().await.unwrap();
    let load = ensure_loaded(shared, model, &runner, &settings).await;
    drop(waiting);
    Slot { _slot: slot, _here: here, load }
}

async fn ensure_loaded(shared: &Shared, model: &str, runner: &Runner, settings: &Settings) -> Duration {
    let since = Instant::now();
    let _one_at_a_time = runner.loading.lock().await;
    if is_loaded(shared, model) {
        return Duration::ZERO;
    }
    make_room(shared, model, settings).await;
    pause(settings.load).await;
    set_loaded(shared, model, true);
    shared.counts.send_modify(|counts| counts.loads += 1);
    since.elapsed()
}

/// Puts models out of memory until there is room for this one.
async fn make_room(shared: &Shared, model: &str, settings: &Settings) {
    let Some(most) = settings.most_loaded else { return };
    loop {
        let others: Vec<String> = {
            let models = shared.models.lock().unwrap();
            models.iter().filter(|other| other.loaded && other.name != model).map(|other| other.name.clone()).collect()
        };
        if others.len() < most {
            return;
        }
        let idle =
            others.iter().find(|other| shared.runners.of(other, settings.parallel).here.load(Ordering::Relaxed) == 0);
        match idle {
            Some(idle) => set_loaded(shared, idle, false),
            None => sleep(Duration::from_millis(1)).await,
        }
    }
}

fn is_loaded(shared: &Shared, model: &str) -> bool {
    shared.models.lock().unwrap().iter().any(|known| known.name == model && known.loaded)
}

pub(crate) fn set_loaded(shared: &Shared, model: &str, loaded: bool) {
    for known in shared.models.lock().unwrap().iter_mut().filter(|known| known.name == model) {
        known.loaded = loaded;
    }
}

/// The next word of an answer.
pub(crate) fn word(model: &str, prompt: &str, i: usize) -> String {
    let space = if i == 0 { "" } else { " " };
    let hash = shapes::sha256(format!("{model}\0{prompt}\0{i}").as_bytes());
    format!("{space}{}", &hash[..6])
}

pub(crate) async fn pause(time: Duration) {
    if !time.is_zero() {
        sleep(time).await;
    }
}

// === impl Waiting ===

impl Here {
    fn enter(runner: &Arc<Runner>, shared: &Shared) -> Self {
        let here = runner.here.fetch_add(1, Ordering::Relaxed) + 1;
        shared.counts.send_modify(|counts| counts.most_at_a_model = counts.most_at_a_model.max(here));
        Self(runner.clone())
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        self.0.here.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<'a> Waiting<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.counts.send_modify(|counts| counts.waiting += 1);
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.counts.send_modify(|counts| counts.waiting -= 1);
    }
}
