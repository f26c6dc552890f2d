//! The words of the queue: what it is told, and what it says.

use std::sync::Arc;
use std::time::Duration;

use crate::exchange::{Place, Refusal};
use crate::id::Id;
use crate::ollama::Slots;

/// One who waits or runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::gate) struct EntryId(pub(super) u64);

/// Whose an entry is: what is shared fairly is shared between these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::gate) enum Flow {
    /// This machine's applications.
    Owner,
    /// Whoever comes by a listener that is open to other machines.
    Guest,
    /// A peer, by its key.
    Peer(Id),
    /// A peer that a person trusts, or someone whom they trust.
    Trusted(Id),
}

impl Flow {
    /// Whether nobody knows who it is. A key costs nothing, so there may be any number of these.
    pub(in crate::gate) fn is_stranger(self) -> bool {
        matches!(self, Self::Guest | Self::Peer(_))
    }
}

/// A line's name: a model as the server lists it.
pub(in crate::gate) type Model = Arc<str>;

/// What the owner has decided about those who wait.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gate) struct Limits {
    /// Others than the owner who wait, in all; and as many of the owner's again.
    pub(in crate::gate) waiting: usize,
    /// The same of one peer.
    pub(in crate::gate) waiting_each: usize,
    /// The same of all strangers together.
    pub(in crate::gate) waiting_strangers: usize,
    /// Slots of a model that only the owner gets, of those that there are for certain. One is lent anyhow.
    pub(in crate::gate) reserve: u32,
    /// Shortest time between two words to those who wait in one line about where they stand.
    pub(in crate::gate) tell: Duration,
}

/// Who wants to run.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gate) struct Arrival {
    pub(in crate::gate) flow: Flow,
    /// Its share while several wait: twice as much has twice as many turns. Finite and above 0.
    pub(in crate::gate) weight: f64,
    pub(in crate::gate) model: Model,
    /// How many of this model run at a time.
    pub(in crate::gate) slots: Slots,
    /// Set if it is a ticket: how many of them stand for the request.
    pub(in crate::gate) copies: Option<u8>,
}

/// What is to be told.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::gate) enum Event {
    /// It has a slot from now on.
    Granted(EntryId),
    /// It waits no more, and is forgotten.
    Refused(EntryId, Refusal),
    /// Where this ticket stands now.
    Moved(EntryId, Place),
}

/// What a look at the server found of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::gate) struct Found {
    /// Whether it is in memory, if the server says.
    pub(in crate::gate) loaded: Option<bool>,
    pub(in crate::gate) slots: Slots,
    /// How long it takes to load, as far as is known.
    pub(in crate::gate) load_time: Duration,
}
