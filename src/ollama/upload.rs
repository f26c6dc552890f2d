//! The body on its way to the Ollama, which is over at the latest when the answer is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};

use crate::exchange::{Body, ExchangeError};

/// A request's body, as the connection reads it.
pub(super) struct Upload(Arc<Shared>);

/// Ends the upload when it is dropped: the body is let go at once, though the connection may be stuck in a write.
pub(super) struct EndOfUpload(Arc<Shared>);

struct Shared {
    /// Held for the length of a poll or a drop, never over an await.
    body: Mutex<Option<Body>>,
    connection: AtomicWaker,
}

/// Splits a body into what the connection gets and what ends it.
pub(super) fn upload(body: Body) -> (Upload, EndOfUpload) {
    let shared = Arc::new(Shared { body: Mutex::new(Some(body)), connection: AtomicWaker::new() });
    (Upload(shared.clone()), EndOfUpload(shared))
}

// === impl Upload ===

impl Upload {
    fn with<T>(&self, look: impl FnOnce(&mut Option<Body>) -> T) -> T {
        look(&mut self.0.body.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        self.0.connection.register(cx.waker());
        self.with(|body| match body {
            Some(body) => Pin::new(body).poll_frame(cx),
            // An error and not an end: what Ollama got must not look whole.
            None => Poll::Ready(Some(Err(ExchangeError::Body("the answer was over before it".into())))),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.as_ref().is_some_and(http_body::Body::is_end_stream))
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint))
    }
}

// === impl EndOfUpload ===

impl Drop for EndOfUpload {
    fn drop(&mut self) {
        let body = self.0.body.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(body);
        self.0.connection.wake();
    }
}
