//! Simulated servers that speak the OpenAI API and nothing of Ollama's: what a mesh can tell of llama.cpp's
//! `llama-server` (as build 10068 answered), of vLLM and of LM Studio.
//!
//! Beside inference each has what only its owner should reach: `/slots`, `/props`, `/v1/load_lora_adapter`, `/api/v0/…`.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// Which program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    LlamaServer,
    Vllm,
    LmStudio,
}

/// A request that reached it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method and target, `GET /v1/models`.
    pub line: String,
    /// Whole, once it has come.
    pub body: String,
}

/// The server. Stops when it is dropped.
pub struct OpenAiOnly {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
}

struct Shared {
    flavour: Flavour,
    models: Mutex<Vec<String>>,
    loading: watch::Sender<bool>,
    /// Takes one connection after the other, as a server with one thread does.
    one_thread: bool,
    seen: watch::Sender<Vec<Seen>>,
}

// === impl OpenAiOnly ===

impl OpenAiOnly {
    pub async fn start(flavour: Flavour, models: &[&str]) -> Self {
        Self::start_at((std::net::Ipv4Addr::LOCALHOST, 0).into(), flavour, models, false).await
    }

    pub async fn start_at(addr: SocketAddr, flavour: Flavour, models: &[&str], one_thread: bool) -> Self {
        let shared = Arc::new(Shared {
            flavour,
            models: Mutex::new(models.iter().map(|model| (*model).to_owned()).collect()),
            loading: watch::Sender::new(false),
            one_thread,
            seen: watch::Sender::default(),
        });
        let mut server = Self { addr, shared, server: None };
        server.start_again().await;
        server
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> http::Uri {
        format!("http://{}", self.addr).parse().unwrap()
    }

    /// As a killed process: the port and all connections are closed at once.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("its port is free");
        self.addr = listener.local_addr().unwrap();
        self.server = Some(tokio::spawn(serve(listener, self.shared.clone())));
    }

    /// Whether it still loads its model, and answers 503 to everything.
    pub fn load(&self, loading: bool) {
        self.shared.loading.send_replace(loading);
    }

    pub fn models(&self, models: &[&str]) {
        *self.shared.models.lock().unwrap() = models.iter().map(|model| (*model).to_owned()).collect();
    }

    /// What has reached it.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.borrow().clone()
    }

    /// How often this was asked.
    pub fn count(&self, line: &str) -> usize {
        self.seen().iter().filter(|seen| seen.line == line).count()
    }

    /// Waits until this has been asked so often.
    pub async fn until(&self, line: &str, times: usize) {
        let mut seen = self.shared.seen.subscribe();
        let enough = seen.wait_for(|seen| seen.iter().filter(|seen| seen.line == line).count() >= times);
        tokio::time::timeout(Duration::from_secs(30), enough).await.expect("it is asked").unwrap();
    }
}

