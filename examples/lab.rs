//! The main job, on this machine alone: three nodes and two simulated Ollamas on loopback, a chat that is streamed through
//! the mesh, a server that is killed in mid-answer, and what an application sees of it.
//!
//! ```sh
//! cargo run --release --example lab
//! ```
//!
//! The nodes are the program itself, each on a runtime of its own so that one can be killed; between them is the real
//! thing: QUIC, TLS 1.3, keys met for the first time. Only the Ollamas are simulated, and multicast is left out, so that
//! nothing of this leaves the machine.

#![allow(clippy::indexing_slicing)]

use std::error::Error;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ollana::{App, Config, Info, Mode, NodeName, PeerAddress};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

#[path = "../tests/support/fake_ollama.rs"]
mod fake_ollama;
use fake_ollama::{FakeOllama, Settings};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const MODEL: &str = "llama3.2";
/// How fast the simulated Ollamas speak: as a good GPU does.
const PACE: Duration = Duration::from_millis(15);
/// How long anything may take before the lab gives up.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() {
    if let Err(error) = lab() {
        eprintln!("lab: {error}");
        std::process::exit(1);
    }
}

fn lab() -> Result<()> {
    let runtime = Runtime::new()?;
    let home = tempfile::tempdir()?;
    println!("Three nodes on loopback: gpu1 and gpu2 share a simulated Ollama each, laptop has none.\n");

    let ollamas = runtime.block_on(async {
        let settings = Settings { tokens: 24, pace: PACE, load: Duration::from_millis(150), ..Settings::default() };
        [FakeOllama::start_with(&[MODEL], settings.clone()).await, FakeOllama::start_with(&[MODEL], settings).await]
    });
    let gpu1 = Node::start(provider("gpu1", &ollamas[0], home.path(), None)?)?;
    let gpu2 = Node::start(provider("gpu2", &ollamas[1], home.path(), None)?)?;
    let laptop = Node::start(Config {
        mode: Mode::Client,
        peers: vec![address(gpu1.info.mesh), address(gpu2.info.mesh)],
        ..config("laptop", home.path())
    })?;
    let application = Application::new(laptop.info.listen.ok_or("laptop has no listener")?);

    runtime.block_on(async {
        application.answers("gpu1").await?;
        application.answers("gpu2").await?;
        println!("laptop met both and pinned their keys. A chat, asked of http://{}:", application.node);
        let first = application.chat("Why is the sky blue?", |_| {}).await?;
        println!("    {} said {} tokens, the first after {}.\n", first.server, first.tokens, ms(first.first_token));
        Ok::<_, Box<dyn Error + Send + Sync>>(())
    })?;

    println!("Another, and the server that answers is killed after eight tokens, as by kill -9:");
    let application = Arc::new(application);
    let (at_eight, eighth) = mpsc::channel();
    let asking = runtime.spawn({
        let application = Arc::clone(&application);
        async move {
            let tell = |answer: &Answer| {
                if answer.tokens == 8 {
                    let _ = at_eight.send(answer.server.clone());
                }
            };
            application.chat("And at sunset?", tell).await
        }
    });
    let victim = eighth.recv_timeout(PATIENCE).map_err(|_| "no eighth token")?;
    let (dead, alive, ollama) = if victim == "gpu1" { (gpu1, gpu2, &ollamas[0]) } else { (gpu2, gpu1, &ollamas[1]) };
    let dead_info = dead.info.clone();
    dead.kill();
    let killed = Instant::now();
    println!("\n    {victim} is dead. The same question again, at once, while that answer still hangs:");
    let again = runtime.block_on(application.chat("And at sunset?", |_| {}))?;
    println!("    {} said {} tokens, the first after {}.\n", again.server, again.tokens, ms(again.first_token));
    if again.server == victim {
        return Err("a dead server answered".into());
    }

    println!("{victim} comes back with the key it had:");
    let back = Node::start(provider(&victim, ollama, home.path(), Some(dead_info.mesh))?)?;
    let returned = Instant::now();
    runtime.block_on(application.answers(&victim))?;
    println!("    in use again after {}; nobody had to do anything.", ms(returned.elapsed()));
    match runtime.block_on(asking)? {
        Ok(_) => return Err("the answer came to an end although its server was killed".into()),
        Err(broken) => println!(
            "    The answer it had begun ended {} after the kill, as a break and never as a short answer:\n    {broken}\n",
            ms(killed.elapsed())
        ),
    }

    let counts: Vec<_> = ollamas.iter().map(FakeOllama::counts).collect();
    println!("What reached the Ollamas: {} and {} chats.", counts[0].of("/api/chat"), counts[1].of("/api/chat"));
    for node in [laptop, alive, back] {
        node.stop();
    }
    Ok(())
}

