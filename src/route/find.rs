//! Reading a body until the model is known, and giving it back whole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, StatusCode, request};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::{Look, ModelName, Progress, path};
use crate::exchange::{Body, ExchangeError, Refusal};

/// Most of a body that is held back while the model is looked for. The clients that are known write the model first;
/// one that writes 16 MiB of images before it is told to do so too, since a node holds so much a request.
pub const MAX_PREFIX: usize = 16 * 1024 * 1024;

/// Why no model was found where one must be looked for.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// [`MAX_PREFIX`] went by.
    #[error("the request does not name its model in the first {} MiB of its body; put \"model\" first", MAX_PREFIX >> 20)]
    TooLong,
    /// The body broke off.
    #[error(transparent)]
    Body(#[from] ExchangeError),
}

/// A body of which a prefix was read: what was seen in it, and the body whole again.
#[derive(Debug)]
pub struct Peeked {
    /// What was seen. To be fed what is left of the body, [`Peeked::fed`] bytes of which it knows.
    pub look: Look,
    /// The body from its first byte on.
    pub body: Body,
    /// Bytes at the body's start that the look has seen.
    pub fed: usize,
}

/// Finds the model that a request's body names, for a request of [`Kind::BodyModel`](super::Kind::BodyModel).
///
/// Nothing is read where the body cannot be JSON with a model in it. The body comes back whole and uncopied. Frames are
/// awaited only until `model` has come; where the body gives `name` alone, or neither, to the end of the JSON value.
pub async fn find_model(parts: &request::Parts, body: Body) -> Result<(Option<ModelName>, Body), FindError> {
    if !may_name_model(parts) {
        return Ok((None, body));
    }
    let peeked = peek(body).await?;
    Ok((peeked.look.model(), peeked.body))
}

/// Reads the body until a [`Look`] knows the model, finds that there is none, or sees that this is not JSON.
pub async fn peek(mut body: Body) -> Result<Peeked, FindError> {
    let mut look = Look::new();
    let mut read = VecDeque::new();
    let mut fed = 0;
    while look.progress() == Progress::Open && !look.has_model() && !body.is_end_stream() {
        let Some(frame) = body.frame().await.transpose()? else { break };
        if let Some(data) = frame.data_ref() {
            look.feed(data);
            fed += data.len();
        }
        read.push_back(frame);
        if fed > MAX_PREFIX && look.progress() == Progress::Open && !look.has_model() {
            return Err(FindError::TooLong);
        }
    }
    let body = if read.is_empty() { body } else { Rejoined { read, rest: body }.boxed_unsync() };
    Ok(Peeked { look, body, fed })
}

/// Whether a body may name its model in JSON at all. A path that is not known may carry anything in both directions at
/// once (gRPC), so that one is only read if it says it is JSON.
fn may_name_model(parts: &request::Parts) -> bool {
    if has_form(&parts.headers) || is_compressed(&parts.headers) {
        return false;
    }
    path::listed(&parts.method, &path::decoded(parts.uri.path())).is_some() || says_json(&parts.headers)
}

/// Whether the body is a multipart form: what it asks for is not JSON.
pub(crate) fn has_form(headers: &HeaderMap) -> bool {
    content_type(headers).contains("multipart/")
}

/// Whether Ollama would decompress the body before it reads it: `zstd`, the one coding it knows.
pub(crate) fn is_compressed(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| String::from_utf8_lossy(coding.as_bytes()).to_ascii_lowercase().contains("zstd"))
}

fn says_json(headers: &HeaderMap) -> bool {
    content_type(headers).contains("json")
}

fn content_type(headers: &HeaderMap) -> String {
    let values = headers.get_all(CONTENT_TYPE).iter();
    values.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase()).collect()
}

// === impl FindError ===

impl FindError {
    /// What the application is told, unless its body broke off: then nobody listens.
    pub fn into_refusal(self) -> Result<Refusal, ExchangeError> {
        match self {
            Self::TooLong => Ok(Refusal {
                status: StatusCode::PAYLOAD_TOO_LARGE,
                code: "no-model-in-prefix",
                message: self.to_string(),
                retry_after: None,
            }),
            Self::Body(error) => Err(error),
        }
    }
}

/// What was read of a body, then the rest of it.
struct Rejoined {
    read: VecDeque<Frame<Bytes>>,
    rest: Body,
}

// === impl Rejoined ===

impl http_body::Body for Rejoined {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self.read.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Poll::Ready(ready!(Pin::new(&mut self.rest).poll_frame(cx))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.read.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let read: u64 = self.read.iter().filter_map(Frame::data_ref).map(|data| data.remaining() as u64).sum();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint
    }
}
