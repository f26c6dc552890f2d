//! What of a peer's body reaches Ollama.

use bytes::Bytes;
use http::StatusCode;
use http_body_util::BodyExt as _;
use ollana::internals::exchange::{Body, ExchangeError};
use ollana::internals::gate::Caller;
use ollana::internals::id::Scope;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{Provider, by_hand, other, peer, read, request};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn post(path: &str, body: Body) -> http::Request<Body> {
    http::Request::post(path).body(body).unwrap()
}

#[tokio::test]
async fn a_key_that_comes_twice_is_refused_and_never_acted_on() {
    let provider = Provider::start(&["m", "n"]).await;
    for body in [
        r#"{"model":"m","model":"n","prompt":"x"}"#,
        r#"{"model":"m","prompt":"x","Model":"m"}"#,
        r#"{"model":"m","prompt":"x","\u006d\u006fdel":"n"}"#,
        r#"{"name":"m","NAME":"n"}"#,
        r#"{"model":"m","keep_alive":1,"\u212aeep_alive":0,"prompt":"x"}"#,
        r#"{"model":"m","options":{},"prompt":"x","option\u017f":{"num_ctx":1}}"#,
        r#"{"model":"m","tools":[],"tools":[],"prompt":"x"}"#,
    ] {
        // In one frame, in two, and byte by byte.
        for step in [body.len(), body.len() / 2 + 1, 1] {
            let (frames, body_in) = by_hand();
            let serving = tokio::spawn(provider.gate.serve(peer(Scope::Infer), post("/api/generate", body_in)));
            for piece in body.as_bytes().chunks(step) {
                // The gate hangs up as soon as it has seen enough.
                let _ = frames.send(Ok(Bytes::copy_from_slice(piece))).await;
            }
            drop(frames);
            let answer = read(serving.await.unwrap().unwrap()).await;
            assert_eq!(
                (answer.status, answer.refusal.as_deref()),
                (StatusCode::BAD_REQUEST, Some("doubled-key")),
                "{body}"
            );
        }
    }
    let counts = provider.fake.until(|counts| counts.running == 0).await;
    assert_eq!(counts.tokens, 0);
    assert!(counts.seen.iter().all(|seen| !seen.target.contains("generate") || !seen.complete));
}

