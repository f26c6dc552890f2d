//! The status page: a look at the node for the person in front of it, for scripts and for Prometheus.
//!
//! Read-only, on loopback, from snapshots. A web page that the user has open elsewhere must not read it: a `Host` that
//! is not this machine is refused (DNS rebinding), no answer carries a CORS header, and what the page itself may load is
//! nothing. It has no script; the browser reloads it.

mod metrics;
mod page;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, uri::Authority};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::control::{Mesh, StatusView};
use crate::listener::connections::{Activity, Admission, Connections};

/// Connections at once: a browser opens six, a few scripts one each.
const MAX_CONNECTIONS: usize = 64;
/// How long a head may take, and a connection be without a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Nothing inline but the style, nothing from elsewhere, in nobody's frame.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Binds the page's address. A node without its page is still a node, so where nobody chose the address and it is
/// taken, there is none, and a warning says so.
///
/// # Errors
/// If an address that somebody chose cannot be bound.
pub fn bind(addr: SocketAddr, explicit: bool) -> Result<Option<StdListener>, WebError> {
    let bound = StdListener::bind(addr).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    match bound {
        Ok(listener) => Ok(Some(listener)),
        Err(source) if explicit => Err(WebError::Bind { addr, source }),
        Err(error) => {
            warn!("no status page: cannot listen at {addr}: {error}; choose another address with --status");
            Ok(None)
        }
    }
}

/// Answers until `shutdown`. The answers are short, so none is waited for.
///
/// # Errors
/// If the listener cannot be handed to the runtime.
pub async fn serve(listener: StdListener, mesh: Arc<dyn Mesh>, shutdown: CancellationToken) -> Result<(), WebError> {
    let listener = [TcpListener::from_std(listener).map_err(WebError::Listen)?];
    let mut connections = Connections::new(MAX_CONNECTIONS);
    loop {
        let (stream, ..) = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            accepted = connections.accept(&listener, |_| Admission::<()>::Local) => accepted,
        };
        let mesh = mesh.clone();
        connections.serve(false, |activity| connection(stream, activity, mesh));
    }
}

async fn connection(stream: TcpStream, activity: Activity, mesh: Arc<dyn Mesh>) {
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        // A client that does not read an answer may have to give way as one that ends no head.
        let _busy = activity.begin();
        let response = answer(mesh.as_ref(), request.method(), request.uri().path(), request.headers());
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        debug!(%error, "a connection to the status page broke");
    }
}

fn answer(mesh: &dyn Mesh, method: &Method, path: &str, headers: &HeaderMap) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !is_this_machine(headers) {
        return respond(StatusCode::FORBIDDEN, TEXT, "this page is asked for by the name of this machine only\n");
    }
    if method != Method::GET && method != Method::HEAD {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "this page is read-only\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match path {
        "/" => respond(StatusCode::OK, "text/html; charset=utf-8", page::render(mesh)),
        "/status.json" => json(&StatusView::of(mesh)),
        "/peers.json" => json(&mesh.peers()),
        "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics::render(mesh)),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "here are /, /status.json, /peers.json and /metrics\n"),
    }
}

/// Whether the one `Host` is a name that no DNS server on the internet can point here.
fn is_this_machine(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    let Some(host) = host.to_str().ok().and_then(|host| host.parse::<Authority>().ok()) else { return false };
    let host = host.host();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn json<T: Serialize>(value: &T) -> Response<Full<Bytes>> {
    match serde_json::to_vec(value) {
        Ok(bytes) => respond(StatusCode::OK, "application/json", bytes),
        Err(error) => respond(StatusCode::INTERNAL_SERVER_ERROR, "text/plain; charset=utf-8", error.to_string()),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, content_type),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    response
}

/// Why there is no status page.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address cannot be bound.
    #[error(
        "cannot listen at {addr} for the status page: {source}; choose another address with --status, or --status off"
    )]
    Bind {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The runtime does not take the listener.
    #[error("cannot serve the status page: {0}")]
    Listen(#[source] io::Error),
}

#[cfg(test)]
mod tests;
