//! Servers that cannot be shared, and what is said of them.

use crate::node::Node;
use crate::shaped::{self, Answer, Shaped, Table, json, status};

#[test]
fn what_is_no_server_of_models_is_told_plainly() {
    let html = Answer { body: "<html>a page</html>".to_owned(), ..json("") }.with("content-type", "text/html");
    let mut server = Shaped::start(Table::default());
    let node = Node::sharing("gpu", format!("http://{}", server.addr()));
    for (what, table, code, words) in [
        ("404", Table::default(), "other-program", &["/api/version: answered 404", "/v1/models: answered 404"][..]),
        ("a page", Table::of([("*", html)]), "other-program", &["something else than a list of models"]),
        ("an app of its own", Table::of([("*", json(r#"{"ok":true}"#))]), "other-program", &["neither an Ollama nor"]),
        (
            "a key",
            Table::of([("*", status(401))]),
            "needs-key",
            &["wants an API key", "no setting for one", "/v1/models"],
        ),
        (
            "a key before the list",
            shaped::ollama("0.33.0").but("GET /api/tags", status(401)),
            "needs-key",
            &["wants an API key", "/api/tags"],
        ),
        ("503", Table::of([("*", status(503))]), "not-ready", &["not ready yet"]),
        (
            "an Ollama in trouble",
            shaped::ollama("0.33.0").but("GET /api/tags", status(500)),
            "broken",
            &["/api/tags is answered 500"],
        ),
    ] {
        server.becomes(table);
        let says = |shown: &serde_json::Value| {
            let problem = shown["problem"].as_str().unwrap_or_default();
            shown["problem_code"] == code && words.iter().all(|word| problem.contains(word))
        };
        let shown = node.until_server(what, says);
        let problem = shown["problem"].as_str().unwrap();
        let address = server.addr().to_string();
        assert!(shown["lent"] == false && problem.matches(&address).count() == 1, "{what}: {problem}");
        assert!(node.run(&["status"]).contains(words[0]), "{what}: {}", node.run(&["status"]));
    }
    // And is shared once it is one.
    server.becomes(shaped::ollama("0.33.0"));
    node.until_server("lent", |shown| shown["lent"] == true && shown["problem"].is_null());
}

#[test]
fn a_list_without_end_is_bounded() {
    let many: Vec<String> = (0..60_000).map(|n| format!(r#"{{"name":"m{n}"}}"#)).collect();
    let endless = format!(r#"{{"models":[{}]}}"#, "null,".repeat(3 << 20));
    let mut server = Shaped::start(
        shaped::ollama("0.33.0").but("GET /api/tags", json(format!(r#"{{"models":[{}]}}"#, many.join(",")))),
    );
    let node = Node::sharing("gpu", format!("http://{}", server.addr()));
    let shown = node.until_server("lent", |shown| shown["lent"] == true);
    assert!(shown["flaws"].to_string().contains("beyond the first 8192"), "{shown}");
    assert_eq!(node.chat("/api/chat", "m5").status, 200);
    server.becomes(shaped::ollama("0.33.0").but("GET /api/tags", json(endless)));
    node.until_server("too long", |shown| shown["problem_code"] == "broken");
}
