//! The gate before a simulated Ollama: who may do what, what of a body reaches Ollama, and what is told of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;

mod bodies;
mod forms;
mod load;
mod packed;
mod queue;
mod scopes;
mod staying;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ollana::internals::exchange::{Body, ExchangeError, REFUSAL_HEADER, empty, full};
use ollana::internals::gate::{Caller, Gate, GateSettings};
use ollana::internals::id::{Id, NodeName, Scope};
use ollana::internals::ollama::Ollama;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use fake_ollama::{FakeOllama, Settings};

/// A gate before a simulated Ollama that is healthy.
struct Provider {
    fake: FakeOllama,
    ollama: Ollama,
    gate: Arc<Gate>,
    lend: watch::Sender<bool>,
    _watch: AbortOnDropHandle<()>,
}

/// An answer that was read to its end.
#[derive(Debug)]
struct Read {
    status: StatusCode,
    refusal: Option<String>,
    headers: http::HeaderMap,
    body: String,
}

impl Provider {
    async fn start(models: &[&str]) -> Self {
        Self::start_with(models, Settings::default()).await
    }

    async fn start_with(models: &[&str], settings: Settings) -> Self {
        // More than any test here has running: what is learned of slots has tests of its own.
        Self::start_as(models, settings, GateSettings { parallel: Some(64), ..GateSettings::default() }).await
    }

    async fn start_as(models: &[&str], settings: Settings, lends: GateSettings) -> Self {
        let fake = FakeOllama::start_with(models, settings).await;
        let (ollama, watching) = Ollama::spawn(&fake.url());
        let healthy = async { ollama.state().wait_for(|state| state.healthy).await.map(drop) };
        timeout(Duration::from_secs(10), healthy).await.expect("it is healthy").unwrap();
        let lend = watch::Sender::new(true);
        let gate = Gate::new(ollama.clone(), lends, lend.subscribe());
        Self { fake, ollama, gate, lend, _watch: watching }
    }

    async fn ask(&self, caller: Caller, request: Request<Body>) -> Read {
        read(self.gate.serve(caller, request).await.unwrap()).await
    }
}

async fn read(answer: Response<Body>) -> Read {
    let (parts, body) = answer.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let refusal = parts.headers.get(REFUSAL_HEADER).map(|code| code.to_str().unwrap().to_owned());
    Read { status: parts.status, refusal, headers: parts.headers, body: String::from_utf8(body.to_vec()).unwrap() }
}

fn peer(scope: Scope) -> Caller {
    Caller::Peer { id: Id::from_bytes([7; 32]), name: NodeName::lossy("laptop"), scope, trusted: true }
}

/// Another peer with scope `infer`.
fn other(n: u8, trusted: bool) -> Caller {
    Caller::Peer {
        id: Id::from_bytes([n, 1].repeat(16).try_into().unwrap()),
        name: NodeName::lossy("other"),
        scope: Scope::Infer,
        trusted,
    }
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Body> {
    let method: Method = method.parse().unwrap();
    let body = body.into();
    let body = if body.is_empty() { empty() } else { full(body) };
    Request::builder().method(method).uri(path).body(body).unwrap()
}

fn post(path: &str, body: &Value) -> Request<Body> {
    request("POST", path, body.to_string())
}

/// A body whose frames the test gives one by one.
fn by_hand() -> (mpsc::Sender<Result<Bytes, ExchangeError>>, Body) {
    let (frames, receiver) = mpsc::channel(16);
    let frames_in = stream::unfold(receiver, |mut receiver| async {
        let frame: Result<Bytes, ExchangeError> = receiver.recv().await?;
        Some((frame.map(Frame::data), receiver))
    });
    (frames, StreamBody::new(Box::pin(frames_in)).boxed_unsync())
}
