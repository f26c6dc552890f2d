//! A real `llama-server` with a small real model, asked directly and through two nodes.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use libtest_mimic::Trial;
use ollana::internals::exchange::ServerKind;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::in_a_runtime;
use super::node::{Node, node, until};
use super::tools;

/// Longer than a model of 100 MB takes to load on a machine with much else to do.
const LOAD: Duration = Duration::from_secs(60);
/// Longer than a few tokens take on a processor that has much else to do.
const ANSWER: Duration = Duration::from_secs(180);

/// Held by the test that runs: models share a processor badly, since their threads wait for each other by spinning.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

pub fn trials() -> Vec<Trial> {
    let needs = Needs::find();
    let reason = needs.as_ref().err().cloned().unwrap_or_default();
    macro_rules! trials {
        ($($test:ident)*) => {
            vec![$({
                let needs = needs.clone();
                Trial::test(concat!("llama_server::", stringify!($test)), move || {
                    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    in_a_runtime($test(needs.unwrap()));
                    Ok(())
                })
                // libtest prints no reason of its own, so it stands in the name's kind.
                .with_kind(reason.clone())
                .with_ignored_flag(!reason.is_empty())
            }),*]
        };
    }
    trials! {
        what_it_lists_and_says_is_what_it_says_directly
        a_streamed_chat_comes_token_by_token
        what_it_does_not_lend_is_refused
        one_that_is_killed_is_withdrawn_and_lent_again_when_it_has_loaded
    }
}

// === what it takes ===

#[derive(Clone)]
struct Needs {
    program: PathBuf,
    model: PathBuf,
}

