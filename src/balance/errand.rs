//! A request on its way to a server: what it asks for, and where it has been.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use super::RouterSettings;
use super::aim::{Aim, Search};
use super::journal::Entry;
use super::members::{Member, Members};
use crate::digests::Kept;
use crate::exchange::{Ask, Refusal};
use crate::id::Id;
use crate::route::Dialect;

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
    /// Bytes of its body, as far as they are known.
    pub(super) length: u64,
    /// Its account.
    pub(super) entry: Entry,
    /// Who has failed it.
    tried: Mutex<BTreeSet<Id>>,
}

// === impl Errand ===

impl Errand {
    /// One that has been nowhere yet. Length and account are for whoever asks later.
    pub(super) fn new(aim: Aim, path: &str, dialect: Dialect, entry: Entry) -> Self {
        let path = path.to_owned();
        let tried = Mutex::default();
        Self { aim, path, dialect, runs: false, repeatable: false, changes: false, length: 0, entry, tried }
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
    pub(super) fn ask(&self, copies: u8, prompt: u32) -> Ask {
        let model = self.aim.model().map(ToString::to_string).unwrap_or_default();
        Ask { model, request: self.entry.id().to_string(), copies, prompt }
    }
}
