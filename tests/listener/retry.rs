//! What is tried again elsewhere, and what is not.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use ollana::NodeName;
use ollana::internals::exchange::{ExchangeError, Health, Progress, REFUSAL_HEADER, ResetCode, full};

use crate::{Call, FakeEndpoint, Node, request, soon};

const CHAT: &str = r#"{"model":"m","prompt":"once upon"}"#;

fn broken(name: &str) -> ExchangeError {
    ExchangeError::Reset(NodeName::lossy(name), ResetCode::Upstream)
}

/// The first two calls of a request, in their order, with the names of those that got them.
macro_rules! next {
    ($a:ident, $b:ident) => {
        soon(async {
            tokio::select! { call = $a.next() => ("a", call), call = $b.next() => ("b", call) }
        })
        .await
    };
}

#[tokio::test]
async fn what_breaks_before_its_first_byte_goes_to_another_with_the_whole_body() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let (first, mut call) = next!(a, b);
    assert_eq!(call.body().await, CHAT);
    call.reply(Err(broken(first)));
    let (second, mut call) = next!(a, b);
    assert_ne!(first, second);
    assert_eq!(call.body().await, CHAT);
    call.answer(StatusCode::OK, "done");
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body, reply.field("Ollana-Peer")), (200, "done", Some(second)));
}

