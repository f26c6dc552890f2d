//! What the socket and the status page say, and what can be changed through the one and not the other.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use crate::home::Home;

/// The ID of a key that nobody here has: the example of Syncthing's documentation, check characters included.
const STRANGER: &str = "MFZWI3D-BONSGYC-YLTMRWG-C43ENR5-QXGZDMM-FZWI3DP-BONSGYY-LTMRWAD";

#[test]
fn json_has_the_shape_of_the_contract() {
    let home = Home::new();
    home.ok(&["serve", "-d", "--name", "desk", "--mode", "client"]);
    let status = home.json(&["status", "--json"]);
    assert_eq!(status["name"], "desk");
    assert_eq!(status["mode"], "client");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(status["id"].as_str().unwrap().len(), 63);
    assert!(status["listen"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(status["mesh"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert!(status["ollama"]["url"].as_str().unwrap().starts_with("http://127.0.0.1:1"));
    assert_eq!(status["ollama"]["healthy"], false);
    assert!(status["ollama"].get("version").is_some());
    assert_eq!(status["peers"], 0);
    assert!(status["uptime_s"].is_u64());
    assert_eq!(home.json(&["peers", "--json"]), serde_json::json!([]));
    assert_eq!(home.json(&["models", "--json"]), serde_json::json!([]));
    let shown = home.ok(&["status"]);
    assert!(shown.contains("desk") && shown.contains(status["id"].as_str().unwrap()), "{shown}");
    home.ok(&["stop"]);
}

#[test]
fn a_peer_is_trusted_and_revoked_through_the_node_and_without_it() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    assert!(
        home.ok(&["trust", STRANGER, "--yes"]).contains("is now trusted (may run models here; used as a provider)")
    );
    let peers = home.json(&["peers", "--json"]);
    if let Some(peer) = peers.as_array().unwrap().first() {
        assert_eq!((peer["trust"].as_str(), peer["scope"].as_str()), (Some("trusted"), Some("infer")));
    }
    let own = home.ok(&["id"]);
    assert!(home.fails(1, &["trust", own.trim(), "--yes"]).contains("this node itself"));
    assert!(home.fails(1, &["revoke", "nobody"]).contains("ollana peers"));
    assert!(home.fails(1, &["revoke", &STRANGER[..4]]).contains("too short"));
    home.ok(&["stop"]);

    let said = home.ok(&["trust", STRANGER, "--yes", "--scope", "manage", "--no-use"]);
    assert!(said.contains("(may run, pull and delete models here; not used as a provider)"), "{said}");
    assert!(home.fails(1, &["revoke", "nobody"]).contains("trust book"));
    let said = home.ok(&["revoke", &STRANGER[..9]]);
    assert!(
        said.contains("is now revoked (may not use this node's Ollama; not used as a provider)")
            && said.contains("can come back with a new one"),
        "{said}"
    );
    home.ok(&["config", "set", "trust.inbound", "paired"]);
    assert!(!home.ok(&["revoke", STRANGER]).contains("come back"));
    let book = std::fs::read_to_string(home.state().join("trust.toml")).unwrap();
    assert!(book.contains(STRANGER) && book.contains("revoked"), "{book}");
}

#[test]
fn the_status_page_is_read_only_and_for_this_machine() {
    let home = Home::new();
    home.ok(&["serve", "-d", "--name", "desk"]);
    let page = home.json(&["status", "--json"])["status_page"].as_str().unwrap().to_owned();
    let ask = |head: &str| {
        let mut stream = TcpStream::connect(&page).unwrap();
        write!(stream, "{head}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let html = ask("GET / HTTP/1.1\r\nHost: localhost");
    assert!(html.starts_with("HTTP/1.1 200") && html.contains("<h1>desk</h1>"), "{html}");
    assert!(html.contains("content-security-policy: default-src 'none'"), "{html}");
    assert!(ask("GET /status.json HTTP/1.1\r\nHost: 127.0.0.1:1").contains("\"name\":\"desk\""));
    assert!(ask("GET /peers.json HTTP/1.1\r\nHost: localhost").ends_with("[]"));
    assert!(ask("GET /metrics HTTP/1.1\r\nHost: localhost").contains("\nollana_uptime_seconds "));
    let head = ask("HEAD / HTTP/1.1\r\nHost: localhost");
    assert!(head.starts_with("HTTP/1.1 200") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(ask("GET / HTTP/1.1\r\nHost: evil.example").starts_with("HTTP/1.1 403"));
    assert!(ask("POST /stop HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0").starts_with("HTTP/1.1 405"));
    home.ok(&["status"]);
    home.ok(&["stop"]);
}

#[test]
fn the_socket_speaks_plain_http() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    let ask = |request: &str| {
        let mut stream = UnixStream::connect(home.state().join("ollana.sock")).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let end = "Host: x\r\nConnection: close\r\n";
    assert!(ask(&format!("GET /id HTTP/1.1\r\n{end}\r\n")).starts_with("HTTP/1.1 200"));
    assert!(ask(&format!("GET /nothing HTTP/1.1\r\n{end}\r\n")).starts_with("HTTP/1.1 404"));
    assert!(ask(&format!("GET /stop HTTP/1.1\r\n{end}\r\n")).starts_with("HTTP/1.1 405"));
    let body = "{\"peer\": 3}";
    let length = body.len();
    assert!(
        ask(&format!("POST /revoke HTTP/1.1\r\n{end}Content-Length: {length}\r\n\r\n{body}"))
            .starts_with("HTTP/1.1 400")
    );
    home.ok(&["stop"]);
}

#[test]
fn commands_say_when_the_node_does_not_answer() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    let pid = home.json(&["status", "--json"])["pid"].as_i64().unwrap();
    let process = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::STOP).unwrap();
    let line = home.fails(1, &["status"]);
    assert!(line.contains("does not answer") && line.contains(&format!("kill -9 {pid}")), "{line}");
    rustix::process::kill_process(process, rustix::process::Signal::CONT).unwrap();
    home.ok(&["stop"]);
}
