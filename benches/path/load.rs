//! The load generator: what is asked, and whether each answer is what it should be.
//!
//! One thread on the user's host. A wrong status, length or last line, a connection that breaks or a load that does not
//! come to its end makes the row invalid: figures of answers that were not given say nothing.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memchr::{memchr_iter, memmem};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::http1::{BULK_BUFFER, SMALL_BUFFER, Wire};
use super::server::{MODELS, VERSION, embedding_length, model, monotonic};
use super::systems::{System, USED_PROVIDER};

/// Requests of each connection before anything is measured, which open what lies behind it.
const WARM_UP: usize = 20;
/// Bounds each load: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(90);
/// How long the streams of a load take to begin, one after the other.
const RAMP: Duration = Duration::from_secs(1);
/// Between the last one's beginning and what is measured.
const SETTLE: Duration = Duration::from_millis(300);
/// Requests that look for the first token while other streams run, and their pause.
const PROBES: usize = 4;
const PROBE_PAUSE: Duration = Duration::from_millis(10);

/// A request and what its answer must be.
#[derive(Clone)]
pub struct Request {
    bytes: Arc<[u8]>,
    length: Option<u64>,
    /// The end of the answer.
    end: &'static [u8],
}

/// The result of a load of whole requests.
pub struct Requests {
    /// Each request's time in microseconds.
    pub micros: Vec<f64>,
    pub seconds: f64,
    /// Processor time of the proxies.
    pub cpu: f64,
}

/// The result of a load of streams, while all of them ran.
#[derive(Default)]
pub struct Streams {
    pub tokens: u64,
    pub seconds: f64,
    pub cpu: f64,
    /// Milliseconds that each token was under way.
    pub delays: Vec<f64>,
    /// Milliseconds to the first token of each of the requests beside.
    pub first: Vec<f64>,
}

/// How streams are asked for.
#[derive(Clone, Copy)]
pub struct Paced {
    pub streams: usize,
    pub every: Duration,
    pub span: Duration,
    /// Whether other requests look for their first token meanwhile.
    pub probes: bool,
}

// === impl Request ===

impl Request {
    fn new(head: &str, body: &str, length: Option<u64>, end: &'static [u8]) -> Self {
        let length_of = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        let bytes = format!("{head} HTTP/1.1\r\nHost: localhost\r\n{kind}{length_of}\r\n{body}").into_bytes();
        Self { bytes: bytes.into(), length, end }
    }

    /// The smallest there is. With its node named, so that it crosses whatever nodes know of each other's versions.
    pub fn small() -> Self {
        let bytes = format!("GET /api/version HTTP/1.1\r\nHost: localhost\r\nOllana-Peer: {USED_PROVIDER}\r\n\r\n");
        Self { bytes: bytes.into_bytes().into(), length: Some(VERSION.len() as u64), end: b"}" }
    }

    /// Some two kB of text; the answer has some four.
    pub fn embedding() -> Self {
        let text = "The quick brown fox jumps over the lazy dog. ".repeat(45);
        let body = format!("{{\"model\":\"{}\",\"input\":\"{text}\"}}", model(0));
        Self::new("POST /api/embed", &body, Some(embedding_length()), b"}")
    }

    /// A short answer in one piece.
    pub fn generate() -> Self {
        let body = format!("{{\"model\":\"{}\",\"prompt\":\"Hello\",\"stream\":false}}", model(0));
        Self::new("POST /api/generate", &body, None, b"}")
    }

    fn stream(number: usize, prompt: &str) -> Self {
        let body = format!("{{\"model\":\"{}\",\"prompt\":\"{prompt}\"}}", model(number));
        Self::new("POST /api/generate", &body, None, b"}\n")
    }

    fn download(length: u64) -> Self {
        let body = format!("{{\"model\":\"{}\",\"download\":\"{length}\"}}", model(0));
        Self::new("POST /api/show", &body, Some(length), b"xxxx")
    }

    /// Asks and reads the answer to its end.
    async fn run(&self, wire: &mut Wire) -> io::Result<()> {
        wire.write(&self.bytes).await?;
        let mut end = Vec::with_capacity(16);
        let length = answer(wire, |bytes| keep_end(&mut end, bytes)).await?;
        if self.length.is_some_and(|expected| expected != length) || !end.ends_with(self.end) {
            return Err(io::Error::other(format!("an answer of {length} bytes that is not the one asked for")));
        }
        Ok(())
    }

