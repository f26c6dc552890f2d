//! What is no request: Go's server says so itself, before Ollama's router sees anything.

use super::{Case, EITHER, Group, head};
use crate::wire::Script;

const TYPE: &str = "Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n";

pub fn refused() -> Group {
    let plain = |reason: &str| said(&format!("400 Bad Request{reason}"));
    let large: String = (0..1200).map(|i| format!("\nX-{i}: {}", "x".repeat(1000))).collect();
    let cases = [
        ("no host", "GET /api/version HTTP/1.1\r\n\r\n".into(), plain(": missing required Host header")),
        ("two hosts", "GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n".into(), plain("")),
        ("a host that is none", head_of(b"Host: a\xff b"), plain(": malformed Host header")),
        ("nonsense", b"nonsense\r\n\r\n".to_vec(), plain("")),
        ("no version", b"GET /\r\n\r\n".to_vec(), plain("")),
        ("no number of a version", b"GET / HTTP/x\r\n\r\n".to_vec(), plain("")),
        ("a blank in a name", head("GET /\nX Y: 1"), plain(": invalid header name")),
        ("a blank before the colon", head("GET /\nX : 1"), plain(": invalid header name")),
        ("no colon", head("GET /\nnonsense"), plain("")),
        ("a control byte in a value", head("GET /\nX: \u{1}"), plain("")),
        ("a control byte in the target", head("GET /\u{1}"), plain("")),
        ("a percent that is none", head("GET /api/%zz"), plain("")),
        ("a length that is no number", head("POST /api/show\nContent-Length: x"), plain("")),
        ("a length below nothing", head("POST /api/show\nContent-Length: -1"), plain("")),
        ("two lengths", head("POST /api/show\nContent-Length: 1\nContent-Length: 2"), plain("")),
        (
            "an unknown coding",
            head("POST /api/show\nTransfer-Encoding: gzip"),
            said_as("501 Not Implemented", "Unsupported transfer encoding"),
        ),
        ("1 MB of fields", head(&format!("GET /api/version{large}")), said("431 Request Header Fields Too Large")),
    ];
    let cases = cases.into_iter().map(|(name, request, said): (&str, Vec<u8>, Vec<u8>)| {
        Case::new(name, Script::one(request)).said(Vec::leak(said))
    });
    Group { name: "what_is_no_request_is_refused_in_the_same_words", of: EITHER, cases: cases.collect() }
}

fn head_of(field: &[u8]) -> Vec<u8> {
    [b"GET /api/version HTTP/1.1\r\n", field, b"\r\n\r\n"].concat()
}

fn said(text: &str) -> Vec<u8> {
    said_as(text, text)
}

fn said_as(status: &str, text: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\n{TYPE}{text}").into_bytes()
}
