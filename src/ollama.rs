//! The local Ollama: a client for it, and a watch of whether it is there and what it has.
//!
//! [`Ollama::send`] carries one request there and back. [`Ollama::state`] follows the server as it comes, goes and
//! changes its models: a task of its own ([`watch`](self::watching)) looks, so that no request pays for it.
//!
//! What is there need not be an Ollama: another server that speaks the OpenAI API will do, and where somebody names it
//! one of gRPC. Which of them it is ([`State::kind`]) is found out each time it comes ([`meet`]).

mod answer;
mod client;
mod connect;
mod direct;
mod fresh;
mod here;
mod life;
mod listing;
mod meet;
mod memory;
mod probe;
mod process;
mod slots;
mod speeds;
mod trouble;
mod upload;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{Request, Response, Uri};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::exchange::{Body, ExchangeError, ModelInfo, Pace, Residence, ServerKind};
use crate::route::ModelName;
use client::Client;
use fresh::Fresh;
use memory::Fits;
use speeds::Speeds;

pub use fresh::Changing;
pub use here::hindrance;
pub use memory::{Memory, Resident};
pub use probe::{Found, probe};
pub use slots::Slots;
pub use speeds::{Run, Work};
pub use trouble::{Flaws, Trouble};
pub use watching::Cadence;

/// A handle on the local Ollama. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ollama {
    client: Client,
    state: watch::Receiver<Arc<State>>,
    nudge: Arc<Notify>,
    fresh: Arc<Fresh>,
    speeds: Speeds,
    memory: watch::Receiver<Arc<Memory>>,
    looks: watch::Sender<Instant>,
    direct: watch::Sender<u32>,
}

/// What is known of the local server.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct State {
    /// Whether it answers as one of the servers that can be lent.
    pub healthy: bool,
    /// What it speaks; means nothing while it is not healthy.
    pub kind: ServerKind,
    /// What an Ollama says its version is; empty before it was healthy, and for other servers.
    pub version: String,
    /// Which program another server than an Ollama says it is.
    pub server: Option<String>,
    /// What it can run itself, by the name it lists it under.
    pub models: BTreeMap<String, ModelInfo>,
    /// Those of them that are in memory.
    pub loaded: BTreeSet<String>,
    /// Whether it does not say which of them are. Then [`State::loaded`] is empty, and means nothing.
    pub loaded_unknown: bool,
    /// Those of them that stand in its list for the OpenAI API alone, if it is an Ollama.
    pub aliases: BTreeSet<String>,
    /// What it lists and would run on the owner's account elsewhere: cloud models by tag or by `remote_host`.
    /// Never lent.
    pub remote: BTreeSet<ModelName>,
    /// Why it is not healthy.
    pub problem: Option<Trouble>,
    /// Its flaws though it is healthy.
    pub flaws: Flaws,
}

// === impl Ollama ===

impl Ollama {
    /// Watches the server at `target` (`http://host:port`, perhaps with a path in front of its own paths), whether it
    /// is there yet or not. The watch ends when the handle is dropped.
    #[cfg(feature = "internals")]
    pub fn spawn(target: &Uri) -> (Self, AbortOnDropHandle<()>) {
        Self::spawn_with(target, false, Cadence::default())
    }

    /// The same of a server that somebody named as the one to lend: it may also be one of gRPC.
    #[cfg(feature = "internals")]
    pub fn spawn_named(target: &Uri) -> (Self, AbortOnDropHandle<()>) {
        Self::spawn_with(target, true, Cadence::default())
    }

    /// The same, `named` or not, looked at in another rhythm: of a simulated server whose time goes faster.
    pub fn spawn_with(target: &Uri, named: bool, cadence: Cadence) -> (Self, AbortOnDropHandle<()>) {
        Self::spawn_where(target, named, None, cadence)
    }

    /// The same of a server that nobody named: it is asked only while its address is one of this machine.
    pub fn spawn_here(target: &Uri, cadence: Cadence) -> (Self, AbortOnDropHandle<()>) {
        Self::spawn_where(target, false, Some(here::Follow::new(target.clone())), cadence)
    }

