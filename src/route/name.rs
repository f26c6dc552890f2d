//! Model names as Ollama compares them, and what it says of one that is none.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

/// What Ollama puts where a name says nothing (`types/model/name.go`).
const HOST: &str = "registry.ollama.ai";
const NAMESPACE: &str = "library";
const TAG: &str = "latest";

/// Longest host, and longest of each other part, in bytes (`types/model/name.go`).
const MAX_HOST: usize = 350;
const MAX_PART: usize = 80;

/// A model's name as a request wrote it, compared as Ollama compares: without case, with the host, namespace and tag
/// that it fills in. `smollm2`, `SMOLLM2:latest` and `registry.ollama.ai/library/smollm2` are one model.
#[derive(Debug, Clone)]
pub struct ModelName {
    written: String,
    canonical: String,
    fault: Option<NameFault>,
}

/// Why Ollama takes a text for no model's name (`internal/modelref`, `types/model/name.go`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameFault {
    /// There is none.
    Missing,
    /// It says both `:local` and `:cloud`.
    TwoSources,
    /// A part is missing, too long, or has characters that it must not have.
    Malformed,
}

// === impl ModelName ===

impl ModelName {
    /// The name in a request or a list. Any text is a name; what Ollama has against one is its [`ModelName::fault`], and
    /// such a one is only equal to its own spelling: other servers than Ollama name their models as they like.
    pub fn new(written: &str) -> Self {
        let (canonical, fault) = match parse(written) {
            Ok(canonical) => (canonical, None),
            // Never that of a name without a fault: that one is valid as it stands.
            Err(fault) => (written.trim().to_lowercase(), Some(fault)),
        };
        Self { written: written.to_owned(), canonical, fault }
    }

    /// As it was written: what an answer or an error repeats.
    pub fn as_written(&self) -> &str {
        &self.written
    }

    /// The full lower-case form `host/namespace/model:tag`; of a text that is no name to Ollama, the text in lower case.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// Why Ollama would not take it for a name.
    pub fn fault(&self) -> Option<NameFault> {
        self.fault
    }

    /// Without blanks around it and without `:local` or `:cloud`, which say where and not what.
    pub(super) fn base(&self) -> &str {
        source_cut(self.written.trim()).unwrap_or_else(|| self.written.trim())
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

/// The canonical form, if Ollama's `ParseRef` and then its `ParseName` take it for a name.
fn parse(written: &str) -> Result<String, NameFault> {
    let name = written.trim();
    if name.is_empty() {
        return Err(NameFault::Missing);
    }
    let base = source_cut(name).unwrap_or(name);
    if base.len() < name.len() && source_cut(base).is_some() {
        return Err(NameFault::TwoSources);
    }
    let canonical = assemble(base).ok_or(NameFault::Malformed)?;
    // `m:local` is the `m` that is here. `m:cloud` is not: what is there is another model, whose tag this is.
    let here = base.len() == name.len() || name.to_lowercase().ends_with("local");
    Ok(if here { canonical } else { assemble(name).unwrap_or_else(|| name.to_lowercase()) })
}

/// The parts of a name, filled in; nothing if one is not as it must be.
fn assemble(name: &str) -> Option<String> {
    let (name, tag) = match name.rfind(':') {
        Some(colon) if name.rfind('/').is_none_or(|slash| colon > slash) => {
            let (name, tag) = name.split_at(colon);
            (name, tag.strip_prefix(':').unwrap_or(tag))
        }
        _ => (name, TAG),
    };
    let mut parts = name.rsplitn(3, '/');
    let model = parts.next().unwrap_or_default();
    let namespace = parts.next().unwrap_or(NAMESPACE);
    let host = match parts.next() {
        Some(host) => match host.split_once("://") {
            Some((_scheme, "")) => HOST,
            Some((_scheme, host)) => host,
            None => host,
        },
        None => HOST,
    };
    let valid = is_part(host, MAX_HOST, "_-.:")
        && is_part(namespace, MAX_PART, "_-")
        && is_part(model, MAX_PART, "_-.")
        && is_part(tag, MAX_PART, "_-.");
    valid.then(|| format!("{host}/{namespace}/{model}:{tag}").to_ascii_lowercase())
}

/// What stands before `:local` or `:cloud`, or before the `-cloud` of a tag; nothing if the name says no source.
fn source_cut(name: &str) -> Option<&str> {
    let colon = name.rfind(':')?;
    let (base, suffix) = (name.get(..colon)?, name.get(colon + 1..)?.trim());
    let lower = suffix.to_lowercase();
    if lower == "cloud" || lower == "local" {
        return Some(base);
    }
    if suffix.contains('/') || !lower.ends_with("-cloud") {
        return None;
    }
    let name = name.trim_end();
    name.get(..name.len() - "-cloud".len())
}

fn is_part(part: &str, longest: usize, punctuation: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=longest).contains(&part.len())
        && part.starts_with(word)
        && part.chars().all(|c| word(c) || punctuation.contains(c))
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
        for other in ["\u{212a}-model", "m:120b-cloud"] {
            assert_ne!(ModelName::new("k-model"), ModelName::new(other), "{other}");
            assert_ne!(ModelName::new("m:120b"), ModelName::new(other), "{other}");
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

    #[test]
    fn what_ollama_takes_for_no_name_is_told() {
        use NameFault::*;
        for (text, fault) in [
            ("", Missing),
            (" \t", Missing),
            ("m:cloud:local", TwoSources),
            ("m: Local :CLOUD", TwoSources),
            ("m:7b-cloud:local", TwoSources),
            ("bad name", Malformed),
            ("-bad", Malformed),
            ("a/b/c/d", Malformed),
            ("m:", Malformed),
            ("/m", Malformed),
            ("//m", Malformed),
            (":x", Malformed),
            (":cloud", Malformed),
            ("m@sha", Malformed),
            ("m:80/x", Malformed),
            ("x/.m", Malformed),
            ("n.s/m", Malformed),
            ("\u{e9}", Malformed),
            ("\u{212a}", Malformed),
            ("a://m", Malformed),
        ] {
            assert_eq!(ModelName::new(text).fault(), Some(fault), "{text:?}");
        }
        for text in ["m", "m..n", "h:80/n/m:t", "http://h/n/m", "_m:_", " m ", "m:local", "m:cloud", "m:7b-cloud"] {
            assert_eq!(ModelName::new(text).fault(), None, "{text:?}");
        }
        for (length, fault) in [(80, None), (81, Some(Malformed))] {
            assert_eq!(ModelName::new(&"a".repeat(length)).fault(), fault);
        }
        // Other servers' names are names, if not Ollama's.
        assert_eq!(ModelName::new("/models/A b.gguf"), ModelName::new("/models/a b.gguf"));
    }
}
