//! A server of gRPC as it stands on the wire, made of hyper and frames by hand: HTTP/2 with prior knowledge, the four
//! shapes of a call, errors before and after messages, and calls that wait to be given up.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What it speaks beside gRPC over HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Nothing: HTTP/2 alone, and what is no gRPC is answered 415, as by Go's.
    Bare,
    /// The same, and what is no gRPC is reset, as by the C core's.
    Strict,
    /// Ollama's API too, over HTTP/1.1 and HTTP/2.
    Ollama,
    /// Ollama's API too, over HTTP/2 alone.
    OllamaOverHttp2,
}

/// What happened there.
#[derive(Debug, Clone, Default)]
pub struct Counts {
    pub connections: usize,
    /// Requests, as version, method and path.
    pub requests: Vec<String>,
    /// The last request's headers.
    pub headers: HeaderMap,
    /// Calls that were given up by the other side.
    pub given_up: usize,
    /// Calls that wait to be.
    pub waiting: usize,
    /// Bytes of endless answers that it got rid of, buffers included.
    pub flooded: usize,
}

/// The server. Stops when it is dropped.
pub struct Grpc {
    addr: SocketAddr,
    face: Face,
    counts: Arc<watch::Sender<Counts>>,
    server: Option<JoinHandle<()>>,
}

// === impl Grpc ===

impl Grpc {
    pub async fn start(face: Face) -> Self {
        let mut server =
            Self { addr: (std::net::Ipv4Addr::LOCALHOST, 0).into(), face, counts: Arc::default(), server: None };
        server.start_again().await;
        server
    }

    pub async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.addr).await.expect("its port is free");
        self.addr = listener.local_addr().unwrap();
        self.server = Some(tokio::spawn(serve(listener, self.face, self.counts.clone())));
    }

    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
    }

    pub fn url(&self) -> http::Uri {
        format!("http://{}", self.addr).parse().unwrap()
    }

    pub fn counts(&self) -> Counts {
        self.counts.borrow().clone()
    }

    pub async fn until(&self, wanted: impl FnMut(&Counts) -> bool) -> Counts {
        let mut counts = self.counts.subscribe();
        match tokio::time::timeout(std::time::Duration::from_secs(30), counts.wait_for(wanted)).await {
            Ok(counts) => counts.unwrap().clone(),
            Err(_) => panic!("the gRPC server waits in vain; it has {:?}", self.counts()),
        }
    }
}

impl Drop for Grpc {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn serve(listener: TcpListener, face: Face, counts: Arc<watch::Sender<Counts>>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let _ = stream.set_nodelay(true);
                counts.send_modify(|counts| counts.connections += 1);
                let counts = counts.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let counts = counts.clone();
                        async move {
                            let answered = answer(request, face, &counts);
                            let refused = face == Face::Strict && answered.status() == 415;
                            if refused { Err(std::io::Error::other("no gRPC")) } else { Ok(answered) }
                        }
                    });
                    let io = TokioIo::new(stream);
                    match face {
                        Face::Ollama => {
                            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(io, service).await;
                        }
                        Face::Bare | Face::Strict | Face::OllamaOverHttp2 => {
                            let builder = http2::Builder::new(TokioExecutor::new());
                            let _ = builder.serve_connection(io, service).await;
                        }
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

const FLOOD: &[u8] = &[b'f'; 16 * 1024];

type Answered = Response<UnsyncBoxBody<Bytes, Infallible>>;

fn answer(request: Request<Incoming>, face: Face, counts: &Arc<watch::Sender<Counts>>) -> Answered {
    let line = format!("{:?} {} {}", request.version(), request.method(), request.uri().path());
    counts.send_modify(|counts| {
        counts.requests.push(line);
        counts.headers = request.headers().clone();
    });
    let path = request.uri().path().to_owned();
    let grpc =
        request.headers().get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    if !grpc {
        let said = match (face, path.as_str()) {
            (Face::Bare | Face::Strict, _) => return plain(415, ""),
            (_, "/api/version") => r#"{"version":"0.24.0"}"#,
            (_, "/api/tags") => r#"{"models":[{"name":"m:latest","digest":"00"}]}"#,
            (_, "/api/ps") => r#"{"models":[]}"#,
            (_, "/api/generate") => r#"{"response":"hi","done":true}"#,
            _ => return plain(404, "404 page not found"),
        };
        return plain(200, said);
    }
    let messages = Messages::new(request.into_body());
    match path.as_str() {
        // One message, one answer: what came, turned round.
        "/test.Echo/Unary" => streamed(futures_util::stream::once(async move {
            let mut messages = messages;
            turned(&messages.next().await.unwrap())
        })),
        // One message: a number of answers.
        "/test.Echo/ServerStream" => {
            streamed(futures_util::stream::unfold((messages, None), |(mut messages, left)| async move {
                let left = match left {
                    Some(left) => left,
                    None => String::from_utf8(messages.next().await.unwrap().to_vec()).unwrap().parse::<u32>().unwrap(),
                };
                (left > 0).then(|| (Bytes::from(left.to_string()), (messages, Some(left - 1))))
            }))
        }
        // Many messages: one answer, when all have come.
        "/test.Echo/ClientStream" => streamed(futures_util::stream::once(async move {
            let mut messages = messages;
            let mut all = BytesMut::new();
            while let Some(message) = messages.next().await {
                all.extend_from_slice(&message);
            }
            all.freeze()
        })),
        // Each message is answered before the next is waited for.
        "/test.Echo/Bidi" => streamed(futures_util::stream::unfold(messages, |mut messages| async move {
            messages.next().await.map(|message| (turned(&message), messages))
        })),
        // An error without a message: head and trailers are one.
        "/test.Echo/Refuse" => {
            let mut answer = Response::new(Empty::new().boxed_unsync());
            head(&mut answer);
            answer.headers_mut().insert("grpc-status", "7".parse().unwrap());
            answer.headers_mut().insert("grpc-message", "not%20for%20you".parse().unwrap());
            answer
        }
        // An error after a message.
        "/test.Echo/Fail" => {
            let frames = [Ok(Frame::data(framed(b"half"))), Ok(Frame::trailers(status("13")))];
            let mut answer = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync());
            head(&mut answer);
            answer
        }
        // An answer without an end.
        "/test.Echo/Flood" => {
            let counts = counts.clone();
            streamed(futures_util::stream::repeat_with(move || {
                counts.send_modify(|counts| counts.flooded += FLOOD.len());
                Bytes::from_static(FLOOD)
            }))
        }
        // A head, and then nothing, until it is given up.
        "/test.Echo/Wait" => {
            counts.send_modify(|counts| counts.waiting += 1);
            let mut answer = Response::new(Waiting { counts: counts.clone(), messages }.boxed_unsync());
            head(&mut answer);
            answer
        }
        _ => {
            let mut answer = Response::new(Empty::new().boxed_unsync());
            head(&mut answer);
            answer.headers_mut().insert("grpc-status", "12".parse().unwrap());
            answer
        }
    }
}

