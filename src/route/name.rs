//! Model names as Ollama compares them.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// What Ollama puts where a name says nothing (`types/model/name.go`).
const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// A model's name as a request wrote it, compared as Ollama compares: without case, with the host, namespace and tag
/// that it fills in. `smollm2`, `SMOLLM2:latest` and `registry.ollama.ai/library/smollm2` are one model.
#[derive(Debug, Clone)]
pub struct ModelName {
    written: String,
    canonical: String,
}

// === impl ModelName ===

impl ModelName {
    /// The name in a request or a list. Any text is a name; one that is not valid is no server's.
    pub fn new(written: &str) -> Self {
        Self { written: written.to_owned(), canonical: canonical(written) }
    }

    /// As it was written: what an answer or an error repeats.
    pub fn as_written(&self) -> &str {
        &self.written
    }

    /// The full lower-case form `host/namespace/model:tag`.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Whether Ollama would run it on the owner's account: tagged `:cloud`, or with a tag that ends in `-cloud`.
    /// As generous as Ollama's `modelref`: blanks and case do not count.
    pub fn is_cloud(&self) -> bool {
        // `…:cloud:local` is an error to Ollama; whoever writes both means mischief, so every part is looked at.
        self.written.split(':').skip(1).any(|part| {
            let part = part.trim().to_lowercase();
            part == "cloud" || (part.ends_with("-cloud") && !part.contains('/'))
        })
    }
}

impl PartialEq for ModelName {
    fn eq(&self, other: &Self) -> bool {
        self.canonical == other.canonical
    }
}

impl Eq for ModelName {}

impl PartialOrd for ModelName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ModelName {
    fn cmp(&self, other: &Self) -> Ordering {
        self.canonical.cmp(&other.canonical)
    }
}

impl Hash for ModelName {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.canonical.hash(state);
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

fn canonical(written: &str) -> String {
    let name = written.trim().to_lowercase();
    // `:local` says where and not what; it is cut before the name is read.
    let name = name.strip_suffix(":local").unwrap_or(&name);
    let (path, tag) = match (name.rfind(':'), name.rfind('/')) {
        (Some(colon), slash) if slash.is_none_or(|slash| colon > slash) => {
            let (path, tag) = name.split_at(colon);
            (path, tag.trim_start_matches(':'))
        }
        _ => (name, TAG),
    };
    let path = path.split_once("://").map_or(path, |(_scheme, rest)| rest);
    let mut parts = path.rsplitn(3, '/');
    let model = parts.next().unwrap_or_default();
    let namespace = parts.next().unwrap_or(NAMESPACE);
    let host = parts.next().unwrap_or(HOST);
    format!("{host}/{namespace}/{model}:{tag}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_model_has_many_spellings() {
        let plain = ModelName::new("smollm2");
        for spelling in [
            "smollm2:latest",
            "SMOLLM2",
            "library/smollm2",
            "registry.ollama.ai/library/smollm2",
            "https://registry.ollama.ai/library/SmolLM2:LATEST",
            " smollm2 ",
            "smollm2:local",
            "smollm2:latest:local",
        ] {
            assert_eq!(ModelName::new(spelling), plain, "{spelling}");
        }
        for other in ["smollm2:135m", "me/smollm2", "hf.co/library/smollm2", "smollm", ""] {
            assert_ne!(ModelName::new(other), plain, "{other}");
        }
        assert_eq!(ModelName::new("hf.co/Me/Repo:Q4_K_M").canonical(), "hf.co/me/repo:q4_k_m");
        assert_eq!(ModelName::new("host:5000/ns/m").canonical(), "host:5000/ns/m:latest");
    }

    #[test]
    fn cloud_models_are_told_by_their_tag_in_any_spelling() {
        for cloud in ["m:cloud", "m:120b-cloud", "M:Cloud", "m: cloud ", "ns/m:CLOUD", "m:x-Cloud", "m:cloud:local"] {
            assert!(ModelName::new(cloud).is_cloud(), "{cloud}");
        }
        for local in ["m", "m:latest", "cloud", "m-cloud", "cloud/m:7b", "m:cloudy", "h:80/n/m-cloud"] {
            assert!(!ModelName::new(local).is_cloud(), "{local}");
        }
    }
}
