//! What the owner has decided about lending, and what follows from it for one model.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Weights;
use super::queue::{Found, Limits};
use crate::exchange::{ServerKind, limits};
use crate::ollama::{Ollama, Slots, State};
use crate::route::ModelName;

/// How many requests for models that the server does not list are with it at a time.
const UNLISTED_SLOTS: u32 = 4;

/// What a model takes to load of which it is not known.
const LOAD_TIME: Duration = Duration::from_secs(30);

/// The same of a vLLM: what it takes into one batch by default (`max_num_seqs`).
const VLLM_SLOTS: u32 = 256;

/// What the owner has decided for all peers.
#[derive(Debug, Clone, PartialEq)]
pub struct GateSettings {
    /// Whether peers with scope `manage` may push models, which signs with the owner's key.
    pub lend_push: bool,
    /// The longest context in tokens that peers below scope `manage` may ask for (`num_ctx`); with 0 what they ask for does
    /// not count, with nothing there is no bound but Ollama's.
    pub max_context: Option<u64>,
    /// How many requests of one model the server works on at a time. Nothing: as many as is found out.
    pub parallel: Option<u32>,
    /// How many of them no peer gets, so that the owner finds one free. Peers get one of each model anyhow: lending none
    /// is another decision.
    pub reserve: u32,
    /// How many models the server keeps in memory. Nothing: as many as is found out.
    pub max_loaded: Option<u32>,
    /// The shares of peers while several wait; 1 for those who are not named. Between 0.01 and 100.
    pub weights: Weights,
    /// Requests and tickets of peers that wait, in all; of strangers half as many.
    pub queue: usize,
    /// The same of each peer.
    pub queue_each: usize,
    /// How long a peer that has a slot may be waited for in all, to send the rest of its request and to read its answer,
    /// while others wait for the slot. A minute: what a photograph takes over a bad Wi-Fi.
    pub patience: Duration,
    /// Shortest time between two words to those who wait in one line about where they stand. 200 ms: they look again every
    /// second.
    pub tell: Duration,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            lend_push: false,
            max_context: None,
            parallel: None,
            max_loaded: None,
            reserve: 0,
            weights: Weights::default(),
            queue: limits::WAITING,
            queue_each: limits::WAITING_EACH,
            patience: Duration::from_secs(60),
            tell: Duration::from_millis(200),
        }
    }
}

// === impl GateSettings ===

impl GateSettings {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            waiting: self.queue,
            waiting_each: self.queue_each,
            waiting_strangers: limits::strangers_of(self.queue),
            reserve: self.reserve,
            tell: self.tell,
        }
    }

    /// The line that a request for this model waits in, and how many run of it at a time.
    ///
    /// What the server does not list shares one line without a name. Who makes up names has so no slots of their own with
    /// them, and no lines to fill memory with: an Ollama says at once that it has no such model, others may not look at
    /// the name. One that has a single model runs that, whatever it is asked for.
    pub(super) fn line<'a>(&self, ollama: &Ollama, state: &'a State, model: Option<&ModelName>) -> (&'a str, Slots) {
        let only = || match (state.kind, state.models.len()) {
            (ServerKind::OpenAi, 1) => state.models.keys().next().map(String::as_str),
            _ => None,
        };
        let listed = model.and_then(|model| state.listed(model)).or_else(only);
        (listed.unwrap_or_default(), self.slots(ollama, state, listed))
    }

    /// What a look at the server has found.
    pub(super) fn found<'a>(&self, ollama: &Ollama, state: &'a State) -> BTreeMap<&'a str, Found> {
        // A copy: `slots` below takes the lock under which the paces are published.
        let paces = ollama.paces().borrow().clone();
        let load_time = |name: &str| Duration::try_from_secs_f32(paces.get(name)?.load?).ok();
        let found = |name: &str| Found {
            loaded: (!state.loaded_unknown).then(|| state.loaded.contains(name)),
            slots: self.slots(ollama, state, Some(name)),
            load_time: load_time(name).unwrap_or(LOAD_TIME),
        };
        state.models.keys().map(|name| (name.as_str(), found(name))).collect()
    }

    /// How many requests of a model run at a time: what the owner says, else what was learned of the server.
    pub(super) fn slots(&self, ollama: &Ollama, state: &State, listed: Option<&str>) -> Slots {
        let said = |slots: u32| Slots::from(slots.max(1));
        match (self.parallel, listed) {
            (Some(slots), _) => said(slots),
            _ if state.server.as_deref() == Some("vLLM") => said(VLLM_SLOTS),
            (None, Some(model)) => ollama.slots(model),
            // Whatever it is, nobody has it: the server says so at once.
            (None, None) => said(UNLISTED_SLOTS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Uri;

    fn state(kind: ServerKind, models: &[&str]) -> State {
        let models = models.iter().map(|name| ((*name).to_owned(), Default::default())).collect();
        State { kind, models, ..State::default() }
    }

    #[test]
    fn what_the_owner_says_counts_and_then_what_was_learned() {
        let state = state(ServerKind::Ollama, &["m:latest", "n:latest"]);
        let ollama = Ollama::absent(&Uri::from_static("http://127.0.0.1:1"));
        let line = |settings: &GateSettings, model| settings.line(&ollama, &state, Some(&ModelName::new(model))).1;
        let learned = ollama.slots("m:latest");
        let default = GateSettings::default();
        assert_eq!((line(&default, "m"), line(&default, "x")), (learned, UNLISTED_SLOTS.into()));
        let said = GateSettings { parallel: Some(7), ..GateSettings::default() };
        assert_eq!((line(&said, "m"), line(&said, "n")), (7.into(), 7.into()));
        assert_eq!(line(&GateSettings { parallel: Some(0), ..said }, "m"), 1.into(), "none would never end");
    }

    #[test]
    fn a_model_has_one_line_whatever_its_spelling_and_made_up_ones_share_another() {
        let settings = GateSettings::default();
        let ollama = Ollama::absent(&Uri::from_static("http://127.0.0.1:1"));
        let line = |state: &State, model: Option<&str>| {
            settings.line(&ollama, state, model.map(ModelName::new).as_ref()).0.to_owned()
        };
        let many = state(ServerKind::Ollama, &["m:latest"]);
        for (model, expected) in [("m", "m:latest"), ("M:latest", "m:latest"), ("x", ""), ("y", "")] {
            assert_eq!(line(&many, Some(model)), expected);
        }
        let one = state(ServerKind::OpenAi, &["qwen"]);
        assert_eq!((line(&one, Some("qwen")), line(&one, Some("gpt-4"))), ("qwen".to_owned(), "qwen".to_owned()));
        assert_eq!(line(&one, None), "qwen");
    }
}
