//! How fast the server is with each model, learned from the answers that pass.
//!
//! Whoever hands a request over says so ([`Ollama::run`](super::Ollama::run)) and lets the answer pass through
//! [`Run::watch`], which puts a meter on its body ([`meter`]). At the end of the answer Ollama says how long it took
//! ([`said`]); with what else ran meanwhile ([`crowd`]) that becomes the speed of a request alone, and many of them an
//! estimate ([`estimate`]). [`learner`] has all that is known, a model at a time, and also how many requests a runner works
//! on at once ([`slots`](super::slots)). What peers should be told of it is published when it differs by a tenth.
//!
//! Nothing is kept beyond the process: a server that was measured yesterday may be another one today, and a few answers
//! are enough.

mod active;
mod crowd;
mod estimate;
mod learner;
mod meter;
mod model;
mod said;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::Response;
use http_body_util::BodyExt as _;
use tokio::sync::{Notify, watch};

use crate::exchange::{Body, Pace};
use learner::Learner;
use meter::{Meter, Metered};
use said::Said;

use super::slots::Slots;

/// What is learned. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Speeds(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    learner: Mutex<Learner>,
    paces: watch::Sender<Arc<BTreeMap<String, Pace>>>,
    /// Something runs, after nothing did.
    begun: Notify,
    beat: Duration,
}

/// What a request makes a model do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// To generate.
    Generate,
    /// To embed: there is nothing but a prompt.
    Embed,
}

/// A request that was handed over. Dropping it says that it is over without an answer.
#[derive(Debug)]
pub struct Run {
    speeds: Speeds,
    id: u64,
    meter: Arc<Meter>,
    is_over: bool,
}

// === impl Work ===

impl Work {
    /// What a request for this path makes a model do; nothing if it does not run one, or in a way that tells nothing of its
    /// speed.
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/api/generate"
            | "/api/chat"
            | "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/responses"
            | "/v1/messages" => Some(Self::Generate),
            "/api/embed" | "/api/embeddings" | "/v1/embeddings" => Some(Self::Embed),
            _ => None,
        }
    }
}

// === impl Speeds ===

impl Speeds {
    /// Nothing is known yet. Running answers are looked at every `beat`.
    pub(super) fn new(beat: Duration) -> Self {
        let learner = Mutex::new(Learner::new(beat));
        Self(Arc::new(Shared { learner, paces: watch::Sender::default(), begun: Notify::new(), beat }))
    }

    /// A request is handed over.
    pub(super) fn run(&self, model: &str, work: Work, resident: bool) -> Run {
        let (id, meter) = self.learner().begin(model, work, resident, Instant::now());
        self.0.begun.notify_one();
        Run { speeds: self.clone(), id, meter, is_over: false }
    }

    /// What is known of the models, by the names under which they ran. Published when it differs much.
    pub(super) fn paces(&self) -> watch::Receiver<Arc<BTreeMap<String, Pace>>> {
        self.0.paces.subscribe()
    }

    /// How many requests of a model to hand over.
    pub(super) fn slots(&self, model: &str) -> Slots {
        self.learner().slots(model, Instant::now())
    }

    /// What the server's environment says of all models, and its runners' arguments of some.
    pub(super) fn told(&self, all: Option<u32>, runners: &BTreeMap<String, u32>) {
        self.learner().told(all, runners);
        self.publish();
    }

    /// These models were loaded anew.
    pub(super) fn loaded<'a>(&self, models: impl Iterator<Item = &'a str>) {
        self.learner().loaded(models);
    }

    /// So many of the owner's own requests are under way.
    pub(super) fn direct(&self, direct: u32) {
        self.learner().direct(direct);
    }

    /// Whether nothing runs.
    pub(super) fn is_idle(&self) -> bool {
        self.learner().is_idle()
    }

    /// Looks at what runs, as long as something does.
    pub(super) async fn keep_looking(self) {
        loop {
            if self.is_idle() {
                let rest = self.0.beat * learner::REST;
                if tokio::time::timeout(rest, self.0.begun.notified()).await.is_err() {
                    self.learner().rest(Instant::now());
                    self.publish();
                    // Until something runs nothing changes any more.
                    self.0.begun.notified().await;
                }
            }
            tokio::time::sleep(self.0.beat).await;
            let mut learner = self.learner();
            learner.beat();
            learner.rest(Instant::now());
            drop(learner);
            self.publish();
        }
    }

    fn learner(&self) -> MutexGuard<'_, Learner> {
        self.0.learner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes what peers should be told.
    fn publish(&self) {
        let learner = self.learner();
        self.0.paces.send_if_modified(|known| {
            let nothing = Pace::default();
            let mut differs = false;
            let mut count = 0;
            for (name, pace) in learner.paces() {
                let told = known.get(name);
                count += usize::from(told.is_some());
                if pace.differs(told.unwrap_or(&nothing)) {
                    tracing::debug!(model = name, ?pace, "is as fast as that");
                    differs = true;
                }
            }
            // One that was forgotten.
            differs |= count < known.len();
            if differs {
                let told = learner.paces().filter(|(_, pace)| *pace != nothing);
                *known = Arc::new(told.map(|(name, pace)| (name.to_owned(), pace)).collect());
            }
            differs
        });
    }
}

// === impl Run ===

impl Run {
    /// Lets the answer's body pass and learns from it. It is over with the body's end.
    pub fn watch(self, response: Response<Body>) -> Response<Body> {
        if !response.status().is_success() {
            // A refusal is no work, and it is over.
            return response;
        }
        response.map(|body| {
            let meter = self.meter.clone();
            Metered::new(body, self, meter).boxed_unsync()
        })
    }

    fn first(&self) {
        self.speeds.learner().first(self.id, Instant::now());
    }

    fn over(mut self, tail: &[u8], whole: bool) {
        self.end(Said::read(tail), whole);
    }

    fn end(&mut self, said: Said, whole: bool) {
        if !std::mem::replace(&mut self.is_over, true) {
            self.speeds.learner().over(self.id, said, whole, Instant::now());
            self.speeds.publish();
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.end(Said::default(), false);
    }
}
