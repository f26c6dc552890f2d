//! What the owner has decided about lending, and what follows from it for one model.

use std::collections::BTreeMap;

use super::queue::{Found, Limits};
use crate::exchange::ServerKind;
use crate::id::Id;
use crate::ollama::State;
use crate::route::ModelName;

/// How many requests of a model run at a time where neither the owner has said it nor anything was learned. An Ollama runs
/// one by default and ran four where memory allowed it before that. One too few leaves a runner idle for as long as nobody
/// finds out; three too many wait in Ollama's queue instead of ours, and it is they by which it is found out how many run.
pub const UNKNOWN_SLOTS: u32 = 4;

/// The same of a vLLM: what it takes into one batch by default (`max_num_seqs`).
const VLLM_SLOTS: u32 = 256;

/// What the owner has decided for all peers.
#[derive(Debug, Clone, PartialEq)]
pub struct GateSettings {
    /// Whether peers with scope `manage` may push models, which signs with the owner's key.
    pub lend_push: bool,
    /// How many requests of one model the server works on at a time. Nothing: as many as is found out.
    pub parallel: Option<u32>,
    /// How many of them no peer gets, so that the owner finds one free. Peers get one of each model anyhow: lending none
    /// is another decision.
    pub reserve: u32,
    /// The shares of peers while several wait; 1 for those who are not named. Between 0.01 and 100.
    pub weights: BTreeMap<Id, f32>,
    /// Requests and tickets of peers that wait, in all.
    pub queue: usize,
    /// The same of each peer.
    pub queue_each: usize,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self { lend_push: false, parallel: None, reserve: 0, weights: BTreeMap::new(), queue: 256, queue_each: 64 }
    }
}

// === impl GateSettings ===

impl GateSettings {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            waiting: self.queue,
            waiting_each: self.queue_each,
            reserve: self.reserve,
            weights: self.weights.clone(),
        }
    }

    /// The line that a request for this model waits in, and how many run of it at a time.
    ///
    /// What the server does not list shares one line without a name. Who makes up names has so no slots of their own with
    /// them, and no lines to fill memory with: an Ollama says at once that it has no such model, others may not look at
    /// the name. One that has a single model runs that, whatever it is asked for.
    pub(super) fn line<'a>(&self, state: &'a State, model: Option<&ModelName>) -> (&'a str, u32) {
        let only = || match (state.kind, state.models.len()) {
            (ServerKind::OpenAi, 1) => state.models.keys().next().map(String::as_str),
            _ => None,
        };
        let listed = model.and_then(|model| state.listed(model)).or_else(only);
        (listed.unwrap_or_default(), self.slots(state, listed))
    }

    /// What a look at the server has found.
    pub(super) fn found<'a>(&self, state: &'a State) -> BTreeMap<&'a str, Found> {
        let found = |name| Found { loaded: state.loaded.contains(name), slots: self.slots(state, Some(name)) };
        state.models.keys().map(|name| (name.as_str(), found(name))).collect()
    }

    fn slots(&self, state: &State, listed: Option<&str>) -> u32 {
        let learned = || state.models.get(listed?)?.pace.slots;
        let unknown = || if state.server.as_deref() == Some("vLLM") { VLLM_SLOTS } else { UNKNOWN_SLOTS };
        self.parallel.or_else(learned).unwrap_or_else(unknown).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{ModelInfo, Pace};

    fn state(kind: ServerKind, models: &[(&str, Option<u32>)]) -> State {
        let info = |slots| ModelInfo { pace: Pace { slots, ..Pace::default() }, ..ModelInfo::default() };
        let models = models.iter().map(|(name, slots)| ((*name).to_owned(), info(*slots))).collect();
        State { kind, models, ..State::default() }
    }

    #[test]
    fn what_the_owner_says_counts_and_then_what_was_learned() {
        let state = state(ServerKind::Ollama, &[("m:latest", Some(2)), ("n:latest", None)]);
        let line = |settings: &GateSettings, model| settings.line(&state, Some(&ModelName::new(model))).1;
        let learned = GateSettings::default();
        assert_eq!((line(&learned, "m"), line(&learned, "n"), line(&learned, "x")), (2, UNKNOWN_SLOTS, UNKNOWN_SLOTS));
        let said = GateSettings { parallel: Some(7), ..GateSettings::default() };
        assert_eq!((line(&said, "m"), line(&said, "n")), (7, 7));
        assert_eq!(line(&GateSettings { parallel: Some(0), ..said }, "m"), 1, "none would never end");
    }

    #[test]
    fn a_model_has_one_line_whatever_its_spelling_and_made_up_ones_share_another() {
        let settings = GateSettings::default();
        let ollama = state(ServerKind::Ollama, &[("m:latest", None)]);
        let line = |state: &'static State, model: &str| settings.line(state, Some(&ModelName::new(model))).0;
        let ollama: &'static State = Box::leak(Box::new(ollama));
        for (model, expected) in [("m", "m:latest"), ("M:latest", "m:latest"), ("x", ""), ("y", "")] {
            assert_eq!(line(ollama, model), expected);
        }
        let one: &'static State = Box::leak(Box::new(state(ServerKind::OpenAi, &[("qwen", None)])));
        assert_eq!((line(one, "qwen"), line(one, "gpt-4")), ("qwen", "qwen"));
        assert_eq!(settings.line(one, None).0, "qwen");
    }
}
