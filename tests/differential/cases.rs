//! The table: every route by every method, and every odd form that an application may choose.

mod framing;
mod paths;
mod refused;
mod routes;
mod streams;

use sha2::{Digest as _, Sha256};

use super::fake_ollama::{FakeOllama, Settings};
use super::wire::Script;

/// Which Ollama stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Simulated,
    Real,
}

pub const EITHER: &[Kind] = &[Kind::Simulated, Kind::Real];

/// Cases that belong together.
pub struct Group {
    /// What they show.
    pub name: &'static str,
    /// Which Ollama is asked.
    pub of: &'static [Kind],
    pub cases: Vec<Case>,
}

/// One conversation.
pub struct Case {
    pub name: String,
    script: Box<dyn Fn(Side) -> Script + Send + Sync>,
    /// What Go's own server says before any router, which the simulated Ollama has no part in.
    pub said: Option<&'static [u8]>,
    /// Sets the simulated Ollama up.
    pub set: fn(&FakeOllama),
    /// Whether the moments of its pieces are compared too.
    pub in_time: bool,
}

/// Who is asked: for what can be done only once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Direct,
    Mesh,
}

/// The model that is there.
pub const MODEL: &str = "smollm2";

pub fn groups() -> Vec<Group> {
    vec![
        routes::every_route(),
        routes::model_names(),
        routes::managed(),
        paths::odd_paths(),
        paths::web_pages(),
        framing::bodies(),
        framing::connections(),
        framing::half_closed(),
        framing::fields(),
        refused::refused(),
        streams::streams(),
        streams::simulated_streams(),
    ]
}

// === impl Case ===

impl Case {
    pub fn new(name: impl Into<String>, script: Script) -> Self {
        Self::each(name, move |_| script.clone())
    }

    /// One that is not the same for both sides.
    pub fn each(name: impl Into<String>, script: impl Fn(Side) -> Script + Send + Sync + 'static) -> Self {
        let set: fn(&FakeOllama) = |fake| fake.set(|settings| *settings = Settings::default());
        Self { name: name.into(), script: Box::new(script), said: None, set, in_time: false }
    }

    /// With the simulated Ollama set up like this.
    pub fn with(mut self, set: fn(&FakeOllama)) -> Self {
        self.set = set;
        self
    }

    /// With its moments.
    pub fn in_time(mut self) -> Self {
        self.in_time = true;
        self
    }

    /// With what Go says to it, where the Ollama is a simulated one.
    pub fn said(mut self, said: &'static [u8]) -> Self {
        self.said = Some(said);
        self
    }

    pub fn script(&self, side: Side) -> Script {
        (self.script)(side)
    }
}

/// A request with these lines in its head; the first is its method and target. `Host` is put in.
pub fn head(lines: &str) -> Vec<u8> {
    let mut lines = lines.lines();
    let first = lines.next().unwrap_or_default();
    let mut head = format!("{first} HTTP/1.1\r\nHost: 127.0.0.1\r\n");
    lines.for_each(|line| head.push_str(&format!("{line}\r\n")));
    head.push_str("\r\n");
    head.into_bytes()
}

/// The same with a body and its length.
pub fn with_body(lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut request = head(&format!("{lines}\nContent-Length: {}", body.len()));
    request.extend(body);
    request
}

/// The same with a body that says what it is.
pub fn json(lines: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    with_body(&format!("{lines}\nContent-Type: application/json"), body)
}

/// A short answer that is the same each time.
pub fn chat(more: &str) -> String {
    format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"Count to five."}}],"options":{{"num_predict":4,"seed":1,"temperature":0}}{more}}}"#
    )
}

pub fn generate(more: &str) -> String {
    format!(
        r#"{{"model":"{MODEL}","prompt":"Count to five.","options":{{"num_predict":4,"seed":1,"temperature":0}}{more}}}"#
    )
}

/// The same for `/v1`.
pub fn v1_chat(more: &str) -> String {
    format!(
        r#"{{"model":"{MODEL}","messages":[{{"role":"user","content":"Count to five."}}],"max_tokens":4,"seed":1,"temperature":0{more}}}"#
    )
}

/// What Ollama calls a blob with these bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
