//! HTTP/1.1 as an application speaks it, byte for byte.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt as _;
use ollana::internals::exchange::full;
use tokio::io::AsyncWriteExt as _;

use crate::{FakeEndpoint, Node, request, soon};

const CHAT: &str = r#"{"model":"m"}"#;

#[tokio::test]
async fn the_root_is_answered_by_the_listener_itself() {
    let node = Node::over(&[]).await;
    let reply = node.ask("GET /", "").await;
    assert_eq!((reply.status, &*reply.body, reply.field("Ollana-Peer")), (200, "Ollama is running", Some("me")));
    assert_eq!(reply.field("Content-Type"), Some("text/plain; charset=utf-8"));
    let mut client = node.client().await;
    client.send(&request("HEAD /", "")).await;
    let reply = client.reply_to("HEAD").await;
    assert_eq!((reply.status, reply.field("Content-Length")), (200, Some("17")));
    client.send(&request("GET /", "")).await;
    assert_eq!(client.reply().await.body, "Ollama is running", "nothing of a body stood between");
}

#[tokio::test]
async fn every_chunk_is_delivered_as_it_comes() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let body = soon(a.next()).await.stream();
    for token in ["one", " two", "\n", " three"] {
        // The next is only sent once this one has arrived.
        body.send(Ok(Frame::data(Bytes::from_static(token.as_bytes())))).await.unwrap();
        if token == "one" {
            let head = soon(client.head()).await;
            assert!(head.contains("\nTransfer-Encoding: chunked\n"), "{head}");
        }
        assert_eq!(soon(client.chunk()).await, Ok(Some(token.to_owned())));
    }
    drop(body);
    assert_eq!(soon(client.chunk()).await, Ok(None));
}

#[tokio::test]
async fn a_request_streams_on_while_it_is_sent() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n{\"model\":\"m\",\r\n").await;
    let mut call = soon(a.next()).await;
    let body = call.request.body_mut();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "{\"model\":\"m\",");
    client.send("3\r\n\"x\"\r\n").await;
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "\"x\"");
    client.send("0\r\n\r\n").await;
    assert!(soon(body.frame()).await.is_none());
    call.answer(StatusCode::OK, "ok");
    assert_eq!(client.reply().await.body, "ok");
}

#[tokio::test]
async fn headers_pass_end_to_end_and_those_of_the_hop_do_not() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client
        .send(&request(
            "POST /api/chat?q=1\nX-Many: 1\nX-Many: 2\nConnection: keep-alive, X-Hop\nX-Hop: 1\nKeep-Alive: timeout=5\n\
             Upgrade: h2c\nCookie: a=b\nTE: trailers\nAuthorization: Bearer x\nUser-Agent: test",
            CHAT,
        ))
        .await;
    let call = soon(a.next()).await;
    let sent = call.request.headers();
    assert_eq!(call.request.uri(), "/api/chat?q=1");
    assert_eq!(sent.get_all("x-many").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(
        (&sent["authorization"], &sent["user-agent"], &sent["content-length"]),
        (&HeaderValue::from_static("Bearer x"), &HeaderValue::from_static("test"), &HeaderValue::from_static("13"),)
    );
    for gone in ["connection", "x-hop", "keep-alive", "upgrade", "cookie", "ollana-peer"] {
        assert!(!sent.contains_key(gone), "{gone}");
    }
    let response = Response::builder()
        .status(201)
        .header("x-answer", "1")
        .header("x-answer", "2")
        .header("access-control-allow-origin", "*")
        .header("connection", "x-internal")
        .header("x-internal", "1")
        .header("content-type", "application/x-ndjson");
    call.reply(Ok(response.body(full("{}\n")).unwrap()));
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body), (201, "{}\n"));
    assert!(reply.head.contains("\nX-Answer: 1\nX-Answer: 2\n"), "{}", reply.head);
    assert_eq!(reply.field("Content-Type"), Some("application/x-ndjson"));
    assert_eq!(reply.field("Content-Length"), Some("3"));
    for gone in ["Access-Control-Allow-Origin", "X-Internal", "Connection"] {
        assert_eq!(reply.field(gone), None);
    }
}

