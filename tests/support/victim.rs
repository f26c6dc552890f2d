//! A server that says it is an Ollama, answers 200 to whatever it is asked, and does as it is told with a request that says
//! `POISON`.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// The effect of a request that says `POISON`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Poison {
    /// The process ends: its port and all its connections are closed.
    Ends,
    /// The process ends, and a supervisor has another one at the port at once.
    Restarts,
    /// Its connection breaks off, as where only the handler failed.
    BreaksOff,
    /// It is answered 500.
    Fails,
    /// It is not answered.
    Hangs,
}

/// A request that came.
#[derive(Debug, Clone)]
pub struct Came {
    /// Method and target.
    pub line: String,
    /// Its whole body.
    pub body: String,
}

/// The server. Stops when it is dropped.
#[derive(Debug)]
pub struct Victim {
    addr: SocketAddr,
    came: watch::Sender<Vec<Came>>,
    alive: watch::Receiver<bool>,
    slow: watch::Sender<bool>,
    _running: AbortOnDropHandle<()>,
}

#[derive(Debug, Clone)]
struct Shared {
    poison: Poison,
    came: watch::Sender<Vec<Came>>,
    ends: mpsc::Sender<()>,
    version: Arc<Mutex<String>>,
    slow: watch::Receiver<bool>,
}

// === impl Victim ===

impl Victim {
    /// One with the model `m`.
    pub async fn start(poison: Poison) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (came, (alive_is, alive)) = (watch::Sender::new(Vec::new()), watch::channel(true));
        let slow = watch::Sender::new(false);
        let (ends, mut ended) = mpsc::channel(1);
        let version = Arc::new(Mutex::new("0.30.0".to_owned()));
        let shared = Shared { poison, came: came.clone(), ends, version, slow: slow.subscribe() };
        let running = tokio::spawn(async move {
            let mut listener = Some(listener);
            loop {
                let open = match listener.take() {
                    Some(listener) => listener,
                    None => TcpListener::bind(addr).await.unwrap(),
                };
                tokio::select! {
                    () = accept(&open, &shared) => {}
                    _ = ended.recv() => {}
                }
                if shared.poison != Poison::Restarts {
                    break;
                }
            }
            alive_is.send_replace(false);
        });
        Self { addr, came, alive, slow, _running: AbortOnDropHandle::new(running) }
    }

    /// Where it is, or was.
    pub fn url(&self) -> http::Uri {
        format!("http://{}", self.addr).parse().unwrap()
    }

    /// Whether its process has not ended.
    pub fn is_alive(&self) -> bool {
        *self.alive.borrow()
    }

    /// From now on it answers no prompt before it is told to.
    pub fn waits(&self, slow: bool) {
        self.slow.send_replace(slow);
    }

    /// The requests beside the questions of its own node.
    pub fn came(&self) -> Vec<Came> {
        self.came.borrow().iter().filter(|came| !OWN.contains(&came.line.as_str())).cloned().collect()
    }

    /// How often a request with this in its body came.
    pub fn hits(&self, text: &str) -> usize {
        self.came.borrow().iter().filter(|came| came.body.contains(text)).count()
    }

    /// Waits until that many requests with this in their body have come.
    pub async fn until_hit(&self, text: &str, times: usize) {
        let mut came = self.came.subscribe();
        let hit = came.wait_for(|came| came.iter().filter(|came| came.body.contains(text)).count() >= times);
        tokio::time::timeout(Duration::from_secs(30), hit).await.expect("it never comes").unwrap();
    }
}

/// The questions that a node asks its server by itself.
const OWN: [&str; 4] = ["GET /api/version", "GET /api/tags", "GET /api/ps", "GET /v1/models"];

async fn accept(listener: &TcpListener, shared: &Shared) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => drop(connections.spawn(serve(accepted.unwrap().0, shared.clone()))),
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Shared) {
    let (broken, mut breaks) = mpsc::channel(1);
    let service = service_fn(move |request| {
        let (shared, broken) = (shared.clone(), broken.clone());
        async move { Ok::<_, Infallible>(answer(&shared, &broken, request).await) }
    });
    tokio::select! {
        _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service) => {}
        _ = breaks.recv() => {}
    }
}

async fn answer(shared: &Shared, broken: &mpsc::Sender<()>, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let line = format!("{} {}", request.method(), request.uri());
    let body = read(request.into_body()).await;
    let poisoned = body.contains("POISON");
    shared.came.send_modify(|came| came.push(Came { line: line.clone(), body }));
    if poisoned {
        match shared.poison {
            Poison::Ends | Poison::Restarts => shared.ends.send(()).await.unwrap(),
            Poison::BreaksOff => broken.send(()).await.unwrap(),
            Poison::Fails => return json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"POISON"}"#),
            Poison::Hangs => {}
        }
        return std::future::pending().await;
    }
    if line.starts_with("POST /api/generate") {
        let _ = shared.slow.clone().wait_for(|slow| !slow).await;
    }
    let version = format!(r#"{{"version":"{}"}}"#, shared.version.lock().unwrap());
    match line.as_str() {
        "GET /api/version" => json(StatusCode::OK, &version),
        "GET /api/tags" => {
            json(StatusCode::OK, r#"{"models":[{"name":"m:latest","model":"m:latest","size":1000,"digest":"d"}]}"#)
        }
        "GET /api/ps" => json(StatusCode::OK, r#"{"models":[{"name":"m:latest","size":1000,"digest":"d"}]}"#),
        _ => json(StatusCode::OK, r#"{"model":"m","response":"done as asked","done":true}"#),
    }
}

/// A body; of one that says `POISON` as much as Go's decoder waits for, which is a whole value.
async fn read(mut body: Incoming) -> String {
    let mut read = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(data) = frame.data_ref() else { continue };
        read.extend_from_slice(data);
        let value = serde_json::Deserializer::from_slice(&read).into_iter::<serde_json::Value>().next();
        if matches!(value, Some(Ok(_))) && String::from_utf8_lossy(&read).contains("POISON") {
            break;
        }
    }
    String::from_utf8_lossy(&read).into_owned()
}

fn json(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("content-type", "application/json");
    response.body(Full::from(text.to_owned())).unwrap()
}
