//! Changing models through the mesh: by whom, at which of several nodes, and how it is seen while it goes on.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use ollana::internals::id::Scope;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::fake_ollama::FakeOllama;
use super::node::{Node, node, prompt, read, until, within};

/// Two providers, gpu1 and gpu2, and a node without an Ollama that may change models where it is told.
struct Lab {
    ollamas: [FakeOllama; 2],
    providers: [Node; 2],
    user: Node,
}

impl Lab {
    async fn start(manage: [bool; 2]) -> Self {
        let ollamas = [FakeOllama::start(&["m"]).await, FakeOllama::start(&["m"]).await];
        let providers = [node("gpu1").lends(&ollamas[0]).start().await, node("gpu2").lends(&ollamas[1]).start().await];
        let user = node("laptop").dials(providers[0].mesh).dials(providers[1].mesh).start().await;
        let lab = Self { ollamas, providers, user };
        for provider in &lab.providers {
            lab.user.until_lent(provider.id(), "m").await;
        }
        lab.allow(manage).await;
        lab
    }

    /// Gives `manage` where it says so, and waits until the user knows: until what it may change has its own answer.
    async fn allow(&self, manage: [bool; 2]) {
        let wanted = match manage {
            [false, false] => StatusCode::FORBIDDEN,
            [true, true] => StatusCode::CONFLICT,
            _ => StatusCode::NOT_FOUND,
        };
        for (provider, manage) in self.providers.iter().zip(manage) {
            provider.trust(self.user.id(), if manage { Scope::Manage } else { Scope::Infer }).await;
        }
        within(async {
            while self.user.send(Method::DELETE, "/api/delete", r#"{"model":"nope"}"#).await.status() != wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
    }

    fn has(&self, n: usize, model: &str) -> bool {
        let mut has = false;
        self.ollamas[n].models(|models| has = models.iter().any(|known| known.name == model));
        has
    }
}

fn digest_of(blob: &[u8]) -> String {
    format!("sha256:{}", data_encoding::HEXLOWER.encode(&Sha256::digest(blob)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_and_its_blobs_go_to_the_only_node_that_allows_it() {
    let lab = Lab::start([false, true]).await;
    let blob = vec![7u8; 3 * 1024 * 1024];
    let digest = digest_of(&blob);
    let path = format!("/api/blobs/{digest}");
    assert_eq!(within(lab.user.send(Method::HEAD, &path, "")).await.status(), StatusCode::NOT_FOUND);
    let answer = within(lab.user.send(Method::POST, &path, blob.clone())).await;
    assert_eq!((answer.status(), answer.headers()["ollana-peer"].to_str().unwrap()), (StatusCode::CREATED, "gpu2"));
    assert_eq!(within(lab.user.send(Method::HEAD, &path, "")).await.status(), StatusCode::OK);
    // It is there already: Ollama answers before it has read anything, and the answer comes through.
    for _ in 0..5 {
        assert_eq!(within(lab.user.send(Method::POST, &path, blob.clone())).await.status(), StatusCode::OK);
    }
    let create = json!({"model": "mine", "files": {"m.gguf": digest}});
    let (status, said) = read(within(lab.user.post("/api/create", &create)).await).await;
    assert!(status.is_success() && said.ends_with("{\"status\":\"success\"}\n"), "{said}");
    assert!(lab.has(1, "mine:latest") && !lab.has(0, "mine:latest"));
    assert_eq!(lab.ollamas[0].counts().of(&path), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_just_made_can_be_used_at_once() {
    let lab = Lab::start([true, true]).await;
    for n in 0..10 {
        let (at, name) = (format!("gpu{}", n % 2 + 1), format!("copy{n}"));
        let copy = json!({"source": "m", "destination": name}).to_string();
        let copied = within(lab.user.send(Method::POST, &format!("/@{at}/api/copy"), copy)).await;
        assert_eq!(copied.status(), StatusCode::OK);
        let shown = within(lab.user.post("/api/show", &json!({"model": name}))).await;
        assert_eq!(
            (shown.status(), shown.headers()["ollana-peer"].to_str().unwrap()),
            (StatusCode::OK, &*at),
            "{name}"
        );
        let (status, said) = read(within(lab.user.post("/api/generate", &prompt(&name, 1))).await).await;
        assert_eq!(status, StatusCode::OK, "{said}");
        let unknown = within(lab.user.post("/api/show", &json!({"model": "nope"}))).await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_two_that_allow_it_one_has_to_be_chosen() {
    let lab = Lab::start([true, true]).await;
    let pull = json!({"model": "new", "stream": false});
    let (status, said) = read(within(lab.user.post("/api/pull", &pull)).await).await;
    assert_eq!(status, StatusCode::CONFLICT);
    let said: Value = serde_json::from_str(&said).unwrap();
    let said = said["error"].as_str().unwrap();
    let first = if said.contains("gpu1, gpu2") { "gpu1" } else { "gpu2" };
    let typed = format!("OLLAMA_HOST={}/@{first} ollama pull", lab.user.listen);
    assert!(said.contains(&typed) && said.contains("`ollana-peer: "), "{said}");
    assert!(!lab.has(0, "new:latest") && !lab.has(1, "new:latest"));
    let answer = within(lab.user.post("/@gpu2/api/pull", &pull)).await;
    assert_eq!((answer.status(), answer.headers()["ollana-peer"].to_str().unwrap()), (StatusCode::OK, "gpu2"));
    assert!(lab.has(1, "new:latest") && !lab.has(0, "new:latest"));
    let id = lab.providers[0].id().to_string();
    let chosen = format!("/@{}/api/delete", &id[..9]);
    assert_eq!(within(lab.user.send(Method::DELETE, &chosen, r#"{"model":"m"}"#)).await.status(), StatusCode::OK);
    assert!(!lab.has(0, "m:latest") && lab.has(1, "m:latest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_scope_infer_nothing_is_changed_and_the_refusal_says_what_to_type() {
    let lab = Lab::start([false, false]).await;
    let digest = digest_of(b"blob");
    let blob = format!("/api/blobs/{digest}");
    for prefix in ["", "/@gpu1"] {
        for (method, path, body) in [
            (Method::POST, "/api/pull", r#"{"model":"new"}"#),
            (Method::POST, "/api/push", r#"{"model":"m"}"#),
            (Method::POST, "/api/create", r#"{"model":"mine","from":"m"}"#),
            (Method::POST, "/api/copy", r#"{"source":"m","destination":"n"}"#),
            (Method::DELETE, "/api/delete", r#"{"model":"m"}"#),
            (Method::POST, &blob, "blob"),
            (Method::HEAD, &blob, ""),
        ] {
            let answer = within(lab.user.send(method.clone(), &format!("{prefix}{path}"), body)).await;
            let (status, said) = read(answer).await;
            assert_eq!(status, StatusCode::FORBIDDEN, "{method} {prefix}{path}");
            if method != Method::HEAD {
                assert!(said.contains("ollana trust laptop --scope manage"), "{said}");
            }
        }
    }
    for ollama in &lab.ollamas {
        let counts = ollama.counts();
        assert!(
            !["pull", "push", "create", "copy", "delete"].iter().any(|path| counts.of(&format!("/api/{path}")) > 0)
        );
        assert_eq!(counts.of(&blob), 0);
    }
    assert!(lab.has(0, "m:latest") && lab.has(1, "m:latest"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_progress_of_a_pull_comes_line_by_line_when_it_is_said() {
    let lab = Lab::start([true, false]).await;
    let pace = Duration::from_millis(120);
    lab.ollamas[0].set(|settings| settings.pull_pace = pace);
    let begun = Instant::now();
    let mut answer = within(lab.user.post("/api/pull", &json!({"model": "new"}))).await;
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let mut came = Vec::new();
    while let Some(frame) = within(answer.frame()).await {
        let line = frame.unwrap().into_data().unwrap();
        let line: Value = serde_json::from_slice(&line).expect("a line at a time");
        came.push((begun.elapsed(), line["status"].as_str().unwrap().to_owned()));
    }
    assert!(came.len() > 8 && came.last().unwrap().1 == "success", "{came:?}");
    for (n, (at, status)) in came.iter().enumerate() {
        // None before it was said; that none waits for another is seen at the first ones, long before the last is said.
        assert!(*at >= pace * u32::try_from(n + 1).unwrap(), "{n}: {status} at {at:?}");
    }
    let (early, last) = (came[2].0, came.last().unwrap().0);
    assert!(early + pace * 3 < last, "{came:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_whose_client_goes_away_ends_at_the_ollama() {
    let lab = Lab::start([true, false]).await;
    lab.ollamas[0].set(|settings| settings.pull_pace = Duration::from_millis(200));
    let mut answer = within(lab.user.post("/api/pull", &json!({"model": "new"}))).await;
    within(answer.frame()).await.unwrap().unwrap();
    let before = lab.ollamas[0].counts().aborted;
    let gone = Instant::now();
    drop(answer);
    within(lab.ollamas[0].until(|counts| counts.aborted > before)).await;
    assert!(gone.elapsed() < Duration::from_secs(1), "{:?}", gone.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_whose_only_node_has_just_stopped_is_out_of_reach_and_not_unknown() {
    let lab = Lab::start([true, false]).await;
    let copy = json!({"source": "m", "destination": "only1"});
    assert_eq!(within(lab.user.post("/api/copy", &copy)).await.status(), StatusCode::OK);
    lab.user.until_lent(lab.providers[0].id(), "only1").await;
    let Lab { providers: [one, _two], user, ollamas } = lab;
    let id = one.id();
    let _stopped = one.stop().await;
    until("it is gone", || user.peer(id).filter(|peer| peer.models.is_empty())).await;
    let answer = within(user.post("/api/generate", &prompt("only1", 1))).await;
    assert!(answer.headers().contains_key("retry-after"));
    let (status, said) = read(answer).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(said.contains("gpu1 cannot be reached") && !said.contains("gpu2"), "{said}");
    let (status, said) = read(within(user.post("/@gpu1/api/show", &json!({"model": "m"}))).await).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{said}");
    assert_eq!(within(user.post("/api/generate", &prompt("m", 1))).await.status(), StatusCode::OK);
    assert_eq!(within(user.post("/api/generate", &prompt("nope", 1))).await.status(), StatusCode::NOT_FOUND);
    drop(ollamas);
}
