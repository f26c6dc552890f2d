//! Nodes that behave.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use ollana::internals::id::{NodeName, Scope, Use};
use ollana::internals::peers::PeerState;
use ollana::internals::trust::Trust;

use super::fake_ollama::{FakeOllama, expected};
use super::node::{node, prompt, read, until, within};
use super::stranger::Stranger;

#[tokio::test(flavor = "multi_thread")]
async fn an_application_on_one_node_is_answered_by_the_ollama_of_another() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    let peer = user.until_lent(provider.id(), "m").await;
    assert_eq!((peer.name, peer.trust, peer.use_), (NodeName::lossy("gpu1"), Trust::FirstUse, Use::Yes));

    ollama.set(|settings| settings.pace = Duration::from_millis(20));
    let mut answer = within(user.post("/api/generate", &prompt("m", 5))).await;
    assert_eq!(answer.headers()["ollana-peer"], "gpu1");
    let mut said = String::new();
    while let Some(frame) = within(answer.frame()).await {
        let line = frame.unwrap().into_data().unwrap();
        let line: serde_json::Value = serde_json::from_slice(&line).expect("a line at a time, as it was said");
        said.push_str(line["response"].as_str().unwrap());
    }
    assert_eq!(said, expected("m:latest", "why", 5));

    let (status, list) = read(user.get("/api/tags").await).await;
    assert!(status.is_success() && list.contains("m:latest"), "{list}");
    let user_there = provider.until_peer(user.id(), |peer| peer.state == PeerState::Connected).await;
    assert_eq!((user_there.scope, user_there.provider), (Scope::Infer, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_is_dialled_again() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    let id = provider.id();
    user.until_lent(id, "m").await;
    let stopped = provider.stop().await;
    user.until_peer(id, |peer| peer.state == PeerState::Unreachable && peer.models.is_empty()).await;
    let (status, _) = read(user.post("/api/generate", &prompt("m", 1)).await).await;
    assert!(!status.is_success());
    let again = stopped.lends(&ollama).start().await;
    assert_eq!(again.id(), id);
    user.until_lent(id, "m").await;
    assert_eq!(read(user.post("/api/generate", &prompt("m", 1)).await).await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_the_owner_does_not_let_in_gets_a_403_and_learns_no_model() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).start().await;
    let stranger = Stranger::new("stranger");
    provider.trust(stranger.id, Scope::None).await;
    let mut met = within(stranger.dial(provider.mesh)).await;
    let ask = || http::Request::get("/api/tags").body(ollana::internals::exchange::empty()).unwrap();
    let refused = within(met.exchange(ask())).await.unwrap();
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let refused = String::from_utf8(refused.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(refused.contains("ollana trust"), "{refused}");
    let report = within(async {
        loop {
            let report = met.report().await;
            if report.provider {
                return report;
            }
        }
    })
    .await;
    assert!(report.models.is_empty() && report.scope == Scope::None);
    assert_eq!(ollama.counts().of("/fake/headers"), 0);

    // The word of the owner counts for a connection that stands, too.
    provider.trust(stranger.id, Scope::Infer).await;
    within(async { while met.report().await.models.is_empty() {} }).await;
    assert_eq!(within(met.exchange(ask())).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_of_one_name_are_told_apart() {
    let ollama = FakeOllama::start(&["m"]).await;
    let one = node("gpu").lends(&ollama).start().await;
    let two = node("gpu").lends(&ollama).start().await;
    let user = node("laptop").dials(one.mesh).dials(two.mesh).start().await;
    let (first, second) = until("one name with a piece of the ID", || {
        let (first, second) = (user.peer(one.id())?, user.peer(two.id())?);
        (first.name != second.name).then_some((first, second))
    })
    .await;
    // Who was met first keeps the name; the other gets a piece of its ID, and people are told.
    let other = if first.name.as_str() == "gpu" { second } else { first };
    assert_eq!(other.name.as_str(), format!("gpu-{}", other.id.short()));
    assert!(other.problem.is_some());
    assert!(!user.view().conflicts().is_empty());
}
