//! Bodies and connections in every form that HTTP/1 has for them.

use super::{Case, EITHER, Group, Kind, chat, generate, head, json, with_body};
use crate::wire::{Script, Step};

fn chunked(lines: &str, chunks: &str) -> Vec<u8> {
    let mut request = head(&format!("{lines}\nTransfer-Encoding: chunked"));
    request.extend(chunks.as_bytes());
    request
}

pub fn bodies() -> Group {
    let show = r#"{"model":"smollm2"}"#;
    let (length, half) = (show.len(), show.len() / 2);
    let in_chunks = format!("{half:x}\r\n{}\r\n{:x}\r\n{}\r\n0\r\n\r\n", &show[..half], length - half, &show[half..]);
    let one_chunk = format!("{length:x}\r\n{show}\r\n0\r\n\r\n");
    let mut cases = vec![
        Case::new("in chunks", Script::one(chunked("POST /api/show", &in_chunks))),
        Case::new(
            "with an extension",
            Script::one(chunked("POST /api/show", &one_chunk.replacen("\r\n", ";a=b\r\n", 1))),
        ),
        Case::new(
            "with a trailer",
            Script::one(chunked(
                "POST /api/show\nTrailer: X-Sum",
                &one_chunk.replace("0\r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n"),
            )),
        ),
        Case::new(
            "with a trailer unannounced",
            Script::one(chunked("POST /api/show", &one_chunk.replace("0\r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n"))),
        ),
        Case::new(
            "in capital digits",
            Script::one(chunked(
                "POST /api/show",
                &one_chunk.to_uppercase().replace("MODEL", "model").replace("SMOLLM2", "smollm2"),
            )),
        ),
        Case::new("in no chunks", Script::one(chunked("POST /api/show", "0\r\n\r\n"))),
        Case::new(
            "chunked and with a length",
            Script::one(chunked(&format!("POST /api/show\nContent-Length: {length}"), &one_chunk)),
        ),
        Case::new("without a type", Script::one(with_body("POST /api/show", show))),
        Case::new("of another type", Script::one(with_body("POST /api/show\nContent-Type: text/plain", show))),
        Case::new(
            "of a form's type",
            Script::one(with_body("POST /api/show\nContent-Type: application/x-www-form-urlencoded", show)),
        ),
        Case::new("of two types", Script::one(with_body("POST /api/show\nContent-Type: a/b\nContent-Type: c/d", show))),
        Case::new("of no length", Script::one(head("POST /api/show"))),
        Case::new("of length 0", Script::one(head("POST /api/show\nContent-Length: 0"))),
        Case::new(
            "one length twice",
            Script::one(
                [head(&format!("POST /api/show\nContent-Length: {length}\nContent-Length: {length}")), show.into()]
                    .concat(),
            ),
        ),
        Case::new(
            "with data behind it",
            Script::one(json("POST /api/show", format!("{show}{}", " trailing".repeat(5000)))),
        ),
        Case::new("with a GET", Script::one(json("GET /api/tags", show))),
        Case::new("with a GET, chunked", Script::one(chunked("GET /api/version", &one_chunk))),
        Case::new("with a HEAD", Script::one(json("HEAD /api/tags", show))),
        Case::new("with a DELETE that has no route", Script::one(json("DELETE /api/show", show))),
        Case::new("on a path that is not there", Script::one(json("POST /api/nope", show))),
        Case::new("large, on a path that is not there", Script::one(json("POST /api/nope", "x".repeat(600_000)))),
        Case::new("large, by a wrong method", Script::one(json("PUT /api/chat", "x".repeat(600_000)))),
        Case::new("middling, by a wrong method", Script::one(json("PUT /api/chat", "x".repeat(100_000)))),
        Case::new(
            "large, with nonsense in it",
            Script::one(json("POST /api/chat", format!("nonsense{}", "x".repeat(600_000)))),
        ),
        Case::new(
            "large",
            Script::one(json(
                "POST /api/generate",
                generate(&format!(
                    r#","stream":false,"system":"","suffix":"","template":"","x":"{}""#,
                    "x".repeat(2_000_000)
                )),
            )),
        ),
        Case::new("a byte at a time", {
            let request = json("POST /api/show", show);
            let heads = vec![false];
            let steps = request.iter().map(|byte| Step::Send(vec![*byte])).collect();
            Script { steps, heads, ..Script::default() }
        }),
        Case::new(
            "expected",
            Script::hesitant(head(&format!("POST /api/show\nExpect: 100-continue\nContent-Length: {length}")), show),
        ),
        Case::new(
            "expected, in chunks",
            Script::hesitant(
                head("POST /api/show\nExpect: 100-continue\nTransfer-Encoding: chunked"),
                in_chunks.clone(),
            ),
        ),
        Case::new(
            "expected, and sent at once",
            Script::one(
                [head(&format!("POST /api/show\nExpect: 100-continue\nContent-Length: {length}")), show.into()]
                    .concat(),
            ),
        ),
        Case::new(
            "expected, and refused early",
            Script::hesitant(head("POST /nope\nExpect: 100-continue\nContent-Length: 5"), "12345"),
        ),
        Case::new(
            "expected, by a wrong method",
            Script::hesitant(head("PUT /api/chat\nExpect: 100-continue\nContent-Length: 5"), "12345"),
        ),
        Case::new(
            "expected, of length 0",
            Script::one(head("POST /api/show\nExpect: 100-continue\nContent-Length: 0")),
        ),
        Case::new(
            "expected in other case",
            Script::hesitant(head(&format!("POST /api/show\nExpect: 100-Continue\nContent-Length: {length}")), show),
        ),
        Case::new(
            "expected, what nobody knows",
            Script::one(
                [head(&format!("POST /api/show\nExpect: 200-ok\nContent-Length: {length}")), show.into()].concat(),
            ),
        ),
        Case::new("expected with a GET", Script::one(head("GET /api/version\nExpect: 100-continue"))),
    ];
    for (name, body) in [("nothing", ""), ("blanks", "   "), ("half an object", r#"{"model":"#)] {
        cases.push(Case::new(format!("of {name}"), Script::one(json("POST /api/chat", body))));
        cases.push(Case::new(format!("of {name}, on /v1"), Script::one(json("POST /v1/chat/completions", body))));
    }
    Group { name: "bodies_in_every_form_are_read_as_asked_directly", of: EITHER, cases }
}

pub fn connections() -> Group {
    let version = || head("GET /api/version");
    let old = |lines: &str| format!("{lines}\r\n\r\n").into_bytes();
    let mut cases = vec![
        Case::new("three at once", Script::pipelined(&[version(), head("GET /api/tags"), head("HEAD /api/version")])),
        Case::new(
            "many kinds at once",
            Script::pipelined(&[
                json("POST /api/chat", chat("")),
                head("HEAD /"),
                json("POST /api/nope", "{}"),
                head("GET /api/tags/"),
                json("POST /api/show", r#"{"model":"smollm2"}"#),
                head("PUT /api/chat"),
                json("POST /api/generate", generate(r#","stream":false"#)),
                version(),
            ]),
        ),
        Case::new("twenty at once", Script::pipelined(&(0..20).map(|_| version()).collect::<Vec<_>>())),
        Case::new("in turn", Script::in_turn(&[version(), head("GET /api/ps"), version()])),
        Case::new(
            "one that closes between others",
            Script::pipelined(&[version(), head("GET /api/tags\nConnection: close")]),
        ),
        Case::new("closes", Script::one(head("GET /api/version\nConnection: close"))),
        Case::new("closes, in other case", Script::one(head("GET /api/version\nConnection: Close"))),
        Case::new("closes among others", Script::one(head("GET /api/version\nConnection: x, close"))),
        Case::new("closes, streamed", Script::one(json("POST /api/chat\nConnection: close", chat("")))),
        Case::new("closes, on an error", Script::one(json("POST /nope\nConnection: close", "{}"))),
        Case::new("keep-alive", Script::one(head("GET /api/version\nConnection: keep-alive"))),
        Case::new("keep-alive of the proxy", Script::one(head("GET /api/version\nProxy-Connection: keep-alive"))),
        Case::new("HTTP/1.0", Script::one(old("GET /api/version HTTP/1.0"))),
        Case::new("HTTP/1.0 with a host", Script::one(old("GET /api/version HTTP/1.0\r\nHost: 127.0.0.1"))),
        Case::new("HTTP/1.0 with a foreign host", Script::one(old("GET /api/version HTTP/1.0\r\nHost: evil.example"))),
        Case::new("HTTP/1.0 kept alive", Script::one(old("GET /api/version HTTP/1.0\r\nConnection: keep-alive"))),
        Case::new(
            "HTTP/1.0 kept alive, twice",
            Script::in_turn(&[
                old("GET /api/version HTTP/1.0\r\nConnection: keep-alive"),
                old("GET /api/version HTTP/1.0"),
            ]),
        ),
        Case::new("HTTP/1.0 HEAD", Script::one(old("HEAD /api/version HTTP/1.0"))),
        Case::new("HTTP/1.0 404", Script::one(old("GET /nope HTTP/1.0"))),
        Case::new("HTTP/1.0 redirect", Script::one(old("GET //api/tags HTTP/1.0"))),
        Case::new(
            "an upgrade",
            Script::one(head(
                "GET /api/version\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: x",
            )),
        ),
        Case::new(
            "an upgrade to h2c",
            Script::one(head(
                "GET /api/version\nConnection: Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: AAMAAABkAAQAAP__",
            )),
        ),
        Case::new(
            "an upgrade of a POST",
            Script::one(json("POST /api/show\nConnection: Upgrade\nUpgrade: h2c", r#"{"model":"smollm2"}"#)),
        ),
        Case::new("TE", Script::one(head("GET /api/version\nTE: trailers"))),
        Case::new("TE with Connection", Script::one(head("GET /api/version\nTE: trailers, deflate\nConnection: TE"))),
        Case::new("bare line feeds", Script::one("GET /api/version HTTP/1.1\nHost: 127.0.0.1\n\n")),
        Case::new("a trace", Script::one(head("TRACE /api/version"))),
        Case::new("a connect", Script::one(head("CONNECT 127.0.0.1:80"))),
        Case::new("a method of one's own", Script::one(head("FROB-1 /api/version"))),
        Case::new("a method in small letters", Script::one(head("get /api/version"))),
    ];
    for (path, body) in [
        ("/api/chat", chat("")),
        ("/api/chat", chat(r#","stream":false"#)),
        ("/v1/chat/completions", super::v1_chat(r#","stream":true"#)),
        ("/v1/chat/completions", super::v1_chat("")),
    ] {
        let length = body.len();
        for connection in ["", "Connection: keep-alive\r\n"] {
            let request = format!("POST {path} HTTP/1.0\r\n{connection}Content-Length: {length}\r\n\r\n{body}");
            cases.push(Case::new(
                format!("HTTP/1.0 {connection:?} POST {path} {}", body.contains("\"stream\"")),
                Script::one(request),
            ));
        }
    }
    Group { name: "connections_are_kept_and_closed_as_asked_directly", of: EITHER, cases }
}

/// Of a client that has said all it wants to. The HTTP of the simulated Ollama may take it for one that is gone.
pub fn half_closed() -> Group {
    let mut half = Script::one(head("GET /api/version"));
    half.steps.push(Step::HalfClose);
    let mut half_chat = Script::one(json("POST /api/show", r#"{"model":"smollm2"}"#)).then_listen();
    half_chat.steps.push(Step::HalfClose);
    let cases = vec![Case::new("a GET", half.then_listen()), Case::new("a POST", half_chat)];
    Group { name: "a_client_that_has_half_closed_is_answered_as_directly", of: &[Kind::Real], cases }
}

/// What a request's fields do to the answer.
pub fn fields() -> Group {
    let mut cases = vec![
        Case::new("gzip is welcome", Script::one(head("GET /api/tags\nAccept-Encoding: gzip, br"))),
        Case::new("a range", Script::one(head("GET /api/tags\nRange: bytes=0-4"))),
        Case::new("conditions", Script::one(head("GET /api/tags\nIf-None-Match: *\nIf-Modified-Since: Sat, 01 Jan 2050 00:00:00 GMT"))),
        Case::new("a prefix", Script::one(head("GET /api/tags/\nX-Forwarded-Prefix: /ollama"))),
        Case::new("forwarded", Script::one(head("GET /api/version\nX-Forwarded-For: 1.2.3.4\nX-Forwarded-Host: evil.example\nForwarded: for=1.2.3.4"))),
        Case::new("another method by name", Script::one(head("GET /api/version\nX-HTTP-Method-Override: DELETE"))),
        Case::new("of the proxy", Script::one(head("GET /api/version\nProxy-Authorization: Basic eDp5"))),
        Case::new("of the owner", Script::one(head("GET /api/version\nAuthorization: Bearer x"))),
        Case::new("named by Connection", Script::one(head("GET /api/version\nConnection: X-Mine\nX-Mine: 1"))),
        Case::new("odd bytes", Script::one([b"GET /api/version HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Odd: \xe9\xff\x80 \t x\r\nX-Empty:\r\nX-Blank: \t \r\n\r\n".to_vec()].concat())),
        Case::new("odd names", Script::one(head("GET /api/version\nx!#$%&'*+-.^_`|~1: 1"))),
        Case::new("many", Script::one(head(&format!("GET /api/version{}", (0..400).map(|i| format!("\nX-{i}: {i}")).collect::<String>())))),
        Case::new("large", Script::one(head(&format!("GET /api/version{}", (0..100).map(|i| format!("\nX-{i}: {}", "x".repeat(400))).collect::<String>())))),
        Case::new("one large", Script::one(head(&format!("GET /api/version\nX-Large: {}", "x".repeat(50_000))))),
    ];
    for lines in [
        "X-Twice: 1\nX-Twice: 2",
        "Accept: a/b\nAccept: c/d",
        "Authorization: a\nAuthorization: b",
        "Content-Type: a\nContent-Type: b",
    ] {
        cases.push(Case::new(format!("twice {lines:?}"), Script::one(head(&format!("GET /api/version\n{lines}")))));
    }
    Group { name: "fields_do_to_the_answer_what_they_do_directly", of: EITHER, cases }
}
