//! Getting more out of a gate than `infer` gives.

use http::Request;
use ollana::internals::exchange;
use ollana::internals::id::Scope;

use super::evil::{Evil, Session};
use super::fake_ollama::{FakeOllama, Model};
use super::handshake::lender;
use super::node::{Node, until, within};
use super::stranger::Stranger;

/// A stranger at a gate, by first use with scope `infer`.
async fn guest(provider: &Node) -> Session {
    Evil::new().meet(provider.mesh, "guest").await.unwrap()
}

/// What a node itself asks its Ollama.
const OWN: [&str; 5] = ["/api/version", "/api/tags", "/api/ps", "/", "/v1/models"];

/// Twenty ways to write a path, each of which some router reads as that path.
fn spellings(path: &str) -> Vec<String> {
    let (parent, last) = path.split_at(path.rfind('/').unwrap() + 1);
    let encoded: String = last.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let lower: String = last.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let twice: String = last.bytes().map(|byte| format!("%25{byte:02x}")).collect();
    let (first, others) = last.split_at(1);
    let mixed: String =
        path.chars().enumerate().map(|(n, c)| if n % 2 == 0 { c } else { c.to_ascii_uppercase() }).collect();
    vec![
        path.to_owned(),
        format!("{path}/"),
        format!("/{path}"),
        format!("//{path}//"),
        format!("{parent}./{last}"),
        format!("{parent}/{last}"),
        format!("{parent}x/../{last}"),
        format!("{parent}x/%2e%2e/{last}"),
        format!("/v1/..{path}"),
        format!("/v1/chat/completions/../../..{path}"),
        format!("{parent}{encoded}"),
        format!("{parent}{lower}"),
        format!("{parent}{twice}"),
        format!("{parent}{first}%{:02x}{}", others.as_bytes()[0], &others[1..]),
        path.replacen("/api/", "/api%2f", 1),
        path.replacen("/api/", "/%61pi/", 1),
        path.to_uppercase(),
        mixed,
        format!("{path}?x=1"),
        format!("{path};x"),
        format!("{path}%3fx"),
        format!("{path}%00"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn management_and_account_routes_stay_shut_in_twenty_spellings_each() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let guest = guest(&provider).await;
    let blob = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let guarded = [
        "/api/pull",
        "/api/push",
        "/api/create",
        "/api/copy",
        "/api/delete",
        blob,
        "/api/signout",
        "/api/me",
        "/api/user/keys/abc",
        "/api/experimental/web_search",
        "/api/experimental/web_fetch",
    ];
    let override_ = [("x-http-method-override", "DELETE"), ("x-method-override", "POST")];
    for path in guarded {
        for spelling in spellings(path) {
            for method in ["POST", "DELETE", "GET"] {
                let body: &[u8] = if method == "GET" { b"" } else { br#"{"model":"m","name":"m","source":"m"}"# };
                // One that no head can hold is refused with its stream.
                let Some(said) = guest.ask(method, &spelling, &override_, body).await else { continue };
                let account = path == "/api/me" && said.status == 401;
                assert!(said.status == 403 || account, "{method} {spelling}: {} {}", said.status, said.text());
            }
        }
    }
    // A target that names another host is no path at all.
    for target in ["http://127.0.0.1:11434/api/delete", "127.0.0.1:11434", "\\api\\delete", ""] {
        let said = guest.ask("DELETE", target, &[], br#"{"model":"m"}"#).await;
        assert!(said.is_none_or(|said| said.status == 403), "{target}");
    }
    let reached = ollama.counts().requests;
    assert!(reached.keys().all(|path| OWN.contains(&path.as_str())), "{reached:?}");
    let mut models = 0;
    ollama.models(|on_disk| models = on_disk.len());
    assert_eq!(models, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_not_smuggled_past_the_check_in_any_of_many_ways() {
    let ollama = FakeOllama::start(&["m", "x:cloud"]).await;
    ollama.models(|models| {
        models.push(Model { remote_host: Some("https://ollama.com:443".to_owned()), ..Model::new("mine") });
    });
    let provider = lender(&ollama).await;
    let guest = guest(&provider).await;
    let long = "y".repeat(70_000);
    let jsons = [
        // Twice, once harmless.
        r#"{"model":"m","prompt":"x","model":"x:cloud"}"#.to_owned(),
        r#"{"model":"x:cloud","prompt":"x","model":"m"}"#.to_owned(),
        // In other letters, which Go takes for the same key.
        r#"{"model":"m","prompt":"x","MODEL":"x:cloud"}"#.to_owned(),
        r#"{"model":"m","prompt":"x","\u006d\u006Fdel":"x:cloud"}"#.to_owned(),
        // In the second name of the key.
        r#"{"model":"","name":"x:cloud","prompt":"x"}"#.to_owned(),
        r#"{"model":"m","name":"x:cloud","prompt":"x"}"#.to_owned(),
        // Far behind, when all seems to have been looked at.
        format!(r#"{{"model":"m","prompt":"{long}","name":"x:cloud"}}"#),
        // Written in a way that only Ollama reads as that.
        r#"{"model":" X:Cloud ","prompt":"x"}"#.to_owned(),
        r#"{"model":"registry.ollama.ai/library/x:cloud","prompt":"x"}"#.to_owned(),
        // One that only the catalog shows as remote.
        r#"{"model":"mine","prompt":"x"}"#.to_owned(),
        r#"{"model":"library/MINE:latest","prompt":"x"}"#.to_owned(),
    ];
    for body in &jsons {
        for path in ["/api/generate", "/api/chat", "/v1/chat/completions", "/v1/messages", "/api/%67enerate"] {
            for kind in ["application/json", "text/plain", "multipart/form-data; boundary=a", ""] {
                let said = guest.ask("POST", path, &[("content-type", kind)], body.as_bytes()).await;
                let said = said.expect("an answer");
                assert!(matches!(said.status, 400 | 403), "{path} {body:.60}: {} {}", said.status, said.text());
            }
        }
    }
    // Compressed, said to be compressed, said to be two things.
    let packed = ruzstd::encoding::compress_to_vec(jsons[4].as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    for coding in ["zstd", "ZSTD", "gzip, zstd", "zstd, zstd", "identity,zstd"] {
        for body in [&packed[..], jsons[4].as_bytes()] {
            for path in ["/api/generate", "/v1/chat/completions", "/v1/messages"] {
                let said = guest.ask("POST", path, &[("content-encoding", coding)], body).await.expect("an answer");
                assert!((400..500).contains(&said.status), "{coding} {path}: {} {}", said.status, said.text());
            }
        }
    }
    // In a form, and in a query in front of one.
    let form = "--a\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nx:cloud\r\n--a--\r\n";
    let typed = [("content-type", "multipart/form-data; boundary=a")];
    let said = guest.ask("POST", "/v1/audio/transcriptions", &typed, form.as_bytes()).await.unwrap();
    assert_eq!(said.status, 403, "{}", said.text());
    let harmless = form.replace("x:cloud", "m");
    let queried = guest.ask("POST", "/v1/audio/transcriptions?model=x:cloud", &typed, harmless.as_bytes()).await;
    assert!(matches!(queried.unwrap().status, 400 | 403));
    let counts = ollama.until(|counts| counts.running == 0).await;
    assert_eq!(counts.tokens, 0, "no model has said a word");
    let ran = counts.seen.iter().find(|seen| seen.complete && seen.model.as_deref().is_some_and(|m| m != "m"));
    assert!(ran.is_none(), "{ran:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn infer_neither_unloads_nor_pins_what_others_use() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let guest = guest(&provider).await;
    let load = guest.ask("POST", "/api/generate", &[], br#"{"model":"m"}"#).await.unwrap();
    assert_eq!(load.status, 200, "{}", load.text());
    for order in [
        r#"{"model":"m","keep_alive":0}"#,
        r#"{"model":"m","keep_alive":"0s","prompt":""}"#,
        r#"{"\u212aeep_alive":-0.0e9,"model":"m"}"#,
    ] {
        let said = guest.ask("POST", "/api/generate", &[], order.as_bytes()).await.unwrap();
        assert_eq!(said.status, 403, "{order}: {}", said.text());
    }
    let mut loaded = false;
    ollama.models(|models| loaded = models.iter().any(|model| model.loaded));
    assert!(loaded);
    // What would keep it for ever arrives as a key that nobody knows.
    let pin = br#"{"model":"m","prompt":"x","keep_alive":-1}"#;
    assert_eq!(guest.ask("POST", "/api/generate", &[], pin).await.unwrap().status, 200);
    let seen = ollama.counts().last("/api/generate").unwrap().clone();
    let known = br#"{"model":"m","prompt":"x","keep_aliv ":-1}"#;
    let sha256 = |bytes: &[u8]| {
        use sha2::Digest as _;
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    assert_eq!(seen.sha256, sha256(known));
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_of_every_wrong_kind_end_their_stream_and_nothing_else() {
    use super::evil::{ACK, BROKEN, DATA, END, HELLO, REFUSED, REPORT, REQUEST, RESPONSE, TRUST, frame, head};
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let guest = guest(&provider).await;
    let post = frame(REQUEST, &head("POST", "/api/generate", &[], true));
    let body = frame(DATA, br#"{"model":"m","prompt":"x"}"#);
    for kind in 0..=0x40u8 {
        // In front, where a head belongs.
        if kind != REQUEST {
            assert!(guest.send(&frame(kind, b"12345678")).await.is_none(), "{kind:#x} as a head");
        }
        // Between head and end.
        if !matches!(kind, DATA | END | BROKEN) {
            let said = guest.send(&[&post[..], &frame(kind, &[]), &body, &frame(END, &[])].concat()).await;
            assert!(said.is_none_or(|said| said.status != 200), "{kind:#x} before the body");
        }
    }
    for (what, bytes) in [
        ("a head longer than may be", frame(REQUEST, &vec![b'a'; 512 * 1024 + 1])),
        ("a head of nothing", frame(REQUEST, &[])),
        ("an empty piece", [&post[..], &frame(DATA, &[])].concat()),
        ("an acknowledgement that says something", frame(ACK, b"x")),
        ("half a frame", post[..3].to_vec()),
        ("a body without its end", [&post[..], &body].concat()),
        ("trailers that are none", [&post[..], &body, &frame(END, &[0, 9, b'x'])].concat()),
        ("a response", frame(RESPONSE, &[0, 0, 200])),
        ("words of the control stream", [frame(HELLO, b"{}"), frame(REPORT, b"{}"), frame(TRUST, b"{}")].concat()),
        ("a refusal", frame(REFUSED, b"{}")),
        ("a body where the head says that there is none", {
            [&frame(REQUEST, &head("POST", "/api/generate", &[("content-length", "30")], false))[..], &body].concat()
        }),
        ("two lengths", frame(REQUEST, &head("POST", "/x", &[("content-length", "1"), ("content-length", "2")], true))),
        ("chunks", frame(REQUEST, &head("POST", "/x", &[("transfer-encoding", "chunked")], true))),
        ("a line in a field", frame(REQUEST, &head("GET", "/x", &[("a", "b\r\nc: d")], false))),
        ("a line in the method", frame(REQUEST, &head("GET / HTTP/1.1\r\n", "/x", &[], false))),
        ("a line in the target", frame(REQUEST, &head("GET", "/x HTTP/1.1\r\nhost: y", &[], false))),
    ] {
        let said = guest.send(&bytes).await;
        assert!(said.as_ref().is_none_or(|said| said.status != 200 || !said.whole), "{what}: {said:?}");
    }
    let counts = ollama.until(|counts| counts.running == 0).await;
    assert_eq!(counts.tokens, 0);
    // The same connection serves what is right.
    let good = guest.ask("POST", "/api/generate", &[], br#"{"model":"m","prompt":"x"}"#).await.unwrap();
    assert!(good.status == 200 && good.whole);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_stream_that_says_what_it_must_not_costs_the_connection_alone() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    for kind in [0x01, 0x03, 0x04, 0x05, 0x20, 0x21, 0x22, 0x7f] {
        let mut session = Evil::new().meet(provider.mesh, "odd").await.unwrap();
        session.say.write_all(&super::evil::frame(kind, b"{}")).await.unwrap();
        within(session.connection.closed()).await;
    }
    let honest = guest(&provider).await;
    assert_eq!(honest.ask("GET", "/api/version", &[], b"").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_asked_by_what_comes_in_on_a_stream_without_a_hello() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let connection = Evil::new().dial(provider.mesh).await.unwrap();
    let (mut send, recv) = within(connection.open_bi()).await.unwrap();
    let ask = super::evil::head("GET", "/api/tags", &[], false);
    send.write_all(&super::evil::frame(super::evil::REQUEST, &ask)).await.unwrap();
    assert!(within(super::evil::Frames::of(recv).answer()).await.is_none());
    within(connection.closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_manager_may_not_do_it_may_not_do_either() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let boss = Stranger::new("boss");
    provider.trust(boss.id, Scope::Manage).await;
    let met = within(boss.dial(provider.mesh)).await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    for (method, path) in [("POST", "/api/push"), ("POST", "/api/signout"), ("GET", "/api/experimental/x")] {
        let body = exchange::full(r#"{"model":"m"}"#);
        let request = Request::builder().method(method).uri(path).body(body).unwrap();
        assert_eq!(within(met.exchange(request)).await.unwrap().status(), 403, "{path}");
    }
    let reached = ollama.counts().requests;
    assert!(reached.keys().all(|path| OWN.contains(&path.as_str())), "{reached:?}");
}
