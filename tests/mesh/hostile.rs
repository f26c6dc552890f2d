//! Strangers that want to hold memory, slots or connections, or to get something past the gate.

use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use ollana::internals::exchange;

use super::fake_ollama::FakeOllama;
use super::node::{node, prompt, until, within};
use super::stranger::{Stranger, lends};

#[tokio::test(flavor = "multi_thread")]
async fn a_head_that_lies_about_its_body_does_not_reach_the_ollama() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).start().await;
    let met = within(Stranger::new("smuggler").dial(provider.mesh)).await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    let request = |length: &[&str], body| {
        let mut request = Request::post("/api/show?fake=early");
        for length in length {
            request = request.header("content-length", *length);
        }
        request.body(body).unwrap()
    };
    // A body that is announced and not sent: the next request on the Ollama's connection would be taken for it.
    within(met.exchange(request(&["40"], exchange::empty()))).await.expect_err("refused");
    within(met.exchange(request(&["3", "4"], exchange::full("abc")))).await.expect_err("refused");
    within(met.exchange(request(&["+3"], exchange::full("abc")))).await.expect_err("refused");
    assert_eq!(ollama.counts().of("/fake/early"), 0);
    // One that is longer or shorter than announced breaks off.
    let sink = |length: &str| Request::post("/api/show?fake=sink").header("content-length", length);
    let long = sink("2").body(exchange::full("abc")).unwrap();
    let short = sink("4").body(exchange::full("abc")).unwrap();
    for request in [long, short] {
        if let Ok(answer) = within(met.exchange(request)).await {
            assert!(!answer.status().is_success(), "{}", answer.status());
        }
    }
    let whole = ollama.counts().seen.into_iter().find(|seen| seen.target == "/api/show?fake=sink" && seen.complete);
    assert!(whole.is_none(), "{whole:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_shorter_than_it_says_is_a_break() {
    let stranger = Stranger::new("liar");
    let user = node("laptop").dials(stranger.address).start().await;
    let mut met = within(stranger.accept_politely()).await;
    met.control.send(&lends("m")).await.unwrap();
    user.until_lent(stranger.id, "m").await;
    let body = prompt("m", 1);
    let answered = async {
        let taken = met.take(&stranger).await;
        let answer = http::Response::builder().header("content-length", "4").body(exchange::full("abc")).unwrap();
        taken.answer.send(answer).unwrap();
        let _ = taken.over.await;
    };
    let (answer, ()) = within(async { tokio::join!(user.try_post("/api/generate", &body), answered) }).await;
    // The break may overtake the head on the last few metres; what may not be is an answer that seems to be whole.
    if let Ok(answer) = answer {
        within(answer.into_body().collect()).await.expect_err("never a silently complete answer");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_not_said_hello_has_one_stream() {
    let provider = node("gpu1").start().await;
    let stranger = Stranger::new("eager");
    let connection = stranger.transport.dial(provider.mesh).await.unwrap();
    let _control = within(connection.open_control()).await.unwrap();
    let second = tokio::time::timeout(Duration::from_millis(300), connection.open_control()).await;
    assert!(second.is_err(), "a second stream before hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_a_node_dials_opens_no_streams() {
    let stranger = Stranger::new("pushy");
    let _user = node("laptop").dials(stranger.address).start().await;
    let met = within(stranger.accept_politely()).await;
    let pushed = tokio::time::timeout(Duration::from_millis(300), met.connection.open_control()).await;
    assert!(pushed.is_err(), "nobody reads what it would send there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_shows_no_more_than_a_terminal_can_bear() {
    let stranger = Stranger::new("painter");
    let user = node("laptop").dials(stranger.address).start().await;
    let connection = within(stranger.accept()).await;
    let mut control = connection.accept_control().await.unwrap();
    control.receive().await.unwrap();
    let hello =
        ollana::internals::wire::control::Hello { version: "1\u{1b}[2J\u{202e}".repeat(100), ..stranger.hello() };
    control.send(&ollana::internals::wire::control::Message::Hello(hello)).await.unwrap();
    let ollana::internals::wire::control::Message::Report(mut report) = lends("m") else { panic!() };
    report.models.insert("\u{1b}]0;owned\u{7}:latest".to_owned(), Default::default());
    report.models.insert("x".repeat(5000), Default::default());
    control.send(&ollana::internals::wire::control::Message::Report(report)).await.unwrap();
    let peer = user.until_lent(stranger.id, "m").await;
    assert_eq!(peer.models, ["m:latest"]);
    assert!(!peer.version.chars().any(char::is_control) && peer.version.len() <= 64, "{:?}", peer.version);
}