#[tokio::test]
async fn the_end_is_withheld_until_the_top_level_was_read_through() {
    let provider = Provider::start(&["m"]).await;
    let (frames, body) = by_hand();
    let serving = tokio::spawn(provider.gate.serve(peer(Scope::Infer), post("/api/generate", body)));
    frames.send(Ok(Bytes::from_static(br#"{"model":"m","prompt":"x""#))).await.unwrap();
    provider.fake.until(|counts| counts.of("/api/generate") == 1).await;
    frames.send(Ok(Bytes::from_static(br#","name":"x:cloud"} "#))).await.unwrap();
    let answer = read(serving.await.unwrap().unwrap()).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("cloud")));
    let counts = provider.fake.until(|counts| counts.aborted == 1).await;
    assert_eq!(counts.tokens, 0);
    assert!(!counts.last("/api/generate").unwrap().complete, "Ollama never saw the end");
}

#[tokio::test]
async fn what_cannot_be_read_is_blanked_and_ollama_says_what_is_wrong() {
    let provider = Provider::start(&["m"]).await;
    let sent = r#"{"model":"m","a":tru3,"model":"x:cloud","prompt":"secret"}"#;
    let answer = provider.ask(peer(Scope::Infer), request("POST", "/api/generate", sent)).await;
    assert_eq!((answer.status, answer.refusal), (StatusCode::BAD_REQUEST, None), "{}", answer.body);
    let seen = provider.fake.counts().last("/api/generate").unwrap().clone();
    let mut expected = r#"{"model":"m","a":tru3"#.to_owned();
    expected.push_str(&" ".repeat(sent.len() - expected.len()));
    assert_eq!((seen.length, seen.sha256), (sent.len() as u64, sha256(expected.as_bytes())));
}

#[tokio::test]
async fn what_follows_the_value_passes_as_it_is() {
    let provider = Provider::start(&["m"]).await;
    let answer = provider
        .ask(peer(Scope::Infer), request("POST", "/api/generate", r#"{"model":"m","prompt":"x"} {"model":"x:cloud"}"#))
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn a_long_body_streams_through_unchanged() {
    let provider = Provider::start(&["m"]).await;
    let image = "aGVsbG8=\\n".repeat(400_000);
    let body =
        format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x","images":["{image}"]}}],"stream":false}}"#);
    for caller in [peer(Scope::Infer), Caller::Owner] {
        let (frames, body_in) = by_hand();
        let mut asked = post("/api/chat", body_in);
        asked.headers_mut().insert("content-length", body.len().into());
        let serving = tokio::spawn(provider.gate.serve(caller, asked));
        for piece in body.as_bytes().chunks(10_007) {
            frames.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        drop(frames);
        let answer = read(serving.await.unwrap().unwrap()).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        let seen = provider.fake.counts().last("/api/chat").unwrap().clone();
        assert_eq!((seen.length, seen.sha256), (body.len() as u64, sha256(body.as_bytes())));
    }
}

#[tokio::test]
async fn both_sides_may_talk_at_once_where_the_owner_sends_no_json() {
    let provider = Provider::start(&[]).await;
    let (frames, body) = by_hand();
    let mut asked = post("/fake/echo", body);
    asked.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    // The head comes although nothing of the body has.
    let mut answer = provider.gate.serve(Caller::Owner, asked).await.unwrap();
    for piece in ["\0{\"model\":\"x:cloud\"", "}{{]", "\u{1}end"] {
        frames.send(Ok(Bytes::from(piece))).await.unwrap();
        let echoed = answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(echoed, piece);
    }
    drop(frames);
    assert!(answer.body_mut().frame().await.is_none());
}

#[tokio::test]
async fn a_peer_that_goes_away_in_its_request_leaves_nothing_behind() {
    let provider = Provider::start(&["m"]).await;
    let (frames, body) = by_hand();
    let serving = tokio::spawn(provider.gate.serve(peer(Scope::Infer), post("/api/generate", body)));
    frames.send(Ok(Bytes::from_static(br#"{"model":"m","prompt":"x""#))).await.unwrap();
    provider.fake.until(|counts| counts.of("/api/generate") == 1).await;
    frames.send(Err(ExchangeError::Body("reset".into()))).await.unwrap();
    let error = serving.await.unwrap().unwrap_err();
    assert!(matches!(error, ExchangeError::Body(_)), "{error}");
    let counts = provider.fake.until(|counts| counts.aborted == 1).await;
    assert_eq!(counts.tokens, 0);
}

#[tokio::test]
async fn an_early_answer_comes_through_the_gate() {
    let provider = Provider::start(&["m"]).await;
    let blob = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(provider.ask(peer(Scope::Manage), request("POST", blob, "hello")).await.status, StatusCode::CREATED);
    // The rest of this upload never comes. Go's server reads 256 KiB of what nobody wants before it answers.
    let (frames, body) = by_hand();
    frames.send(Ok(Bytes::from(vec![0; 300 << 10]))).await.unwrap();
    let answer = provider.ask(peer(Scope::Manage), post(blob, body)).await;
    assert_eq!(answer.status, StatusCode::OK);
    tokio::time::timeout(std::time::Duration::from_secs(1), frames.closed()).await.expect("the upload is let go");
}

#[tokio::test]
async fn refusals_have_the_shape_of_the_api_that_was_asked() {
    let provider = Provider::start(&["m"]).await;
    let twice = r#"{"model":"m","model":"m"}"#;
    let message = r#""model" comes twice in the body"#;
    let ollamas = provider.ask(peer(Scope::Infer), request("POST", "/api/chat", twice)).await;
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ollamas.body).unwrap(), json!({"error": message}));
    let openais = provider.ask(peer(Scope::Infer), request("POST", "/v1/chat/completions", twice)).await;
    let expected = json!({"error":{"message":message,"type":"invalid_request_error","param":null,"code":null}});
    assert_eq!(serde_json::from_str::<serde_json::Value>(&openais.body).unwrap(), expected);
}

#[tokio::test]
async fn what_one_peer_makes_the_gate_hold_is_bounded_and_takes_nothing_from_the_others() {
    let provider = Provider::start(&["m"]).await;
    let image = Bytes::from(vec![b'x'; 15 << 20]);
    let late = |caller| {
        let (frames, body) = by_hand();
        frames.try_send(Ok(Bytes::from_static(br#"{"images":[""#))).unwrap();
        frames.try_send(Ok(image.clone())).unwrap();
        (frames, tokio::spawn(provider.gate.serve(caller, post("/api/generate", body))))
    };
    let mut held: Vec<_> = (0..4).map(|_| late(peer(Scope::Infer))).collect();
    for (frames, _) in &held {
        // All was read: there is room for another one.
        while frames.capacity() < 16 {
            tokio::task::yield_now().await;
        }
    }
    let (_last, refused) = late(peer(Scope::Infer));
    let answer = read(refused.await.unwrap().unwrap()).await;
    let got = (answer.status, answer.refusal.as_deref());
    assert_eq!(got, (StatusCode::SERVICE_UNAVAILABLE, Some("no-room")), "{}", answer.body);
    assert_eq!(answer.headers["retry-after"], "1");
    // Who names the model first needs none, the owner has no such limit, and other peers have their own.
    let first = br#"{"model":"m","prompt":"x"}"#;
    assert_eq!(provider.ask(peer(Scope::Infer), request("POST", "/api/generate", &first[..])).await.status, 200);
    let long = [&br#"{"images":[""#[..], &image, br#""],"model":"m","prompt":"x"}"#].concat();
    for caller in [Caller::Owner, Caller::Guest, other(1, true), other(2, false)] {
        let answer = provider.ask(caller.clone(), request("POST", "/api/generate", long.clone())).await;
        assert_eq!(answer.status, 200, "{caller:?}: {}", answer.body);
    }
    // What is forwarded gives its room back.
    for _ in 0..2 {
        let (frames, served) = held.pop().unwrap();
        frames.send(Ok(Bytes::from_static(br#""],"model":"m","prompt":"x"}"#))).await.unwrap();
        drop(frames);
        assert_eq!(served.await.unwrap().unwrap().status(), StatusCode::OK);
        let long = request("POST", "/api/generate", long.clone());
        assert_eq!(provider.ask(peer(Scope::Infer), long).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn whom_nobody_trusts_leaves_room_to_those_who_are_trusted_however_many_keys_they_have() {
    let provider = Provider::start(&["m"]).await;
    let image = Bytes::from(vec![b'x'; 15 << 20]);
    let mut held = Vec::new();
    // More than all of them may hold.
    for n in 0..9 {
        let (frames, body) = by_hand();
        frames.try_send(Ok(Bytes::from_static(br#"{"images":[""#))).unwrap();
        frames.try_send(Ok(image.clone())).unwrap();
        let served = tokio::spawn(provider.gate.serve(other(n, false), post("/api/generate", body)));
        while frames.capacity() < 16 && !served.is_finished() {
            tokio::task::yield_now().await;
        }
        held.push((frames, served));
    }
    let (_, last) = held.pop().unwrap();
    assert_eq!(read(last.await.unwrap().unwrap()).await.refusal.as_deref(), Some("no-room"));
    let long = [&br#"{"images":[""#[..], &image, br#""],"model":"m","prompt":"x"}"#].concat();
    let answer = provider.ask(other(100, true), request("POST", "/api/generate", long)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
}

#[tokio::test]
async fn a_flood_of_models_that_are_not_there_makes_few_lists() {
    let provider = Provider::start(&["m"]).await;
    let before = provider.fake.counts().of("/api/tags");
    let since = std::time::Instant::now();
    let asked = (0..300).map(|n| {
        let body = format!(r#"{{"model":"none{n}","prompt":"x"}}"#);
        provider.gate.serve(peer(Scope::Infer), request("POST", "/api/generate", body))
    });
    for answer in futures_util::future::join_all(asked).await {
        assert_eq!(answer.unwrap().status(), StatusCode::NOT_FOUND, "in Ollama's own words");
    }
    let listed = provider.fake.counts().of("/api/tags") - before;
    // Ten a second, one that was under way, and the watch's own looks.
    let most = 3 + u64::try_from(since.elapsed().as_millis() / 100).unwrap() + since.elapsed().as_secs() * 4;
    assert!(listed <= most, "{listed} lists in {:?}", since.elapsed());
}

#[tokio::test]
async fn a_head_does_not_promise_ollama_a_body_that_is_not_there() {
    // The next request on that connection, whoever's it is, would be read as the rest of this one.
    let provider = Provider::start(&["m"]).await;
    for lengths in [&["30"][..], &["0", "30"]] {
        let mut asked = request("POST", "/fake/sink", "");
        for length in lengths {
            asked.headers_mut().append("content-length", length.parse().unwrap());
        }
        let asked = provider.gate.serve(Caller::Owner, asked);
        let answer = tokio::time::timeout(std::time::Duration::from_secs(5), asked).await.expect("it is answered");
        assert_eq!(read(answer.unwrap()).await.status, StatusCode::OK, "{lengths:?}");
        let seen = provider.fake.counts().last("/fake/sink").unwrap().clone();
        assert_eq!((seen.length, seen.headers.get_all("content-length").iter().count()), (0, 1), "{lengths:?}");
    }
}
