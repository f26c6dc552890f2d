//! The routes of a server that are not in the table stay its owner's, whatever server it is.

use http::Method;
use ollana::internals::id::Scope;

use super::evil::{Evil, Session, key};
use super::node::{node, read, until, within};
use super::victim::{Poison, Victim};

/// Routes of servers that answer `/api/version` as an Ollama does, and of those beside them.
const ROUTES: [(&str, &str); 34] = [
    // Lemonade
    ("POST", "/api/v1/delete"),
    ("POST", "/api/v1/pull"),
    ("POST", "/api/v1/load"),
    ("POST", "/api/v1/unload"),
    ("POST", "/api/v0/pull"),
    ("GET", "/api/v1/stats"),
    ("POST", "/internal/shutdown"),
    // LocalAI
    ("POST", "/models/apply"),
    ("POST", "/models/delete/m"),
    ("POST", "/models/import"),
    ("GET", "/models/jobs"),
    ("POST", "/backend/shutdown"),
    ("GET", "/backend/monitor"),
    ("POST", "/backends/apply"),
    ("GET", "/system"),
    ("POST", "/tts"),
    // KoboldCpp
    ("POST", "/api/admin/reload_config"),
    ("GET", "/api/admin/list_options"),
    ("POST", "/api/extra/abort"),
    ("POST", "/api/extra/data/save"),
    ("POST", "/api/v1/generate"),
    ("POST", "/sdapi/v1/txt2img"),
    // Docker Model Runner
    ("DELETE", "/models/m"),
    ("POST", "/models/create"),
    ("POST", "/engines/unload"),
    ("POST", "/engines/_configure"),
    ("DELETE", "/v1/models/m"),
    ("GET", "/metrics"),
    // llama-server, vLLM
    ("GET", "/slots"),
    ("POST", "/slots/0?action=erase"),
    ("POST", "/props"),
    ("POST", "/lora-adapters"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/sleep"),
];

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"];

/// Ways to write a path, each of which some router reads as that path.
fn spellings(path: &str) -> Vec<String> {
    let below = path.trim_start_matches('/');
    let (first, rest) = below.split_at(1);
    vec![
        path.to_owned(),
        format!("{path}/"),
        format!("/{path}"),
        format!("/.{path}"),
        format!("/x/..{path}"),
        format!("/v1/models/..{}{below}", "/../"),
        format!("/v1/models/%2e%2e/%2e%2e/{below}"),
        format!("/v1/models/%252e%252e%252f%252e%252e%252f{below}"),
        format!("/v1/models/..%5c..%5c{below}"),
        format!("/api/version/../..{path}"),
        format!("/api/version;{path}"),
        format!("/api/version%2f..%2f..{path}"),
        format!("/%{:02x}{rest}", first.as_bytes()[0]),
        path.replace('/', "%2F").replacen("%2F", "/", 1),
        path.replace('/', "//"),
        path.replace('/', "\\").replacen('\\', "/", 1),
        path.to_uppercase(),
        format!("{path}?x=/api/version"),
        format!("{path}%00"),
        format!("{path}%3f/api/version"),
    ]
}

async fn attacks(session: &Session, victim: &Victim) {
    let bodies: [&[u8]; 3] = [b"", br#"{"model":"m","name":"m"}"#, b"model=m"];
    for (method, path) in ROUTES {
        for spelling in spellings(path) {
            for body in bodies {
                let fields = [("content-type", "application/json")];
                let Some(said) = session.ask(method, &spelling, &fields, body).await else { continue };
                assert!(matches!(said.status, 301 | 307 | 400..=405), "{method} {spelling}: {}", said.status);
                assert!(!said.text().contains("done as asked"), "{method} {spelling}");
            }
        }
        for method in METHODS {
            if matches!((method, path), ("GET" | "HEAD", "/v1/models/m")) {
                // In the table: it only shows.
                continue;
            }
            let fields = [("content-type", "application/grpc"), ("x-http-method-override", "DELETE")];
            if let Some(said) = session.ask(method, path, &fields, bodies[1]).await {
                assert!(!said.text().contains("done as asked"), "{method} {path}");
            }
        }
    }
    assert!(victim.came().is_empty(), "{:?}", victim.came());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_outside_the_table_reaches_a_server_of_whatever_kind() {
    let victim = Victim::start(Poison::Fails).await;
    let provider = node("gpu1").lends_at(victim.url()).start().await;
    until("a server that is shared", || provider.view().ollama().lent.then_some(())).await;
    let stranger = Evil::new().meet(provider.mesh, "stranger").await.unwrap();
    attacks(&stranger, &victim).await;
    // The highest scope that there is gives no more of it.
    let (shown, id) = key();
    provider.trust(id, Scope::Manage).await;
    let manager = Evil::showing(Some(shown)).meet(provider.mesh, "manager").await.unwrap();
    attacks(&manager, &victim).await;
    // A route in the table is served.
    let said = manager.ask("POST", "/api/generate", &[], br#"{"model":"m","prompt":"x"}"#).await.unwrap();
    assert!(said.status == 200 && said.text().contains("done as asked"), "{}", said.text());
    let said = manager.ask("DELETE", "/api/delete", &[], br#"{"model":"m"}"#).await.unwrap();
    assert_eq!(said.status, 200);
    assert_eq!(victim.came().len(), 2);
}

/// A request that none of Ollama's routes takes, and the answer.
struct Unrouted {
    method: String,
    path: String,
    status: u16,
    words: String,
}

/// As a real Ollama 0.24.0 was recorded to answer; and two routes of other servers, for which it has the same words.
fn unrouted() -> Vec<Unrouted> {
    let recorded = include_str!("../data/ollama-0.24.0.jsonl").lines().filter_map(|line| {
        let exchange: serde_json::Value = serde_json::from_str(line).unwrap();
        let said = &exchange["response"];
        let status = said["status_line"].as_str()?.split(' ').nth(1)?.parse().ok()?;
        let asked = exchange["request"]["head"].as_str()?;
        // A page's own question is not about the route; and a path that changes models is guarded whatever the method.
        if !matches!(status, 301 | 307 | 405) || asked.contains("Origin:") || asked.contains("/api/delete ") {
            return None;
        }
        let mut line = asked.split(' ');
        let words = said["pieces"].as_array()?.iter().filter_map(|piece| piece[1].as_str()).collect();
        Some(Unrouted { method: line.next()?.to_owned(), path: line.next()?.to_owned(), status, words })
    });
    let other = |method: &str, path: &str, status, words: &str| {
        let (method, path, words) = (method.to_owned(), path.to_owned(), words.to_owned());
        Unrouted { method, path, status, words }
    };
    let mut all: Vec<_> = recorded.collect();
    assert!(all.len() >= 6, "there are that many in the recording");
    all.push(other("POST", "/models/apply", 404, "404 page not found"));
    all.push(other("DELETE", "/v1/models/m", 405, "405 method not allowed"));
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_route_is_answered_as_an_ollama_would_on_both_nodes() {
    let victim = Victim::start(Poison::Fails).await;
    let provider = node("gpu1").lends_at(victim.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    let stranger = Evil::new().meet(provider.mesh, "stranger").await.unwrap();
    for Unrouted { method, path, status, words } in unrouted() {
        let at_provider = stranger.ask(&method, &path, &[], b"").await.unwrap();
        assert_eq!((at_provider.status, at_provider.text()), (status, words.clone()), "{method} {path}");
        for prefix in ["", "/@gpu1"] {
            if !prefix.is_empty() && path.starts_with("//") {
                // One slash too many behind the choice is how clients join the two, and not part of the path.
                continue;
            }
            let method: Method = method.parse().unwrap();
            let answer = within(user.send(method, &format!("{prefix}{path}"), "")).await;
            assert_eq!(answer.headers()["ollana-peer"], "laptop", "it is not even sent");
            let (said, text) = read(answer).await;
            assert_eq!((said.as_u16(), text), (status, words.clone()), "{prefix}{path}");
        }
    }
    assert!(victim.came().is_empty(), "{:?}", victim.came());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_owner_asks_this_machines_own_server_for_anything() {
    let (own, other) = (Victim::start(Poison::Fails).await, Victim::start(Poison::Fails).await);
    let provider = node("gpu1").lends_at(other.url()).start().await;
    let user = node("laptop").lends_at(own.url()).dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "m").await;
    until("its own server", || user.view().ollama().healthy.then_some(())).await;
    for (method, path) in ROUTES {
        let answer = within(user.send(method.parse().unwrap(), path, r#"{"model":"m"}"#)).await;
        assert_eq!(answer.headers()["ollana-peer"], "laptop");
        let (status, text) = read(answer).await;
        // Ollama's own names are answered by the nodes.
        assert!(status == 200 && text.contains("done as asked"), "{method} {path}: {status} {text}");
    }
    let asked: Vec<String> = own.came().into_iter().map(|came| came.line).collect();
    assert_eq!(asked, ROUTES.map(|(method, path)| format!("{method} {path}")));
    assert!(other.came().is_empty());
}
