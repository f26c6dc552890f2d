//! A request's body on its way in, and what happens to the rest of it when nobody wants it any more.
//!
//! Ollama may answer before it has read the body (a blob that is there already), and so may we (a refusal). hyper closes
//! an HTTP/1 connection whose body was dropped, and an application that still writes sees a reset and not the answer,
//! as with Ollama itself. So the rest is read and dropped, by the connection's task.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Version;
use http::header::EXPECT;
use http::request::Parts;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::Notify;

use crate::exchange::{self, Body, ExchangeError};

/// Takes the rests of one connection's bodies. HTTP/1 has one body at a time, so there is room for one: a newer one says
/// that the one before is over.
#[derive(Debug, Clone, Default)]
pub(super) struct Rests {
    /// Held to put something in or to take it out, never over an await.
    rest: Arc<Mutex<Option<Incoming>>>,
    there: Arc<Notify>,
    /// Set when a rest was left in the socket: the connection cannot be used any further.
    left: Arc<AtomicBool>,
}

struct Upload {
    body: Option<Incoming>,
    rests: Rests,
    /// Whether the application waits for our word before it sends (`Expect: 100-continue`), which reading gives.
    waits: bool,
}

// === impl Rests ===

impl Rests {
    /// The next rest that is there.
    pub(super) async fn next(&self) -> Incoming {
        loop {
            if let Some(rest) = self.lock().take() {
                return rest;
            }
            self.there.notified().await;
        }
    }

    /// Whether data of a request may be unread in the socket.
    pub(super) fn were_left(&self) -> bool {
        self.left.load(Ordering::Relaxed) || self.lock().is_some()
    }

    fn put(&self, rest: Incoming) {
        *self.lock() = Some(rest);
        self.there.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Option<Incoming>> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request's body for those behind the listener.
    pub(super) fn guard(&self, parts: &Parts, body: Incoming) -> Body {
        if body.is_end_stream() {
            return exchange::empty();
        }
        if parts.version > Version::HTTP_11 {
            // A stream of its own: h2 tells the application to stop sending, after the answer.
            return body.map_err(broke).boxed_unsync();
        }
        Upload { body: Some(body), rests: self.clone(), waits: parts.headers.contains_key(EXPECT) }.boxed_unsync()
    }
}

// === impl Upload ===

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame.map(|frame| frame.map_err(broke)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        // Whoever waits for our word has sent nothing yet: reading would ask for all of it, only to drop it.
        if self.waits {
            self.rests.left.store(true, Ordering::Relaxed);
        } else {
            self.rests.put(body);
        }
    }
}

fn broke(error: hyper::Error) -> ExchangeError {
    ExchangeError::Body(Box::new(error))
}
