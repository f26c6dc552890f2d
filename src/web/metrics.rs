//! The same for Prometheus, in its text format 0.0.4.
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use std::fmt::{self, Display, Write as _};

use crate::control::{Mesh, StatusView};
use crate::exchange::Numbers;
use crate::peers::PeerState;

/// A number of one model on one peer: its metric, what that is, and where it stands.
type Number = (&'static str, &'static str, fn(&Numbers) -> Option<f32>);

/// What requests are balanced by.
const NUMBERS: [Number; 5] = [
    ("ollana_peer_model_running", "Requests for the model in progress at the peer.", |of| Some(of.load.running as f32)),
    ("ollana_peer_model_queued", "Requests for the model queued at the peer.", |of| Some(of.load.queued)),
    ("ollana_peer_model_slots", "Requests that the peer runs in parallel for the model.", |of| {
        Some(of.pace.slots? as f32)
    }),
    ("ollana_peer_model_prefill", "Prompt tokens per second of a single request.", |of| of.pace.prefill),
    ("ollana_peer_model_decode", "Generated tokens per second of a single request.", |of| of.pace.decode),
];

/// All metrics as they are now.
pub(super) fn render(mesh: &dyn Mesh) -> String {
    let mut text = String::with_capacity(2 * 1024);
    // Writing to a String cannot fail.
    let _ = write_metrics(&mut text, mesh);
    text
}

fn write_metrics(text: &mut String, mesh: &dyn Mesh) -> fmt::Result {
    let status = StatusView::of(mesh);
    let peers = mesh.peers();
    let labels = [("version", status.info.version.as_str()), ("name", status.info.name.as_str())];
    head(text, "ollana_info", "The node.")?;
    line(text, "ollana_info", &labels, 1)?;
    head(text, "ollana_uptime_seconds", "Seconds since the node started.")?;
    line(text, "ollana_uptime_seconds", &[], status.info.uptime_s)?;
    head(text, "ollana_ollama_healthy", "Whether the local Ollama answers.")?;
    line(text, "ollana_ollama_healthy", &[], u8::from(status.ollama.healthy))?;
    head(
        text,
        "ollana_ignored_fields",
        "Fields of peers' requests that were ignored, since they decide how a model is kept or loaded.",
    )?;
    line(text, "ollana_ignored_fields", &[], status.ollama.ignored)?;
    head(text, "ollana_conflicts", "Unresolved name or key conflicts between connected nodes.")?;
    line(text, "ollana_conflicts", &[], status.conflicts.len())?;
    head(text, "ollana_peers", "Peers known, by state.")?;
    for state in [PeerState::Connected, PeerState::Connecting, PeerState::Unreachable, PeerState::Refused] {
        let count = peers.iter().filter(|peer| peer.state == state).count();
        line(text, "ollana_peers", &[("state", &state.to_string())], count)?;
    }
    head(text, "ollana_peer_inflight", "Requests in progress at the peer, from all clients.")?;
    for peer in &peers {
        let id = peer.id.to_string();
        line(text, "ollana_peer_inflight", &[("peer", peer.name.as_str()), ("id", &id)], peer.inflight)?;
    }
    for (name, help, of) in NUMBERS {
        head(text, name, help)?;
        for peer in &peers {
            let id = peer.id.to_string();
            for (model, numbers) in &peer.numbers {
                let labels = [("peer", peer.name.as_str()), ("id", &id), ("model", model)];
                if let Some(value) = of(numbers) {
                    line(text, name, &labels, value)?;
                }
            }
        }
    }
    head(text, "ollana_peer_models", "Models on the peer's disk.")?;
    for peer in &peers {
        let id = peer.id.to_string();
        line(text, "ollana_peer_models", &[("peer", peer.name.as_str()), ("id", &id)], peer.models.len())?;
    }
    head(text, "ollana_peer_rtt_seconds", "Round-trip time to a connected peer.")?;
    for peer in peers.iter().filter(|peer| peer.state == PeerState::Connected) {
        let id = peer.id.to_string();
        let seconds = format!("{}.{:06}", peer.rtt_us / 1_000_000, peer.rtt_us % 1_000_000);
        line(text, "ollana_peer_rtt_seconds", &[("peer", peer.name.as_str()), ("id", &id)], seconds)?;
    }
    Ok(())
}

/// All of them go up and down.
fn head(text: &mut String, name: &str, help: &str) -> fmt::Result {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} gauge")
}

fn line(text: &mut String, name: &str, labels: &[(&str, &str)], value: impl Display) -> fmt::Result {
    text.push_str(name);
    for (i, (label, value)) in labels.iter().enumerate() {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        write!(text, "{}{label}=\"{value}\"", if i == 0 { '{' } else { ',' })?;
    }
    writeln!(text, "{} {value}", if labels.is_empty() { "" } else { "}" })
}
