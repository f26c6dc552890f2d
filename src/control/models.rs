//! Every model of the mesh, and where it is.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::exchange::{ModelInfo, ServerKind};
use crate::id::{Id, NodeName};

/// What one node has.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The node.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Whether it is this node.
    pub local: bool,
    /// What its server speaks.
    pub api: ServerKind,
    /// Its models, as its report says.
    pub models: BTreeMap<String, ModelInfo>,
}

/// One model as `ollana models --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Its digest, the one that most nodes have if they differ.
    pub digest: String,
    /// Who has it.
    pub nodes: Vec<ModelNode>,
    /// The names of the nodes that have it in memory.
    pub loaded: Vec<NodeName>,
    /// Whether different models stand under this name.
    pub conflict: bool,
}

/// A node that has a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNode {
    /// Its name.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Whether it is this node.
    pub local: bool,
    /// What its server speaks: on one that is no Ollama the model is had at `/v1` alone.
    #[serde(default)]
    pub api: ServerKind,
    /// The digest it has; empty where there are none.
    pub digest: String,
    /// Whether the model is in its memory.
    pub loaded: bool,
}

/// Merges what the nodes have, by the name of the model.
pub fn merge(catalogs: Vec<Catalog>) -> Vec<ModelView> {
    let mut models: BTreeMap<String, Vec<ModelNode>> = BTreeMap::new();
    for catalog in catalogs {
        for (model, info) in catalog.models {
            models.entry(model).or_default().push(ModelNode {
                name: catalog.name.clone(),
                id: catalog.id,
                local: catalog.local,
                api: catalog.api,
                digest: info.digest,
                loaded: info.loaded,
            });
        }
    }
    models
        .into_iter()
        .map(|(name, nodes)| {
            let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
            // Only an Ollama gives digests; where there is none, nobody can tell.
            for node in nodes.iter().filter(|node| !node.digest.is_empty()) {
                *votes.entry(&node.digest).or_default() += 1;
            }
            let conflict = votes.len() > 1;
            let digest = votes.into_iter().max_by_key(|(_, votes)| *votes).map_or(String::new(), |(d, _)| d.to_owned());
            let loaded = nodes.iter().filter(|node| node.loaded).map(|node| node.name.clone()).collect();
            ModelView { name, digest, nodes, loaded, conflict }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, models: &[(&str, &str, bool)]) -> Catalog {
        let info = |digest: &str, loaded| ModelInfo { digest: digest.to_owned(), loaded };
        Catalog {
            name: NodeName::lossy(name),
            id: Id::of_spki(name.as_bytes()),
            local: false,
            api: ServerKind::Ollama,
            models: models.iter().map(|(name, digest, loaded)| ((*name).to_owned(), info(digest, *loaded))).collect(),
        }
    }

    #[test]
    fn a_name_with_two_digests_is_a_conflict() {
        let models = merge(vec![
            node("a", &[("qwen3:latest", "x", true), ("tiny:latest", "t", false)]),
            node("b", &[("qwen3:latest", "y", true)]),
            node("c", &[("qwen3:latest", "y", false)]),
        ]);
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["qwen3:latest", "tiny:latest"]);
        assert!(models[0].conflict && !models[1].conflict);
        assert_eq!(models[0].digest, "y");
        assert_eq!(models[0].loaded, [NodeName::lossy("a"), NodeName::lossy("b")]);
        assert_eq!(models[0].nodes.len(), 3);
    }

    #[test]
    fn a_server_without_digests_is_no_conflict() {
        let llama = Catalog { api: ServerKind::OpenAi, ..node("b", &[("m", "", true)]) };
        let models = merge(vec![node("a", &[("m", "x", true)]), llama]);
        assert!(!models[0].conflict);
        assert_eq!(models[0].digest, "x");
        assert_eq!(models[0].nodes[1].api, ServerKind::OpenAi);
    }
}
