//! Who is there, and whether: without nodes around.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::internals::exchange::ServerKind;
use ollana::internals::ollama::{Found, Ollama, State, Trouble, probe};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::fake_ollama::{FakeOllama, Settings};
use super::grpc_server::{Face, Grpc};
use super::openai_only::{Flavour, OpenAiOnly};

async fn until(
    state: &mut watch::Receiver<Arc<State>>,
    wanted: impl FnMut(&Arc<State>) -> bool,
) -> (Arc<State>, Duration) {
    let since = Instant::now();
    let found = tokio::time::timeout(Duration::from_secs(30), state.wait_for(wanted)).await;
    let found = found.map(|state| state.unwrap().clone());
    (found.unwrap_or_else(|_| panic!("it is {:?}", state.borrow())), since.elapsed())
}

pub async fn each_server_is_told_by_its_answers() {
    for (flavour, name) in
        [(Flavour::LlamaServer, "llama.cpp"), (Flavour::Vllm, "vLLM"), (Flavour::LmStudio, "LM Studio")]
    {
        let server = OpenAiOnly::start(flavour, &["m"]).await;
        assert_eq!(probe(&server.url()).await, Found::OpenAi { server: Some(name.to_owned()) });
        let (ollama, _watch) = Ollama::spawn(&server.url());
        let (state, _) = until(&mut ollama.state(), |state| state.healthy).await;
        assert_eq!((state.kind, state.server.as_deref()), (ServerKind::OpenAi, Some(name)));
        assert!(state.loaded.contains("m") && state.models["m"].digest.is_empty());
    }
    let empty = OpenAiOnly::start(Flavour::LmStudio, &[]).await;
    assert_eq!(probe(&empty.url()).await, Found::OpenAi { server: None });
    for face in [Face::Bare, Face::Strict] {
        assert_eq!(probe(&Grpc::start(face).await.url()).await, Found::Grpc);
    }
    let ollama = Found::Ollama { version: "0.24.0".to_owned() };
    assert_eq!(probe(&Grpc::start(Face::Ollama).await.url()).await, ollama);
    assert_eq!(probe(&Grpc::start(Face::OllamaOverHttp2).await.url()).await, ollama);
}

pub async fn one_that_loads_its_model_is_lent_when_it_has() {
    let server = OpenAiOnly::start(Flavour::LlamaServer, &["m"]).await;
    server.load(true);
    let (ollama, _watch) = Ollama::spawn(&server.url());
    let mut state = ollama.state();
    let (loading, _) = until(&mut state, |state| state.problem.is_some()).await;
    assert!(!loading.healthy && loading.problem.as_ref().unwrap().to_string().contains("not ready"), "{loading:?}");
    assert!(matches!(probe(&server.url()).await, Found::Other(Trouble::NotReady(_))));
    server.load(false);
    let (_, after) = until(&mut state, |state| state.healthy).await;
    assert!(after < Duration::from_secs(3), "{after:?}");

    // It is followed: what it has, and whether it is there.
    server.models(&["m", "n"]);
    until(&mut state, |state| state.models.len() == 2).await;
    let mut server = server;
    server.stop().await;
    let (_, after) = until(&mut state, |state| !state.healthy).await;
    assert!(after < Duration::from_secs(2), "{after:?}");
    server.start_again().await;
    let (_, after) = until(&mut state, |state| state.healthy).await;
    assert!(after < Duration::from_secs(3), "{after:?}");
}

pub async fn a_server_that_another_kind_takes_the_place_of_is_met_anew() {
    let mut openai = OpenAiOnly::start(Flavour::LlamaServer, &["a"]).await;
    let (ollama, _watch) = Ollama::spawn_named(&openai.url());
    let mut state = ollama.state();
    until(&mut state, |state| state.healthy && state.kind == ServerKind::OpenAi).await;
    openai.stop().await;
    let mut fake = FakeOllama::start_at(openai.addr(), &["b"], Settings::default()).await;
    let (now, _) = until(&mut state, |state| state.healthy && state.kind == ServerKind::Ollama).await;
    assert!(now.models.contains_key("b:latest") && now.server.is_none(), "{now:?}");
    fake.stop().await;
    openai.start_again().await;
    let (now, _) = until(&mut state, |state| state.healthy && state.kind == ServerKind::OpenAi).await;
    assert!(now.version.is_empty() && now.models.contains_key("a"), "{now:?}");
}

pub async fn a_server_with_one_thread_is_not_held_up() {
    let any = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    let server = OpenAiOnly::start_at(any, Flavour::LlamaServer, &["m"], true).await;
    let (ollama, _watch) = Ollama::spawn(&server.url());
    until(&mut ollama.state(), |state| state.healthy).await;
    let direct = async {
        let mut stream = TcpStream::connect(server.addr()).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        stream.read_to_string(&mut String::new()).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(2), direct).await.expect("nobody sits on its thread");
    server.until("GET /v1/models", 3).await;
    assert!(ollama.state().borrow().healthy);
}

pub async fn an_h2c_server_is_lent_only_if_it_was_named() {
    let mut server = Grpc::start(Face::Bare).await;
    let (found, _watch) = Ollama::spawn(&server.url());
    let (named, _watch_too) = Ollama::spawn_named(&server.url());
    let (state, _) = until(&mut named.state(), |state| state.healthy).await;
    assert_eq!((state.kind, state.models.len()), (ServerKind::Grpc, 0));
    let (state, _) = until(&mut found.state(), |state| state.problem.is_some()).await;
    assert!(!state.healthy, "{state:?}");
    server.stop().await;
    let (_, after) = until(&mut named.state(), |state| !state.healthy).await;
    assert!(after < Duration::from_secs(2), "{after:?}");
    server.start_again().await;
    until(&mut named.state(), |state| state.healthy).await;
}
