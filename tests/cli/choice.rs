//! Addresses that choose a node, and what is said of all nodes together.

use std::net::SocketAddr;

use super::fake_ollama::Settings;
use super::lab::{Lab, Reply, ask};

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"why"}],"stream":false}"#;

/// Asks, and goes where the answers send an application, as `curl -L` does and most libraries do.
async fn follow(at: SocketAddr, method: &str, target: &str, body: &str) -> (Vec<String>, Reply) {
    let (mut target, mut method, mut body, mut went) = (target.to_owned(), method, body, Vec::new());
    loop {
        let reply = ask(at, method, &target, body).await;
        let Some(location) = reply.field("Location").filter(|_| (300..400).contains(&reply.status)) else {
            return (went, reply);
        };
        if reply.status < 307 && method == "POST" {
            (method, body) = ("GET", "");
        }
        target = location.to_owned();
        went.push(target.clone());
        assert!(went.len() < 5, "it goes round: {went:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_keeps_the_choice_of_a_node() {
    let lab = Lab::start(&[("gpu1", Settings::default()), ("gpu2", Settings::default())]).await;
    let at = lab.laptop();
    let straight = lab.ollama("gpu1").addr();
    for base in ["/@gpu1", "/@gpu1/", "/%40gpu1", "/%40gpu1/", "/@gpu%31"] {
        for (method, path, body) in [
            ("POST", "/api/chat", CHAT),
            ("POST", "/api/chat/", CHAT),
            ("POST", "/api//chat", CHAT),
            ("POST", "//api/chat?a=b", CHAT),
            ("POST", "/api/./chat/?a=b", CHAT),
            ("GET", "/api/tags", ""),
            ("GET", "/api/tags/", ""),
            ("GET", "//api/../api/tags", ""),
            ("GET", "/", ""),
            ("GET", "", ""),
        ] {
            let target = format!("{base}{path}");
            for target in [target.clone(), format!("http://{at}{target}")] {
                let before = lab.ollama("gpu2").counts();
                let (went, reply) = follow(at, method, &target, body).await;
                let asked = if path.is_empty() { "/" } else { path };
                let (_, direct) = follow(straight, method, asked, body).await;
                assert_eq!(reply.status, direct.status, "{method} {target}: {went:?}: {}", reply.body);
                assert_eq!(reply.body.split("created_at").next(), direct.body.split("created_at").next(), "{target}");
                assert!(went.iter().all(|location| location.starts_with(base.trim_end_matches('/'))), "{went:?}");
                let expected = if asked == "/" { "laptop" } else { "gpu1" };
                assert_eq!(reply.field("Ollana-Peer"), Some(expected), "{method} {target}: {went:?}");
                for path in ["/api/chat", "/api/tags"] {
                    // A node lists what its own Ollama has now and then.
                    let own = u64::from(path == "/api/tags") * 1000;
                    assert!(lab.ollama("gpu2").counts().of(path) <= before.of(path) + own, "{target} reached gpu2");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_is_the_lowest_and_the_same_every_time() {
    let version = |version: &str| Settings { version: version.to_owned(), ..Settings::default() };
    let lab = Lab::start(&[("gpu1", version("0.33.0")), ("gpu2", version("0.5.1")), ("own", version("0.0.0"))]).await;
    let at = lab.laptop();
    for n in 0..20 {
        // The least busy server changes all the while.
        let busy = tokio::spawn(ask(at, "POST", "/api/chat", CHAT));
        let reply = ask(at, "GET", "/api/version", "").await;
        assert_eq!((reply.status, &*reply.body), (200, r#"{"version":"0.5.1"}"#), "{n}");
        assert_eq!(reply.field("Content-Type"), Some("application/json; charset=utf-8"));
        assert_eq!(busy.await.unwrap().status, 200);
    }
    let head = ask(at, "HEAD", "/api/version", "").await;
    assert_eq!((head.status, head.field("Content-Length"), &*head.body), (200, Some("19"), ""));
    for (node, own) in [("gpu1", "0.33.0"), ("gpu2", "0.5.1"), ("own", "0.0.0")] {
        let reply = ask(at, "GET", &format!("/@{node}/api/version"), "").await;
        assert_eq!(reply.body, format!(r#"{{"version":"{own}"}}"#));
        assert_eq!(reply.field("Ollana-Peer"), Some(node));
    }
    // A trusted node counts more than one that nobody knows.
    lab.home().ok(&["trust", &lab.id("gpu1"), "--yes"]);
    lab.until(|peers| peers.iter().any(|peer| peer["trust"] == "trusted")).await;
    let mut said = String::new();
    for _ in 0..100 {
        said = ask(at, "GET", "/api/version", "").await.body;
        if said.contains("0.33.0") {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(said, r#"{"version":"0.33.0"}"#);
}
