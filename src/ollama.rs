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
mod fresh;
mod listing;
mod meet;
mod probe;
mod upload;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use http::{Request, Response, Uri};
use tokio::sync::{Notify, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::exchange::{Body, ExchangeError, ModelInfo, ServerKind};
use crate::route::ModelName;
use client::Client;
use fresh::Fresh;

pub use fresh::Changing;
pub use probe::{Found, probe};

/// A handle on the local Ollama. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Ollama {
    client: Client,
    state: watch::Receiver<Arc<State>>,
    nudge: Arc<Notify>,
    fresh: Arc<Fresh>,
}

/// What is known of the local server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
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
    /// What it lists and would run on the owner's account elsewhere: cloud models by tag or by `remote_host`.
    /// Never lent.
    pub remote: BTreeSet<ModelName>,
    /// Why it is not healthy, for people.
    pub problem: Option<String>,
}

// === impl Ollama ===

impl Ollama {
    /// Watches the server at `target` (`http://host:port`, perhaps with a path in front of its own paths), whether it
    /// is there yet or not. The watch ends when the handle is dropped.
    pub fn spawn(target: &Uri) -> (Self, AbortOnDropHandle<()>) {
        Self::watched(target, false)
    }

    /// The same of a server that somebody named as the one to lend: it may also be one of gRPC.
    pub fn spawn_named(target: &Uri) -> (Self, AbortOnDropHandle<()>) {
        Self::watched(target, true)
    }

    fn watched(target: &Uri, named: bool) -> (Self, AbortOnDropHandle<()>) {
        let client = Client::new(target);
        let nudge = Arc::new(Notify::new());
        let (publish, state) = watch::channel(Arc::new(State::default()));
        let task = tokio::spawn(watching::watch(client.clone(), named, publish, nudge.clone()));
        (Self { client, state, nudge, fresh: Arc::default() }, AbortOnDropHandle::new(task))
    }

    /// A handle for a node that lends nothing: never healthy, and nobody is asked.
    pub fn absent(target: &Uri) -> Self {
        let (_, state) = watch::channel(Arc::new(State::default()));
        Self { client: Client::new(target), state, nudge: Arc::default(), fresh: Arc::default() }
    }

    /// What is known of it, always the latest.
    pub fn state(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Where it is.
    pub fn target(&self) -> &Uri {
        self.client.target()
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
            listing::tags(&self.client, &mut state).await?;
            if state != **self.state.borrow() {
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

    /// Sends a request there: path, query, body and end-to-end headers as they are, `Host` as that server wants it.
    ///
    /// There is no time-out on the answer: an Ollama that loads a model says nothing for minutes. The head may come
    /// before the request's body was sent; that goes on until the answer is over. Dropping the future, or the body of
    /// the answer before its end, closes the connection (over HTTP/2: resets the stream), on which the server ends the
    /// work. gRPC goes over HTTP/2 if that is spoken there, and so does everything if nothing else is.
    ///
    /// # Errors
    /// [`ExchangeError::Ollama`] if it cannot be reached or breaks off before it answers, [`ExchangeError::Body`] if
    /// the request's body does. In mid-answer both come as an error of the answer's body.
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let sent = self.client.send(request).await;
        if matches!(sent, Err(ExchangeError::Ollama(..))) {
            // Perhaps it is gone.
            self.refresh();
        }
        sent
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
        self.entry(model).is_some()
    }

    /// What it lists of this model, under any spelling.
    pub fn entry(&self, model: &ModelName) -> Option<&ModelInfo> {
        // The usual spelling first; there may be hundreds of models, and this is asked for each request.
        self.models
            .get(model.as_written())
            .or_else(|| self.models.iter().find(|(name, _)| ModelName::new(name) == *model).map(|(_, info)| info))
    }
}
