//! Who may take a request: what it asks for, against what is known of each member.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::RouterSettings;
use super::members::{Member, Members, Obstacle};
use super::refuse::{self, Hindered, Unmet};
use crate::digests::Kept;
use crate::exchange::Unusable;
use crate::id::{Id, NodeName, means};
use crate::route::{Dialect, ModelName, is_about_models, unknown_model};

/// What decides who may take a request.
#[derive(Debug)]
pub(super) enum Aim {
    /// The request says which node; nobody else will do.
    Chosen(String),
    /// It changes models, and does not say where.
    Manage,
    /// It is for a model.
    Model(ModelName),
    /// It is for a model that runs on an owner's account.
    Cloud(ModelName),
    /// Whoever provides.
    Any,
    /// This machine's own server and no other: nobody else knows what it asks for.
    Own,
}

/// What is known when a server is looked for.
#[derive(Clone, Copy)]
pub(super) struct Search<'a> {
    pub(super) members: &'a Members,
    /// Left out: an empty list of candidates means that all who could have been tried.
    pub(super) tried: &'a BTreeSet<Id>,
    /// Which weights this node keeps to, for the model that is asked for.
    pub(super) kept: Option<&'a Kept>,
    pub(super) node: &'a RouterSettings,
    /// The request's path, for the words of a refusal.
    pub(super) path: &'a str,
    /// Who understands it at all.
    pub(super) dialect: Dialect,
}

// === impl Aim ===

impl Aim {
    /// Of a request for this model.
    pub(super) fn of(model: ModelName) -> Self {
        // What is no name to Ollama is no cloud model either, and refused in its words.
        if model.is_cloud() && model.fault().is_none() { Self::Cloud(model) } else { Self::Model(model) }
    }

    /// Those who may take it, or why nobody can.
    pub(super) fn candidates(&self, search: &Search<'_>) -> Result<Vec<Arc<Member>>, Unmet> {
        let mut found = match self {
            Self::Chosen(choice) => vec![chosen(choice, search)?],
            Self::Manage => vec![manager(search)?],
            Self::Model(model) => holders(model, search)?,
            Self::Cloud(model) => vec![own_ollama(model, search)?],
            Self::Any => providers(search.members, search.dialect)?,
            Self::Own => vec![own_server(search)?],
        };
        found.retain(|member| !search.tried.contains(&member.id()));
        Ok(found)
    }

    /// The model that it is routed by.
    pub(super) fn model(&self) -> Option<&ModelName> {
        match self {
            Self::Model(model) => Some(model),
            _ => None,
        }
    }

    /// Whether more than one member could take it: the others are sent once, to the one they are for.
    pub(super) fn may_move(&self) -> bool {
        matches!(self, Self::Model(_) | Self::Any)
    }
}

/// Those that can take a request of this dialect.
pub(super) fn providers(members: &Members, dialect: Dialect) -> Result<Vec<Arc<Member>>, Unmet> {
    let usable: Vec<_> = members.values().filter(|member| member.obstacle().is_none()).cloned().collect();
    if usable.is_empty() {
        return Err(refuse::nobody(members));
    }
    let suited = suited(usable.clone(), dialect);
    if suited.is_empty() { Err(refuse::other_api(dialect, &usable, members).into()) } else { Ok(suited) }
}

/// Those of them that understand the dialect; all of them if none does and it is not known that they do not.
fn suited(members: Vec<Arc<Member>>, dialect: Dialect) -> Vec<Arc<Member>> {
    let (suited, others): (Vec<_>, Vec<_>) = members.into_iter().partition(|member| member.suits(dialect));
    if suited.is_empty() && !dialect.is_strict() { others } else { suited }
}

