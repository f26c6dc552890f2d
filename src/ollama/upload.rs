//! The body on its way to the Ollama, which is over at the latest when the answer is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body as _, Frame, SizeHint};

use crate::exchange::{Body, ExchangeError, Progress};

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
    /// Says when the connection has all of it.
    progress: Progress,
}

/// Splits a body into what the connection gets and what ends it.
pub(super) fn upload(body: Body, progress: Progress) -> (Upload, EndOfUpload) {
    if is_whole(&body) {
        progress.start();
    }
    let (body, broke, connection) = (Mutex::new(Some(body)), OnceLock::new(), AtomicWaker::new());
    let shared = Arc::new(Shared { body, broke, connection, progress });
    (Upload(shared.clone()), EndOfUpload(shared))
}

/// Whether nothing more of it comes. A connection asks for no more than the length that was promised.
fn is_whole(body: &Body) -> bool {
    body.is_end_stream() || body.size_hint().exact() == Some(0)
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
            Some(body) => {
                let frame = Pin::new(&mut *body).poll_frame(cx);
                if matches!(frame, Poll::Ready(None)) || (matches!(frame, Poll::Ready(Some(Ok(_)))) && is_whole(body)) {
                    self.0.progress.start();
                }
                frame
            }
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

    /// Whether the connection has the whole body.
    pub(super) fn is_whole(&self) -> bool {
        self.0.progress.has_started()
    }
}

impl Drop for EndOfUpload {
    fn drop(&mut self) {
        let body = self.0.body.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(body);
        self.0.connection.wake();
    }
}
