//! The heads of requests and responses, and trailers, as they stand inside frames.
//!
//! | part | bytes |
//! |---|---|
//! | request | flags (1), method length (1), method, target length (4), target, fields |
//! | response | flags (1), status (2), fields |
//! | trailers | fields |
//! | fields | per field: name length (2), name, value length (4), value; up to the payload's end |
//!
//! Integers are big-endian. The target is the path and query; which host is asked is the gate's business alone.
//! Several fields of one name keep their order. The lowest flag says that a body follows; without it the stream ends
//! behind the head, so that a `GET` stays one without a body. The other flags are sent as 0 and not looked at.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, request, response};

use super::frame::{self, FrameError, Kind};

/// The flag that says that a body follows, and an end frame behind it.
const HAS_BODY: u8 = 1;

/// Why a head cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    /// A length points past the end.
    #[error("it ends before it is complete")]
    Truncated,
    /// A part that HTTP does not allow.
    #[error("its {0} is not what HTTP allows")]
    Invalid(&'static str),
}

/// A whole frame with a request's head.
///
/// # Errors
/// [`FrameError::TooLong`] if the head is longer than [`frame::MAX_HEAD`].
pub fn encode_request(head: &request::Parts, has_body: bool) -> Result<Bytes, FrameError> {
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let method = head.method.as_str();
    frame_of(Kind::Request, 6 + method.len() + target.len(), &head.headers, |out| {
        out.put_u8(u8::from(has_body) * HAS_BODY);
        // Methods are tokens of a parsed request; a longer one than 255 bytes is cut and then refused by the reader.
        out.put_u8(u8::try_from(method.len()).unwrap_or(u8::MAX));
        out.put_slice(method.as_bytes());
        put_long(out, target.as_bytes());
    })
}

/// A whole frame with a response's head.
///
/// # Errors
/// [`FrameError::TooLong`] if the head is longer than [`frame::MAX_HEAD`].
pub fn encode_response(head: &response::Parts, has_body: bool) -> Result<Bytes, FrameError> {
    frame_of(Kind::Response, 3, &head.headers, |out| {
        out.put_u8(u8::from(has_body) * HAS_BODY);
        out.put_u16(head.status.as_u16());
    })
}

/// A whole end frame with these trailers.
///
/// # Errors
/// [`FrameError::TooLong`] if they are longer than [`frame::MAX_HEAD`].
pub fn encode_end(trailers: &HeaderMap) -> Result<Bytes, FrameError> {
    frame_of(Kind::End, 0, trailers, |_| {})
}

/// Reads a request's head, and whether a body follows.
///
/// # Errors
/// [`HeadError`] if the payload is not one, or if it says of its body what the flag denies: on the Ollama's connection
/// the next request, whoever's it is, would be read as the body that is missing.
pub fn decode_request(mut payload: Bytes) -> Result<(Request<()>, bool), HeadError> {
    let has_body = take_has_body(&mut payload)?;
    let method = payload.try_get_u8().map_err(|_| HeadError::Truncated)?;
    let method = take(&mut payload, method.into())?;
    let method = Method::from_bytes(&method).map_err(|_| HeadError::Invalid("method"))?;
    let target = take_long(&mut payload)?;
    if !target.starts_with(b"/") && *target != *b"*" {
        return Err(HeadError::Invalid("target"));
    }
    let target = Uri::from_maybe_shared(target).map_err(|_| HeadError::Invalid("target"))?;
    let mut head = Request::new(());
    *head.method_mut() = method;
    *head.uri_mut() = target;
    *head.headers_mut() = decode_fields(payload)?;
    if content_length(head.headers())?.is_some_and(|length| length > 0) && !has_body {
        return Err(HeadError::Invalid("content-length"));
    }
    if head.headers().contains_key(TRANSFER_ENCODING) {
        return Err(HeadError::Invalid("transfer-encoding"));
    }
    Ok((head, has_body))
}