    /// Asks for a stream and hands out each of its lines.
    async fn lines(&self, wire: &mut Wire, tokens: u64, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        wire.write(&self.bytes).await?;
        let (mut count, mut rest) = (0, Vec::new());
        let mut last = false;
        answer(wire, |bytes| {
            let mut start = 0;
            for end in memchr_iter(b'\n', bytes) {
                let line = if rest.is_empty() {
                    &bytes[start..end]
                } else {
                    rest.extend_from_slice(&bytes[start..end]);
                    &rest[..]
                };
                last = memmem::find(line, b"\"done\":true").is_some();
                if !last {
                    count += 1;
                    each(line);
                }
                rest.clear();
                start = end + 1;
            }
            rest.extend_from_slice(&bytes[start..]);
        })
        .await?;
        if last && count == tokens {
            Ok(())
        } else {
            Err(io::Error::other(format!("a stream of {count} tokens instead of {tokens}, end: {last}")))
        }
    }
}

async fn answer(wire: &mut Wire, mut sink: impl FnMut(&[u8])) -> io::Result<u64> {
    let head = wire.head().await?;
    if head.second().starts_with('2') {
        return wire.body(&head, sink).await;
    }
    let mut text = Vec::new();
    wire.body(&head, |bytes| {
        sink(bytes);
        text.extend_from_slice(bytes);
    })
    .await?;
    Err(io::Error::other(format!("{} {}", head.first_line, String::from_utf8_lossy(&text).trim())))
}

fn keep_end(end: &mut Vec<u8>, bytes: &[u8]) {
    end.extend_from_slice(&bytes[bytes.len().saturating_sub(8)..]);
    let surplus = end.len().saturating_sub(8);
    end.drain(..surplus);
}

/// Each of so many connections asks again as soon as it has its answer.
pub async fn closed_loop(
    system: &System,
    connections: usize,
    request: Request,
    span: Duration,
) -> Result<Requests, String> {
    let barrier = Arc::new(Barrier::new(connections + 1));
    let at = system.address;
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        let (request, barrier) = (request.clone(), Arc::clone(&barrier));
        workers.spawn(async move {
            let warm = async {
                let mut wire = Wire::connect(at, SMALL_BUFFER).await?;
                for _ in 0..WARM_UP {
                    request.run(&mut wire).await?;
                }
                io::Result::Ok(wire)
            };
            let warm = warm.await;
            // Also after an error: the others wait.
            barrier.wait().await;
            let (mut wire, mut micros, end) = (warm?, Vec::new(), Instant::now() + span);
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok(micros);
                }
                request.run(&mut wire).await?;
                micros.push(micros_since(start));
            }
        });
    }
    barrier.wait().await;
    requests(system, workers).await
}

/// Each worker opens a connection, asks once and closes it, again and again.
pub async fn connections(system: &System, workers: usize, span: Duration) -> Result<Requests, String> {
    let at = system.address;
    let mut set = JoinSet::new();
    for _ in 0..workers {
        set.spawn(async move {
            let (request, mut micros, end) = (Request::small(), Vec::new(), Instant::now() + span);
            loop {
                let start = Instant::now();
                if start >= end {
                    return Ok(micros);
                }
                request.run(&mut Wire::connect(at, SMALL_BUFFER).await?).await?;
                micros.push(micros_since(start));
            }
        });
    }
    requests(system, set).await
}

/// So many requests in all over so many new connections, as `hey -n … -c …` sends them.
pub async fn burst(system: &System, count: usize, connections: usize) -> Result<Requests, String> {
    let at = system.address;
    let mut workers = JoinSet::new();
    for _ in 0..connections {
        workers.spawn(async move {
            let (request, mut micros) = (Request::generate(), Vec::new());
            let mut start = Instant::now();
            let mut wire = Wire::connect(at, SMALL_BUFFER).await?;
            for _ in 0..count / connections {
                request.run(&mut wire).await?;
                micros.push(micros_since(start));
                start = Instant::now();
            }
            Ok(micros)
        });
    }
    requests(system, workers).await
}

async fn requests(system: &System, mut workers: JoinSet<io::Result<Vec<f64>>>) -> Result<Requests, String> {
    let (start, cpu) = (Instant::now(), system.cpu());
    let micros = joined(&mut workers).await?.concat();
    Ok(Requests { micros, seconds: start.elapsed().as_secs_f64(), cpu: system.cpu() - cpu })
}