    fn spawn_where(
        target: &Uri,
        named: bool,
        here: Option<here::Follow>,
        cadence: Cadence,
    ) -> (Self, AbortOnDropHandle<()>) {
        let client = Client::new(target);
        let nudge = Arc::new(Notify::new());
        let (publish, state) = watch::channel(Arc::new(State::default()));
        let (remember, memory) = watch::channel(Arc::new(Memory::default()));
        let looks = watch::Sender::new(Instant::now());
        let direct = watch::Sender::default();
        let speeds = Speeds::new(cadence.beat);
        let telling = process::watch(target.clone(), state.clone(), speeds.clone(), remember.clone());
        let ours = client.ours().clone();
        let counting = direct::watch(target.clone(), ours, state.clone(), speeds.clone(), direct.clone());
        let looking = speeds.clone().keep_looking();
        let watching = watching::Watch {
            client: client.clone(),
            named,
            here,
            cadence,
            publish,
            memory: remember,
            looks: looks.clone(),
            fits: Fits::default(),
            speeds: speeds.clone(),
            nudge: nudge.clone(),
            greeting: None,
            has_aliases: false,
            told: BTreeSet::new(),
        };
        let task = tokio::spawn(async {
            // None of the others ends.
            tokio::select! {
                () = watching.run() => {}
                () = looking => {}
                () = telling => {}
                () = counting => {}
            }
        });
        (
            Self { client, state, nudge, fresh: Arc::default(), speeds, memory, looks, direct },
            AbortOnDropHandle::new(task),
        )
    }

    /// A handle for a node that lends nothing: never healthy, and nobody is asked.
    pub fn absent(target: &Uri) -> Self {
        let (_, state) = watch::channel(Arc::new(State::default()));
        let (_, memory) = watch::channel(Arc::new(Memory::default()));
        let speeds = Speeds::new(Cadence::default().beat);
        let (client, direct) = (Client::new(target), watch::Sender::default());
        let looks = watch::Sender::new(Instant::now());
        Self { client, state, nudge: Arc::default(), fresh: Arc::default(), speeds, memory, looks, direct }
    }

    /// What is known of it, always the latest.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Where it is.
    pub fn target(&self) -> &Uri {
        self.client.target()
    }

    /// When the latest look at its models began. What happened after that it does not know of.
    pub(crate) fn looks(&self) -> watch::Receiver<Instant> {
        self.looks.subscribe()
    }

    /// Asks for a look at its models soon: something may have changed them.
    pub fn refresh(&self) {
        self.nudge.notify_one();
    }

    /// The models as they are now, and not as they were at the last look: [`State::models`] and [`State::remote`] of
    /// a listing that began after this call, made for it and for all others that wait for one. Only an Ollama has models that run elsewhere, and only it is asked. What is new in it
    /// gives a reason for a look: whoever sees a model in a list will ask for it next.
    pub(crate) async fn listing(&self) -> Result<Arc<State>, ExchangeError> {
        if self.state.borrow().kind != ServerKind::Ollama {
            return Ok(self.state.borrow().clone());
        }
        let list = async {
            let mut state = State::clone(&self.state.borrow());
            listing::tags(&self.client, &mut state).await.map_err(|none| none.of(&self.client))?;
            let is_news = {
                let known = self.state.borrow().clone();
                (&known.models, &known.remote) != (&state.models, &state.remote)
            };
            if is_news {
                self.refresh();
            }
            Ok(state)
        };
        // Boxed, since every request's future would have room for this.
        Box::pin(self.fresh.listing(list, |why| self.client.broken(why))).await
    }

    /// Models are being changed, until what this gives is dropped; and a look follows.
    pub(crate) fn change(&self) -> Changing {
        self.fresh.change()
    }

