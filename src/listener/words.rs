//! What Go's server says before any handler, where hyper says something shorter or nothing at all.
//!
//! What is no HTTP never comes to our service: hyper writes a head without a body and closes. An application shows
//! people the body, so [`Answering`] puts Go's sentence in its place, byte for byte, on its way to the socket.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Version};
use http_body::{Frame, SizeHint};
use hyper::ext::ReasonPhrase;

use super::connections::Busy;
use super::guests::Place;
use crate::exchange::{self, Body, ExchangeError};

/// What hyper says by itself, up to its date.
const HYPERS: [(&[u8], &[u8]); 3] = [
    (
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\nDate: ",
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request",
    ),
    (
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\nDate: ",
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n\
          431 Request Header Fields Too Large",
    ),
    // Go has no limit for the target alone.
    (
        b"HTTP/1.1 414 URI Too Long\r\nConnection: close\r\nContent-Length: 0\r\nDate: ",
        b"HTTP/1.1 414 URI Too Long\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n414 URI Too Long",
    ),
];
/// A date and the end of the head: `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 §5.6.7) is always as long.
const DATE_AND_END: usize = 29 + 4;

/// Whether a request of a connection is being answered: whatever hyper writes otherwise is its own.
#[derive(Debug, Clone, Default)]
pub(super) struct Answering(Arc<AtomicBool>);

/// An answer's body on its way to hyper, which is the end of the answer.
#[derive(Debug)]
pub(super) struct Said {
    body: Body,
    answering: Answering,
    /// Set if it breaks off, where only the close of the connection is its end.
    broke: Option<Arc<AtomicBool>>,
    /// Counted for its connection as long as this is on its way: a request, and a place if it has no more of them than
    /// so many.
    _holds: Holds,
}

type Holds = (Option<Busy>, Option<Place>);

// === impl Answering ===

impl Answering {
    pub(super) fn begin(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Go's words in place of those that hyper puts at the end of `written`, and where they begin.
    pub(super) fn instead_of(&self, written: &[u8]) -> Option<(usize, &'static [u8])> {
        if self.0.load(Ordering::Relaxed) {
            return None;
        }
        HYPERS.iter().find_map(|(hypers, gos)| {
            let begins = written.len().checked_sub(hypers.len() + DATE_AND_END)?;
            written.get(begins..)?.starts_with(hypers).then_some((begins, *gos))
        })
    }
}

// === impl Said ===

impl Said {
    pub(super) fn new(body: Body, answering: &Answering, broke: Option<Arc<AtomicBool>>, holds: Holds) -> Self {
        Self { body, answering: answering.clone(), broke, _holds: holds }
    }
}

impl http_body::Body for Said {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(Err(_)), Some(broke)) = (&frame, &self.broke) {
            broke.store(true, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Said {
    fn drop(&mut self) {
        self.answering.0.store(false, Ordering::Relaxed);
    }
}

/// What Go's server and its mux answer before Ollama's router sees a request, its guard included.
pub(super) fn before_any_router(parts: &Parts) -> Option<Response<Body>> {
    if !is_escaped_well(parts.uri.path()) {
        return Some(bad_request(None));
    }
    if parts.version == Version::HTTP_11 && parts.headers.get(EXPECT).is_some_and(|expected| !is_continue(expected)) {
        return Some(closing(StatusCode::EXPECTATION_FAILED));
    }
    match (&parts.method, parts.uri.path()) {
        (&Method::OPTIONS, "*") => Some(empty(StatusCode::OK)),
        (_, "*") => Some(closing(StatusCode::BAD_REQUEST)),
        // A node is no proxy to elsewhere; and the target is no path.
        (&Method::CONNECT, _) => Some(not_found()),
        _ => None,
    }
}

/// A request that cannot be understood, and why.
pub(super) fn bad_request(why: Option<&'static str>) -> Response<Body> {
    let said = why.unwrap_or("400 Bad Request");
    let mut response = plain(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", said);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    // Go has the reason there too.
    if let Some((_, reason)) = said.split_once(' ') {
        response.extensions_mut().insert(ReasonPhrase::from_static(reason.as_bytes()));
    }
    response
}

/// An answer with this text.
pub(super) fn plain(status: StatusCode, content_type: &'static str, text: &'static str) -> Response<Body> {
    let mut response = empty(status);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    response.map(|_| exchange::full(text))
}

fn not_found() -> Response<Body> {
    let mut response = plain(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n");
    response
        .headers_mut()
        .insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    response
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(exchange::empty());
    *response.status_mut() = status;
    response
}

fn closing(status: StatusCode) -> Response<Body> {
    let mut response = empty(status);
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    response
}

fn is_continue(expected: &HeaderValue) -> bool {
    expected.as_bytes().eq_ignore_ascii_case(b"100-continue")
}

/// Whether each `%` of a path is followed by two digits: Go undoes them before it looks for a route.
fn is_escaped_well(path: &str) -> bool {
    path.split('%')
        .skip(1)
        .all(|escape| escape.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hypers(status: &str) -> Vec<u8> {
        format!(
            "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"
        )
        .into()
    }

    #[test]
    fn what_hyper_says_by_itself_is_said_as_go_says_it() {
        let answering = Answering::default();
        let (begins, gos) = answering.instead_of(&hypers("400 Bad Request")).unwrap();
        assert_eq!(begins, 0);
        assert!(gos.ends_with(b"\r\n\r\n400 Bad Request"));
        let behind = [b"the end of an answer".to_vec(), hypers("431 Request Header Fields Too Large")].concat();
        assert_eq!(answering.instead_of(&behind).unwrap().0, 20);
    }

    #[test]
    fn an_answer_that_looks_like_it_is_left_alone() {
        let answering = Answering::default();
        let said = Said::new(exchange::empty(), &answering, None, (None, None));
        answering.begin();
        assert_eq!(answering.instead_of(&hypers("400 Bad Request")), None);
        drop(said);
        assert!(answering.instead_of(&hypers("400 Bad Request")).is_some());
        assert_eq!(answering.instead_of(&hypers("404 Not Found")), None);
        assert_eq!(answering.instead_of(b"HTTP/1.1 400 Bad Request\r\n"), None);
    }

    #[test]
    fn escapes_are_read_as_go_reads_them() {
        for well in ["/", "/a%20b", "/%2F%aa", "*"] {
            assert!(is_escaped_well(well), "{well}");
        }
        for badly in ["/%", "/%2", "/%zz", "/%2%20", "/a%é"] {
            assert!(!is_escaped_well(badly), "{badly}");
        }
    }
}