/// Streams that go as fast as they can.
pub async fn flat_out(system: &System, streams: usize, tokens: u64) -> Result<Streams, String> {
    let barrier = Arc::new(Barrier::new(streams + 1));
    let at = system.address;
    let mut workers = JoinSet::new();
    for number in 0..streams {
        let barrier = Arc::clone(&barrier);
        workers.spawn(async move {
            let warm = warm_stream(at, number).await;
            barrier.wait().await;
            Request::stream(number, &format!("flat {tokens}")).lines(&mut warm?, tokens, |_| {}).await
        });
    }
    barrier.wait().await;
    let (start, cpu) = (Instant::now(), system.cpu());
    joined(&mut workers).await?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(Streams { tokens: tokens * streams as u64, seconds, cpu: system.cpu() - cpu, ..Streams::default() })
}

async fn warm_stream(at: SocketAddr, number: usize) -> io::Result<Wire> {
    let mut wire = Wire::connect(at, SMALL_BUFFER).await?;
    Request::stream(number, "flat 2").lines(&mut wire, 2, |_| {}).await?;
    Ok(wire)
}

/// Streams of a pace, their phases spread evenly; what happens while all of them run is what counts.
pub async fn paced(system: &System, load: Paced) -> Result<Streams, String> {
    let (at, every) = (system.address, load.every.as_nanos() as u64);
    let (counts, tokens) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    // A little more than what is measured, so that none ends before.
    let each = ((RAMP + SETTLE * 2 + load.span).as_nanos() as u64 / every).max(1) + 1;
    let mut workers = JoinSet::new();
    for number in 0..load.streams {
        let (counts, tokens) = (Arc::clone(&counts), Arc::clone(&tokens));
        workers.spawn(async move {
            let share = number as f64 / load.streams as f64;
            tokio::time::sleep(RAMP.mul_f64(share)).await;
            let phase = (every as f64 * share) as u64;
            let request = Request::stream(number, &format!("paced {each} {every} {phase}"));
            let mut wire = Wire::connect(at, SMALL_BUFFER).await?;
            let mut delays = Vec::new();
            let mut wrong = false;
            request
                .lines(&mut wire, each, |line| {
                    if counts.load(Ordering::Relaxed) {
                        tokens.fetch_add(1, Ordering::Relaxed);
                        match written(line) {
                            Some(written) => delays.push((monotonic() - written) as f64 / 1e6),
                            None => wrong = true,
                        }
                    }
                })
                .await?;
            if wrong { Err(io::Error::other("a token that is not the server's")) } else { Ok(delays) }
        });
    }
    tokio::time::sleep(RAMP + SETTLE).await;
    counts.store(true, Ordering::Relaxed);
    let (start, cpu) = (Instant::now(), system.cpu());
    let mut probes = JoinSet::new();
    for number in 0..if load.probes { PROBES } else { 0 } {
        probes.spawn(probe(at, number, load.span));
    }
    tokio::time::sleep(load.span).await;
    counts.store(false, Ordering::Relaxed);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), system.cpu() - cpu);
    let tokens = tokens.load(Ordering::Relaxed);
    let first = joined(&mut probes).await?.concat();
    let delays = joined(&mut workers).await?.concat();
    Ok(Streams { tokens, seconds, cpu, delays, first })
}

/// How long the first token takes, again and again.
async fn probe(at: SocketAddr, number: usize, span: Duration) -> io::Result<Vec<f64>> {
    let (mut wire, end, mut first) = (warm_stream(at, number).await?, Instant::now() + span, Vec::new());
    let request = Request::stream(number, "flat 2");
    while Instant::now() < end {
        let (start, mut took) = (Instant::now(), None);
        request.lines(&mut wire, 2, |_| took = took.or(Some(start.elapsed()))).await?;
        first.extend(took.map(|took| took.as_secs_f64() * 1e3));
        tokio::time::sleep(PROBE_PAUSE).await;
    }
    Ok(first)
}

/// When a token was written.
fn written(line: &[u8]) -> Option<u64> {
    const BEFORE: &[u8] = b"\"response\":\" ";
    let at = memmem::find(line, BEFORE)? + BEFORE.len();
    u64::from_str_radix(std::str::from_utf8(line.get(at..at + 16)?).ok()?, 16).ok()
}

