//! What is in no log line at any level: prompts, answers, keys, codes, invitations, and what applications are let in with.
//!
//! Two nodes as people run them, at `RUST_LOG=trace`, through real work with words that stand nowhere else; then all that they
//! have logged, and all that the commands print, is searched for them.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use ollana::internals::control::{Client, PeerRequest};
use ollana::internals::pairing::News;
use ollana::internals::wire::control::Message;
use ollana::internals::wire::dealing::{Dealing, Hex, PairStep, Pairing, Redeem};

use super::evil::{DATA, END, Evil, REQUEST, frame, head};
use super::fake_ollama::{FakeOllama, expected};
use super::home::Home;
use super::node::{PATIENCE, within};
use super::stranger::Stranger;

/// Sends a request as an application would, and gives the whole answer.
fn ask(listen: &str, line: &str, fields: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(listen).unwrap();
    let head = format!("{line} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    let _ = stream.write_all(&[head.as_bytes(), fields.as_bytes(), b"\r\n", body].concat());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// Everything that a node has logged.
fn log(home: &Home) -> String {
    String::from_utf8_lossy(&std::fs::read(home.state().join("ollana.log")).unwrap()).into_owned()
}

fn waits(what: &str, is: impl Fn() -> bool) {
    let start = Instant::now();
    while !is() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What of a PEM file is the key.
fn key(path: &Path) -> String {
    let pem = std::fs::read_to_string(path).unwrap();
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_log_line_and_no_command_shows_what_is_secret() {
    let ollama = FakeOllama::start(&["m"]).await;
    let [mut gpu, mut laptop] = [Home::new(), Home::new()];
    for home in [&mut gpu, &mut laptop] {
        home.set("RUST_LOG", "trace");
    }
    gpu.set("OLLANA_OLLAMA", &ollama.url().to_string());
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    let mesh = gpu.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();

    // An invitation, used and not used.
    let invitation = gpu.ok(&["invite", "--uses", "2"]);
    let secret =
        invitation.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap().trim_matches('"').to_owned();
    let file = laptop.path().join("invitation");
    std::fs::write(&file, &invitation).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    laptop.ok(&["serve", "-d", "--name", "laptop", "--invitation-file", "invitation", "--peer", &mesh]);
    let peers = |home: &Home| home.json(&["peers", "--json"]);
    waits("that they trust each other", || [&gpu, &laptop].iter().all(|home| peers(home)[0]["trust"] == "trusted"));
    waits("a model", || peers(&laptop)[0]["models"][0] == "m:latest");
    let id = |home: &Home| home.ok(&["id"]).trim().to_owned();
    gpu.ok(&["trust", &id(&laptop), "--scope", "manage", "--yes"]);

    // Work of every kind. The words that are said follow from the prompt.
    let listen = laptop.json(&["status", "--json"])["listen"].as_str().unwrap().to_owned();
    let prompt = "canary-prompt-7Zq1";
    let said = expected("m:latest", prompt, 3);
    let fields = "Authorization: Bearer canary-token-7Zq2\r\nCookie: a=canary-cookie-7Zq3\r\n";
    let generate =
        format!(r#"{{"model":"m","prompt":"{prompt}","system":"canary-system-7Zq4","options":{{"num_predict":3}}}}"#);
    let answer = ask(&listen, "POST /api/generate", fields, generate.as_bytes());
    let last = said.split(' ').next_back().unwrap();
    assert!(answer.contains(last), "{answer}");
    let chat = format!(
        r#"{{"model":"m","stream":false,"messages":[{{"role":"user","content":"{prompt}","images":["canaryimage7Zq5"]}}],
        "options":{{"num_predict":3}}}}"#
    );
    ask(&listen, "POST /api/chat", fields, chat.as_bytes());
    ask(&listen, "POST /v1/chat/completions", fields, chat.as_bytes());
    ask(&listen, "POST /api/embed?key=canary-query-7Zq6", "", br#"{"model":"m","input":"canary-input-7Zq7"}"#);
    ask(&listen, "POST /api/create", "", br#"{"model":"n","from":"m","system":"canary-create-7Zq8"}"#);
    // What is refused, cannot be read, breaks off, or is for nobody.
    for body in [
        r#"{"model":"m","prompt":"canary-refused-7Zq9","model":"m"}"#,
        r#"{"model":"none","prompt":"canary-none-7Zq9"}"#,
        r#"{"model":"m","prompt":"canary-broken-7Zq9",}"#,
        r#"{"model":"x:cloud","prompt":"canary-cloud-7Zq9"}"#,
        r#"canary-text-7Zq9"#,
    ] {
        ask(&listen, "POST /api/generate", fields, body.as_bytes());
        ask(&listen, "POST /v1/chat/completions", fields, body.as_bytes());
    }
    let form = "--b\r\nContent-Disposition: form-data; name=\"canary-form-7Zq9\"\r\n\r\ncanary-field-7Zq9\r\n--b--\r\n";
    let typed = "Content-Type: multipart/form-data; boundary=b\r\n";
    ask(&listen, "POST /v1/audio/transcriptions", typed, form.as_bytes());
    ask(&listen, "POST /nowhere", "Content-Encoding: zstd\r\n", b"canary-zstd-7Zq9");
    ask(&listen, "GET canary-target-7Zq9 HTTP/9", "", b"");

    // Pairing, up to the code on both screens.
    gpu.ok(&["revoke", &id(&laptop)]);
    gpu.ok(&["trust", &id(&laptop), "--yes"]);
    waits("that they are connected again", || {
        [&gpu, &laptop].iter().all(|home| peers(home)[0]["state"] == "connected")
    });
    let mut codes = Vec::new();
    {
        let (here, there) =
            (Client::find(&[gpu.state()]).await.unwrap(), Client::find(&[laptop.state()]).await.unwrap());
        let mut one = here.follow("/pair", &PeerRequest { peer: id(&laptop) }).await.unwrap();
        let mut other = there.follow("/pair", &PeerRequest { peer: id(&gpu) }).await.unwrap();
        for terminal in [&mut one, &mut other] {
            match within(terminal.next::<News>()).await.unwrap() {
                Some(News::Code(code)) => {
                    // As it goes over the socket: `Debug` does not show it.
                    codes.push(serde_json::to_value(code).unwrap().as_str().unwrap().to_owned());
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(codes[0], codes[1]);

    // Strangers who say much that they should not.
    let mesh = mesh.parse().unwrap();
    let evil = Evil::new().meet(mesh, "evil").await.unwrap();
    for bytes in [
        [
            frame(REQUEST, &head("POST", "/api/generate", &[("x-canary", "canary-head-7Zq9")], true)),
            frame(DATA, b"canary-data-7Zq9"),
            frame(END, b"canary-end-7Zq9"),
        ]
        .concat(),
        frame(0x7e, b"canary-kind-7Zq9"),
        frame(REQUEST, b"canary-garbage-7Zq9"),
    ] {
        let _ = evil.send(&bytes).await;
    }
    let mut talker = within(Stranger::new("talker").dial(mesh)).await;
    let proof = Redeem { invitation: Hex(*b"canary-number-7Z"), proof: Hex([0x77; 64]) };
    let reveal = Pairing { round: 1, step: PairStep::Reveal(Hex(*b"canary-nonce-7Zq9canary-nonce-7Z")) };
    talker.control.send(&Message::Trust(Dealing::Pair(reveal))).await.unwrap();
    talker.control.send(&Message::Trust(Dealing::Redeem(proof))).await.unwrap();
    let mut odd = Evil::new().meet(mesh, "odd").await.unwrap();
    odd.say.write_all(&frame(0x23, br#"{"canary-trust-7Zq9":1}"#)).await.unwrap();
    within(odd.connection.closed()).await;

    // All that is printed meanwhile.
    let mut shown = String::new();
    for home in [&gpu, &laptop] {
        for command in [
            &["status", "--json"][..],
            &["peers", "--json"],
            &["models", "--json"],
            &["invite", "--list", "--json"],
            &["doctor", "--json"],
            &["config", "show"],
            &["trust", "export"],
        ] {
            let ran = home.run(command);
            shown += &ran.out;
            shown += &ran.err;
        }
        home.ok(&["stop"]);
    }

    let number = data_encoding::HEXLOWER.encode(b"canary-number-7Z");
    let secrets: Vec<String> = [
        "canary".to_owned(),
        "7Zq".to_owned(),
        last.to_owned(),
        secret,
        codes[0].clone(),
        codes[0].replace(' ', ""),
        number,
        data_encoding::HEXLOWER.encode(b"canary-nonce-7Zq9canary-nonce-7Z"),
        "7777777777".to_owned(),
        key(&gpu.state().join("identity.key")),
        key(&laptop.state().join("identity.key")),
    ]
    .into();
    for (what, text) in [("gpu1", log(&gpu)), ("laptop", log(&laptop)), ("commands", shown)] {
        assert!(what == "commands" || (text.contains("TRACE") && text.lines().count() > 100), "{what} logged nothing");
        for secret in &secrets {
            let found = text.lines().find(|line| line.contains(secret.as_str()));
            assert!(found.is_none(), "{what} shows {secret:?}: {found:?}");
        }
        // Nor the bytes of a key in another form.
        assert!(!text.contains("PRIVATE KEY"), "{what}");
    }
}
