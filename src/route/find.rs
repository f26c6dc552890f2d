//! Reading a body until the model is known, and giving it back whole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use http::request;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::{ModelName, NoRoom, Reader, Room, Space, ZstdError};
use crate::exchange::{Body, ExchangeError, Refusal, RefusalCode, empty};

/// Most of a body that is held back while the model is looked for. The clients that are known write the model first;
/// one that writes 16 MiB of images before it is told to do so too, since a node holds so much a request. Of a compressed
/// body these are compressed bytes; what they become is looked at and not held.
pub const MAX_PREFIX: usize = 16 * 1024 * 1024;

/// What a frame that is held back costs beside its bytes. A peer may send a body byte by byte.
const FRAME: usize = 128;

/// What may be held back of a request without asking for [`Room`]: the whole of most requests, and the model of nearly all.
const FREE: usize = 64 * 1024;

/// Why no model was found where one must be looked for.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// [`MAX_PREFIX`] went by.
    #[error("the request does not name its model in the first {} MiB of its body; put \"model\" first", MAX_PREFIX >> 20)]
    TooLong,
    /// There is no more [`Room`].
    #[error(transparent)]
    NoRoom(#[from] NoRoom),
    /// The body broke off.
    #[error(transparent)]
    Body(#[from] ExchangeError),
}

/// A body of which a prefix was read: what was seen in it, and the body whole again.
#[derive(Debug)]
pub struct Peeked {
    /// What was seen. It knows the first [`Peeked::seen`] bytes of the body.
    pub reader: Reader,
    /// The body from its first byte on.
    pub body: Body,
    /// Bytes at the body's start that the reader has been fed.
    pub seen: usize,
}

/// Finds the model that a request's body names, for a request of [`Kind::BodyModel`](super::Kind::BodyModel).
///
/// Nothing is read where the body cannot name one. The body comes back whole and uncopied. Frames are awaited only until
/// `model` has come; where JSON gives `name` alone, or neither, to the end of the value. What is held meanwhile takes of the
/// [`Room`] among the request's extensions, if there is one.
pub async fn find_model(parts: &request::Parts, body: Body) -> Result<(Option<ModelName>, Body), FindError> {
    let Some(reader) = Reader::of(parts) else { return Ok((None, body)) };
    let peeked = peek(reader, body, parts.extensions.get()).await?;
    Ok((peeked.reader.model(), peeked.body))
}

/// Reads the body until the reader knows the model, finds that there is none, or sees that it cannot read this. What is
/// held back meanwhile takes `room`.
pub async fn peek(mut reader: Reader, mut body: Body, room: Option<&Room>) -> Result<Peeked, FindError> {
    let mut read = VecDeque::new();
    let (mut seen, mut held) = (0, 0);
    let mut space = Space::default();
    while !reader.is_settled() && !body.is_end_stream() {
        let Some(frame) = body.frame().await.transpose()? else {
            // So that a body that turned out to be empty counts as empty.
            body = empty();
            break;
        };
        if let Some(data) = frame.data_ref() {
            reader.feed(data);
            seen += data.len();
            held += data.len() + FRAME;
        }
        read.push_back(frame);
        if reader.is_settled() {
            break;
        }
        if held > MAX_PREFIX {
            return Err(FindError::TooLong);
        }
        if let Some(room) = room {
            space.grow(room, held.saturating_sub(FREE))?;
        }
    }
    let body = if read.is_empty() { body } else { Rejoined { read, rest: body, space }.boxed_unsync() };
    Ok(Peeked { reader, body, seen })
}

// === impl FindError ===

impl FindError {
    /// What the application is told, unless its body broke off: then nobody listens. (One that cannot be decompressed
    /// breaks off here, and somebody does.)
    pub fn into_refusal(self) -> Result<Refusal, ExchangeError> {
        match self {
            Self::NoRoom(NoRoom) => Ok(RefusalCode::NoRoom.into()),
            Self::TooLong => Ok(Refusal::new(RefusalCode::ModelTooLate, self.to_string())),
            Self::Body(error) => ZstdError::within(&error).map(ZstdError::refusal).ok_or(error),
        }
    }
}

/// What was read of a body, then the rest of it.
struct Rejoined {
    read: VecDeque<Frame<Bytes>>,
    rest: Body,
    space: Space,
}

// === impl Rejoined ===

impl http_body::Body for Rejoined {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        match self.read.pop_front() {
            Some(frame) => {
                if self.read.is_empty() {
                    self.space = Space::default();
                }
                Poll::Ready(Some(Ok(frame)))
            }
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

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;
    use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
    use http::{Method, Request};
    use http_body_util::StreamBody;
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    fn request(method: Method, path: &str, content_type: &str) -> request::Parts {
        let request = Request::builder().method(method).uri(path).header(CONTENT_TYPE, content_type);
        request.body(()).unwrap().into_parts().0
    }

    /// A body of these pieces, which fails if it is read beyond them.
    fn pieces(pieces: &[&'static str], then: Option<&'static str>) -> Body {
        let mut frames: Vec<Result<Frame<Bytes>, ExchangeError>> =
            pieces.iter().map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes())))).collect();
        frames.extend(then.map(|reason| Err(ExchangeError::Body(reason.into()))));
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    async fn text(body: Body) -> String {
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn only_as_much_is_awaited_as_tells_the_model() {
        let chat = request(Method::POST, "/api/chat", "text/plain");
        let body = pieces(&[r#"{"mod"#, r#"el":"m","#], Some("read too far"));
        let (model, body) = find_model(&chat, body).await.unwrap();
        assert_eq!(model, Some(ModelName::new("m")));
        let error = body.collect().await.unwrap_err();
        assert!(error.to_string().contains("read too far"));
    }

    #[tokio::test]
    async fn the_body_comes_back_whole() {
        let show = request(Method::POST, "/api/show", "application/json");
        let all = [r#"{"model":"","#, "", r#""name":"m"}"#, " rest"];
        let (model, body) = find_model(&show, pieces(&all, None)).await.unwrap();
        assert_eq!(model, Some(ModelName::new("m")));
        assert_eq!(text(body).await, all.concat());

        let known = crate::exchange::full(r#"{"model":"m"}"#);
        let (_, body) = find_model(&show, known).await.unwrap();
        assert_eq!(body.size_hint().exact(), Some(13), "a length that was known stays known");
    }

    #[tokio::test]
    async fn what_names_no_model_is_none_and_whole() {
        let chat = request(Method::POST, "/api/chat", "application/json");
        for odd in ["", "not json", "[]", r#"{"prompt":"x"}"#, r#"{"model":"#] {
            let (model, body) = find_model(&chat, crate::exchange::full(odd)).await.unwrap();
            assert_eq!(model, None, "{odd}");
            assert_eq!(text(body).await, odd);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_no_json_is_not_waited_for() {
        let parts = request(Method::POST, "/helloworld.Greeter/SayHello", "application/grpc");
        let body = StreamBody::new(stream::pending()).boxed_unsync();
        assert_eq!(find_model(&parts, body).await.unwrap().0, None);
    }

    #[tokio::test]
    async fn a_form_is_read_until_it_names_the_model() {
        let form = request(Method::POST, "/v1/audio/transcriptions", "multipart/form-data; boundary=x");
        let part = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x";
        let file = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nRIFF\r\n";
        let (model, body) = find_model(&form, pieces(&[file, part], Some("read too far"))).await.unwrap();
        assert_eq!(model, Some(ModelName::new("m")));
        assert!(body.collect().await.unwrap_err().to_string().contains("read too far"));
        let (model, body) = find_model(&form, pieces(&[file, "--x", "--\r\n"], None)).await.unwrap();
        assert_eq!((model, text(body).await), (None, format!("{file}--x--\r\n")));

        let mut queried = form.clone();
        queried.uri = "/v1/audio/transcriptions?model=q".parse().unwrap();
        let never = StreamBody::new(stream::pending()).boxed_unsync();
        assert_eq!(find_model(&queried, never).await.unwrap().0, Some(ModelName::new("q")));
        // Ollama reads JSON here, whatever the type says.
        let chat = request(Method::POST, "/api/chat", "multipart/form-data; boundary=x");
        assert_eq!(find_model(&chat, pieces(&[r#"{"model":"m""#], None)).await.unwrap().0, Some(ModelName::new("m")));
    }

    #[tokio::test]
    async fn a_compressed_body_is_looked_into_and_passed_on_as_it_is() {
        let json = format!(r#"{{"messages":[{{"content":"{}"}}],"model":"m"}}"#, "hello ".repeat(100_000));
        let sent = compress_to_vec(json.as_bytes(), CompressionLevel::Fastest);
        let frames = |step: usize| -> Body {
            let frames: Vec<_> =
                sent.chunks(step).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
            StreamBody::new(stream::iter(frames)).boxed_unsync()
        };
        for (path, expected) in [("/v1/chat/completions", Some(ModelName::new("m"))), ("/api/chat", None)] {
            let mut parts = request(Method::POST, path, "application/json");
            parts.headers.insert(CONTENT_ENCODING, "zstd".parse().unwrap());
            for step in [1, 1000, sent.len()] {
                let (model, body) = find_model(&parts, frames(step)).await.unwrap();
                assert_eq!(model, expected, "{path}");
                assert_eq!(body.collect().await.unwrap().to_bytes(), sent);
            }
            let (model, body) = find_model(&parts, crate::exchange::full("rubbish")).await.unwrap();
            assert_eq!((model, text(body).await), (None, "rubbish".to_owned()));
        }
    }

    #[tokio::test]
    async fn a_model_that_comes_too_late_is_a_clear_error() {
        let chat = request(Method::POST, "/api/chat", "application/json");
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let head = Frame::data(Bytes::from_static(br#"{"images":[""#));
        let frames = stream::iter([Ok(head)]).chain(stream::repeat_with(move || Ok(Frame::data(chunk.clone()))));
        let error = find_model(&chat, StreamBody::new(frames).boxed_unsync()).await.unwrap_err();
        let refusal = error.into_refusal().unwrap();
        assert_eq!(refusal.code.status(), http::StatusCode::PAYLOAD_TOO_LARGE);
        assert!(refusal.message.contains("16 MiB"), "{}", refusal.message);
    }

    #[tokio::test]
    async fn a_body_in_crumbs_costs_what_it_takes_to_hold_it() {
        let chat = request(Method::POST, "/api/chat", "application/json");
        let crumbs = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(b" "))));
        let error = find_model(&chat, StreamBody::new(crumbs.take(MAX_PREFIX / 16)).boxed_unsync()).await.unwrap_err();
        assert!(matches!(error, FindError::TooLong));
        assert!(size_of::<Frame<Bytes>>() <= FRAME);
    }

    use futures_util::StreamExt as _;
}
