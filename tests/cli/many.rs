//! Hundreds of requests and thousands of connections at once, with the settings that nobody has changed.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::fake_ollama::Settings;
use super::home::Home;
use super::lab::{Lab, PATIENCE, Reply, address, ask};

/// An application's request to run a model for some tokens.
const GENERATE: &str = r#"{"model":"m","prompt":"why","stream":false,"options":{"num_predict":4}}"#;

/// So many at once are all answered, and well.
async fn all_succeed(count: usize, at: SocketAddr) {
    let mut asking = JoinSet::new();
    for _ in 0..count {
        asking.spawn(ask(at, "POST", "/api/generate", GENERATE));
    }
    let answers = tokio::time::timeout(PATIENCE, asking.join_all()).await.expect("not all were answered");
    let refused: Vec<&Reply> = answers.iter().filter(|reply| reply.status != 200).collect();
    assert!(refused.is_empty(), "{} of {count} failed: {:?}", refused.len(), refused[0]);
    for reply in &answers {
        assert_eq!(serde_json::from_str::<Value>(&reply.body).unwrap()["done"], true);
    }
}

/// Lets this test have as many files open as it may.
fn many_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    let current = maximum.map_or(8192, |maximum| maximum.min(8192));
    setrlimit(Resource::Nofile, Rlimit { current: Some(current), maximum }).unwrap();
}

/// A node in the background that is let have no more files than so many to begin with, and so many at most.
fn with_files(home: &Home, soft: u32, hard: u32) {
    let limited = format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" serve -d");
    let started = Command::new("sh")
        .args(["-c", &limited, env!("CARGO_BIN_EXE_ollana")])
        .env_clear()
        .envs(home.command(&[]).get_envs().filter_map(|(name, value)| Some((name, value?))))
        .output()
        .unwrap();
    assert!(started.status.success(), "{started:?}");
}

/// Connections on which a head is begun and never ended.
async fn half_heads(count: usize, at: SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(at).await.unwrap();
        // One that had to give way already takes no more.
        let _ = stream.write_all(b"GET / HTTP/1.1\r\nHost: localh").await;
        held.push(stream);
    }
    held
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_requests_at_once_all_succeed() {
    let settings =
        Settings { parallel: 4, tokens: 4, pace: Duration::from_millis(5), record: false, ..Settings::default() };
    let lab = Lab::start(&[("gpu1", settings)]).await;
    let began = std::time::Instant::now();
    all_succeed(500, lab.laptop()).await;
    eprintln!("500 at once through two nodes took {:?}", began.elapsed());
    assert_eq!(lab.ollama("gpu1").counts().of("/api/generate"), 500, "each ran once");
    assert!(lab.ollama("gpu1").counts().most_at_a_model <= 8, "the queue is at the gate, and not in the Ollama");
    // The provider's own applications too.
    all_succeed(500, lab.listener("gpu1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_finds_a_free_slot_is_none_that_waits() {
    let settings = Settings { parallel: 4, pace: Duration::from_millis(5), record: false, ..Settings::default() };
    let (slots, none) = ([("OLLANA_LEND_PARALLEL", "4")], [("OLLANA_BALANCE_WAITING", "0")]);
    let lab = Lab::start_with(&[("gpu1", settings)], &slots, &none).await;
    all_succeed(4, lab.laptop()).await;
    // Where none is free, and nobody may wait, it is said when there will be.
    let long = GENERATE.replace(":4}", ":1000}");
    let mut asking = JoinSet::new();
    for _ in 0..12 {
        let (at, long) = (lab.laptop(), long.clone());
        asking.spawn(async move { ask(at, "POST", "/api/generate", &long).await });
    }
    let answers = tokio::time::timeout(PATIENCE, asking.join_all()).await.expect("not all were answered");
    let (served, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|reply| reply.status == 200);
    assert!(served.len() >= 4 && !refused.is_empty(), "{} were served", served.len());
    for reply in refused {
        assert!(reply.status == 503 && reply.body.contains("balance.waiting"), "{reply:?}");
        let after: u64 = reply.field("Retry-After").unwrap().parse().unwrap();
        assert!((1..=120).contains(&after), "{after}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_open_connections_are_all_answered() {
    many_files();
    let home = Home::new();
    with_files(&home, 256, 4096 + 1024);
    let at = address(&home, "listen");
    let mut open = Vec::new();
    for _ in 0..2000 {
        open.push(TcpStream::connect(at).await.unwrap());
    }
    // Twice on each: none was closed in between.
    for _ in 0..2 {
        for stream in &mut open {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
        }
        for stream in &mut open {
            let mut said = Vec::new();
            while !said.ends_with(b"Ollama is running") {
                assert!(soon(stream.read_buf(&mut said)).await.unwrap() > 0, "{}", String::from_utf8_lossy(&said));
            }
        }
    }
    let log = std::fs::read_to_string(home.state().join("ollana.log")).unwrap();
    assert!(!log.contains("oo many open files"), "{log}");
    home.ok(&["stop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_few_files_answers_and_doctor_says_so() {
    let home = Home::new();
    with_files(&home, 128, 128);
    let at = address(&home, "listen");
    // Many more than it can hold: those that ask nothing give way.
    let held = half_heads(300, at).await;
    for _ in 0..5 {
        assert_eq!(soon(ask(at, "GET", "/", "")).await.body, "Ollama is running");
    }
    let log = std::fs::read_to_string(home.state().join("ollana.log")).unwrap();
    assert!(log.matches("cannot be accepted").count() <= 1, "{log}");
    drop(held);
    let findings: Value = serde_json::from_str(&home.run(&["doctor", "--json"]).out).unwrap();
    let files = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "files").unwrap();
    assert_eq!(files["level"], "hint");
    assert!(files["found"].as_str().unwrap().contains("128 files"), "{files}");
    assert!(files["do"].as_str().unwrap().contains("LimitNOFILE="), "{files}");
    home.ok(&["stop"]);
    // Most machines let it have enough.
    with_files(&home, 128, 16_384);
    let findings: Value = serde_json::from_str(&home.run(&["doctor", "--json"]).out).unwrap();
    let files = findings.as_array().unwrap().iter().find(|finding| finding["check"] == "files").unwrap();
    assert_eq!(files["level"], "ok", "{files}");
    home.ok(&["stop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_and_deaf_readers_keep_nobody_off_the_status_page() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    let at = address(&home, "status_page");
    let _slow = half_heads(200, at).await;
    assert_eq!(soon(ask(at, "GET", "/status.json", "")).await.status, 200);
    // Those who ask for more than they read.
    let mut deaf = Vec::new();
    for _ in 0..100 {
        let mut stream = TcpStream::connect(at).await.unwrap();
        let asks = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(2000);
        let _ = tokio::time::timeout(Duration::from_millis(50), stream.write_all(asks.as_bytes())).await;
        deaf.push(stream);
    }
    for _ in 0..5 {
        let page = soon(ask(at, "GET", "/", "")).await;
        assert!(page.status == 200 && page.body.ends_with("</html>"), "{page:?}");
    }
    home.ok(&["stop"]);
}
