//! What of a peer's compressed body reaches Ollama: the JSON that was read in it.

use bytes::Bytes;
use http::StatusCode;
use ollana::internals::exchange::Body;
use ollana::internals::gate::Caller;
use ollana::internals::id::Scope;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sha2::{Digest as _, Sha256};

use crate::{Provider, by_hand, peer, read, request};

fn packed(text: &str) -> Vec<u8> {
    compress_to_vec(text.as_bytes(), CompressionLevel::Fastest)
}

fn post(path: &str, body: Vec<u8>) -> http::Request<Body> {
    let mut request = request("POST", path, body);
    request.headers_mut().insert("content-encoding", "zstd".parse().unwrap());
    request
}

fn chat(model: &str) -> String {
    format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"input":"x","prompt":"x"}}"#)
}

const ROUTES: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];

#[tokio::test]
async fn ollama_is_given_the_json_that_was_read() {
    let provider = Provider::start(&["m"]).await;
    let text = chat("m");
    for path in ROUTES {
        let answer = provider.ask(peer(Scope::Infer), post(path, packed(&text))).await;
        assert_eq!((answer.status, answer.refusal), (StatusCode::OK, None), "{path} {}", answer.body);
        let seen = provider.fake.counts().last(path).unwrap().clone();
        let sum: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((seen.length, seen.sha256), (text.len() as u64, sum), "{path}");
        assert!(!seen.headers.contains_key("content-encoding"));
    }
    // The owner's passes as it is.
    let sent = packed(&text);
    let mut asked = post("/fake/sink", sent.clone());
    *asked.uri_mut() = "/fake/sink?hash=1".parse().unwrap();
    let answer = provider.ask(Caller::Owner, asked).await;
    assert!(answer.body.contains(&format!(r#""bytes":{}"#, sent.len())), "{}", answer.body);
    assert_eq!(provider.fake.counts().last("/fake/sink").unwrap().headers["content-encoding"], "zstd");
}

#[tokio::test]
async fn the_rules_are_those_of_plain_json() {
    let provider = Provider::start(&["m"]).await;
    for (path, text, status, refusal) in [
        ("/v1/chat/completions", chat("x:cloud"), 403, "cloud"),
        ("/v1/messages", chat("x:cloud"), 403, "cloud"),
        ("/v1/%72esponses", chat("x:cloud"), 403, "cloud"),
        ("/v1/chat/completions", r#"{"model":"m","prompt":"x","MODEL":"m"}"#.to_owned(), 400, "doubled-key"),
        ("/v1/messages", r#"{"model":"m","tools":[{"type":"web_search_20250305"}]}"#.to_owned(), 403, "web-search"),
    ] {
        for step in [usize::MAX, 3] {
            let (frames, body) = by_hand();
            let mut asked = http::Request::post(path).header("content-encoding", "zstd").body(body).unwrap();
            asked.headers_mut().insert("content-length", packed(&text).len().into());
            let serving = tokio::spawn(provider.gate.serve(peer(Scope::Infer), asked));
            for piece in packed(&text).chunks(step) {
                let _ = frames.send(Ok(Bytes::copy_from_slice(piece))).await;
            }
            drop(frames);
            let answer = read(serving.await.unwrap().unwrap()).await;
            assert_eq!((answer.status.as_u16(), answer.refusal.as_deref()), (status, Some(refusal)), "{path} {text}");
        }
    }
    assert_eq!(provider.fake.counts().tokens, 0);
}

#[tokio::test]
async fn what_cannot_be_decompressed_is_refused() {
    let provider = Provider::start(&["m"]).await;
    let mut damaged = packed(&chat("m"));
    damaged[0] ^= 1;
    let cut = packed(&chat("m"))[..20].to_vec();
    // More than Ollama takes, in a few kilobytes; the model is known long before.
    let bomb = packed(&format!(r#"{{"model":"m","prompt":"{}"}}"#, "x".repeat(21 << 20)));
    assert!(bomb.len() < 64 << 10);
    for body in [damaged, cut, bomb, b"{}".to_vec()] {
        let answer = provider.ask(peer(Scope::Infer), post("/v1/completions", body)).await;
        let got = (answer.status, answer.refusal.as_deref());
        assert_eq!(got, (StatusCode::BAD_REQUEST, Some("unreadable")), "{}", answer.body);
        assert!(answer.body.contains("zstd") || answer.body.contains("20 MiB"), "{}", answer.body);
    }
    let counts = provider.fake.until(|counts| counts.running == 0).await;
    assert_eq!(counts.tokens, 0);
}

#[tokio::test]
async fn where_ollama_does_not_decompress_nothing_is_decompressed() {
    let provider = Provider::start(&["m"]).await;
    // It is no JSON, and Ollama says so.
    for path in ["/api/generate", "/api/chat", "/v1/images/generations"] {
        let answer = provider.ask(peer(Scope::Infer), post(path, packed(&chat("x:cloud")))).await;
        assert!(answer.status.is_client_error() && answer.refusal.is_none(), "{path} {}", answer.body);
    }
    for coding in ["Zstd", "zstd, zstd", "gzip, zstd"] {
        let mut asked = post("/v1/completions", packed(&chat("x:cloud")));
        asked.headers_mut().insert("content-encoding", coding.parse().unwrap());
        let answer = provider.ask(peer(Scope::Infer), asked).await;
        assert!(answer.status.is_client_error(), "{coding} {}", answer.body);
    }
    // Of a path that is not known nobody knows what it does.
    let answer = provider.ask(peer(Scope::Infer), post("/v2/unheard/of", packed(&chat("m")))).await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::NOT_FOUND, "404 page not found"));
    assert_eq!(provider.fake.counts().of("/v2/unheard/of"), 0);
    assert_eq!(provider.fake.counts().tokens, 0);
}

#[tokio::test]
async fn no_more_is_decompressed_at_once_than_there_is_room_for() {
    let provider = Provider::start(&["m"]).await;
    let whole = packed(&chat("m"));
    let begun = || {
        let (frames, body) = by_hand();
        let mut asked = post("/v1/chat/completions", Vec::new());
        *asked.body_mut() = body;
        (frames, tokio::spawn(provider.gate.serve(peer(Scope::Infer), asked)))
    };
    let mut begun_all = Vec::new();
    for _ in 0..4 {
        let (frames, served) = begun();
        frames.send(Ok(Bytes::copy_from_slice(&whole[..whole.len() - 1]))).await.unwrap();
        while frames.capacity() < 16 {
            tokio::task::yield_now().await;
        }
        begun_all.push((frames, served));
    }
    let answer = provider.ask(peer(Scope::Infer), post("/v1/chat/completions", whole.clone())).await;
    assert_eq!(answer.refusal.as_deref(), Some("no-room"), "{}", answer.body);
    // One that was read gives its room back, though it is still answered.
    let (frames, served) = begun_all.pop().unwrap();
    frames.send(Ok(Bytes::copy_from_slice(&whole[whole.len() - 1..]))).await.unwrap();
    drop(frames);
    let answering = served.await.unwrap().unwrap();
    let answer = provider.ask(peer(Scope::Infer), post("/v1/chat/completions", whole)).await;
    assert_eq!((answer.status, answer.refusal), (StatusCode::OK, None), "{}", answer.body);
    drop(answering);
}