fn chosen(choice: &str, search: &Search<'_>) -> Result<Arc<Member>, Unmet> {
    let members = search.members;
    let mut meant = members.meant(choice);
    // Anyone may bear any name: who is not used must not be able to make the choice of one who is ambiguous.
    let used = |id: &Id| members.get(id).is_none_or(|member| member.is_used());
    if meant.iter().any(|(id, _)| used(id)) {
        meant.retain(|(id, _)| used(id));
    }
    match meant.as_slice() {
        [] => Err(match members.around().unusable().iter().find(|node| is_meant(node, choice)) {
            Some(node) => refuse::chosen_unusable(Hindered::around(node), members),
            None => refuse::unknown_node(choice, &search.node.name, members).into(),
        }),
        [(id, label)] => match members.get(id) {
            Some(member) if member.obstacle().is_none() => Ok(Arc::clone(member)),
            Some(member) => Err(refuse::chosen_unusable(Hindered::of(member, members), members)),
            None => Err(refuse::chosen_unusable(Hindered::away(*id, label, members), members)),
        },
        several => Err(refuse::ambiguous(choice, several.iter().map(|(id, _)| *id)).into()),
    }
}

/// Whether a node that is no member is the one that a request chose.
fn is_meant(node: &Unusable, choice: &str) -> bool {
    node.node.eq_ignore_ascii_case(choice)
        || node.id.is_some_and(|id| means(choice, &NodeName::lossy(&node.node), &id) || choice.parse() == Ok(id))
}

/// The only one that lets its models be changed.
fn manager(search: &Search<'_>) -> Result<Arc<Member>, Unmet> {
    let members = search.members;
    // One look at each: what is in the way may change at any moment.
    let managers: Vec<_> = members
        .values()
        .filter(|member| !member.is_unwanted() && member.lets_manage() && member.suits(Dialect::Ollama))
        .map(|member| (member, member.obstacle()))
        .collect();
    let usable: Vec<_> =
        managers.iter().filter(|(_, obstacle)| obstacle.is_none()).map(|(member, _)| *member).collect();
    // One that will be heard of again in a moment makes it a choice.
    let unsure = managers.iter().any(|(_, obstacle)| *obstacle == Some(Obstacle::Suspect));
    match usable.as_slice() {
        [one] if !unsure => Ok(Arc::clone(one)),
        [] | [_] => {
            let away = members.departed().filter(|departed| departed.let_manage());
            // That this node itself lends no Ollama is how most of them are meant.
            let hindered: Vec<_> = managers
                .iter()
                .filter(|(member, obstacle)| obstacle.is_some() && !member.is_local())
                .map(|(member, _)| Hindered::of(member, members))
                .chain(away.map(|departed| Hindered::away(departed.id, &departed.label, members)))
                .collect();
            if hindered.is_empty() {
                let usable = providers(members, Dialect::Ollama)?;
                return Err(refuse::nobody_lets_manage(&search.node.name, &usable, members).into());
            }
            Err(refuse::managers_unusable(hindered, members))
        }
        several => Err(refuse::choose_one(several, search).into()),
    }
}

/// A model that runs in the cloud does so on the account of the machine whose Ollama is asked: this one's is the owner's
/// own, if applications of this machine alone ask here.
fn own_ollama(model: &ModelName, search: &Search<'_>) -> Result<Arc<Member>, Unmet> {
    let mut own = search.members.values().filter(|member| member.is_local() && member.suits(Dialect::Ollama));
    let own = own.find(|member| member.obstacle().is_none());
    own.filter(|_| !search.node.open).cloned().ok_or_else(|| unknown_model(search.path, model).into())
}

/// A request in no table of routes goes to this machine's own server, and only its owner may send it.
fn own_server(search: &Search<'_>) -> Result<Arc<Member>, Unmet> {
    let mut own = search.members.values().filter(|member| member.is_local() && member.suits(search.dialect));
    let own = own.find(|member| member.obstacle().is_none()).filter(|_| !search.node.open);
    // Others that can be used do not matter here.
    own.cloned().ok_or_else(|| refuse::nobody(search.members).refusal.into())
}

