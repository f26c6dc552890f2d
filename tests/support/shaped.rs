//! A server whose every answer stands in a table, and the tables of the servers that people run: rebuilt from their
//! sources and documents, as far as a node looks at them.
//!
//! It has threads of its own and needs no runtime. [`Shaped::becomes`] makes another server of it, as if one process had
//! ended at its port and another had started there.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// How it answers one route.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    /// How long it takes.
    pub delay: Duration,
    /// Beside `content-type: application/json` and the length.
    pub headers: Vec<(&'static str, String)>,
}

/// Its answers, by method and path (`GET /api/tags`); whatever else is asked is what `*` says, or a 404.
#[derive(Debug, Clone, Default)]
pub struct Table(BTreeMap<String, Answer>);

/// The server. Stops when it is dropped.
pub struct Shaped {
    addr: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    table: Table,
    seen: Vec<String>,
    open: Vec<TcpStream>,
    /// It takes no more connections.
    stops: bool,
}

/// 200 with this body.
pub fn json(body: impl Into<String>) -> Answer {
    Answer { status: 200, body: body.into(), ..Answer::default() }
}

/// This status, with a body like any.
pub fn status(status: u16) -> Answer {
    Answer { status, body: r#"{"error":"no"}"#.to_owned(), ..Answer::default() }
}

// === impl Answer ===

impl Answer {
    pub fn after(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub fn with(mut self, header: &'static str, value: &str) -> Self {
        self.headers.push((header, value.to_owned()));
        self
    }
}

// === impl Table ===

impl Table {
    pub fn of<const N: usize>(routes: [(&str, Answer); N]) -> Self {
        Self(routes.into_iter().map(|(route, answer)| (route.to_owned(), answer)).collect())
    }

    /// The same with another answer.
    pub fn but(mut self, route: &str, answer: Answer) -> Self {
        self.0.insert(route.to_owned(), answer);
        self
    }

    /// The same without a route.
    pub fn without(mut self, route: &str) -> Self {
        self.0.remove(route);
        self
    }

    fn answer(&self, route: &str) -> Answer {
        let path = route.split('?').next().unwrap_or_default();
        self.0.get(path).or_else(|| self.0.get("*")).cloned().unwrap_or_else(|| status(404))
    }
}

// === impl Shaped ===

impl Shaped {
    pub fn start(table: Table) -> Self {
        Self::start_at(SocketAddr::from(([127, 0, 0, 1], 0)), table)
    }

    pub fn start_at(addr: SocketAddr, table: Table) -> Self {
        let shared = Arc::new(Mutex::new(Shared { table, ..Shared::default() }));
        let mut server = Self { addr, shared, accepting: None };
        server.listen();
        server
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers from now on by another table.
    pub fn answers(&self, table: Table) {
        self.shared.lock().unwrap().table = table;
    }

    /// Answers one route from now on so.
    pub fn answer(&self, route: &str, answer: Answer) {
        self.shared.lock().unwrap().table.0.insert(route.to_owned(), answer);
    }

    /// Ends, and another server starts at its port once whoever watches it can have seen that.
    pub fn becomes(&mut self, table: Table) {
        self.stop();
        thread::sleep(Duration::from_millis(700));
        self.answers(table);
        self.listen();
    }

    /// Closes its port and all connections, as the end of its process does.
    pub fn stop(&mut self) {
        {
            let mut shared = self.shared.lock().unwrap();
            shared.stops = true;
            for stream in shared.open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        }
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }

    pub fn listen(&mut self) {
        let listener = TcpListener::bind(self.addr).expect("its port is free");
        self.addr = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        self.shared.lock().unwrap().stops = false;
        let shared = Arc::clone(&self.shared);
        self.accepting = Some(thread::spawn(move || accept(&listener, &shared)));
    }

    /// The requests that it got, as `GET /api/tags`.
    pub fn seen(&self) -> Vec<String> {
        self.shared.lock().unwrap().seen.clone()
    }

    pub fn count(&self, route: &str) -> usize {
        self.seen().iter().filter(|seen| *seen == route).count()
    }
}

impl Drop for Shaped {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Looks by itself whether it shall stop: a connection that woke it could not be made from another network namespace.
fn accept(listener: &TcpListener, shared: &Arc<Mutex<Shared>>) {
    loop {
        let accepted = listener.accept();
        let mut known = shared.lock().unwrap();
        if known.stops {
            return;
        }
        let Ok((stream, _)) = accepted else {
            drop(known);
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        stream.set_nonblocking(false).unwrap();
        known.open.push(stream.try_clone().unwrap());
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            let _ = serve(&stream, &shared);
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// One request after the other, until somebody closes.
fn serve(stream: &TcpStream, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let field = field.trim_end().to_ascii_lowercase();
            if field.is_empty() {
                break;
            }
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let route = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let answer = {
            let mut shared = shared.lock().unwrap();
            shared.seen.push(route.clone());
            shared.table.answer(&route)
        };
        thread::sleep(answer.delay);
        let mut head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
        if !answer.headers.iter().any(|(name, _)| *name == "content-type") {
            head += "content-type: application/json\r\n";
        }
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        if !route.starts_with("HEAD ") {
            head += &answer.body;
        }
        writer.write_all(head.as_bytes())?;
    }
}

/// An answer of Ollama's API to a chat, and to a generation.
fn with_ollama_chat(table: Table) -> Table {
    let done = r#""done":true,"done_reason":"stop","total_duration":5000000,"load_duration":1000000,"prompt_eval_count":3,"prompt_eval_duration":1000000,"eval_count":2,"eval_duration":2000000"#;
    table
        .but(
            "POST /api/chat",
            json(format!(r#"{{"model":"m","created_at":"2026-11-22T12:45:47Z","message":{{"role":"assistant","content":"hello"}},{done}}}"#)),
        )
        .but("POST /api/generate", json(format!(r#"{{"model":"m","created_at":"2026-11-22T12:45:47Z","response":"hello",{done}}}"#)))
}

/// An answer of OpenAI's API to a chat.
fn with_openai_chat(table: Table) -> Table {
    table.but(
        "POST /v1/chat/completions",
        json(r#"{"id":"c1","object":"chat.completion","created":1795379205,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}"#),
    )
}

const DIGEST: &str = "a150d2275ef795338e39efd0468b6f56894707af2638a41fb1566b315d993a7a";

/// An Ollama, which lists `smollm2:latest` and has it in memory.
pub fn ollama(version: &str) -> Table {
    let details = r#""details":{"parent_model":"","format":"gguf","family":"llama","families":["llama"],"parameter_size":"134.52M","quantization_level":"Q4_1"}"#;
    let entry = |more: &str| {
        format!(
            r#"{{"models":[{{"name":"smollm2:latest","model":"smollm2:latest","digest":"{DIGEST}",{details},{more}}}]}}"#
        )
    };
    let table = Table::of([
        ("GET /", Answer { body: "Ollama is running".to_owned(), ..json("") }.with("content-type", "text/plain")),
        ("GET /api/version", json(format!(r#"{{"version":"{version}"}}"#))),
        ("GET /api/tags", json(entry(r#""modified_at":"2026-11-22T12:45:47.243547182Z","size":98363007"#))),
        (
            "GET /api/ps",
            json(entry(
                r#""size":190948608,"expires_at":"2318-11-22T12:50:48.012548507Z","size_vram":0,"context_length":4096"#,
            )),
        ),
        (
            "GET /v1/models",
            json(
                "{\"object\":\"list\",\"data\":[{\"id\":\"smollm2:latest\",\"object\":\"model\",\"created\":1795351547,\"owned_by\":\"library\"}]}\n",
            ),
        ),
    ]);
    with_openai_chat(with_ollama_chat(table))
}

/// llama.cpp's `llama-server`: no version, and `/api/tags` is its list for OpenAI's API.
pub fn llama_server() -> Table {
    let list = r#"{"models":[{"name":"qwen","model":"qwen","modified_at":"","size":"","digest":"","type":"model","description":"","tags":[""],"capabilities":["completion"],"parameters":"","details":{"parent_model":"","format":"gguf","family":"","families":[""],"parameter_size":"","quantization_level":""}}],"object":"list","data":[{"id":"qwen","aliases":["qwen","gpt-3.5-turbo"],"tags":[],"object":"model","created":1795379205,"owned_by":"llamacpp","meta":{"n_vocab":49152}}]}"#;
    with_openai_chat(Table::of([
        ("GET /v1/models", json(list)),
        ("GET /api/tags", json(list)),
        ("GET /health", json(r#"{"status":"ok"}"#)),
        (
            "*",
            Answer {
                status: 404,
                ..json(r#"{"error":{"message":"File Not Found","type":"not_found_error","code":404}}"#)
            },
        ),
    ]))
}

/// llama-swap: a version and no `/api/tags`.
pub fn llama_swap() -> Table {
    with_openai_chat(Table::of([
        ("GET /api/version", json(r#"{"version":"v210","commit":"abcd","build_date":"2026-08-26"}"#)),
        (
            "GET /v1/models",
            json(
                r#"{"data":[{"id":"qwen","object":"model","created":1795379205,"owned_by":"llama-swap","meta":{"llamaswap":{"aliases":["gpt-4"],"port":9001}}},{"id":"gemma","object":"model","created":1795379205,"owned_by":"llama-swap"}],"object":"list"}"#,
            ),
        ),
        ("*", Answer { body: "404 page not found\n".to_owned(), ..status(404) }.with("content-type", "text/plain")),
    ]))
}

/// vLLM.
pub fn vllm() -> Table {
    with_openai_chat(Table::of([
        (
            "GET /v1/models",
            json(r#"{"object":"list","data":[{"id":"Qwen/Qwen3-8B","object":"model","created":1795379205,"owned_by":"vllm","root":"Qwen/Qwen3-8B","parent":null,"max_model_len":4096,"permission":[{"id":"modelperm-1","object":"model_permission","created":1795379205,"allow_view":true}]}]}"#)
                .with("server", "uvicorn"),
        ),
        ("*", Answer { status: 404, ..json(r#"{"detail":"Not Found"}"#) }.with("server", "uvicorn")),
    ]))
}

/// LM Studio, which answers 200 to whatever it does not know.
pub fn lm_studio() -> Table {
    with_openai_chat(Table::of([
        (
            "GET /v1/models",
            json(
                "{\n  \"data\": [\n    {\n      \"id\": \"qwen3-8b\",\n      \"object\": \"model\",\n      \"owned_by\": \"organization_owner\"\n    }\n  ],\n  \"object\": \"list\"\n}",
            ),
        ),
        ("*", json(r#"{"error":"Unexpected endpoint or method. (GET /x)"}"#)),
    ]))
}

/// KoboldCpp: every entry of Ollama's lists has one name, and OpenAI's list another.
pub fn koboldcpp() -> Table {
    let entry = |model: &str| {
        format!(
            r#"{{"name":"koboldcpp","model":"{model}","modified_at":"2024-07-19T15:26:55.6122841+08:00","expires_at":"2055-06-04T19:06:25.5433636+08:00","size":394998579,"size_vram":394998579,"digest":"b5dc5e784f2a3ee1582373093acf69a2f4e2ac1710b253a001712b86a61f88bb","details":{{"parent_model":"","format":"gguf","family":"koboldcpp","families":["koboldcpp"],"parameter_size":"128M","quantization_level":"Q4_0"}}}}"#
        )
    };
    let list = format!(r#"{{"models":[{},{}]}}"#, entry("koboldcpp/Qwen3-8B:latest"), entry("koboldcpp/Qwen3-8B"));
    with_openai_chat(with_ollama_chat(Table::of([
        ("GET /api/version", json(r#"{"version":"0.7.0"}"#)),
        ("GET /api/tags", json(&*list)),
        ("GET /api/ps", json(list)),
        (
            "GET /v1/models",
            json(
                r#"{"object":"list","data":[{"id":"koboldcpp/Qwen3-8B","object":"model","created":1795379205,"owned_by":"koboldcpp","permission":[],"root":"koboldcpp"}]}"#,
            ),
        ),
    ])))
}

/// LocalAI: no sizes, and a time of its own each time it lists.
pub fn localai() -> Table {
    let details = r#""details":{"parent_model":"","format":"gguf","family":"llama-cpp","families":["llama-cpp"],"parameter_size":"8B","quantization_level":"Q4_K_M"}"#;
    with_openai_chat(with_ollama_chat(Table::of([
        ("GET /api/version", json(r#"{"version":"0.9.0"}"#)),
        (
            "GET /api/tags",
            json(format!(
                r#"{{"models":[{{"name":"qwen3-8b:latest","model":"qwen3-8b:latest","modified_at":"2026-11-22T12:45:47.1Z","digest":"sha256:{DIGEST}",{details}}}]}}"#
            )),
        ),
        ("GET /api/ps", json(r#"{"models":null}"#)),
        ("GET /v1/models", json(r#"{"object":"list","data":[{"id":"qwen3-8b","object":"model"}]}"#)),
    ])))
}

/// Lemonade: one digest for all, and 501 for what it does not have.
pub fn lemonade() -> Table {
    let zeros = "0".repeat(64);
    let details = r#""details":{"parent_model":"","format":"gguf","family":"llamacpp","families":["llamacpp"],"parameter_size":"0.6B","quantization_level":"Q4_0"}"#;
    let entry = |name: &str, size: u64, more: &str| {
        format!(
            r#"{{"name":"{name}:latest","model":"{name}:latest","size":{size},"digest":"sha256:{zeros}",{details},{more}}}"#
        )
    };
    let listed = r#""modified_at":"2024-01-01T00:00:00Z""#;
    with_openai_chat(with_ollama_chat(Table::of([
        ("GET /api/version", json(r#"{"version":"0.16.1"}"#)),
        (
            "GET /api/tags",
            json(format!(
                r#"{{"models":[{},{}]}}"#,
                entry("Qwen3-0.6B-GGUF", 408_021_893, listed),
                entry("Gemma-3-4b-it-GGUF", 3_221_225_472, listed)
            )),
        ),
        (
            "GET /api/ps",
            json(format!(
                r#"{{"models":[{}]}}"#,
                entry("Qwen3-0.6B-GGUF", 0, r#""expires_at":"2099-01-01T00:00:00Z","size_vram":0"#)
            )),
        ),
        (
            "GET /v1/models",
            json(
                r#"{"object":"list","data":[{"id":"Qwen3-0.6B-GGUF","object":"model","created":1795379205,"owned_by":"lemonade","checkpoint":"unsloth/Qwen3-0.6B-GGUF:Q4_0","recipe":"llamacpp"},{"id":"Gemma-3-4b-it-GGUF","object":"model","created":1795379205,"owned_by":"lemonade"}]}"#,
            ),
        ),
        ("POST /api/create", status(501)),
    ])))
}

/// Docker Model Runner: sizes of 0, Docker's names, and OpenAI's API behind a path of its own.
pub fn docker_model_runner() -> Table {
    let entry = |more: &str| {
        format!(
            r#"{{"models":[{{"name":"docker.io/ai/smollm2:latest","model":"docker.io/ai/smollm2:latest","size":0,"digest":"sha256:{DIGEST}",{more}}}]}}"#
        )
    };
    let openai = r#"{"object":"list","data":[{"id":"docker.io/ai/smollm2:latest","object":"model","created":1742816981,"owned_by":"docker"}]}"#;
    let table = with_ollama_chat(Table::of([
        ("GET /api/version", json(r#"{"version":"0.1.0"}"#)),
        (
            "GET /api/tags",
            json(entry(
                r#""modified_at":"2025-03-24T11:49:41Z","details":{"format":"gguf","family":"llama","families":["llama"],"parameter_size":"361.82 M","quantization_level":"IQ2_XXS/Q4_K_M"}"#,
            )),
        ),
        ("GET /api/ps", json(entry(r#""expires_at":"0001-01-01T00:00:00Z""#))),
        ("GET /engines/v1/models", json(openai)),
        ("*", Answer { body: "404 page not found\n".to_owned(), ..status(404) }.with("content-type", "text/plain")),
    ]));
    let chat = with_openai_chat(Table::default()).answer("POST /v1/chat/completions");
    table.but("POST /engines/v1/chat/completions", chat)
}
