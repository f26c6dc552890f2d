//! Targets that are not as in the documentation, and web pages.

use super::{Case, EITHER, Group, head, json};
use crate::wire::Script;

pub fn odd_paths() -> Group {
    let mut cases = Vec::new();
    for target in [
        "//api/tags",
        "/api//tags",
        "/api/tags/",
        "/api/tags//",
        "/api/x/../tags",
        "/api/./tags",
        "/../api/tags",
        "/./",
        "/api/%74ags",
        "/api%2Ftags",
        "/%61pi/tags",
        "/API/TAGS",
        "/Api/Version",
        "/api/tags?x=1",
        "/api/tags?",
        "/api/tags?a=b&c=d%20e",
        "/api/version?%zz",
        "/api/tags;x",
        "/api/tags%20",
        "/api/tags%00",
        "/api/tags%3Fx",
        "/api/tags%23x",
        "/api/x/%2e%2e/tags",
        "/api/version/x",
        "/api",
        "/api/",
        "/nope",
        "/nope/nope?nope",
        "/favicon.ico",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/models/nope",
        "/v1/models/a%2Fb",
        "/v1/models/a/b",
        "/v1/models/smollm2%3Alatest",
        "/v1/models/smollm2:latest?x=y",
        "/api/blobs/",
        "/api/blobs/x/y",
        "/?x",
        "/é",
        "/api/tags?é",
        "/\"",
        "/{x}|y",
        "http://127.0.0.1/api/version",
        "http://127.0.0.1:11434/api/version?x=1",
        "http://127.0.0.1",
        "http://127.0.0.1/",
        "http://localhost//api/version",
        "http://evil.example/api/version",
        "https://127.0.0.1/api/version",
    ] {
        for method in ["GET", "HEAD", "POST"] {
            cases.push(Case::new(format!("{method} {target}"), Script::one(head(&format!("{method} {target}")))));
        }
    }
    let long = format!("/api/version?{}", "x".repeat(60_000));
    cases.push(Case::new("GET a long target", Script::one(head(&format!("GET {long}")))));
    for target in ["//api/generate", "/api/generate/", "/API/generate"] {
        let request = json(&format!("POST {target}"), super::generate(""));
        cases.push(Case::new(format!("POST {target} with a body"), Script::one(request)));
    }
    for (what, field) in [
        ("a foreign page", "Host: 127.0.0.1\r\nOrigin: https://evil.example"),
        ("a foreign name", "Host: evil.example"),
    ] {
        let request = format!("GET //api/tags HTTP/1.1\r\n{field}\r\n\r\n");
        cases.push(Case::new(format!("an unclean path for {what}"), Script::one(request)));
    }
    for host in [
        "localhost",
        "LOCALHOST:1",
        "127.0.0.1:99",
        "[::1]:1",
        "[::1]",
        "::1",
        "0.0.0.0",
        "10.1.2.3",
        "x.local",
        "x.internal:9",
        "x.localhost",
        "evil.example",
        "evil.example:11434",
        "8.8.8.8",
        "",
        ":1",
        "a b",
        "a/b",
        "a@localhost",
        "localhost:",
        "localhost:x",
    ] {
        for method in ["GET", "OPTIONS"] {
            let request = format!("{method} /api/version HTTP/1.1\r\nHost: {host}\r\n\r\n");
            cases.push(Case::new(format!("{method} with the host {host:?}"), Script::one(request)));
        }
    }
    Group { name: "odd_targets_are_answered_as_asked_directly", of: EITHER, cases }
}

pub fn web_pages() -> Group {
    let mut cases = Vec::new();
    for origin in [
        "http://localhost",
        "http://localhost:3000",
        "https://127.0.0.1:8443",
        "http://0.0.0.0:1",
        "app://obsidian.md",
        "file://",
        "vscode-webview://x",
        "http://127.0.0.1",
        "null",
        "https://evil.example",
        "http://localhost.evil.example",
        "HTTP://LOCALHOST",
        "",
    ] {
        for request in [
            "GET /api/version",
            "GET /api/tags",
            "POST /api/show",
            "OPTIONS /api/chat",
            "OPTIONS /nope",
            "OPTIONS *",
            "DELETE /api/chat",
            "HEAD /",
        ] {
            cases.push(Case::new(
                format!("{request} for a page of {origin:?}"),
                Script::one(head(&format!("{request}\nOrigin: {origin}"))),
            ));
        }
        let asks = "Access-Control-Request-Method: POST\nAccess-Control-Request-Headers: content-type\nAccess-Control-Request-Private-Network: true";
        let request = head(&format!("OPTIONS /v1/chat/completions\nOrigin: {origin}\n{asks}"));
        cases.push(Case::new(format!("a preflight of {origin:?}"), Script::one(request)));
    }
    for request in ["OPTIONS /api/chat", "OPTIONS *", "OPTIONS /", "OPTIONS /nope", "GET *", "HEAD *"] {
        cases.push(Case::new(request, Script::one(head(request))));
        let foreign = format!("{request} HTTP/1.1\r\nHost: evil.example\r\n\r\n");
        cases.push(Case::new(format!("{request} under a foreign name"), Script::one(foreign)));
    }
    let same = "GET /api/version HTTP/1.1\r\nHost: my.local:8080\r\nOrigin: http://my.local:8080\r\n\r\n";
    cases.push(Case::new("a page of the same origin", Script::one(same)));
    cases.push(Case::new("OPTIONS of the same origin", Script::one(same.replace("GET", "OPTIONS"))));
    let rebound = "GET /api/version HTTP/1.1\r\nHost: evil.example\r\nOrigin: http://evil.example\r\n\r\n";
    cases.push(Case::new("a page after DNS rebinding", Script::one(rebound)));
    cases.push(Case::new(
        "two origins",
        Script::one(head("GET /api/version\nOrigin: http://localhost\nOrigin: https://evil.example")),
    ));
    cases.push(Case::new(
        "cookies",
        Script::one(head("GET /api/version\nCookie: a=b\nReferer: http://x\nSec-Fetch-Mode: cors")),
    ));
    Group { name: "web_pages_are_let_in_and_kept_out_as_asked_directly", of: EITHER, cases }
}
