//! `ollana models`.

use std::collections::BTreeSet;

use super::output::{Table, print, print_json, shown};
use super::{Failure, Place, block_on};
use crate::control::{KeepRequest, Keeping, ModelNode, ModelView};
use crate::exchange::{ServerKind, Unusable};
use crate::id::{NodeName, Use};

/// What `ollana models` takes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Use the version of this model that the node has, where nodes have different ones under its name
    #[arg(long, value_name = "MODEL@PEER")]
    keep: Option<String>,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Lists the models that are available, or chooses which version a name means.
pub(super) fn run(args: &Args, place: &Place) -> Result<(), Failure> {
    if let Some(wanted) = &args.keep {
        return keep(wanted, args.json, place);
    }
    let (models, unusable): (Vec<ModelView>, Vec<Unusable>) = block_on(async {
        let client = place.client().await?;
        Ok((client.get("/models").await?, client.get("/unusable").await?))
    })?;
    if args.json { print_json(&models) } else { print(&render(&models, &unusable)) }
}

fn keep(wanted: &str, json: bool, place: &Place) -> Result<(), Failure> {
    let (model, peer) = wanted
        .rsplit_once('@')
        .filter(|(model, peer)| !model.is_empty() && !peer.is_empty())
        .ok_or_else(|| Failure::usage(format!("--keep {wanted}: give a model and a node, as in qwen3@gpu1")))?;
    let request = KeepRequest { model: model.to_owned(), peer: peer.to_owned() };
    let keeping: Keeping = block_on(async { Ok(place.client().await?.post("/keep", &request).await?) })?;
    if json {
        return print_json(&keeping);
    }
    let Keeping { model, digest, peer } = keeping;
    print(&format!("{model} now means {}, the version on {peer}\n", short(&digest)))
}

/// As `ollama list` shows a digest.
pub(super) fn short(digest: &str) -> String {
    digest.chars().take(12).collect()
}

fn render(models: &[ModelView], unusable: &[Unusable]) -> String {
    let mut text = match models.is_empty() {
        true => "no models are available; `ollana peers` lists the other nodes\n".to_owned(),
        false => table(models),
    };
    for away in models.iter().filter_map(out_of_reach) {
        text += &format!("! {}\n", shown(&away));
    }
    let pending = models.iter().flat_map(|model| &model.nodes).filter(|node| node.use_ == Use::Pending);
    let pending: BTreeSet<&NodeName> = pending.map(|node| &node.name).collect();
    for node in pending {
        text += &format!("! {node} is not used until a person trusts it → ollana trust {node}\n");
    }
    for node in unusable {
        text += &format!("! {}\n", shown(&node.sentence()));
    }
    text
}

fn table(models: &[ModelView]) -> String {
    let mut table = Table::new(&["MODEL", "DIGEST", "NODES", "LOADED"]);
    for model in models {
        let nodes: Vec<String> = model.nodes.iter().map(|node| node_of(model, node)).collect();
        let loaded: Vec<String> = model.loaded.iter().map(ToString::to_string).collect();
        let of_all = if model.conflict { "differs!".to_owned() } else { short(&model.digest) };
        table.row([model.name.clone(), of_all, nodes.join(", "), loaded.join(", ")]);
    }
    table.render()
}

/// A node, with the weights that it has where that is not what all others have and this node keeps to.
pub(super) fn node_of(model: &ModelView, node: &ModelNode) -> String {
    match &model.kept {
        _ if node.use_ == Use::Pending => format!("{} (pending)", node.name),
        _ if node.use_ == Use::No => format!("{} (not used)", node.name),
        _ if node.api != ServerKind::Ollama => format!("{} (/v1 only)", node.name),
        _ if !model.conflict => node.name.to_string(),
        Some(_) if model.is_kept_to(node) => format!("{} ({}, used)", node.name, short(&node.digest)),
        _ => format!("{} ({})", node.name, short(&node.digest)),
    }
}

/// What is to be said where nobody who is there has the weights that the name stands for.
pub(super) fn out_of_reach(model: &ModelView) -> Option<String> {
    let away: Vec<String> = model.awaited.iter().map(ToString::to_string).collect();
    let other = &model.nodes.iter().find(|node| node.use_ == Use::Yes)?.name;
    (!away.is_empty()).then(|| {
        format!(
            "{} means {}, the version on {}, which cannot be reached; to use the one on {other}: ollana models --keep {0}@{other}",
            model.name,
            short(model.kept.as_deref().unwrap_or_default()),
            away.join(", "),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Id;

    fn model(kept: Option<&str>, digests: &[(&str, &str)]) -> ModelView {
        let node = |(name, digest): &(&str, &str)| ModelNode {
            name: NodeName::lossy(name),
            id: Id::of_spki(name.as_bytes()),
            local: false,
            use_: if *name == "late" { Use::Pending } else { Use::Yes },
            api: ServerKind::Ollama,
            digest: (*digest).to_owned(),
            loaded: *name == "gpu2",
        };
        ModelView {
            name: "m:latest".to_owned(),
            usable: true,
            digest: "one".to_owned(),
            kept: kept.map(str::to_owned),
            awaited: if digests.len() == 1 { vec![NodeName::lossy("gpu1")] } else { Vec::new() },
            nodes: digests.iter().map(node).collect(),
            loaded: vec![NodeName::lossy("gpu2")],
            conflict: digests.iter().any(|(_, digest)| *digest != digests[0].1),
        }
    }

    #[test]
    fn where_weights_differ_it_is_shown_whose_are_used() {
        let same = render(&[model(Some("one"), &[("gpu1", "one"), ("gpu2", "one")])], &[]);
        assert!(same.ends_with("m:latest  one     gpu1, gpu2  gpu2\n"), "{same}");
        let differ = render(&[model(Some("one"), &[("gpu1", "one"), ("gpu2", "two")])], &[]);
        assert!(differ.ends_with("m:latest  differs!  gpu1 (one, used), gpu2 (two)  gpu2\n"), "{differ}");
        let unused = render(&[model(None, &[("gpu1", "one"), ("gpu2", "two")])], &[]);
        assert!(unused.ends_with("m:latest  differs!  gpu1 (one), gpu2 (two)  gpu2\n"), "{unused}");
        let away = render(&[model(Some("one"), &[("gpu2", "two")])], &[]);
        assert!(
            away.contains("means one, the version on gpu1") && away.contains("ollana models --keep m:latest@gpu2"),
            "{away}"
        );
    }

    #[test]
    fn a_pending_node_is_marked_with_the_command_to_type() {
        let text = render(&[model(None, &[("gpu1", "one"), ("late", "one")])], &[]);
        assert!(text.contains("gpu1, late (pending)"), "{text}");
        assert!(text.ends_with("! late is not used until a person trusts it → ollana trust late\n"), "{text}");
    }
}
