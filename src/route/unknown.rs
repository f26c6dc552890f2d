//! What Ollama says of a model that it does not have, route by route: programs look for its words.

use super::{ModelName, NameFault};
use crate::exchange::{Refusal, RefusalCode};

/// What an application is told that asks at `path` for a model that no server has. The status and the sentence are those
/// of Ollama's route (compared with 0.24 and read in 0.33's `server/routes.go`); [`render`](super::render) gives them the
/// shape of the API.
pub fn unknown_model(path: &str, model: &ModelName) -> Refusal {
    let written = model.as_written();
    match model.fault() {
        Some(NameFault::Malformed) => RefusalCode::ModelName.into(),
        Some(NameFault::TwoSources) => {
            let message = format!("use either :local or :cloud, not both: {:?}", written.trim());
            Refusal::new(RefusalCode::ModelName, message)
        }
        Some(NameFault::Missing) => match path {
            "/api/generate" | "/api/embed" | "/v1/completions" | "/v1/embeddings" => not_found(written),
            _ => Refusal::new(RefusalCode::ModelName, "model is required"),
        },
        None if model.is_cloud() => {
            let message = format!(
                "model '{written}' runs in the cloud on the account of a server's owner; that is not shared with other \
                 nodes"
            );
            Refusal::new(RefusalCode::Cloud, message)
        }
        None => match path {
            "/api/embed" | "/api/embeddings" | "/v1/embeddings" => {
                Refusal::new(RefusalCode::NoModel, format!("model {written:?} not found, try pulling it first"))
            }
            "/api/show" => not_found(model.base()),
            _ if path.starts_with("/v1/models/") => not_found(model.base()),
            _ => not_found(written),
        },
    }
}

fn not_found(name: &str) -> Refusal {
    Refusal::new(RefusalCode::NoModel, format!("model '{name}' not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_has_ollamas_status_and_words() {
        for (path, name, status, message) in [
            ("/api/generate", "nope", 404, "model 'nope' not found"),
            ("/api/chat", " Nope:Tag ", 404, "model ' Nope:Tag ' not found"),
            ("/api/embed", "nope", 404, r#"model "nope" not found, try pulling it first"#),
            ("/api/embeddings", " nope ", 404, r#"model " nope " not found, try pulling it first"#),
            ("/v1/embeddings", "nope:local", 404, r#"model "nope:local" not found, try pulling it first"#),
            ("/api/show", " nope:local ", 404, "model 'nope' not found"),
            ("/v1/models/nope", "nope", 404, "model 'nope' not found"),
            ("/v1/messages", "nope", 404, "model 'nope' not found"),
            ("/v1/audio/transcriptions", "nope", 404, "model 'nope' not found"),
            ("/api/generate", "bad name", 400, "invalid model name"),
            ("/v1/chat/completions", "a/b/c/d", 400, "invalid model name"),
            ("/api/chat", "m:cloud:local", 400, r#"use either :local or :cloud, not both: "m:cloud:local""#),
            ("/api/generate", " ", 404, "model ' ' not found"),
            ("/v1/embeddings", " ", 404, "model ' ' not found"),
            ("/api/chat", " ", 400, "model is required"),
            ("/api/show", " ", 400, "model is required"),
            ("/v1/responses", " ", 400, "model is required"),
        ] {
            let refusal = unknown_model(path, &ModelName::new(name));
            assert_eq!(
                (refusal.code.status().as_u16(), refusal.message.as_str()),
                (status, message),
                "{path} {name:?}"
            );
        }
        let cloud = unknown_model("/api/chat", &ModelName::new("m:cloud"));
        assert_eq!((cloud.code.status(), cloud.code), (http::StatusCode::FORBIDDEN, RefusalCode::Cloud));
    }
}
