//! A server with an Ollama's routes that costs next to nothing, and a client that reads as slowly as it is told.
//!
//! What a prompt says is what is done: `small` is answered in one piece, `tokens N` streams so many, `tokens N every MS`
//! at that pace, `wait` gets no head at all. `POST /api/show` with `"download":"N"` is a body of N bytes; a blob of any size is read to its
//! end.
#![allow(dead_code, reason = "each test takes what it needs of it")]

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// The model it lists.
pub const MODEL: &str = "stand-in:latest";
const TOKEN: &str = "{\"model\":\"stand-in:latest\",\"created_at\":\"2025-01-01T00:00:00.000000000Z\",\"response\":\" word\",\
                     \"done\":false}\n";
const PIECE: usize = 64 * 1024;
/// Bounds every wait for an event, so that what fails does not hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// How fast something is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    Stalled,
    /// A piece of 64 KiB each 100 ms.
    Slow,
    Full,
}

/// What happened to a request that was not `small`.
#[derive(Debug, Clone)]
pub enum Event {
    /// Its head came.
    Began,
    /// All of it came and was answered.
    Done,
    /// The connection was closed under it.
    Closed(Instant),
}

/// The server. Ends with the runtime.
pub struct StandIn {
    pub address: SocketAddr,
    /// How fast blobs are read.
    pub pace: watch::Sender<Pace>,
    pub events: mpsc::UnboundedReceiver<Event>,
    /// Bytes of downloads that it got rid of.
    pub sent: Arc<AtomicU64>,
}

#[derive(Clone)]
struct Shared {
    pace: watch::Receiver<Pace>,
    tell: mpsc::UnboundedSender<Event>,
    sent: Arc<AtomicU64>,
}

// === impl StandIn ===

impl StandIn {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (pace, pace_seen) = watch::channel(Pace::Full);
        let (tell, events) = mpsc::unbounded_channel();
        let shared = Shared { pace: pace_seen, tell, sent: Arc::default() };
        let sent = Arc::clone(&shared.sent);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let shared = shared.clone();
                tokio::spawn(async move { serve(Wire::new(stream), shared).await });
            }
        });
        Self { address, pace, events, sent }
    }

    /// The next thing that happens.
    pub async fn event(&mut self) -> Event {
        tokio::time::timeout(PATIENCE, self.events.recv()).await.expect("nothing happens at the server").unwrap()
    }
}

