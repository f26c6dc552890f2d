//! Tickets at gates that say anything.

use http::{Response, StatusCode};
use ollana::internals::exchange::{Body, Health, REFUSAL_HEADER, Slot, Turn, full};
use ollana::internals::id::Use;
use tokio::sync::oneshot;

use crate::{FakeEndpoint, Node, Setup, request, soon};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;

fn refusal(status: u16, body: &'static str) -> Response<Body> {
    refusal_for("busy", status, body)
}

fn refusal_for(code: &str, status: u16, body: &'static str) -> Response<Body> {
    let response = Response::builder().status(status).header("retry-after", "7").header("ollana-peer", "victim");
    response.header(REFUSAL_HEADER, code).body(full(body)).unwrap()
}

#[tokio::test]
async fn a_gate_that_queues_nothing_is_quoted_in_the_shape_of_the_api_that_was_asked() {
    let (_a, _calls) = FakeEndpoint::new("a", &["m"]);
    let mut tickets = _a.queues();
    let node = Node::over(&[&_a]).await;
    let shapes = [("/v1/chat/completions", r#"{"error":{"message":"a: full"#), ("/api/chat", r#"{"error":"a: full"#)];
    for (path, shape) in shapes {
        let mut client = node.client().await;
        client.send(&request(&format!("POST {path}"), CHAT)).await;
        soon(tickets.next()).await.send(Turn::Refused(refusal(503, r#"{"error":"full\u001b[2J"}"#))).unwrap();
        let reply = client.reply().await;
        assert_eq!((reply.status, reply.field("Retry-After")), (503, Some("7")), "{path}");
        assert!(reply.body.starts_with(shape) && !reply.body.contains("u001b"), "{path}: {}", reply.body);
        assert_ne!(reply.field("Ollana-Peer"), Some("victim"), "nobody else's name");
    }
}

#[tokio::test]
async fn a_gate_does_not_answer_in_place_of_a_model() {
    let (_a, _calls) = FakeEndpoint::new("a", &["m"]);
    let mut tickets = _a.queues();
    let node = Node::over(&[&_a]).await;
    let mut unsigned = refusal(200, r#"{"message":"lies"}"#);
    unsigned.headers_mut().remove(REFUSAL_HEADER);
    for answer in [refusal(200, r#"{"message":"lies"}"#), unsigned] {
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        soon(tickets.next()).await.send(Turn::Refused(answer)).unwrap();
        let reply = client.reply().await;
        assert_eq!(reply.status, 503);
        assert!(!reply.body.contains("lies") && reply.body.contains("a takes no more requests"), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_ticket_that_was_lost_with_its_connection_is_placed_again_once_that_is_back() {
    let (first, _calls) = FakeEndpoint::new("a", &["m"]);
    let mut tickets = first.queues();
    let node = Node::over(&[&first]).await;
    let mut client = node.client().await;
    // More often than a server may fail before it is left alone.
    for _ in 0..4 {
        client.send(&request("POST /api/chat", CHAT)).await;
        drop(soon(tickets.next()).await);
        let (back, mut calls) = FakeEndpoint::new("a", &["m"]);
        tickets = back.queues();
        node.joins(&back);
        soon(tickets.next()).await.send(back.slot()).unwrap();
        soon(calls.next()).await.answer(StatusCode::OK, "done");
        assert_eq!(client.reply().await.body, "done");
    }
}

#[tokio::test]
async fn who_falls_silent_while_a_request_waits_there_is_waited_for_a_moment() {
    let (a, mut calls) = FakeEndpoint::new("a", &["m"]);
    let mut tickets = a.queues();
    let node = Node::over(&[&a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let mut ticket = soon(tickets.next()).await;
    a.becomes(Health::Gone);
    soon(ticket.closed()).await;
    a.becomes(Health::Healthy);
    soon(tickets.next()).await.send(a.slot()).unwrap();
    soon(calls.next()).await.answer(StatusCode::OK, "done");
    assert_eq!(client.reply().await.body, "done");
}

#[tokio::test]
async fn a_ticket_stays_at_the_only_provider_while_that_is_suspect() {
    let (a, mut calls) = FakeEndpoint::new("a", &["m"]);
    let mut tickets = a.queues();
    let node = Node::over(&[&a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let mut ticket = soon(tickets.next()).await;
    a.becomes(Health::Suspect);
    let withdrawn = tokio::time::timeout(std::time::Duration::from_secs(4), ticket.closed()).await;
    assert!(withdrawn.is_err(), "it is withdrawn, though nobody else can take it");
    // Another one can.
    let (b, _) = FakeEndpoint::new("b", &["m"]);
    let mut others = b.queues();
    node.joins(&b);
    soon(ticket.closed()).await;
    let mut other = soon(others.next()).await;
    b.becomes(Health::Gone);
    soon(other.closed()).await;
    a.becomes(Health::Healthy);
    let ticket = soon(tickets.next()).await;
    a.becomes(Health::Suspect);
    ticket.send(a.slot()).unwrap();
    soon(calls.next()).await.answer(StatusCode::OK, "done");
    assert_eq!(client.reply().await.body, "done");
}

#[tokio::test]
async fn where_every_ticket_was_lost_it_is_said_so() {
    let (a, calls) = FakeEndpoint::new("a", &["m"]);
    let mut tickets = a.queues();
    let node = Node::over(&[&a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    drop(soon(tickets.next()).await);
    let reply = client.reply().await;
    assert_eq!((reply.status, reply.field("Retry-After")), (503, Some("1")));
    assert!(reply.body.contains("the connection to a is gone while this waited there"), "{}", reply.body);
    assert!(calls.is_empty());
}

#[tokio::test]
async fn who_is_used_no_more_gets_no_prompt_for_a_ticket_of_before() {
    let (one, calls) = FakeEndpoint::new("a", &["m"]);
    let (other, mut others) = FakeEndpoint::new("b", &["m"]);
    let (mut tickets, mut other_tickets) = (one.queues(), other.queues());
    for endpoint in [&one, &other] {
        endpoint.runs(4);
    }
    let node = Node::over(&[&one, &other]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let (ticket, other_ticket) = (soon(tickets.next()).await, soon(other_tickets.next()).await);
    one.use_becomes(Use::No);
    // At once, before anybody has looked again.
    let (kept, is_gone) = oneshot::channel::<()>();
    let slot = Slot::new(move |_| {
        drop(kept);
        panic!("it has the prompt")
    });
    ticket.send(Turn::Slot(slot)).unwrap();
    let _ = soon(is_gone).await;
    other_ticket.send(other.slot()).unwrap();
    soon(others.next()).await.answer(StatusCode::OK, "done");
    assert_eq!(client.reply().await.body, "done");

    one.use_becomes(Use::Yes);
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let (mut ticket, other_ticket) = (soon(tickets.next()).await, soon(other_tickets.next()).await);
    one.use_becomes(Use::No);
    // And it does not go on waiting for what it would not take.
    soon(ticket.closed()).await;
    other_ticket.send(other.slot()).unwrap();
    soon(others.next()).await.answer(StatusCode::OK, "done");
    assert_eq!(client.reply().await.body, "done");
    assert!(calls.is_empty());
}

#[tokio::test]
async fn a_gate_that_promises_a_slot_at_once_and_gives_none_keeps_nobody_waiting_for_ever() {
    let (liar, calls) = FakeEndpoint::new("a", &["m"]);
    let (honest, others) = FakeEndpoint::new("b", &["m"]);
    let mut tickets = liar.queues();
    honest.runs(2);
    others.always(StatusCode::OK, "done");
    let node = Node::set_up(Setup { tempo: 20.0, ..Setup::default() }, &[&liar, &honest]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let _never = soon(tickets.next()).await;
    assert_eq!(client.reply().await.body, "done");
    assert!(calls.is_empty());
}

#[tokio::test]
async fn who_queues_at_a_server_that_begins_to_fail_is_served_by_another() {
    let (bad, mut calls) = FakeEndpoint::new("a", &["m"]);
    let (good, others) = FakeEndpoint::new("b", &["m"]);
    let (mut tickets, mut other_tickets) = (bad.queues(), good.queues());
    for endpoint in [&bad, &good] {
        endpoint.runs(4);
    }
    others.always(StatusCode::OK, "done");
    let node = Node::over(&[&bad, &good]).await;
    let (mut clients, mut waiting) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        clients.push(client);
        waiting.push((soon(tickets.next()).await, soon(other_tickets.next()).await));
    }
    // A slot is free there as soon as one has failed.
    let mut waiting = waiting.into_iter();
    for (ticket, _) in waiting.by_ref().take(3) {
        ticket.send(bad.slot()).unwrap();
        soon(calls.next()).await.answer(StatusCode::INTERNAL_SERVER_ERROR, "broken");
        soon(other_tickets.next()).await.send(good.slot()).unwrap();
    }
    let waiting: Vec<_> = waiting
        .map(|(ticket, other)| {
            // Who has looked again meanwhile waits there no more.
            let _ = ticket.send(bad.slot());
            other
        })
        .collect();
    for other in waiting {
        other.send(good.slot()).unwrap();
    }
    for mut client in clients {
        let reply = client.reply().await;
        assert_eq!((reply.status, &*reply.body), (200, "done"));
    }
    assert!(calls.is_empty(), "it has failed three times");
}

#[tokio::test]
async fn who_queues_at_a_server_that_has_no_room_for_more_keeps_the_place() {
    let (full, _calls) = FakeEndpoint::new("a", &["m"]);
    let (cold, mut others) = FakeEndpoint::new("b", &["m"]);
    let mut tickets = full.queues();
    full.runs(1);
    cold.unloads();
    let node = Node::set_up(Setup { tempo: 20.0, ..Setup::default() }, &[&full, &cold]).await;
    let mut first = node.client().await;
    first.send(&request("POST /api/chat", CHAT)).await;
    let mut place = soon(tickets.next()).await;
    let mut second = node.client().await;
    second.send(&request("POST /api/chat", CHAT)).await;
    soon(tickets.next()).await.send(Turn::Refused(refusal(503, r#"{"error":"full"}"#))).unwrap();
    soon(others.next()).await.answer(StatusCode::OK, "loaded");
    assert_eq!(second.reply().await.body, "loaded");
    // It has looked again five times by then.
    let withdrawn = tokio::time::timeout(std::time::Duration::from_millis(300), place.closed()).await;
    assert!(withdrawn.is_err() && others.is_empty(), "it left its place for a load");
    place.send(full.slot()).unwrap();
    drop(first);
}

#[tokio::test]
async fn that_a_gate_is_about_to_stop_is_not_held_against_its_server() {
    let (back, mut calls) = FakeEndpoint::new("a", &["m"]);
    let (other, _others) = FakeEndpoint::new("b", &["m"]);
    let (mut tickets, mut other_tickets) = (back.queues(), other.queues());
    for endpoint in [&back, &other] {
        endpoint.runs(4);
    }
    let node = Node::over(&[&back, &other]).await;
    for code in ["draining", "not-lent", "no-ollama"] {
        let mut client = node.client().await;
        client.send(&request("POST /api/chat", CHAT)).await;
        let _other = soon(other_tickets.next()).await;
        soon(tickets.next()).await.send(Turn::Refused(refusal_for(code, 503, r#"{"error":"later"}"#))).unwrap();
    }
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    soon(tickets.next()).await.send(back.slot()).unwrap();
    soon(calls.next()).await.answer(StatusCode::OK, "done");
    assert_eq!(client.reply().await.body, "done");
}
