//! `ollana peers --json`, `status --json` and `doctor --json` of a peer that was named and does not answer: the shape.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::home::Home;

/// A dial in vain takes 5 s.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_named_peer_that_does_not_answer_is_a_row_without_a_key() {
    let mut home = Home::new();
    home.set("OLLANA_DISCOVERY", "false");
    // Taken, and silent.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let _node = home.foreground(&["serve", "--mode", "client", "--peer", &address.to_string()]);
    let since = Instant::now();
    let row = loop {
        let rows = home.json(&["peers", "--json"]);
        if let Some(row) = rows.as_array().unwrap().first() {
            break row.clone();
        }
        assert!(since.elapsed() < LIMIT, "{rows}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!(row["name"], address.to_string());
    assert_eq!(row["address"], address.to_string());
    assert_eq!((&row["state"], &row["verified"]), (&json!("unreachable"), &json!(false)));
    assert!(row.get("id").is_none() && row.get("trust").is_none(), "it has proved no key: {row}");
    let port = format!("UDP {}", address.port());
    assert!(row["reason"].as_str().unwrap().contains(&port) && row["do"].as_str().unwrap().contains(&port), "{row}");
    let status = home.json(&["status", "--json"]);
    assert_eq!(status["unusable"][0]["reason"], row["reason"]);
    let findings = home.json(&["doctor", "--json"]);
    let of_peers = |finding: &&Value| finding["check"] == "peers";
    let finding = findings.as_array().unwrap().iter().find(of_peers).unwrap();
    assert_eq!((&finding["level"], &finding["do"]), (&json!("hint"), &row["do"]));
    assert!(finding["found"].as_str().unwrap().contains(&address.to_string()), "{finding}");
}
