//! What an application is told when nobody can take its request: what, why, and what to type.

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;

use super::members::{Member, Members, Obstacle};
use crate::exchange::Refusal;
use crate::id::{Id, NodeName};
use crate::route::ModelName;

/// Nodes named in one sentence: more than most networks have, and an error message stays one.
const NAMED: usize = 8;
/// What is in the way may be over in a moment: a link that came back, a server that starts again.
const SOON: Duration = Duration::from_secs(1);
/// Something has to be started, typed or joined first.
const LATER: Duration = Duration::from_secs(5);

/// No server at all can take it.
pub(super) fn nobody(members: &Members) -> Refusal {
    let others = describe(members.values().map(|member| (&**member, member.obstacle())), members);
    let message = if others.is_empty() {
        "no Ollama server is known: this node sees no other node on the network that lends one. Is `ollana serve` running \
         on the machine with Ollama? `ollana doctor` looks for what is in the way"
            .to_owned()
    } else {
        format!("no Ollama server can be used at the moment. Known nodes: {others}")
    };
    unavailable("no-provider", message, members)
}

/// There are servers with the model, and something is in the way of each.
pub(super) fn holders_unusable(model: &ModelName, holders: &[&Member], members: &Members) -> Refusal {
    let holders = describe(holders.iter().map(|member| (*member, member.obstacle())), members);
    unavailable("no-provider", format!("no server with model '{model}' can be used at the moment: {holders}"), members)
}

/// The servers that hold the version used so far cannot be used, others hold another one under the same name.
pub(super) fn other_version(model: &ModelName, holders: &[&Member], others: &[&Member], members: &Members) -> Refusal {
    let holders = describe(holders.iter().map(|member| (*member, member.obstacle())), members);
    let others = list(others.iter().map(|member| member.label().to_string()));
    let message = format!(
        "model '{model}' stands for different weights on different servers, and those used so far cannot be had at the \
         moment: {holders}. Another version is on {others}: the header `ollana-peer` with that name uses it"
    );
    unavailable("other-version", message, members)
}

/// The node that the request chose is not known.
pub(super) fn unknown_node(choice: &str, members: &Members) -> Refusal {
    let known = list(members.values().map(|member| name(member, members)));
    let known =
        if known.is_empty() { "no node is known at the moment".to_owned() } else { format!("known are: {known}") };
    Refusal {
        status: StatusCode::NOT_FOUND,
        code: "no-such-node",
        message: format!("no node is called '{}'; {known}", choice.escape_debug()),
        retry_after: None,
    }
}

/// Several nodes bear the name.
pub(super) fn ambiguous(choice: &str, ids: impl Iterator<Item = Id>) -> Refusal {
    Refusal {
        status: StatusCode::CONFLICT,
        code: "ambiguous-node",
        message: format!(
            "more than one node is called '{}': choose one by its ID: {}",
            choice.escape_debug(),
            list(ids.map(|id| id.to_string()))
        ),
        retry_after: None,
    }
}

/// The node that the request chose cannot take it.
pub(super) fn chosen_unusable(member: &Member, obstacle: Obstacle, members: &Members) -> Refusal {
    let message = format!("the chosen node cannot be used: {}", sentence(member, obstacle, members));
    unavailable("node-unusable", message, members)
}

/// Nobody lets this node change models.
pub(super) fn nobody_lets_manage(own: &NodeName, providers: &[&Member], members: &Members) -> Refusal {
    let providers = list(providers.iter().map(|member| name(member, members)));
    Refusal {
        status: StatusCode::FORBIDDEN,
        code: "scope",
        message: format!(
            "no server lets this node change models. On the machine whose models are to be changed ({providers}), type: \
             ollana trust {own} --scope manage"
        ),
        retry_after: None,
    }
}

