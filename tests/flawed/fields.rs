//! Lists with odd entries and odd fields: each costs only itself.

use serde_json::Value;

use crate::node::{Node, until};
use crate::shaped::{self, Shaped, json, status};

const GOOD: &str = r#"{"name":"good:latest","model":"good:latest","modified_at":"2026-11-22T12:45:47Z","size":98363007,"digest":"a1"}"#;

/// Entries of `/api/tags`, and the name under which each is used.
const TAGS: [(&str, Option<&str>); 24] = [
    (r#"{"name":"t1","size":"4 GB"}"#, Some("t1")),
    (r#"{"name":"t2","size":null}"#, Some("t2")),
    (r#"{"name":"t3","size":1.0}"#, Some("t3")),
    (r#"{"name":"t4","size":-1}"#, Some("t4")),
    (r#"{"name":"t5","size":1180591620717411303424}"#, Some("t5")),
    (r#"{"name":"t6","size":1e999}"#, Some("t6")),
    (r#"{"name":"t7","size":true}"#, Some("t7")),
    (r#"{"name":"t8","digest":null}"#, Some("t8")),
    (r#"{"name":"t9","digest":7}"#, Some("t9")),
    (r#"{"name":"t10","remote_host":null,"remote_model":null}"#, Some("t10")),
    (r#"{"name":"t11","modified_at":1700000000}"#, Some("t11")),
    (r#"{"name":"t12","details":null}"#, Some("t12")),
    (r#"{"name":"t13","details":"x","extra":{"a":[1,{"b":null}]}}"#, Some("t13")),
    (r#"{"model":"t14"}"#, Some("t14")),
    (r#"{"name":null,"model":"t15"}"#, Some("t15")),
    (r#"{"name":"","model":"t16"}"#, Some("t16")),
    (r#"{"name":"gone","name":"t17"}"#, Some("t17")),
    (r#"{"name":"t18","size":98363007.0}"#, Some("t18")),
    ("null", None),
    ("7", None),
    (r#""t""#, None),
    ("[]", None),
    ("{}", None),
    (r#"{"name":null}"#, None),
];

/// Entries of `/v1/models`.
const MODELS: [(&str, Option<&str>); 15] = [
    (r#"{"id":"v1"}"#, Some("v1")),
    (r#"{"id":"v2","object":null,"created":null,"owned_by":null}"#, Some("v2")),
    (r#"{"id":"v3","owned_by":{"name":"me"}}"#, Some("v3")),
    (r#"{"id":"v4","owned_by":7}"#, Some("v4")),
    (r#"{"id":"v5","status":"ready"}"#, Some("v5")),
    (r#"{"id":"v6","status":7}"#, Some("v6")),
    (r#"{"id":"v7","status":{}}"#, Some("v7")),
    (r#"{"id":"v8","status":{"value":null}}"#, Some("v8")),
    (r#"{"id":"v9","created":1700000000.5}"#, Some("v9")),
    (r#"{"id":"v10","created":"2026"}"#, Some("v10")),
    (r#"{"id":"v11","created":9223372036854775808}"#, Some("v11")),
    ("null", None),
    ("{}", None),
    (r#"{"id":null}"#, None),
    (r#"{"name":"without an id"}"#, None),
];

fn list(key: &str, entries: &[(&str, Option<&str>)], good: &str) -> String {
    let entries: Vec<&str> = entries.iter().map(|(entry, _)| *entry).chain([good]).collect();
    format!(r#"{{"{key}":[{}]}}"#, entries.join(","))
}

fn flaws(shown: &Value) -> Vec<String> {
    shown["flaws"].as_array().into_iter().flatten().map(|flaw| flaw.as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_odd_entry_of_ollamas_list_costs_only_itself() {
    let table = shaped::ollama("0.33.0")
        .but("GET /api/tags", json(list("models", &TAGS, GOOD)))
        .without("GET /v1/models")
        .but("GET /api/ps", json(r#"{"models":[null,{},{"name":"good","size_vram":"0","size":"x","expires_at":null},{"model":"t1","expires_at":7}]}"#));
    let server = Shaped::start(table);
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    let user = Node::using("laptop", &[&provider]);
    let shown = provider.until_server("lent", |shown| shown["lent"] == true);
    user.until_model("good:latest");
    for name in TAGS.iter().filter_map(|(_, name)| *name).chain(["good"]) {
        let reply = user.chat("/api/chat", name);
        assert_eq!((reply.status, &*reply.peer), (200, "gpu"), "{name}: {reply:?}");
    }
    assert_eq!(user.models().len(), 19, "{:?}", user.models());
    // Straight through, as the server wrote it.
    assert_eq!(user.get("/api/tags").body, list("models", &TAGS, GOOD));

    let flaws = flaws(&shown);
    for said in [
        "/api/tags: an entry is no object and was left out (4 times)",
        "/api/tags: an entry has no name and was left out (2 times)",
        "/api/tags: a size is no number of bytes and counts as unknown (\"t1\" and 4 more)",
        "/api/tags: a size is below any model's and counts as unknown (\"t3\")",
        "/api/tags: a digest is none and counts as unknown (\"t9\")",
        "/api/ps: an entry is no object and was left out",
        "/api/ps: a size is no number of bytes and counts as unknown (\"good\" and 1 more)",
        "/api/ps: expires_at is no time and counts as unknown (\"t1\")",
    ] {
        assert!(flaws.iter().any(|flaw| flaw == said), "{said}: {flaws:?}");
    }
    assert!(provider.run(&["status"]).contains("flaw: /api/tags: "), "{}", provider.run(&["status"]));
    assert!(provider.run(&["doctor"]).contains("a size is no number of bytes"), "{}", provider.run(&["doctor"]));
    let told = |log: &str| log.lines().filter(|line| line.contains("a size is below any model's")).count();
    assert_eq!(told(&provider.log()), 1, "{}", provider.log());
}

#[test]
fn an_odd_entry_of_openais_list_costs_only_itself() {
    let good = r#"{"id":"good","object":"model","created":5,"owned_by":"me"}"#;
    let server = Shaped::start(shaped::vllm().but("GET /v1/models", json(list("data", &MODELS, good))));
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    let user = Node::using("laptop", &[&provider]);
    let shown = provider.until_server("lent", |shown| shown["lent"] == true);
    user.until_model("good");
    for name in MODELS.iter().filter_map(|(_, name)| *name).chain(["good"]) {
        let reply = user.chat("/v1/chat/completions", name);
        assert_eq!((reply.status, &*reply.peer), (200, "gpu"), "{name}: {reply:?}");
    }
    let flaws = flaws(&shown);
    for said in ["has no name", "is no object", "owned_by is no text", "status is no object"] {
        assert!(flaws.iter().any(|flaw| flaw.contains(said)), "{said}: {flaws:?}");
    }
    // Ollama's own way of saying that there are none.
    server.answer("GET /v1/models", json("{\"object\":\"list\",\"data\":null}\n"));
    until(|| user.models().is_empty().then_some(()), || format!("{:?}", user.models()));
    assert!(provider.server()["lent"] == true);
}

#[test]
fn merged_lists_have_every_entry_as_its_server_wrote_it() {
    let odd = [
        r#"{"name":"m1","modified_at":1700000000}"#,
        r#"{"name":"m2","modified_at":"yesterday","size":"4 GB"}"#,
        r#"{"model":"m3","modified_at":null}"#,
        r#"{"name":7}"#,
    ];
    let odd_v1 = [
        r#"{"id":"m1","created":1700000000.5}"#,
        r#"{"id":"m2","created":"2026"}"#,
        r#"{"id":"m3","created":9223372036854775808}"#,
        r#"{"id":5,"created":[]}"#,
    ];
    let table = shaped::ollama("0.33.0")
        .but("GET /api/tags", json(format!(r#"{{"models":[{},{{}},null]}}"#, odd.join(","))))
        .but("GET /v1/models", json(format!(r#"{{"object":"list","data":[{},{{}},null]}}"#, odd_v1.join(","))));
    let (one, other) = (Shaped::start(table), Shaped::start(shaped::ollama("0.24.0")));
    let providers = [("one", &one), ("other", &other)]
        .map(|(name, server)| Node::sharing(name, format!("http://{}", server.addr())));
    let user = Node::using("laptop", &[&providers[0], &providers[1]]);
    user.until_model("m1");
    user.until_model("smollm2:latest");
    for (path, entries) in [("/api/tags", odd), ("/v1/models", odd_v1)] {
        let reply = user.get(path);
        for entry in entries.into_iter().chain(["smollm2:latest"]) {
            assert!(reply.body.contains(entry), "{path}: {entry}: {}", reply.body);
        }
        assert!(!reply.body.contains("{}") && !reply.body.contains("null,"), "{path}: {}", reply.body);
    }
}

#[test]
fn without_a_list_of_loaded_models_the_server_is_shared() {
    let mut server = Shaped::start(shaped::ollama("0.33.0"));
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    provider.until_server("lent", |shown| shown["lent"] == true);
    let odd = [
        status(404),
        status(405),
        status(500),
        status(501),
        json("<html>no</html>"),
        json(r#"{"models":[{"name":"#),
        json(r#"{"models":7}"#),
        json("{}"),
        json("[]"),
    ];
    for (n, ps) in odd.into_iter().enumerate() {
        let what = format!("{ps:?}");
        // Some while it runs, which it sees at its next look, and some from the start.
        match n {
            0 => server.answer("GET /api/ps", ps),
            _ => server.becomes(shaped::ollama(&format!("0.33.{n}")).but("GET /api/ps", ps)),
        }
        let shown = provider.until_server(&what, |shown| {
            let version = n == 0 || shown["version"] == format!("0.33.{n}");
            shown["lent"] == true && version && !flaws(shown).is_empty()
        });
        let flaws = flaws(&shown);
        assert!(flaws[0].contains("/api/ps") && flaws[0].contains("in memory is not known"), "{what}: {flaws:?}");
        assert_eq!(provider.chat("/api/chat", "smollm2").status, 200, "{what}");
    }
}

#[test]
fn without_a_version_it_is_an_ollama_if_it_lists_as_one() {
    let mut server = Shaped::start(shaped::ollama("0.33.0").but("GET /api/version", status(404)));
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    for (n, version) in
        [status(404), json(r#"{"version":1.5}"#), json("{}"), json("no"), status(500)].into_iter().enumerate()
    {
        let what = format!("{version:?}");
        if n > 0 {
            server.becomes(shaped::ollama("0.33.0").but("GET /api/version", version));
        }
        let shown = provider.until_server(&what, |shown| shown["lent"] == true);
        assert_eq!((&shown["api"], &shown["version"]), (&"ollama".into(), &Value::Null), "{what}");
        assert!(flaws(&shown)[0].contains("/api/version"), "{what}: {shown}");
        assert_eq!(provider.chat("/api/chat", "smollm2").status, 200, "{what}");
        assert!(provider.get("/api/tags").body.contains("smollm2"), "{what}");
    }
}

#[test]
fn a_list_that_is_broken_for_a_while_keeps_what_was_known() {
    let server = Shaped::start(shaped::ollama("0.33.0"));
    let provider = Node::sharing("gpu", format!("http://{}", server.addr()));
    provider.until_server("lent", |shown| shown["lent"] == true);
    for broken in [status(500), json(r#"{"models":[{"name":"smo"#), json("{}")] {
        server.answer("GET /api/tags", broken);
        let shown = provider.until_server("a flaw", |shown| !flaws(shown).is_empty());
        assert!(shown["lent"] == true && flaws(&shown)[0].contains("gives no list at the moment"), "{shown}");
        assert_eq!(provider.chat("/api/chat", "smollm2").status, 200);
        server.answers(shaped::ollama("0.33.0"));
        provider.until_server("no flaw", |shown| flaws(shown).is_empty());
    }
    assert!(!provider.log().contains("is gone"), "{}", provider.log());
}

#[test]
fn of_two_idle_servers_that_do_not_say_what_is_loaded_both_are_used() {
    let table = || shaped::ollama("0.33.0").without("GET /api/ps");
    let slow = |table: shaped::Table| {
        let chat = json(r#"{"model":"m","message":{"role":"assistant","content":"hello"},"done":true}"#);
        table.but("POST /api/chat", chat.after(std::time::Duration::from_millis(300)))
    };
    let servers = [Shaped::start(slow(table())), Shaped::start(slow(table()))];
    let providers = [0, 1].map(|n: usize| {
        let flags = ["--ollama", &*format!("http://{}", servers[n].addr())].map(str::to_owned);
        Node::start(&format!("gpu{n}"), &flags.each_ref().map(|flag| &**flag), "[lend]\nparallel = 1\n")
    });
    let user = Node::using("laptop", &[&providers[0], &providers[1]]);
    until(
        || {
            let peers = user.json(&["peers", "--json"]);
            let ready = peers.as_array().unwrap().iter().filter(|peer| peer["provider"] == true).count();
            (ready == 2).then_some(())
        },
        || user.run(&["peers"]),
    );
    // Two at a time, so that there is always one for the other.
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..8).for_each(|_| assert_eq!(user.chat("/api/chat", "smollm2").status, 200)));
        }
    });
    let counts = [0, 1].map(|n: usize| servers[n].count("POST /api/chat"));
    assert!(counts.iter().all(|count| *count >= 4), "{counts:?}");
}
