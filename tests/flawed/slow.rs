//! Servers that take their time, and servers that are gone.

use std::time::{Duration, Instant};

use crate::node::{Node, until};
use crate::shaped::{self, Shaped, json};

const BIG: &str =
    r#"{"name":"big:70b","model":"big:70b","modified_at":"2026-11-22T12:45:47Z","size":42520413916,"digest":"b2"}"#;
const SLOW: Duration = Duration::from_secs(4);

#[test]
fn a_slow_list_hides_no_model_and_holds_up_nobody() {
    let big = format!(r#"{{"models":[{BIG}]}}"#);
    let slow = Shaped::start(shaped::ollama("0.33.0").but("GET /api/tags", json(&*big)));
    let fast = Shaped::start(shaped::ollama("0.33.0"));
    let providers = [("slow", &slow), ("fast", &fast)]
        .map(|(name, server)| Node::sharing(name, format!("http://{}", server.addr())));
    let user = Node::using("laptop", &[&providers[0], &providers[1]]);
    user.until_model("big:70b");
    user.until_model("smollm2:latest");
    slow.answer("GET /api/tags", json(big).after(SLOW));
    providers[0].until_server("said to be slow", |shown| {
        shown["flaws"]
            .as_array()
            .is_some_and(|flaws| flaws.iter().any(|flaw| flaw.as_str().unwrap().contains("more than 2 s")))
    });
    for n in 0..5 {
        let since = Instant::now();
        let reply = user.get("/api/tags");
        let took = since.elapsed();
        assert!(reply.body.contains("smollm2:latest"), "{reply:?}");
        let list: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        let big = list["models"].as_array().unwrap().iter().find(|model| model["name"] == "big:70b").expect("big");
        assert_eq!((&big["size"], &big["digest"]), (&42_520_413_916_u64.into(), &"b2".into()));
        assert!(took < SLOW - Duration::from_secs(1), "{n}: {took:?}");
        assert_eq!(user.chat("/api/chat", "big:70b").status, 200);
    }
    assert!(providers[0].server()["lent"] == true && !providers[0].log().contains("is gone"));
}

#[test]
fn a_server_that_is_slow_at_the_start_is_shared_once_it_answers() {
    let slow = Duration::from_secs(6);
    let mut server = Shaped::start(
        shaped::ollama("0.33.0")
            .but("GET /api/version", json(r#"{"version":"0.33.0"}"#).after(slow))
            .but("GET /api/tags", json(format!(r#"{{"models":[{BIG}]}}"#)).after(slow)),
    );
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    // It says meanwhile why it is not shared.
    provider.until_server("waited for", |shown| shown["problem_code"] == "silent");
    provider.until_server("lent", |shown| shown["lent"] == true);
    assert_eq!(provider.chat("/api/chat", "big:70b").status, 200);
    server.becomes(shaped::vllm().but("GET /v1/models", json(r#"{"data":[{"id":"v"}]}"#).after(slow)));
    provider.until_server("lent", |shown| shown["lent"] == true && shown["api"] == "openai");
    assert_eq!(provider.chat("/v1/chat/completions", "v").status, 200);
}

#[test]
fn a_server_that_ends_or_hangs_is_withdrawn() {
    let mut server = Shaped::start(shaped::ollama("0.33.0"));
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    provider.until_server("lent", |shown| shown["lent"] == true);
    server.stop();
    let since = Instant::now();
    provider.until_server("gone", |shown| shown["healthy"] == false);
    assert!(since.elapsed() < Duration::from_secs(5), "{:?}", since.elapsed());
    server.listen();
    provider.until_server("lent", |shown| shown["lent"] == true);
    let hangs = json("{}").after(Duration::from_secs(300));
    server.answers(shaped::Table::of([("*", hangs)]));
    let since = Instant::now();
    let shown = provider.until_server("gone", |shown| shown["healthy"] == false);
    assert!(since.elapsed() < Duration::from_secs(30), "{:?}", since.elapsed());
    assert_eq!(shown["problem_code"], "silent");
    until(|| (provider.chat("/api/chat", "smollm2").status != 200).then_some(()), || provider.log());
}
