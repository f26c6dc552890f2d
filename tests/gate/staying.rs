//! How long a model stays in memory is not for a peer with scope `infer` to say.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use ollana::internals::gate::Caller;
use ollana::internals::id::Scope;
use ollana::internals::ollama::State;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::{Provider, by_hand, peer, post, read, request};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn is_loaded(provider: &Provider) -> bool {
    let mut loaded = false;
    provider.fake.models(|models| loaded = models.iter().any(|model| model.loaded));
    loaded
}

#[tokio::test]
async fn a_peer_does_not_unload_what_others_use() {
    let provider = Provider::start(&["m"]).await;
    let load = || post("/api/generate", &json!({"model":"m"}));
    assert!(provider.ask(peer(Scope::Infer), load()).await.body.contains("load"));
    assert!(is_loaded(&provider));
    for (path, order) in [
        ("/api/generate", r#"{"model":"m","keep_alive":0}"#),
        ("/api/generate", r#"{"model":"m","keep_alive":"0s","prompt":"","stream":false}"#),
        ("/api/generate", r#"{"\u212aEEP_aliv\u0065":-0.0,"model":"m"}"#),
        ("/api/chat", r#"{"model":"m","messages":[],"keep_alive":"0"}"#),
        ("/api/%63hat", r#"{"model":"m","keep_alive":0}"#),
    ] {
        let answer = provider.ask(peer(Scope::Infer), request("POST", path, order)).await;
        assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("unload")), "{order}");
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(error["error"].as_str().unwrap().contains("ollana trust laptop --scope manage"), "{error}");
        assert!(is_loaded(&provider), "{order}");
    }
    // Nor is it loaded by an order to unload.
    provider.fake.models(|models| models.iter_mut().for_each(|model| model.loaded = false));
    let stop = || post("/api/generate", &json!({"model":"m","keep_alive":0}));
    assert_eq!(provider.ask(peer(Scope::Infer), stop()).await.status, StatusCode::FORBIDDEN);
    assert!(!is_loaded(&provider));

    for caller in [peer(Scope::Manage), Caller::Owner] {
        assert!(provider.ask(caller.clone(), load()).await.status.is_success());
        assert!(provider.ask(caller, stop()).await.body.contains("unload"));
        assert!(!is_loaded(&provider));
    }
}

#[tokio::test]
async fn what_a_peer_says_of_it_does_not_reach_ollama_and_all_else_does() {
    let provider = Provider::start(&["m"]).await;
    let texts = [
        (r#"{"model":"m","keep_alive":-1,"prompt":"x"}"#, r#"{"model":"m","keep_aliv ":-1,"prompt":"x"}"#),
        (
            r#"{"keep_aliv\u0065":"24h","model":"m","prompt":"x"}"#,
            r#"{"keep_aliv\u0060":"24h","model":"m","prompt":"x"}"#,
        ),
        (r#"{"model":"m","prompt":"x","x":{"keep_alive":1}}"#, r#"{"model":"m","prompt":"x","x":{"keep_alive":1}}"#),
    ];
    for (written, sent) in texts {
        for (caller, expected) in [(peer(Scope::Infer), sent), (peer(Scope::Manage), written), (Caller::Owner, written)]
        {
            for step in [written.len(), 1] {
                let (frames, body) = by_hand();
                let asked = http::Request::post("/api/generate").header("content-length", written.len());
                let serving = tokio::spawn(provider.gate.serve(caller.clone(), asked.body(body).unwrap()));
                for piece in written.as_bytes().chunks(step) {
                    frames.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
                }
                drop(frames);
                let answer = read(serving.await.unwrap().unwrap()).await;
                assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
                let seen = provider.fake.counts().last("/api/generate").unwrap().clone();
                assert_eq!(
                    (seen.length, seen.sha256),
                    (written.len() as u64, sha256(expected.as_bytes())),
                    "{written}"
                );
            }
        }
    }
}

#[tokio::test]
async fn who_had_to_make_way_for_a_model_is_known_to_be_gone_as_soon_as_that_is_sent_for() {
    let provider = Provider::start(&["m", "n"]).await;
    let ask = |model: &str| post("/api/generate", &json!({"model":model,"prompt":"x"}));
    assert_eq!(provider.ask(peer(Scope::Infer), ask("m")).await.status, StatusCode::OK);
    let mut state = provider.ollama.state();
    let in_memory = |state: &State| state.loaded.contains("m:latest");
    timeout(Duration::from_secs(30), state.wait_for(|state| in_memory(state))).await.unwrap().unwrap();
    // Those looks are over that had a reason until now. The next one that needs none is seconds away.
    sleep(Duration::from_secs(1)).await;
    provider.fake.set(|settings| settings.load = Duration::from_secs(3600));
    provider.fake.models(|models| models.iter_mut().for_each(|model| model.loaded = false));
    let _loads = tokio::spawn(provider.gate.serve(peer(Scope::Infer), ask("n")));
    timeout(Duration::from_secs(2), state.wait_for(|state| !in_memory(state))).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_does_not_say_how_a_model_is_loaded() {
    let provider = Provider::start(&["m"]).await;
    let written = r#"{"model":"m","prompt":"x","shift":false,"think":false,"options":{"draft_num_predict":8,"num_gpu":0,"seed":1,"some_new_one":true}}"#;
    let sent = r#"{"model":"m","prompt":"x","shif ":false,"think":false,"options":{"draft_num_predic ":8,"num_gp ":0,"seed":1,"some_new_on ":true}}"#;
    for path in ["/api/generate", "/v1/completions"] {
        for (caller, expected, ignored) in
            [(peer(Scope::Infer), sent, 4), (peer(Scope::Manage), written, 0), (Caller::Owner, written, 0)]
        {
            let before = provider.gate.ignored();
            let answer = provider.ask(caller, request("POST", path, written)).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
            let seen = provider.fake.counts().last(path).unwrap().clone();
            assert_eq!((seen.length, seen.sha256), (written.len() as u64, sha256(expected.as_bytes())));
            assert_eq!(provider.gate.ignored() - before, ignored);
        }
    }
}