#[tokio::test]
async fn an_answer_that_comes_before_the_upload_is_over_is_seen_and_the_connection_lives_on() {
    const SIZE: usize = 64 << 20;
    let (me, mut calls) = FakeEndpoint::local("me", &[]);
    let node = Node::over(&[&me]).await;
    let mut client = node.client().await;
    client
        .send(&format!("POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n"))
        .await;
    // As the Ollama behind would: answers without reading, and drops the body.
    soon(calls.next()).await.answer(StatusCode::OK, "already there");
    let block = vec![b'x'; 1 << 20];
    for _ in 0..SIZE / block.len() {
        soon(client.stream.write_all(&block)).await.expect("no reset");
    }
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body), (200, "already there"));
    client.send(&request("GET /", "")).await;
    assert_eq!(client.reply().await.status, 200);
}

#[tokio::test]
async fn a_refusal_of_an_upload_is_seen_too() {
    const SIZE: usize = 64 << 20;
    let node = Node::over(&[]).await;
    let mut client = node.client().await;
    client
        .send(&format!("POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {SIZE}\r\n\r\n"))
        .await;
    let block = vec![b'x'; 1 << 20];
    for _ in 0..SIZE / block.len() {
        soon(client.stream.write_all(&block)).await.expect("no reset");
    }
    assert_eq!(client.reply().await.status, 503);
}

#[tokio::test]
async fn who_waits_for_continue_is_told_to_only_if_the_body_is_wanted() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client
        .send("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(soon(client.head()).await, "HTTP/1.1 100 Continue\n\n");
    client.send(CHAT).await;
    let mut call = soon(a.next()).await;
    assert!(!call.request.headers().contains_key("expect"));
    assert_eq!(call.body().await, CHAT);
    call.answer(StatusCode::OK, "ok");
    assert_eq!(client.reply().await.body, "ok");

    let mut client = node.client().await;
    client
        .send("POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(client.reply().await.status, 403);
    assert!(client.is_closed().await, "what follows could be the body or a request: nobody can tell");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_their_order() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    let all = [request("POST /api/chat", CHAT), request("GET /", ""), request("GET /api/version", "")].concat();
    client.send(&all).await;
    soon(a.next()).await.answer(StatusCode::OK, "first");
    soon(a.next()).await.answer(StatusCode::OK, "third");
    for expected in ["first", "Ollama is running", "third"] {
        assert_eq!(client.reply().await.body, expected);
    }
}

#[tokio::test]
async fn bodies_of_refused_requests_are_read_one_after_the_other() {
    let node = Node::over(&[]).await;
    let mut client = node.client().await;
    let short = request("POST /api/chat\nOrigin: https://evil.example", "ab");
    let chunks = "1\r\nx\r\n".repeat(50);
    let foreign = "POST /api/chat HTTP/1.1\r\nHost: evil.example\r\nTransfer-Encoding: chunked";
    let chunked = format!("{foreign}\r\n\r\n{chunks}0\r\n\r\n");
    let all = [&*short, &chunked, &short, &short, &chunked, &request("GET /", "")].concat();
    client.send(&all).await;
    for expected in [403, 403, 403, 403, 403, 200] {
        assert_eq!(client.reply().await.status, expected);
    }
}

#[tokio::test]
async fn a_half_closed_client_gets_its_quick_answer() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    a.always(StatusCode::OK, "v");
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("GET /api/version", "")).await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.reply().await.body, "v");
    assert!(client.is_closed().await);
}

