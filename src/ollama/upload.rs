//! The body on its way to the Ollama, which is over at the latest when the answer is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

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
    /// Why the body broke off, if it did.
    broke: OnceLock<String>,
    connection: AtomicWaker,
}

/// Splits a body into what the connection gets and what ends it.
pub(super) fn upload(body: Body) -> (Upload, EndOfUpload) {
    let shared =
        Arc::new(Shared { body: Mutex::new(Some(body)), broke: OnceLock::new(), connection: AtomicWaker::new() });
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
        let frame = ready!(self.with(|body| match body {
            Some(body) => Pin::new(body).poll_frame(cx),
            // An error and not an end: what the server got must not look whole.
            None => Poll::Ready(Some(Err(ExchangeError::Body("the answer was over before it".into())))),
        }));
        if let Some(Err(error)) = &frame {
            let _ = self.0.broke.set(error.to_string());
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.with(|body| body.as_ref().is_some_and(http_body::Body::is_end_stream))
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|body| body.as_ref().map_or_else(SizeHint::default, http_body::Body::size_hint))
    }
}

// === impl EndOfUpload ===

impl EndOfUpload {
    /// Why the body broke off, if it did: with HTTP/2 the connection's error does not say.
    pub(super) fn broke(&self) -> Option<&str> {
        self.0.broke.get().map(String::as_str)
    }
}

impl Drop for EndOfUpload {
    fn drop(&mut self) {
        let body = self.0.body.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(body);
        self.0.connection.wake();
    }
}
