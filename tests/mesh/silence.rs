//! Peers that say nothing, or cannot be heard.

use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use ollana::internals::peers::PeerState;

use super::fake_ollama::FakeOllama;
use super::node::{node, prompt, read, within};
use super::relay::Relay;
use super::stranger::{Stranger, lends};

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_acknowledges_nothing_keeps_no_request_that_another_can_take() {
    let stranger = Stranger::new("mute");
    let user = node("laptop").dials(stranger.address).start().await;
    let mut met = within(stranger.accept_politely()).await;
    met.control.send(&lends("m")).await.unwrap();
    user.until_lent(stranger.id, "m").await;

    let body = prompt("m", 1);
    let asked = user.post("/api/generate", &body);
    let moved = async {
        let _untouched = met.connection.accept_exchange().await.unwrap();
        // Heartbeats go on: it is the gate that is dead. And only then there is somebody else.
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            met.control.send(&lends("m")).await.unwrap();
        }
        let ollama = FakeOllama::start(&["m"]).await;
        let provider = node("gpu1").lends(&ollama).dials(user.mesh).start().await;
        loop {
            tokio::select! {
                () = ollama_has_it(&ollama) => return (ollama, provider),
                () = tokio::time::sleep(Duration::from_secs(1)) => met.control.send(&lends("m")).await.unwrap(),
            }
        }
    };
    let (answer, _provider) = within(Box::pin(async { tokio::join!(asked, moved) })).await;
    assert_eq!(answer.headers()["ollana-peer"], "gpu1");
}

async fn ollama_has_it(ollama: &FakeOllama) {
    ollama.until(|counts| counts.of("/api/generate") > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_is_unreachable_in_three_seconds_and_its_waiting_request_moves() {
    let stranger = Stranger::new("silent");
    let ollama = FakeOllama::start(&["m"]).await;
    let user = node("laptop").dials(stranger.address).start().await;
    let mut met = within(stranger.accept_politely()).await;
    met.control.send(&lends("m")).await.unwrap();
    user.until_lent(stranger.id, "m").await;

    let body = prompt("m", 1);
    let asked = user.post("/api/generate", &body);
    let moved = async {
        // It takes the request, as a gate does whose Ollama loads a model, and is not heard of again.
        let taken = met.take(&stranger).await;
        met.control.send(&lends("m")).await.unwrap();
        let since = Instant::now();
        let provider = node("gpu1").lends(&ollama).dials(user.mesh).start().await;
        user.until_lent(provider.id(), "m").await;
        assert_eq!(user.peer(stranger.id).unwrap().state, PeerState::Connected, "it may be slow, it is not gone yet");
        user.until_peer(stranger.id, |peer| peer.state == PeerState::Unreachable).await;
        let after = since.elapsed();
        assert!(after > Duration::from_millis(2900) && after < Duration::from_millis(4500), "{after:?}");
        (taken, provider)
    };
    let (answer, _kept) = within(Box::pin(async { tokio::join!(asked, moved) })).await;
    assert_eq!(answer.headers()["ollana-peer"], "gpu1");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_runs_outlives_a_silence_after_which_the_peer_is_dialled_anew() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(250));
    let provider = node("gpu1").lends(&ollama).start().await;
    let relay = Relay::to(provider.mesh).await;
    let user = node("laptop").dials(relay.address).start().await;
    user.until_lent(provider.id(), "m").await;
    let mut answer = within(user.post("/api/generate", &prompt("m", 60))).await;
    within(answer.frame()).await.unwrap().unwrap();

    relay.cut_old(true);
    user.until_peer(provider.id(), |peer| peer.state != PeerState::Connected).await;
    // It is dialled at once, and that is how it comes back.
    user.until_lent(provider.id(), "m").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    relay.cut_old(false);
    let rest = within(answer.into_body().collect()).await.expect("the answer comes to its end");
    assert!(String::from_utf8_lossy(&rest.to_bytes()).contains("\"done\":true"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_ends_as_a_break_after_fifteen_seconds_of_silence() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(100));
    let provider = node("gpu1").lends(&ollama).start().await;
    let relay = Relay::to(provider.mesh).await;
    let user = node("laptop").dials(relay.address).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 1000))).await;
    ollama.until(|counts| counts.tokens > 5).await;
    relay.cut(true);
    let since = Instant::now();
    within(answer.into_body().collect()).await.expect_err("a break");
    let after = since.elapsed();
    assert!(after > Duration::from_secs(14) && after < Duration::from_secs(18), "{after:?}");
    // And at the other end, for the sake of the Ollama.
    ollama.until(|counts| counts.running == 0).await;
    assert!(since.elapsed() < Duration::from_secs(18), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_killed_and_is_back_says_that_old_connections_are_over() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(100));
    let provider = node("gpu1").lends(&ollama).start().await;
    let next = node("gpu1").with_key_of(provider.state_dir()).start().await;
    let relay = Relay::to(provider.mesh).await;
    let user = node("laptop").dials(relay.address).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 1000))).await;
    ollama.until(|counts| counts.tokens > 3).await;
    // To the network this is a node that was killed and started anew in one moment.
    relay.lead_to(next.mesh);
    let since = Instant::now();
    within(answer.into_body().collect()).await.expect_err("a break");
    assert!(since.elapsed() < Duration::from_millis(2900), "not before the silence counts: {:?}", since.elapsed());
    user.until_peer(provider.id(), |peer| peer.state == PeerState::Connected && peer.models.is_empty()).await;
    let _ = read(user.get("/").await).await;
}
