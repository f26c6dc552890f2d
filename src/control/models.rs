//! Every model of the mesh, and where it is.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::Mesh;
use crate::digests::Kept;
use crate::exchange::{ModelInfo, ServerKind};
use crate::id::{Id, NodeName, Use};
use crate::route::ModelName;

/// What one node has.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// The node.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Whether it is this node.
    pub local: bool,
    /// Whether requests of this node may go there.
    pub use_: Use,
    /// What its server speaks.
    pub api: ServerKind,
    /// Its models, as its report says.
    pub models: BTreeMap<String, ModelInfo>,
    /// Those of them that are in its memory.
    pub loaded: BTreeSet<String>,
}

/// One model as `ollana models --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelView {
    /// Its name.
    pub name: String,
    /// Whether a node has it that is used: else requests for it go nowhere.
    #[serde(default = "yes")]
    pub usable: bool,
    /// Its digest; if the nodes differ, the one that this node keeps to, or that most of them have.
    pub digest: String,
    /// The digest that this node keeps to, if it has used the model: requests for the name go where that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<String>,
    /// If nobody who is there has that: who had it and is away. Until they are back, or a person chooses, requests for
    /// the name go nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaited: Vec<NodeName>,
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
    /// Whether requests of this node may go there: one that is `pending` waits for a person to trust it.
    #[serde(rename = "use", default = "used")]
    pub use_: Use,
    /// The digest it has; empty where there are none.
    pub digest: String,
    /// Whether the model is in its memory.
    pub loaded: bool,
}

// Defaults of fields that a node of an earlier version does not send.

fn used() -> Use {
    Use::Yes
}

fn yes() -> bool {
    true
}

/// Every model that is there, by name.
pub fn models(mesh: &dyn Mesh) -> Vec<ModelView> {
    merge(mesh.catalogs(), |model| mesh.kept(model))
}