fn config(name: &str, home: &Path) -> Config {
    Config { name: NodeName::lossy(name), ..Config::for_test(home.join(name)) }
}

fn provider(name: &str, ollama: &FakeOllama, home: &Path, mesh: Option<SocketAddr>) -> Result<Config> {
    let mut config = Config { mode: Mode::Server, ..config(name, home) };
    config.ollama.url = ollama.url();
    if let Some(mesh) = mesh {
        config.mesh.addr = mesh;
    }
    Ok(config)
}

fn address(mesh: SocketAddr) -> PeerAddress {
    PeerAddress { host: mesh.ip().to_string(), port: mesh.port() }
}

/// An error and what is behind it.
fn describe(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

fn ms(duration: Duration) -> String {
    format!("{} ms", duration.as_millis())
}

// === a node, and an application ===

/// A node on a runtime of its own.
struct Node {
    runtime: Runtime,
    info: Info,
    shutdown: CancellationToken,
    ended: mpsc::Receiver<()>,
}

impl Node {
    fn start(config: Config) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let app = runtime.block_on(App::build(config))?;
        let info = app.ready();
        println!("    {:<8} ID {}  UDP {}", info.name.to_string(), info.id, info.mesh);
        let shutdown = CancellationToken::new();
        let (end, ended) = mpsc::channel();
        let run = app.run(shutdown.clone());
        runtime.spawn(async move {
            if let Err(error) = run.await {
                eprintln!("a node ended: {error}");
            }
            let _ = end.send(());
        });
        Ok(Self { runtime, info, shutdown, ended })
    }

    /// Nothing of it runs on, and nobody is told.
    fn kill(self) {
        self.runtime.shutdown_background();
    }

    fn stop(self) {
        self.shutdown.cancel();
        let _ = self.ended.recv_timeout(PATIENCE);
        self.runtime.shutdown_background();
    }
}

/// What any program does that talks to an Ollama.
struct Application {
    node: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// How an answer went so far.
struct Answer {
    server: String,
    tokens: usize,
    first_token: Duration,
}

impl Application {
    fn new(node: SocketAddr) -> Self {
        Self { node, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    async fn ask(&self, path: &str, server: Option<&str>, body: Option<String>) -> Result<Response<Incoming>> {
        let mut request = Request::builder().uri(format!("http://{}{path}", self.node));
        if let Some(server) = server {
            request = request.header("ollana-peer", server);
        }
        let request = match body {
            Some(body) => request.method("POST").body(Full::from(body)),
            None => request.body(Full::default()),
        };
        Ok(tokio::time::timeout(PATIENCE, self.client.request(request?)).await.map_err(|_| "no answer in time")??)
    }

    /// Waits until this very server answers.
    async fn answers(&self, server: &str) -> Result<()> {
        let begun = Instant::now();
        while self.ask("/api/version", Some(server), None).await?.status() != 200 {
            if begun.elapsed() > PATIENCE {
                return Err(format!("{server} did not turn up").into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Asks, prints each token as it comes, and tells `watch` of it.
    async fn chat(&self, question: &str, mut watch: impl FnMut(&Answer)) -> Result<Answer> {
        let begun = Instant::now();
        let body = serde_json::json!({"model": MODEL, "messages": [{"role": "user", "content": question}]});
        let response = self.ask("/api/chat", None, Some(body.to_string())).await?;
        let server =
            response.headers().get("ollana-peer").and_then(|name| name.to_str().ok()).unwrap_or("?").to_owned();
        let mut answer = Answer { server, tokens: 0, first_token: Duration::ZERO };
        let mut body = response.into_body();
        print!("    > ");
        loop {
            let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| "the answer hangs")?;
            let frame = match frame {
                None => break,
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    return Err(describe(&error).into());
                }
            };
            let Some(data) = frame.data_ref() else { continue };
            for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let said: serde_json::Value = serde_json::from_slice(line)?;
                let token = said.pointer("/message/content").and_then(|content| content.as_str()).unwrap_or_default();
                if token.is_empty() {
                    continue;
                }
                answer.tokens += 1;
                if answer.tokens == 1 {
                    answer.first_token = begun.elapsed();
                }
                print!("{token}");
                std::io::stdout().flush()?;
                watch(&answer);
            }
        }
        println!();
        Ok(answer)
    }
}
