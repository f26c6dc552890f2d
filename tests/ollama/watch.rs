//! The watch of the local Ollama: it follows one that starts, stops, hangs and changes, and asks rarely.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::internals::ollama::{Found, Ollama, State, Trouble, probe};
use ollana::internals::route::ModelName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::fake_ollama::{FakeOllama, Model, Settings};

async fn until(
    state: &mut watch::Receiver<Arc<State>>,
    wanted: impl FnMut(&Arc<State>) -> bool,
) -> (Arc<State>, Duration) {
    let since = Instant::now();
    let found = timeout(Duration::from_secs(30), state.wait_for(wanted)).await;
    let found = found.map(|state| state.unwrap().clone());
    (found.unwrap_or_else(|_| panic!("it is {:?}", state.borrow())), since.elapsed())
}

/// Answers every request with this head and body.
async fn answering(answer: &'static str) -> http::Uri {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                while stream.read(&mut [0; 4096]).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            });
        }
    });
    format!("http://{addr}").parse().unwrap()
}

#[tokio::test]
async fn an_ollama_that_starts_stops_and_starts_again_shows_within_three_seconds() {
    let mut fake = FakeOllama::start(&["smollm2", "qwen3:4b"]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let mut state = ollama.state();
    let (up, _) = until(&mut state, |state| state.healthy).await;
    assert_eq!(up.version, "0.24.0");
    assert_eq!(up.models.keys().collect::<Vec<_>>(), ["qwen3:4b", "smollm2:latest"]);
    assert!(up.has(&ModelName::new("SMOLLM2")) && !up.has(&ModelName::new("qwen3")));

    for _ in 0..2 {
        fake.stop().await;
        let (down, after) = until(&mut state, |state| !state.healthy).await;
        assert!(after < Duration::from_secs(1), "a closed port is seen at once, not after {after:?}");
        assert!(down.problem.as_ref().unwrap().to_string().contains("nothing answers"), "{down:?}");
        assert!(down.models.is_empty());
        fake.start_again().await;
        let (_, after) = until(&mut state, |state| state.healthy).await;
        assert!(after < Duration::from_secs(3), "{after:?}");
    }
}

#[tokio::test]
async fn what_it_has_is_followed_without_filling_its_log() {
    let fake = FakeOllama::start(&["smollm2"]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let mut state = ollama.state();
    until(&mut state, |state| state.healthy).await;
    fake.models(|models| {
        models.push(Model::new("new"));
        models.push(Model { remote_host: Some("https://ollama.com:443".to_owned()), ..Model::new("mine") });
        models.push(Model::new("gpt-oss:120b-cloud"));
        models[0].loaded = true;
    });
    let (now, after) = until(&mut state, |state| state.models.len() == 2).await;
    assert!(after < Duration::from_secs(6), "{after:?}");
    assert!(now.loaded.iter().eq(["smollm2:latest"]));
    assert_eq!(now.models["new:latest"].digest.len(), 64);
    assert!(now.is_remote(&ModelName::new("mine")) && now.is_remote(&ModelName::new("gpt-oss:120b-cloud")));
    let counts = fake.counts();
    assert_eq!((counts.of("/api/version"), counts.of("/api/tags"), counts.of("/api/ps")), (1, 2, 2));

    // Asked to, it looks at once; asked often, it looks once.
    fake.models(|models| models.truncate(1));
    (0..100).for_each(|_| ollama.refresh());
    let (_, after) = until(&mut state, |state| state.models.len() == 1).await;
    assert!(after < Duration::from_secs(1), "{after:?}");
    assert!(fake.counts().of("/api/tags") <= 4, "{:?}", fake.counts().requests);
}

#[tokio::test]
async fn one_that_hangs_is_withdrawn_and_comes_back() {
    let fake = FakeOllama::start(&["smollm2"]).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let mut state = ollama.state();
    until(&mut state, |state| state.healthy).await;
    fake.freeze(true);
    let (down, after) = until(&mut state, |state| !state.healthy).await;
    assert!(after < Duration::from_secs(20), "{after:?}");
    assert!(down.problem.as_ref().unwrap().to_string().contains("does not answer"), "{down:?}");
    fake.freeze(false);
    until(&mut state, |state| state.healthy).await;
}

#[tokio::test]
async fn one_that_loads_a_model_stays() {
    let fake =
        FakeOllama::start_with(&["big"], Settings { load: Duration::from_secs(3600), ..Settings::default() }).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    let mut state = ollama.state();
    until(&mut state, |state| state.healthy).await;
    let body = ollana::internals::exchange::full(r#"{"model":"big","prompt":"x"}"#);
    let request = http::Request::post("/api/generate").body(body).unwrap();
    let loading = tokio::spawn(async move { ollama.send(request).await.map(drop) });
    fake.until(|counts| counts.waiting == 1 && counts.of("/api/tags") >= 3).await;
    assert!(state.borrow_and_update().healthy && !loading.is_finished());
}

#[tokio::test]
async fn a_probe_tells_an_ollama_from_a_node_and_from_others() {
    let fake = FakeOllama::start(&[]).await;
    assert_eq!(probe(&fake.url()).await, Found::Ollama { version: "0.24.0".to_owned() });

    let as_node = "HTTP/1.1 200 OK\r\nollana-peer: gpu1\r\ncontent-length: 20\r\n\r\n{\"version\":\"0.24.0\"}";
    assert_eq!(probe(&answering(as_node).await).await, Found::Ollana);
    let alone = "HTTP/1.1 503 Service Unavailable\r\nollana-node: gpu1\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(probe(&answering(alone).await).await, Found::Ollana);
    let other = "HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno";
    assert!(matches!(probe(&answering(other).await).await, Found::Other(Trouble::Other { .. })));
    let ssh = probe(&answering("SSH-2.0-OpenSSH_9.9\r\n").await).await;
    assert!(matches!(ssh, Found::Other(Trouble::Broken { .. })), "{ssh:?}");
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(probe(&format!("http://{closed}").parse().unwrap()).await, Found::Nothing);
}

#[tokio::test]
async fn a_node_is_never_taken_for_an_ollama() {
    let node =
        answering("HTTP/1.1 200 OK\r\nollana-peer: gpu1\r\ncontent-length: 20\r\n\r\n{\"version\":\"0.24.0\"}").await;
    let (ollama, _watch) = Ollama::spawn(&node);
    let mut state = ollama.state();
    let (state, _) = until(&mut state, |state| state.problem.is_some()).await;
    assert!(!state.healthy && state.problem.as_ref().unwrap().to_string().contains("an Ollana"), "{state:?}");
    let request = http::Request::get("/api/tags").body(ollana::internals::exchange::empty()).unwrap();
    assert!(ollama.send(request).await.unwrap_err().to_string().contains("an Ollana"));
}

#[tokio::test]
async fn an_address_that_cannot_be_asked_says_why() {
    let (ollama, _watch) = Ollama::spawn(&"https://ollama.example".parse().unwrap());
    let mut state = ollama.state();
    let (state, _) = until(&mut state, |state| state.problem.is_some()).await;
    assert!(state.problem.as_ref().unwrap().to_string().contains("http://"), "{state:?}");
}
