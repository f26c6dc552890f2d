//! What an application is told when nobody can take its request: what, why, and what to type.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use http::Response;
use http::header::RETRY_AFTER;
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use tokio::time::timeout;

use super::aim::Search;
use super::around::Around;
use super::members::{Member, Members, Obstacle};
use super::{RETURN, SUSPENSE};
use crate::exchange::{Body, Denial, Refusal, RefusalCode, Unusable};
use crate::id::{Id, NodeName};
use crate::route::{Dialect, ModelName};

/// Nodes named in one sentence: more than most networks have, and an error message stays one.
const NAMED: usize = 8;
/// What is in the way may be over in a moment: a link that came back, a server that starts again.
const SOON: Duration = Duration::from_secs(1);
/// Something has to be started, typed or joined first.
const LATER: Duration = Duration::from_secs(5);
/// A queue has to become shorter.
const MUCH_LATER: Duration = Duration::from_secs(120);
/// The longest that a gate may have an application wait: what its own queue says at most.
const LONGEST_AFTER: Duration = Duration::from_secs(600);
/// A gate's refusal is there with its head, and a few sentences.
const SAYS_WITHIN: Duration = Duration::from_secs(1);
const MAX_WORDS: usize = 16 * 1024;
const MAX_MESSAGE: usize = 1000;

/// Why nobody can take a request now.
#[derive(Debug)]
pub(super) struct Unmet {
    pub(super) refusal: Refusal,
    /// How long it is waited for those that may be back in a moment. As it was when they were named: health changes at any
    /// moment, and who was well again by another look would not be waited for.
    pub(super) awaited: Option<Duration>,
}

impl From<Refusal> for Unmet {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, awaited: None }
    }
}

/// A node that something is in the way of, as a sentence names it.
#[derive(Debug)]
pub(super) struct Hindered {
    /// How much a person can do about it.
    rank: Rank,
    /// What is in the way; nothing that is known of.
    sentence: Option<String>,
    /// How long it is waited for, if it may be back in a moment.
    awaited: Option<Duration>,
}

/// In which order a sentence names nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// There is a command for it.
    Typed,
    /// It is here, or was.
    Known,
    /// It has proved nothing.
    Claimed,
}

/// No server at all can take it.
pub(super) fn nobody(members: &Members) -> Unmet {
    let unusable = members.around().unusable();
    let told = |id: &Id| unusable.iter().any(|node| node.id == Some(*id));
    let away = members.departed().filter(|departed| !told(&departed.id));
    let away = away.map(|departed| Hindered::away(departed.id, &departed.label, members));
    // A connected node says more of itself.
    let around = unusable.iter().filter(|node| node.id.is_none_or(|id| members.get(&id).is_none()));
    let here = members.values().map(|member| Hindered::of(member, members));
    let known: Vec<Hindered> = here.chain(away).chain(around.map(Hindered::around)).collect();
    let is_any_known = !known.is_empty();
    let (others, awaited) = describe(known);
    let message = if !is_any_known {
        "no Ollama server is known: this node sees no other node on the network that shares one. Is `ollana serve` running \
         on the machine with Ollama? `ollana doctor` looks for what is in the way"
            .to_owned()
    } else if others.is_empty() {
        "no Ollama server can be used at the moment".to_owned()
    } else {
        format!("no Ollama server can be used at the moment. Known nodes: {others}")
    };
    Unmet { refusal: unavailable(RefusalCode::NoProvider, message, members), awaited }
}

/// There are servers, and none that understands requests of this dialect.
pub(super) fn other_api(dialect: Dialect, usable: &[Arc<Member>], members: &Members) -> Refusal {
    let usable = list(usable.iter().map(|member| name(member.id(), &member.label(), members)));
    let message = match dialect {
        Dialect::Ollama => format!(
            "no Ollama can be used at the moment, only servers that do not speak Ollama's API: {usable}. Those of the \
             OpenAI API take requests at /v1"
        ),
        Dialect::Grpc => {
            format!("no gRPC server can be used at the moment, only servers that do not speak gRPC: {usable}")
        }
        Dialect::OpenAi | Dialect::Other => format!(
            "no server of the OpenAI API can be used at the moment, only servers that do not speak it: {usable}"
        ),
    };
    unavailable(RefusalCode::NoServerOfApi, message, members)
}

