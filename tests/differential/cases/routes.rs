//! Ollama's own routes (v0.33.0-rc2, `server/routes.go`).

use super::{Case, EITHER, Group, MODEL, Side, chat, digest, generate, head, json, v1_chat, with_body};
use crate::wire::Script;

/// All but those that never cross the mesh, which [`owner`](crate::owner) looks at.
const ROUTES: [&str; 22] = [
    "/",
    "/api/version",
    "/api/pull",
    "/api/tags",
    "/api/show",
    "/api/delete",
    "/api/create",
    "/api/blobs/sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "/api/copy",
    "/api/ps",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/models",
    "/v1/models/smollm2",
    "/v1/responses",
    "/v1/audio/transcriptions",
    "/v1/messages",
];

/// Those of them that read JSON by POST or DELETE.
const JSON: [&str; 14] = [
    "/api/pull",
    "/api/show",
    "/api/delete",
    "/api/create",
    "/api/copy",
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/responses",
];

const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"];

/// Without a body, with an empty object, and with one that names nothing that is there.
pub fn every_route() -> Group {
    let mut cases = Vec::new();
    for route in ROUTES {
        for method in METHODS {
            cases.push(Case::new(format!("{method} {route}"), Script::one(head(&format!("{method} {route}")))));
        }
        for (name, body) in [
            ("an empty object", "{}"),
            (
                "a model that is not there",
                r#"{"model":"nope","messages":[{"role":"user","content":"x"}],"prompt":"x","input":"x","max_tokens":1,"source":"nope","destination":"x"}"#,
            ),
            ("no JSON", "nonsense"),
            ("a number for a model", r#"{"model":3}"#),
        ] {
            // Nothing is asked of the network here.
            if route == "/api/pull" && name.starts_with("a model") || route.contains("blobs") {
                continue;
            }
            // Two faults at once, the model and what is no form: which of them is said first is left open (`allowed`), and
            // goes by whether a model was made here two seconds ago.
            if route.contains("transcriptions") && name.starts_with("a model") {
                continue;
            }
            let method = if route == "/api/delete" { "DELETE" } else { "POST" };
            let request = json(&format!("{method} {route}"), body);
            cases.push(Case::new(format!("{name} for {method} {route}"), Script::one(request)));
            // A list where Ollama wants an object.
            if JSON.contains(&route) && name == "no JSON" {
                let request = json(&format!("{method} {route}"), "[]");
                cases.push(Case::new(format!("[] for {method} {route}"), Script::one(request)));
            }
            let request = json(&format!("PUT {route}"), body);
            cases.push(Case::new(format!("{name} for PUT {route}"), Script::one(request)));
        }
    }
    Group { name: "every_route_by_every_method_is_as_asked_directly", of: EITHER, cases }
}

pub fn model_names() -> Group {
    let mut cases = Vec::new();
    for name in [
        "smollm2",
        "smollm2:latest",
        "SmolLM2",
        "SMOLLM2:LATEST",
        "library/smollm2",
        "registry.ollama.ai/library/smollm2:latest",
        "smollm2:other",
        "",
        " ",
        "a b",
        "!",
        "a//b",
        "/",
        ":",
        "smollm2:",
        "a:b:c",
        "x/y/z/smollm2",
        "ünï",
        "-x",
        "smollm2@sha256:00",
        "../smollm2",
    ] {
        let short = r#""stream":false,"options":{"num_predict":1,"seed":1,"temperature":0}"#;
        let generate = format!(r#"{{"model":"{name}","prompt":"x",{short}}}"#);
        cases.push(Case::new(format!("generate with {name:?}"), Script::one(json("POST /api/generate", generate))));
        let show = format!(r#"{{"model":"{name}"}}"#);
        cases.push(Case::new(format!("show {name:?}"), Script::one(json("POST /api/show", show))));
        let v1 = format!(
            r#"{{"model":"{name}","messages":[{{"role":"user","content":"x"}}],"max_tokens":1,"seed":1,"temperature":0}}"#
        );
        cases.push(Case::new(format!("v1 chat with {name:?}"), Script::one(json("POST /v1/chat/completions", v1))));
        let embed = format!(r#"{{"model":"{name}","input":"x"}}"#);
        cases.push(Case::new(format!("embed with {name:?}"), Script::one(json("POST /api/embed", embed))));
        if !name.is_empty() && name.is_ascii() && !name.contains([' ', '/']) {
            cases.push(Case::new(format!("v1 model {name:?}"), Script::one(head(&format!("GET /v1/models/{name}")))));
        }
    }
    for (name, body) in [
        ("name in place of model", r#"{"name":"smollm2"}"#),
        ("an empty model and a name", r#"{"model":"","name":"smollm2"}"#),
        ("a model and an empty name", r#"{"model":"smollm2","name":""}"#),
        ("a model and another name", r#"{"model":"smollm2","name":"nope"}"#),
        ("null for a model", r#"{"model":null,"name":"smollm2"}"#),
        ("keys in other case", r#"{"MODEL":"smollm2"}"#),
        ("a key with a long s", "{\"ſtream\":false,\"model\":\"smollm2\"}"),
        ("escapes", r#"{"\u006dodel":"smo\u006clm2"}"#),
        ("more behind the value", r#"{"model":"smollm2"} {"model":"nope"}"#),
        ("nonsense behind the value", r#"{"model":"smollm2"}}}}"#),
        ("a byte order mark", "\u{feff}{\"model\":\"smollm2\"}"),
        ("blanks", " \r\n\t{\"model\" : \"smollm2\"}\n "),
        ("no end", r#"{"model":"smollm2""#),
        ("no end of the text", r#"{"model":"smollm2"#),
        ("a comma too many", r#"{"model":"smollm2",}"#),
        ("nothing but blanks", "  \n"),
        ("a text", r#""smollm2""#),
        ("null", "null"),
    ] {
        cases.push(Case::new(format!("show with {name}"), Script::one(json("POST /api/show", body))));
        cases.push(Case::new(format!("v1 chat with {name}"), Script::one(json("POST /v1/chat/completions", body))));
        cases.push(Case::new(format!("embed with {name}"), Script::one(json("POST /api/embed", body))));
    }
    Group { name: "models_are_named_and_misnamed_as_asked_directly", of: EITHER, cases }
}

/// What changes models. Each case leaves things as they were.
pub fn managed() -> Group {
    let zeros = "0".repeat(64);
    let blob = |side: Side| format!("what only {side:?} puts there, at {:?}", std::time::Instant::now()).into_bytes();
    let mut cases = vec![
        Case::new(
            "copy, show, delete, delete again",
            Script::in_turn(&[
                json("POST /api/copy", r#"{"source":"smollm2","destination":"copied"}"#),
                json("DELETE /api/delete", r#"{"model":"copied"}"#),
                json("DELETE /api/delete", r#"{"model":"copied"}"#),
            ]),
        ),
        Case::new("copy of nothing", Script::one(json("POST /api/copy", r#"{"source":"nope","destination":"x"}"#))),
        Case::new("copy of a bad name", Script::one(json("POST /api/copy", r#"{"source":"!","destination":"x"}"#))),
        Case::new(
            "copy to a bad name",
            Script::one(json("POST /api/copy", r#"{"source":"smollm2","destination":"!"}"#)),
        ),
        Case::new("delete of nothing", Script::one(json("DELETE /api/delete", r#"{"model":"nope"}"#))),
        Case::new("create from nothing", Script::one(json("POST /api/create", r#"{"model":"x"}"#))),
        Case::new(
            "create from a blob that is not there",
            Script::one(json("POST /api/create", format!(r#"{{"model":"x","files":{{"f":"sha256:{zeros}"}}}}"#))),
        ),
        Case::new(
            "create and delete",
            Script::in_turn(&[
                json("POST /api/create", r#"{"model":"made","from":"smollm2","system":"x"}"#),
                json("DELETE /api/delete", r#"{"model":"made"}"#),
            ]),
        ),
        Case::new("a blob that is not there", Script::one(head(&format!("HEAD /api/blobs/sha256:{zeros}")))),
        Case::new("a blob of a bad name", Script::one(head("HEAD /api/blobs/nonsense"))),
        Case::new(
            "a blob with another digest",
            Script::one(with_body(&format!("POST /api/blobs/sha256:{zeros}"), "not this")),
        ),
        Case::each("a blob, and again", move |side| {
            let bytes = blob(side);
            let path = format!("/api/blobs/{}", digest(&bytes));
            Script::in_turn(&[
                with_body(&format!("POST {path}"), &bytes),
                head(&format!("HEAD {path}")),
                with_body(&format!("POST {path}"), &bytes),
                head(&format!("HEAD {path}")),
            ])
        }),
        Case::each("a blob that is there, after a promise of more than comes", move |side| {
            let bytes = blob(side);
            let path = format!("/api/blobs/{}", digest(&bytes));
            let mut again = Script::in_turn(&[with_body(&format!("POST {path}"), &bytes)]);
            let promise = head(&format!("POST {path}\nContent-Length: 90000000\nExpect: 100-continue"));
            again.steps.push(crate::wire::Step::Send(promise));
            again.heads.push(false);
            again.then_listen()
        }),
    ];
    for (name, request) in [
        ("show", json("POST /api/show", format!(r#"{{"model":"{MODEL}"}}"#))),
        ("show, verbose", json("POST /api/show", format!(r#"{{"model":"{MODEL}","verbose":true}}"#))),
        ("generate", json("POST /api/generate", generate(r#","stream":false"#))),
        ("chat", json("POST /api/chat", chat(r#","stream":false"#))),
        ("load", json("POST /api/generate", format!(r#"{{"model":"{MODEL}"}}"#))),
        ("embed", json("POST /api/embed", format!(r#"{{"model":"{MODEL}","input":["one","two"]}}"#))),
        ("embeddings", json("POST /api/embeddings", format!(r#"{{"model":"{MODEL}","prompt":"one"}}"#))),
        ("v1 embeddings", json("POST /v1/embeddings", format!(r#"{{"model":"{MODEL}","input":"one"}}"#))),
        ("v1 chat", json("POST /v1/chat/completions", v1_chat(""))),
        (
            "v1 completions",
            json(
                "POST /v1/completions",
                format!(r#"{{"model":"{MODEL}","prompt":"one","max_tokens":3,"seed":1,"temperature":0}}"#),
            ),
        ),
        (
            "v1 responses",
            json(
                "POST /v1/responses",
                format!(r#"{{"model":"{MODEL}","input":"one","max_output_tokens":3,"temperature":0}}"#),
            ),
        ),
        ("v1 messages", json("POST /v1/messages", v1_chat(""))),
    ] {
        cases.push(Case::new(name, Script::one(request)));
    }
    Group { name: "what_runs_and_what_changes_models_is_as_asked_directly", of: EITHER, cases }
}
