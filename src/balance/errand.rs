//! A request on its way to a server: what it asks for, and where it has been.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::RouterSettings;
use super::aim::{Aim, Search};
use super::journal::Entry;
use super::members::{Member, Members};
use super::priors::Usual;
use crate::digests::Kept;
use crate::exchange::{Ask, Refusal};
use crate::id::Id;
use crate::route::{Dialect, ModelName};

/// A request on its way.
#[derive(Debug)]
pub(super) struct Errand {
    /// Who may take it.
    pub(super) aim: Aim,
    /// Its path, for the words of a refusal.
    pub(super) path: String,
    /// Who understands it at all.
    pub(super) dialect: Dialect,
    /// Whether it takes a slot of a runner.
    pub(super) runs: bool,
    /// Whether it may be done twice.
    pub(super) repeatable: bool,
    /// Whether it changes models.
    pub(super) changes: bool,
    /// Tokens of its prompt, as estimated from its body.
    pub(super) prompt: u32,
    /// Whether nothing is generated: an embedding.
    pub(super) embeds: bool,
    /// Its account.
    pub(super) entry: Entry,
    /// Who has failed it.
    tried: Mutex<BTreeSet<Id>>,
}

// === impl Errand ===

impl Errand {
    /// One that has been nowhere yet.
    pub(super) fn new(aim: Aim, path: &str, dialect: Dialect, entry: Entry) -> Self {
        let path = path.to_owned();
        let tried = Mutex::default();
        Self {
            aim,
            path,
            dialect,
            runs: false,
            repeatable: false,
            changes: false,
            prompt: 0,
            embeds: false,
            entry,
            tried,
        }
    }

    /// Those who may take it now and have not failed it, or why nobody can. An empty list means that all were tried.
    pub(super) fn candidates(&self, members: &Members, node: &RouterSettings) -> Result<Vec<Arc<Member>>, Refusal> {
        let kept = self.kept(node);
        let tried = self.tried.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (path, dialect) = (&*self.path, self.dialect);
        self.aim.candidates(&Search { members, tried: &tried, kept: kept.as_ref(), node, path, dialect })
    }

    /// Which weights this node keeps to, for the model that is asked for.
    pub(super) fn kept(&self, node: &RouterSettings) -> Option<Kept> {
        node.digests.of(self.aim.model()?)
    }

    /// How often it was tried.
    pub(super) fn tries(&self) -> usize {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// It is tried there: nobody is tried twice.
    pub(super) fn tried_at(&self, member: &Member) {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner).insert(member.id());
    }

    /// What a queue has to know of it.
    pub(super) fn ask(&self, copies: u8) -> Ask {
        let model = self.aim.model().map(ToString::to_string).unwrap_or_default();
        Ask { model, request: self.entry.id().to_string(), copies, prompt: self.prompt }
    }

    /// Tokens of its prompt.
    pub(super) fn prompt(&self) -> f64 {
        self.prompt.into()
    }

    /// What requests like this one are like, where those for its model are `usual`.
    pub(super) fn usual(&self, usual: Usual) -> Usual {
        if self.embeds { Usual { output: 0.0, ..usual } } else { usual }
    }

    /// Tokens of its prompt that a server has cached.
    pub(super) fn cached_at(&self, _member: &Member, _model: &ModelName) -> f64 {
        0.0
    }
}
