//! A simulated Ollama's HTTP, lean: what a node and an application ask of it here, over the model of [`server`](super::server).
//!
//! An answer has a chunk for its first token, one for every [`PIECE`] tokens, and the last line: an Ollama's has one for
//! every token, which no machine of two processors keeps up with at twenty times the speed. The durations in the last line are real ones, as a node measures time: the simulated ones
//! divided by the tempo. `prompt_eval_count` is the whole prompt's even if part of it was in the cache, and
//! `prompt_eval_duration` is what the rest took, as Ollama's runner says it. The wait for a slot is in `total_duration`
//! alone, the wait for the model in `load_duration`.
//!
//! A conversation is told by the words that its first message begins with ([`OPENING`]), a token is four bytes, and the
//! answer is as long as `options.num_predict` asks.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use futures_util::stream;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::clock::Clock;
use super::fleet::{Desk, Step};
use super::server::{Job, Stages};
use super::workload::model_name;

/// Tokens of a piece of an answer.
const PIECE: usize = 32;

/// Bytes that a token takes.
pub const TOKEN: usize = 4;
/// When a model in memory is unloaded if nobody uses it: here only to make way for another.
const KEPT: &str = "2318-11-26T00:00:00Z";
/// What the first message of a conversation begins with, before its number and a blank.
pub const OPENING: &str = "conversation ";

/// A body as the bench sends and gets it.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What is read of a request. What does not matter here is left out.
#[derive(Deserialize)]
struct Asked {
    model: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    messages: Vec<Message>,
    options: Options,
}

#[derive(Deserialize)]
struct Message {
    content: String,
}

#[derive(Deserialize)]
struct Options {
    num_predict: u32,
}

struct Ollama {
    desk: Desk,
    models: Vec<usize>,
    clock: Clock,
}