/// There are servers with the model, and something is in the way of each.
pub(super) fn holders_unusable(model: &ModelName, holders: Vec<Hindered>, members: &Members) -> Unmet {
    let (holders, awaited) = describe(holders);
    let message = format!("no server with model '{model}' can be used at the moment: {holders}");
    Unmet { refusal: unavailable(RefusalCode::NoProvider, message, members), awaited }
}

/// No node is known to have the model, and some that may have it refuse this node.
pub(super) fn perhaps_refused(model: &ModelName, refusing: Vec<Hindered>, members: &Members) -> Unmet {
    let (refusing, awaited) = describe(refusing);
    let message =
        format!("no server that can be used has model '{model}', and it is not known what these have: {refusing}");
    Unmet { refusal: unavailable(RefusalCode::NoProvider, message, members), awaited }
}

/// Which nodes were not asked, for a request that was answered as Ollama would: nothing if there is none.
pub(super) fn beside(members: &Members) -> Option<String> {
    let refusing = refusing(members, |_| true, |_| true);
    (!refusing.is_empty()).then(|| format!("not asked: {}", describe(refusing).0))
}

/// Those that refuse this node, of members and of others as the caller says.
pub(super) fn refusing(
    members: &Members,
    counts: impl Fn(&Arc<Member>) -> bool,
    counts_around: impl Fn(&Unusable) -> bool,
) -> Vec<Hindered> {
    let here = members.values().filter(|member| member.refuses() && counts(member));
    let mut found: Vec<_> = here.map(|member| Hindered::of(member, members)).collect();
    let around = members.around().unusable();
    let away = around.iter().filter(|node| node.denial.is_some() && node.verified);
    let away = away.filter(|node| node.id.is_some_and(|id| members.get(&id).is_none()));
    found.extend(away.filter(|node| counts_around(node)).map(Hindered::around));
    found
}

/// The servers that hold the weights used so far cannot be used, others hold other weights under the same name.
pub(super) fn other_weights(
    model: &ModelName,
    holders: Vec<Hindered>,
    others: &[Arc<Member>],
    members: &Members,
) -> Unmet {
    let (holders, awaited) = describe(holders);
    let one = others.first().map_or_else(String::new, |member| name(member.id(), &member.label(), members));
    let others = list(others.iter().map(|member| name(member.id(), &member.label(), members)));
    let message = format!(
        "model '{model}' stands for different weights on different servers, and those that this node keeps to cannot be \
         had at the moment: {holders}. Other weights are on {others}; to use those from now on, type: \
         ollana models --keep {model}@{one} (for one request, the header `ollana-peer: {one}`)"
    );
    Unmet { refusal: unavailable(RefusalCode::OtherWeights, message, members), awaited }
}

/// The node that the request chose is not known.
pub(super) fn unknown_node(choice: &str, own: &NodeName, members: &Members) -> Refusal {
    let known = list(members.values().map(|member| name(member.id(), &member.label(), members)));
    let known =
        if known.is_empty() { "no node is known at the moment".to_owned() } else { format!("known are: {known}") };
    let what = match own.is(choice) {
        true => format!("{own} is this node itself, which shares no Ollama"),
        false => format!("no node is called '{}'", choice.escape_debug()),
    };
    Refusal::new(RefusalCode::NoSuchNode, format!("{what}; {known}"))
}

/// Several nodes bear the name.
pub(super) fn ambiguous(choice: &str, ids: impl Iterator<Item = Id>) -> Refusal {
    let ids = list(ids.map(|id| id.to_string()));
    let message = format!("more than one node is called '{}': choose one by its ID: {ids}", choice.escape_debug());
    Refusal::new(RefusalCode::AmbiguousNode, message)
}

/// The node that the request chose cannot take it.
pub(super) fn chosen_unusable(chosen: Hindered, members: &Members) -> Unmet {
    let (chosen, awaited) = describe(vec![chosen]);
    let message = format!("the chosen node cannot be used: {chosen}");
    Unmet { refusal: unavailable(RefusalCode::NodeUnusable, message, members), awaited }
}

/// Nobody lets this node change models.
pub(super) fn nobody_lets_manage(own: &NodeName, providers: &[Arc<Member>], members: &Members) -> Refusal {
    let providers = list(providers.iter().map(|member| name(member.id(), &member.label(), members)));
    let message = format!(
        "no server lets this node change models. On the machine whose models are to be changed ({providers}), type: \
         ollana trust {own} --scope manage"
    );
    Refusal::new(RefusalCode::Scope, message)
}

