//! The owner first: when a node lends, and what stays its owner's.

use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyExt as _;
use jiff::{SignedDuration, ZonedDateTime};
use ollana::internals::exchange::Denial;
use ollana::internals::peers::PeerState;

use super::fake_ollama::FakeOllama;
use super::node::{Node, node, prompt, read, until, within};
use super::stranger::Stranger;

/// Hours that begin and end so many seconds from now.
fn hours(from: i64, to: i64) -> String {
    let now = ZonedDateTime::now().datetime();
    let time = |seconds| now.checked_add(SignedDuration::from_secs(seconds)).unwrap().strftime("%H:%M:%S").to_string();
    format!("{}-{}", time(from), time(to))
}

async fn until_healthy(node: &Node) {
    until("an Ollama that answers", || node.view().ollama().healthy.then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_its_hours_a_node_lends_nothing_and_says_so() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).lends_at_hours(&hours(3_600, 7_200)).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    until_healthy(&provider).await;
    let peer = user.until_peer(provider.id(), |peer| peer.denial == Some(Denial::OutsideHours)).await;
    assert!(!peer.provider && peer.models.is_empty() && peer.state == PeerState::Connected);
    assert_eq!(peer.problem.as_deref(), Some("shares its models at other hours"));
    let (status, body) = read(within(user.post("/api/generate", &prompt("m", 1))).await).await;
    assert!(!status.is_success() && body.contains("gpu1 shares its models at other hours"), "{status} {body}");
    let shown = provider.view().ollama();
    assert!(shown.healthy && !shown.lent);
    let why = shown.not_lent.expect("a reason");
    assert!(why.starts_with("is shared from "), "{why}");

    // Who asks the gate nevertheless is refused there.
    let met = within(Stranger::new("far").dial(provider.mesh)).await;
    let request = http::Request::get("/api/version").body(ollana::internals::exchange::empty()).unwrap();
    let answer = within(met.exchange(request)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers()["ollana-refusal"], "not-lent");
    assert_eq!(ollama.counts().of("/api/generate"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn its_owner_uses_its_ollama_outside_its_hours_too() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).lends_at_hours(&hours(3_600, 7_200)).start().await;
    until_healthy(&provider).await;
    let (status, body) = read(within(provider.post("/api/generate", &prompt("m", 1))).await).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let (_, tags) = read(within(provider.get("/api/tags")).await).await;
    assert!(tags.contains("\"m"), "{tags}");
    assert!(!provider.view().ollama().lent);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_begins_to_lend_when_its_hours_begin() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).lends_at_hours(&hours(3, 3_600)).start().await;
    assert!(provider.view().ollama().not_lent.is_some());
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    assert_eq!(provider.view().ollama().not_lent, None);
    let answer = within(user.post("/api/generate", &prompt("m", 1))).await;
    assert_eq!(answer.headers()["ollana-peer"], "gpu1");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_when_its_hours_end_comes_to_its_end() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(100));
    let provider = node("gpu1").lends(&ollama).lends_at_hours(&hours(-3_600, 5)).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 80))).await;
    user.until_peer(provider.id(), |peer| !peer.provider).await;
    assert!(ollama.counts().running > 0, "the answer outlasts the hours, or nothing is shown here");
    let body = within(answer.into_body().collect()).await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("\"done\":true"));
}
