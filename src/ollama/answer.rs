//! The body of an answer on its way from the Ollama.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::uri::Authority;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::life::Life;
use super::upload::EndOfUpload;
use crate::exchange::ExchangeError;

/// An answer's body: frames as they come, an error where Ollama breaks off, and with its end the end of the upload.
pub(super) struct Answer {
    incoming: Incoming,
    upload: Option<EndOfUpload>,
    from: Arc<Authority>,
    life: Life,
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(incoming: Incoming, upload: EndOfUpload, from: Arc<Authority>, life: Life) -> Self {
        // An answer without a body leaves nobody to poll it to its end.
        let upload = (!incoming.is_end_stream()).then_some(upload);
        Self { incoming, upload, from, life }
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let frame = ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        let upload = if matches!(frame, Some(Ok(_))) { None } else { self.upload.take() };
        Poll::Ready(frame.map(|frame| {
            frame.map_err(|error| match upload.as_ref().and_then(EndOfUpload::broke) {
                // The connection ended with the request's own body, which says nothing of the server.
                Some(why) => ExchangeError::Body(why.into()),
                None => {
                    // Before anybody hears of the break and sends something else.
                    self.life.doubt();
                    ExchangeError::Ollama(self.from.to_string(), error.into())
                }
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
