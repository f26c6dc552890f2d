//! The answers of Ollama's router to a request that none of its routes takes: Go's mux (`net/http`, of Go 1.26) cleans
//! the path, gin (1.10, with `HandleMethodNotAllowed`) takes a slash from its end or says 404 or 405. The same bytes
//! are said here, so that such a request has to reach no server.

use std::borrow::Cow;

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, LOCATION};
use http::{HeaderName, HeaderValue, Method, Response, StatusCode, Uri};

use super::path;
use crate::exchange::{Body, empty, full};

const HTML: HeaderValue = HeaderValue::from_static("text/html; charset=utf-8");
const PLAIN: HeaderValue = HeaderValue::from_static("text/plain");

/// The answer of an Ollama to a request that is not [known](super::is_known).
pub fn unrouted(method: &Method, uri: &Uri) -> Response<Body> {
    let written = uri.path();
    if written == "*" {
        let status = if *method == Method::OPTIONS { StatusCode::OK } else { StatusCode::BAD_REQUEST };
        return answer(status, Some(""));
    }
    let (seen, written) = (path::decoded(written), canonical(written));
    let clean = cleaned(&written);
    if clean != written {
        // The mux makes a new URL of it, in which an empty query is none.
        return moved(method, StatusCode::TEMPORARY_REDIRECT, &clean, uri.query().filter(|query| !query.is_empty()));
    }
    if let Some(shorter) = seen.strip_suffix('/')
        && path::ollamas(shorter).is_some_and(|known| known.methods.contains(&method.as_str()))
    {
        let status = match *method {
            Method::GET => StatusCode::MOVED_PERMANENTLY,
            _ => StatusCode::TEMPORARY_REDIRECT,
        };
        return moved(method, status, shorter, uri.query());
    }
    match path::ollamas(&seen) {
        Some(known) => {
            let mut response = said(method, StatusCode::METHOD_NOT_ALLOWED, "405 method not allowed");
            if let Ok(methods) = HeaderValue::try_from(known.methods.join(", ")) {
                response.headers_mut().insert(ALLOW, methods);
            }
            response
        }
        None => said(method, StatusCode::NOT_FOUND, "404 page not found"),
    }
}

/// The length is said, also to the other node, or it would be lost on the way.
fn answer(status: StatusCode, text: Option<&str>) -> Response<Body> {
    let mut response = Response::new(text.map_or_else(empty, |text| full(text.to_owned())));
    *response.status_mut() = status;
    if let Some(text) = text {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    response
}

/// gin's own words. To `HEAD` their length is said, and they are not.
fn said(method: &Method, status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = answer(status, Some(text));
    response.headers_mut().insert(CONTENT_TYPE, PLAIN);
    if *method == Method::HEAD { response.map(|_| empty()) } else { response }
}

/// `http.Redirect` of Go to a path that is not escaped yet. It writes a page for those who read it.
fn moved(method: &Method, status: StatusCode, to: &str, query: Option<&str>) -> Response<Body> {
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    let to = format!("{}{query}", escaped(to.as_bytes()));
    let page = match *method {
        Method::GET => {
            let text = status.canonical_reason().unwrap_or_default();
            Some(format!("<a href=\"{}\">{text}</a>.\n\n", html(&to)))
        }
        Method::HEAD => None,
        _ => Some(String::new()),
    };
    let mut response = answer(status, page.as_deref());
    let fields: [(HeaderName, Option<HeaderValue>); 2] = [
        (LOCATION, HeaderValue::try_from(ascii(&to)).ok()),
        (CONTENT_TYPE, matches!(*method, Method::GET | Method::HEAD).then_some(HTML)),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// A path as `URL.EscapedPath` gives it: as it is written, if that is one way to escape it.
fn canonical(written: &str) -> Cow<'_, str> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~!$&'()*+,;=:@[]/%".contains(&byte);
    if written.bytes().all(allowed) {
        return Cow::Borrowed(written);
    }
    let bytes: Vec<u8> = percent_encoding::percent_decode_str(written).collect();
    Cow::Owned(escaped(&bytes))
}

/// `path.Clean`, keeping a slash at the end as the mux does.
fn cleaned(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    let slash = if path.ends_with('/') && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}", segments.join("/"))
}

/// `URL.String` of a path: what may stand in one, and the rest as `%XX`.
fn escaped(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for &byte in path {
        if byte.is_ascii_alphanumeric() || b"-_.~$&+,/:;=@".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(percent_encoding::percent_encode_byte(byte));
        }
    }
    text
}

