//! A simulated Ollama on a real loopback port: routes, statuses, error shapes, streaming, slots, queue and cold loads
//! as Ollama 0.24 has them (held against its recorded answers by `tests/ollama`), and a count of all that reached it.
//!
//! Only what a mesh can tell apart is simulated. It says words that follow from the model and the prompt
//! ([`expected`]), so that an answer can be checked wherever it comes out; JSON or the call of a tool where that is asked
//! for ([`content`]). Beside Ollama's own routes it has `/fake/…`:
//! see [`extra`].
//!
//! Included by path from integration tests and from `examples/lab.rs`.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "fake_ollama/answers.rs"]
mod answers;
#[path = "fake_ollama/content.rs"]
mod content;
#[path = "fake_ollama/extra.rs"]
mod extra;
#[path = "fake_ollama/go_json.rs"]
mod go_json;
#[path = "fake_ollama/job.rs"]
mod job;
#[path = "fake_ollama/names.rs"]
mod names;
#[path = "fake_ollama/router.rs"]
mod router;
#[path = "fake_ollama/routes.rs"]
mod routes;
#[path = "fake_ollama/runner.rs"]
mod runner;
#[path = "fake_ollama/shapes.rs"]
mod shapes;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Method};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

// Not every test that includes this file knows what is said.
#[allow(unused_imports)]
pub use runner::expected;

/// How it behaves. All can be changed while it runs, by [`FakeOllama::set`].
#[derive(Debug, Clone)]
pub struct Settings {
    /// What `/api/version` says.
    pub version: String,
    /// Words in an answer that asks for no number.
    pub tokens: usize,
    /// Time to read a prompt.
    pub prompt: Duration,
    /// Time from one token to the next; zero is as fast as they can be taken.
    pub pace: Duration,
    /// Time to load a model.
    pub load: Duration,
    /// `OLLAMA_NUM_PARALLEL`: requests that one model runs at a time. More of them wait, however many.
    pub parallel: usize,
    /// Time from one line of a pull to the next.
    pub pull_pace: Duration,
    /// Breaks the connection off after so many tokens, as a crash would.
    pub break_after: Option<usize>,
    /// Says an error in mid-answer after so many tokens.
    pub error_after: Option<usize>,
    /// Fails whatever would run, at once: a runner that cannot be started.
    pub failing: bool,
    /// Whether requests are kept in [`Counts::seen`].
    pub record: bool,
    /// How many models fit into its memory. One that is idle makes way for another; where none is, that waits.
    pub most_loaded: Option<usize>,
    /// Whether answers say how long they really took, and how many words their prompts had; else they always say the same.
    pub measured: bool,
    /// The durations in answers of its own API, beside that.
    pub durations: Durations,
}

/// The durations in an answer of Ollama's own API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durations {
    /// As [`Settings::measured`] says: the truth, or always the same.
    #[default]
    Said,
    /// Nothing.
    Missing,
    /// That it took no time.
    Zero,
    /// That it took longer than there is time, as negative as can be or no whole number, in turn.
    Absurd,
}

/// A model on its disk.
#[derive(Debug, Clone)]
pub struct Model {
    /// As listed, with its tag.
    pub name: String,
    /// Of its manifest.
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// Set for a model that would run elsewhere.
    pub remote_host: Option<String>,
    /// Whether it is in memory.
    pub loaded: bool,
    /// When it is to leave memory, as `/api/ps` says it.
    pub expires_at: Option<String>,
}

/// All that reached it.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    /// Connections that were opened.
    pub connections: u64,
    /// Requests by path.
    pub requests: BTreeMap<String, u64>,
    /// Requests that are being answered, waiting ones included.
    pub running: usize,
    /// The most of them at a time.
    pub most_running: usize,
    /// Those of them that wait for a slot or for a load.
    pub waiting: usize,
    /// The most that one model's runner had at a time, with those that waited for it.
    pub most_at_a_model: usize,
    /// Answers that were given to their end.
    pub finished: u64,
    /// Requests whose client went away before.
    pub aborted: u64,
    /// Tokens said.
    pub tokens: u64,
    /// Times that a model was loaded.
    pub loads: u64,
    /// Bytes of request bodies.
    pub received: u64,
    /// Bytes of `/fake/download`s that were handed to the sockets.
    pub sent: u64,
    /// The latest requests, at most [`MOST_SEEN`].
    pub seen: VecDeque<Seen>,
}

/// Requests kept in [`Counts::seen`].
pub const MOST_SEEN: usize = 1000;

/// One request.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its method.
    pub method: Method,
    /// Its path as it came, with the query.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Bytes of its body that were read.
    pub length: u64,
    /// SHA-256 of them in hexadecimal.
    pub sha256: String,
    /// Whether the body came to its end.
    pub complete: bool,
    /// The model it named, read as Go reads it.
    pub model: Option<String>,
}

/// The server. Stops when it is dropped.
#[derive(Debug)]
pub struct FakeOllama {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Mutex<Settings>,
    pub(crate) models: Mutex<Vec<Model>>,
    pub(crate) blobs: Mutex<BTreeSet<String>>,
    pub(crate) runners: runner::Runners,
    pub(crate) counts: watch::Sender<Counts>,
    pub(crate) frozen: watch::Sender<bool>,
}

