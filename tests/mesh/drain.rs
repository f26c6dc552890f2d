//! How a node ends.

use std::time::Duration;

use http_body_util::BodyExt as _;

use super::fake_ollama::FakeOllama;
use super::node::{node, prompt, until, within};
use super::relay::Relay;
use super::stranger::Stranger;

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
    let provider = node("gpu1").lends(&ollama).start().await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    let relay = Relay::to(provider.mesh).await;
    let met = within(Stranger::new("far").dial(relay.address)).await;
    let get = |path: &str| http::Request::get(path).body(ollana::internals::exchange::empty()).unwrap();
    assert!(within(met.exchange(get("/api/version"))).await.unwrap().status().is_success());
    // The request arrives, and the Ollama answers it; the answer is lost on the way and has to be said again.
    relay.cut_back(true);
    let asked = async {
        met.exchange(get("/api/version?fake=download&bytes=100000")).await.unwrap().into_body().collect().await
    };
    let stopped = async {
        ollama.until(|counts| counts.of("/fake/download") > 0 && counts.running == 0).await;
        // Until the node has taken it.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let stop = provider.stop();
        let mend = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            relay.cut_back(false);
        };
        tokio::join!(stop, mend)
    };
    let (answer, _) = within(async { tokio::join!(asked, stopped) }).await;
    assert_eq!(answer.expect("all of it").to_bytes().len(), 100_000);
}
