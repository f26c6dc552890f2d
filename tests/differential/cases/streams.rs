//! Answers that come piece by piece.

use std::time::Duration;

use super::{Case, EITHER, Group, Kind, chat, generate, head, json, v1_chat};
use crate::fake_ollama::{FakeOllama, Settings};
use crate::wire::Script;

pub fn streams() -> Group {
    let streamed = r#","stream":true"#;
    let cases = [
        ("chat", json("POST /api/chat", chat(""))),
        ("chat, twice", [json("POST /api/chat", chat("")), json("POST /api/chat", chat(""))].concat()),
        ("generate", json("POST /api/generate", generate(""))),
        ("v1 chat", json("POST /v1/chat/completions", v1_chat(streamed))),
        (
            "v1 chat with usage",
            json("POST /v1/chat/completions", v1_chat(r#","stream":true,"stream_options":{"include_usage":true}"#)),
        ),
        (
            "v1 completions",
            json(
                "POST /v1/completions",
                r#"{"model":"smollm2","prompt":"one","max_tokens":3,"seed":1,"temperature":0,"stream":true}"#,
            ),
        ),
        (
            "v1 responses",
            json(
                "POST /v1/responses",
                r#"{"model":"smollm2","input":"one","max_output_tokens":3,"temperature":0,"stream":true}"#,
            ),
        ),
        ("v1 messages", json("POST /v1/messages", v1_chat(streamed))),
    ];
    let cases = cases.into_iter().map(|(name, request)| {
        let mut script = Script::one(request);
        script.heads.resize(if name.ends_with("twice") { 2 } else { 1 }, false);
        Case::new(name, script)
    });
    Group { name: "streams_come_chunk_by_chunk_as_asked_directly", of: EITHER, cases: cases.collect() }
}

/// What a real Ollama does not do on demand.
pub fn simulated_streams() -> Group {
    fn set(fake: &FakeOllama, change: fn(&mut Settings)) {
        fake.set(|settings| {
            *settings = Settings::default();
            change(settings);
        });
    }
    let chat =
        || Script::one(json("POST /api/chat", r#"{"model":"smollm2","messages":[{"role":"user","content":"x"}]}"#));
    let v1 = || {
        Script::one(json(
            "POST /v1/chat/completions",
            r#"{"model":"smollm2","stream":true,"messages":[{"role":"user","content":"x"}]}"#,
        ))
    };
    let old = r#"{"model":"smollm2","prompt":"x"}"#;
    let old = format!("POST /api/generate HTTP/1.0\r\nContent-Length: {}\r\n\r\n{old}", old.len());
    let cases = vec![
        Case::new("slowly", chat()).with(|fake| set(fake, |s| s.pace = Duration::from_millis(60))).in_time(),
        Case::new("slowly, events", v1()).with(|fake| set(fake, |s| s.pace = Duration::from_millis(60))).in_time(),
        Case::new("an error in the middle", chat()).with(|fake| set(fake, |s| s.error_after = Some(3))),
        Case::new("an error in the middle of events", v1()).with(|fake| set(fake, |s| s.error_after = Some(3))),
        Case::new("a break in the middle", chat()).with(|fake| set(fake, |s| s.break_after = Some(3))),
        Case::new("a break in the middle of events", v1()).with(|fake| set(fake, |s| s.break_after = Some(3))),
        Case::new("a break of what only the close ends", Script::one(old))
            .with(|fake| set(fake, |s| s.break_after = Some(3))),
        Case::new("a break of nothing but a head", Script::one(head("GET /api/version?fake=break&after=0"))),
        Case::new("a break after some bytes", Script::one(head("GET /api/version?fake=break&after=1000"))),
        Case::new("five thousand tokens", chat()).with(|fake| set(fake, |s| s.tokens = 5000)),
        Case::new("a pull", Script::one(json("POST /api/pull", r#"{"model":"pulled"}"#))),
        Case::new(
            "a pull without a stream",
            Script::one(json("POST /api/pull", r#"{"model":"pulled","stream":false}"#)),
        ),
        Case::new("bytes by length", Script::one(head("GET /api/version?fake=download&bytes=3000000&chunk=70000"))),
        Case::new(
            "bytes in chunks",
            Script::one(head("GET /api/version?fake=download&bytes=3000000&chunk=70000&chunked=1")),
        ),
        Case::new("an echo", Script::one(super::with_body("POST /api/blobs/x?fake=echo", "x".repeat(5000)))),
        Case::new(
            "a refusal before anything is read",
            Script::one(super::with_body("POST /api/blobs/x?fake=early", "x".repeat(5000))),
        ),
    ];
    Group { name: "streams_break_and_go_wrong_as_they_do_directly", of: &[Kind::Simulated], cases }
}
