//! `ollana models`.

use super::output::{Table, print, print_json};
use super::{Failure, Place, block_on};
use crate::control::ModelView;
use crate::exchange::ServerKind;

/// Lists the models of the mesh.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let models: Vec<ModelView> = block_on(async { Ok(place.client().await?.get("/models").await?) })?;
    if json { print_json(&models) } else { print(&render(&models)) }
}

fn render(models: &[ModelView]) -> String {
    if models.is_empty() {
        return "nobody lends a model; `ollana peers` shows who is there\n".to_owned();
    }
    let mut table = Table::new(&["MODEL", "DIGEST", "NODES", "LOADED"]);
    for model in models {
        let digest = |digest: &str| digest.chars().take(12).collect::<String>();
        let nodes: Vec<String> = model
            .nodes
            .iter()
            .map(|node| match node.api {
                ServerKind::Ollama if model.conflict => format!("{} ({})", node.name, digest(&node.digest)),
                ServerKind::Ollama => node.name.to_string(),
                ServerKind::OpenAi | ServerKind::Grpc => format!("{} (/v1 only)", node.name),
            })
            .collect();
        let loaded: Vec<String> = model.loaded.iter().map(ToString::to_string).collect();
        let of_all = if model.conflict { "differs!".to_owned() } else { digest(&model.digest) };
        table.row([model.name.clone(), of_all, nodes.join(", "), loaded.join(", ")]);
    }
    table.render()
}