// === impl FakeOllama ===

impl FakeOllama {
    /// One with these models (`:latest` is added where a tag is missing) on a port of its own.
    pub async fn start(models: &[&str]) -> Self {
        Self::start_with(models, Settings::default()).await
    }

    /// The same, with other settings.
    pub async fn start_with(models: &[&str], settings: Settings) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), models, settings).await
    }

    /// The same, at this address.
    pub async fn start_at(addr: SocketAddr, models: &[&str], settings: Settings) -> Self {
        let shared = Arc::new(Shared {
            settings: Mutex::new(settings),
            models: Mutex::new(models.iter().map(|name| Model::new(name)).collect()),
            blobs: Mutex::default(),
            runners: runner::Runners::default(),
            counts: watch::Sender::new(Counts::default()),
            frozen: watch::Sender::new(false),
        });
        let mut fake = Self { addr, shared, server: None };
        fake.start_again().await;
        fake
    }

    /// Where it listens, also while it is stopped.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as `http://…`.
    pub fn url(&self) -> http::Uri {
        format!("http://{}", self.addr).parse().unwrap()
    }

    /// Ends as a killed process does: the port and all connections are closed at once.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
        for model in self.shared.models.lock().unwrap().iter_mut() {
            model.loaded = false;
        }
    }

    /// Listens again at the same address, with nothing loaded.
    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("the fake Ollama's port is free");
        self.addr = listener.local_addr().unwrap();
        self.server = Some(tokio::spawn(serve(listener, self.shared.clone())));
    }

    /// Says nothing more while its connections and its port stay open, as a stopped process does; until it is woken.
    pub fn freeze(&self, frozen: bool) {
        self.shared.frozen.send_replace(frozen);
    }

    /// Changes how it behaves from the next request on.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.settings.lock().unwrap());
    }

    /// Changes what is on its disk.
    pub fn models(&self, change: impl FnOnce(&mut Vec<Model>)) {
        change(&mut self.shared.models.lock().unwrap());
    }

    /// What has reached it.
    pub fn counts(&self) -> Counts {
        self.shared.counts.borrow().clone()
    }

    /// Waits until this is true of what has reached it; panics after a minute, with what has.
    pub async fn until(&self, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.shared.counts.subscribe();
        match tokio::time::timeout(Duration::from_secs(60), counts.wait_for(wanted)).await {
            Ok(counts) => counts.unwrap().clone(),
            Err(_) => panic!("the fake Ollama waits in vain; it has {:?}", self.counts()),
        }
    }
}

impl Drop for FakeOllama {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// As Go's `%q` writes a text that has nothing odd in it.
pub(crate) fn json_text(text: &str) -> String {
    serde_json::to_string(text).unwrap()
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                shared.counts.send_modify(|counts| counts.connections += 1);
                let shared = shared.clone();
                let (stream, watched) = twice(stream);
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let shared = shared.clone();
                        async move { Ok::<_, Infallible>(routes::answer(shared, request).await) }
                    });
                    let mut builder = http1::Builder::new();
                    builder.timer(TokioTimer::new()).title_case_headers(true).header_read_timeout(None);
                    // As Go: a client that has said all it wants to is answered, and heads may be long.
                    let connection = builder.half_close(true).max_headers(1024);
                    tokio::select! {
                        // An error is a client that went away, or a break that was asked for.
                        _ = connection.serve_connection(TokioIo::new(stream), service) => {}
                        () = gone(&watched) => {}
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Two hands on one socket.
fn twice(stream: TcpStream) -> (TcpStream, TcpStream) {
    let stream = stream.into_std().unwrap();
    let other = stream.try_clone().unwrap();
    (TcpStream::from_std(stream).unwrap(), TcpStream::from_std(other).unwrap())
}

/// Resolves a moment after the client has closed its side. Go then cancels what the request runs, which ends Ollama's
/// work, though what answers at once is still answered.
async fn gone(stream: &TcpStream) {
    while let Ok(1..) = stream.peek(&mut [0]).await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        Self {
            version: "0.24.0".to_owned(),
            tokens: 8,
            prompt: Duration::ZERO,
            pace: Duration::ZERO,
            load: Duration::ZERO,
            parallel: 4,
            pull_pace: Duration::from_millis(1),
            break_after: None,
            error_after: None,
            failing: false,
            record: true,
            most_loaded: None,
            measured: false,
            durations: Durations::Said,
        }
    }
}

// === impl Model ===

impl Model {
    /// A model with a digest and a size that follow from its name.
    pub fn new(name: &str) -> Self {
        let name = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
        let digest = shapes::sha256(name.as_bytes());
        Self { name, digest, size: 98_363_007, remote_host: None, loaded: false, expires_at: None }
    }
}

// === impl Counts ===

impl Counts {
    /// Requests for this path.
    pub fn of(&self, path: &str) -> u64 {
        self.requests.get(path).copied().unwrap_or(0)
    }

    /// The latest request for this path.
    pub fn last(&self, path: &str) -> Option<&Seen> {
        self.seen.iter().rev().find(|seen| seen.target.split('?').next() == Some(path))
    }
}
