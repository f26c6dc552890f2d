//! A web page that has made its own name point here (DNS rebinding), at the listener and at the status page. A browser sends
//! the page's name as `Host`; nothing else tells such a request from one of an application. A real browser tries the same in
//! `tests/browser`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use super::fake_ollama::FakeOllama;
use super::handshake::lender;

/// Status and whole answer to this head.
fn ask(address: SocketAddr, head: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{head}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    (status, answer)
}

/// Names under which a page could come.
const FOREIGN: [&str; 8] = [
    "evil.example",
    "evil.example:11434",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1@evil.example",
    "evil.example#localhost",
    "8.8.8.8",
    "[2001:db8::1]:11434",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_page_with_a_rebound_name_reaches_nothing_by_the_listener() {
    let ollama = FakeOllama::start(&["m"]).await;
    let node = lender(&ollama).await;
    let before = ollama.counts().requests;
    for host in FOREIGN {
        for (line, body) in [
            ("GET /api/tags", ""),
            ("POST /api/generate", r#"{"model":"m","prompt":"x"}"#),
            ("DELETE /api/delete", r#"{"model":"m"}"#),
            ("OPTIONS /api/generate", ""),
            ("GET /", ""),
        ] {
            let head =
                format!("{line} HTTP/1.1\r\nHost: {host}\r\nOrigin: http://{host}\r\nSec-Fetch-Site: same-origin");
            for head in [&head, &format!("{line} HTTP/1.1\r\nHost: {host}")] {
                let (status, answer) = ask(node.listen, head, body);
                assert!(matches!(status, 400 | 403), "{head}: {answer}");
                assert!(!answer.to_lowercase().contains("access-control-allow-origin"), "{answer}");
                assert!(!answer.contains("\"m:latest\""), "{answer}");
            }
        }
    }
    // A target that says one name and a header that says another.
    let (status, _) = ask(node.listen, "GET http://evil.example/api/tags HTTP/1.1\r\nHost: localhost", "");
    assert!(matches!(status, 400 | 403), "{status}");
    let own = ["/api/version", "/api/tags", "/api/ps", "/v1/models", "/"];
    let now = ollama.counts().requests;
    assert!(now.keys().all(|path| own.contains(&path.as_str())), "{before:?} {now:?}");
    // Somebody else's page under its own name, at this machine's.
    let head = "POST /api/generate HTTP/1.1\r\nHost: localhost\r\nOrigin: https://evil.example";
    assert_eq!(ask(node.listen, head, r#"{"model":"m","prompt":"x"}"#).0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_with_a_rebound_name_neither_reads_nor_drives_the_status_page() {
    let ollama = FakeOllama::start(&["m"]).await;
    let node = lender(&ollama).await;
    let page = node.view().info().status_page.unwrap();
    let id = node.id().to_string();
    for host in FOREIGN {
        for path in ["/", "/status.json", "/peers.json", "/models.json", "/metrics"] {
            let head = format!("GET {path} HTTP/1.1\r\nHost: {host}");
            let (status, answer) = ask(page, &head, "");
            assert!(matches!(status, 400 | 403) && !answer.contains(&id), "{head}: {answer}");
        }
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT", "TRACE"] {
        for path in ["/", "/stop", "/trust", "/revoke", "/status.json"] {
            let (status, answer) = ask(page, &format!("{method} {path} HTTP/1.1\r\nHost: localhost"), "{}");
            assert!(matches!(status, 400 | 403 | 405), "{method} {path}: {answer}");
            assert!(!answer.to_lowercase().contains("access-control-"), "{answer}");
        }
    }
    assert_eq!(ask(page, "GET / HTTP/1.1\r\nHost: localhost", "").0, 200);
    assert!(!node.shutdown.is_cancelled());
}