/// Several nodes could be meant.
pub(super) fn choose_one(managers: &[&Member], members: &Members) -> Refusal {
    Refusal {
        status: StatusCode::CONFLICT,
        code: "choose-node",
        message: format!(
            "more than one node lets this one change models: choose one with the header `ollana-peer: NAME` or with \
             /@NAME before the path (OLLAMA_HOST=…/@NAME): {}",
            list(managers.iter().map(|member| name(member, members)))
        ),
        retry_after: None,
    }
}

/// A server broke off before its first byte, and no other could take over.
pub(super) fn broke_off(reason: &dyn std::fmt::Display) -> Refusal {
    Refusal {
        status: StatusCode::BAD_GATEWAY,
        code: "broke-off",
        message: format!("{reason}, and no other server could take over"),
        retry_after: None,
    }
}

/// The peer's inbound side did not let the exchange in.
pub(super) fn not_let_in(member: &Member, own: &NodeName) -> Refusal {
    Refusal {
        status: StatusCode::FORBIDDEN,
        code: "scope",
        message: format!("{} does not lend to this node: there, type: ollana trust {own}", member.label()),
        retry_after: None,
    }
}

/// The application's own body broke off or could not be read.
pub(super) fn bad_body(reason: &dyn std::fmt::Display) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, code: "body", message: reason.to_string(), retry_after: None }
}

fn unavailable(code: &'static str, message: String, members: &Members) -> Refusal {
    let passing = |member: &std::sync::Arc<Member>| {
        matches!(member.obstacle(), None | Some(Obstacle::Gone | Obstacle::Suspect | Obstacle::Draining))
    };
    let retry_after = Some(if members.values().any(passing) { SOON } else { LATER });
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, code, message, retry_after }
}

/// What to call a member so that it can be told and typed: its name, or the beginning of its ID where two share it.
fn name(member: &Member, members: &Members) -> String {
    let label = member.label();
    if members.values().filter(|other| other.label().is(label.as_str())).count() > 1 {
        // Two groups: one has seven characters, and a prefix needs eight.
        let id = member.id().to_string();
        format!("{} ({label})", id.get(..15).unwrap_or(&id))
    } else {
        label.to_string()
    }
}

/// What `ollana trust` takes for it.
fn typed(member: &Member, members: &Members) -> String {
    name(member, members).split(' ').next().unwrap_or_default().to_owned()
}

fn sentence(member: &Member, obstacle: Obstacle, members: &Members) -> String {
    let name = name(member, members);
    match obstacle {
        Obstacle::Gone => format!("{name} cannot be reached"),
        Obstacle::Suspect => format!("{name} does not answer at the moment"),
        Obstacle::Pending => {
            format!("{name} waits to be trusted (to use it, type: ollana trust {})", typed(member, members))
        }
        Obstacle::NotUsed => {
            format!("{name} is set not to be used (to use it, type: ollana trust {})", typed(member, members))
        }
        Obstacle::NotLentToUs => format!("{name} does not lend to this node (someone there has to trust it)"),
        Obstacle::NoOllama => format!("{name} has no Ollama running that it lends"),
        Obstacle::Draining => format!("{name} is about to stop"),
    }
}

/// Those with something in the way, those that a person can do something about first.
fn describe<'a>(of: impl Iterator<Item = (&'a Member, Option<Obstacle>)>, members: &Members) -> String {
    let mut hindered: Vec<_> = of.filter_map(|(member, obstacle)| Some((obstacle?, member))).collect();
    hindered.sort_by_key(|(obstacle, _)| *obstacle != Obstacle::Pending);
    list_with("; ", hindered.into_iter().map(|(obstacle, member)| sentence(member, obstacle, members)))
}

fn list(items: impl Iterator<Item = String>) -> String {
    list_with(", ", items)
}

fn list_with(separator: &str, mut items: impl Iterator<Item = String>) -> String {
    let mut text = items.by_ref().take(NAMED).collect::<Vec<_>>().join(separator);
    let more = items.count();
    if more > 0 {
        let _ = write!(text, " and {more} more");
    }
    text
}
