//! Servers of the OpenAI API behind a gate.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use ollana::internals::exchange::ServerKind;
use serde_json::{Value, json};

use super::fake_ollama::FakeOllama;
use super::node::{Node, node, prompt, read, within};
use super::openai_only::{Flavour, OpenAiOnly, entry, listing};

fn chat(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
}

async fn send(node: &Node, method: &str, path: &str, peer: Option<&str>) -> (StatusCode, String) {
    let mut request = Request::builder().method(method).uri(format!("http://{}{path}", node.listen));
    if let Some(peer) = peer {
        request = request.header("ollana-peer", peer);
    }
    let body = if method == "POST" { Full::from(r#"{"model":"qwen"}"#) } else { Full::<Bytes>::default() };
    read(node.ask(request.body(body).unwrap()).await).await
}

pub async fn a_llama_server_is_lent_and_used_at_v1() {
    let server = OpenAiOnly::start(Flavour::LlamaServer, &["qwen", "/models/m.gguf"]).await;
    let provider = node("gpu1").lends_at(server.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "qwen").await;
    // What is in memory is said beside what there is.
    let peer = user.until_peer(provider.id(), |peer| peer.loaded.len() == 2).await;
    assert_eq!(peer.api, ServerKind::OpenAi);
    let shown = provider.view().ollama();
    assert_eq!((shown.api, shown.server.as_deref()), (Some(ServerKind::OpenAi), Some("llama.cpp")));
    assert!(shown.healthy && shown.lent && shown.version.is_none());

    let answer = within(user.get("/v1/models").await.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(answer, listing(Flavour::LlamaServer, &["qwen", "/models/m.gguf"]));

    let streamed = json!({"model": "qwen", "stream": true, "messages": []});
    let mut answer = within(user.post("/v1/chat/completions", &streamed)).await;
    assert_eq!(answer.headers()["ollana-peer"], "gpu1");
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut events = Vec::new();
    while let Some(frame) = within(answer.frame()).await {
        events.push(frame.unwrap().into_data().unwrap());
    }
    assert_eq!(events.len(), 3, "an event at a time");
    assert_eq!(events[2], "data: [DONE]\n\n");

    for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/rerank", "/v1/messages", "/v1/messages/count_tokens"] {
        let (status, text) = read(user.post(path, &chat("/models/m.gguf")).await).await;
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        assert_eq!(server.count(&format!("POST {path}")), 1 + usize::from(path == "/v1/chat/completions"), "{path}");
    }
    let (status, text) = read(user.post("/v1/chat/completions", &chat("nope")).await).await;
    let error: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, &error["error"]["message"]), (StatusCode::NOT_FOUND, &json!("model 'nope' not found")));
}

