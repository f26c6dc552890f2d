//! A node's use of its machine, against the bounds below, with nodes as processes on loopback:
//! resident memory with bodies of many GB and slow readers, memory and processor time at rest, and how soon work ends
//! that nobody waits for. Exits with 1 if a bound is passed.
//!
//! `cargo bench --bench footprint -- [GB each way] [seconds at rest]`; by default 8 and 60.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

#[path = "../tests/support/load.rs"]
mod load;
#[path = "../tests/support/processes.rs"]
mod processes;
#[path = "../tests/support/stand_in.rs"]
mod stand_in;

use load::{Pair, When};
use processes::Node;
use stand_in::{Pace, StandIn, Wire};

const MB: f64 = 1024.0 * 1024.0;
/// Each node, whatever passes through it: a small part of a machine that runs models.
const BUSY_MB: f64 = 64.0;
/// A node at rest, which most are for most of the day.
const IDLE_MB: f64 = 20.0;
const IDLE_PERCENT: f64 = 0.5;
/// How soon the work for a client that goes away ends: no model computes for nobody.
const GONE_MS: f64 = 1000.0;
/// Nodes of a small lab, each with an Ollama, all connected to the one that is measured.
const LAB: usize = 10;
/// Requests whose readers stall at once, and what that may take: no figure of the contract, but a bound there has to be.
/// A window of 256 KiB and as much in the listener's hands make 32 MB; the rest is that packets which came together stay
/// in memory together until the last of them is read.
const STALLED: usize = 64;
const STALLED_MB: f64 = 128.0;
/// Until what a start needs is given back and forgotten.
const SETTLE: Duration = Duration::from_secs(5);
const DISCONNECTS: usize = 20;

#[derive(Default)]
struct Table {
    failed: bool,
}