fn plain(status: u16, body: &'static str) -> Answered {
    let mut answer = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *answer.status_mut() = http::StatusCode::from_u16(status).unwrap();
    answer
}

/// Messages, then the trailers that say that all went well.
fn streamed(messages: impl futures_util::Stream<Item = Bytes> + Send + 'static) -> Answered {
    let frames = messages.map(|message| Ok(Frame::data(framed(&message))));
    let frames = frames.chain(futures_util::stream::once(async { Ok(Frame::trailers(status("0"))) }));
    let mut answer = Response::new(StreamBody::new(frames).boxed_unsync());
    head(&mut answer);
    answer
}

fn head(answer: &mut Answered) {
    answer.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
}

fn status(code: &'static str) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    trailers.insert("grpc-trailing", "kept".parse().unwrap());
    trailers
}

fn turned(message: &Bytes) -> Bytes {
    message.iter().rev().copied().collect()
}

/// A message as it stands on the wire: not compressed, length, bytes.
pub fn framed(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len()).unwrap());
    frame.extend_from_slice(message);
    frame.freeze()
}

/// The messages of a body, however it is cut into pieces, and the trailers behind them.
pub struct Messages<B> {
    body: B,
    read: VecDeque<u8>,
    pub trailers: Option<HeaderMap>,
}

impl<B> Messages<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    pub fn new(body: B) -> Self {
        Self { body, read: VecDeque::new(), trailers: None }
    }

    /// The next message; nothing at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.try_next().await.unwrap()
    }

    pub async fn try_next(&mut self) -> Result<Option<Bytes>, B::Error> {
        loop {
            if self.read.len() >= 5 {
                let length: Vec<u8> = self.read.iter().skip(1).take(4).copied().collect();
                let length = (&length[..]).get_u32() as usize;
                if self.read.len() >= 5 + length {
                    return Ok(Some(self.read.drain(..5 + length).skip(5).collect()));
                }
            }
            match self.body.frame().await.transpose()? {
                None => return Ok(None),
                Some(frame) => match frame.into_data() {
                    Ok(data) => self.read.extend(data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }
}

/// An answer's body that does not end by itself, and says when it is dropped.
struct Waiting {
    counts: Arc<watch::Sender<Counts>>,
    messages: Messages<Incoming>,
}

impl Body for Waiting {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Reads what comes, so that a reset is noticed whichever half it ends.
        loop {
            match ready!(Pin::new(&mut self.messages.body).poll_frame(cx)) {
                Some(Ok(_)) => {}
                None | Some(Err(_)) => return Poll::Pending,
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.counts.send_modify(|counts| {
            counts.given_up += 1;
            counts.waiting -= 1;
        });
    }
}

use futures_util::StreamExt as _;
