//! A simulated Ollama that costs as little as it can: one thread that answers, one that paces streams.
//!
//! What a prompt says is what is done: `flat N` streams N tokens as fast as they are taken, `paced N EVERY PHASE` one
//! each EVERY nanoseconds, at times that leave PHASE nanoseconds when divided by it; anything else is answered at once.
//! After the tokens comes the last line, with `"done":true`. The text of each token is the time at which it was written,
//! so that its reader knows how long it was under way. `POST /api/show` with `"download":"N"` has an answer of N bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use super::http1::{BULK_BUFFER, SMALL_BUFFER, Wire};

/// The streams are spread over so many models: a node runs at most 256 requests of one at a time.
pub const MODELS: usize = 8;
/// What every answer that is asked for the version holds.
pub const VERSION: &str = "{\"version\":\"0.24.0\"}";
/// Numbers of an embedding, as those of a small model have.
const DIMENSIONS: usize = 384;
/// The line of a token without the name of the model.
const TOKEN_LINE: usize = 103;
/// After a client's socket was full.
const AGAIN_NS: u64 = 1_000_000;
const STREAM: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n";

static EMBEDDING: LazyLock<String> = LazyLock::new(|| {
    let numbers: Vec<String> = (0..DIMENSIONS).map(|n| format!("0.0{:07}", n * 7919 % 9_999_991)).collect();
    format!(
        "{{\"model\":\"{}\",\"embeddings\":[[{}]],\"total_duration\":1000000,\"load_duration\":1000,\"prompt_eval_count\":8}}",
        model(0),
        numbers.join(",")
    )
});

pub fn model(number: usize) -> String {
    format!("path-{}:latest", number % MODELS)
}

/// What an answer to an embedding must be as long as.
pub fn embedding_length() -> u64 {
    EMBEDDING.len() as u64
}

/// Nanoseconds of the clock that all processes of a machine share.
pub fn monotonic() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

/// Serves until the process ends.
pub fn run(listen: SocketAddr) -> io::Result<()> {
    let (pacer, given) = mpsc::channel();
    std::thread::spawn(move || pace(&given));
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&listen.into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        let listener = TcpListener::from_std(socket.into())?;
        loop {
            let (stream, _) = listener.accept().await?;
            let pacer = pacer.clone();
            // An error is a client that left.
            tokio::spawn(async move { serve(Wire::new(stream, SMALL_BUFFER)?, pacer).await });
        }
    })
}

async fn serve(mut wire: Wire, pacer: mpsc::Sender<Paced>) -> io::Result<()> {
    let mut body = Vec::new();
    loop {
        let head = wire.head().await?;
        let target = head.second();
        if target.starts_with("/api/blobs/") {
            wire.body(&head, |_| {}).await?;
            answer(&wire, "201 Created", "").await?;
            continue;
        }
        body.clear();
        wire.body(&head, |bytes| body.extend_from_slice(bytes)).await?;
        let text = std::str::from_utf8(&body).map_err(io::Error::other)?;
        match target {
            "/" => answer(&wire, "200 OK", "Ollama is running").await?,
            "/api/version" => answer(&wire, "200 OK", VERSION).await?,
            // All are always in memory.
            "/api/tags" | "/api/ps" => answer(&wire, "200 OK", &models()).await?,
            "/api/show" => match value(text, "download").and_then(|length| length.parse().ok()) {
                Some(length) => download(&wire, length).await?,
                None => {
                    answer(&wire, "200 OK", "{\"details\":{},\"model_info\":{},\"capabilities\":[\"completion\"]}")
                        .await?
                }
            },
            "/api/embed" => answer(&wire, "200 OK", &EMBEDDING).await?,
            "/api/generate" => generate(&wire, text, &pacer).await?,
            _ => answer(&wire, "404 Not Found", "404 page not found").await?,
        }
    }
}

async fn answer(wire: &Wire, status: &str, body: &str) -> io::Result<()> {
    let kind = if body.starts_with('{') { "application/json; charset=utf-8" } else { "text/plain; charset=utf-8" };
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}");
    wire.write(answer.as_bytes()).await
}

fn models() -> String {
    let entry = |number| {
        let (name, digest) = (model(number), format!("{number:064x}"));
        format!(
            "{{\"name\":\"{name}\",\"model\":\"{name}\",\"modified_at\":\"2026-01-01T00:00:00Z\",\"size\":1000000,\
             \"digest\":\"{digest}\",\"details\":{{\"family\":\"llama\"}},\"expires_at\":\"2318-01-01T00:00:00Z\",\
             \"size_vram\":1000000,\"context_length\":4096}}"
        )
    };
    format!("{{\"models\":[{}]}}", (0..MODELS).map(entry).collect::<Vec<_>>().join(","))
}

async fn download(wire: &Wire, length: u64) -> io::Result<()> {
    static PIECE: [u8; BULK_BUFFER] = [b'x'; BULK_BUFFER];
    wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
    let mut left = length;
    while left > 0 {
        let now = usize::try_from(left).unwrap_or(BULK_BUFFER).min(BULK_BUFFER);
        wire.write(&PIECE[..now]).await?;
        left -= now as u64;
        tokio::task::yield_now().await;
    }
    Ok(())
}