/// Those who let this node change models cannot be used, or will be heard of in a moment.
pub(super) fn managers_unusable(managers: Vec<Hindered>, members: &Members) -> Unmet {
    let (managers, awaited) = describe(managers);
    let message = format!("no server that lets this node change models can be used at the moment: {managers}");
    Unmet { refusal: unavailable(RefusalCode::NoProvider, message, members), awaited }
}

/// Several nodes could be meant.
pub(super) fn choose_one(managers: &[&Arc<Member>], search: &Search<'_>) -> Refusal {
    let names: Vec<_> = managers.iter().map(|member| name(member.id(), &member.label(), search.members)).collect();
    let example = names.first().cloned().unwrap_or_default();
    let at = search.node.listen.map_or_else(|| "ADDRESS".to_owned(), |listen| listen.to_string());
    let command = command(search.path);
    let message = format!(
        "more than one node lets this one change models: {}. Choose one, for example: \
         OLLAMA_HOST={at}/@{example} ollama {command} … (a program sends the header `ollana-peer: {example}`)",
        list(names.into_iter())
    );
    Refusal::new(RefusalCode::ChooseNode, message)
}

/// The command of `ollama` that asks for this path.
fn command(path: &str) -> &'static str {
    match path.trim_start_matches('/').split('/').nth(1) {
        Some("pull") => "pull",
        Some("push") => "push",
        Some("copy") => "cp",
        Some("delete") => "rm",
        Some("create" | "blobs") => "create",
        _ => "…",
    }
}

/// A server broke off before its first byte, of something that may have been done and is not done twice.
pub(super) fn broke_off_once(reason: &dyn std::fmt::Display) -> Refusal {
    let message = format!("{reason}; it was not tried again, since some of it may have been done");
    Refusal::new(RefusalCode::BrokeOff, message)
}

/// A server broke off before its first byte, and no other could take over.
pub(super) fn broke_off(reason: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::BrokeOff, format!("{reason}, and no other server could take over"))
}

/// The server's process ended while it had the request.
pub(super) fn ended(reason: &dyn std::fmt::Display) -> Refusal {
    let message = format!("{reason}; it was not tried elsewhere, since it could end the next server too");
    Refusal::new(RefusalCode::BrokeOff, message)
}

/// The peer's inbound side did not let the exchange in.
pub(super) fn not_let_in(member: &Member, own: &NodeName) -> Refusal {
    Refusal::new(RefusalCode::Scope, format!("{} refuses this node (on {0}: ollana trust {own})", member.label()))
}

/// The application's own body broke off or could not be read.
pub(super) fn bad_body(reason: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Body, reason.to_string())
}

/// As many requests of this node wait as may. This one would wait for so long.
pub(super) fn room_is_full(wait: Duration) -> Refusal {
    let message =
        "too many requests wait on this node for a server to be free (`balance.waiting` in its configuration)";
    // When a tenth of them has gone, which have left their places.
    Refusal::new(RefusalCode::Busy, message).after((wait / 10).clamp(SOON, MUCH_LATER))
}

/// Whoever could take it has a queue that is too long.
pub(super) fn too_long(model: &ModelName, wait: Duration) -> Refusal {
    let message = format!(
        "every server with model '{model}' has so many requests before this one that it would wait for some {} min \
         (`balance.max_wait` in this node's configuration)",
        wait.as_secs().div_ceil(60)
    );
    // A tenth of it: by then it is known whether the queue shrinks.
    let after = Duration::from_secs(wait.as_secs().div_ceil(10)).clamp(LATER, MUCH_LATER);
    Refusal::new(RefusalCode::Busy, message).after(after)
}

/// It waited in a queue that it was lost to, and there is no other.
pub(super) fn ticket_lost(reason: &dyn std::fmt::Display, members: &Members) -> Refusal {
    let message = format!("{reason} while this waited there for its turn, and no other server can take it");
    unavailable(RefusalCode::NoProvider, message, members)
}

/// The gate that was asked last has no place in its queue, in its own words.
pub(super) async fn turned_away(peer: &NodeName, answer: Response<Body>) -> Refusal {
    let code = RefusalCode::of(&answer).unwrap_or(RefusalCode::Busy);
    let (parts, body) = answer.into_parts();
    let after = parts.headers.get(RETRY_AFTER).and_then(|after| after.to_str().ok()?.trim().parse().ok());
    let retry_after = after.map(|after| Duration::from_secs(after).clamp(SOON, LONGEST_AFTER));
    let words = timeout(SAYS_WITHIN, Limited::new(body, MAX_WORDS).collect()).await.ok().and_then(Result::ok);
    let words = words.and_then(|words| serde_json::from_slice::<Said>(&words.to_bytes()).ok());
    let words: String = words.unwrap_or_default().error.chars().filter(|c| !c.is_control()).take(MAX_MESSAGE).collect();
    let message = match words.is_empty() {
        true => format!("{peer} takes no more requests at the moment"),
        false => format!("{peer}: {words}"),
    };
    Refusal { code, message, retry_after }
}

