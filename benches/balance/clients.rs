//! The applications: they ask what the sessions say, when they say it, and note when the answers come.
//!
//! A chat sends its whole transcript with each turn, as every application of Ollama does; what stands alone goes to
//! `/api/generate`. A token is four bytes, so that a prompt has as many bytes as whoever guesses at its length expects.

use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::task::JoinSet;

use super::clock::Clock;
use super::figures::Outcome;
use super::ollama::{OPENING, TOKEN};
use super::workload::{CONTEXT, Random, Session, Span, Turn, model_name};

/// What only the last line of an answer has.
const LAST_LINE: &[u8] = br#""done":true"#;

/// A request without a place to go yet; its URI is the path alone.
pub type Question = Request<Full<Bytes>>;
/// A client of HTTP that keeps its connections.
pub type Http = legacy::Client<HttpConnector, Full<Bytes>>;

/// An answer and whatever counts it, until both are dropped.
pub struct Answer {
    pub response: Response<Incoming>,
    pub counted: Box<dyn Send>,
}

/// A way from the clients to the servers.
pub trait Way: Send + Sync + 'static {
    /// Asks for this client.
    fn ask(&self, client: usize, question: Question) -> Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>>;
}

/// What was seen, and of what failed why.
#[derive(Default)]
pub struct Seen {
    pub outcomes: Vec<Outcome>,
    pub failures: Vec<String>,
}

pub fn http() -> Http {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    legacy::Client::builder(TokioExecutor::new()).build(connector)
}

/// The question at an address.
pub fn at(address: std::net::SocketAddr, mut question: Question) -> Question {
    *question.uri_mut() = format!("http://{address}{}", question.uri().path()).parse().expect("an address and a path");
    question
}

/// Puts the sessions to the servers until all that counts is answered. The clock runs already.
pub async fn replay(sessions: &[Session], span: Span, clock: &Clock, way: Arc<dyn Way>) -> Seen {
    let seen = Arc::<Mutex<Seen>>::default();
    let mut people = JoinSet::new();
    for session in sessions {
        let (session, clock, way, seen) = (session.clone(), clock.clone(), Arc::clone(&way), Arc::clone(&seen));
        people.spawn(async move { converse(&session, span, &clock, &*way, &seen).await });
    }
    people.join_all().await;
    let mut seen = seen.lock().unwrap();
    std::mem::take(&mut *seen)
}

/// One session. Turns that would begin when nothing counts any more are left out.
async fn converse(session: &Session, span: Span, clock: &Clock, way: &dyn Way, seen: &Mutex<Seen>) {
    let mut transcript = Transcript::new(session);
    let mut begins = session.begins;
    for turn in &session.turns {
        if begins >= span.end || transcript.tokens >= CONTEXT {
            return;
        }
        clock.sleep_until(begins).await;
        let question = transcript.ask(turn);
        let mut outcome = Outcome { issued: clock.now(), first: None, done: None };
        let result = ask(session.client, question, clock, way, &mut outcome).await;
        let failed = result.is_err();
        {
            let mut seen = seen.lock().unwrap();
            seen.outcomes.push(outcome);
            seen.failures.extend(result.err());
        }
        if failed {
            return;
        }
        transcript.answered(turn);
        begins = clock.now() + turn.think;
    }
}

async fn ask(
    client: usize,
    question: Question,
    clock: &Clock,
    way: &dyn Way,
    outcome: &mut Outcome,
) -> Result<(), String> {
    let Answer { response, counted } = way.ask(client, question).await?;
    let status = response.status();
    let mut body = response.into_body();
    if status != StatusCode::OK {
        let why = body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned());
        return Err(format!("{status}: {}", why.unwrap_or_default()));
    }
    let mut said = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(|error| error.to_string())?.into_data() {
            outcome.first.get_or_insert_with(|| clock.now());
            said.extend_from_slice(&data);
        }
    }
    drop(counted);
    if !said.windows(LAST_LINE.len()).any(|piece| piece == LAST_LINE) {
        return Err("the answer ended before its end".to_owned());
    }
    outcome.done = Some(clock.now());
    Ok(())
}

/// What was said in a conversation so far.
struct Transcript<'a> {
    session: &'a Session,
    /// The messages as JSON, without the brackets around them.
    messages: String,
    /// Prompts and answers so far.
    tokens: f64,
    words: Random,
}

// === impl Transcript ===

impl<'a> Transcript<'a> {
    fn new(session: &'a Session) -> Self {
        let words = Random::new(u64::from(session.conversation));
        Self { session, messages: String::new(), tokens: 0.0, words }
    }

    fn ask(&mut self, turn: &Turn) -> Question {
        let text = self.text(turn.prompt as usize * TOKEN);
        let (model, output) = (model_name(self.session.model), turn.output);
        let options = format!(r#""options":{{"num_predict":{output}}}"#);
        let (path, body) = match self.session.chat {
            true => {
                self.say("user", &text);
                let messages = &self.messages;
                ("/api/chat", format!(r#"{{"model":"{model}","messages":[{messages}],{options}}}"#))
            }
            false => ("/api/generate", format!(r#"{{"model":"{model}","prompt":"{text}",{options}}}"#)),
        };
        self.tokens += turn.prompt;
        Request::post(path).header(CONTENT_TYPE, "application/json").body(body.into()).expect("a path")
    }

    fn answered(&mut self, turn: &Turn) {
        self.tokens += turn.output;
        let text = "word".repeat(turn.output as usize);
        self.say("assistant", &text);
    }

    fn say(&mut self, role: &str, text: &str) {
        let comma = if self.messages.is_empty() { "" } else { "," };
        write!(self.messages, r#"{comma}{{"role":"{role}","content":"{text}"}}"#).expect("memory");
    }

    /// So many bytes that nobody else says.
    fn text(&mut self, bytes: usize) -> String {
        let mut text = String::with_capacity(bytes + 16);
        if self.tokens == 0.0 {
            write!(text, "{OPENING}{} ", self.session.conversation).expect("memory");
        }
        while text.len() < bytes {
            write!(text, "{:x} ", self.words.next()).expect("memory");
        }
        text.truncate(bytes);
        text
    }
}

/// What clients are told of an error.
pub fn failure(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
