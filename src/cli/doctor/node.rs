//! The node that runs, the Ollama beside it, and where applications look for either.

use std::net::{IpAddr, SocketAddr};

use http::Uri;

use super::{Finding, peers};
use crate::app::ports;
use crate::cli::models::{node_of, out_of_reach};
use crate::cli::status::{openai, server_name};
use crate::cli::{Failure, Place};
use crate::config::{Config, FALLBACK_LISTEN_PORT, LISTEN_PORT};
use crate::control::{Client, ClientError, ModelView, StatusView};
use crate::ollama::{Found, hindrance, probe};
use crate::peers::PeerView;
use crate::route::options::{NEWEST, is_newer};

/// Where Ollama's own clients look.
const DEFAULT_URL: &str = "http://127.0.0.1:11434";
/// The advice where there is no Ollama to share.
const SHARE: &str = "no action needed if this machine only uses remote models; to share a local Ollama, start it, or name \
                     its address: ollana config set ollama http://127.0.0.1:11500";

/// The node that runs on this machine, as far as this user may see it.
pub(super) enum Node {
    Runs(Box<StatusView>, Client),
    /// One of another user's.
    Foreign,
    None,
}

/// Asks the node, if one runs.
pub(super) async fn look(place: &Place, findings: &mut Vec<Finding>) -> Result<Node, Failure> {
    let client = match Client::find(&place.state_dirs_leniently()?).await {
        Ok(client) => client,
        Err(error @ ClientError::Denied(_)) => {
            findings.push(Finding::hint("node", error.to_string(), "sudo ollana doctor"));
            return Ok(Node::Foreign);
        }
        Err(ClientError::NotRunning(searched)) if !searched.others.is_empty() => {
            findings.push(Finding::hint(
                "node",
                searched.to_string(),
                "no action needed to use it; do not start a second one on this machine",
            ));
            return Ok(Node::Foreign);
        }
        Err(_) => {
            findings.push(Finding::hint("node", "no node runs here", "start one with `ollana serve -d`"));
            return Ok(Node::None);
        }
    };
    let status: StatusView = client.get("/status").await?;
    let peers: Vec<PeerView> = client.get("/peers").await?;
    let models: Vec<ModelView> = client.get("/models").await?;
    findings.push(node(&status));
    findings.push(ollama_of(&status));
    findings.extend(mesh_port(&status));
    findings.extend(flaws_of(&status));
    findings.extend(newer_ollama(&status));
    findings.extend(peers::findings(&status, &peers));
    for conflict in &status.conflicts {
        let (found, advice) = conflict.split_once(" → ").unwrap_or((conflict, "`ollana peers` shows both"));
        findings.push(Finding::problem("conflict", found, advice));
    }
    findings.extend(models.iter().filter_map(weights_of));
    findings.extend(environment(place, &status).await?);
    Ok(Node::Runs(Box::new(status), client))
}

/// Whether other nodes reach this one on the port that firewalls are set up for.
fn mesh_port(status: &StatusView) -> Option<Finding> {
    let wanted = status.info.taken.mesh?;
    let found = format!(
        "UDP {wanted} was taken when the node started, so peers connect to UDP {}: another port at each start, for which \
         no firewall rule fits",
        status.info.mesh.port()
    );
    let advice = match ports::holder("UDP", wanted) {
        Some(holder) => format!(
            "UDP {wanted} is used by {holder}: stop that and restart the node, or choose a port: ollana config set mesh 11445"
        ),
        None => {
            format!("restart the node to have UDP {wanted} again, or choose a port: ollana config set mesh 11445")
        }
    };
    Some(Finding::hint("ports", found, advice))
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
    let server = server_name(ollama);
    if let Some(why) = ollama.not_lent.as_ref().filter(|_| ollama.healthy && !ollama.lent) {
        // As its owner wants it.
        return Finding::ok("ollama", format!("{server} at {} is not shared now: it {why}", ollama.url));
    }
    if ollama.healthy && ollama.lent {
        return Finding::ok("ollama", format!("{server} at {} is shared", ollama.url));
    }
    let problem = match &ollama.problem {
        Some(problem) => problem.clone(),
        None => format!("no answer from {} yet", ollama.url),
    };
    let used = local_port(&ollama.url)
        // Not what is said of this node's own listener.
        .filter(|port| status.info.listen.is_none_or(|listen| listen.port() != *port))
        .and_then(|port| Some(format!("; port {port} is used by {}", ports::holder("TCP", port)?)));
    Finding::hint("ollama", format!("no Ollama is shared: {problem}{}", used.unwrap_or_default()), SHARE)
}

