//! What never crosses the mesh, or not with this scope: refused in the shape that the caller's library parses, with
//! nothing of it at the Ollama.

use libtest_mimic::Failed;
use ollana::internals::id::Scope;
use serde_json::Value;

use super::cases::{head, json};
use super::lab::Lab;
use super::wire::{Answer, Script, lossy};

/// A request, and what it is answered.
struct Forbidden {
    /// The least scope with which it is tried.
    scope: Scope,
    request: Vec<u8>,
    status: &'static str,
    shape: Shape,
}

/// Whose errors a library of the API parses.
enum Shape {
    Ollama,
    OpenAi(&'static str),
    Anthropic(&'static str),
    /// No error: `/api/status` says that there is no cloud.
    NoCloud,
}

const FORBIDDEN: &str = "HTTP/1.1 403 Forbidden";

fn table() -> Vec<Forbidden> {
    let chat =
        r#"{"model":"gpt-oss:120b-cloud","messages":[{"role":"user","content":"x"}],"max_tokens":1,"input":"x"}"#;
    let search = r#"{"model":"smollm2","max_tokens":1,"messages":[{"role":"user","content":"x"}],"tools":[{"type":"web_search_20250305","name":"web_search"}]}"#;
    let ollama = |scope, request, status| Forbidden { scope, request, status, shape: Shape::Ollama };
    let mut table = vec![
        // Needs `manage`, and has `infer`.
        ollama(Scope::None, json("POST /api/pull", r#"{"model":"x"}"#), FORBIDDEN),
        ollama(Scope::None, json("POST /api/create", r#"{"model":"x","from":"smollm2"}"#), FORBIDDEN),
        ollama(Scope::None, json("POST /api/copy", r#"{"source":"smollm2","destination":"x"}"#), FORBIDDEN),
        ollama(Scope::None, json("DELETE /api/delete", r#"{"model":"smollm2"}"#), FORBIDDEN),
        ollama(Scope::None, json("POST /api/blobs/sha256:0", "x"), FORBIDDEN),
        ollama(Scope::None, json("POST //api/delete", r#"{"model":"smollm2"}"#), FORBIDDEN),
        ollama(Scope::None, json("DELETE /api/%64elete", r#"{"model":"smollm2"}"#), FORBIDDEN),
        // Acts on the owner's account, whoever asks.
        ollama(Scope::Infer, json("POST /api/push", r#"{"model":"smollm2"}"#), FORBIDDEN),
        ollama(Scope::Infer, head("POST /api/me"), "HTTP/1.1 401 Unauthorized"),
        ollama(Scope::Infer, head("POST /api/signout"), FORBIDDEN),
        ollama(Scope::Infer, head("DELETE /api/user/keys/x"), FORBIDDEN),
        ollama(Scope::Infer, json("POST /api/experimental/web_search", r#"{"query":"x"}"#), FORBIDDEN),
        ollama(Scope::Infer, json("POST /api/experimental/web_fetch", r#"{"url":"http://x"}"#), FORBIDDEN),
        ollama(Scope::Infer, head("GET /api/experimental/model-recommendations"), FORBIDDEN),
        ollama(Scope::Infer, json("POST /api/chat", chat), FORBIDDEN),
        ollama(Scope::Infer, json("POST /api/generate", chat), FORBIDDEN),
        ollama(Scope::Infer, json("POST /api/embed", chat), FORBIDDEN),
    ];
    for path in ["/v1/chat/completions", "/v1/responses", "/v1/embeddings"] {
        let request = json(&format!("POST {path}"), chat);
        table.push(Forbidden { scope: Scope::Infer, request, status: FORBIDDEN, shape: Shape::OpenAi("api_error") });
    }
    for body in [chat, search] {
        let shape = Shape::Anthropic("permission_error");
        table.push(Forbidden {
            scope: Scope::Infer,
            request: json("POST /v1/messages", body),
            status: FORBIDDEN,
            shape,
        });
    }
    let request = head("GET /api/status");
    table.push(Forbidden { scope: Scope::Infer, request, status: "HTTP/1.1 200 OK", shape: Shape::NoCloud });
    table
}

/// Asks all of the table that is forbidden with this scope.
pub fn all_is_refused(lab: &Lab, scope: Scope) -> Result<(), Failed> {
    let fake = lab.fake.as_ref().ok_or("wants a simulated Ollama")?;
    let mut wrong = String::new();
    // Its gate asks it for its models now and then.
    let asked = || {
        fake.counts()
            .requests
            .iter()
            .filter(|(path, _)| !ITS_GATE.contains(&path.as_str()))
            .map(|(_, n)| n)
            .sum::<u64>()
    };
    for forbidden in table().iter().filter(|forbidden| forbidden.scope == Scope::Infer || scope == Scope::Infer) {
        let before = asked();
        let script = Script::one(forbidden.request.clone());
        let heard = script.play(lab.mesh);
        let fault = heard.answers.first().map_or(Some("no answer"), |answer| fault(forbidden, answer));
        let fault = fault.or((asked() != before).then_some("it came to the Ollama"));
        if let Some(fault) = fault {
            wrong.push_str(&format!("\n{fault}:\n{script}{heard}"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.into()) }
}

/// What a gate asks its Ollama by itself.
const ITS_GATE: [&str; 4] = ["/api/tags", "/api/ps", "/api/version", "/"];

fn fault(forbidden: &Forbidden, answer: &Answer) -> Option<&'static str> {
    if answer.status != forbidden.status {
        return Some("another status");
    }
    if answer.values("ollana-peer").next().is_none() || answer.values("ollana-refusal").next().is_some() {
        return Some("the mesh's own fields are wrong");
    }
    let Ok(body) = serde_json::from_str::<Value>(&lossy(&answer.body())) else { return Some("no JSON") };
    let said = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
    let right = match forbidden.shape {
        Shape::Ollama => said(&body["error"]),
        Shape::OpenAi(kind) => said(&body["error"]["message"]) && body["error"]["type"] == kind,
        Shape::Anthropic(kind) => {
            body["type"] == "error"
                && said(&body["error"]["message"])
                && body["error"]["type"] == kind
                && said(&body["request_id"])
        }
        Shape::NoCloud => body["cloud"]["disabled"] == true,
    };
    (!right).then_some("another shape")
}