/// How long the fields say that the body is.
///
/// # Errors
/// [`HeadError::Invalid`] if they say it twice, or not in digits alone: two readers could read it differently.
pub fn content_length(fields: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut values = fields.get_all(CONTENT_LENGTH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    match (digits.and_then(|digits| digits.parse().ok()), values.next()) {
        (Some(length), None) => Ok(Some(length)),
        _ => Err(HeadError::Invalid("content-length")),
    }
}

/// Reads a response's head, and whether a body follows.
///
/// # Errors
/// [`HeadError`] if the payload is not one. Interim (1xx) statuses are not carried.
pub fn decode_response(mut payload: Bytes) -> Result<(Response<()>, bool), HeadError> {
    let has_body = take_has_body(&mut payload)?;
    let status = payload.try_get_u16().map_err(|_| HeadError::Truncated)?;
    let status = StatusCode::from_u16(status).map_err(|_| HeadError::Invalid("status"))?;
    if status.is_informational() {
        return Err(HeadError::Invalid("status"));
    }
    let mut head = Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = decode_fields(payload)?;
    Ok((head, has_body))
}

/// Reads fields up to the payload's end: trailers, or the rest of a head.
///
/// # Errors
/// [`HeadError`] if the payload is not fields.
pub fn decode_fields(mut payload: Bytes) -> Result<HeaderMap, HeadError> {
    let mut fields = HeaderMap::new();
    while payload.has_remaining() {
        let length = payload.try_get_u16().map_err(|_| HeadError::Truncated)?;
        let name = take(&mut payload, length.into())?;
        let name = HeaderName::from_bytes(&name).map_err(|_| HeadError::Invalid("header name"))?;
        let value = take_long(&mut payload)?;
        let value = HeaderValue::from_maybe_shared(value).map_err(|_| HeadError::Invalid("header value"))?;
        // `HeaderMap` holds at most 32,768 entries and would panic beyond; it says so here instead.
        fields.try_append(name, value).map_err(|_| HeadError::Invalid("number of headers"))?;
    }
    Ok(fields)
}

fn frame_of(
    kind: Kind,
    before: usize,
    fields: &HeaderMap,
    put_before: impl FnOnce(&mut BytesMut),
) -> Result<Bytes, FrameError> {
    let length = before + fields.iter().map(|(name, value)| 6 + name.as_str().len() + value.len()).sum::<usize>();
    let mut out = BytesMut::with_capacity(frame::HEADER + length);
    frame::put_header(&mut out, kind, length)?;
    put_before(&mut out);
    for (name, value) in fields {
        // `http` bounds a name to 65,535 bytes.
        out.put_u16(u16::try_from(name.as_str().len()).unwrap_or(u16::MAX));
        out.put_slice(name.as_str().as_bytes());
        put_long(&mut out, value.as_bytes());
    }
    Ok(out.freeze())
}

fn take_has_body(payload: &mut Bytes) -> Result<bool, HeadError> {
    Ok(payload.try_get_u8().map_err(|_| HeadError::Truncated)? & HAS_BODY != 0)
}

fn put_long(out: &mut BytesMut, bytes: &[u8]) {
    // The frame's length was checked before, so this fits.
    out.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn take_long(payload: &mut Bytes) -> Result<Bytes, HeadError> {
    let length = payload.try_get_u32().map_err(|_| HeadError::Truncated)?;
    take(payload, usize::try_from(length).map_err(|_| HeadError::Truncated)?)
}

fn take(payload: &mut Bytes, length: usize) -> Result<Bytes, HeadError> {
    if length > payload.len() { Err(HeadError::Truncated) } else { Ok(payload.split_to(length)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Decoder, Event};
    use proptest::prelude::*;

    fn payload(frame: Bytes) -> Bytes {
        let mut decoder = Decoder::default();
        decoder.push(frame);
        match decoder.next() {
            Ok(Some(Event::Frame(_, payload))) => payload,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn several_fields_of_one_name_keep_their_order() {
        let head =
            Response::builder().status(207).header("set-cookie", "a").header("set-cookie", "b").body(()).unwrap();
        let (read, has_body) = decode_response(payload(encode_response(&head.into_parts().0, true).unwrap())).unwrap();
        assert!(has_body);
        assert_eq!(read.status(), 207);
        assert_eq!(read.headers().get_all("set-cookie").iter().collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn a_head_that_lies_about_its_body_is_refused() {
        let read = |fields: &[(&str, &str)], has_body| {
            let mut head = Request::post("/x");
            for (name, value) in fields {
                head = head.header(*name, *value);
            }
            decode_request(payload(encode_request(&head.body(()).unwrap().into_parts().0, has_body).unwrap()))
        };
        assert!(read(&[("content-length", "0")], false).is_ok());
        assert!(read(&[("content-length", "3")], true).is_ok());
        let invalid = |part| Err(HeadError::Invalid(part));
        assert_eq!(read(&[("content-length", "3")], false).map(|_| ()), invalid("content-length"));
        assert_eq!(
            read(&[("content-length", "3"), ("content-length", "3")], true).map(|_| ()),
            invalid("content-length")
        );
        for odd in ["+3", "", "3, 3", "0x3", "18446744073709551616"] {
            assert_eq!(read(&[("content-length", odd)], true).map(|_| ()), invalid("content-length"), "{odd}");
        }
        assert_eq!(read(&[("transfer-encoding", "chunked")], true).map(|_| ()), invalid("transfer-encoding"));
    }

    #[test]
    fn what_could_reach_another_host_or_smuggle_a_header_is_refused() {
        let absolute =
            encode_request(&Request::get("http://elsewhere/x").body(()).unwrap().into_parts().0, false).unwrap();
        assert_eq!(decode_request(payload(absolute)).unwrap().0.uri(), "/x");
        let mut forged = vec![0, 3];
        forged.extend_from_slice(b"GET\0\0\0\x0ehttp://other/a");
        assert_eq!(decode_request(forged.into()).unwrap_err(), HeadError::Invalid("target"));
        assert_eq!(
            decode_fields(Bytes::from_static(b"\0\x01a\0\0\0\x03b\r\n")),
            Err(HeadError::Invalid("header value"))
        );
        assert_eq!(decode_response(Bytes::from_static(&[0, 0, 100])).unwrap_err(), HeadError::Invalid("status"));
    }

    proptest! {
        #[test]
        fn a_request_survives(
            has_body: bool, method in "[A-Z]{1,8}", target in "/[a-z0-9/?=&%]{0,40}",
            fields in proptest::collection::vec(("[a-z][a-z0-9-]{0,12}", "[ -~]{0,40}"), 0..8),
        ) {
            let Ok(uri) = target.parse::<Uri>() else { return Ok(()) };
            let mut request = Request::builder().method(method.as_str()).uri(uri);
            for (name, value) in &fields {
                request = request.header(name, value);
            }
            let (sent, ()) = request.body(()).unwrap().into_parts();
            let (read, read_has_body) = decode_request(payload(encode_request(&sent, has_body).unwrap())).unwrap();
            let (read, ()) = read.into_parts();
            prop_assert_eq!(read_has_body, has_body);
            prop_assert_eq!(read.method, sent.method);
            prop_assert_eq!(read.uri, sent.uri);
            prop_assert_eq!(read.headers, sent.headers);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode_request(bytes.clone().into());
            let _ = decode_response(bytes.clone().into());
            let _ = decode_fields(bytes.into());
        }
    }
}
