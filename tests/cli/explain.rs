//! `ollana explain`: what it says of requests, and of what is none. (Of a request that had a choice: `tests/hosts`.)

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use serde_json::json;

use crate::fake_ollama::FakeOllama;
use crate::home::Home;

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_explained_and_an_id_that_is_none_is_an_error_that_helps() {
    let ollama = FakeOllama::start(&["m"]).await;
    let mut home = Home::new();
    home.set("OLLANA_OLLAMA", &ollama.url().to_string());
    assert!(home.fails(1, &["explain"]).contains("ollana serve"), "no node runs");
    let _node = home.foreground(&["serve"]);
    assert_eq!(home.ok(&["explain"]), "no application has sent this node a request since it started\n");
    assert_eq!(home.json(&["explain", "--json"]), json!([]));

    let listen = home.json(&["status", "--json"])["listen"].as_str().unwrap().to_owned();
    let body = r#"{"model":"m","prompt":"why","stream":false}"#;
    let ask = |path: &str| {
        let mut application = TcpStream::connect(&listen).unwrap();
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\nContent-Length: {}", body.len());
        application.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        application.read_to_string(&mut answer).unwrap();
        let id =
            answer.lines().find_map(|line| line.to_lowercase().strip_prefix("ollana-request: ").map(str::to_owned));
        id.unwrap_or_else(|| panic!("no ID in {answer}"))
    };
    let id = ask("/api/generate");
    let text = home.ok(&["explain", &id.to_uppercase()]);
    assert!(text.contains("POST /api/generate, model m") && text.contains("the answer began"), "{text}");
    let account = home.json(&["explain", &id, "--json"]);
    assert_eq!((&account["status"], &account["tries"][0]["outcome"]), (&json!(200), &json!("200")));
    let listed = home.ok(&["explain"]);
    assert!(listed.contains(&id) && listed.contains("POST /api/generate"), "{listed}");

    let unknown = home.fails(1, &["explain", "aaaaaaaa"]);
    assert!(unknown.contains("request aaaaaaaa is not known here") && unknown.contains("latest 512"), "{unknown}");
    for malformed in ["m", "aaaaaaa!", &format!("{id}a")] {
        let error = home.fails(2, &["explain", malformed]);
        assert!(error.contains("eight letters and digits") && error.contains("`ollana-request`"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_cancelled_or_fails_is_not_shown_as_completed() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = std::time::Duration::from_millis(50));
    let mut home = Home::new();
    home.set("OLLANA_OLLAMA", &ollama.url().to_string());
    let node = home.foreground(&["serve"]);
    let listen = home.json(&["status", "--json"])["listen"].as_str().unwrap().to_owned();
    let send = |body: &str| {
        let mut application = TcpStream::connect(&listen).unwrap();
        let head = format!(
            "POST /api/generate HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\nContent-Length: {}",
            body.len()
        );
        application.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        application
    };
    // An answer that would take some minutes, whose reader leaves at its beginning.
    let mut application = send(r#"{"model":"m","prompt":"why","options":{"num_predict":5000}}"#);
    application.read_exact(&mut [0; 12]).unwrap();
    drop(application);
    let start = std::time::Instant::now();
    while !home.ok(&["explain"]).contains("200, cancelled") {
        assert!(start.elapsed() < std::time::Duration::from_secs(30), "{}", home.ok(&["explain"]));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let id = home.json(&["explain", "--json"])[0]["id"].as_str().unwrap().to_owned();
    let told = home.ok(&["explain", &id]);
    assert!(told.contains("cancelled: the application closed the connection") && !told.contains("completed"), "{told}");

    home.ok(&["stop"]);
    assert_eq!(node.end().0, Some(0));
}

#[test]
fn a_request_that_fails_is_one_line_of_the_log_without_its_prompt() {
    let home = Home::new();
    let node = home.foreground(&["serve"]);
    let listen = home.json(&["status", "--json"])["listen"].as_str().unwrap().to_owned();
    let body = r#"{"model":"absent\u001b[2J","prompt":"canary"}"#;
    let mut application = TcpStream::connect(&listen).unwrap();
    let head =
        format!("POST /api/generate HTTP/1.1\r\nHost: {listen}\r\nConnection: close\r\nContent-Length: {}", body.len());
    application.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    application.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    home.ok(&["stop"]);
    let (_, log) = node.end();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("POST /api/generate failed with 503: ")).collect();
    assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains("absent"), "{log}");
    assert!(!log.contains("canary") && !log.contains('\u{1b}'), "{log}");
}