/// Oddities in the answers of the local server.
fn flaws_of(status: &StatusView) -> impl Iterator<Item = Finding> {
    let advice = "it is shared all the same, with what is understood; a newer version of that server may do better";
    status.ollama.flaws.iter().map(move |flaw| Finding::hint("ollama", flaw, advice))
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

/// The port, if a URL is of this machine.
fn local_port(url: &str) -> Option<u16> {
    let url: Uri = url.parse().ok()?;
    let host = url.host()?.trim_start_matches('[').trim_end_matches(']');
    let local = host.parse::<IpAddr>().map_or(host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback());
    local.then(|| url.port_u16().unwrap_or(80))
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
async fn environment(place: &Place, status: &StatusView) -> Result<Option<Finding>, Failure> {
    let Some(listen) = status.info.listen.filter(|listen| listen.port() != LISTEN_PORT) else { return Ok(None) };
    let export = format!("for all models: export OLLAMA_HOST={listen}");
    let (found, advice) = match place.environment.text("OLLAMA_HOST")? {
        Some(host) if host.contains(&format!(":{}", listen.port())) => return Ok(None),
        Some(host) => (format!("OLLAMA_HOST={host} is not this node, which listens on {listen}"), export),
        None => default_port(status, listen, export).await,
    };
    Ok(Some(Finding::hint("clients", found, advice)))
}

/// Port 11434, where applications look if nobody tells them anything, is not this node.
async fn default_port(status: &StatusView, listen: SocketAddr, export: String) -> (String, String) {
    let holder = ports::holder("TCP", LISTEN_PORT);
    let by = holder.as_ref().map(|holder| format!(" ({holder})")).unwrap_or_default();
    let was_taken = status.info.taken.listen == Some(LISTEN_PORT);
    match probe(&Uri::from_static(DEFAULT_URL)).await {
        Found::Ollama { .. } => {
            (format!("port {LISTEN_PORT} is your local Ollama{by} and shows only its own models"), export)
        }
        Found::OpenAi { server } => {
            (format!("port {LISTEN_PORT} is {}{by}, and shows only its own models", openai(server.as_deref())), export)
        }
        Found::Ollana => (format!("port {LISTEN_PORT} is another node{by}; this one listens on {listen}"), export),
        Found::Nothing if was_taken => (
            format!("nothing listens on port {LISTEN_PORT} any more; this node listens on {listen} since its start"),
            format!("ollana stop && ollana serve -d, to have port {LISTEN_PORT}; or export OLLAMA_HOST={listen}"),
        ),
        Found::Nothing => (format!("nothing listens on port {LISTEN_PORT}; this node listens on {listen}"), export),
        Found::Grpc | Found::Other(_) => (
            format!(
                "port {LISTEN_PORT} is used by {}, which is no Ollama; this node listens on {listen}",
                holder.as_deref().unwrap_or("another program")
            ),
            format!("stop that program and restart the node, or export OLLAMA_HOST={listen}"),
        ),
    }
}

/// The server at the address of the Ollama to share, for a node that does not run yet.
pub(super) async fn ollama(config: &Config, findings: &mut Vec<Finding>) {
    let url = &config.ollama.url;
    if !config.ollama.explicit
        && let Some(trouble) = hindrance(url).await
    {
        findings.push(Finding::hint("ollama", format!("no Ollama is shared: {trouble}"), SHARE));
        return;
    }
    let holder = local_port(&url.to_string()).and_then(|port| ports::holder("TCP", port));
    let by = holder.map(|holder| format!(" ({holder})")).unwrap_or_default();
    findings.push(match probe(url).await {
        Found::Ollama { version } => {
            let found = format!("Ollama {version} listens on {url}");
            if url.port_u16() == Some(LISTEN_PORT) && !config.listen.explicit {
                let advice = format!(
                    "no action needed: the node will listen on 127.0.0.1:{FALLBACK_LISTEN_PORT}; to give it {LISTEN_PORT}, \
                     move Ollama to another port and set OLLAMA_HOST for both"
                );
                Finding::hint("ollama", found, advice)
            } else {
                Finding::ok("ollama", found)
            }
        }
        Found::OpenAi { server } => {
            Finding::ok("ollama", format!("{} listens on {url}; it is shared at /v1", openai(server.as_deref())))
        }
        Found::Grpc if config.ollama.explicit => Finding::ok("ollama", format!("a gRPC server listens on {url}")),
        Found::Ollana => Finding::hint("ollama", format!("{url} is an ollana node, not an Ollama"), SHARE),
        Found::Other(trouble) => Finding::problem(
            "ollama",
            format!("{trouble}{by}"),
            "name the Ollama with --ollama, or use --mode client",
        ),
        Found::Grpc => Finding::problem(
            "ollama",
            format!("the server at {url}{by} is no Ollama and has no OpenAI API"),
            "name the Ollama with --ollama, or use --mode client",
        ),
        Found::Nothing => Finding::hint("ollama", format!("not running: nothing listens on {url}"), SHARE),
    });
}
