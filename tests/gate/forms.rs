//! What of a peer's form reaches Ollama.

use bytes::Bytes;
use http::StatusCode;
use ollana::internals::exchange::Body;
use ollana::internals::gate::Caller;
use ollana::internals::id::Scope;
use sha2::{Digest as _, Sha256};

use crate::fake_ollama::Model;
use crate::{Provider, by_hand, peer, read, request};

const PATH: &str = "/v1/audio/transcriptions";

fn form(path: &str, body: Body) -> http::Request<Body> {
    let kind = "multipart/form-data; boundary=xYz";
    http::Request::post(path).header("content-type", kind).body(body).unwrap()
}

fn part(head: &str, content: &str) -> String {
    format!("--xYz\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
}

fn spoken(model: &str) -> String {
    let file = part("name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav", &"RIFF\r\n--xY".repeat(10_000));
    format!("{file}{}{}--xYz--\r\n", part("name=\"model\"", model), part("name=\"language\"", "en"))
}

#[tokio::test]
async fn a_form_streams_through_unchanged() {
    let provider = Provider::start(&["m"]).await;
    let body = spoken("m");
    for caller in [peer(Scope::Infer), peer(Scope::Manage), Caller::Owner] {
        let (frames, body_in) = by_hand();
        let serving = tokio::spawn(provider.gate.serve(caller, form(PATH, body_in)));
        for piece in body.as_bytes().chunks(10_007) {
            frames.send(Ok(Bytes::copy_from_slice(piece))).await.unwrap();
        }
        drop(frames);
        let answer = read(serving.await.unwrap().unwrap()).await;
        assert_eq!((answer.status, answer.refusal), (StatusCode::OK, None), "{}", answer.body);
        let seen = provider.fake.counts().last(PATH).unwrap().clone();
        let sum: String = Sha256::digest(body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((seen.length, seen.sha256), (body.len() as u64, sum));
        assert_eq!(seen.headers["content-type"], "multipart/form-data; boundary=xYz");
    }
}

#[tokio::test]
async fn what_a_form_may_not_ask_for_is_never_heard() {
    let provider = Provider::start(&["m", "gpt-oss:120b-cloud"]).await;
    provider.fake.models(|models| {
        models.push(Model { remote_host: Some("https://ollama.com:443".to_owned()), ..Model::new("mine") });
    });
    let model =
        |head: &str, content: &str| part(head, content) + &part("name=\"file\"; filename=\"a\"", "x") + "--xYz--\r\n";
    let named = |name: &str| model("name=\"model\"", name);
    let late = part("name=\"model\"", "m") + &part("name=\"file\"; filename=\"a\"", &"x".repeat(100_000)) + &named("m");
    for (path, body, status, refusal) in [
        (PATH, named("x:cloud"), 403, "cloud"),
        (PATH, named(" X:CLOUD "), 403, "cloud"),
        (PATH, named("gpt-oss:120b-cloud"), 403, "cloud"),
        (PATH, named("library/MINE"), 403, "cloud"),
        (PATH, spoken("x:cloud"), 403, "cloud"),
        ("/v1/audio/transcriptions?model=x:cloud", "--xYz--".to_owned(), 403, "cloud"),
        (
            "/v1/%61udio/transcriptions?%6dodel=x%3Acloud",
            part("name=\"file\"; filename=\"a\"", "x") + "--xYz--",
            403,
            "cloud",
        ),
        ("/v1/audio/transcriptions?model=m", named("m"), 400, "doubled-key"),
        ("/v1/audio/transcriptions?model=m&model=m", "--xYz--".to_owned(), 400, "doubled-key"),
        (PATH, late, 400, "doubled-key"),
        (PATH, model("name=model\r\nContent-Transfer-Encoding: quoted-printable", "x:=63loud"), 400, "unreadable"),
        (PATH, model("name*0=mo; name*1=del", "x:cloud"), 400, "unreadable"),
        (PATH, model("name*=utf-8''model", "x:cloud"), 400, "unreadable"),
        (PATH, named("x:cloud").replace("\r\n", "\n"), 400, "unreadable"),
        (PATH, format!("preamble\r\n{}", named("x:cloud")), 400, "unreadable"),
    ] {
        // In one frame, and in pieces.
        for step in [body.len(), 5_003, 1] {
            if body.len() / step > 20_000 {
                continue;
            }
            let (frames, body_in) = by_hand();
            let serving = tokio::spawn(provider.gate.serve(peer(Scope::Infer), form(path, body_in)));
            for piece in body.as_bytes().chunks(step) {
                // The gate hangs up as soon as it has seen enough.
                let _ = frames.send(Ok(Bytes::copy_from_slice(piece))).await;
            }
            drop(frames);
            let answer = read(serving.await.unwrap().unwrap()).await;
            let got = (answer.status.as_u16(), answer.refusal.as_deref());
            assert_eq!(got, (status, Some(refusal)), "{path} {}", &body[..body.len().min(200)]);
            assert!(answer.body.contains(r#""type":"#), "in OpenAI's shape: {}", answer.body);
        }
    }
    let counts = provider.fake.until(|counts| counts.running == 0).await;
    assert_eq!(counts.tokens, 0);
    assert!(counts.seen.iter().all(|seen| !seen.target.contains("audio") || !seen.complete));
}

#[tokio::test]
async fn a_form_by_a_type_that_only_go_reads_as_one_is_refused() {
    let provider = Provider::start(&["m"]).await;
    let body = part("name=\"model\"", "x:cloud") + &part("name=\"file\"; filename=\"a\"", "x") + "--xYz--\r\n";
    // A real Ollama 0.24 reads all of these as forms.
    for kind in ["mult\u{130}part/form-data", "multipart/form-data\u{a0}", "\u{2003}multipart/form-data"] {
        let mut asked = form(PATH, ollana::internals::exchange::full(body.clone()));
        let kind = format!("{kind}; boundary=xYz");
        asked.headers_mut().insert("content-type", http::HeaderValue::from_bytes(kind.as_bytes()).unwrap());
        let answer = provider.ask(peer(Scope::Infer), asked).await;
        assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::BAD_REQUEST, Some("unreadable")), "{kind}");
    }
    assert_eq!(provider.fake.counts().of(PATH), 0, "Ollama heard nothing of it");
}

#[tokio::test]
async fn a_form_where_ollama_reads_json_is_read_as_json() {
    let provider = Provider::start(&["m"]).await;
    for (body, refusal) in [
        (r#"{"model":"x:cloud","prompt":"x"}"#.to_owned(), Some("cloud")),
        (r#"{"model":"m","model":"m"}"#.to_owned(), Some("doubled-key")),
        (part("name=\"model\"", "m") + "--xYz--", None),
    ] {
        for path in ["/api/generate", "/v1/chat/completions", "/api/show"] {
            let asked = form(path, ollana::internals::exchange::full(body.clone()));
            let answer = provider.ask(peer(Scope::Infer), asked).await;
            assert_eq!(answer.refusal.as_deref(), refusal, "{path} {body}");
            assert!(answer.status.is_client_error(), "{path} {body}");
        }
    }
    // What it cannot be is nobody's form.
    let mut odd = request("POST", PATH, r#"{"model":"x:cloud"}"#);
    odd.headers_mut().insert("content-type", "multipart/mixed; boundary=xYz".parse().unwrap());
    assert_eq!(provider.ask(peer(Scope::Infer), odd).await.refusal.as_deref(), Some("cloud"));
}
