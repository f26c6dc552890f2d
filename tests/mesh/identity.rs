//! Keys that are copied, revoked, or speak another version.

use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use ollana::internals::exchange;
use ollana::internals::peers::PeerState;
use ollana::internals::transport::CloseCode;
use ollana::internals::wire::control::{Hello, Message, Refused};

use super::fake_ollama::FakeOllama;
use super::node::{node, prompt, until, within};
use super::stranger::{Stranger, lends};

#[tokio::test(flavor = "multi_thread")]
async fn another_version_is_refused_with_a_reason_on_both_sides() {
    let stranger = Stranger::new("future");
    let user = node("laptop").dials(stranger.address).start().await;
    // Whoever comes with another version is told so.
    let later = Hello { protocol: 9, oldest_protocol: 9, ..stranger.hello() };
    let dialled = stranger.transport.dial(user.mesh).await.unwrap();
    let mut control = dialled.open_control().await.unwrap();
    control.send(&Message::Hello(later.clone())).await.unwrap();
    match within(control.receive()).await.unwrap() {
        Message::Refused(refused) => {
            assert_eq!(refused.code, Refused::VERSION);
            assert_eq!(refused, Refused::version(), "which versions this side speaks, and no sentence");
        }
        other => panic!("{other:?}"),
    }
    assert!(within(dialled.closed()).await.is(CloseCode::Version));
    // And whom the node finds to be of another version is shown as such, with the reason.
    let accepted = within(stranger.accept()).await;
    let mut control = accepted.accept_control().await.unwrap();
    assert!(matches!(control.receive().await.unwrap(), Message::Hello(_)));
    control.send(&Message::Hello(later)).await.unwrap();
    let peer = user.until_peer(stranger.id, |peer| peer.state == PeerState::Refused).await;
    assert!(peer.problem.as_deref().is_some_and(|why| why.contains("9 to 9")), "{peer:?}");
    assert!(within(accepted.closed()).await.is(CloseCode::Version));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_thrown_out_with_all_that_runs() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(50));
    let provider = node("gpu1").lends(&ollama).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 2000))).await;
    ollama.until(|counts| counts.tokens > 3).await;
    let since = Instant::now();
    provider.revoke(user.id()).await;
    within(answer.into_body().collect()).await.expect_err("a break");
    ollama.until(|counts| counts.running == 0).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    let refused = user.until_peer(provider.id(), |peer| peer.state == PeerState::Refused).await;
    assert!(refused.problem.is_some_and(|why| why.contains("revoked")));
    // A way back, without anyone restarting anything, is for a person to open.
    provider.trust(user.id(), ollana::internals::id::Scope::Infer).await;
    user.until_lent(provider.id(), "m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_user_revokes_gets_nothing_more_and_what_runs_there_ends() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(50));
    let provider = node("gpu1").lends(&ollama).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    let answer = within(user.post("/api/generate", &prompt("m", 2000))).await;
    ollama.until(|counts| counts.tokens > 3).await;
    let since = Instant::now();
    user.revoke(provider.id()).await;
    within(answer.into_body().collect()).await.expect_err("a break");
    ollama.until(|counts| counts.running == 0).await;
    assert!(since.elapsed() < Duration::from_secs(2), "{:?}", since.elapsed());
    user.until_peer(provider.id(), |peer| peer.state == PeerState::Refused && peer.models.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_revoked_while_it_says_hello_is_not_let_in() {
    let stranger = Stranger::new("late");
    let user = node("laptop").dials(stranger.address).start().await;
    let connection = within(stranger.accept()).await;
    let mut control = connection.accept_control().await.unwrap();
    control.receive().await.unwrap();
    user.revoke(stranger.id).await;
    control.send(&Message::Hello(stranger.hello())).await.unwrap();
    let _ = control.send(&lends("m")).await;
    assert!(within(connection.closed()).await.is(CloseCode::Revoked));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_key_is_found_and_neither_lends() {
    let ollama = FakeOllama::start(&["m"]).await;
    let one = node("gpu1").lends(&ollama).start().await;
    let lent = |node: &super::node::Node| node.view().ollama().lent;
    until("an Ollama that is lent", || lent(&one).then_some(())).await;
    let two = node("gpu2").lends(&ollama).with_key_of(one.state_dir()).dials(one.mesh).start().await;
    assert_eq!(one.id(), two.id());
    for node in [&one, &two] {
        until("neither to lend", || (!lent(node) && !node.view().conflicts().is_empty()).then_some(())).await;
        assert!(node.view().conflicts()[0].contains("identity.key"), "{:?}", node.view().conflicts());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_bears_a_known_name_waits_for_a_person() {
    let ollama = FakeOllama::start(&["m"]).await;
    let real = node("gpu1").lends(&ollama).start().await;
    let impostor = Stranger::new("gpu1");
    let user = node("laptop").dials(real.mesh).start().await;
    user.until_lent(real.id(), "m").await;
    let met = within(impostor.dial(user.mesh)).await;
    let mut back = within(impostor.accept_politely()).await;
    back.control.send(&lends("secret")).await.unwrap();
    let peer = user.until_lent(impostor.id, "secret").await;
    assert_eq!(peer.use_, ollana::internals::id::Use::Pending, "{peer:?}");
    assert!(peer.problem.is_some());
    let (status, why) = super::node::read(user.post("/api/generate", &prompt("secret", 1)).await).await;
    assert!(status == 503 && why.contains("ollana trust"), "{status} {why}");
    // And it may do nothing here either.
    let request = http::Request::get("/api/tags").body(exchange::empty()).unwrap();
    assert_eq!(within(met.exchange(request)).await.unwrap().status(), 403);
}
