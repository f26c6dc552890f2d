//! One request to the server and its answer, over kept connections.
//!
//! HTTP/1.1 as a rule: one connection a request, which the end of either ends. HTTP/2 with prior knowledge for gRPC, and
//! for a server that speaks nothing else: one connection for all, whose streams are reset one by one, and which is
//! closed when it was idle for a while.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, TE};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::answer::Answer;
use super::connect::Connector;
use super::direct::Ours;
use super::life::Life;
use super::probe::is_ollana;
use super::upload::{Upload, upload};
use crate::exchange::{Body, ExchangeError, PEER_HEADER, Progress, REFUSAL_HEADER, REQUEST_HEADER, empty};
use crate::route::headers::{GUEST_HEADER, HOP_HEADER, drop_browser, drop_cors, drop_hop_by_hop};
use crate::route::{is_grpc, is_repeatable};

/// How long an idle connection is kept. Go's server keeps its side for ever; a stale one costs a failed request, an
/// early close one handshake on loopback.
const IDLE: Duration = Duration::from_secs(30);

/// Idle connections kept: as many requests as come together again after a pause.
const MAX_IDLE: usize = 64;

/// What is read at once of one connection, and so the longest head. hyper's 400 kB, of which each piece of an answer
/// that waits to be sent keeps all, make 64 stalled answers 40 MB.
const MAX_BUFFER: usize = 64 * 1024;

/// HTTP/2: what one answer may have under way to us, and one request wait to be sent: the same 64 KiB as with HTTP/1.1.
/// On loopback, where a round trip is some 50 µs, that is more than a gigabyte a second.
const STREAM_WINDOW: u32 = 64 * 1024;
/// HTTP/2: the same of the one connection that all of them share. It is a bound for none of them, or a few answers that
/// nobody reads would hold up all others; what is kept is bounded by [`STREAM_WINDOW`] each, as with HTTP/1.1. This is
/// the largest that HTTP/2 knows (RFC 9113 §6.9.1).
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// How long a server may take to say whether it speaks HTTP/2. It answers the preface before it reads a request.
const GREETING: Duration = Duration::from_secs(5);

/// What the server's pages and errors are made of is small; a listing of 10,000 models is 5 MB.
pub(super) const MAX_LISTING: usize = 8 * 1024 * 1024;

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http1: legacy::Client<Connector, Upload>,
    http2: legacy::Client<Connector, Upload>,
    ours: Ours,
    life: Life,
    spoken: Arc<AtomicU8>,
    target: Uri,
    authority: Option<Arc<Authority>>,
}

/// Which versions of HTTP the server speaks, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Spoken {
    /// HTTP/1.1; whether HTTP/2 too is asked when it is wanted.
    Http1 = 0,
    /// HTTP/1.1 and not HTTP/2.
    OnlyHttp1 = 1,
    /// Both.
    Both = 2,
    /// HTTP/2 and nothing else.
    OnlyHttp2 = 3,
}

/// Why the place where a server should be is not asked.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("{0} is no http:// address; a server behind TLS cannot be shared yet")]
    Address(Uri),
    #[error("what answers there is an Ollana, not an Ollama")]
    Ollana,
    #[error("a path in it cannot be asked for")]
    Path,
}

// === impl Client ===

