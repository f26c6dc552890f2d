//! What the mesh costs: the same requests straight to a server and through two nodes in front of it, by turns, in one
//! run, on loopback. The machine's other work and the client's own cost are in both, so look at the ratios, and at the
//! processor time of the two nodes, which other work changes least.
//!
//! `cargo bench --bench exchange -- [rounds]`; by default 5, of which medians are shown.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

#[path = "../tests/support/load.rs"]
mod load;
#[path = "../tests/support/processes.rs"]
mod processes;
#[path = "../tests/support/stand_in.rs"]
mod stand_in;

use load::Pair;
use stand_in::{Pace, Wire};

/// Enough requests at once for a busy node, and streams for a busy lab.
const CONCURRENT: usize = 64;
const STREAMS: usize = 200;
const PACED_STREAMS: usize = 100;
const TOKENS: usize = 2000;
const PACED_TOKENS: usize = 150;
const EVERY_MS: usize = 20;
const ALONE: usize = 1000;
const SPELL: Duration = Duration::from_secs(2);
const DOWNLOAD: u64 = 1_000_000_000;

#[derive(Default)]
struct Row {
    direct: Vec<f64>,
    mesh: Vec<f64>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches` only wants to know that it builds.
        return;
    }
    let rounds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(run(rounds));
}

async fn run(rounds: usize) {
    let pair = Pair::start().await;
    let mut rows: [Row; 7] = Default::default();
    for round in 0..=rounds {
        for through in [false, true] {
            let at = if through { pair.user.listen } else { pair.server.address };
            let cpu = || pair.user.cpu() + pair.provider.cpu();
            let (small, small_cpu) = with_cpu(cpu, small(at)).await;
            let (download, download_cpu) = with_cpu(cpu, download(at)).await;
            let results = [
                small,
                small_cpu * 1e6 / (small * SPELL.as_secs_f64()),
                alone(at).await,
                streams(at, STREAMS, format!("tokens {TOKENS}"), TOKENS, cpu).await,
                streams(at, PACED_STREAMS, format!("tokens {PACED_TOKENS} every {EVERY_MS}"), PACED_TOKENS, cpu).await,
                download,
                download_cpu * 1e3 / (DOWNLOAD as f64 / 1e9),
            ];
            if round == 0 {
                // Connections are opened, memory is taken: what comes later is how it runs.
                continue;
            }
            for (row, result) in rows.iter_mut().zip(results) {
                if through { row.mesh.push(result) } else { row.direct.push(result) }
            }
        }
    }
    let names = [
        (format!("small requests a second, {CONCURRENT} at once"), true),
        ("CPU µs a small request in both nodes".to_owned(), false),
        ("one small request at a time, p50, µs".to_owned(), true),
        (format!("CPU µs a token in both nodes, {STREAMS} streams flat out"), false),
        (format!("CPU µs a token in both nodes, {PACED_STREAMS} streams, one in {EVERY_MS} ms"), false),
        ("download, Gbit/s".to_owned(), true),
        ("CPU ms a GB of download in both nodes".to_owned(), false),
    ];
    println!("{:<62} {:>10} {:>10} {:>8}   (medians of {rounds})", "", "straight", "mesh", "ratio");
    for ((name, compare), Row { direct, mesh }) in names.into_iter().zip(rows) {
        let (direct, mesh) = (median(direct), median(mesh));
        match compare {
            true => println!("{name:<62} {direct:>10.1} {mesh:>10.1} {:>8.2}", mesh / direct),
            false => println!("{name:<62} {:>10} {mesh:>10.1}", ""),
        }
    }
}

async fn with_cpu(cpu: impl Fn() -> Duration, work: impl Future<Output = f64>) -> (f64, f64) {
    let before = cpu();
    let result = work.await;
    (result, (cpu() - before).as_secs_f64())
}

async fn small(at: SocketAddr) -> f64 {
    let mut clients = JoinSet::new();
    let end = Instant::now() + SPELL;
    for _ in 0..CONCURRENT {
        clients.spawn(async move {
            let (mut wire, mut pace) = (Wire::connect(at).await, full());
            let mut count = 0;
            while Instant::now() < end {
                wire.ask("small").await;
                wire.answered(&mut pace).await.unwrap();
                count += 1;
            }
            count
        });
    }
    f64::from(clients.join_all().await.into_iter().sum::<u32>()) / SPELL.as_secs_f64()
}

async fn alone(at: SocketAddr) -> f64 {
    let (mut wire, mut pace) = (Wire::connect(at).await, full());
    let mut times = Vec::new();
    for _ in 0..ALONE {
        let start = Instant::now();
        wire.ask("small").await;
        wire.answered(&mut pace).await.unwrap();
        times.push(start.elapsed().as_secs_f64() * 1e6);
    }
    median(times)
}

async fn streams(at: SocketAddr, count: usize, prompt: String, tokens: usize, cpu: impl Fn() -> Duration) -> f64 {
    let mut clients = JoinSet::new();
    let before = cpu();
    for _ in 0..count {
        let prompt = prompt.clone();
        clients.spawn(async move {
            let mut wire = Wire::connect(at).await;
            wire.ask(&prompt).await;
            wire.answered(&mut full()).await.unwrap()
        });
    }
    clients.join_all().await;
    (cpu() - before).as_secs_f64() * 1e6 / (count * tokens) as f64
}

async fn download(at: SocketAddr) -> f64 {
    let mut wire = Wire::connect(at).await;
    let start = Instant::now();
    wire.ask_download(DOWNLOAD).await;
    assert_eq!(wire.answered(&mut full()).await.unwrap(), DOWNLOAD);
    DOWNLOAD as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64()
}

fn full() -> watch::Receiver<Pace> {
    watch::channel(Pace::Full).1
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
