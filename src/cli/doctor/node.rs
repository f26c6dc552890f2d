//! The node that runs, the Ollama beside it, and where applications look for either.

use super::Finding;
use crate::cli::models::{node_of, out_of_reach};
use crate::cli::{Failure, Place};
use crate::config::{Config, FALLBACK_LISTEN_PORT, LISTEN_PORT};
use crate::control::{Client, ClientError, ModelView, StatusView};
use crate::exchange::ServerKind;
use crate::id::Use;
use crate::ollama::{Found, probe};
use crate::peers::{PeerState, PeerView};
use crate::route::options::{NEWEST, is_newer};

/// Asks the node, if one runs.
pub(super) async fn look(place: &Place, findings: &mut Vec<Finding>) -> Result<Option<StatusView>, Failure> {
    let client = match Client::find(&place.state_dirs()?).await {
        Ok(client) => client,
        Err(error @ ClientError::Denied(_)) => {
            findings.push(Finding::hint("node", error.to_string(), "sudo ollana doctor"));
            return Ok(None);
        }
        Err(_) => {
            findings.push(Finding::hint("node", "no node runs here", "start one with `ollana serve -d`"));
            return Ok(None);
        }
    };
    let status: StatusView = client.get("/status").await?;
    let peers: Vec<PeerView> = client.get("/peers").await?;
    let models: Vec<ModelView> = client.get("/models").await?;
    findings.push(node(&status));
    findings.push(ollama_of(&status));
    findings.extend(newer_ollama(&status));
    findings.extend(peers_of(&status, &peers));
    for conflict in &status.conflicts {
        findings.push(Finding::problem("conflict", conflict, "until then it stays unused or is shown with its ID"));
    }
    findings.extend(models.iter().filter_map(weights_of));
    findings.extend(environment(place, &status)?);
    Ok(Some(status))
}

fn node(status: &StatusView) -> Finding {
    let found = format!("{} runs (process {}, version {})", status.info.name, status.pid, status.info.version);
    if status.info.version == env!("CARGO_PKG_VERSION") {
        return Finding::ok("node", found);
    }
    let advice = format!("restart it: this command is version {}", env!("CARGO_PKG_VERSION"));
    Finding::hint("node", found, advice)
}

fn ollama_of(status: &StatusView) -> Finding {
    let ollama = &status.ollama;
    let version = ollama.version.as_deref().unwrap_or_default();
    let server = match ollama.api {
        None | Some(ServerKind::Ollama) => format!("Ollama {version}"),
        Some(ServerKind::OpenAi) => openai(ollama.server.as_deref()),
        Some(ServerKind::Grpc) => "a gRPC server".to_owned(),
    };
    if let Some(why) = ollama.not_lent.as_ref().filter(|_| ollama.healthy && !ollama.lent) {
        // As its owner wants it.
        return Finding::ok("ollama", format!("{server} at {} is not lent at the moment: it {why}", ollama.url));
    }
    match (ollama.healthy && ollama.lent, &ollama.problem) {
        (true, _) => Finding::ok("ollama", format!("{server} at {} is lent", ollama.url)),
        (false, Some(problem)) => Finding::hint(
            "ollama",
            format!("no Ollama is lent: {problem}"),
            "nothing, if this machine only uses the others; else `ollana serve --help` says where an Ollama may stand",
        ),
        (false, None) => Finding::hint(
            "ollama",
            format!("no Ollama is lent: none answers at {}", ollama.url),
            "nothing, if this machine only uses the others; else start Ollama, or name it with --ollama",
        ),
    }
}

/// Whether the table of what loads a model anew may have nothing of what this Ollama reads.
fn newer_ollama(status: &StatusView) -> Option<Finding> {
    let version = status.ollama.version.as_deref().filter(|version| is_newer(version))?;
    let (major, minor) = NEWEST;
    Some(Finding::hint(
        "ollama",
        format!(
            "Ollama {version} is newer than the newest that this version of ollana knows ({major}.{minor}): a peer's request \
             may have a field that makes it load a model anew"
        ),
        "look for a newer version of ollana",
    ))
}

fn openai(server: Option<&str>) -> String {
    server.map_or_else(|| "a server".to_owned(), str::to_owned) + " with the OpenAI API"
}

