//! How a node ends.

use std::time::Duration;

use http_body_util::BodyExt as _;

use super::fake_ollama::FakeOllama;
use super::node::{node, prompt, within};
use super::relay::Relay;

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_runs_comes_to_its_end_though_its_provider_stops() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(50));
    let provider = node("gpu1").lends(&ollama).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 20))).await;
    let (answer, _) = tokio::join!(async { within(answer.into_body().collect()).await.unwrap() }, provider.stop());
    assert!(String::from_utf8_lossy(&answer.to_bytes()).contains("\"done\":true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_ollama_has_said_arrives_before_the_node_ends() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(100));
    let provider = node("gpu1").lends(&ollama).start().await;
    let relay = Relay::to(provider.mesh).await;
    let user = node("laptop").dials(relay.address).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 10))).await;
    ollama.until(|counts| counts.tokens > 6).await;
    // The Ollama's last words are lost on the way and have to be said again.
    relay.cut(true);
    ollama.until(|counts| counts.finished > 0 && counts.running == 0).await;
    let mend = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        relay.cut(false);
        within(answer.into_body().collect()).await
    };
    let (answer, _) = tokio::join!(mend, provider.stop());
    assert!(String::from_utf8_lossy(&answer.expect("all of it").to_bytes()).contains("\"done\":true"));
}
