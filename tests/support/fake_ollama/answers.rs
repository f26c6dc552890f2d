//! Answers, as bodies of hyper.

use std::io;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};

use super::shapes;

pub type FakeBody = UnsyncBoxBody<Bytes, io::Error>;
pub(super) type Answer = Response<FakeBody>;

pub(super) fn full(status: u16, content_type: Option<&'static str>, body: impl Into<Bytes>) -> Answer {
    let body: Bytes = body.into();
    let mut answer = Response::new(());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    if let Some(content_type) = content_type {
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    answer.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    answer.map(|()| Full::new(body).map_err(|never| match never {}).boxed_unsync())
}

pub(super) fn json_answer(status: u16, body: String) -> Answer {
    full(status, Some("application/json; charset=utf-8"), body)
}

pub(super) fn v1_answer(status: u16, body: String) -> Answer {
    full(status, Some("application/json"), body)
}

pub(super) fn plain(status: u16, body: &str) -> Answer {
    full(status, Some("text/plain"), body.to_owned())
}

pub(super) fn empty(status: u16) -> Answer {
    full(status, None, Bytes::new())
}

pub(super) fn fault(path: &str, status: u16, message: &str) -> Answer {
    let body = shapes::error(path, status, message);
    // Ollama's middleware for /v1 sets its own type, except where gin answers before it.
    if path.starts_with("/v1/") && status != 400 { v1_answer(status, body) } else { json_answer(status, body) }
}

/// An error that passes Ollama's middleware for `/v1` on its way out.
pub(super) fn v1_fault(path: &str, status: u16, message: &str) -> Answer {
    let body = shapes::error(path, status, message);
    v1_answer(status, if body.ends_with('\n') { body } else { body + "\n" })
}

pub(super) fn streamed(
    content_type: &'static str,
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Answer {
    let mut answer = Response::new(StreamBody::new(stream.map(|chunk| chunk.map(Frame::data))).boxed_unsync());
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// One piece, but too long for Go to have found out how long.
pub(super) fn chunked(content_type: &'static str, body: String) -> Answer {
    streamed(content_type, stream::iter([Ok(Bytes::from(body))]))
}