async fn generate(wire: &Wire, body: &str, pacer: &mpsc::Sender<Paced>) -> io::Result<()> {
    let name = value(body, "model").unwrap_or_default();
    let mut words = value(body, "prompt").unwrap_or_default().split(' ');
    let (kind, mut numbers) = (words.next().unwrap_or_default(), words.map_while(|word| word.parse::<u64>().ok()));
    let mut next = || numbers.next().ok_or_else(|| io::Error::other("a number is missing"));
    let start = monotonic();
    match kind {
        "flat" => {
            let count = next()?;
            wire.write(STREAM).await?;
            let mut chunk = String::new();
            for _ in 0..count {
                token(&mut chunk, name);
                wire.write(chunk.as_bytes()).await?;
                // The next stream's turn: all go on at the same time, as an Ollama's do.
                tokio::task::yield_now().await;
            }
            wire.write(last(name, count, start).as_bytes()).await
        }
        "paced" => {
            let (count, every, phase) = (next()?, next()?.max(1), next()?);
            wire.write(STREAM).await?;
            let (done, ended) = oneshot::channel();
            let due = start - start % every + every + phase % every;
            let stream = wire.stream();
            let model = name.to_owned();
            let paced =
                Paced { stream, model, count, left: count, every, start, due, chunk: String::new(), at: 0, done };
            pacer.send(paced).map_err(io::Error::other)?;
            ended.await.map_err(io::Error::other)?
        }
        _ if body.contains("\"stream\":false") => {
            let answer_of = line_of_end(name, "Hello.", 2, start);
            answer(wire, "200 OK", &answer_of).await
        }
        _ => {
            wire.write(STREAM).await?;
            wire.write(last(name, 0, start).as_bytes()).await
        }
    }
}

/// The text of a key of a body that our own load generator wrote.
fn value<'a>(body: &'a str, key: &str) -> Option<&'a str> {
    body.split_once(&format!("\"{key}\":\""))?.1.split('"').next()
}

/// One token, as a chunk.
fn token(chunk: &mut String, model: &str) {
    let now = monotonic();
    chunk.clear();
    let line_length = TOKEN_LINE + model.len();
    let _ = write!(
        chunk,
        "{line_length:x}\r\n{{\"model\":\"{model}\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"response\":\" {now:016x}\",\
         \"done\":false}}\n\r\n"
    );
}

/// The last line and the end of the body.
fn last(model: &str, count: u64, start: u64) -> String {
    let line = line_of_end(model, "", count, start);
    format!("{:x}\r\n{line}\n\r\n0\r\n\r\n", line.len() + 1)
}

fn line_of_end(model: &str, response: &str, count: u64, start: u64) -> String {
    let took = (monotonic() - start).max(1);
    format!(
        "{{\"model\":\"{model}\",\"created_at\":\"2026-01-01T00:00:00.000000000Z\",\"response\":\"{response}\",\"done\":true,\
         \"done_reason\":\"stop\",\"total_duration\":{took},\"load_duration\":1,\"prompt_eval_count\":2,\
         \"prompt_eval_duration\":1,\"eval_count\":{count},\"eval_duration\":{took}}}"
    )
}

/// A stream that the other thread writes: timers of a runtime are as coarse as a millisecond, and would bring the tokens
/// of many streams together.
struct Paced {
    stream: Arc<TcpStream>,
    model: String,
    count: u64,
    left: u64,
    every: u64,
    start: u64,
    due: u64,
    /// What is being written, and how far it got.
    chunk: String,
    at: usize,
    done: oneshot::Sender<io::Result<()>>,
}

fn pace(given: &mpsc::Receiver<Paced>) {
    // By when they are due; the number keeps apart what is due at the same time.
    let mut streams = BTreeMap::<(u64, u64), Paced>::new();
    let mut number = 0;
    loop {
        let wait = streams.first_key_value().map(|((due, _), _)| Duration::from_nanos(due.saturating_sub(monotonic())));
        let new = match wait {
            None => given.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(Duration::ZERO) => given.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            }),
            Some(wait) => given.recv_timeout(wait),
        };
        let next = match new {
            Ok(paced) => Some(paced),
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) => streams.pop_first().and_then(|(_, paced)| paced.step()),
        };
        if let Some(paced) = next {
            number += 1;
            streams.insert((paced.due, number), paced);
        }
    }
}

// === impl Paced ===

impl Paced {
    /// Writes what is due; nothing if that was the last of it.
    fn step(mut self) -> Option<Self> {
        if self.at == self.chunk.len() {
            self.at = 0;
            match self.left {
                0 => self.chunk = last(&self.model, self.count, self.start),
                _ => token(&mut self.chunk, &self.model),
            }
        }
        match self.stream.try_write(&self.chunk.as_bytes()[self.at..]) {
            Ok(written) => self.at += written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                let _ = self.done.send(Err(error));
                return None;
            }
        }
        if self.at < self.chunk.len() {
            self.due = monotonic() + AGAIN_NS;
        } else if self.left == 0 {
            let _ = self.done.send(Ok(()));
            return None;
        } else {
            self.left -= 1;
            self.due += self.every;
        }
        Some(self)
    }
}