/// Opens so many streams, calls `look` once each has begun, and reads them to their end.
pub async fn open(system: &System, streams: usize, look: impl FnOnce()) -> Result<(), String> {
    const TOKENS: u64 = 4;
    let at = system.address;
    let begun = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for number in 0..streams {
        let begun = Arc::clone(&begun);
        workers.spawn(async move {
            let share = number as f64 / streams as f64;
            tokio::time::sleep(RAMP.mul_f64(share)).await;
            let request = Request::stream(number, &format!("paced {TOKENS} 1000000000 {}", (share * 1e9) as u64));
            let mut seen = false;
            let each = |_: &[u8]| {
                if !std::mem::replace(&mut seen, true) {
                    begun.fetch_add(1, Ordering::Relaxed);
                }
            };
            request.lines(&mut Wire::connect(at, SMALL_BUFFER).await?, TOKENS, each).await
        });
    }
    // The last begins at most two seconds after the first; the first ends four seconds after its beginning.
    let start = Instant::now();
    while begun.load(Ordering::Relaxed) < streams as u64 && start.elapsed() < PATIENCE {
        match workers.try_join_next() {
            None | Some(Ok(Ok(()))) => tokio::time::sleep(Duration::from_millis(5)).await,
            Some(Ok(Err(error))) => return Err(error.to_string()),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
    let open = workers.len();
    look();
    joined(&mut workers).await?;
    if open == streams { Ok(()) } else { Err(format!("only {open} of {streams} streams were open at once")) }
}

/// An answer of so many bytes; seconds and processor time.
pub async fn download(system: &System, bytes: u64) -> Result<(f64, f64), String> {
    bulk(system, async |wire| Request::download(bytes).run(wire).await).await
}

/// A request of so many bytes, as `ollama create` sends its files.
pub async fn upload(system: &System, bytes: u64) -> Result<(f64, f64), String> {
    bulk(system, async |wire| {
        let digest = "0".repeat(64);
        let head = format!(
            "POST /api/blobs/sha256:{digest} HTTP/1.1\r\nHost: localhost\r\nOllana-Peer: {USED_PROVIDER}\r\n\
             Content-Length: {bytes}\r\n\r\n"
        );
        wire.write(head.as_bytes()).await?;
        let (piece, mut left) = (vec![b'y'; BULK_BUFFER], bytes);
        while left > 0 {
            let now = usize::try_from(left).unwrap_or(BULK_BUFFER).min(BULK_BUFFER);
            wire.write(&piece[..now]).await?;
            left -= now as u64;
        }
        answer(wire, |_| {}).await.map(drop)
    })
    .await
}

async fn bulk(system: &System, work: impl AsyncFnOnce(&mut Wire) -> io::Result<()>) -> Result<(f64, f64), String> {
    let work = async {
        let mut wire = Wire::connect(system.address, BULK_BUFFER).await?;
        Request::small().run(&mut wire).await?;
        let (start, cpu) = (Instant::now(), system.cpu());
        work(&mut wire).await?;
        io::Result::Ok((start.elapsed().as_secs_f64(), system.cpu() - cpu))
    };
    let done = tokio::time::timeout(PATIENCE, work).await.map_err(|_| "it hangs".to_owned())?;
    done.map_err(|error| error.to_string())
}

/// The results of all workers, or how many failed and why the first of them did.
async fn joined<T: 'static>(workers: &mut JoinSet<io::Result<T>>) -> Result<Vec<T>, String> {
    let (mut values, mut failed, mut first) = (Vec::new(), 0, None);
    let all = async {
        while let Some(ended) = workers.join_next().await {
            match ended {
                Ok(Ok(value)) => values.push(value),
                Ok(Err(error)) => {
                    failed += 1;
                    first.get_or_insert(error.to_string());
                }
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, all).await.is_ok();
    match first {
        _ if !in_time => Err(format!("{} of the load's tasks hang", workers.len())),
        None => Ok(values),
        Some(first) => Err(format!("{failed} errors, the first: {first}")),
    }
}

fn micros_since(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e6
}

/// Whether a small request gets through.
pub async fn once(at: SocketAddr) -> io::Result<()> {
    let mut wire = Wire::connect(at, SMALL_BUFFER).await?;
    Request::small().run(&mut wire).await
}

/// Whether requests of all models get through.
pub async fn all_models(at: SocketAddr) -> io::Result<()> {
    for number in 0..MODELS {
        warm_stream(at, number).await?;
    }
    Ok(())
}
