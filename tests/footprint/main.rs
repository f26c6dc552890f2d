//! What a node takes of its machine, with nodes as processes: the short form of `cargo bench --bench footprint`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

#[path = "../support/load.rs"]
mod load;
#[path = "../support/processes.rs"]
mod processes;
#[path = "../support/stand_in.rs"]
mod stand_in;

use load::{Pair, When};
use stand_in::{Event, Wire};

const MB: u64 = 1024 * 1024;
/// Each node, whatever passes through it: a small part of a machine that runs models.
const BOUND: u64 = 64 * MB;
/// A client that goes away ends the work at the Ollama within this.
const WITHIN: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_any_size_pass_in_bounded_memory_while_their_readers_stall() {
    let pair = Pair::start().await;
    let stalled = pair.both_ways(300 * MB, Duration::from_secs(2)).await;
    println!("stalled readers let {} kB up and {} kB down", stalled.uploaded / 1024, stalled.downloaded / 1024);
    for (name, node) in pair.nodes() {
        let memory = node.memory();
        println!("{name}: {} kB resident, {} kB at most", memory.now / 1024, memory.peak / 1024);
        assert!(memory.peak < BOUND, "{name} took {} kB:\n{}", memory.peak / 1024, node.log());
    }
    // Kernel buffers included: the slow reader slowed the writer, and nobody in between took it all.
    assert!(stalled.uploaded < BOUND && stalled.downloaded < BOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_disconnects_ends_the_work_at_the_ollama() {
    let mut pair = Pair::start().await;
    for when in [When::WaitingForTheHead, When::BetweenTokens, When::InMidUpload, When::InMidDownload] {
        let took = pair.disconnect(when).await;
        println!("{when:?}: {took:?}");
        assert!(took < WITHIN, "{when:?}: the work ran on for {took:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_stall_stop_neither_other_answers_nor_the_reports() {
    let mut pair = Pair::start().await;
    let mut readers = Vec::new();
    for _ in 0..64 {
        let mut wire = Wire::connect(pair.user.listen).await;
        wire.ask_download(1 << 40).await;
        wire.head().await.unwrap();
        readers.push(wire);
    }
    pair.waits_until_downloads_stand_still().await;
    // What was begun before a report was missed would run on; this one is sent to who is there now.
    let mut wire = Wire::connect(pair.user.listen).await;
    wire.ask("small").await;
    assert!(wire.head().await.unwrap().starts_with("HTTP/1.1 200"));
    // Silence shows after 3 s.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let log = pair.user.log();
    assert!(!log.contains("unreachable"), "{log}");
    while pair.server.events.try_recv().is_ok() {}
    drop(readers);
    for _ in 0..64 {
        let event = pair.server.event().await;
        assert!(matches!(event, Event::Closed(_)), "{event:?}");
    }
}
