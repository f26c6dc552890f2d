//! What the gate tells of itself, and how it ends.

use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt as _;
use ollana::internals::exchange::Health;
use ollana::internals::gate::Caller;
use ollana::internals::id::{Id, NodeName, Scope, Use};
use serde_json::json;

use crate::fake_ollama::{Model, Settings, expected};
use crate::{Provider, peer, post, read, request};

fn slow() -> Settings {
    Settings { pace: Duration::from_millis(10), tokens: 1_000_000, ..Settings::default() }
}

fn generate() -> http::Request<ollana::internals::exchange::Body> {
    post("/api/generate", &json!({"model":"m","prompt":"x"}))
}

#[tokio::test]
async fn a_request_counts_until_the_end_of_its_answer() {
    let provider = Provider::start_with(&["m"], slow()).await;
    let mut load = provider.gate.load();
    let mut owners = provider.gate.serve(Caller::Owner, generate()).await.unwrap();
    let peers = provider.gate.serve(peer(Scope::Infer), generate()).await.unwrap();
    load.wait_for(|load| load.inflight == 2).await.unwrap();
    // The head has long come; frames come; it still runs.
    let _ = owners.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(load.borrow_and_update().inflight, 2);
    drop(peers);
    load.wait_for(|load| load.inflight == 1).await.unwrap();
    drop(owners);
    load.wait_for(|load| load.inflight == 0).await.unwrap();
    provider.fake.set(|settings| settings.tokens = 3);
    let whole = read(provider.gate.serve(Caller::Owner, generate()).await.unwrap()).await;
    assert_eq!(whole.body.lines().count(), 4);
    load.wait_for(|load| load.inflight == 0).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_goes_away_ends_the_work_within_a_second() {
    let loads = Settings { load: Duration::from_secs(3600), ..slow() };
    let provider = Provider::start_with(&["m"], loads).await;
    let waiting = tokio::spawn(provider.gate.serve(peer(Scope::Infer), generate()));
    provider.fake.until(|counts| counts.waiting == 1).await;
    let since = Instant::now();
    waiting.abort();
    provider.fake.until(|counts| counts.aborted == 1).await;
    provider.fake.set(|settings| settings.load = Duration::ZERO);
    let mut answer = provider.gate.serve(peer(Scope::Infer), generate()).await.unwrap();
    let _ = answer.body_mut().frame().await.unwrap().unwrap();
    drop(answer);
    provider.fake.until(|counts| counts.aborted == 2 && counts.running == 0).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    provider.gate.load().wait_for(|load| load.inflight == 0).await.unwrap();
}

#[tokio::test]
async fn a_break_in_mid_answer_is_a_break() {
    let provider = Provider::start_with(&["m"], Settings { break_after: Some(3), ..Settings::default() }).await;
    let answer = provider.gate.serve(peer(Scope::Infer), generate()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.into_body().collect().await.is_err());
    provider.gate.idle().await;
}

#[tokio::test]
async fn what_is_loaded_shows_soon_after_it_ran() {
    let provider = Provider::start(&["m"]).await;
    let mut report = provider.gate.report();
    let mut load = provider.gate.load();
    report.wait_for(|report| report.provider).await.unwrap();
    assert_eq!(load.borrow_and_update().loaded().count(), 0);
    let since = Instant::now();
    let _ = provider.ask(peer(Scope::Infer), generate()).await;
    load.wait_for(|load| load.loaded().eq(["m:latest"])).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(2), "not only at the next look: {:?}", since.elapsed());
    // Once it is known, more requests are no reason to ask again.
    let before = provider.fake.counts().of("/api/tags");
    for _ in 0..20 {
        let _ = provider.ask(peer(Scope::Infer), generate()).await;
    }
    assert!(provider.fake.counts().of("/api/tags") <= before + 1);
}