#[tokio::test]
async fn with_nobody_to_take_over_it_is_502() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /v1/chat/completions", CHAT)).await;
    soon(a.next()).await.reply(Err(broken("a")));
    let reply = client.reply().await;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("a broke off") && reply.body.contains("no other server"), "{}", reply.body);
    assert!(reply.body.starts_with(r#"{"error":{"#), "{}", reply.body);
}

#[tokio::test]
async fn what_was_not_run_is_tried_as_often_as_there_are_servers() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let (_c, mut c) = FakeEndpoint::new("c", &["m"]);
    let (_d, mut d) = FakeEndpoint::new("d", &["m"]);
    let node = Node::over(&[&_a, &_b, &_c, &_d]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let not_run = [
        || ExchangeError::Unreachable(NodeName::lossy("x")),
        || ExchangeError::Reset(NodeName::lossy("x"), ResetCode::NotRun),
        || ExchangeError::NotRun("x".into(), "refused".into()),
        || ExchangeError::Lost(NodeName::lossy("x")),
    ];
    for error in not_run {
        let call: Call = soon(async {
            tokio::select! { x = a.next() => x, x = b.next() => x, x = c.next() => x, x = d.next() => x }
        })
        .await;
        call.reply(Err(error()));
    }
    assert_eq!(client.reply().await.status, 502);
    let left = [&a, &b, &c, &d].into_iter().filter(|calls| !calls.is_empty()).count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_a_server_had_whole_is_tried_once_more_at_most() {
    type Fails = fn(&Call) -> Result<Response<ollana::internals::exchange::Body>, ExchangeError>;
    let failures: [Fails; 4] = [
        |_| Err(broken("x")),
        |_| Err(ExchangeError::Ollama("x".into(), "reset".into())),
        |_| Ok(Response::builder().status(500).body(full("no")).unwrap()),
        |call| {
            call.request.extensions().get::<Progress>().unwrap().start();
            Err(ExchangeError::Lost(NodeName::lossy("x")))
        },
    ];
    for fails in failures {
        let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
        let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
        let (_c, mut c) = FakeEndpoint::new("c", &["m"]);
        let node = Node::over(&[&_a, &_b, &_c]).await;
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        for _ in 0..2 {
            let call: Call = soon(async {
                tokio::select! { x = a.next() => x, x = b.next() => x, x = c.next() => x }
            })
            .await;
            let answer = fails(&call);
            call.reply(answer);
        }
        assert!(client.reply().await.status >= 500);
        assert!(a.is_empty() && b.is_empty() && c.is_empty());
    }
}

#[tokio::test]
async fn what_ended_a_server_is_not_tried_again() {
    for error in [
        ExchangeError::Reset(NodeName::lossy("x"), ResetCode::Ended),
        ExchangeError::Ended("127.0.0.1:11434".into(), "reset".into()),
    ] {
        let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
        let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
        let node = Node::over(&[&_a, &_b]).await;
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        next!(a, b).1.reply(Err(error));
        let reply = client.reply().await;
        assert_eq!(reply.status, 502);
        assert!(reply.body.contains("not tried elsewhere"), "{}", reply.body);
        assert!(a.is_empty() && b.is_empty());
    }
}

#[tokio::test]
async fn a_failing_mesh_is_not_given_twice_the_load() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let (_b, b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    for mut calls in [a, b] {
        let count = count.clone();
        tokio::spawn(async move {
            loop {
                calls.next().await.reply(Err(broken("x")));
                count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
    }
    let mut client = node.client().await;
    for _ in 0..100 {
        client.send(&request("POST /api/chat", CHAT)).await;
        assert_eq!(client.reply().await.status, 502);
    }
    // A fifth of them, and the reserve of one a second for ten seconds.
    let retries = count.load(std::sync::atomic::Ordering::Relaxed) - 100;
    assert!((20..=31).contains(&retries), "{retries} retries");
}

#[tokio::test]
async fn a_4xx_is_an_answer_and_not_tried_again() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    for status in [StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS] {
        client.send(&request("POST /api/chat", CHAT)).await;
        next!(a, b).1.answer(status, "wrong");
        let reply = client.reply().await;
        assert_eq!((reply.status, &*reply.body), (status.as_u16(), "wrong"));
        assert!(a.is_empty() && b.is_empty());
    }
}

#[tokio::test]
async fn a_404_where_the_model_should_be_tries_another_owner_and_holds_if_all_say_so() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    next!(a, b).1.answer(StatusCode::NOT_FOUND, "gone");
    next!(a, b).1.answer(StatusCode::OK, "there");
    assert_eq!(client.reply().await.body, "there");
    client.send(&request("POST /api/chat", CHAT)).await;
    next!(a, b).1.answer(StatusCode::NOT_FOUND, "gone");
    next!(a, b).1.answer(StatusCode::NOT_FOUND, "gone");
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body), (404, "gone"));
}

#[tokio::test]
async fn an_ollama_that_answers_5xx_is_left_for_another_and_quoted_if_none_does_better() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let (first, call) = next!(a, b);
    call.answer(StatusCode::INTERNAL_SERVER_ERROR, "out of memory");
    let (second, call) = next!(a, b);
    call.answer(StatusCode::OK, "fine");
    assert_eq!(client.reply().await.body, "fine");
    // A moment later the one that failed comes last, though it is as idle.
    for _ in 0..5 {
        client.send(&request("POST /api/chat", CHAT)).await;
        let (name, call) = next!(a, b);
        assert_eq!(name, second);
        assert_ne!(name, first);
        call.answer(StatusCode::OK, "fine");
        client.reply().await;
    }
    client.send(&request("POST /api/chat", CHAT)).await;
    next!(a, b).1.answer(StatusCode::INTERNAL_SERVER_ERROR, "out of memory");
    next!(a, b).1.reply(Err(broken("x")));
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body), (500, "out of memory"));
}

#[tokio::test]
async fn a_gate_that_says_no_for_now_is_left_for_another() {
    for code in ["draining", "busy", "not-lent", "no-ollama"] {
        let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
        let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
        let node = Node::over(&[&_a, &_b]).await;
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        let refusal = || {
            let response = Response::builder().status(503).header(REFUSAL_HEADER, code);
            Ok(response.body(full("not now")).unwrap())
        };
        next!(a, b).1.reply(refusal());
        next!(a, b).1.answer(StatusCode::OK, "now");
        assert_eq!(client.reply().await.body, "now", "{code}");
        client.send(&request("POST /api/chat", CHAT)).await;
        next!(a, b).1.reply(refusal());
        next!(a, b).1.reply(refusal());
        let reply = client.reply().await;
        assert_eq!((reply.status, &*reply.body, reply.field("Ollana-Refusal")), (503, "not now", None));
    }
}

