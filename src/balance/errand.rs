//! A request on its way to a server: what it asks for, and where it has been.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::aim::{Aim, Search};
use super::journal::Entry;
use super::members::{Member, Members};
use super::prefix::{Fingerprint, Prefixes};
use super::priors::Usual;
use super::refuse::Unmet;
use super::replay::Replay;
use super::{Known, MOST_LATE, MOST_LATE_AT_ONE, RouterSettings, prefix};
use crate::digests::Kept;
use crate::exchange::Ask;
use crate::id::Id;
use crate::route::Dialect;

/// Most tokens that a prompt is taken to have: a long context. Beyond it a body holds pictures or sounds, whose tokens are
/// not their bytes.
const MAX_PROMPT: f64 = 32_768.0;

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
    /// How its body begins, if it takes a slot.
    pub(super) fingerprint: Option<Fingerprint>,
    /// Whether nothing is generated: an embedding.
    pub(super) embeds: bool,
    /// Its account.
    pub(super) entry: Entry,
    tried: Mutex<Tried>,
}

/// Where it was tried.
#[derive(Debug, Default)]
struct Tried {
    /// Who has failed it.
    at: BTreeSet<Id>,
    /// Where it came too late, and how often.
    late: BTreeMap<Id, usize>,
    /// How often in all.
    times: usize,
    /// How often a server had all of it and failed.
    whole: usize,
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
            fingerprint: None,
            embeds: false,
            entry,
            tried,
        }
    }

    /// Those who may take it now and have not failed it, or why nobody can. An empty list means that all were tried.
    pub(super) fn candidates(&self, members: &Members, node: &RouterSettings) -> Result<Vec<Arc<Member>>, Unmet> {
        let kept = self.kept(node);
        let tried = self.tried().at.clone();
        let (path, dialect) = (&*self.path, self.dialect);
        self.aim.candidates(&Search { members, tried: &tried, kept: kept.as_ref(), node, path, dialect })
    }

    /// Which weights this node keeps to, for the model that is asked for.
    pub(super) fn kept(&self, node: &RouterSettings) -> Option<Kept> {
        node.digests.of(self.aim.model()?)
    }

    /// How often it was tried.
    pub(super) fn tries(&self) -> usize {
        self.tried().times
    }

    /// It is tried there: nobody who fails it is tried twice.
    pub(super) fn tried_at(&self, member: &Member) {
        let mut tried = self.tried();
        tried.times += 1;
        tried.at.insert(member.id());
    }

    /// It came too late there, which is not that one's fault: it may be asked once more. No oftener, since it runs nothing and
    /// looks idle: one that always says so would keep all there is from the others. Where it is the only one, as on a machine
    /// that has far too much to do, up to [`MOST_LATE_AT_ONE`] times.
    /// Says whether it may.
    pub(super) fn was_late_at(&self, member: &Member, is_only_one: bool) -> bool {
        let mut tried = self.tried();
        let times = tried.late.entry(member.id()).or_default();
        *times += 1;
        let most = if is_only_one { MOST_LATE_AT_ONE } else { MOST_LATE };
        let again = *times < most;
        if again {
            tried.at.remove(&member.id());
        }
        again
    }

    /// Whether it was tried, and not only too late.
    pub(super) fn has_failed(&self) -> bool {
        let tried = self.tried();
        tried.times > tried.late.values().sum::<usize>()
    }

    /// A server had all of it and failed; how many have by now.
    pub(super) fn failed_whole(&self) -> usize {
        let mut tried = self.tried();
        tried.whole += 1;
        tried.whole
    }

    fn tried(&self) -> MutexGuard<'_, Tried> {
        self.tried.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Reads as much of its body as is there at once: how it begins, and how long it may be.
    pub(super) async fn read(&mut self, replay: &Replay, known: &Known, length: u64) {
        let mut reading = known.prefixes().read();
        let mut bytes = 0u64;
        replay
            .look(prefix::READ, |data| {
                bytes += data.len() as u64;
                reading.feed(data);
            })
            .await;
        self.fingerprint = Some(reading.fingerprint());
        let tokens = prefix::tokens(usize::try_from(bytes.max(length)).unwrap_or(usize::MAX)).min(MAX_PROMPT);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and MAX_PROMPT")]
        let tokens = tokens as u32;
        self.prompt = tokens;
        self.embeds = self.path.contains("/embed");
        self.entry.asks(self.aim.model().map(ToString::to_string), Some(tokens));
    }

    /// Tokens of its prompt that a server has cached, of the model that it lists under this name.
    /// It has begun so many requests for that.
    pub(super) fn cached_at(&self, prefixes: &Prefixes, member: &Member, model: &str, begun: u32) -> f64 {
        let matched = |fingerprint| prefixes.matched(&member.id(), model, fingerprint, begun);
        self.fingerprint.as_ref().map_or(0.0, |fingerprint| prefix::tokens(matched(fingerprint)))
    }

    /// It is sent to a server, which has it in its cache from now on.
    pub(super) fn recorded_at(&self, known: &Known, member: &Member) {
        let (Some(fingerprint), Some(model)) = (&self.fingerprint, self.aim.model()) else { return };
        let view = member.view();
        let Some((name, info)) = view.entry(model) else { return };
        let begun = member.busy().of(name).begun;
        known.prefixes().record(&member.id(), name, fingerprint, info.pace.slots.unwrap_or(1), begun);
    }
}