fn peers_of(status: &StatusView, peers: &[PeerView]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if peers.is_empty() {
        findings.push(Finding::hint(
            "peers",
            "no other node was seen yet",
            format!(
                "see that `ollana serve` runs there, that firewalls let UDP {} and 11436 through, and that both are on one \
                 network; else name it with --peer",
                status.info.mesh.port()
            ),
        ));
    } else {
        findings.push(Finding::ok("peers", format!("{} connected, {} known", status.peers, status.peers_known)));
    }
    for peer in peers.iter().filter(|peer| peer.use_ == Use::Pending && peer.state == PeerState::Connected) {
        findings.push(Finding::hint(
            "peers",
            format!("{} waits to be trusted and is not used until then", peer.name),
            format!("ollana trust {}", peer.name),
        ));
    }
    findings
}

/// One name, two digests.
fn weights_of(model: &ModelView) -> Option<Finding> {
    if let Some(away) = out_of_reach(model) {
        let (found, advice) = away.split_once("; ").unwrap_or((&away, ""));
        return Some(Finding::hint("models", found, advice));
    }
    let nodes: Vec<String> = model.nodes.iter().map(|node| node_of(model, node)).collect();
    let other = model.nodes.iter().find(|node| !model.is_kept_to(node)).or(model.nodes.last())?;
    model.conflict.then(|| {
        Finding::hint(
            "models",
            format!("{} has different weights on {}", model.name, nodes.join(", ")),
            format!("`ollama pull {}` on each of them, or choose: ollana models --keep {0}@{}", model.name, other.name),
        )
    })
}

/// Whether applications started from here find the node: they go where `OLLAMA_HOST` says.
fn environment(place: &Place, status: &StatusView) -> Result<Option<Finding>, Failure> {
    let Some(listen) = status.info.listen else { return Ok(None) };
    let host = place.environment.text("OLLAMA_HOST")?;
    Ok(match host {
        None if listen.port() != LISTEN_PORT => Some(Finding::hint(
            "clients",
            format!("applications find the mesh at {listen}, and Ollama's own port leads to the Ollama here alone"),
            format!("export OLLAMA_HOST={listen} for them"),
        )),
        Some(host) if !host.contains(&format!(":{}", listen.port())) && listen.port() != LISTEN_PORT => {
            Some(Finding::hint(
                "clients",
                format!("OLLAMA_HOST={host} leads applications past the mesh, which is at {listen}"),
                format!("export OLLAMA_HOST={listen} for them"),
            ))
        }
        _ => None,
    })
}

/// What is where the Ollama to lend should be, for a node that does not run yet.
pub(super) async fn ollama(config: &Config, findings: &mut Vec<Finding>) {
    let url = &config.ollama.url;
    if !config.ollama.may_be_lent() {
        findings.push(Finding::hint(
            "ollama",
            format!("OLLAMA_HOST names {url}, which is not on this machine and so not lent"),
            format!("if it is yours to lend: `ollana serve --ollama {url}`"),
        ));
        return;
    }
    findings.push(match probe(url).await {
        Found::Ollama { version } => {
            let found = format!("Ollama {version} answers at {url}");
            if url.port_u16() == Some(LISTEN_PORT) && !config.listen.explicit {
                let advice = format!(
                    "fine: applications will find the mesh at 127.0.0.1:{FALLBACK_LISTEN_PORT}; to have it at \
                     {LISTEN_PORT}, let Ollama stand elsewhere (OLLAMA_HOST for both)"
                );
                Finding::hint("ollama", found, advice)
            } else {
                Finding::ok("ollama", found)
            }
        }
        Found::OpenAi { server } => {
            Finding::ok("ollama", format!("{} answers at {url}; it is lent at /v1", openai(server.as_deref())))
        }
        Found::Grpc if config.ollama.explicit => Finding::ok("ollama", format!("a gRPC server answers at {url}")),
        Found::Ollana => Finding::hint(
            "ollama",
            format!("at {url} is a node of the mesh, not an Ollama"),
            "nothing, if this machine only uses the others; else name its Ollama with --ollama",
        ),
        Found::Grpc | Found::Other => Finding::problem(
            "ollama",
            format!("what answers at {url} is no Ollama and no server of the OpenAI API, or is not ready yet"),
            "name the Ollama with --ollama, or use --mode client",
        ),
        Found::Nothing => Finding::hint(
            "ollama",
            format!("no Ollama answers at {url}"),
            "nothing, if this machine only uses the others; else start Ollama, or name it with --ollama",
        ),
    });
}