#[tokio::test]
async fn only_a_refusal_that_passes_is_tried_elsewhere() {
    // The last is of a later version: nobody knows whether anything was run.
    let final_ones =
        [(403, "scope"), (400, "unreadable"), (408, "stalled"), (404, "no-model"), (503, "no-such-code-yet")];
    let passing = [(503, "crowded"), (503, "no-room")];
    for (status, code) in passing.into_iter().chain(final_ones) {
        let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
        let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
        let node = Node::over(&[&_a, &_b]).await;
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        let refusal = Response::builder().status(status).header(REFUSAL_HEADER, code).body(full("no")).unwrap();
        next!(a, b).1.reply(Ok(refusal));
        if passing.contains(&(status, code)) {
            next!(a, b).1.answer(StatusCode::OK, "yes");
            assert_eq!(client.reply().await.body, "yes", "{code}");
        } else {
            let reply = client.reply().await;
            assert_eq!((reply.status, &*reply.body, reply.field("Ollana-Refusal")), (status, "no", None), "{code}");
        }
    }
}

#[tokio::test]
async fn a_suspect_peer_loses_what_has_no_byte_yet_to_another() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let (first, mut call) = next!(a, b);
    if first == "a" { &_a } else { &_b }.becomes(Health::Suspect);
    soon(call.cancelled()).await;
    let (second, mut call) = next!(a, b);
    assert_ne!(first, second);
    assert_eq!(call.body().await, CHAT);
    call.answer(StatusCode::OK, "moved");
    assert_eq!(client.reply().await.body, "moved");
}

#[tokio::test]
async fn a_suspect_peer_is_waited_for_while_there_is_no_other() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let mut call = soon(a.next()).await;
    _a.becomes(Health::Suspect);
    _a.becomes(Health::Healthy);
    _a.becomes(Health::Suspect);
    // Another one joins: now there is somewhere to go.
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    node.joins(&_b);
    soon(call.cancelled()).await;
    soon(b.next()).await.answer(StatusCode::OK, "moved");
    assert_eq!(client.reply().await.body, "moved");
}

#[tokio::test]
async fn a_peer_that_is_gone_is_502_if_it_was_the_only_one() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let _call = soon(a.next()).await;
    _a.becomes(Health::Gone);
    assert_eq!(client.reply().await.status, 502);
}

#[tokio::test]
async fn what_is_in_no_table_of_routes_goes_to_no_other_machine() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    for head in ["POST /jobs", "POST /api/later", "PUT /v1/files", "GET /jobs/7"] {
        client.send(&request(head, CHAT)).await;
        let reply = client.reply().await;
        assert_eq!((reply.status, &*reply.body), (404, "404 page not found"), "{head}");
    }
    assert!(a.is_empty());
    // This machine's own server is asked once, as it may have done something.
    let (_own, mut own) = FakeEndpoint::local("me", &["m"]);
    node.joins(&_own);
    client.send(&request("POST /api/chat", CHAT)).await;
    soon(own.next()).await.answer(StatusCode::OK, "done");
    client.reply().await;
    client.send(&request("POST /jobs", CHAT)).await;
    soon(own.next()).await.reply(Err(broken("me")));
    let reply = client.reply().await;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("not tried again"), "{}", reply.body);
    assert!(own.is_empty() && a.is_empty());
}

#[tokio::test]
async fn what_was_lost_before_it_started_runs_elsewhere() {
    let lost = || ExchangeError::Lost(NodeName::lossy("x"));
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    for (head, body) in [("POST /api/chat", CHAT), ("GET /api/version", "")] {
        client.send(&request(head, body)).await;
        next!(a, b).1.reply(Err(lost()));
        next!(a, b).1.answer(StatusCode::OK, "done");
        assert_eq!(client.reply().await.body, "done", "{head}");
    }
}