/// `hexEscapeNonASCII`: a field holds no more than ASCII.
fn ascii(text: &str) -> String {
    let mut ascii = String::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if byte.is_ascii() {
            ascii.push(char::from(byte));
        } else {
            ascii.push_str(&percent_encoding::percent_encode_byte(byte).to_ascii_lowercase());
        }
    }
    ascii
}

/// `htmlEscape` of `net/http`.
fn html(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&#34;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    async fn said(method: Method, target: &str) -> (u16, Vec<(String, String)>, String) {
        let (parts, body) = unrouted(&method, &target.parse().unwrap()).into_parts();
        let mut fields: Vec<_> =
            parts.headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        fields.sort();
        let body = body.collect().await.unwrap().to_bytes();
        (parts.status.as_u16(), fields, String::from_utf8(body.to_vec()).unwrap())
    }

    fn fields(fields: &[(&str, &str)]) -> Vec<(String, String)> {
        fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// As recorded of Ollama 0.24.0.
    #[tokio::test]
    async fn ollamas_own_words_are_said() {
        let plain = fields(&[("content-length", "18"), ("content-type", "text/plain")]);
        assert_eq!(said(Method::GET, "/nope").await, (404, plain.clone(), "404 page not found".to_owned()));
        assert_eq!(said(Method::POST, "/v1/images/edits/x").await, (404, plain, "404 page not found".to_owned()));
        let wrong = fields(&[("allow", "HEAD, GET"), ("content-length", "22"), ("content-type", "text/plain")]);
        assert_eq!(said(Method::POST, "/api/tags").await, (405, wrong, "405 method not allowed".to_owned()));
        let html = ("content-type", "text/html; charset=utf-8");
        let page = "<a href=\"/api/tags\">Moved Permanently</a>.\n\n";
        let moved = fields(&[("content-length", "44"), html, ("location", "/api/tags")]);
        assert_eq!(said(Method::GET, "/api/tags/").await, (301, moved, page.to_owned()));
        let page = "<a href=\"/api/tags\">Temporary Redirect</a>.\n\n";
        let moved = fields(&[("content-length", "45"), html, ("location", "/api/tags")]);
        for target in ["//api/tags", "/api/x/../tags", "/api/./tags", "/api/./tags?"] {
            assert_eq!(said(Method::GET, target).await, (307, moved.clone(), page.to_owned()), "{target}");
        }
        let moved = fields(&[html, ("location", "/api/tags")]);
        assert_eq!(said(Method::HEAD, "//api/tags").await, (307, moved, String::new()));
        // As Go 1.26 has them.
        for (target, location) in [
            ("/api/tags//", "/api/tags/"),
            ("//api/a%20b", "/api/a%2520b"),
            ("//api/tags?x=1", "/api/tags?x=1"),
            ("/api%2F/tags//", "/api%252F/tags/"),
            ("/api/tags/?", "/api/tags?"),
        ] {
            let (_, fields, _) = said(Method::GET, target).await;
            assert!(fields.contains(&("location".to_owned(), location.to_owned())), "{target}: {fields:?}");
        }
        assert_eq!(said(Method::GET, "/api/x/%2e%2e/tags").await.0, 404);
        let (status, at, body) = said(Method::POST, "/api/generate/?a=b").await;
        assert_eq!(
            (status, at, &*body),
            (307, fields(&[("content-length", "0"), ("location", "/api/generate?a=b")]), "")
        );
        assert_eq!(
            said(Method::HEAD, "/nope").await.1,
            fields(&[("content-length", "18"), ("content-type", "text/plain")])
        );
    }
}
