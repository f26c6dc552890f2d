//! One request to the Ollama and its answer, over kept connections.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use http::header::{EXPECT, HOST};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderValue, Request, Response, Uri, Version};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::answer::Answer;
use super::connect::Connector;
use super::probe::is_ollana;
use super::upload::{Upload, upload};
use crate::exchange::{Body, ExchangeError, PEER_HEADER, REFUSAL_HEADER};
use crate::route::headers::{HOP_HEADER, drop_browser, drop_cors, drop_hop_by_hop};

/// How long an idle connection is kept. Go's server keeps its side for ever; a stale one costs a failed request, an
/// early close one handshake on loopback.
const IDLE: Duration = Duration::from_secs(30);

/// Idle connections kept: as many requests as come together again after a pause.
const MAX_IDLE: usize = 64;

/// What is read at once of one connection, and so the longest head. hyper's 400 kB, of which each piece of an answer
/// that waits to be sent keeps all, make 64 stalled answers 40 MB.
const MAX_BUFFER: usize = 64 * 1024;

/// What Ollama's pages and errors are made of is small; a listing of 10,000 models is 5 MB.
pub(super) const MAX_LISTING: usize = 32 * 1024 * 1024;

/// The client. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: legacy::Client<Connector, Upload>,
    target: Uri,
    authority: Option<Arc<Authority>>,
}

/// Why the place where an Ollama should be is not asked.
#[derive(Debug, thiserror::Error)]
enum Unfit {
    #[error("{0} is no http:// address; an Ollama behind TLS cannot be lent yet")]
    Address(Uri),
    #[error("what answers there is an Ollana, not an Ollama")]
    Ollana,
    #[error("a path in it cannot be asked for")]
    Path,
}

// === impl Client ===

impl Client {
    pub(super) fn new(target: &Uri) -> Self {
        let http = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_buf_size(MAX_BUFFER)
            .build(Connector::new());
        let plain = target.scheme().is_none_or(|scheme| *scheme == Scheme::HTTP);
        let authority = target.authority().filter(|_| plain).cloned().map(Arc::new);
        Self { http, target: target.clone(), authority }
    }

    pub(super) fn target(&self) -> &Uri {
        &self.target
    }

    /// See [`Ollama::send`](super::Ollama::send).
    pub(super) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let mut response = self.ask(request).await?;
        if is_ollana(response.headers()) {
            return Err(self.broken(Unfit::Ollana));
        }
        response.headers_mut().remove(REFUSAL_HEADER);
        Ok(response)
    }

    /// The same, of whoever answers.
    pub(super) async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let authority = self.authority()?;
        let (mut parts, body) = request.into_parts();
        parts.uri = self.place(&parts.uri).ok_or_else(|| self.broken(Unfit::Path))?;
        parts.version = Version::HTTP_11;
        drop_hop_by_hop(&mut parts.headers);
        drop_browser(&mut parts.headers);
        // The body is on its way already; whoever waited for a 100 had it from our side.
        parts.headers.remove(EXPECT);
        parts.headers.remove(PEER_HEADER);
        parts.headers.remove(HOST);
        parts.headers.insert(HOP_HEADER, HeaderValue::from_static("1"));

        let (body, end) = upload(body);
        let sent = self.http.request(Request::from_parts(parts, body)).await;
        let (mut parts, body) = sent.map_err(|error| self.failed(&error))?.into_parts();
        drop_hop_by_hop(&mut parts.headers);
        drop_cors(&mut parts.headers);
        Ok(Response::from_parts(parts, Answer::new(body, end, authority.clone()).boxed_unsync()))
    }

    /// Host and port; an error if they cannot be asked at all.
    pub(super) fn authority(&self) -> Result<&Arc<Authority>, ExchangeError> {
        self.authority.as_ref().ok_or_else(|| self.broken(Unfit::Address(self.target.clone())))
    }

    /// Where a path of a request is at this Ollama: behind its own path, if it has one.
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

    /// The request did not come to a head: was it Ollama, or the body that it was sent?
    fn failed(&self, error: &legacy::Error) -> ExchangeError {
        let mut cause: Option<&(dyn Error + 'static)> = error.source();
        let mut last = error.to_string();
        while let Some(error) = cause {
            if let Some(body) = error.downcast_ref::<ExchangeError>() {
                return ExchangeError::Body(body.to_string().into());
            }
            last = error.to_string();
            cause = error.source();
        }
        self.broken(last)
    }

    pub(super) fn broken(&self, why: impl Into<Box<dyn Error + Send + Sync>>) -> ExchangeError {
        let address = self.target.authority().map_or_else(|| self.target.to_string(), ToString::to_string);
        ExchangeError::Ollama(address, why.into())
    }
}
