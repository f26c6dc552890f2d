//! How much of the queue each peer gets beside others.

use std::collections::BTreeMap;

use super::Caller;
use crate::id::{Id, NodeName};

/// How much of the queue each peer gets beside others: where one of weight 2 and one of weight 1 both have requests that
/// wait, two of the first are served for each of the second.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Weights {
    ids: BTreeMap<Id, f64>,
    /// In lower case: names are compared without case.
    names: BTreeMap<String, f64>,
}

// === impl Weights ===

impl Weights {
    /// Who is in no list.
    pub const DEFAULT: f64 = 1.0;
    /// The least and the most.
    pub const RANGE: std::ops::RangeInclusive<f64> = 0.01..=100.0;

    /// Gives this key a weight, which is brought into [`RANGE`](Self::RANGE). Says whether it had one.
    pub fn set(&mut self, id: Id, weight: f64) -> bool {
        self.ids.insert(id, within(weight)).is_some()
    }

    /// The same for whoever bears this name.
    pub fn set_name(&mut self, name: &NodeName, weight: f64) -> bool {
        self.names.insert(name.as_str().to_ascii_lowercase(), within(weight)).is_some()
    }

    /// The weight of the peer with this ID, which calls itself so. That of an ID goes before that of a name, since anyone
    /// may bear a name.
    pub fn of(&self, id: &Id, name: &NodeName) -> f64 {
        let named = || self.names.get(&name.as_str().to_ascii_lowercase());
        self.ids.get(id).or_else(named).copied().unwrap_or(Self::DEFAULT)
    }

    /// Whether everyone weighs the same.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.names.is_empty()
    }

    pub(super) fn of_caller(&self, caller: &Caller) -> f64 {
        match caller {
            Caller::Peer { id, name, .. } if !self.is_empty() => self.of(id, name),
            _ => Self::DEFAULT,
        }
    }
}

/// What is no number weighs as usual.
fn within(weight: f64) -> f64 {
    if weight.is_nan() { Weights::DEFAULT } else { weight.clamp(*Weights::RANGE.start(), *Weights::RANGE.end()) }
}