async fn serve(mut wire: Wire, shared: Shared) -> io::Result<()> {
    let Shared { mut pace, tell, sent } = shared;
    let piece: Arc<[u8]> = vec![b'x'; PIECE].into();
    loop {
        let head = wire.head().await?;
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let length: u64 = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        if target.starts_with("/api/blobs/") {
            let _ = tell.send(Event::Began);
            if wire.take(length, &mut pace).await.is_err() {
                let _ = tell.send(Event::Closed(Instant::now()));
                return Ok(());
            }
            let _ = tell.send(Event::Done);
            wire.answer("201 Created", "").await?;
            continue;
        }
        let body = wire.bytes(length).await?;
        let body = String::from_utf8_lossy(&body);
        match target.as_str() {
            "/" => wire.answer("200 OK", "Ollama is running").await?,
            "/api/version" => wire.answer("200 OK", "{\"version\":\"0.24.0\"}").await?,
            // It is always in memory.
            "/api/tags" | "/api/ps" => {
                let entry = format!("{{\"name\":\"{MODEL}\",\"model\":\"{MODEL}\",\"digest\":\"{}\"}}", "0".repeat(64));
                wire.answer("200 OK", &format!("{{\"models\":[{entry}]}}")).await?;
            }
            "/api/show" => {
                let length = body.split("\"download\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
                let length: u64 = length.parse().unwrap();
                let _ = tell.send(Event::Began);
                wire.write(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").as_bytes()).await?;
                let mut left = length;
                while left > 0 {
                    let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    if wire.write(&piece[..now]).await.is_err() {
                        let _ = tell.send(Event::Closed(Instant::now()));
                        return Ok(());
                    }
                    left -= now as u64;
                    sent.fetch_add(now as u64, Ordering::Relaxed);
                }
                let _ = tell.send(Event::Done);
            }
            _ => generate(&mut wire, &body, &tell).await?,
        }
    }
}

async fn generate(wire: &mut Wire, body: &str, tell: &mpsc::UnboundedSender<Event>) -> io::Result<()> {
    let prompt = body.split("\"prompt\":\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let words: Vec<&str> = prompt.split(' ').collect();
    if words[0] == "small" {
        return wire.answer("200 OK", TOKEN).await;
    }
    let _ = tell.send(Event::Began);
    let work = async {
        if words[0] == "wait" {
            return wire.closed().await;
        }
        let count: u64 = words[1].parse().unwrap();
        let every = words.get(3).map(|ms| Duration::from_millis(ms.parse().unwrap()));
        wire.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n")
            .await?;
        let chunk = format!("{:x}\r\n{TOKEN}\r\n", TOKEN.len());
        let mut ticks = every.map(tokio::time::interval);
        for _ in 0..count {
            if let Some(ticks) = &mut ticks {
                tokio::select! {
                    _ = ticks.tick() => {}
                    closed = wire.closed() => return closed,
                }
            }
            wire.write(chunk.as_bytes()).await?;
        }
        wire.write(b"0\r\n\r\n").await
    };
    let done = work.await;
    let _ = tell.send(if done.is_ok() { Event::Done } else { Event::Closed(Instant::now()) });
    done
}

/// One end of an HTTP/1.1 connection, by hand.
pub struct Wire {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

// === impl Wire ===

impl Wire {
    pub fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: vec![0; 4 * PIECE], start: 0, end: 0 }
    }

    pub async fn connect(to: SocketAddr) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::new(stream)
    }

    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    async fn answer(&mut self, status: &str, body: &str) -> io::Result<()> {
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.write(answer.as_bytes()).await
    }

    /// Asks for tokens, or whatever the prompt says.
    pub async fn ask(&mut self, prompt: &str) {
        let body = format!("{{\"model\":\"{MODEL}\",\"prompt\":\"{prompt}\"}}");
        let head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
        self.write(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
    }

    /// Asks for a body of so many bytes.
    pub async fn ask_download(&mut self, length: u64) {
        // A known route, or it would not cross; one that takes no slot.
        let body = format!("{{\"model\":\"{MODEL}\",\"download\":\"{length}\"}}");
        let head =
            format!("POST /api/show HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        self.write(head.as_bytes()).await.unwrap();
    }

    /// Announces a blob of so many bytes, for the node of this name.
    pub async fn ask_upload(&mut self, length: u64, peer: &str) {
        let head = format!(
            "POST /api/blobs/sha256:{} HTTP/1.1\r\nHost: localhost\r\nOllana-Peer: {peer}\r\nContent-Length: {length}\r\n\r\n",
            "0".repeat(64)
        );
        self.write(head.as_bytes()).await.unwrap();
    }

    /// Writes a blob, and counts what it got rid of.
    pub async fn upload(&mut self, length: u64, written: &AtomicU64) -> io::Result<()> {
        let piece = vec![b'y'; PIECE];
        let mut left = length;
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
            self.write(&piece[..now]).await?;
            left -= now as u64;
            written.fetch_add(now as u64, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads a whole answer, and how long its body was.
    pub async fn answered(&mut self, pace: &mut watch::Receiver<Pace>) -> io::Result<u64> {
        let head = self.head().await?;
        if !head.starts_with("HTTP/1.1 2") {
            let length = field(&head, "content-length").map_or(0, |length| length.parse().unwrap());
            let body = self.bytes(length).await?;
            return Err(io::Error::other(format!("{head}{}", String::from_utf8_lossy(&body))));
        }
        if let Some(length) = field(&head, "content-length") {
            let length = length.parse().unwrap();
            self.take(length, pace).await?;
            return Ok(length);
        }
        assert!(field(&head, "transfer-encoding").is_some(), "{head}");
        let mut sum = 0;
        loop {
            let line = self.until(b"\r\n").await?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
            self.take(size + 2, pace).await?;
            if size == 0 {
                return Ok(sum);
            }
            sum += size;
        }
    }

    /// The head of a message.
    pub async fn head(&mut self) -> io::Result<String> {
        self.until(b"\r\n\r\n").await
    }

    async fn until(&mut self, mark: &[u8]) -> io::Result<String> {
        loop {
            let seen = &self.buffer[self.start..self.end];
            if let Some(at) = seen.windows(mark.len()).position(|window| window == mark) {
                let text = String::from_utf8_lossy(&seen[..at + mark.len()]).into_owned();
                self.start += at + mark.len();
                return Ok(text);
            }
            self.fill(usize::MAX).await?;
        }
    }

    async fn bytes(&mut self, length: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(length).unwrap();
        while self.end - self.start < length {
            self.fill(usize::MAX).await?;
        }
        let bytes = self.buffer[self.start..self.start + length].to_vec();
        self.start += length;
        Ok(bytes)
    }

    /// Reads so many bytes at a pace and forgets them.
    async fn take(&mut self, length: u64, pace: &mut watch::Receiver<Pace>) -> io::Result<()> {
        let mut left = length;
        while left > 0 {
            if self.start == self.end {
                let now = *pace.borrow_and_update();
                match now {
                    Pace::Full => self.fill(usize::MAX).await?,
                    Pace::Slow => {
                        self.fill(PIECE).await?;
                        let _ = tokio::time::timeout(Duration::from_millis(100), pace.changed()).await;
                    }
                    Pace::Stalled => {
                        pace.changed().await.map_err(io::Error::other)?;
                        continue;
                    }
                }
            }
            let got = ((self.end - self.start) as u64).min(left);
            self.start += usize::try_from(got).unwrap();
            left -= got;
        }
        Ok(())
    }

    async fn fill(&mut self, most: usize) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let room = (self.buffer.len() - self.end).min(most);
        match self.stream.read(&mut self.buffer[self.end..self.end + room]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.end += read;
                Ok(())
            }
        }
    }

    /// Resolves, to an error, when the other side has closed.
    async fn closed(&mut self) -> io::Result<()> {
        loop {
            self.fill(usize::MAX).await?;
        }
    }
}

/// A header field of a head.
fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (field, value) = line.split_once(':')?;
        field.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}
