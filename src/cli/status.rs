//! `ollana status`.

use super::output::{Table, print, print_json, shown};
use super::peers::beside;
use super::serve::udp;
use super::{Failure, Place, block_on};
use crate::control::{OllamaView, StatusView, span};
use crate::exchange::ServerKind;
use crate::trust::Window;

/// Shows the status of the node.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let status: StatusView = block_on(async { Ok(place.client().await?.get("/status").await?) })?;
    if json { print_json(&status) } else { print(&render(&status)) }
}

/// The local server's name and version.
pub(super) fn server_name(ollama: &OllamaView) -> String {
    match ollama.api {
        None | Some(ServerKind::Ollama) => {
            ollama.version.as_ref().map_or("Ollama".to_owned(), |version| format!("Ollama {version}"))
        }
        Some(ServerKind::OpenAi) => openai(ollama.server.as_deref()),
        Some(ServerKind::Grpc) => "a gRPC server".to_owned(),
    }
}

/// A server that has no name of its own.
pub(super) fn openai(server: Option<&str>) -> String {
    server.unwrap_or("a server").to_owned() + " with the OpenAI API"
}

/// The local server: what it is, whether it is shared and if not, why.
fn server(ollama: &OllamaView) -> String {
    if !ollama.healthy {
        let problem = ollama.problem.clone();
        return format!("not shared: {}", problem.unwrap_or_else(|| format!("no answer from {} yet", ollama.url)));
    }
    let shared = match (ollama.lent, &ollama.not_lent) {
        (true, _) => "shared".to_owned(),
        (false, Some(why)) => format!("not shared now: it {why}"),
        (false, None) => "not shared".to_owned(),
    };
    format!("{} at {}, {shared}", server_name(ollama), ollama.url)
}

fn render(status: &StatusView) -> String {
    let info = &status.info;
    let ollama = &status.ollama;
    let mut table = Table::plain();
    let mut row = |name: &str, value: String| table.row([name.to_owned(), value]);
    row("name", info.name.to_string());
    row("id", info.id.to_string());
    row("version", format!("{}, mode {}, process {}, up {}", info.version, info.mode, status.pid, span(info.uptime_s)));
    row("applications", info.applications().unwrap_or_else(|| "no listener".to_owned()));
    row("peers", format!("{} connected, {} known; {}", status.peers, status.peers_known, udp(info.mesh)));
    row("ollama", server(ollama));
    if let Some(problem) = ollama.problem.as_ref().filter(|_| ollama.healthy) {
        row("", problem.clone());
    }
    for flaw in &ollama.flaws {
        row("", format!("flaw: {}", shown(flaw)));
    }
    for (model, numbers) in &status.numbers {
        row("", format!("{model}: {numbers}"));
    }
    for what in beside(status.direct, status.most_loaded) {
        row("", what);
    }
    if let Some(window) = first_use(status.first_use) {
        row("first use", window);
    }
    row("status page", info.status_page.map_or("off".to_owned(), |at| format!("http://{at}")));
    row("state", info.state_dir.display().to_string());
    let mut text = table.render();
    for conflict in &status.conflicts {
        text += &format!("! {}\n", shown(conflict));
    }
    for node in &status.unusable {
        text += &format!("! {}\n", shown(&node.sentence()));
    }
    text
}

/// Whether new providers are used as they are met, once one was.
fn first_use(window: Window) -> Option<String> {
    match window {
        Window::NotBegun => None,
        Window::Open { left_s } => Some(format!("new providers are used as they are met, for {} more", span(left_s))),
        Window::Closed { .. } | Window::ClockBehind { .. } => {
            window.reason().map(|reason| format!("{reason}. New providers wait for `ollana trust`"))
        }
    }
}