/// A gate's refusal, in the shape of Ollama's API.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    error: String,
}

fn unavailable(code: RefusalCode, message: String, members: &Members) -> Refusal {
    let passing = |member: &Arc<Member>| {
        matches!(member.obstacle(), None | Some(Obstacle::Gone | Obstacle::Suspect | Obstacle::Draining))
    };
    Refusal::new(code, message).after(if members.values().any(passing) { SOON } else { LATER })
}

/// What to call a node so that it can be told and typed: its name, or the beginning of its ID where others bear the same.
fn name(id: Id, label: &NodeName, members: &Members) -> String {
    if members.meant(label.as_str()).iter().any(|(other, _)| *other != id) {
        // Two groups: one has seven characters, and a prefix needs eight.
        let id = id.to_string();
        id.get(..15).unwrap_or(&id).to_owned()
    } else {
        label.to_string()
    }
}

// === impl Hindered ===

impl Hindered {
    pub(super) fn of(member: &Member, members: &Members) -> Self {
        let name = name(member.id(), &member.label(), members);
        let Some(obstacle) = member.obstacle() else {
            // It is back.
            return Self { rank: Rank::Known, sentence: None, awaited: Some(SUSPENSE) };
        };
        let awaited = match obstacle {
            Obstacle::Suspect => Some(SUSPENSE),
            Obstacle::Gone if member.lent().is_some() => Some(RETURN),
            _ => None,
        };
        let around = members.around();
        let rank = match obstacle {
            Obstacle::Pending | Obstacle::NotLentToUs => Rank::Typed,
            _ => Rank::Known,
        };
        let sentence = match obstacle {
            Obstacle::Gone => format!("{name} cannot be reached"),
            Obstacle::Suspect => format!("{name} does not answer at the moment"),
            Obstacle::Pending => format!("{name} waits to be trusted (to use it, type: ollana trust {name})"),
            Obstacle::NotUsed => format!("{name} is set not to be used (to use it, type: ollana trust {name})"),
            Obstacle::NotLentToUs => {
                let denial = member.denial().unwrap_or(Denial::Unknown);
                denied(&name, denial, around)
            }
            Obstacle::NoOllama => match member.denial().filter(|denial| !denial.is_personal()) {
                Some(denial) => denied(&name, denial, around),
                None => format!("{name} has no Ollama running that it shares"),
            },
            Obstacle::Draining => format!("{name} is about to stop"),
        };
        Self { rank, sentence: Some(sentence), awaited }
    }

    /// One that is not there.
    pub(super) fn away(id: Id, label: &NodeName, members: &Members) -> Self {
        match members.around().unusable().iter().find(|node| node.id == Some(id)) {
            Some(node) => Self::around(node),
            None => {
                let sentence = Some(format!("{} cannot be reached", name(id, label, members)));
                Self { rank: Rank::Known, sentence, awaited: None }
            }
        }
    }

    /// One that is no member.
    pub(super) fn around(node: &Unusable) -> Self {
        let rank = match (node.verified, node.denial) {
            (true, Some(_)) => Rank::Typed,
            (true, None) => Rank::Known,
            (false, _) => Rank::Claimed,
        };
        Self { rank, sentence: Some(node.sentence()), awaited: None }
    }
}

fn denied(name: &str, denial: Denial, around: &Around) -> String {
    let reason = denial.reason(&around.own);
    match denial.advice(name, &around.own, &around.id) {
        Some(advice) => format!("{name} {reason} → {advice}"),
        None => format!("{name} {reason}"),
    }
}

/// Those with something in the way, those that a person can do something about first; and how long it is waited for those
/// that may be back in a moment.
fn describe(mut all: Vec<Hindered>) -> (String, Option<Duration>) {
    all.sort_by_key(|hindered| hindered.rank);
    let awaited = all.iter().filter_map(|hindered| hindered.awaited).max();
    (list_with("; ", all.into_iter().filter_map(|hindered| hindered.sentence)), awaited)
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
