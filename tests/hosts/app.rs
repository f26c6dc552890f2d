//! What stands on the hosts beside the nodes: Ollamas, and applications that know nothing of a mesh.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::fake_ollama::{FakeOllama, Settings, expected};
use crate::netns::{Host, Inside};

/// Where applications look for Ollama.
pub const OLLAMA: u16 = 11434;
/// Longer than anything here may take; what has a shorter limit says so.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The model that there is if a test does not care.
pub const MODEL: &str = "qwen3:0.6b";

/// An Ollama on a host, at its usual port.
pub struct Ollama {
    fake: Option<FakeOllama>,
    inside: Inside,
}

/// An application on a host.
#[derive(Clone)]
pub struct App {
    inside: Arc<Inside>,
    address: SocketAddr,
}

/// A streamed answer, as far as it has come.
pub struct Chat {
    pub status: u16,
    /// Which node says to have served it.
    pub peer: Option<String>,
    /// By what `ollana explain` knows it.
    pub request: Option<String>,
    model: String,
    prompt: String,
    tokens: usize,
    lines: Receiver<Result<Bytes, String>>,
    unread: Vec<u8>,
    /// The words so far.
    text: String,
}

/// What comes next of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Word(String),
    /// Ollama's last line.
    Done,
    /// The end of a body that is whole as HTTP.
    End,
    /// The end of one that is not.
    Break,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    Whole,
    /// After its head.
    Broken,
    /// With this status, for this reason.
    Refused(String),
}

/// An answer that has ended.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: Bytes,
}

// === impl Ollama ===

impl Ollama {
    /// One with the model of the tests, quick.
    pub fn start(host: &Host) -> Self {
        Self::with(host, &[MODEL], |_| {})
    }

    /// One with these models and settings.
    pub fn with(host: &Host, models: &[&str], settings: impl FnOnce(&mut Settings)) -> Self {
        Self::at(host, OLLAMA, models, settings)
    }

    /// The same at another port.
    pub fn at(host: &Host, port: u16, models: &[&str], change: impl FnOnce(&mut Settings)) -> Self {
        let inside = host.runtime();
        let models: Vec<String> = models.iter().map(|&name| name.to_owned()).collect();
        let mut settings = Settings { parallel: 64, ..Settings::default() };
        change(&mut settings);
        let fake = inside.run(async move {
            let models: Vec<_> = models.iter().map(String::as_str).collect();
            FakeOllama::start_at((Ipv4Addr::LOCALHOST, port).into(), &models, settings).await
        });
        Self { fake: Some(fake), inside }
    }

    /// As if it were killed.
    pub fn stop(&mut self) {
        let mut fake = self.fake.take().unwrap();
        self.fake = Some(self.inside.run(async move {
            fake.stop().await;
            fake
        }));
    }

    /// Starts it again at the same place.
    pub fn start_again(&mut self) {
        let mut fake = self.fake.take().unwrap();
        self.fake = Some(self.inside.run(async move {
            fake.start_again().await;
            fake
        }));
    }

    /// Waits until so many requests are being answered.
    pub fn until_running(&self, count: usize) {
        crate::node::until(PATIENCE, format!("{count} requests run"), || {
            (self.counts().running == count).then_some(())
        });
    }

    /// How many chats it was asked for.
    pub fn chats(&self) -> u64 {
        self.counts().of("/api/chat")
    }
}

impl Deref for Ollama {
    type Target = FakeOllama;

    fn deref(&self) -> &FakeOllama {
        self.fake.as_ref().unwrap()
    }
}

// === impl App ===

impl App {
    /// One that speaks to 127.0.0.1:11434, as all do.
    pub fn on(host: &Host) -> Self {
        Self::at(host, OLLAMA)
    }

