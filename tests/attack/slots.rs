//! Who takes the only slot there is and does nothing with it: whoever waits for it has it all the same.

use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt as _;
use ollana::internals::exchange;
use quinn::{RecvStream, SendStream};

use super::evil::{DATA, END, Evil, REQUEST, Session, TICKET, frame, head};
use super::fake_ollama::FakeOllama;
use super::floods::{is_served, trusted};
use super::node::{Node, node, until, within};
use super::stranger::Stranger;

/// What is a minute for people is a second here.
const TEMPO: f64 = 60.0;

/// A question whose answer is longer than anything takes at once.
const LONG: &[u8] = br#"{"model":"m","prompt":"x","options":{"num_predict":1000000}}"#;

/// A node whose Ollama runs one request of a model at a time.
async fn lender_of_one(ollama: &FakeOllama) -> Node {
    let provider = node("gpu1").lends(ollama).runs(1).at_tempo(TEMPO).start().await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    provider
}

/// Asks; the question is not over before [`END`].
async fn ask(session: &Session, question: &[u8], end: bool) -> (SendStream, RecvStream) {
    let (mut send, recv) = within(session.connection.open_bi()).await.unwrap();
    let mut bytes = frame(REQUEST, &head("POST", "/api/generate", &[], true));
    bytes.extend(frame(DATA, question));
    if end {
        bytes.extend(frame(END, &[]));
    }
    send.write_all(&bytes).await.unwrap();
    (send, recv)
}

/// The Ollama works on the one request that it takes.
async fn is_busy(ollama: &FakeOllama) {
    ollama.until(|counts| counts.of("/api/generate") == 1 && counts.running == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_not_kept_by_reading_nothing() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender_of_one(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let deaf = Evil::new().hearing(6).meet(provider.mesh, "deaf").await.unwrap();
    let _streams = ask(&deaf, LONG, true).await;
    is_busy(&ollama).await;
    is_served(&met).await;
    // It was not asked to go on for who does not listen, either.
    ollama.until(|counts| counts.running == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_not_kept_by_reading_a_byte_now_and_then() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender_of_one(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let drip = Evil::new().hearing(64).meet(provider.mesh, "drip").await.unwrap();
    let (_send, mut recv) = ask(&drip, LONG, true).await;
    is_busy(&ollama).await;
    let read = tokio::spawn(async move {
        let mut read = 0;
        let mut some = [0; 16];
        while let Ok(Some(bytes)) = recv.read(&mut some).await {
            read += bytes;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        read
    });
    is_served(&met).await;
    let read = within(read).await.unwrap();
    assert!(read > 100, "it read on until it was cut off: {read} bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_not_kept_by_a_question_without_an_end() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender_of_one(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let endless = Evil::new().meet(provider.mesh, "endless").await.unwrap();
    let (mut send, _recv) = ask(&endless, br#"{"model":"m","prompt":""#, false).await;
    // A word now and then.
    let words = tokio::spawn(async move {
        while send.write_all(&frame(DATA, b"word ")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    until("its slot to be taken", || {
        let numbers = provider.view().numbers();
        numbers.get("m:latest").filter(|of| of.load.running == 1).map(drop)
    })
    .await;
    is_served(&met).await;
    words.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_is_not_kept_by_a_ticket_whose_request_cannot_be_acknowledged() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender_of_one(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    // Room for the ticket's acknowledgement and for its turn, and none for what is said of the request.
    let deaf = Evil::new().hearing(8).meet(provider.mesh, "deaf").await.unwrap();
    let (mut send, _recv) = within(deaf.connection.open_bi()).await.unwrap();
    let mut bytes = frame(TICKET, br#"{"model":"m","copies":1}"#);
    bytes.extend(frame(REQUEST, &head("POST", "/api/generate", &[], true)));
    bytes.extend(frame(DATA, LONG));
    send.write_all(&bytes).await.unwrap();
    until("its slot to be taken", || {
        let numbers = provider.view().numbers();
        numbers.get("m:latest").filter(|of| of.load.running == 1).map(drop)
    })
    .await;
    is_served(&met).await;
    assert_eq!(ollama.counts().of("/api/generate"), 1, "what was not acknowledged is not run");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_from_who_waits_for_a_slow_server_or_from_who_is_in_nobodys_way() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.prompt = Duration::from_secs(3));
    let provider = lender_of_one(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    // Three times as long as anybody is waited for.
    let began = Instant::now();
    let stranger = Stranger::new("stranger");
    let other = within(stranger.dial(provider.mesh)).await;
    let first = tokio::spawn(async move {
        let question = Request::post("/api/generate").body(exchange::full(r#"{"model":"m","prompt":"x"}"#)).unwrap();
        let answer = other.exchange(question).await.unwrap();
        (answer.status(), answer.into_body().collect().await.is_ok())
    });
    is_busy(&ollama).await;
    is_served(&met).await;
    assert!(began.elapsed() > Duration::from_secs(6), "one after the other");
    assert_eq!(within(first).await.unwrap(), (http::StatusCode::OK, true));

    // Nobody waits: it may take its time.
    ollama.set(|settings| settings.prompt = Duration::ZERO);
    let slow = Evil::new().hearing(64).meet(provider.mesh, "slow").await.unwrap();
    let (_send, mut recv) = ask(&slow, LONG, true).await;
    ollama.until(|counts| counts.running == 1).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(ollama.counts().running, 1);
    let mut some = [0; 64];
    assert!(matches!(recv.read(&mut some).await, Ok(Some(_))));
}