impl Client {
    pub(super) fn new(target: &Uri) -> Self {
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_BUFFER)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_send_buf_size(MAX_BUFFER)
            .http2_max_header_list_size(STREAM_WINDOW);
        let ours = Ours::default();
        let connector = Connector::new(ours.clone());
        let http1 = builder.build(connector.clone());
        let http2 = builder.http2_only(true).build(connector.unforgiving());
        let plain = target.scheme().is_none_or(|scheme| *scheme == Scheme::HTTP);
        let authority = target.authority().filter(|_| plain).cloned().map(Arc::new);
        Self { http1, http2, ours, life: Life::default(), spoken: Arc::default(), target: target.clone(), authority }
    }

    pub(super) fn target(&self) -> &Uri {
        &self.target
    }

    /// The ports of its connections.
    pub(super) fn ours(&self) -> &Ours {
        &self.ours
    }

    /// The state of the server's process, as far as it is known.
    pub(super) fn life(&self) -> &Life {
        &self.life
    }

    /// What was found out of the server that is there now.
    pub(super) fn speaks(&self, spoken: Spoken) {
        self.spoken.store(spoken as u8, Ordering::Relaxed);
    }

    /// See [`Ollama::send`](super::Ollama::send).
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let version = self.version_for(request.headers()).await;
        self.send_over(version, request).await
    }

    /// The same over this version of HTTP, whatever the server is known to speak.
    pub(super) async fn send_over(
        &self,
        version: Version,
        request: Request<Body>,
    ) -> Result<Response<Body>, ExchangeError> {
        let authority = self.authority().map_err(ExchangeError::not_run)?;
        let (mut parts, body) = request.into_parts();
        let once = !is_repeatable(&parts.method, &parts.uri);
        parts.uri = self.place(&parts.uri).ok_or_else(|| self.broken(Unfit::Path).not_run())?;
        parts.version = version;
        let trailers = parts.headers.get(TE).is_some_and(|te| te == "trailers");
        drop_hop_by_hop(&mut parts.headers);
        drop_browser(&mut parts.headers);
        if trailers && version == Version::HTTP_2 {
            // gRPC insists on being told that trailers are welcome, as they are all the way back.
            parts.headers.insert(TE, HeaderValue::from_static("trailers"));
        }
        // The body is on its way already; whoever waited for a 100 had it from our side.
        parts.headers.remove(EXPECT);
        parts.headers.remove(PEER_HEADER);
        parts.headers.remove(REQUEST_HEADER);
        parts.headers.remove(GUEST_HEADER);
        parts.headers.remove(HOST);
        parts.headers.insert(HOP_HEADER, HeaderValue::from_static("1"));
        promise_no_more(&mut parts.headers, &body);

        let progress = parts.extensions.get::<Progress>().cloned().unwrap_or_default();
        let (body, end) = upload(body, progress);
        let request = Request::from_parts(parts, body);
        let sent = match version {
            Version::HTTP_2 => self.http2.request(request).await,
            _ => self.http1.request(request).await,
        };
        let (mut parts, body) = match sent {
            Ok(response) => response.into_parts(),
            // Was it the server, or the body that it was sent?
            Err(error) => match end.broke() {
                Some(why) => return Err(ExchangeError::Body(why.into())),
                // JSON is acted on when all of it is there; what else is sent may be acted on before.
                None if error.is_connect() || !(end.is_whole() || once) => {
                    return Err(self.broken(cause(&error)).not_run());
                }
                None => return Err(self.broken(cause(&error))),
            },
        };
        if is_ollana(&parts.headers) {
            return Err(self.broken(Unfit::Ollana).not_run());
        }
        drop_hop_by_hop(&mut parts.headers);
        drop_cors(&mut parts.headers);
        parts.headers.remove(REFUSAL_HEADER);
        Ok(Response::from_parts(parts, Answer::new(body, end, authority.clone(), self.life.clone()).boxed_unsync()))
    }

    /// HTTP/1.1 where it will do; gRPC knows HTTP/2 alone.
    async fn version_for(&self, headers: &HeaderMap) -> Version {
        match self.spoken() {
            Spoken::OnlyHttp2 => Version::HTTP_2,
            _ if !is_grpc(headers) => Version::HTTP_11,
            Spoken::Both => Version::HTTP_2,
            Spoken::OnlyHttp1 => Version::HTTP_11,
            Spoken::Http1 => {
                // Boxed, since every request's future would have room for it.
                let asked = Box::pin(self.send_over(Version::HTTP_2, get("/")));
                let (spoken, version) = match timeout(GREETING, asked).await {
                    Ok(Ok(_)) => (Spoken::Both, Version::HTTP_2),
                    _ => (Spoken::OnlyHttp1, Version::HTTP_11),
                };
                self.speaks(spoken);
                version
            }
        }
    }

    fn spoken(&self) -> Spoken {
        match self.spoken.load(Ordering::Relaxed) {
            1 => Spoken::OnlyHttp1,
            2 => Spoken::Both,
            3 => Spoken::OnlyHttp2,
            _ => Spoken::Http1,
        }
    }

    /// Host and port; an error if they cannot be asked at all.
    pub(super) fn authority(&self) -> Result<&Arc<Authority>, ExchangeError> {
        self.authority.as_ref().ok_or_else(|| self.broken(Unfit::Address(self.target.clone())))
    }

    /// Where a path of a request is at this server: behind its own path, if it has one.
    fn place(&self, asked: &Uri) -> Option<Uri> {
        let path = asked.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let prefix = self.target.path().trim_end_matches('/');
        if !path.as_str().starts_with('/') {
            return None;
        }
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = self.target.authority().cloned();
        parts.path_and_query = Some(if prefix.is_empty() { path } else { format!("{prefix}{path}").parse().ok()? });
        Uri::from_parts(parts).ok()
    }

    pub(super) fn broken(&self, why: impl Into<Box<dyn Error + Send + Sync>>) -> ExchangeError {
        let address = self.target.authority().map_or_else(|| self.target.to_string(), ToString::to_string);
        ExchangeError::Ollama(address, why.into())
    }
}

/// Takes back what a head says of a body that is not so. hyper leaves a `content-length` in the head of a request without a
/// body, and two of them that differ; the next request on the connection, whoever's it is, would be read as what is missing.
fn promise_no_more(headers: &mut HeaderMap, body: &Body) {
    match headers.get_all(CONTENT_LENGTH).iter().count() {
        0 => {}
        _ if body.is_end_stream() => drop(headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"))),
        1 => {}
        _ => drop(headers.remove(CONTENT_LENGTH)),
    }
}

/// A question of our own.
pub(super) fn get(path: &'static str) -> Request<Body> {
    let mut request = Request::new(empty());
    *request.uri_mut() = Uri::from_static(path);
    request
}

/// Whether the error says that an Ollana is where the server should be.
pub(super) fn says_ollana(error: &ExchangeError) -> bool {
    matches!(error, ExchangeError::NotRun(_, why) if matches!(why.downcast_ref(), Some(Unfit::Ollana)))
}

/// What is at the bottom of it: "connection refused" says more than "client error".
fn cause(error: &legacy::Error) -> String {
    let mut last: &dyn Error = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}