/// Serves at an address that is free, until the handle is dropped.
pub async fn serve(desk: Desk, models: Vec<usize>, clock: Clock) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let ollama = std::sync::Arc::new(Ollama { desk, models, clock });
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            stream.set_nodelay(true).unwrap();
            let ollama = ollama.clone();
            connections.spawn(async move {
                let service = service_fn(move |request| {
                    let ollama = ollama.clone();
                    async move { Ok::<_, Infallible>(ollama.answer(request).await) }
                });
                // A client that goes away is its own business.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    (address, AbortOnDropHandle::new(task))
}

// === impl Ollama ===

impl Ollama {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        match (request.method(), request.uri().path()) {
            (&Method::GET, "/api/version") => json(StatusCode::OK, r#"{"version":"0.24.0"}"#.to_owned()),
            (&Method::GET, "/api/tags") => json(StatusCode::OK, listing(self.models.iter().copied())),
            (&Method::GET, "/api/ps") => {
                let loaded = self.models.iter().copied().filter(|model| self.desk.is_loaded(*model));
                json(StatusCode::OK, listing(loaded))
            }
            (&Method::POST, path @ ("/api/chat" | "/api/generate")) => {
                let chat = path == "/api/chat";
                let Ok(body) = request.into_body().collect().await.map(|body| body.to_bytes()) else {
                    return json(StatusCode::BAD_REQUEST, r#"{"error":"broken off"}"#.to_owned());
                };
                match self.job(&body) {
                    Some(job) => self.work(job, chat).await,
                    None => json(StatusCode::BAD_REQUEST, r#"{"error":"not as this bench asks"}"#.to_owned()),
                }
            }
            (_, path) => json(StatusCode::NOT_FOUND, format!(r#"{{"error":"{path} is not simulated"}}"#)),
        }
    }

    fn job(&self, body: &[u8]) -> Option<Job> {
        let asked: Asked = serde_json::from_slice(body).ok()?;
        let texts = || std::iter::once(&asked.prompt).chain(asked.messages.iter().map(|message| &message.content));
        let opening = texts().find(|text| !text.is_empty())?.strip_prefix(OPENING)?;
        let bytes: usize = texts().map(String::len).sum();
        Some(Job {
            id: 0,
            conversation: opening.split(' ').next()?.parse().ok()?,
            model: self.models.iter().copied().find(|model| model_name(*model) == asked.model)?,
            prompt: (bytes / TOKEN) as f64,
            output: f64::from(asked.options.num_predict),
        })
    }

    async fn work(&self, job: Job, chat: bool) -> Response<Body> {
        let mut progress = self.desk.submit(job);
        // The head comes with the first token, and not before.
        // What is said of it before is nothing yet.
        let Some(Step::First) = progress.next().await else {
            return json(StatusCode::INTERNAL_SERVER_ERROR, r#"{"error":"the server is gone"}"#.to_owned());
        };
        let clock = self.clock.clone();
        // What was said, what there is to say, and what is to come.
        let chunks = stream::unfold((0, 0, Some(progress)), move |(said, mut made, rest)| {
            let clock = clock.clone();
            async move {
                let frame = |line: String| Ok(Frame::data(Bytes::from(line)));
                let mut progress = rest?;
                if said == 0 {
                    return Some((frame(line(&job, chat, 1, "")), (1, 1, Some(progress))));
                }
                loop {
                    if made >= said + PIECE {
                        let piece = frame(line(&job, chat, PIECE, ""));
                        return Some((piece, (said + PIECE, made, Some(progress))));
                    }
                    match progress.next().await? {
                        Step::First => {}
                        Step::Said(tokens) => made = made.max(tokens),
                        Step::Done(stages) => {
                            let left = (job.output as usize).saturating_sub(said);
                            let last = line(&job, chat, left, &ending(&job, &stages, &clock));
                            return Some((frame(last), (said, made, None)));
                        }
                    }
                }
            }
        });
        let mut response = Response::new(StreamBody::new(chunks).boxed_unsync());
        response.headers_mut().insert(CONTENT_TYPE, "application/x-ndjson".parse().unwrap());
        response
    }
}

fn json(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Full::from(body).boxed_unsync());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, "application/json; charset=utf-8".parse().unwrap());
    response
}

fn listing(models: impl Iterator<Item = usize>) -> String {
    let entries: Vec<String> = models
        .map(|model| {
            let name = model_name(model);
            let size = super::workload::GIGABYTES[model] * 1e9;
            // Every server has the same weights under a name.
            let digest = format!("{:064x}", model + 1);
            format!(
                r#"{{"name":"{name}","model":"{name}","size":{size},"size_vram":{size},"digest":"{digest}","expires_at":"{KEPT}"}}"#
            )
        })
        .collect();
    format!(r#"{{"models":[{}]}}"#, entries.join(","))
}

/// One line of an answer, with so many tokens.
fn line(job: &Job, chat: bool, tokens: usize, ending: &str) -> String {
    let mut line = format!(r#"{{"model":"{}","created_at":"2025-01-01T00:00:00Z","#, model_name(job.model));
    let text = "word".repeat(tokens);
    let done = !ending.is_empty();
    let written = match chat {
        true => write!(line, r#""message":{{"role":"assistant","content":"{text}"}},"done":{done}{ending}}}"#),
        false => write!(line, r#""response":"{text}","done":{done}{ending}}}"#),
    };
    written.expect("memory");
    line.push('\n');
    line
}

/// What the last line says beside: counts, and durations in nanoseconds of real time.
fn ending(job: &Job, stages: &Stages, clock: &Clock) -> String {
    let nanoseconds = |from: f64, to: f64| clock.real(to - from).as_nanos();
    format!(
        r#","done_reason":"stop","total_duration":{},"load_duration":{},"prompt_eval_count":{},"prompt_eval_duration":{},"eval_count":{},"eval_duration":{}"#,
        nanoseconds(stages.came, stages.done),
        nanoseconds(stages.came, stages.ready),
        job.prompt,
        nanoseconds(stages.started, stages.first),
        job.output,
        nanoseconds(stages.first, stages.done),
    )
}
