//! `ollana status`.

use super::output::{Table, print, print_json, shown};
use super::peers::beside;
use super::{Failure, Place, block_on};
use crate::control::{StatusView, span};
use crate::exchange::ServerKind;

/// Shows what the node is and does.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let status: StatusView = block_on(async { Ok(place.client().await?.get("/status").await?) })?;
    if json { print_json(&status) } else { print(&render(&status)) }
}

fn render(status: &StatusView) -> String {
    let info = &status.info;
    let ollama = &status.ollama;
    let health = match (ollama.healthy, ollama.lent) {
        (true, true) => "lent",
        (true, false) => "there, not lent",
        (false, _) => "none",
    };
    let version = ollama.version.as_ref().or(ollama.server.as_ref());
    let version = version.map(|version| format!(" {}", shown(version))).unwrap_or_default();
    let api = match ollama.api {
        None | Some(ServerKind::Ollama) => "",
        Some(ServerKind::OpenAi) => ", OpenAI API",
        Some(ServerKind::Grpc) => ", gRPC",
    };
    let mut table = Table::plain();
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("name", info.name.to_string());
    row("id", info.id.to_string());
    row("version", format!("{}, mode {}, process {}, up {}", info.version, info.mode, status.pid, span(info.uptime_s)));
    row("applications", info.applications().unwrap_or_else(|| "no listener".to_owned()));
    row("mesh", format!("UDP {}", info.mesh));
    row("ollama", format!("{health}{version}{api} ({})", ollama.url));
    if let Some(why) = ollama.not_lent.as_ref().filter(|_| ollama.healthy) {
        row("", format!("it {why}"));
    }
    if let Some(problem) = &ollama.problem {
        row("", problem.clone());
    }
    for (model, numbers) in &status.numbers {
        row("", format!("{model}: {numbers}"));
    }
    for what in beside(status.direct, status.most_loaded) {
        row("", what);
    }
    row("peers", format!("{} connected, {} known", status.peers, status.peers_known));
    row("status page", info.status_page.map_or("off".to_owned(), |at| format!("http://{at}")));
    row("state", info.state_dir.display().to_string());
    let mut text = table.render();
    for conflict in &status.conflicts {
        text += &format!("! {}\n", shown(conflict));
    }
    text
}
