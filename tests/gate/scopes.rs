//! Who may ask for what.

use http::StatusCode;
use ollana::internals::exchange::ExchangeError;
use ollana::internals::gate::{Caller, GateSettings};
use ollana::internals::id::Scope;
use ollana::internals::route::headers::HOP_HEADER;
use serde_json::{Value, json};

use crate::fake_ollama::{Model, Settings};
use crate::{Provider, peer, post, request};

/// Spellings of one path that some router could read as that path.
fn spellings(path: &str) -> Vec<String> {
    let (head, last) = path.split_at(path.rfind('/').unwrap() + 1);
    let encoded: String = last.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let twice: String = last.bytes().map(|byte| format!("%25{byte:02x}")).collect();
    vec![
        path.to_owned(),
        format!("{path}/"),
        format!("/{path}"),
        format!("{head}./{last}"),
        format!("{head}x/../{last}"),
        format!("/v1/..{path}"),
        format!("{head}{encoded}"),
        format!("{head}{twice}"),
        path.replace("/api/", "/api%2f"),
        path.to_uppercase(),
        format!("{path}?x=1"),
        format!("{path};x"),
        format!("http://127.0.0.1:11434{path}"),
    ]
}

#[tokio::test]
async fn what_changes_models_needs_manage_in_every_spelling() {
    let provider = Provider::start(&["m"]).await;
    let blob = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", blob] {
        for spelling in spellings(path) {
            for method in ["POST", "DELETE", "HEAD", "GET", "PUT", "OPTIONS"] {
                let answer = provider.ask(peer(Scope::Infer), request(method, &spelling, r#"{"model":"m"}"#)).await;
                let got = (answer.status, answer.refusal.as_deref());
                assert_eq!(got, (StatusCode::FORBIDDEN, Some("scope")), "{method} {spelling}");
            }
        }
    }
    let reached = provider.fake.counts().requests;
    let own = ["/api/version", "/api/tags", "/api/ps", "/v1/models"];
    assert!(reached.keys().all(|path| own.contains(&path.as_str())), "{reached:?}");
}

#[tokio::test]
async fn manage_may_change_models_but_not_sign_as_the_owner() {
    let provider = Provider::start(&["m"]).await;
    let manage = || peer(Scope::Manage);
    let copied = provider.ask(manage(), post("/api/copy", &json!({"source":"m","destination":"n"}))).await;
    assert_eq!((copied.status, copied.refusal), (StatusCode::OK, None));
    let pulled = provider.ask(manage(), post("/api/pull", &json!({"model":"new"}))).await;
    assert!(pulled.body.contains("success"), "{pulled:?}");
    let deleted = provider.ask(manage(), request("DELETE", "/api/delete", r#"{"name":"n"}"#)).await;
    assert_eq!(deleted.status, StatusCode::OK);
    let blob = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    assert_eq!(provider.ask(manage(), request("POST", blob, "hello")).await.status, StatusCode::CREATED);
    assert_eq!(provider.ask(manage(), request("HEAD", blob, "")).await.status, StatusCode::OK);
    for push in spellings("/api/push") {
        let answer = provider.ask(manage(), request("POST", &push, r#"{"model":"m"}"#)).await;
        assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("push")), "{push}");
    }
    assert_eq!(provider.fake.counts().of("/api/push"), 0);
    // Whoever forbids it says how it is allowed, and that is how.
    let lends =
        Provider::start_as(&["m"], Settings::default(), GateSettings { lend_push: true, ..GateSettings::default() })
            .await;
    let push = || post("/api/push", &json!({"model":"m"}));
    assert!(provider.ask(manage(), push()).await.body.contains("ollana config set lend.push true"));
    assert!(lends.ask(manage(), push()).await.body.contains("success"));
    assert_eq!(lends.ask(peer(Scope::Infer), push()).await.refusal.as_deref(), Some("scope"));
    // What was made is lent as soon as it is there, and not at the next look.
    let mut state = provider.ollama.state();
    let lent =
        state.wait_for(|state| state.models.contains_key("new:latest") && !state.models.contains_key("n:latest"));
    tokio::time::timeout(std::time::Duration::from_secs(2), lent)
        .await
        .expect("the watch looks after a change")
        .unwrap();
}

#[tokio::test]
async fn what_acts_on_the_owners_account_never_crosses() {
    let provider = Provider::start(&["m"]).await;
    for scope in [Scope::Infer, Scope::Manage] {
        for me in spellings("/api/me") {
            let answer = provider.ask(peer(scope), request("POST", &me, "")).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{me}");
            assert_eq!(answer.body, r#"{"error":"unauthorized"}"#, "without the owner's sign-in address");
        }
        for status in spellings("/api/status") {
            let answer = provider.ask(peer(scope), request("GET", &status, "")).await;
            let body: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!((answer.status, &body["cloud"]["disabled"]), (StatusCode::OK, &json!(true)), "{status}");
        }
        for path in [
            "/api/signout",
            "/api/user/keys/abc",
            "/api/experimental/web_search",
            "/api/experimental/x",
            "/debug/pprof/heap",
        ] {
            for method in ["GET", "POST", "DELETE"] {
                let answer = provider.ask(peer(scope), request(method, path, "")).await;
                let got = (answer.status, answer.refusal.as_deref());
                assert_eq!(got, (StatusCode::FORBIDDEN, Some("owner-only")), "{method} {path}");
            }
        }
    }
    let counts = provider.fake.counts();
    assert!(
        counts
            .requests
            .keys()
            .all(|path| !path.contains("/me") && !path.contains("sign") && !path.contains("experimental"))
    );
}

#[tokio::test]
async fn without_a_scope_there_is_nothing() {
    let provider = Provider::start(&["m"]).await;
    for (method, path) in
        [("GET", "/api/version"), ("GET", "/api/tags"), ("POST", "/api/chat"), ("POST", "/v1/messages"), ("GET", "/")]
    {
        let answer = provider.ask(peer(Scope::None), request(method, path, "")).await;
        assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("scope")), "{path}");
        assert!(answer.body.contains("ollana trust laptop"), "says what to type: {}", answer.body);
    }
}

#[tokio::test]
async fn infer_may_run_and_look() {
    let provider = Provider::start(&["m"]).await;
    for (method, path, body) in [
        ("GET", "/api/version", ""),
        ("HEAD", "/api/version", ""),
        ("GET", "/api/ps", ""),
        ("GET", "/v1/models", ""),
        ("GET", "/v1/models/m", ""),
        ("POST", "/api/show", r#"{"model":"m"}"#),
        ("POST", "/api/show", r#"{"model":"","name":"m"}"#),
        ("POST", "/api/generate", r#"{"model":"m","prompt":"x"}"#),
        ("POST", "/api/chat", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("POST", "/api/embed", r#"{"model":"m","input":"x"}"#),
        ("POST", "/v1/chat/completions", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
        ("POST", "/v1/completions", r#"{"model":"m","prompt":"x"}"#),
        ("POST", "/v1/responses", r#"{"model":"m","input":"x","tools":[{"type":"web_search"}]}"#),
        ("POST", "/v1/messages", r#"{"model":"m","messages":[{"role":"user","content":"x"}]}"#),
    ] {
        let answer = provider.ask(peer(Scope::Infer), request(method, path, body)).await;
        assert_eq!((answer.status, answer.refusal), (StatusCode::OK, None), "{method} {path} {}", answer.body);
    }
}

#[tokio::test]
async fn what_ollama_would_say_it_says_itself() {
    let provider = Provider::start(&["m"]).await;
    for (method, path, body, status) in [
        ("GET", "/api/tags/", "", 301),
        ("GET", "//api/tags", "", 307),
        ("GET", "/nope", "", 404),
        ("POST", "/api/nope", "{}", 404),
        ("GET", "/api/generate", "", 405),
        ("HEAD", "/api/ps", "", 405),
        ("POST", "/api/generate", "", 400),
        ("POST", "/api/generate", r#"{"model":"#, 400),
        ("POST", "/api/generate", r#"{"model":"nope","prompt":"x"}"#, 404),
    ] {
        let mut caller = Caller::Owner;
        let straight = provider.ask(caller, request(method, path, body)).await;
        caller = peer(Scope::Infer);
        let answer = provider.ask(caller, request(method, path, body)).await;
        assert_eq!((answer.status.as_u16(), answer.refusal.as_deref()), (status, None), "{method} {path}");
        assert_eq!((answer.status, answer.body), (straight.status, straight.body), "{method} {path}");
    }
}

#[tokio::test]
async fn cloud_models_never_cross_by_whatever_name() {
    let provider = Provider::start(&["m", "gpt-oss:120b-cloud"]).await;
    provider.fake.models(|models| {
        models.push(Model { remote_host: Some("https://ollama.com:443".to_owned()), ..Model::new("mine") });
    });
    // Not looked at yet: the gate asks before it lets an unknown name through.
    for body in [
        r#"{"model":"gpt-oss:120b-cloud","prompt":"x"}"#,
        r#"{"model":"x:cloud","prompt":"x"}"#,
        r#"{"model":" X:CLOUD ","prompt":"x"}"#,
        r#"{"MODEL":"x:\u0063loud","prompt":"x"}"#,
        r#"{"model":"","name":"x:cloud"}"#,
        r#"{"model":"m","name":"x:cloud","prompt":"x"}"#,
        r#"{"model":"mine","prompt":"x"}"#,
        r#"{"model":"library/MINE:latest","prompt":"x"}"#,
    ] {
        for path in ["/api/generate", "/api/chat", "/api/show", "/v1/chat/completions", "/v1/messages"] {
            let answer = provider.ask(peer(Scope::Infer), request("POST", path, body)).await;
            assert_eq!(
                (answer.status, answer.refusal.as_deref()),
                (StatusCode::FORBIDDEN, Some("cloud")),
                "{path} {body}"
            );
        }
        let answer = provider.ask(peer(Scope::Manage), request("POST", "/api/pull", body)).await;
        assert_eq!(answer.refusal.as_deref(), Some("cloud"), "pull {body}");
    }
    for (path, body) in [
        ("/api/create", r#"{"model":"alias","from":"x:cloud"}"#),
        ("/api/create", r#"{"model":"alias","from":"x:cloud","source":"m"}"#),
        ("/api/copy", r#"{"destination":"alias","source":"x:cloud","from":"m"}"#),
        ("/api/create", r#"{"model":"alias","from":"m","remote_host":"https://ollama.com"}"#),
        ("/api/create", r#"{"model":"alias","from":"m","Remote_Ho\u017ft":"https://ollama.com"}"#),
        ("/api/copy", r#"{"source":"mine","destination":"alias"}"#),
        ("/api/copy", r#"{"source":"m","SOURCE":"x:cloud","destination":"alias"}"#),
    ] {
        provider.ollama.refresh();
        provider.ollama.state().wait_for(|state| state.remote.len() == 2).await.unwrap();
        let answer = provider.ask(peer(Scope::Manage), request("POST", path, body)).await;
        assert_eq!(answer.refusal.as_deref(), Some("cloud"), "{path} {body}");
    }
    for path in ["/v1/models/gpt-oss:120b-cloud", "/v1/models/x%3Acloud", "/v1/models/mine"] {
        let answer = provider.ask(peer(Scope::Infer), request("GET", path, "")).await;
        assert_eq!(answer.refusal.as_deref(), Some("cloud"), "{path}");
    }
    // Called a blob's, so that nobody looks at its body.
    let hidden = r#"{"model":"x:cloud","prompt":"x"}"#;
    for path in ["/api/blobs/../generate", "/api/blobs/%2e%2e/generate", "/api/blobs/x/../../generate"] {
        let answer = provider.ask(peer(Scope::Manage), request("POST", path, hidden)).await;
        // As Ollama's router reads them, which does not find the route.
        assert!(matches!(answer.status.as_u16(), 307 | 404), "{path}: {}", answer.status);
    }
    let counts = provider.fake.counts();
    assert_eq!((counts.tokens, counts.of("/api/generate"), counts.of("/api/pull")), (0, 0, 0));
    // The owner's own are the owner's business.
    let answer = provider.ask(Caller::Owner, post("/api/show", &json!({"model":"mine"}))).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn cloud_models_are_not_listed_to_peers() {
    let provider = Provider::start(&["m", "gpt-oss:120b-cloud"]).await;
    provider.fake.models(|models| {
        models.push(Model { remote_host: Some("https://ollama.com:443".to_owned()), ..Model::new("mine") });
    });
    provider.ollama.refresh();
    provider.ollama.state().wait_for(|state| state.remote.len() == 2).await.unwrap();
    for path in ["/api/tags", "/v1/models"] {
        let answer = provider.ask(peer(Scope::Infer), request("GET", path, "")).await;
        assert!(
            answer.body.contains("m:latest") && !answer.body.contains("cloud") && !answer.body.contains("mine"),
            "{}",
            answer.body
        );
        let answer = provider.ask(Caller::Owner, request("GET", path, "")).await;
        assert!(answer.body.contains("120b-cloud") && answer.body.contains("mine"), "{}", answer.body);
    }
    // Without any, the bytes are Ollama's own.
    provider.fake.models(|models| models.truncate(1));
    let (peers, owners) = (
        provider.ask(peer(Scope::Infer), request("GET", "/api/tags", "")).await,
        provider.ask(Caller::Owner, request("GET", "/api/tags", "")).await,
    );
    assert_eq!(peers.body, owners.body);
}

#[tokio::test]
async fn server_run_web_search_never_crosses() {
    let provider = Provider::start(&["m"]).await;
    let body = r#"{"model":"m","messages":[{"role":"user","content":"x"}],"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#;
    let answer = provider.ask(peer(Scope::Infer), request("POST", "/v1/messages", body)).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("web-search")));
    let error: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(
        (&error["type"], &error["error"]["type"]),
        (&json!("error"), &json!("permission_error")),
        "as its clients parse it"
    );
    assert_eq!(provider.fake.counts().tokens, 0);

    // OpenAI's clients ask for it in another way, which does something since 0.33.
    let body = r#"{"model":"m","input":"x","tools":[{"type":"function","name":"a"},{"type":"web_search"}]}"#;
    for (version, refusal) in [
        ("0.24.0", None),
        ("0.32.1-rc0", None),
        ("0.33.0-rc2", Some("web-search")),
        ("1.0.0", Some("web-search")),
        ("0.0.0", Some("web-search")),
        ("", Some("web-search")),
    ] {
        let settings = Settings { version: version.to_owned(), ..Settings::default() };
        let provider = Provider::start_with(&["m"], settings).await;
        let answer = provider.ask(peer(Scope::Infer), request("POST", "/v1/responses", body)).await;
        assert_eq!(answer.refusal.as_deref(), refusal, "{version}");
        if refusal.is_some() {
            let error: Value = serde_json::from_str(&answer.body).unwrap();
            assert_eq!((answer.status, &error["error"]["type"]), (StatusCode::FORBIDDEN, &json!("api_error")));
        }
    }
}

#[tokio::test]
async fn a_request_never_goes_round() {
    let provider = Provider::start(&["m"]).await;
    for caller in [Caller::Owner, peer(Scope::Manage)] {
        let mut round = request("GET", "/api/version", "");
        round.headers_mut().insert(HOP_HEADER, "1".parse().unwrap());
        let answer = provider.ask(caller, round).await;
        assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::LOOP_DETECTED, Some("loop")));
    }
}

#[tokio::test]
async fn nothing_is_lent_that_is_not_to_be() {
    let provider = Provider::start(&["m"]).await;
    let mut report = provider.gate.report();
    let lent = report.wait_for(|report| report.provider).await.unwrap().clone();
    assert_eq!(lent.models.keys().collect::<Vec<_>>(), ["m:latest"]);
    provider.lend.send_replace(false);
    let kept = report.wait_for(|report| !report.provider).await.unwrap().clone();
    assert!(kept.models.is_empty());
    let answer = provider.ask(peer(Scope::Infer), request("GET", "/api/version", "")).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("not-lent")));
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(provider.ask(Caller::Owner, request("GET", "/api/version", "")).await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_ollama_that_is_gone_is_an_error_and_not_an_answer() {
    let mut provider = Provider::start(&["m"]).await;
    provider.fake.stop().await;
    let error = provider.gate.serve(Caller::Owner, request("GET", "/api/version", "")).await.unwrap_err();
    assert!(matches!(error, ExchangeError::NotRun(..)), "{error}");
    provider.gate.report().wait_for(|report| !report.provider).await.unwrap();
    // What comes there next may be another kind of server, with other paths to keep peers from.
    let answer = provider.ask(peer(Scope::Infer), request("GET", "/api/version", "")).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("no-ollama")));
}

#[tokio::test]
async fn what_a_manager_passes_on_for_guests_is_no_managers() {
    use ollana::internals::route::headers::GUEST_HEADER;
    let provider = Provider::start(&["m"]).await;
    let for_guest = |mut asked: http::Request<ollana::internals::exchange::Body>| {
        asked.headers_mut().insert(GUEST_HEADER, "1".parse().unwrap());
        asked
    };
    assert!(provider.ask(peer(Scope::Manage), post("/api/generate", &json!({"model":"m"}))).await.status.is_success());
    let stop = || post("/api/generate", &json!({"model":"m","keep_alive":0}));
    let answer = provider.ask(peer(Scope::Manage), for_guest(stop())).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("unload")));
    let answer =
        provider.ask(peer(Scope::Manage), for_guest(request("DELETE", "/api/delete", r#"{"name":"m"}"#))).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("scope")));
    // It says so between nodes, and not to Ollama; and gives nothing to who has nothing.
    let told = for_guest(request("GET", "/api/version?fake=headers", ""));
    let told = provider.ask(peer(Scope::Manage), told).await;
    assert!(told.status == 200 && !told.body.contains("ollana-guest"), "{}", told.body);
    let nothing = for_guest(request("GET", "/api/version", ""));
    assert_eq!(provider.ask(peer(Scope::None), nothing).await.refusal.as_deref(), Some("scope"));
    assert!(provider.ask(peer(Scope::Manage), stop()).await.body.contains("unload"));
}

#[tokio::test]
async fn a_local_model_that_a_manager_has_replaced_by_one_elsewhere_is_not_run() {
    let provider = Provider::start(&["m"]).await;
    let pulled = provider.ask(peer(Scope::Manage), post("/api/pull", &json!({"model":"new"}))).await;
    assert!(pulled.body.contains("success"), "{pulled:?}");
    // What the pull has brought says that it runs elsewhere, and so does what bears the old name; the watch has not seen it.
    let mut state = provider.ollama.state();
    state.wait_for(|state| state.models.contains_key("new:latest")).await.unwrap();
    provider.fake.models(|models| {
        models.iter_mut().for_each(|model| model.remote_host = Some("https://ollama.com:443".to_owned()));
    });
    for model in ["m", "new"] {
        let answer =
            provider.ask(peer(Scope::Manage), post("/api/generate", &json!({"model":model,"prompt":"x"}))).await;
        assert_eq!(answer.refusal.as_deref(), Some("cloud"), "{model}: {}", answer.body);
    }
    assert_eq!(provider.fake.counts().of("/api/generate"), 0);
}