#[tokio::test]
async fn trailers_pass_where_they_are_welcome() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client
        .send(
            "POST /api/show HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-in\r\n\r\n\
             1\r\na\r\n0\r\nx-in: 1\r\n\r\n",
        )
        .await;
    let mut call = soon(a.next()).await;
    assert_eq!(
        (&call.request.headers()["te"], &call.request.headers()["trailer"]),
        (&HeaderValue::from_static("trailers"), &HeaderValue::from_static("x-in"),)
    );
    let collected = soon(call.request.body_mut().collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-in"], "1");
    let mut trailers = HeaderMap::new();
    trailers.insert("x-out", HeaderValue::from_static("2"));
    let frames = [Frame::data(Bytes::from_static(b"b")), Frame::trailers(trailers)].map(Ok);
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    call.reply(Ok(Response::builder().header("trailer", "x-out").body(body).unwrap()));
    soon(client.head()).await;
    assert_eq!(soon(client.chunk()).await, Ok(Some("b".to_owned())));
    let rest = soon(client.head()).await;
    assert!(rest.eq_ignore_ascii_case("0\nx-out: 2\n\n"), "{rest:?}");
}

#[tokio::test]
async fn too_large_a_head_is_431_and_seen() {
    let node = Node::over(&[]).await;
    let mut client = node.client().await;
    let line = format!("X-Large: {}\r\n", "x".repeat(1000));
    let _ = client.stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n").await;
    for _ in 0..1000 {
        let _ = client.stream.write_all(line.as_bytes()).await;
    }
    let _ = client.stream.write_all(b"\r\n").await;
    let head = soon(client.head()).await;
    assert!(head.starts_with("HTTP/1.1 431 "), "{head}");
    // Tens of kilobytes, as a browser's cookies for localhost can be, are fine.
    let fields: String = (0..150).map(|i| format!("\nX-{i}: {}", "x".repeat(400))).collect();
    assert_eq!(node.ask(&format!("GET /{fields}"), "").await.status, 200);
}

#[tokio::test]
async fn odd_targets_and_missing_hosts_are_answered_as_ollama_does() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    a.always(StatusCode::OK, "a");
    let node = Node::over(&[&_a]).await;
    assert_eq!(node.ask("GET http://127.0.0.1:11434/api/version", "").await.body, "a");
    let mut client = node.client().await;
    client.send("GET /api/version HTTP/1.1\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body), (400, "400 Bad Request: missing required Host header"));
    assert!(client.is_closed().await);
    let mut client = node.client().await;
    client.send("GET /api/version HTTP/1.0\r\n\r\n").await;
    let reply = client.reply().await;
    assert_eq!((reply.status, &*reply.body), (200, "a"));
    assert!(reply.head.starts_with("HTTP/1.0 200"), "{}", reply.head);
}

#[tokio::test]
async fn a_request_that_came_round_is_refused() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let hop = ollana::internals::route::headers::HOP_HEADER;
    assert_eq!(node.ask(&format!("POST /api/chat\n{hop}: 1"), CHAT).await.status, 508);
    assert!(a.is_empty());
}

#[tokio::test]
async fn shutting_down_lets_running_answers_finish_and_closes_idle_connections() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut idle = node.client().await;
    idle.send(&request("GET /", "")).await;
    idle.reply().await;
    let mut busy = node.client().await;
    busy.send(&request("POST /api/chat", CHAT)).await;
    let body = soon(a.next()).await.stream();
    body.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
    busy.head().await;
    node.shutdown.cancel();
    assert!(idle.is_closed().await);
    assert!(tokio::net::TcpStream::connect(node.address).await.is_err() || node.refuses().await);
    body.send(Ok(Frame::data(Bytes::from_static(b"two")))).await.unwrap();
    drop(body);
    assert_eq!(soon(busy.chunk()).await, Ok(Some("one".to_owned())));
    assert_eq!(soon(busy.chunk()).await, Ok(Some("two".to_owned())));
    assert_eq!(soon(busy.chunk()).await, Ok(None));
    assert!(busy.is_closed().await);
    soon(node.serving).await.unwrap();
}

#[tokio::test]
async fn shutting_down_breaks_off_what_does_not_finish_in_time() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let setup = crate::Setup { drain: std::time::Duration::from_millis(50), ..Default::default() };
    let node = Node::set_up(setup, &[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let mut call = soon(a.next()).await;
    node.shutdown.cancel();
    soon(call.cancelled()).await;
    soon(node.serving).await.unwrap();
}