fn holders(model: &ModelName, search: &Search<'_>) -> Result<Vec<Arc<Member>>, Unmet> {
    let (members, dialect) = (search.members, search.dialect);
    // Whom we do not use because a person said so does not count as having it; nor does who does not understand us.
    let all: Vec<&Arc<Member>> = members
        .values()
        .filter(|member| !member.is_unwanted() && member.knows(model))
        .filter(|member| !dialect.is_strict() || member.suits(dialect))
        .collect();
    let having: Vec<_> = all.iter().copied().filter(|member| member.obstacle().is_none()).cloned().collect();
    let having = suited(having, dialect);
    if having.is_empty() {
        // With nobody to ask at all, all that are known are told of.
        let mut usable = providers(members, dialect)?;
        let away = members.departed().filter(|departed| departed.lent.has(model));
        let kept = |id: &Id| search.kept.is_some_and(|kept| kept.holders.iter().any(|holder| holder.id == *id));
        // Some say no digest, of which none can be kept.
        let had = |id: &Id| kept(id) || members.has_run(id, model);
        let departed = |id: &Id| members.departed().any(|departed| departed.id == *id && departed.lent.has(model));
        // A node that refuses this one no longer says what it has: it may have what was used from it before.
        let refusing = refuse::refusing(
            members,
            |member| had(&member.id()) && !all.iter().any(|known| known.id() == member.id()),
            |node| node.id.is_some_and(|id| had(&id) && !departed(&id)),
        );
        let hindered: Vec<_> = all
            .iter()
            .map(|member| Hindered::of(member, members))
            .chain(away.map(|departed| Hindered::away(departed.id, &departed.label, members)))
            .chain(refusing)
            .collect();
        if !hindered.is_empty() {
            return Err(refuse::holders_unusable(model, hindered, members));
        }
        if !is_about_models(search.path) {
            return Ok(usable);
        }
        // `ollama cp a b && ollama run b` is faster than the report that has `b` in it. And this machine's own Ollama has
        // models that it shares with nobody, such as names for cloud models: it says itself whether this is one.
        let own = |member: &Member| member.is_local() && !search.node.open && member.suits(Dialect::Ollama);
        usable.retain(|member| member.dealings.has_changed() || own(member));
        if !usable.is_empty() {
            return Ok(usable);
        }
        // Else whoever asks would be told that there is no such model, and might load it from the internet. A refusal
        // by a node that no person trusts, and that was never used for this model, is no reason for an error that Ollama
        // would not have given: `ollama run` pulls a new model on its 404.
        let around = members.around().unusable();
        let is_trusted = |id: &Id| around.iter().any(|node| node.trusted && node.id == Some(*id));
        let refusing = refuse::refusing(
            members,
            |member| is_trusted(&member.id()),
            |node| node.id.is_some_and(|id| is_trusted(&id)),
        );
        return Err(match refusing.is_empty() || model.fault().is_some() {
            true => unknown_model(search.path, model).into(),
            false => refuse::perhaps_refused(model, refusing, members),
        });
    }
    let Some(kept) = search.kept else { return Ok(having) };
    let is_kept =
        |member: &Member| member.view().digest(model).is_some_and(|digest| digest.is_empty() || digest == kept.digest);
    let (same, other): (Vec<_>, Vec<_>) = having.into_iter().partition(|member| is_kept(member));
    if !same.is_empty() {
        return Ok(same);
    }
    let awaited = awaited(model, kept, &all, search);
    if awaited.is_empty() {
        // All who held those weights hold others now, as after a `pull` of a newer version: the name means these.
        return Ok(other);
    }
    Err(refuse::other_weights(model, awaited, &other, members))
}

/// Those who held the weights that the name stands for, and have not said that they hold others now.
fn awaited(model: &ModelName, kept: &Kept, all: &[&Arc<Member>], search: &Search<'_>) -> Vec<Hindered> {
    let members = search.members;
    let mut awaited: BTreeMap<Id, Hindered> = BTreeMap::new();
    for member in all.iter().filter(|member| member.knows_as(model, &kept.digest)) {
        awaited.insert(member.id(), Hindered::of(member, members));
    }
    for holder in &kept.holders {
        match members.get(&holder.id) {
            Some(member) if member.lends() || member.is_unwanted() => {}
            Some(member) => {
                awaited.insert(holder.id, Hindered::of(member, members));
            }
            // This node itself, which shares no Ollama any more.
            None if holder.id == search.node.id => {}
            None => {
                awaited.insert(holder.id, Hindered::away(holder.id, &holder.name, members));
            }
        }
    }
    awaited.into_values().collect()
}
