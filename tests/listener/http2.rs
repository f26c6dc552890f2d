//! HTTP/2 without TLS, with prior knowledge.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ollana::NodeName;
use ollana::internals::exchange::{Body, ExchangeError, ResetCode, full};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::{FakeEndpoint, Node, soon};

async fn connect(node: &Node) -> http2::SendRequest<Body> {
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn post(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://localhost{path}")).body(body).unwrap()
}

#[tokio::test]
async fn many_requests_share_a_connection_and_none_waits_for_another() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = connect(&node).await;
    let first = client.send_request(post("/api/chat", full(r#"{"model":"m"}"#)));
    let first = tokio::spawn(first);
    let slow = soon(a.next()).await;
    let second = tokio::spawn(client.send_request(post("/api/chat", full(r#"{"model":"m"}"#))));
    let quick = soon(a.next()).await;
    assert_eq!(quick.request.uri(), "/api/chat");
    quick.answer(StatusCode::OK, "second");
    let answer = soon(second).await.unwrap().unwrap();
    assert_eq!(answer.headers()["ollana-peer"], "a");
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "second");
    slow.answer(StatusCode::OK, "first");
    let answer = soon(first).await.unwrap().unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "first");
}

#[tokio::test]
async fn both_directions_flow_at_once_and_end_with_trailers() {
    let (_a, mut a) = FakeEndpoint::new("a", &[]);
    _a.reports(|report| report.api = ollana::internals::exchange::ServerKind::Grpc);
    let node = Node::over(&[&_a]).await;
    let mut client = connect(&node).await;
    let (up, receiver) = mpsc::channel::<Result<Frame<Bytes>, ExchangeError>>(1);
    let upload = StreamBody::new(futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|frame| (frame, receiver))
    }));
    let mut request = post("/pkg.Service/Chat", upload.boxed_unsync());
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let answer = tokio::spawn(client.send_request(request));
    let mut call = soon(a.next()).await;
    assert_eq!(call.request.headers()["te"], "trailers");
    let mut upload = std::mem::replace(call.request.body_mut(), ollana::internals::exchange::empty());
    let down = call.stream();
    let mut answer = soon(answer).await.unwrap().unwrap().into_body();
    for turn in ["ping", "pong", "ping"] {
        up.send(Ok(Frame::data(Bytes::from_static(turn.as_bytes())))).await.unwrap();
        let there = soon(upload.frame()).await.unwrap().unwrap().into_data().unwrap();
        down.send(Ok(Frame::data(there))).await.unwrap();
        assert_eq!(soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap(), turn);
    }
    drop(up);
    while let Some(frame) = soon(upload.frame()).await {
        assert!(frame.unwrap().into_data().unwrap().is_empty(), "only the empty frame that ends a stream");
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    down.send(Ok(Frame::trailers(trailers))).await.unwrap();
    drop(down);
    let frame = soon(answer.frame()).await.unwrap().unwrap();
    assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "0");
    assert!(soon(answer.frame()).await.is_none());
}

#[tokio::test]
async fn a_break_in_mid_answer_is_a_reset_of_the_stream() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = connect(&node).await;
    let answer = tokio::spawn(client.send_request(post("/api/chat", full(r#"{"model":"m"}"#))));
    let down = soon(a.next()).await.stream();
    down.send(Ok(Frame::data(Bytes::from_static(b"half")))).await.unwrap();
    let mut answer = soon(answer).await.unwrap().unwrap().into_body();
    assert!(soon(answer.frame()).await.unwrap().is_ok());
    down.send(Err(ExchangeError::Reset(NodeName::lossy("a"), ResetCode::Upstream))).await.unwrap();
    assert!(soon(answer.frame()).await.unwrap().is_err());
    // The connection serves on.
    let next = tokio::spawn(client.send_request(post("/api/chat", full(r#"{"model":"m"}"#))));
    soon(a.next()).await.answer(StatusCode::OK, "ok");
    assert_eq!(soon(next).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_stream_that_is_given_up_cancels_its_request_only() {
    let (_a, mut a) = FakeEndpoint::new("a", &["m"]);
    let node = Node::over(&[&_a]).await;
    let mut client = connect(&node).await;
    let given_up = tokio::spawn(client.send_request(post("/api/chat", full(r#"{"model":"m"}"#))));
    let mut call = soon(a.next()).await;
    given_up.abort();
    soon(call.cancelled()).await;
    let next = tokio::spawn(client.send_request(post("/api/chat", full(r#"{"model":"m"}"#))));
    soon(a.next()).await.answer(StatusCode::OK, "ok");
    assert_eq!(soon(next).await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn the_authority_is_the_host_that_the_guard_looks_at() {
    let (_a, a) = FakeEndpoint::new("a", &["m"]);
    a.always(StatusCode::OK, "a");
    let node = Node::over(&[&_a]).await;
    let mut client = connect(&node).await;
    let ask =
        |authority: &str| Request::get(format!("http://{authority}/api/version")).body(full(Bytes::new())).unwrap();
    let good: Response<_> = soon(client.send_request(ask("localhost:11434"))).await.unwrap();
    assert_eq!(good.status(), 200);
    let bad = soon(client.send_request(ask("evil.example"))).await.unwrap();
    assert_eq!(bad.status(), 403);
}

#[tokio::test]
async fn a_refused_head_has_no_body() {
    let node = Node::over(&[]).await;
    let mut client = connect(&node).await;
    for path in ["/", "/api/version", "/api/tags"] {
        let request = Request::head(format!("http://localhost{path}")).body(full(Bytes::new())).unwrap();
        let answer = soon(client.send_request(request)).await.unwrap();
        assert_ne!(answer.headers()["content-length"], "0");
        assert!(soon(answer.into_body().collect()).await.unwrap().to_bytes().is_empty(), "{path}");
    }
}