#[tokio::test]
async fn what_came_too_late_for_its_slot_is_asked_again_of_the_same_server_which_has_not_failed() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let late = || Err(ExchangeError::Reset(NodeName::lossy("a"), ResetCode::Late));
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    // More often than a server may fail: nothing was done.
    for head in ["POST /api/chat", "POST /api/show"].repeat(3) {
        client.send(&request(head, CHAT)).await;
        soon(a.next()).await.reply(late());
        let mut call = soon(a.next()).await;
        assert_eq!(call.body().await, CHAT);
        call.answer(StatusCode::OK, "done");
        assert_eq!(client.reply().await.body, "done", "{head}");
    }
    client.send(&request("POST /api/chat", CHAT)).await;
    // There is no other: not for ever either.
    for _ in 0..10 {
        soon(a.next()).await.reply(late());
    }
    let reply = client.reply().await;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("too late for its slot, and nothing was run"), "{}", reply.body);
    assert!(a.is_empty());
    // It has not even stumbled: with as much to do as another it is as good.
    node.joins(&_b);
    soon(async {
        loop {
            client.send(&request("GET /api/version", "")).await;
            let (name, call) = next!(a, b);
            call.answer(StatusCode::OK, "done");
            client.reply().await;
            if name == "a" {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_server_that_always_calls_a_request_late_does_not_keep_it_from_another() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    // What runs nothing looks idle, and best.
    _b.runs(3);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    for _ in 0..4 {
        client.send(&request("POST /api/chat", CHAT)).await;
        for _ in 0..2 {
            soon(a.next()).await.reply(Err(ExchangeError::Reset(NodeName::lossy("a"), ResetCode::Late)));
        }
        let (name, call) = next!(a, b);
        assert_eq!(name, "b");
        call.answer(StatusCode::OK, "done");
        assert_eq!(client.reply().await.body, "done");
    }
}

#[tokio::test]
async fn what_has_started_is_not_taken_away_from_a_peer_that_is_silent_for_a_moment() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let (first, call) = next!(a, b);
    call.request.extensions().get::<Progress>().unwrap().start();
    let (at, other) = if first == "a" { (&_a, &mut b) } else { (&_b, &mut a) };
    at.becomes(Health::Suspect);
    // What may move has moved by the time that another request was answered.
    let mut second = node.client().await;
    second.send(&request("POST /api/chat", CHAT)).await;
    soon(other.next()).await.answer(StatusCode::OK, "other");
    second.reply().await;
    at.becomes(Health::Healthy);
    call.answer(StatusCode::OK, "done");
    assert_eq!(client.reply().await.body, "done");
    assert!(other.is_empty());
}

#[tokio::test]
async fn what_changes_models_is_never_sent_twice() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, b) = FakeEndpoint::new("b", &["m"]);
    _a.reports(|report| report.scope = ollana::internals::id::Scope::Manage);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/pull", CHAT)).await;
    let call = soon(a.next()).await;
    _b.reports(|report| report.scope = ollana::internals::id::Scope::Manage);
    call.reply(Err(broken("a")));
    let reply = client.reply().await;
    assert_eq!(reply.status, 502);
    assert!(reply.body.contains("not tried again"), "{}", reply.body);
    assert!(b.is_empty());
}

#[tokio::test]
async fn a_break_in_mid_answer_is_a_break_for_the_application() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, b) = FakeEndpoint::new("b", &[]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let body = soon(a.next()).await.stream();
    body.send(Ok(Frame::data(Bytes::from_static(b"half an ")))).await.unwrap();
    client.head().await;
    assert_eq!(soon(client.chunk()).await, Ok(Some("half an ".to_owned())));
    body.send(Err(broken("a"))).await.unwrap();
    assert_eq!(soon(client.chunk()).await, Err(()), "no last chunk");
    assert!(b.is_empty());
}

#[tokio::test]
async fn a_break_shows_even_where_only_the_close_ends_the_answer() {
    use tokio::io::AsyncReadExt as _;
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat HTTP/1.0", CHAT)).await;
    let body = soon(a.next()).await.stream();
    body.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
    client.head().await;
    body.send(Err(broken("a"))).await.unwrap();
    let mut rest = Vec::new();
    let error = soon(client.stream.read_to_end(&mut rest)).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
