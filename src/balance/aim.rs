//! Who may take a request: what it asks for, against what is known of each member.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::members::{Member, Members};
use super::pins::Pins;
use super::refuse;
use crate::exchange::Refusal;
use crate::id::{Id, NodeName, Use};
use crate::route::{ModelName, unknown_model};

/// What decides who may take a request.
#[derive(Debug)]
pub(super) enum Aim {
    /// The request says which node; nobody else will do.
    Chosen(String),
    /// It changes models, and does not say where.
    Manage,
    /// It is for a model.
    Model(ModelName),
    /// Whoever provides.
    Any,
}

impl Aim {
    /// Those who may take it, or why nobody can. `tried` are left out: an empty list means that all who could have been
    /// tried.
    pub(super) fn candidates(
        &self,
        members: &Members,
        tried: &BTreeSet<Id>,
        own: &NodeName,
        pins: &Pins,
        path: &str,
    ) -> Result<Vec<Arc<Member>>, Refusal> {
        let mut found = match self {
            Self::Chosen(choice) => vec![chosen(choice, members)?],
            Self::Manage => vec![manager(members, own)?],
            Self::Model(model) => holders(model, members, pins, path)?,
            Self::Any => providers(members)?,
        };
        found.retain(|member| !tried.contains(&member.id()));
        Ok(found)
    }

    /// The model it is for.
    pub(super) fn model(&self) -> Option<&ModelName> {
        match self {
            Self::Model(model) => Some(model),
            _ => None,
        }
    }
}

/// Those that can take a request at all.
pub(super) fn providers(members: &Members) -> Result<Vec<Arc<Member>>, Refusal> {
    let usable: Vec<_> = members.values().filter(|member| member.obstacle().is_none()).cloned().collect();
    if usable.is_empty() { Err(refuse::nobody(members)) } else { Ok(usable) }
}

fn chosen(choice: &str, members: &Members) -> Result<Arc<Member>, Refusal> {
    let whole: Option<Id> = choice.parse().ok();
    let mut meant: Vec<_> = members.values().filter(|member| member.label().is(choice)).collect();
    if meant.is_empty() {
        meant = members
            .values()
            .filter(|member| whole.map_or_else(|| member.id().matches_prefix(choice), |id| member.id() == id))
            .collect();
    }
    match meant.as_slice() {
        [] => Err(refuse::unknown_node(choice, members)),
        [member] => match member.obstacle() {
            None => Ok(Arc::clone(member)),
            Some(obstacle) => Err(refuse::chosen_unusable(member, obstacle, members)),
        },
        several => Err(refuse::ambiguous(choice, several.iter().map(|member| member.id()))),
    }
}

fn manager(members: &Members, own: &NodeName) -> Result<Arc<Member>, Refusal> {
    let usable = providers(members)?;
    let managers: Vec<&Member> = usable.iter().map(|m| &**m).filter(|member| member.lets_manage()).collect();
    match managers.as_slice() {
        [] => {
            let usable: Vec<&Member> = usable.iter().map(|m| &**m).collect();
            Err(refuse::nobody_lets_manage(own, &usable, members))
        }
        [one] => {
            let id = one.id();
            members.get(&id).cloned().ok_or_else(|| refuse::nobody(members))
        }
        several => Err(refuse::choose_one(several, members)),
    }
}

fn holders(model: &ModelName, members: &Members, pins: &Pins, path: &str) -> Result<Vec<Arc<Member>>, Refusal> {
    let usable = providers(members)?;
    // Whom we do not use because a person said so does not count as having it.
    let all: Vec<&Member> = members
        .values()
        .map(|m| &**m)
        .filter(|member| member.is_local() || member.endpoint.use_() != Use::No)
        .filter(|member| member.view().digest(model).is_some())
        .collect();
    let having: Vec<_> = usable.into_iter().filter(|member| member.view().digest(model).is_some()).collect();
    if having.is_empty() {
        return Err(if all.is_empty() {
            unknown_model(path, model)
        } else {
            refuse::holders_unusable(model, &all, members)
        });
    }
    let Some(pinned) = pins.of(model) else { return Ok(having) };
    let is_pinned =
        |member: &Member| member.view().digest(model).is_some_and(|digest| digest.is_empty() || digest == pinned);
    let (same, other): (Vec<_>, Vec<_>) = having.into_iter().partition(|member| is_pinned(member));
    if !same.is_empty() {
        return Ok(same);
    }
    let elsewhere: Vec<&Member> = all.into_iter().filter(|member| is_pinned(member)).collect();
    if elsewhere.is_empty() {
        // Nobody has the first version any more, as after a `pull` of a newer one: the name means the new one now.
        return Ok(other);
    }
    let other: Vec<&Member> = other.iter().map(|m| &**m).collect();
    Err(refuse::other_version(model, &elsewhere, &other, members))
}