    /// Whether [`Ollama::state`] may be of before a change that was made through here.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.fresh.is_in_doubt()
    }

    /// Says that a request is handed over now, which does this `work` with a model by the name it is listed under. The
    /// answer belongs into [`Run::watch`].
    pub fn run(&self, model: &str, work: Work) -> Run {
        let resident = self.state.borrow().residence(model) != Residence::Disk;
        self.speeds.run(model, work, resident)
    }

    /// What was measured of each model, by the name it is listed under. Changes only when it differs by a tenth.
    pub fn paces(&self) -> watch::Receiver<Arc<BTreeMap<String, Pace>>> {
        self.speeds.paces()
    }

    /// How many requests of a model to hand over at a time, by the name it is listed under.
    pub fn slots(&self, model: &str) -> Slots {
        self.speeds.slots(model)
    }

    /// How many requests it works on that did not come from here: its owner's applications' own, where they can be seen
    /// (on Linux, of a server on this machine), else none. Looked at about once a second while somebody holds a receiver.
    pub fn direct(&self) -> watch::Receiver<u32> {
        self.direct.subscribe()
    }

    /// What it has in memory, and how many models fit ([`Memory::most_loaded`]). Unlike [`State`] it changes with every
    /// request, which keeps its model in memory for longer.
    pub fn memory(&self) -> watch::Receiver<Arc<Memory>> {
        self.memory.clone()
    }

    /// Sends a request there: path, query, body and end-to-end headers as they are, `Host` as that server wants it.
    ///
    /// There is no time-out on the answer: an Ollama that loads a model says nothing for minutes. The head may come
    /// before the request's body was sent; that goes on until the answer is over. Dropping the future, or the body of
    /// the answer before its end, closes the connection (over HTTP/2: resets the stream), on which the server ends the
    /// work. gRPC goes over HTTP/2 if that is spoken there, and so does everything if nothing else is.
    ///
    /// Where a connection broke off, the server is asked whether it lives before anything else is sent there.
    ///
    /// # Errors
    /// [`ExchangeError::NotRun`] if it does not get the whole request, [`ExchangeError::Ollama`] if it breaks off after that
    /// and lives, [`ExchangeError::Ended`] if it does not; [`ExchangeError::Body`] if the request's body does. In mid-answer
    /// all of them come as an error of the answer's body.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        if !self.lives().await {
            self.refresh();
            return Err(self.client.broken("it does not answer since a connection to it broke off").not_run());
        }
        let witness = self.client.life().witness();
        match self.client.send(request).await {
            Err(ExchangeError::Ollama(at, why)) => {
                self.client.life().doubt();
                // Perhaps it is gone.
                self.refresh();
                let lives = self.lives().await && !witness.is_some_and(|witness| witness.has_ended());
                Err(if lives { ExchangeError::Ollama(at, why) } else { ExchangeError::Ended(at, why) })
            }
            Err(error @ ExchangeError::NotRun(..)) => {
                self.refresh();
                Err(error)
            }
            sent => sent,
        }
    }

    /// Whether it answers, if a connection to it broke off since it last did.
    async fn lives(&self) -> bool {
        let life = self.client.life();
        if !life.is_doubted() {
            return true;
        }
        let kind = self.state.borrow().kind;
        let answers = async {
            let question = match kind {
                ServerKind::Ollama => "/api/version",
                ServerKind::OpenAi => "/v1/models",
                // There is none that all of them answer.
                ServerKind::Grpc => return watching::connect(self.client.target()).await.is_ok(),
            };
            if watching::connect(self.client.target()).await.is_err() {
                return false;
            }
            for _ in 0..2 {
                // The first may go by a connection of before, whose end was not heard of.
                match self.client.send(client::get(question)).await {
                    Ok(answer) => return !answer.status().is_server_error(),
                    Err(ExchangeError::Ollama(..)) => {}
                    Err(_) => return false,
                }
            }
            false
        };
        let answers = async { tokio::time::timeout(watching::ANSWER, answers).await.unwrap_or(false) };
        // Boxed, since every request's future would have room for this.
        Box::pin(life.is_there(answers)).await
    }
}

// === impl State ===

impl State {
    /// Whether it lists this model as one to run elsewhere, on the owner's account.
    pub fn is_remote(&self, model: &ModelName) -> bool {
        model.is_cloud() || self.remote.contains(model)
    }

    /// Whether it lists this model as one it runs itself, under any spelling.
    pub fn has(&self, model: &ModelName) -> bool {
        self.listed(model).is_some()
    }

    /// The name under which it lists this model, whatever its spelling.
    pub fn listed(&self, model: &ModelName) -> Option<&str> {
        // The usual spelling first; there may be hundreds of models, and this is asked for each request.
        let as_written = self.models.get_key_value(model.as_written());
        let found = as_written.or_else(|| self.models.iter().find(|(name, _)| ModelName::new(name) == *model));
        found.map(|(name, _)| name.as_str())
    }

    /// Where a model is, by the name it is listed under.
    pub fn residence(&self, listed: &str) -> Residence {
        match self.loaded.contains(listed) {
            _ if self.loaded_unknown => Residence::Unknown,
            true => Residence::Memory,
            false => Residence::Disk,
        }
    }

    /// Whether it is known that it has this model on disk alone.
    pub fn is_on_disk(&self, model: &ModelName) -> bool {
        self.listed(model).is_some_and(|name| self.residence(name) == Residence::Disk)
    }
}