pub async fn without_an_ollama_its_api_says_so_and_its_lists_are_empty() {
    let server = OpenAiOnly::start(Flavour::LlamaServer, &["qwen"]).await;
    let provider = node("gpu1").lends_at(server.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "qwen").await;
    for asked in [&user, &provider] {
        for path in ["/api/tags", "/api/ps"] {
            assert_eq!(read(asked.get(path).await).await, (StatusCode::OK, r#"{"models":[]}"#.to_owned()), "{path}");
        }
        let head = Request::head(format!("http://{}/api/tags", asked.listen)).body(Full::default()).unwrap();
        let head = asked.ask(head).await;
        assert_eq!((head.status(), &head.headers()["content-length"]), (StatusCode::OK, &"13".parse().unwrap()));
        for (path, method) in [("/api/version", "GET"), ("/api/generate", "POST"), ("/api/show", "POST")] {
            let (status, text) = send(asked, method, path, None).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}: {text}");
            assert!(text.contains("gpu1") && text.contains("/v1"), "{path}: {text}");
        }
        let (status, text) = send(asked, "POST", "/api/pull", None).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{text}");
    }
    let asked_by_nodes = ["GET /api/version", "GET /api/tags"];
    assert!(server.seen().iter().all(|seen| !seen.line.contains("/api/") || asked_by_nodes.contains(&&*seen.line)));
    assert!(server.count("GET /api/tags") <= 1, "only when it is met");
}

pub async fn what_a_server_has_beside_inference_is_its_owners_alone() {
    for (flavour, own) in [
        (Flavour::LlamaServer, vec![("GET", "/slots"), ("GET", "/props"), ("POST", "/completion")]),
        (Flavour::Vllm, vec![("POST", "/v1/load_lora_adapter")]),
        (Flavour::LmStudio, vec![("GET", "/api/v0/models")]),
    ] {
        let server = OpenAiOnly::start(flavour, &["qwen"]).await;
        let provider = node("gpu1").lends_at(server.url()).start().await;
        let user = node("laptop").dials(provider.mesh).start().await;
        user.until_lent(provider.id(), "qwen").await;
        provider.until_peer(user.id(), |_| true).await;
        // Even one that may change an Ollama's models.
        provider.trust(user.id(), ollana::internals::id::Scope::Manage).await;
        for (method, path) in own {
            let before = server.count(&format!("{method} {path}"));
            let (status, text) = send(&user, method, path, Some("gpu1")).await;
            // As an Ollama answers what it does not have; what it has, this server does not.
            let words = match status.as_u16() {
                404 => "404 page not found",
                405 => "405 method not allowed",
                403 => path,
                other => panic!("{method} {path}: {other} {text}"),
            };
            assert!(text.contains(words), "{method} {path}: {text}");
            assert_eq!(server.count(&format!("{method} {path}")), before, "it never came there");
            let (status, text) = send(&provider, method, path, Some("gpu1")).await;
            assert_eq!(status, StatusCode::OK, "{method} {path}: {text}");
            assert!(text.contains("the owner's"), "{text}");
        }
        for (method, path, expected) in
            [("DELETE", "/v1/models/qwen", 405), ("POST", "/v1/models", 405), ("POST", "/api/pull", 403)]
        {
            let (status, text) = send(&user, method, path, Some("gpu1")).await;
            assert_eq!(status.as_u16(), expected, "{method} {path}: {text}");
            assert_eq!(server.count(&format!("{method} {path}")), 0);
        }
    }
}

pub async fn what_a_peer_sends_it_arrives_as_it_was_written() {
    let server = OpenAiOnly::start(Flavour::Vllm, &["qwen"]).await;
    let provider = node("gpu1").lends_at(server.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "qwen").await;
    let written =
        r#"{"model":"qwen","messages":[],"shift":1,"keep_alive":"1h","options":{"num_gpu":1,"num_gpu":2,"new":3}}"#;
    let answer = within(user.send(http::Method::POST, "/v1/chat/completions", written)).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let seen = server.seen();
    let chat = seen.iter().find(|seen| seen.line == "POST /v1/chat/completions").expect("it came");
    assert_eq!(chat.body, written);
}

pub async fn models_of_both_kinds_are_one_list_and_each_is_asked_what_it_understands() {
    let ollama = FakeOllama::start(&["m"]).await;
    let vllm = OpenAiOnly::start(Flavour::Vllm, &["Org/Big-7B", "m"]).await;
    let studio = OpenAiOnly::start(Flavour::LmStudio, &["small"]).await;
    let gpu1 = node("gpu1").lends(&ollama).start().await;
    let gpu2 = node("gpu2").lends_at(vllm.url()).start().await;
    let user = node("laptop").lends_at(studio.url()).dials(gpu1.mesh).dials(gpu2.mesh).start().await;
    user.until_lent(gpu1.id(), "m").await;
    user.until_lent(gpu2.id(), "Org/Big-7B").await;

    // The user's own server may come later than the others.
    let list = super::node::until("all models", || {
        let ids = user.view().catalogs().iter().map(|catalog| catalog.models.len()).sum::<usize>();
        (ids == 4).then_some(())
    });
    list.await;
    let (status, list) = read(user.get("/v1/models").await).await;
    assert_eq!(status, StatusCode::OK);
    for raw in [entry(Flavour::Vllm, "Org/Big-7B"), entry(Flavour::LmStudio, "small")] {
        assert!(list.contains(&raw), "{list}");
    }
    let parsed: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((parsed["object"].as_str(), parsed["data"].as_array().unwrap().len()), (Some("list"), 3));

    let tags = read(user.get("/api/tags").await).await.1;
    let parsed: Value = serde_json::from_str(&tags).unwrap();
    assert_eq!(parsed["models"].as_array().unwrap().len(), 1, "{tags}");
    assert_eq!(parsed["models"][0]["name"], "m:latest");
    assert_eq!(user.get("/api/version").await.headers()["ollana-peer"], "gpu1");

    for _ in 0..6 {
        let answer = user.post("/api/generate", &prompt("m", 1)).await;
        assert_eq!((answer.status(), &answer.headers()["ollana-peer"]), (StatusCode::OK, &"gpu1".parse().unwrap()));
    }
    for (path, model) in [("/api/generate", "Org/Big-7B"), ("/api/chat", "small")] {
        let (status, text) = read(user.post(path, &chat(model)).await).await;
        let error = json!({"error": format!("model '{model}' not found")}).to_string();
        assert_eq!((status, text), (StatusCode::NOT_FOUND, error));
    }
    for (model, peer) in [("Org/Big-7B", "gpu2"), ("small", "laptop")] {
        let answer = user.post("/v1/chat/completions", &chat(model)).await;
        assert_eq!((answer.status(), &answer.headers()["ollana-peer"]), (StatusCode::OK, &peer.parse().unwrap()));
    }
    // Under one name at both.
    let answer = user.post("/v1/chat/completions", &chat("m")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    // Compared as generously as Ollama compares, and sent as written.
    let (status, _) = read(user.post("/v1/chat/completions", &chat("org/big-7b:latest")).await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    let seen = vllm.seen();
    assert!(seen.last().unwrap().body.contains(r#""org/big-7b:latest""#), "{seen:?}");
}

pub async fn a_node_that_was_chosen_answers_with_its_own_list() {
    let ollama = FakeOllama::start(&["m"]).await;
    let vllm = OpenAiOnly::start(Flavour::Vllm, &["big"]).await;
    let gpu1 = node("gpu1").lends(&ollama).start().await;
    let gpu2 = node("gpu2").lends_at(vllm.url()).start().await;
    let user = node("laptop").dials(gpu1.mesh).dials(gpu2.mesh).start().await;
    user.until_lent(gpu1.id(), "m").await;
    user.until_lent(gpu2.id(), "big").await;
    let own = (StatusCode::OK, listing(Flavour::Vllm, &["big"]));
    assert_eq!(send(&user, "GET", "/v1/models", Some("gpu2")).await, own);
    assert_eq!(send(&user, "GET", "/@gpu2/v1/models", None).await, own);
    assert_eq!(send(&user, "HEAD", "/v1/models", Some("gpu2")).await.0, StatusCode::OK);
    let ollamas = send(&user, "GET", "/v1/models", Some("gpu1")).await;
    assert!(ollamas.1.contains("m:latest") && !ollamas.1.contains("big"), "{ollamas:?}");
    // It was asked for Ollama's list, and has none: that is said, and not that it has no models.
    let (status, text) = send(&user, "GET", "/api/tags", Some("gpu2")).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
}

pub async fn its_errors_come_as_it_says_them() {
    let vllm = OpenAiOnly::start(Flavour::Vllm, &["big"]).await;
    let provider = node("gpu1").lends_at(vllm.url()).start().await;
    let user = node("laptop").dials(provider.mesh).start().await;
    user.until_lent(provider.id(), "big").await;
    // The list is as old as the last look.
    vllm.models(&["bigger"]);
    let direct = json!({"error":{"message":"The model `big` does not exist.","type":"NotFoundError","param":"model","code":404}});
    let (status, text) = read(user.post("/v1/chat/completions", &chat("big")).await).await;
    assert_eq!((status, text), (StatusCode::NOT_FOUND, direct.to_string()));
    let (status, text) = send(&user, "GET", "/v1/models/big", None).await;
    assert_eq!((status, text.as_str()), (StatusCode::NOT_FOUND, r#"{"detail":"Not Found"}"#));
}
