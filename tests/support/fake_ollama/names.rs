//! What Ollama has against a model's name, route by route: asked of a real 0.24, and written without the crate's own
//! names so that the two can be held against each other.

use super::answers::{Answer, fault, v1_fault};
use super::json_text;

/// The refusal of a name that is none; nothing if it is one.
pub(super) fn objection(path: &str, name: &str) -> Option<Answer> {
    let trimmed = name.trim();
    let required = |message: &str| Some(refusal(path, message));
    let reads_refs = !matches!(path, "/api/create" | "/api/push");
    if trimmed.is_empty() {
        return match path {
            "/api/generate" | "/api/embed" | "/v1/completions" | "/v1/embeddings" => {
                Some(fault(path, 404, &format!("model '{name}' not found")))
            }
            "/api/create" | "/api/pull" => required("invalid model name"),
            // Its middleware sees the empty name before Ollama sees it.
            "/v1/messages" if name.is_empty() => Some(fault(path, 400, "model is required")),
            "/api/push" if !name.is_empty() => None,
            _ => required("model is required"),
        };
    }
    let sources = trimmed.rsplit(':').take_while(|part| ["local", "cloud"].contains(&part.to_lowercase().as_str()));
    let sources = sources.count();
    if sources > 1 && reads_refs {
        return required(&format!("use either :local or :cloud, not both: {}", json_text(trimmed)));
    }
    let base =
        if sources == 1 && reads_refs { trimmed.rsplit_once(':').map_or(trimmed, |(base, _)| base) } else { trimmed };
    if is_name(base) || path == "/api/push" {
        return None;
    }
    match path {
        "/api/delete" => required(&format!("name {} is invalid", json_text(trimmed))),
        _ => required("invalid model name"),
    }
}

/// A 400 that comes from behind the middleware of `/v1`, and so as its other errors do.
fn refusal(path: &str, message: &str) -> Answer {
    if path.starts_with("/v1/") { v1_fault(path, 400, message) } else { fault(path, 400, message) }
}

/// `[host/][namespace/]model[:tag]`, each of its own characters.
pub(super) fn is_name(name: &str) -> bool {
    let slash = name.rfind('/').map_or(0, |slash| slash + 1);
    let (front, last) = name.split_at(slash);
    let (model, tag) = last.split_once(':').map_or((last, None), |(model, tag)| (model, Some(tag)));
    let front: Vec<_> = front.trim_end_matches('/').split('/').collect();
    let front: &[&str] = if slash == 0 { &[] } else { &front };
    let part = |part: &str, others: &str| {
        let first = part.chars().next();
        part.len() <= 80
            && first.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
    };
    let before = match front {
        [] => true,
        [namespace] => part(namespace, "_-"),
        [host, namespace] => part(host, "_-.:") && part(namespace, "_-"),
        _ => false,
    };
    before && !name.contains("//") && part(model, "_-.") && tag.is_none_or(|tag| part(tag, "_-."))
}