impl Needs {
    fn find() -> Result<Self, String> {
        let needs = Self { program: tools::llama_server()?, model: tools::model()? };
        // It may be built for another processor, or miss a library.
        Server::start(&needs, free_port())?
            .until_loaded()
            .map_err(|why| format!("{}: {why}", needs.program.display()))?;
        Ok(needs)
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A running `llama-server`. Killed when dropped.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start(needs: &Needs, port: u16) -> Result<Self, String> {
        let mut command = Command::new(&needs.program);
        command.arg("-m").arg(&needs.model).args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["-c", "2048", "--embeddings", "--pooling", "mean", "--alias", "SmolLM2"]);
        command.args(["--threads", "1", "--threads-batch", "1"]);
        // The package's libraries stand beside it.
        command.env("LD_LIBRARY_PATH", needs.program.parent().unwrap());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("{}: {error}", needs.program.display()))?;
        Ok(Self { child, addr: ([127, 0, 0, 1], port).into() })
    }

    /// Waits until it answers as one that has its model.
    fn until_loaded(&mut self) -> Result<(), String> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return Err(match status.signal() {
                    Some(4) => "it is built for another processor (illegal instruction)".to_owned(),
                    _ => format!("it does not start ({status})"),
                });
            }
            if said(self.addr, "/health").is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(());
            }
            if begun.elapsed() > LOAD {
                return Err(format!("it has not loaded its model within {LOAD:?}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn url(&self) -> http::Uri {
        format!("http://{}", self.addr).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The whole answer to a `GET`, before there is a runtime.
fn said(at: SocketAddr, path: &str) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(at).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// A server that has loaded, a node that lends it, and one that uses it.
async fn mesh(needs: &Needs) -> (Server, Node, Node) {
    let mut server = Server::start(needs, free_port()).unwrap();
    server.until_loaded().unwrap();
    let provider = node("gpu1").lends_at(server.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    let peer = user.until_lent(provider.id(), "SmolLM2").await;
    assert_eq!(peer.api, ServerKind::OpenAi);
    (server, provider, user)
}

/// Status, the pieces that the body came in, and all of it.
async fn ask(at: SocketAddr, path: &str, body: Option<&Value>) -> (StatusCode, Vec<String>, String) {
    let uri = format!("http://{at}{path}");
    let request = match body {
        Some(body) => Request::post(uri)
            .header("content-type", "application/json")
            .body(Full::<bytes::Bytes>::from(body.to_string())),
        None => Request::get(uri).body(Full::default()),
    };
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut answer = timeout(ANSWER, client.request(request.unwrap())).await.unwrap().unwrap();
    let mut pieces = Vec::new();
    while let Some(frame) = timeout(ANSWER, answer.frame()).await.unwrap() {
        pieces.extend(frame.unwrap().into_data().map(|data| String::from_utf8(data.to_vec()).unwrap()));
    }
    let all = pieces.concat();
    (answer.status(), pieces, all)
}

/// Takes out what differs between two runs of the same request.
fn timeless(text: &str) -> Value {
    let mut value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|key, _| !["id", "created", "timings"].contains(&key.as_str()));
    }
    value
}

fn chat(stream: bool) -> Value {
    json!({"model": "SmolLM2", "messages": [{"role": "user", "content": "Count to five."}], "max_tokens": 16,
        "seed": 1, "temperature": 0, "cache_prompt": false, "stream": stream})
}

// === the tests ===

async fn what_it_lists_and_says_is_what_it_says_directly(needs: Needs) {
    let (server, provider, user) = mesh(&needs).await;
    assert_eq!(provider.view().ollama().server.as_deref(), Some("llama.cpp"));
    let direct = ask(server.addr, "/v1/models", None).await;
    assert_eq!(ask(user.listen, "/v1/models", None).await.2, direct.2);
    for path in ["/v1/models/SmolLM2", "/v1/models/smollm2"] {
        let (direct, mesh) = (ask(server.addr, path, None).await, ask(user.listen, path, None).await);
        assert_eq!((mesh.0, mesh.2), (direct.0, direct.2), "{path}");
    }
    for (path, body) in [
        ("/v1/chat/completions", chat(false)),
        (
            "/v1/completions",
            json!({"model": "SmolLM2", "prompt": "Once", "max_tokens": 8, "seed": 1, "temperature": 0, "cache_prompt": false}),
        ),
        ("/v1/embeddings", json!({"model": "SmolLM2", "input": ["one", "two"]})),
        ("/v1/messages/count_tokens", json!({"model": "SmolLM2", "messages": [{"role": "user", "content": "Hi"}]})),
        // What is wrong with a request it says itself.
        ("/v1/embeddings", json!({"model": "SmolLM2"})),
        ("/v1/chat/completions", json!({"model": "SmolLM2", "messages": 5})),
    ] {
        let direct = ask(server.addr, path, Some(&body)).await;
        let mesh = ask(user.listen, path, Some(&body)).await;
        assert_eq!(mesh.0, direct.0, "{path}: {}", mesh.2);
        assert_eq!(timeless(&mesh.2), timeless(&direct.2), "{path}");
    }
}

async fn a_streamed_chat_comes_token_by_token(needs: Needs) {
    let (server, _provider, user) = mesh(&needs).await;
    let (_, direct, _) = ask(server.addr, "/v1/chat/completions", Some(&chat(true))).await;
    let (status, mesh, _) = ask(user.listen, "/v1/chat/completions", Some(&chat(true))).await;
    assert_eq!(status, StatusCode::OK);
    let events = |pieces: &[String]| -> Vec<Value> {
        let all = pieces.concat();
        let events = all.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|event| *event != "[DONE]");
        events.map(timeless).collect()
    };
    assert!(events(&direct).len() > 10 && mesh.len() > 5, "it streams: {mesh:?}");
    assert_eq!(events(&mesh), events(&direct));
    assert!(mesh.concat().ends_with("data: [DONE]\n\n"));
}

async fn what_it_does_not_lend_is_refused(needs: Needs) {
    let (server, provider, user) = mesh(&needs).await;
    let direct = ask(server.addr, "/slots", None).await;
    assert_eq!(direct.0, StatusCode::OK, "{}", direct.2);
    for path in ["/slots", "/props", "/lora-adapters", "/metrics", "/health", "/v1/health"] {
        let (status, _, text) = ask(user.listen, &format!("/@gpu1{path}"), None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{path}: {text}");
    }
    assert_eq!(ask(provider.listen, "/slots", None).await.0, StatusCode::OK, "its owner sees them");
    let (status, _, text) = ask(user.listen, "/v1/chat/completions", Some(&json!({"model": "nope"}))).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &error["error"]["message"]), (StatusCode::NOT_FOUND, &json!("model 'nope' not found")));
    assert_eq!(ask(user.listen, "/api/tags", None).await.2, r#"{"models":[]}"#);
    assert_eq!(ask(user.listen, "/api/version", None).await.0, StatusCode::SERVICE_UNAVAILABLE);
}

async fn one_that_is_killed_is_withdrawn_and_lent_again_when_it_has_loaded(needs: Needs) {
    let (mut server, provider, user) = mesh(&needs).await;
    server.kill();
    let killed = Instant::now();
    user.until_peer(provider.id(), |peer| !peer.provider).await;
    assert!(killed.elapsed() < Duration::from_secs(3), "{:?}", killed.elapsed());
    let mut again = Server::start(&needs, server.addr.port()).unwrap();
    again.until_loaded().unwrap();
    let loaded = Instant::now();
    user.until_lent(provider.id(), "SmolLM2").await;
    assert!(loaded.elapsed() < Duration::from_secs(10), "{:?}", loaded.elapsed());
    let answer = ask(user.listen, "/v1/chat/completions", Some(&chat(false))).await;
    assert_eq!(answer.0, StatusCode::OK, "{}", answer.2);
    until("its own server", || provider.view().ollama().healthy.then_some(())).await;
}
