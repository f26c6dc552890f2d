//! Which node a request goes to, and what is said where none can take it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use ollana::internals::digests::{Digests, Holder};
use ollana::internals::exchange::{Endpoint, Health};
use ollana::internals::id::{Scope, Use};
use ollana::internals::route::ModelName;

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
    _b.runs(1);
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
        "closed refuses this node",
        "leaving is about to stop",
    ] {
        assert!(reply.body.contains(part), "{part}: {}", reply.body);
    }
}

#[tokio::test]
async fn a_refusal_by_a_node_used_for_another_model_leaves_ollamas_404() {
    // Without a digest there is none that this node could keep to.
    let (once, once_calls) = FakeEndpoint::new("once", &["m@"]);
    let (other, _other_calls) = FakeEndpoint::new("other", &["n"]);
    once_calls.always(StatusCode::OK, "once");
    let node = Node::over(&[&once, &other]).await;
    assert_eq!(node.ask("POST /api/chat", CHAT_M).await.body, "once");
    once.reports(|report| {
        report.scope = Scope::None;
        report.models.clear();
    });
    let reply = node.ask("POST /api/chat", r#"{"model":"new"}"#).await;
    assert_eq!((reply.status, &*reply.body), (404, r#"{"error":"model 'new' not found"}"#));
    let reply = node.ask("POST /api/chat", CHAT_M).await;
    assert_eq!(reply.status, 503, "it was used for this one");
    assert!(reply.body.contains("once refuses this node") && reply.body.contains("on once: ollana trust me"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_while_the_only_provider_flickers() {
    let (only, calls) = FakeEndpoint::new("only", &["m"]);
    calls.always(StatusCode::OK, "served");
    let node = Node::over(&[&only]).await;
    let (flickers, over) = (only.clone(), Arc::new(AtomicBool::new(false)));
    let flickering = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            while !over.load(Ordering::Relaxed) {
                flickers.becomes(Health::Suspect);
                std::thread::yield_now();
                flickers.becomes(Health::Healthy);
                std::thread::yield_now();
            }
        }
    });
    for n in 0..400 {
        // With and without a slot.
        let head = if n % 2 == 0 { "POST /api/chat" } else { "POST /api/show" };
        let reply = node.ask(head, CHAT_M).await;
        assert_eq!((reply.status, &*reply.body), (200, "served"), "{n}: {head}");
    }
    over.store(true, Ordering::Relaxed);
    flickering.join().unwrap();
}

#[tokio::test]
async fn a_provider_that_was_lost_is_waited_for_and_named() {
    let (only, calls) = FakeEndpoint::new("only", &["m"]);
    calls.always(StatusCode::OK, "back");
    let node = Node::over(&[&only]).await;
    assert_eq!(node.ask("POST /api/chat", CHAT_M).await.body, "back");
    node.leaves(&only);
    let mut client = node.client().await;
    client.send(&crate::request("POST /api/chat", CHAT_M)).await;
    let mut list = node.client().await;
    list.send(&crate::request("GET /api/tags", "")).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    node.joins(&only);
    assert_eq!(client.reply().await.body, "back");
    assert_eq!(list.reply().await.status, 200);
    node.leaves(&only);
    for head in ["POST /api/chat", "GET /api/tags"] {
        let reply = node.ask(head, CHAT_M).await;
        assert_eq!(reply.status, 503, "{head}");
        assert!(reply.body.contains("only cannot be reached"), "{head}: {}", reply.body);
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
    let id = Endpoint::id(&*_b).to_string();
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
        assert!(reply.body.contains(&Endpoint::id(&**endpoint).to_string()), "{}", reply.body);
    }
}

/// How a node is shown where several bear its name.
fn suffixed(name: &str, endpoint: &FakeEndpoint) -> String {
    format!("{name}-{}", Endpoint::id(endpoint).short())
}

#[tokio::test]
async fn a_name_is_409_also_where_one_is_shown_with_its_id_and_what_is_shown_can_be_typed() {
    for both in [false, true] {
        let other = suffixed("gpu", &FakeEndpoint::with_key("x", "k2", &[]).0);
        let first = suffixed("gpu", &FakeEndpoint::with_key("x", "k1", &[]).0);
        let (one, one_calls) = FakeEndpoint::with_key(if both { &first } else { "gpu" }, "k1", &["m"]);
        let (two, two_calls) = FakeEndpoint::with_key(&other, "k2", &["m"]);
        one_calls.always(StatusCode::OK, "1");
        two_calls.always(StatusCode::OK, "2");
        let node = Node::over(&[&one, &two]).await;
        let reply = node.ask("POST /@GPU/v1/chat/completions", CHAT_M).await;
        assert_eq!(reply.status, 409);
        assert!(reply.body.starts_with(r#"{"error":{"message""#), "{}", reply.body);
        for (endpoint, shown, answer) in [(&one, &first, "1"), (&two, &other, "2")] {
            let id = Endpoint::id(&**endpoint).to_string();
            assert!(reply.body.contains(&id), "{}", reply.body);
            for choice in [shown, &id, &id[..15], &id[..9].to_lowercase()] {
                let reply = node.ask(&format!("POST /@{choice}/api/chat"), CHAT_M).await;
                assert_eq!(reply.body, answer, "{choice}");
            }
            assert_eq!(node.ask(&format!("POST /@{}/api/chat", &id[..6]), CHAT_M).await.status, 404);
        }
    }
}

#[tokio::test]
async fn a_node_cannot_catch_what_is_meant_for_another_by_its_name() {
    let (one, one_calls) = FakeEndpoint::with_key("gpu1", "k1", &["m"]);
    one_calls.always(StatusCode::OK, "1");
    let id = Endpoint::id(&*one).to_string();
    let digits = id.replace('-', "");
    let (prefix, _p) = FakeEndpoint::with_key(&digits[..12], "k2", &["m"]);
    let (whole, _w) = FakeEndpoint::with_key(&digits, "k3", &["m"]);
    let (suffix, _s) = FakeEndpoint::with_key(&suffixed("gpu1", &one), "k4", &["m"]);
    let node = Node::over(&[&one, &prefix, &whole, &suffix]).await;
    for choice in [&digits, &id] {
        assert_eq!(node.ask(&format!("POST /@{choice}/api/chat"), CHAT_M).await.body, "1");
    }
    for choice in [&digits[..12], &suffixed("gpu1", &one)] {
        assert_eq!(node.ask(&format!("POST /@{choice}/api/chat"), CHAT_M).await.status, 409, "{choice}");
    }
}

#[tokio::test]
async fn what_was_meant_for_a_node_that_left_is_no_other_ones() {
    let (one, _one) = FakeEndpoint::with_key("gpu", "k1", &["m"]);
    let (two, _two) = FakeEndpoint::with_key(&suffixed("gpu", &FakeEndpoint::with_key("x", "k2", &[]).0), "k2", &["m"]);
    let node = Node::over(&[&one]).await;
    node.leaves(&one);
    let reply = until_status(&node, "POST /@gpu/api/chat", 503).await;
    assert!(reply.body.contains("gpu cannot be reached"), "{}", reply.body);
    assert!(reply.field("Retry-After").is_some());
    node.joins(&two);
    until_status(&node, "POST /@gpu/api/chat", 409).await;
}

#[tokio::test]
async fn a_model_whose_only_node_left_is_503_and_names_it_and_404_is_for_what_nobody_had() {
    let (one, one_calls) = FakeEndpoint::new("gpu1", &["m"]);
    let (two, two_calls) = FakeEndpoint::new("gpu2", &["other"]);
    one_calls.always(StatusCode::OK, "1");
    two_calls.always(StatusCode::OK, "2");
    let node = Node::over(&[&one, &two]).await;
    assert_eq!(node.ask("POST /api/chat", CHAT_M).await.body, "1");
    // Its Ollama ends, and comes back.
    one.reports(|report| (report.provider, report.models) = (false, Default::default()));
    let reply = until_status(&node, "POST /api/chat", 503).await;
    assert!(reply.body.contains("gpu1 has no Ollama running") && !reply.body.contains("gpu2"), "{}", reply.body);
    one.reports(|report| {
        report.provider = true;
        report.models.insert("m".to_owned(), Default::default());
    });
    until_status(&node, "POST /api/chat", 200).await;
    node.leaves(&one);
    let reply = until_status(&node, "POST /v1/chat/completions", 503).await;
    assert!(reply.body.contains("gpu1 cannot be reached") && reply.body.starts_with(r#"{"error":{"#), "{}", reply.body);
    assert!(reply.field("Retry-After").is_some());
    assert_eq!(node.ask("POST /api/chat", r#"{"model":"nope"}"#).await.status, 404);
    // It comes back without the model: that is known then.
    let (again, _calls) = FakeEndpoint::new("gpu1", &["other"]);
    node.joins(&again);
    until_status(&node, "POST /api/chat", 404).await;
}

#[tokio::test]
async fn who_was_never_let_in_leaves_nothing_behind() {
    let (one, _one) = FakeEndpoint::new("stranger", &["m"]);
    let (two, _two) = FakeEndpoint::new("gpu", &["other"]);
    one.use_becomes(Use::Pending);
    let node = Node::over(&[&one, &two]).await;
    until_status(&node, "POST /api/chat", 503).await;
    node.leaves(&one);
    until_status(&node, "POST /api/chat", 404).await;
}

/// Asks until the answer has this status: what is told to a node has no event that could be seen from outside.
async fn until_status(node: &Node, head: &str, status: u16) -> crate::node::Reply {
    soon(async {
        loop {
            let reply = node.ask(head, CHAT_M).await;
            if reply.status == status {
                return reply;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_cloud_model_is_for_the_own_ollama_alone() {
    let (gpu, gpu_calls) = FakeEndpoint::new("gpu", &["m:cloud", "m:120b-cloud"]);
    let (me, me_calls) = FakeEndpoint::local("me", &["m"]);
    me_calls.always(StatusCode::OK, "me");
    let ask = [
        ("POST /api/chat", r#"{"model":"m:cloud"}"#),
        ("POST /v1/chat/completions", r#"{"model":"m:120b-cloud"}"#),
        ("POST /v1/messages", r#"{"model":"M: Cloud"}"#),
        ("GET /v1/models/m:cloud", ""),
    ];
    let node = Node::over(&[&gpu]).await;
    for (head, body) in ask {
        let reply = node.ask(head, body).await;
        assert_eq!(reply.status, 403, "{head}");
        assert!(
            reply.body.contains("not shared with other nodes") && reply.body.contains(r#""error""#),
            "{}",
            reply.body
        );
    }
    node.joins(&me);
    for (head, body) in ask {
        let status = soon(async {
            loop {
                let reply = node.ask(head, body).await;
                if reply.status != 403 {
                    return (reply.status, reply.body);
                }
            }
        });
        assert_eq!(status.await, (200, "me".to_owned()), "{head}");
    }
    assert!(gpu_calls.is_empty());
    let open = Node::set_up(crate::Setup { open: true, ..Default::default() }, &[&me, &gpu]).await;
    assert_eq!(open.ask("POST /api/chat", r#"{"model":"m:cloud"}"#).await.status, 403, "not on the owner's account");
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
    let (listen, first) = (node.address, if reply.body.contains("a, b") { "a" } else { "b" });
    assert!(reply.body.contains(&format!("OLLAMA_HOST={listen}/@{first} ollama rm …")), "{}", reply.body);
    assert!(reply.body.contains(&format!("`ollana-peer: {first}`")), "{}", reply.body);
    assert_eq!(node.ask("DELETE /api/delete\nOllana-Peer: a", CHAT_M).await.body, "a");
    for (method, path, command) in [
        ("POST", "pull", "pull"),
        ("POST", "push", "push"),
        ("POST", "copy", "cp"),
        ("POST", "blobs/sha256:0", "create"),
    ] {
        let reply = node.ask(&format!("{method} /api/{path}"), CHAT_M).await;
        assert_eq!(reply.status, 409);
        assert!(reply.body.contains(&format!("ollama {command} …")), "{}", reply.body);
    }
}

#[tokio::test]
async fn the_nodes_to_choose_from_are_those_that_can_be_used_now() {
    let manages = |name: &str| {
        let (endpoint, calls) = FakeEndpoint::new(name, &["m"]);
        endpoint.reports(|report| report.scope = Scope::Manage);
        calls.always(StatusCode::OK, Box::leak(name.to_owned().into_boxed_str()));
        endpoint
    };
    let (first, second, third) = (manages("first"), manages("second"), manages("third"));
    let (infers, _calls) = FakeEndpoint::new("infers", &["m"]);
    let (away, waits, down, mute) = (manages("away"), manages("waits"), manages("down"), manages("mute"));
    away.becomes(Health::Gone);
    waits.use_becomes(Use::Pending);
    down.reports(|report| report.provider = false);
    let node = Node::over(&[&first, &second, &infers, &away, &waits, &down]).await;
    let reply = node.ask("POST /api/pull", CHAT_M).await;
    assert_eq!(reply.status, 409);
    let names = reply.body.split("change models: ").nth(1).unwrap().split(". Choose").next().unwrap();
    assert!(names == "first, second" || names == "second, first", "{}", reply.body);
    second.reports(|report| report.draining = true);
    assert_eq!(node.ask("POST /api/pull", CHAT_M).await.body, "first");
    // One that is silent for a moment is waited for: it may make it a choice.
    mute.becomes(Health::Suspect);
    node.joins(&mute);
    let mut client = node.client().await;
    client.send(&crate::request("POST /api/pull", CHAT_M)).await;
    node.joins(&third);
    mute.becomes(Health::Healthy);
    assert_eq!(client.reply().await.status, 409);
    // The only ones that allow it cannot be used: that is no matter of scope.
    let node = Node::over(&[&infers, &waits]).await;
    let reply = node.ask("POST /api/pull", CHAT_M).await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("ollana trust waits"), "{}", reply.body);
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
    b.runs(9);
    let node = Node::over(&[&a, &b]).await;
    let mut client = node.client().await;
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    soon(a_calls.next()).await.answer(StatusCode::OK, "one");
    assert_eq!(client.reply().await.body, "one");
    a.runs(99);
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    soon(a_calls.next()).await.answer(StatusCode::OK, "one");
    client.reply().await;
    // Its holder cannot be used for now: no other weights behind one's back.
    a.becomes(Health::Suspect);
    client.send(&crate::request("POST /api/embed", CHAT_M)).await;
    let reply = client.reply().await;
    assert_eq!(reply.status, 503);
    assert!(
        reply.body.contains("a does not answer") && reply.body.contains("Other weights are on b"),
        "{}",
        reply.body
    );
    assert!(reply.body.contains("ollana models --keep m@b"), "{}", reply.body);
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

#[tokio::test]
async fn weights_are_kept_to_while_all_who_have_them_are_away_and_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("digests.toml");
    let digests = || Digests::open(&file).unwrap();
    let (a, a_calls) = FakeEndpoint::new("a", &["m@one"]);
    let (b, b_calls) = FakeEndpoint::new("b", &["m@two"]);
    a_calls.always(StatusCode::OK, "one");
    b_calls.always(StatusCode::OK, "two");
    let first = digests();
    let node = Node::set_up(crate::Setup { digests: first.clone(), ..Default::default() }, &[&a]).await;
    assert_eq!(node.ask("POST /api/embed", CHAT_M).await.body, "one");
    node.leaves(&a);
    node.joins(&b);
    let reply = until_status(&node, "POST /api/embed", 503).await;
    assert!(reply.body.contains("a cannot be reached"), "{}", reply.body);
    first.save().await;
    drop((node, first));

    // a is not there yet when the node starts again.
    let digests = digests();
    let node = Node::set_up(crate::Setup { digests: digests.clone(), ..Default::default() }, &[&b]).await;
    let reply = node.ask("POST /api/embed", CHAT_M).await;
    assert_eq!(reply.status, 503);
    assert!(reply.body.contains("a cannot be reached"), "{}", reply.body);
    assert_eq!(node.ask("POST /@b/api/embed", CHAT_M).await.body, "two", "for one request");
    node.joins(&a);
    let reply = until_status(&node, "POST /api/embed", 200).await;
    assert_eq!(reply.body, "one");
    // A person chooses.
    let holder = Holder { id: Endpoint::id(&*b), name: "b".parse().unwrap() };
    digests.keep(&ModelName::new("M"), "two", holder);
    for _ in 0..5 {
        assert_eq!(node.ask("POST /api/embed", CHAT_M).await.body, "two");
    }
}
