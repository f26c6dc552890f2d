//! gRPC through two nodes to a server behind the gate, as it stands on the wire.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use ollana::internals::exchange::{ExchangeError, ServerKind};
use ollana::internals::id::Scope;
use ollana::internals::ollama::Ollama;
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::fake_ollama::FakeOllama;
use super::grpc_server::{Face, Grpc, Messages, framed};
use super::node::{Node, node, prompt, read, until, within};

type Body = UnsyncBoxBody<Bytes, std::io::Error>;
type Client = http2::SendRequest<Body>;
/// Where a call's messages go in; dropping it is the end of them.
struct Up(mpsc::UnboundedSender<Result<Bytes, std::io::Error>>);

impl Up {
    fn send(&self, message: impl Into<Bytes>) {
        self.0.send(Ok(message.into())).unwrap();
    }

    /// Ends the call in the middle of its messages.
    fn give_up(&self) {
        self.0.send(Err(std::io::ErrorKind::Interrupted.into())).unwrap();
    }
}

/// A node that lends the server, and one that uses it.
async fn mesh(server: &Grpc) -> (Node, Node) {
    let provider = node("gpu1").lends_at(server.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_peer(provider.id(), |peer| peer.provider).await;
    (provider, user)
}

async fn client(node: &Node) -> Client {
    let stream = TcpStream::connect(node.listen).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// A call as every client of gRPC makes it.
fn call(method: &str) -> (Up, Request<Body>) {
    let (up, messages) = mpsc::unbounded_channel::<Result<Bytes, std::io::Error>>();
    let frames = futures_util::stream::unfold(messages, |mut messages| async {
        messages.recv().await.map(|message| (message.map(|message| Frame::data(framed(&message))), messages))
    });
    let request = Request::post(format!("http://localhost/test.Echo/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "30S")
        .header("x-metadata", "kept")
        .body(StreamBody::new(frames).boxed_unsync())
        .unwrap();
    (Up(up), request)
}

async fn all(answer: Response<Incoming>) -> (Vec<Bytes>, Option<HeaderMap>) {
    assert_eq!(
        (answer.status(), &answer.headers()["content-type"]),
        (StatusCode::OK, &"application/grpc".parse().unwrap())
    );
    let mut messages = Messages::new(answer.into_body());
    let mut read = Vec::new();
    while let Some(message) = within(messages.next()).await {
        read.push(message);
    }
    (read, messages.trailers)
}

fn status(trailers: &Option<HeaderMap>) -> &str {
    trailers.as_ref().expect("trailers")["grpc-status"].to_str().unwrap()
}

pub async fn all_four_shapes_pass() {
    let server = Grpc::start(Face::Bare).await;
    let (provider, user) = mesh(&server).await;
    assert_eq!(provider.view().ollama().api, Some(ServerKind::Grpc));
    assert_eq!(user.peer(provider.id()).unwrap().api, ServerKind::Grpc);
    let mut client = client(&user).await;
    for (method, sent, got) in [
        ("Unary", vec!["abc"], vec!["cba"]),
        ("ServerStream", vec!["3"], vec!["3", "2", "1"]),
        ("ClientStream", vec!["a", "b", "c"], vec!["abc"]),
        ("Bidi", vec!["ab", "cd"], vec!["ba", "dc"]),
        ("Bidi", vec![], vec![]),
    ] {
        let (up, request) = call(method);
        for message in sent {
            up.send(message);
        }
        drop(up);
        let answer = within(client.send_request(request)).await.unwrap();
        assert_eq!(answer.headers()["ollana-peer"], "gpu1");
        let (messages, trailers) = all(answer).await;
        assert_eq!((messages, status(&trailers)), (got.into_iter().map(Bytes::from).collect(), "0"), "{method}");
        assert_eq!(trailers.unwrap()["grpc-trailing"], "kept");
    }
    let counts = server.counts();
    for (name, value) in [("te", "trailers"), ("grpc-timeout", "30S"), ("x-metadata", "kept")] {
        assert_eq!(counts.headers[name], value);
    }
    assert!(counts.requests.iter().all(|request| request.starts_with("HTTP/2.0 ")), "{counts:?}");
}

pub async fn in_a_bidirectional_call_each_message_is_answered_before_the_next_is_sent() {
    let server = Grpc::start(Face::Bare).await;
    let (_provider, user) = mesh(&server).await;
    let mut client = client(&user).await;
    let (up, request) = call("Bidi");
    // The head comes back before any message was sent: nothing on the way waits for one.
    let answer = within(client.send_request(request)).await.unwrap();
    let mut messages = Messages::new(answer.into_body());
    for turn in 0..50 {
        up.send(format!("{turn}!"));
        let back = within(messages.next()).await.unwrap();
        assert_eq!(back, format!("{turn}!").chars().rev().collect::<String>());
    }
    drop(up);
    assert_eq!(within(messages.next()).await, None);
    assert_eq!(status(&messages.trailers), "0");
}

pub async fn errors_pass_with_and_without_messages_before_them() {
    let server = Grpc::start(Face::Bare).await;
    let (_provider, user) = mesh(&server).await;
    let mut client = client(&user).await;
    let (up, request) = call("Refuse");
    let answer = within(client.send_request(request)).await.unwrap();
    assert_eq!(answer.headers()["grpc-status"], "7", "a head that is the trailers, while messages may still come");
    assert_eq!(answer.headers()["grpc-message"], "not%20for%20you");
    assert_eq!(all(answer).await.0.len(), 0);
    drop(up);
    let (up, request) = call("Fail");
    drop(up);
    let (messages, trailers) = all(within(client.send_request(request)).await.unwrap()).await;
    assert_eq!((messages, status(&trailers)), (vec![Bytes::from("half")], "13"));
    let (up, request) = call("Nope");
    drop(up);
    assert_eq!(within(client.send_request(request)).await.unwrap().headers()["grpc-status"], "12");
}

pub async fn a_call_that_is_given_up_ends_at_the_server_and_no_other_does() {
    let server = Grpc::start(Face::Bare).await;
    let (_provider, user) = mesh(&server).await;
    let mut client = client(&user).await;
    let (up_on, request) = call("Bidi");
    let on = within(client.send_request(request)).await.unwrap();
    let mut on = Messages::new(on.into_body());
    for half_closed in [true, false] {
        let (up, request) = call("Wait");
        let up = (!half_closed).then_some(up);
        let waiting = within(client.send_request(request)).await.unwrap();
        server.until(|counts| counts.waiting == 1).await;
        let since = Instant::now();
        if let Some(up) = &up {
            // hyper resets a stream when both its halves are done with; a client of gRPC resets it at once.
            up.give_up();
        }
        drop(waiting);
        server.until(|counts| counts.waiting == 0).await;
        assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    }
    up_on.send("on");
    assert_eq!(within(on.next()).await.unwrap(), "no");
}

pub async fn answers_that_nobody_reads_hold_up_no_other() {
    const UNREAD: usize = 64;
    let server = Grpc::start(Face::Bare).await;
    let (ollama, _watch) = Ollama::spawn_named(&server.url());
    ollama.state().wait_for(|state| state.healthy).await.unwrap();
    let sent = |method: &str, message: &'static str| {
        let (up, request) = call(method);
        up.send(message);
        ollama.send(request.map(|body| body.map_err(|error| ExchangeError::Body(error.into())).boxed_unsync()))
    };
    let mut unread = Vec::new();
    for _ in 0..UNREAD {
        unread.push(within(sent("Flood", "")).await.unwrap());
    }
    // The window of each stream is full, which takes more than what a window for all of them would let through.
    server.until(|counts| counts.flooded > UNREAD * 64 * 1024).await;
    let answer = within(sent("Unary", "abc")).await.unwrap();
    assert_eq!(within(Messages::new(answer.into_body()).next()).await.unwrap(), "cba");
    // What is kept of them is bounded.
    let counts = server.counts();
    assert!(counts.flooded < UNREAD * 256 * 1024, "{}", counts.flooded);
}

pub async fn a_large_message_passes_both_ways() {
    let server = Grpc::start(Face::Bare).await;
    let (_provider, user) = mesh(&server).await;
    let mut client = client(&user).await;
    let message = Bytes::from((0..32u32 << 20).map(|n| (n % 251) as u8).collect::<Vec<_>>());
    let (up, request) = call("Unary");
    up.send(message.clone());
    drop(up);
    let (mut messages, trailers) = all(within(client.send_request(request)).await.unwrap()).await;
    let back: Bytes = messages.pop().unwrap().iter().rev().copied().collect();
    assert!(back == message, "it is another one");
    assert_eq!(status(&trailers), "0");
}

pub async fn a_peer_gets_nothing_of_the_other_apis() {
    let server = Grpc::start(Face::Bare).await;
    let (provider, user) = mesh(&server).await;
    provider.trust(user.id(), Scope::Manage).await;
    let before = server.counts().requests;
    for (method, path) in [
        (Method::POST, "/api/pull"),
        (Method::DELETE, "/api/delete"),
        (Method::GET, "/api/version"),
        (Method::GET, "/v1/models"),
        (Method::POST, "/v1/chat/completions"),
        (Method::GET, "/debug/pprof/heap"),
    ] {
        let request = Request::builder().method(&method).uri(format!("http://{}{path}", user.listen));
        let request = request.header("ollana-peer", "gpu1").body(Default::default()).unwrap();
        let (status, text) = read(user.ask(request).await).await;
        assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {text}");
    }
    let reached = server.counts().requests;
    // The watch asks `/api/version` itself.
    assert!(reached.iter().skip(before.len()).all(|line| line == "HTTP/2.0 GET /api/version"), "{reached:?}");
    let (status, text) = read(user.get("/v1/models").await).await;
    assert_eq!(status, StatusCode::OK, "no server has models: {text}");
}

pub async fn beside_an_ollama_calls_go_where_they_are_understood() {
    let server = Grpc::start(Face::Bare).await;
    let ollama = FakeOllama::start(&["m"]).await;
    let (provider, other) =
        (node("gpu1").lends_at(server.url()).start().await, node("gpu2").lends(&ollama).start().await);
    let user = node("laptop").dials(provider.mesh).dials(other.mesh).start().await;
    user.until_peer(provider.id(), |peer| peer.provider).await;
    user.until_lent(other.id(), "m").await;
    let mut client = client(&user).await;
    for _ in 0..8 {
        let (up, request) = call("Unary");
        up.send("abc");
        drop(up);
        assert_eq!(all(within(client.send_request(request)).await.unwrap()).await.0, ["cba"]);
        assert_eq!(user.post("/api/generate", &prompt("m", 1)).await.headers()["ollana-peer"], "gpu2");
        // A call that nobody is known to serve is not sent at all.
        assert_eq!(user.get("/nope").await.headers()["ollana-peer"], "laptop");
    }
}

pub async fn an_ollama_that_speaks_both_versions_gets_each_request_in_its_own() {
    let server = Grpc::start(Face::Ollama).await;
    // Its owner's: of a server that is no gRPC server alone, peers get what is in the table of routes.
    let user = node("gpu1").lends_at(server.url()).start().await;
    until("its own server", || user.view().ollama().healthy.then_some(())).await;
    assert_eq!(user.view().ollama().api, Some(ServerKind::Ollama));
    let mut client = client(&user).await;
    for _ in 0..2 {
        let (up, request) = call("Bidi");
        let mut messages = Messages::new(within(client.send_request(request)).await.unwrap().into_body());
        up.send("abc");
        assert_eq!(within(messages.next()).await.unwrap(), "cba");
    }
    let (status, text) = read(user.post("/api/generate", &prompt("m", 1)).await).await;
    assert_eq!((status, text.as_str()), (StatusCode::OK, r#"{"response":"hi","done":true}"#));
    let requests = server.counts().requests;
    assert!(requests.contains(&"HTTP/2.0 POST /test.Echo/Bidi".to_owned()), "{requests:?}");
    assert!(requests.contains(&"HTTP/1.1 POST /api/generate".to_owned()), "{requests:?}");
}

pub async fn an_ollama_behind_http2_alone_is_an_ollama() {
    let mut server = Grpc::start(Face::OllamaOverHttp2).await;
    let (provider, user) = mesh(&server).await;
    assert_eq!(provider.view().ollama().version.as_deref(), Some("0.24.0"));
    user.until_lent(provider.id(), "m").await;
    let generate = async || read(user.post("/api/generate", &prompt("m", 1)).await).await.0;
    assert_eq!(generate().await, StatusCode::OK);
    server.stop().await;
    user.until_peer(provider.id(), |peer| !peer.provider).await;
    server.start_again().await;
    user.until_peer(provider.id(), |peer| peer.provider).await;
    assert_eq!(generate().await, StatusCode::OK);
    until("connections that are used again", || (server.counts().connections < 60).then_some(())).await;
}

pub async fn what_only_says_it_is_grpc_reaches_an_ollama_all_the_same() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    for _ in 0..2 {
        let request =
            Request::post(format!("http://{}/api/generate", user.listen)).header("content-type", "application/grpc");
        let request = request.body(prompt("m", 1).to_string().into()).unwrap();
        assert_eq!(read(user.ask(request).await).await.0, StatusCode::OK);
    }
}
