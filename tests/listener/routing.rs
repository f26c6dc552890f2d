//! Which node a request goes to, and what is said where none can take it.

use http::StatusCode;
use ollana::exchange::Health;
use ollana::id::{Scope, Use};

use crate::{FakeEndpoint, Node, soon};

const CHAT_M: &str = r#"{"model":"m"}"#;

#[tokio::test]
async fn a_request_goes_to_a_node_that_has_its_model() {
    let (_a, mut a) = FakeEndpoint::new("a", &["other"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m:latest"]);
    let node = Node::over(&[&_a, &_b]).await;
    let mut client = node.client().await;
    client.send(&crate::request("POST /api/chat", r#"{"model":"","name":"M"}"#)).await;
    let mut call = soon(b.next()).await;
    assert_eq!(call.request.uri(), "/api/chat");
    assert_eq!(call.body().await, r#"{"model":"","name":"M"}"#);
    call.answer(StatusCode::OK, "yes");
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body, reply.field("Ollana-Peer")), (200, "yes", Some("b")));
    assert!(a.is_empty());
    client.send(&crate::request("GET /v1/models/other", "")).await;
    soon(a.next()).await.answer(StatusCode::OK, "a");
    assert_eq!(client.reply().await.field("Ollana-Peer"), Some("a"));
}

#[tokio::test]
async fn the_node_with_the_fewest_requests_in_flight_is_next_until_their_bodies_end() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let (_b, mut b) = FakeEndpoint::new("b", &["m"]);
    // Others keep b a little busier.
    _b.reports(|report| report.inflight = 1);
    let node = Node::over(&[&_a, &_b]).await;
    let mut first = node.client().await;
    first.send(&crate::request("POST /api/chat", CHAT_M)).await;
    let body = soon(a.next()).await.stream();
    // The head is there, the body is not over: a and b now have one each; a second one makes it two at one of them.
    first.head().await;
    let mut clients = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..3 {
        let mut client = node.client().await;
        client.send(&crate::request("POST /api/chat", CHAT_M)).await;
        calls.push(tokio::select! { call = a.next() => ("a", call), call = b.next() => ("b", call) });
        clients.push(client);
    }
    let at_a = calls.iter().filter(|(name, _)| *name == "a").count();
    assert!((1..=2).contains(&at_a), "a has 1 + {at_a}, b has 1 + {}", 3 - at_a);
    // They end, the first with its body: a is the idle one again.
    drop(body);
    assert_eq!(soon(first.chunk()).await, Ok(None));
    for (_, call) in calls {
        call.answer(StatusCode::OK, "x");
    }
    for client in &mut clients {
        client.reply().await;
    }
    for _ in 0..3 {
        let mut client = node.client().await;
        client.send(&crate::request("POST /api/chat", CHAT_M)).await;
        soon(a.next()).await.answer(StatusCode::OK, "x");
        client.reply().await;
    }
}

#[tokio::test]
async fn at_a_tie_the_own_ollama_answers() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let (_me, me) = FakeEndpoint::local("me", &["m"]);
    let (_c, c) = FakeEndpoint::new("c", &["m"]);
    a.always(StatusCode::OK, "a");
    me.always(StatusCode::OK, "me");
    c.always(StatusCode::OK, "c");
    let node = Node::over(&[&_a, &_me, &_c]).await;
    for _ in 0..10 {
        assert_eq!(node.ask("POST /api/chat", CHAT_M).await.body, "me");
    }
}

#[tokio::test]
async fn a_model_that_nobody_has_is_404_in_ollamas_words_and_the_apis_shape() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    a.always(StatusCode::OK, "no");
    let node = Node::over(&[&_a]).await;
    let nope = r#"{"model":"nope"}"#;
    let reply = node.ask("POST /api/generate", nope).await;
    assert_eq!((reply.status, &*reply.body), (404, r#"{"error":"model 'nope' not found"}"#));
    assert_eq!(reply.field("Content-Type"), Some("application/json; charset=utf-8"));
    assert_eq!(reply.field("Ollana-Peer"), Some("me"));
    assert_eq!(reply.field("Ollana-Refusal"), None);
    let reply = node.ask("POST /api/embed", nope).await;
    assert_eq!(reply.body, r#"{"error":"model \"nope\" not found, try pulling it first"}"#);
    let reply = node.ask("POST /v1/chat/completions", nope).await;
    let shape = r#"{"error":{"message":"model 'nope' not found","type":"not_found_error","param":null,"code":null}}"#;
    assert_eq!((reply.status, reply.body.trim_end()), (404, shape));
}

#[tokio::test]
async fn without_a_server_it_says_so_and_when_to_come_back() {
    let node = Node::over(&[]).await;
    for (head, body) in
        [("GET /api/version", ""), ("POST /api/chat", CHAT_M), ("GET /api/tags", ""), ("POST /api/pull", CHAT_M)]
    {
        let reply = node.ask(head, body).await;
        assert_eq!(reply.status, 503, "{head}");
        assert!(reply.field("Retry-After").is_some(), "{head}");
        assert!(reply.body.contains("ollana doctor"), "{}", reply.body);
    }
}

#[tokio::test]
async fn what_is_in_the_way_of_each_node_is_said_and_what_to_type() {
    let (waiting, _w) = FakeEndpoint::new("waiting", &["m"]);
    let (mute, _m) = FakeEndpoint::new("mute", &["m"]);
    let (idle, _i) = FakeEndpoint::new("idle", &[]);
    let (closed, _c) = FakeEndpoint::new("closed", &["m"]);
    let (leaving, _l) = FakeEndpoint::new("leaving", &["m"]);
    waiting.use_becomes(Use::Pending);
    mute.becomes(Health::Suspect);
    idle.reports(|report| report.provider = false);
    closed.reports(|report| report.scope = Scope::None);
    leaving.reports(|report| report.draining = true);
    let node = Node::over(&[&waiting, &mute, &idle, &closed, &leaving]).await;
    let reply = node.ask("POST /api/chat", CHAT_M).await;
    assert_eq!((reply.status, reply.field("Retry-After")), (503, Some("1")));
    for part in [
        "waiting waits to be trusted (to use it, type: ollana trust waiting)",
        "mute does not answer",
        "idle has no Ollama",
        "closed does not lend",
        "leaving is about to stop",
    ] {
        assert!(reply.body.contains(part), "{part}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_model_that_only_a_waiting_node_has_is_503_and_not_404() {
    let (used, _u) = FakeEndpoint::new("used", &["other"]);
    let (waiting, _w) = FakeEndpoint::new("waiting", &["m"]);
    waiting.use_becomes(Use::Pending);
    let node = Node::over(&[&used, &waiting]).await;
    let reply = node.ask("POST /api/chat", CHAT_M).await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("ollana trust waiting"), "{}", reply.body);
    waiting.use_becomes(Use::No);
    assert_eq!(node.ask("POST /api/chat", CHAT_M).await.status, 404, "what a person said no to counts as absent");
}

#[tokio::test]
async fn the_first_request_waits_a_moment_for_the_first_server() {
    let setup = crate::Setup { grace: std::time::Duration::from_secs(20), ..Default::default() };
    let node = Node::set_up(setup, &[]).await;
    let mut client = node.client().await;
    client.send(&crate::request("POST /api/chat", CHAT_M)).await;
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    node.joins(&_a);
    _a.reports(|report| {
        report.models.insert("m".to_owned(), Default::default());
    });
    soon(a.next()).await.answer(StatusCode::OK, "here");
    assert_eq!(client.reply().await.body, "here");
}

#[tokio::test]
async fn a_node_can_be_chosen_by_header_prefix_name_and_id() {
    let (_a, a) = FakeEndpoint::new("gpu1", &["m"]);
    let (_b, b) = FakeEndpoint::new("gpu2", &[]);
    a.always(StatusCode::OK, "1");
    b.always(StatusCode::OK, "2");
    let node = Node::over(&[&_a, &_b]).await;
    let id = ollana::exchange::Endpoint::id(&*_b).to_string();
    for head in [
        "POST /api/chat\nOllana-Peer: GPU2".to_owned(),
        format!("POST /api/chat\nOllana-Peer: {id}"),
        format!("POST /@{}/api/chat", &id[..10]),
        "POST /@gpu2/api/chat".to_owned(),
        "POST /@gpu1/api/chat\nollana-peer: gpu2".to_owned(),
    ] {
        let reply = node.ask(&head, CHAT_M).await;
        assert_eq!((&*reply.body, reply.field("Ollana-Peer")), ("2", Some("gpu2")), "{head}");
    }
    assert_eq!(node.ask("GET /@gpu2/api/tags", "").await.body, "2");
    let reply = node.ask("GET /@gpu3/api/version", "").await;
    assert_eq!(reply.status, 404);
    assert!(reply.body.contains("gpu1, gpu2") || reply.body.contains("gpu2, gpu1"), "{}", reply.body);
    _b.becomes(Health::Gone);
    let reply = node.ask("POST /@gpu2/api/chat", CHAT_M).await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("gpu2 cannot be reached"), "{}", reply.body);
    let reply = node.ask("HEAD /@gpu2", "").await;
    assert_eq!(reply.status, 200, "`ollama` asks HEAD / first, and the listener is there");
}

#[tokio::test]
async fn a_name_that_two_nodes_bear_is_409_with_their_ids() {
    let (one, _first) = FakeEndpoint::with_key("gpu", "k1", &["m"]);
    let (two, _second) = FakeEndpoint::with_key("gpu", "k2", &["m"]);
    let node = Node::over(&[&one, &two]).await;
    let reply = node.ask("POST /@gpu/api/chat", CHAT_M).await;
    assert_eq!(reply.status, 409);
    for endpoint in [&one, &two] {
        assert!(reply.body.contains(&ollana::exchange::Endpoint::id(&**endpoint).to_string()), "{}", reply.body);
    }
}

#[tokio::test]
async fn what_changes_models_goes_to_the_only_node_that_allows_it_or_is_a_choice() {
    let (a, a_calls) = FakeEndpoint::new("a", &["m"]);
    let (b, b_calls) = FakeEndpoint::new("b", &["m"]);
    a_calls.always(StatusCode::OK, "a");
    b_calls.always(StatusCode::OK, "b");
    let node = Node::over(&[&a, &b]).await;
    let reply = node.ask("POST /api/pull", CHAT_M).await;
    assert_eq!(reply.status, 403);
    assert!(reply.body.contains("ollana trust me --scope manage"), "{}", reply.body);
    b.reports(|report| report.scope = Scope::Manage);
    assert_eq!(node.ask("POST /api/pull", CHAT_M).await.body, "b");
    assert_eq!(node.ask("POST /@a/api/pull", CHAT_M).await.body, "a", "its gate decides");
    a.reports(|report| report.scope = Scope::Manage);
    let reply = node.ask("DELETE /api/delete", CHAT_M).await;
    assert_eq!(reply.status, 409);
    assert!(reply.body.contains("a, b") || reply.body.contains("b, a"), "{}", reply.body);
    assert_eq!(node.ask("DELETE /api/delete\nOllana-Peer: a", CHAT_M).await.body, "a");
}

#[tokio::test]
async fn an_open_listener_changes_no_models() {
    let (me, calls) = FakeEndpoint::local("me", &["m"]);
    calls.always(StatusCode::OK, "me");
    let node = Node::set_up(crate::Setup { open: true, ..Default::default() }, &[&me]).await;
    let reply = node.ask("POST /api/pull", CHAT_M).await;
    assert_eq!(reply.status, 403);
    assert!(reply.body.contains("--listen-open"), "{}", reply.body);
    assert_eq!(node.ask("POST /api/chat", CHAT_M).await.body, "me");
}

#[tokio::test]
async fn what_acts_on_the_owners_account_never_crosses() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let reply = node.ask("POST /api/me", "").await;
    assert_eq!((reply.status, &*reply.body), (401, r#"{"error":"unauthorized"}"#));
    let reply = node.ask("GET /api/status", "").await;
    assert_eq!(reply.status, 200);
    assert!(reply.body.contains(r#""disabled":true"#), "{}", reply.body);
    assert_eq!(node.ask("POST /api/signout", "").await.status, 403);
    assert!(a.is_empty());
}

#[tokio::test]
async fn one_name_with_two_digests_keeps_to_the_first_that_answered() {
    let (a, mut a_calls) = FakeEndpoint::new("a", &["m@one"]);
    let (b, mut b_calls) = FakeEndpoint::new("b", &["m@two"]);
    b.reports(|report| report.inflight = 9);
    let node = Node::over(&[&a, &b]).await;
    let mut client = node.client().await;
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    soon(a_calls.next()).await.answer(StatusCode::OK, "one");
    assert_eq!(client.reply().await.body, "one");
    a.reports(|report| report.inflight = 99);
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    soon(a_calls.next()).await.answer(StatusCode::OK, "one");
    client.reply().await;
    // Its holder cannot be used for now: no other weights behind one's back.
    a.becomes(Health::Suspect);
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("Another version is on b"), "{}", reply.body);
    client.send(&crate::request("POST /@b/api/embed", CHAT_M)).await;
    soon(b_calls.next()).await.answer(StatusCode::OK, "two");
    assert_eq!(client.reply().await.body, "two");
    // Nobody has the first any more: the name means the other.
    a.becomes(Health::Healthy);
    a.reports(|report| report.models.clear());
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    soon(b_calls.next()).await.answer(StatusCode::OK, "two");
    assert_eq!(client.reply().await.body, "two");
}
