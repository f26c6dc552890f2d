//! A great many requests to a mesh of twenty servers that answer at once: nothing may be left of them.
//!
//! Each tenth begins with new connections and ends when nothing is in flight. Before the first of them stand so many
//! requests that the process has all it needs ([`WARM_UP`]); from then on its memory may not grow by more than [`GROWTH`],
//! and when all is over there may be no more tasks than before the first request. Every request has to reach a server, and
//! as good as none a second one: what a node does not acknowledge within half a second moves on, which happens
//! where the machine is busy with other things.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::clients::{Answer, Way as _};
use super::mesh::{Holds, Mesh, Tuning};
use super::meters::resident;

const SERVERS: usize = 20;
const USERS: usize = 3;
/// Requests that a server takes at a time: few enough that some have to wait.
const SLOTS: usize = 2;
/// Requests at once.
const CONCURRENT: u64 = 48;
const TENTHS: u64 = 10;
/// Requests after which memory grows no more if nothing leaks: until then buffers of connections and the allocator's
/// fragments fill up.
const WARM_UP: u64 = 120_000;
/// MB that memory may grow after that: of a million requests, no more than sixteen bytes each.
const GROWTH: f64 = 16.0;
/// Of so many requests one may be run twice.
const AGAIN: u64 = 10_000;
/// Longest wait for what is idle to be let go. A gate keeps a connection to its Ollama for half a minute, and looks for
/// such every half a minute.
const REST: Duration = Duration::from_secs(75);

const TAGS: &str = r#"{"models":[{"name":"model0:latest","model":"model0:latest","size":1,"digest":"01"}]}"#;
const ANSWER: &str = concat!(
    r#"{"model":"model0:latest","created_at":"2025-01-01T00:00:00Z","response":"word","done":true,"done_reason":"stop","#,
    r#""total_duration":1000000,"load_duration":1000,"prompt_eval_count":10,"prompt_eval_duration":100000,"#,
    r#""eval_count":1,"eval_duration":100000}"#,
    "\n",
);

/// Sends so many; whether nothing was left of them.
pub async fn run(requests: u64) -> bool {
    let served = Arc::<AtomicU64>::default();
    let mut addresses = Vec::new();
    let mut servers = Vec::new();
    for _ in 0..SERVERS {
        let (address, task) = server(Arc::clone(&served)).await;
        addresses.push((address, Holds { slots: SLOTS, most_loaded: 1 }));
        servers.push(task);
    }
    let mesh = Arc::new(Mesh::start(&addresses, USERS, Tuning::NONE).await);
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    println!(
        "{requests} requests after {WARM_UP}, {CONCURRENT} at once, {USERS} nodes of users, {SERVERS} servers, {before} tasks"
    );
    println!("{:>10} {:>9} {:>9} {:>8} {:>9}", "requests", "a second", "RSS, MB", "tasks", "in flight");
    let mut warm = f64::NAN;
    let mut failures = 0;
    // The warm-up is the tenth before the first.
    for tenth in 0..=TENTHS {
        let began = Instant::now();
        let count = if tenth == 0 { WARM_UP } else { requests * tenth / TENTHS - requests * (tenth - 1) / TENTHS };
        failures += spell(&mesh, count).await;
        let rate = count as f64 / began.elapsed().as_secs_f64();
        let inflight = settled(|| mesh.inflight(), 0, Duration::from_secs(10)).await;
        let memory = resident().unwrap_or(f64::NAN);
        let label = if tenth == 0 { "warm-up".to_owned() } else { (requests * tenth / TENTHS).to_string() };
        println!("{label:>10} {rate:>9.0} {memory:>9.1} {:>8} {inflight:>9}", tasks());
        if tenth == 0 {
            warm = memory;
        }
    }
    let left = settled(|| tasks() as u64, before as u64, REST).await;
    let (inflight, at_gates) = (mesh.inflight(), mesh.at_gates());
    let memory = resident().unwrap_or(f64::NAN);
    let growth = memory - warm;
    println!("{:>10} {:>9} {memory:>9.1} {left:>8} {inflight:>9}", "at rest", "");
    let (served, sent) = (served.load(Ordering::Relaxed), requests + WARM_UP);
    let checks = [
        (
            format!("memory grew by {growth:.1} MB since the warm-up, at most {GROWTH}"),
            growth <= GROWTH || growth.is_nan(),
        ),
        (format!("{left} tasks are left, {before} were there before"), left <= before as u64),
        (format!("{inflight} requests are in flight"), inflight == 0),
        (format!("{at_gates} requests and tickets have a slot or wait for one"), at_gates == 0.0),
        (format!("{failures} requests failed"), failures == 0),
        (
            format!("{served} times a server had a request, of {sent}; at most one in {AGAIN} a second time"),
            (sent..=sent + sent / AGAIN).contains(&served),
        ),
    ];
    for (what, holds) in &checks {
        println!("{:<4} {what}", if *holds { "ok" } else { "BAD" });
    }
    Arc::into_inner(mesh).expect("nobody asks it any more").stop().await;
    checks.iter().all(|(_, holds)| *holds)
}

/// Sends some over new connections; how many failed.
async fn spell(mesh: &Arc<Mesh>, count: u64) -> u64 {
    mesh.forget_connections();
    let mut workers = JoinSet::new();
    let left = Arc::new(AtomicU64::new(count));
    for worker in 0..CONCURRENT {
        let (mesh, left) = (Arc::clone(mesh), Arc::clone(&left));
        workers.spawn(async move {
            let mut failures = 0;
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                failures += u64::from(!ask(&mesh, worker as usize).await);
            }
            failures
        });
    }
    let failures = workers.join_all().await.into_iter().sum();
    mesh.forget_connections();
    failures
}

async fn ask(mesh: &Mesh, client: usize) -> bool {
    let body = r#"{"model":"model0:latest","prompt":"why","options":{"num_predict":1}}"#;
    let question = Request::post("/api/generate").header(CONTENT_TYPE, "application/json").body(Full::from(body));
    let Ok(Answer { response, .. }) = mesh.ask(client, question.expect("a path")).await else { return false };
    let good = response.status().is_success();
    good && response.into_body().collect().await.is_ok_and(|body| body.to_bytes() == ANSWER)
}

/// Waits until the figure is as low as this; what it is at last.
async fn settled(figure: impl Fn() -> u64, wanted: u64, patience: Duration) -> u64 {
    let began = Instant::now();
    while figure() > wanted && began.elapsed() < patience {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    figure()
}

async fn server(served: Arc<AtomicU64>) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            stream.set_nodelay(true).unwrap();
            let served = Arc::clone(&served);
            connections.spawn(async move {
                let service = service_fn(move |request| answer(request, Arc::clone(&served)));
                // A client that goes away is its own business.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
            while connections.try_join_next().is_some() {}
        }
    });
    (address, AbortOnDropHandle::new(task))
}

async fn answer(request: Request<Incoming>, served: Arc<AtomicU64>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = match request.uri().path() {
        "/api/version" => r#"{"version":"0.24.0"}"#,
        "/api/tags" | "/api/ps" => TAGS,
        _ => {
            // As Ollama, it reads the body before it answers.
            let _ = request.into_body().collect().await;
            served.fetch_add(1, Ordering::Relaxed);
            ANSWER
        }
    };
    Ok(Response::new(Full::from(body)))
}