/// Merges what the nodes have, by the name of the model as Ollama compares names.
fn merge(catalogs: Vec<Catalog>, kept: impl Fn(&str) -> Option<Kept>) -> Vec<ModelView> {
    let mut models: BTreeMap<ModelName, (String, Vec<ModelNode>)> = BTreeMap::new();
    let there: BTreeSet<Id> = catalogs.iter().map(|catalog| catalog.id).collect();
    for catalog in catalogs {
        for (model, info) in catalog.models {
            let loaded = catalog.loaded.contains(&model);
            let (_, nodes) = models.entry(ModelName::new(&model)).or_insert_with(|| (model, Vec::new()));
            nodes.push(ModelNode {
                name: catalog.name.clone(),
                id: catalog.id,
                local: catalog.local,
                api: catalog.api,
                use_: catalog.use_,
                digest: info.digest,
                loaded,
            });
        }
    }
    let mut views: Vec<_> = models.into_values().map(|(name, nodes)| view(kept(&name), name, nodes, &there)).collect();
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

fn view(kept: Option<Kept>, name: String, nodes: Vec<ModelNode>, there: &BTreeSet<Id>) -> ModelView {
    let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
    // Only an Ollama gives digests; where there is none, nobody can tell.
    // A node that is not used does not count.
    let used = |node: &&ModelNode| node.use_ == Use::Yes;
    for node in nodes.iter().filter(used).filter(|node| !node.digest.is_empty()) {
        *votes.entry(&node.digest).or_default() += 1;
    }
    let conflict = votes.len() > 1;
    let held = kept.as_ref().map(|kept| kept.digest.clone()).filter(|kept| votes.contains_key(&**kept));
    let holders = kept.iter().filter(|_| held.is_none()).flat_map(|kept| &kept.holders);
    let awaited = holders.filter(|holder| !there.contains(&holder.id)).map(|holder| holder.name.clone()).collect();
    let most = votes.into_iter().max_by_key(|(_, votes)| *votes).map(|(digest, _)| digest.to_owned());
    let loaded = nodes.iter().filter(used).filter(|node| node.loaded).map(|node| node.name.clone()).collect();
    let kept = kept.map(|kept| kept.digest);
    let usable = nodes.iter().any(|node| used(&node));
    // Of nodes that are not used the first one's, to have something to compare.
    let digest = held.or(most).or_else(|| nodes.first().map(|node| node.digest.clone())).unwrap_or_default();
    ModelView { digest, name, usable, kept, awaited, nodes, loaded, conflict }
}

impl ModelView {
    /// Whether requests for the name go to this node: where nodes differ, those that have the weights that it stands for.
    pub fn is_kept_to(&self, node: &ModelNode) -> bool {
        self.kept.as_ref().is_none_or(|kept| node.digest.is_empty() || node.digest == *kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, models: &[(&str, &str, bool)]) -> Catalog {
        let info = |digest: &str| ModelInfo { digest: digest.to_owned(), ..ModelInfo::default() };
        Catalog {
            name: NodeName::lossy(name),
            id: Id::of_spki(name.as_bytes()),
            local: false,
            use_: Use::Yes,
            api: ServerKind::Ollama,
            models: models.iter().map(|(name, digest, _)| ((*name).to_owned(), info(digest))).collect(),
            loaded: models.iter().filter(|(_, _, loaded)| *loaded).map(|(name, ..)| (*name).to_owned()).collect(),
        }
    }

    #[test]
    fn a_name_with_two_digests_is_a_conflict() {
        let catalogs = vec![
            node("a", &[("qwen3:latest", "x", true), ("tiny:latest", "t", false)]),
            node("b", &[("Qwen3:latest", "y", true)]),
            node("c", &[("qwen3:latest", "y", false)]),
        ];
        let models = merge(catalogs.clone(), |_| None);
        let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["qwen3:latest", "tiny:latest"]);
        assert!(models[0].conflict && !models[1].conflict);
        assert_eq!(models[0].digest, "y");
        assert_eq!(models[0].loaded, [NodeName::lossy("a"), NodeName::lossy("b")]);
        assert_eq!(models[0].nodes.len(), 3);
        assert!(models[0].nodes.iter().all(|node| models[0].is_kept_to(node)));

        let holders = vec![crate::digests::Holder { id: Id::of_spki(b"a"), name: NodeName::lossy("a") }];
        let kept = Kept { digest: "x".to_owned(), holders, chosen: false };
        let models = merge(catalogs.clone(), |model| (model == "qwen3:latest").then(|| kept.clone()));
        assert_eq!((&*models[0].digest, models[0].kept.as_deref()), ("x", Some("x")));
        let kept_to: Vec<bool> = models[0].nodes.iter().map(|node| models[0].is_kept_to(node)).collect();
        assert_eq!(kept_to, [true, false, false]);
        assert!(models[0].awaited.is_empty());
        let models = merge(catalogs[1..].to_vec(), |model| {
            (ModelName::new(model) == ModelName::new("qwen3")).then(|| kept.clone())
        });
        assert_eq!((&*models[0].digest, &*models[0].awaited), ("y", &[NodeName::lossy("a")][..]));
        // Who is there and has it no more is not waited for.
        let changed = [vec![node("a", &[("tiny:latest", "t", false)])], catalogs[1..].to_vec()].concat();
        assert!(merge(changed, |_| Some(kept.clone()))[0].awaited.is_empty());
    }

    #[test]
    fn a_node_that_is_not_used_makes_no_model_usable_and_no_conflict() {
        let pending = |name, models: &[(&str, &str, bool)]| Catalog { use_: Use::Pending, ..node(name, models) };
        let models =
            merge(vec![node("a", &[("m", "x", false)]), pending("b", &[("m", "y", true), ("n", "z", true)])], |_| None);
        assert!(models[0].usable && !models[0].conflict && models[0].digest == "x" && models[0].loaded.is_empty());
        assert!(!models[1].usable && models[1].digest == "z" && models[1].loaded.is_empty());
    }

    #[test]
    fn a_server_without_digests_is_no_conflict() {
        let llama = Catalog { api: ServerKind::OpenAi, ..node("b", &[("m", "", true)]) };
        let models = merge(vec![node("a", &[("m", "x", true)]), llama], |_| None);
        assert!(!models[0].conflict);
        assert_eq!(models[0].digest, "x");
        assert_eq!(models[0].nodes[1].api, ServerKind::OpenAi);
    }
}