    /// One that speaks to another port there.
    pub fn at(host: &Host, port: u16) -> Self {
        Self { inside: Arc::new(host.runtime()), address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    /// Asks the model of the tests; returns with the head of the answer.
    pub fn chat(&self, prompt: &str, tokens: usize) -> Result<Chat, String> {
        self.chat_with(MODEL, prompt, tokens, None)
    }

    /// The same with any model, and a node that is to answer.
    pub fn chat_with(&self, model: &str, prompt: &str, tokens: usize, peer: Option<&str>) -> Result<Chat, String> {
        let body = json!({"model": model, "messages": [{"role": "user", "content": prompt}], "options": {"num_predict": tokens}});
        let request = request(Method::POST, "/api/chat", peer, body.to_string());
        let (sender, lines) = channel();
        let (head, headed) = channel();
        let address = self.address;
        self.inside.start(async move {
            let mut response = match send(address, request).await {
                Ok(response) => response,
                Err(error) => return drop(head.send(Err(error))),
            };
            let _ = head.send(Ok((
                response.status().as_u16(),
                of(&response, "ollana-peer"),
                of(&response, "ollana-request"),
            )));
            while let Some(frame) = response.body_mut().frame().await {
                let data = frame.map_err(|error| error.to_string());
                let data = data.map(|frame| frame.into_data().unwrap_or_default());
                // Nobody listens any more: the application went away.
                if sender.send(data).is_err() {
                    return;
                }
            }
        });
        let (status, peer, request) =
            headed.recv_timeout(PATIENCE).map_err(|_| "no answer, and nothing else".to_owned())??;
        Ok(Chat {
            status,
            peer,
            request,
            model: model.to_owned(),
            prompt: prompt.to_owned(),
            tokens,
            lines,
            unread: Vec::new(),
            text: String::new(),
        })
    }

    /// A chat to its end, which must be right. The node that served it.
    pub fn is_answered(&self, prompt: &str) -> String {
        self.chat(prompt, 4).unwrap_or_else(|error| panic!("{prompt}: {error}")).must_be_right()
    }

    /// Asks until the answer is right, for at most so long.
    pub fn is_answered_within(&self, limit: Duration, prompt: &str) -> String {
        let since = Instant::now();
        loop {
            match self.chat(prompt, 4) {
                Ok(chat) if chat.status == 200 => return chat.must_be_right(),
                Ok(chat) => assert!(since.elapsed() < limit, "after {limit:?}: {}", chat.refusal()),
                Err(error) => assert!(since.elapsed() < limit, "after {limit:?}: {error}"),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One request without a body.
    pub fn get(&self, path: &str) -> Answer {
        let (address, request) = (self.address, request(Method::GET, path, None, String::new()));
        self.inside.run(async move {
            let asked = async {
                let response = send(address, request).await.unwrap();
                let status = response.status().as_u16();
                Answer { status, body: response.into_body().collect().await.unwrap().to_bytes() }
            };
            tokio::time::timeout(PATIENCE, asked).await.expect("an answer")
        })
    }

    /// The names of the models that `ollama list` would show.
    pub fn models(&self) -> Vec<String> {
        let listing: Value = serde_json::from_slice(&self.get("/api/tags").body).unwrap();
        let mut names: Vec<String> = listing["models"]
            .as_array()
            .unwrap()
            .iter()
            .map(|model| model["name"].as_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }
}

fn request(method: Method, path: &str, peer: Option<&str>, body: String) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "127.0.0.1:11434");
    let request = peer.into_iter().fold(request, |request, peer| request.header("ollana-peer", peer));
    request.header("content-type", "application/json").body(Full::from(body)).unwrap()
}

async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut client, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    client.send_request(request).await.map_err(|error| error.to_string())
}

fn of(response: &Response<Incoming>, header: &str) -> Option<String> {
    response.headers().get(header).map(|value| value.to_str().unwrap().to_owned())
}

// === impl Chat ===

impl Chat {
    /// What comes next, waited for.
    pub fn next(&mut self) -> Next {
        self.next_within(PATIENCE)
    }

    /// The same; panics if nothing comes.
    pub fn next_within(&mut self, limit: Duration) -> Next {
        assert_eq!(self.status, 200);
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let line: Value = serde_json::from_slice(&line).unwrap();
                return match line["done"].as_bool() {
                    Some(true) => Next::Done,
                    _ => {
                        let word = line["message"]["content"].as_str().expect("a word");
                        self.text += word;
                        Next::Word(word.to_owned())
                    }
                };
            }
            match self.lines.recv_timeout(limit) {
                Ok(Ok(data)) => self.unread.extend_from_slice(&data),
                Ok(Err(_)) => return Next::Break,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return Next::End,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    panic!("{}: nothing more within {limit:?}", self.prompt)
                }
            }
        }
    }

    /// Reads to the end, which must be a break, however far it came. What came must be right.
    pub fn breaks_within(mut self, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            match self.next_within(end.saturating_duration_since(Instant::now())) {
                Next::Word(_) => {}
                Next::Break => break,
                end => panic!("{}: it ended as {end:?}, not as a break", self.prompt),
            }
        }
        assert!(self.expected().starts_with(&self.text), "{}: wrong words", self.prompt);
    }

    /// Reads to the end: every word must be right and all be there. The node that served it.
    pub fn must_be_right(mut self) -> String {
        assert_eq!(self.status, 200, "{}: {}", self.prompt, self.refusal());
        loop {
            match self.next() {
                Next::Word(_) => {}
                Next::Done => break,
                end => panic!("{}: it ended as {end:?} after {:?}", self.prompt, self.text),
            }
        }
        assert_eq!(self.next(), Next::End);
        assert_eq!(self.text, self.expected(), "{}", self.prompt);
        self.peer.expect("an answer names its node")
    }

    fn expected(&self) -> String {
        expected(&self.model, &self.prompt, self.tokens)
    }

    /// How it ends, read to there; what came of it must be right.
    pub fn ends(mut self) -> End {
        if self.status != 200 {
            return End::Refused(self.refusal());
        }
        let end = loop {
            match self.next() {
                Next::Word(_) => {}
                Next::Done => break End::Whole,
                Next::End | Next::Break => break End::Broken,
            }
        };
        let right =
            if end == End::Whole { self.text == self.expected() } else { self.expected().starts_with(&self.text) };
        assert!(right, "{}: wrong words", self.prompt);
        end
    }

    /// The error that it is, with its status.
    pub fn refusal(&self) -> String {
        let body: Vec<u8> = self.lines.iter().flat_map(Result::unwrap_or_default).collect();
        format!("{} {}", self.status, String::from_utf8_lossy(&body))
    }
}