impl Drop for OpenAiOnly {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

/// What `/v1/models` says, byte for byte.
pub fn listing(flavour: Flavour, models: &[&str]) -> String {
    let entries: Vec<String> = models.iter().map(|model| entry(flavour, model)).collect();
    let entries = entries.join(", ");
    match flavour {
        // llama-server's has Ollama's list beside OpenAI's.
        Flavour::LlamaServer => {
            let names: Vec<Value> = models.iter().map(|model| json!({"name": model, "model": model})).collect();
            format!(r#"{{"models":{},"object":"list","data":[{entries}]}}"#, Value::from(names))
        }
        Flavour::Vllm => format!(r#"{{"object":"list","data":[{entries}]}}"#),
        Flavour::LmStudio => format!("{{\n  \"data\": [{entries}],\n  \"object\": \"list\"\n}}"),
    }
}

/// One entry of it, byte for byte, with blanks and an order that no other writer of JSON would keep.
pub fn entry(flavour: Flavour, model: &str) -> String {
    match flavour {
        Flavour::LlamaServer => format!(
            r#"{{"id":"{model}","aliases":["{model}"],"tags":[],"object":"model","created":1795379205,"owned_by":"llamacpp","meta":{{"n_vocab":49152,"ftype":"Q4_1"}}}}"#
        ),
        Flavour::Vllm => format!(
            r#"{{"id":"{model}","object":"model","created":1700000000,"owned_by":"vllm","root":"{model}","parent":null,"max_model_len":2048}}"#
        ),
        Flavour::LmStudio => {
            format!(
                "{{\n      \"id\": \"{model}\",\n      \"object\": \"model\",\n      \"owned_by\": \"organization_owner\"\n    }}"
            )
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if !shared.one_thread || connections.is_empty() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                let shared = shared.clone();
                connections.spawn(async move {
                    let keep_alive = !shared.one_thread;
                    let service = service_fn(move |request| {
                        let shared = shared.clone();
                        async move { Ok::<_, Infallible>(shared.answer(request).await) }
                    });
                    let mut builder = http1::Builder::new();
                    let _ = builder.keep_alive(keep_alive).serve_connection(TokioIo::new(stream), service).await;
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

// === impl Shared ===

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let line = format!("{} {}", parts.method, parts.uri);
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        self.seen.send_modify(|seen| seen.push(Seen { line: line.clone(), body: body.clone() }));
        if *self.loading.borrow() {
            return said(503, r#"{"error":{"message":"Loading model","type":"unavailable_error","code":503}}"#);
        }
        let models = self.models.lock().unwrap().clone();
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let asked = body["model"].as_str().unwrap_or_default();
        match (line.as_str(), self.flavour) {
            ("GET /v1/models", flavour) => said(200, listing(flavour, &models)),
            ("HEAD /v1/models", _) => said(200, ""),
            ("POST /v1/chat/completions" | "POST /v1/completions" | "POST /v1/embeddings", Flavour::Vllm)
                if !models.contains(&asked) =>
            {
                let error = format!("The model `{asked}` does not exist.");
                said(
                    404,
                    json!({"error":{"message":error,"type":"NotFoundError","param":"model","code":404}}).to_string(),
                )
            }
            ("POST /v1/chat/completions", _) if body["stream"] == true => stream(asked),
            ("POST /v1/chat/completions", _) => said(
                200,
                json!({"object":"chat.completion","model":asked,"choices":[{"message":{"content":"hello there"}}]})
                    .to_string(),
            ),
            ("POST /v1/embeddings", _) => {
                said(200, json!({"object":"list","model":asked,"data":[{"embedding":[0.5]}]}).to_string())
            }
            ("POST /v1/rerank" | "POST /v1/messages/count_tokens" | "POST /v1/messages", _) => {
                said(200, r#"{"ok":true}"#)
            }
            ("GET /slots" | "GET /props" | "POST /completion" | "GET /health", Flavour::LlamaServer)
            | ("POST /v1/load_lora_adapter", Flavour::Vllm)
            | ("GET /api/v0/models", Flavour::LmStudio) => said(200, r#"{"secret":"the owner's"}"#),
            // As LM Studio answers whatever it does not know.
            (_, Flavour::LmStudio) => {
                said(200, json!({"error": format!("Unexpected endpoint or method. ({line})")}).to_string())
            }
            (_, Flavour::LlamaServer) => {
                said(404, r#"{"error":{"message":"File Not Found","type":"not_found_error","code":404}}"#)
            }
            (_, Flavour::Vllm) => said(404, r#"{"detail":"Not Found"}"#),
        }
    }
}

fn stream(model: &str) -> Answer {
    let event = |text: &str| {
        let chunk = json!({"object":"chat.completion.chunk","model":model,"choices":[{"delta":{"content":text}}]});
        format!("data: {chunk}\n\n")
    };
    let events = vec![event("hello"), event(" there"), "data: [DONE]\n\n".to_owned()];
    let frames = futures_util::stream::iter(events).map(|event| Ok(Frame::data(Bytes::from(event))));
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    answer.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
    answer
}

fn said(status: u16, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()).boxed_unsync());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer.headers_mut().insert("content-type", "application/json".parse().unwrap());
    answer
}

use futures_util::StreamExt as _;
