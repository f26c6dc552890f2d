//! One name, two digests: a node keeps to the weights that it used first.

use http::StatusCode;
use ollana::internals::control::models;

use super::fake_ollama::FakeOllama;
use super::node::{Node, node, prompt, read, until, within};

async fn ollama(digest: &str) -> FakeOllama {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.models(|models| models[0].digest = digest.repeat(64));
    ollama
}

/// Which node answers for the model; nobody is a 503.
async fn who(user: &Node) -> Option<String> {
    let answer = within(user.post("/api/embed", &prompt("m", 1))).await;
    let peer = answer.headers()["ollana-peer"].to_str().unwrap().to_owned();
    let (status, said) = read(answer).await;
    match status {
        StatusCode::SERVICE_UNAVAILABLE => {
            assert!(said.contains("stands for different weights"), "{said}");
            None
        }
        _ => Some(peer),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_stands_for_the_weights_used_first_until_a_person_chooses_others() {
    let (one, two) = (ollama("a").await, ollama("b").await);
    let first = node("gpu1").lends(&one).start().await;
    let second = node("gpu2").lends(&two).start().await;
    let user = node("laptop").dials(first.mesh).dials(second.mesh).start().await;
    user.until_lent(first.id(), "m").await;
    user.until_lent(second.id(), "m").await;
    assert!(models(user.view())[0].conflict && models(user.view())[0].kept.is_none());
    let used = who(&user).await.unwrap();
    let (at, other, kept) = if used == "gpu1" { ("gpu1", "gpu2", "a") } else { ("gpu2", "gpu1", "b") };
    for _ in 0..5 {
        assert_eq!(who(&user).await.unwrap(), at);
    }
    let shown = models(user.view()).remove(0);
    assert_eq!((&shown.digest, shown.kept.as_ref()), (&kept.repeat(64), Some(&kept.repeat(64))));
    let (_, list) = read(within(user.get("/api/tags")).await).await;
    assert!(list.contains(&kept.repeat(64)), "the list shows what is used: {list}");

    // The node starts again while those who have these weights are away.
    let (used, left) = if at == "gpu1" { (first, second) } else { (second, first) };
    let used = used.stop().await;
    let user = user.stop().await.start().await;
    user.until_lent(left.id(), "m").await;
    assert_eq!(who(&user).await, None);
    assert_eq!(models(user.view())[0].awaited[0].as_str(), at);
    let answer = within(user.post(&format!("/@{other}/api/embed"), &prompt("m", 1))).await;
    assert_eq!(answer.status(), StatusCode::OK, "for one request");

    let used = used.lends(if at == "gpu1" { &one } else { &two }).start().await;
    user.until_lent(used.id(), "m").await;
    assert_eq!(who(&user).await.unwrap(), at);

    let error = user.keep("m", "gpu3").await.unwrap_err().to_string();
    assert!(error.contains("gpu3"), "{error}");
    let error = user.keep("nope", other).await.unwrap_err().to_string();
    assert!(error.contains("has no model"), "{error}");
    let kept = user.keep("M", other).await.unwrap();
    assert_eq!((kept.model.as_str(), kept.peer.as_str()), ("m:latest", other));
    for _ in 0..5 {
        assert_eq!(who(&user).await.unwrap(), other);
    }

    // They hold something newer now: the name means that, and nobody is waited for.
    if other == "gpu1" { &one } else { &two }.models(|models| models[0].digest = "c".repeat(64));
    until("it has the new ones", || {
        let shown = models(user.view()).remove(0);
        shown.nodes.iter().any(|node| node.digest.starts_with('c')).then_some(())
    })
    .await;
    assert!(who(&user).await.is_some());
}