#[tokio::test]
async fn what_made_way_is_known_to_be_gone_at_once_though_it_answered_a_moment_ago() {
    let provider = Provider::start(&["m", "n"]).await;
    let mut load = provider.gate.load();
    provider.gate.report().wait_for(|report| report.provider).await.unwrap();
    let _ = provider.ask(peer(Scope::Infer), generate()).await;
    load.wait_for(|load| load.loaded().eq(["m:latest"])).await.unwrap();
    let _ = provider.ask(peer(Scope::Infer), generate()).await;
    provider.fake.models(|models| models.iter_mut().for_each(|model| model.loaded = false));
    let since = Instant::now();
    let _ = provider.ask(peer(Scope::Infer), request("POST", "/api/generate", r#"{"model":"n","prompt":"x"}"#)).await;
    let gone = load.wait_for(|load| load.loaded().eq(["n:latest"]));
    tokio::time::timeout(Duration::from_secs(4), gone).await.expect("not only seconds later").unwrap();
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
}

#[tokio::test]
async fn a_model_that_a_peer_sees_in_the_list_is_in_the_report_at_once() {
    let provider = Provider::start(&["m"]).await;
    let mut report = provider.gate.report();
    report.wait_for(|report| report.models.contains_key("m:latest")).await.unwrap();
    let since = Instant::now();
    provider.fake.models(|models| models.push(Model::new("new")));
    let list = provider.ask(peer(Scope::Infer), request("GET", "/api/tags", "")).await;
    assert!(list.body.contains("new:latest"));
    report.wait_for(|report| report.models.contains_key("new:latest")).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(2), "not only at the next look: {:?}", since.elapsed());
}

#[tokio::test]
async fn many_short_requests_are_few_reports() {
    let provider = Provider::start(&["m"]).await;
    let mut report = provider.gate.report();
    let (since, mut changes) = (Instant::now(), 0);
    let requests = async {
        for _ in 0..300 {
            let _ = provider.ask(peer(Scope::Infer), request("GET", "/api/version", "")).await;
        }
    };
    tokio::pin!(requests);
    loop {
        tokio::select! {
            () = &mut requests => break,
            _ = report.changed() => changes += 1,
        }
    }
    let most = since.elapsed().as_millis() / 20 + 2;
    assert!(changes <= most, "{changes} in {:?}", since.elapsed());
}

#[tokio::test]
async fn a_gate_that_drains_takes_nothing_new_and_finishes_what_runs() {
    let provider =
        Provider::start_with(&["m"], Settings { pace: Duration::from_millis(20), ..Settings::default() }).await;
    let running = provider.gate.serve(peer(Scope::Infer), generate()).await.unwrap();
    provider.gate.drain();
    provider.gate.report().wait_for(|report| report.draining).await.unwrap();
    let refused = provider.ask(peer(Scope::Infer), generate()).await;
    assert_eq!((refused.status, refused.refusal.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("draining")));
    assert_eq!(refused.headers["retry-after"], "1");
    let gate = provider.gate.clone();
    let idle = tokio::spawn(async move { gate.idle().await });
    let answer = read(running).await;
    let said: String = answer
        .body
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["response"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(said, expected("m:latest", "x", 8));
    tokio::time::timeout(Duration::from_secs(1), idle).await.expect("nothing runs any more").unwrap();
}

#[tokio::test]
async fn the_gate_is_an_endpoint_of_its_own_node() {
    let provider = Provider::start(&["m"]).await;
    let endpoint = provider.gate.endpoint(Id::from_bytes([1; 32]), NodeName::lossy("here"), Caller::Owner);
    assert!(endpoint.is_local() && endpoint.use_() == Use::Yes && *endpoint.health().borrow() == Health::Healthy);
    assert_eq!((endpoint.id(), endpoint.label().as_str()), (Id::from_bytes([1; 32]), "here"));
    endpoint.report().wait_for(|report| report.provider).await.unwrap();
    // The owner's own account is the owner's.
    let answer = read(endpoint.exchange(request("POST", "/api/me", "")).await.unwrap()).await;
    assert!(answer.body.contains("signin_url"), "{}", answer.body);
}

#[tokio::test]
async fn behind_an_open_listener_its_own_node_is_a_guest() {
    let provider = Provider::start(&["m", "gpt-oss:120b-cloud"]).await;
    let endpoint = provider.gate.endpoint(Id::from_bytes([1; 32]), NodeName::lossy("here"), Caller::Guest);
    for (method, path, body, status, refusal) in [
        ("POST", "/api/chat", r#"{"model":"x:cloud"}"#, 403, Some("cloud")),
        ("POST", "/api/generate", r#"{"model":"m","keep_alive":0}"#, 403, Some("unload")),
        ("DELETE", "/api/delete", r#"{"model":"m"}"#, 403, Some("scope")),
        ("POST", "/api/signout", "", 403, Some("owner-only")),
        ("POST", "/api/generate", r#"{"model":"m","prompt":"x"}"#, 200, None),
    ] {
        let answer = read(endpoint.exchange(request(method, path, body)).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.refusal.as_deref()), (status, refusal), "{path} {}", answer.body);
        assert!(!answer.body.contains("ollana trust"), "nobody is to be trusted for it: {}", answer.body);
    }
    let listed = read(endpoint.exchange(request("GET", "/api/tags", "")).await.unwrap()).await;
    assert!(listed.body.contains("m:latest") && !listed.body.contains("cloud"), "{}", listed.body);
}
