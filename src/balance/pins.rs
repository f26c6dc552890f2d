//! One name, two digests: a node keeps to the digest that it used first for a model's name (DESIGN §3). Two servers
//! that hold different models under one name would otherwise mix, and with embeddings nobody would notice.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::route::ModelName;

/// More names than any mesh of people uses. Names get here only if a server has the model, but servers are strangers.
const MAX: usize = 4096;

/// The digest that each name stands for, since this node started.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<HashMap<ModelName, Pin>>);

#[derive(Debug)]
struct Pin {
    digest: String,
    /// Whether an answer came from it. Until then a failure lets the name go, or a server that never worked could bind
    /// a name that others serve.
    answered: bool,
}

// === impl Pins ===

impl Pins {
    /// The digest that was used first, if the name was used.
    pub(super) fn of(&self, model: &ModelName) -> Option<String> {
        self.lock().get(model).map(|pin| pin.digest.clone())
    }

    /// A request for the name goes to a server with this digest: before the answer, so that requests that come together
    /// stay together. Another digest than the pinned one replaces it: the caller has seen that nobody holds that any more.
    pub(super) fn using(&self, model: &ModelName, digest: &str) {
        let mut pins = self.lock();
        if digest.is_empty() {
            return;
        }
        let room = pins.len() < MAX;
        match pins.get_mut(model) {
            Some(pin) if pin.digest == digest => {}
            Some(pin) => {
                tracing::warn!(%model, was = %pin.digest, now = %digest, "nobody holds the version of this model used so far");
                *pin = Pin { digest: digest.to_owned(), answered: false };
            }
            None if room => {
                pins.insert(model.clone(), Pin { digest: digest.to_owned(), answered: false });
            }
            None => {}
        }
    }

    /// An answer came.
    pub(super) fn answered(&self, model: &ModelName) {
        if let Some(pin) = self.lock().get_mut(model) {
            pin.answered = true;
        }
    }

    /// None came.
    pub(super) fn failed(&self, model: &ModelName) {
        let mut pins = self.lock();
        if pins.get(model).is_some_and(|pin| !pin.answered) {
            pins.remove(model);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ModelName, Pin>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
