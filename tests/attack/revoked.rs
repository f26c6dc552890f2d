//! What runs ends when the right to it does, whatever the other side makes of it.

use std::time::{Duration, Instant};

use ollana::internals::id::Scope;

use super::evil::{DATA, END, Evil, Frames, REQUEST, Session, frame, head, key};
use super::fake_ollama::FakeOllama;
use super::handshake::lender;
use super::node::within;

/// "Within 2 s everywhere it was revoked."
const AT_ONCE: Duration = Duration::from_secs(2);

/// An answer that goes on and on, of which the first piece has come.
async fn begun(session: &Session) -> Frames {
    let (mut send, recv) = within(session.connection.open_bi()).await.unwrap();
    send.write_all(&frame(REQUEST, &head("POST", "/api/generate", &[], true))).await.unwrap();
    let prompt = br#"{"model":"m","prompt":"x","options":{"num_predict":1000000}}"#;
    send.write_all(&[frame(DATA, prompt), frame(END, &[])].concat()).await.unwrap();
    let mut frames = Frames::of(recv);
    while within(frames.next()).await.expect("an answer").0 != DATA {}
    // It is never finished, and never reset.
    std::mem::forget(send);
    frames
}

/// An Ollama that says a word now and then, and its node.
async fn slow() -> (FakeOllama, super::node::Node) {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(20));
    let provider = lender(&ollama).await;
    (ollama, provider)
}

#[tokio::test(flavor = "multi_thread")]
async fn revocation_ends_streams_in_the_middle_whether_they_are_read_or_not() {
    let (ollama, provider) = slow().await;
    let (shown, id) = key();
    let evil = Evil::showing(Some(shown));
    let session = evil.meet(provider.mesh, "guest").await.unwrap();
    // One that is read, and some that are not: they hold their windows full.
    let _read = begun(&session).await;
    let mut unread = Vec::new();
    for _ in 0..3 {
        unread.push(begun(&session).await);
    }
    let since = Instant::now();
    provider.revoke(id).await;
    let closed = within(session.connection.closed()).await.to_string();
    assert!(closed.contains("revoked"), "{closed}");
    ollama.until(|counts| counts.running == 0).await;
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    // It comes back a hundred times, and nothing of that is let in.
    for _ in 0..20 {
        let error = evil.meet(provider.mesh, "guest").await.err().expect("refused");
        assert!(error.to_string().contains("revoked"), "{error}");
    }
    assert!(provider.peer(id).is_none_or(|peer| peer.scope == Scope::None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_is_lowered_to_nothing_ends_what_runs() {
    let (ollama, provider) = slow().await;
    let (shown, id) = key();
    let session = Evil::showing(Some(shown)).meet(provider.mesh, "guest").await.unwrap();
    provider.trust(id, Scope::Infer).await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        answers.push(begun(&session).await);
    }
    let since = Instant::now();
    provider.trust(id, Scope::None).await;
    for answer in &mut answers {
        // To its end, which is a break.
        let mut ended = false;
        while let Some((kind, _)) = within(answer.next()).await {
            ended |= kind == END;
        }
        assert!(!ended, "an answer that was cut off seems to be whole");
    }
    ollama.until(|counts| counts.running == 0).await;
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    // The connection stays, so that it can be told.
    let said = session.ask("GET", "/api/version", &[], b"").await.unwrap();
    assert_eq!(said.status, 403, "{}", said.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_is_lowered_from_manage_ends_what_changes_models_and_nothing_else() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| {
        settings.pace = Duration::from_millis(20);
        settings.pull_pace = Duration::from_secs(5);
    });
    let provider = lender(&ollama).await;
    let (shown, id) = key();
    let session = Evil::showing(Some(shown)).meet(provider.mesh, "boss").await.unwrap();
    provider.trust(id, Scope::Manage).await;
    let mut answer = begun(&session).await;
    // A pull that is answered, and an upload of which nothing but the head has come.
    let (mut send, recv) = within(session.connection.open_bi()).await.unwrap();
    send.write_all(&frame(REQUEST, &head("POST", "/api/pull", &[], true))).await.unwrap();
    send.write_all(&[frame(DATA, br#"{"model":"new"}"#), frame(END, &[])].concat()).await.unwrap();
    let mut pull = Frames::of(recv);
    ollama.until(|counts| counts.of("/api/pull") == 1).await;
    let blob = "/api/blobs/sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let (mut upload, heard) = within(session.connection.open_bi()).await.unwrap();
    upload.write_all(&[frame(REQUEST, &head("POST", blob, &[], true)), frame(DATA, b"x")].concat()).await.unwrap();
    ollama.until(|counts| counts.running == 3).await;
    let since = Instant::now();
    provider.trust(id, Scope::Infer).await;
    while within(pull.next()).await.is_some_and(|(kind, _)| kind != END) {}
    assert!(within(Frames::of(heard).answer()).await.is_none_or(|said| !said.whole || said.status >= 400));
    ollama.until(|counts| counts.running == 1).await;
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());
    // The other goes on.
    for _ in 0..20 {
        assert_eq!(within(answer.next()).await.expect("more of it").0, DATA);
    }
    assert_eq!(session.ask("POST", "/api/pull", &[], br#"{"model":"n"}"#).await.unwrap().status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_revoked_gets_nothing_under_its_name_with_a_new_key() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (shown, id) = key();
    let _session = Evil::showing(Some(shown)).meet(provider.mesh, "guest").await.unwrap();
    provider.revoke(id).await;
    let generate = br#"{"model":"m","prompt":"x"}"#;
    for name in ["guest", "GUEST"] {
        for _ in 0..3 {
            let again = Evil::new().meet(provider.mesh, name).await.unwrap();
            let said = again.ask("POST", "/api/generate", &[], generate).await.unwrap();
            assert_eq!(said.status, 403, "{}", said.text());
        }
    }
    assert_eq!(ollama.counts().of("/api/generate"), 0);
    // It is no defence against another name.
    let renamed = Evil::new().meet(provider.mesh, "guest2").await.unwrap();
    assert_eq!(renamed.ask("POST", "/api/generate", &[], generate).await.unwrap().status, 200);
}