impl Table {
    fn row(&mut self, what: &str, value: f64, unit: &str, bound: Option<f64>) {
        let (bound, verdict) = match bound {
            Some(bound) if value < bound => (format!("< {bound}"), "ok"),
            Some(bound) => {
                self.failed = true;
                (format!("< {bound}"), "FAILED")
            }
            None => (String::new(), ""),
        };
        println!("{what:<58} {value:>10.2} {unit:<6} {bound:>8}  {verdict}");
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if !arguments.iter().any(|argument| argument == "--bench") {
        // `cargo test --benches` only wants to know that it builds.
        return;
    }
    let mut numbers = arguments.iter().filter_map(|argument| argument.parse::<f64>().ok());
    let gigabytes = numbers.next().unwrap_or(8.0);
    let rest = Duration::from_secs_f64(numbers.next().unwrap_or(60.0));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut table = Table::default();
    runtime.block_on(async {
        at_rest(&mut table, rest).await;
        lab_at_rest(&mut table, rest).await;
        both_ways(&mut table, gigabytes).await;
        many_stalled(&mut table).await;
        disconnects(&mut table).await;
    });
    if table.failed {
        std::process::exit(1);
    }
}

async fn at_rest(table: &mut Table, rest: Duration) {
    let pair = Pair::start().await;
    idle(table, rest, &pair.nodes().map(|(name, node)| (format!("{name}, one peer"), node))).await;
}

async fn lab_at_rest(table: &mut Table, rest: Duration) {
    let server = StandIn::start().await;
    let address = server.address;
    let nodes = tokio::task::spawn_blocking(move || {
        let mut nodes = vec![Node::start("node0", Some(address), &[])];
        let first = nodes[0].mesh;
        nodes.extend((1..=LAB).map(|number| Node::start(&format!("node{number}"), Some(address), &[first])));
        // Who is dialled dials back.
        nodes[0].waits_for_providers(LAB);
        nodes[LAB].waits_for_providers(1);
        nodes
    })
    .await
    .unwrap();
    idle(table, rest, &[(format!("node, {LAB} peers"), &nodes[0])]).await;
}

async fn idle(table: &mut Table, rest: Duration, nodes: &[(String, &Node)]) {
    tokio::time::sleep(SETTLE).await;
    let start = Instant::now();
    let before: Vec<_> = nodes.iter().map(|(_, node)| (node.cpu(), node.wakeups())).collect();
    tokio::time::sleep(rest).await;
    let seconds = start.elapsed().as_secs_f64();
    for ((name, node), (cpu, wakeups)) in nodes.iter().zip(before) {
        let percent = (node.cpu() - cpu).as_secs_f64() / seconds * 100.0;
        table.row(&format!("at rest: {name}: resident"), node.memory().now as f64 / MB, "MB", Some(IDLE_MB));
        table.row(&format!("at rest: {name}: resident at most"), node.memory().peak as f64 / MB, "MB", None);
        table.row(&format!("at rest: {name}: of a core"), percent, "%", Some(IDLE_PERCENT));
        table.row(&format!("at rest: {name}: wake-ups"), (node.wakeups() - wakeups) as f64 / seconds, "/s", None);
    }
}

async fn both_ways(table: &mut Table, gigabytes: f64) {
    let pair = Pair::start().await;
    // From the command line: a few gigabytes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = (gigabytes * 1e9) as u64;
    let start = Instant::now();
    let stalled = pair.both_ways(bytes, Duration::from_secs(10)).await;
    let took = start.elapsed().as_secs_f64();
    table.row("stalled readers: let into the mesh, upload", stalled.uploaded as f64 / MB, "MB", None);
    table.row("stalled readers: let into the mesh, download", stalled.downloaded as f64 / MB, "MB", None);
    for (name, node) in pair.nodes() {
        let what = format!("{gigabytes} GB each way, slow readers first: {name}: resident");
        table.row(&what, node.memory().peak as f64 / MB, "MB", Some(BUSY_MB));
    }
    table.row("the same: time for all of it", took, "s", None);
    tokio::time::sleep(SETTLE).await;
    for (name, node) in pair.nodes() {
        table.row(&format!("at rest after it: {name}: resident"), node.memory().now as f64 / MB, "MB", None);
    }
}

/// Many readers at once that do not read: what one connection may make a node hold.
async fn many_stalled(table: &mut Table) {
    let pair = Pair::start().await;
    let pace = tokio::sync::watch::channel(Pace::Stalled);
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..STALLED {
        let (mut reader, at) = (pace.1.clone(), pair.user.listen);
        readers.spawn(async move {
            let mut wire = Wire::connect(at).await;
            wire.ask_download(1 << 40).await;
            wire.answered(&mut reader).await
        });
    }
    tokio::time::sleep(SETTLE).await;
    for (name, node) in pair.nodes() {
        let what = format!("{STALLED} stalled downloads: {name}: resident");
        table.row(&what, node.memory().peak as f64 / MB, "MB", Some(STALLED_MB));
    }
    // Beside them the reports still come, or the provider would be given up after 3 s.
    let log = pair.user.log();
    table.row("the same: times the provider counted as gone", log.matches("unreachable").count() as f64, "", Some(1.0));
    readers.shutdown().await;
    tokio::time::sleep(SETTLE).await;
    for (name, node) in pair.nodes() {
        table.row(&format!("at rest after it: {name}: resident"), node.memory().now as f64 / MB, "MB", None);
    }
}

async fn disconnects(table: &mut Table) {
    let mut pair = Pair::start().await;
    for when in [When::WaitingForTheHead, When::BetweenTokens, When::InMidUpload, When::InMidDownload] {
        let mut worst = Duration::ZERO;
        for _ in 0..DISCONNECTS {
            worst = worst.max(pair.disconnect(when).await);
        }
        let what = format!("a client goes ({when:?}), {DISCONNECTS} times: worst");
        table.row(&what, worst.as_secs_f64() * 1000.0, "ms", Some(GONE_MS));
    }
}
