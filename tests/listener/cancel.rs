//! A client that goes away ends the work, in every phase, within a second.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ollana::internals::exchange::{Body, ExchangeError, full};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::{FakeEndpoint, Node, request, soon};

const CHAT: &str = r#"{"model":"m"}"#;
const AT_MOST: Duration = Duration::from_secs(1);

#[tokio::test]
async fn while_it_waits_for_the_head() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let mut call = soon(a.next()).await;
    drop(client);
    let left = Instant::now();
    soon(call.cancelled()).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

#[tokio::test]
async fn while_it_waits_with_a_second_request_already_sent() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&[request("POST /api/chat", CHAT), request("GET /", "")].concat()).await;
    let mut call = soon(a.next()).await;
    drop(client);
    let left = Instant::now();
    soon(call.cancelled()).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

#[tokio::test]
async fn after_a_reset_at_once() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let mut call = soon(a.next()).await;
    socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    drop(client);
    soon(call.cancelled()).await;
}

#[tokio::test]
async fn between_two_tokens() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let body = soon(a.next()).await.stream();
    body.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
    client.head().await;
    assert_eq!(soon(client.chunk()).await, Ok(Some("one".to_owned())));
    drop(client);
    let left = Instant::now();
    soon(body.closed()).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

#[tokio::test]
async fn during_an_upload() {
    let (me, mut calls) = FakeEndpoint::local("me", &[]);
    let node = Node::over(&[&me]).await;
    let mut client = node.client().await;
    client.send("POST /api/blobs/sha256:1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nabc").await;
    let mut call = soon(calls.next()).await;
    let first = soon(call.request.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "abc");
    drop(client);
    let left = Instant::now();
    assert!(soon(call.request.body_mut().frame()).await.unwrap().is_err());
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

type Asking = tokio::task::JoinHandle<hyper::Result<Response<Incoming>>>;

/// A request on a connection of HTTP/2, which stays for as long as the sender is there: what is given up is one stream of
/// it, by RST_STREAM.
async fn over_http2(node: &Node, path: &str, body: Body) -> (http2::SendRequest<Body>, Asking) {
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post(format!("http://localhost{path}")).body(body).unwrap();
    let asking = tokio::spawn(sender.clone().send_request(request));
    (sender, asking)
}

#[tokio::test]
async fn a_stream_of_http2_while_it_waits_for_the_head() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let (_connection, asking) = over_http2(&node, "/api/chat", full(CHAT)).await;
    let mut call = soon(a.next()).await;
    asking.abort();
    let left = Instant::now();
    soon(call.cancelled()).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_stream_of_http2_between_two_tokens() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let (_connection, asking) = over_http2(&node, "/api/chat", full(CHAT)).await;
    let body = soon(a.next()).await.stream();
    body.send(Ok(Frame::data(Bytes::from_static(b"one")))).await.unwrap();
    let mut answer = soon(asking).await.unwrap().unwrap();
    assert_eq!(soon(answer.body_mut().frame()).await.unwrap().unwrap().into_data().unwrap(), "one");
    drop(answer);
    let left = Instant::now();
    soon(body.closed()).await;
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_stream_of_http2_during_an_upload() {
    let (me, mut calls) = FakeEndpoint::local("me", &[]);
    let node = Node::over(&[&me]).await;
    let (up, receiver) = mpsc::channel::<Result<Frame<Bytes>, ExchangeError>>(1);
    let upload = StreamBody::new(futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|frame| (frame, receiver))
    }));
    let (_connection, asking) = over_http2(&node, "/api/blobs/sha256:1", upload.boxed_unsync()).await;
    up.send(Ok(Frame::data(Bytes::from_static(b"abc")))).await.unwrap();
    let mut call = soon(calls.next()).await;
    let first = soon(call.request.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "abc");
    asking.abort();
    let left = Instant::now();
    assert!(soon(call.request.body_mut().frame()).await.unwrap().is_err());
    assert!(left.elapsed() < AT_MOST, "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_slow_reader_slows_the_server_and_nothing_piles_up() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = node.client().await;
    client.send(&request("POST /api/chat", CHAT)).await;
    let body = soon(a.next()).await.stream();
    let block = Bytes::from(vec![b'x'; 1 << 20]);
    // The client reads nothing: the sockets' buffers fill, then the server has to wait.
    let mut sent = 0;
    while tokio::time::timeout(Duration::from_millis(300), body.send(Ok(Frame::data(block.clone())))).await.is_ok() {
        sent += 1;
        assert!(sent < 64, "{sent} MB are held for a client that reads none");
    }
    drop(client);
    soon(body.closed()).await;
}
