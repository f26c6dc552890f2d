//! What nodes shared that left, or whose Ollama did, a moment ago: so that a model of theirs is said to be out of reach for
//! now, and not to be unknown. Remembered for a while, as far as there is room, and only of nodes that were used: who was
//! never let in leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::dealings::Dealings;
use super::members::View;
use crate::id::{Id, NodeName, Scope};
use crate::route::ModelName;

/// Longer than a machine takes to start again, and what an application may wait for by itself.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Nodes: more than most meshes have in all.
const MAX_NODES: usize = 64;
/// Models of all of them together: at 2 KB each at most (two spellings and a digest), 8 MB.
const MAX_MODELS: usize = 4096;

/// What a node shared when it last did.
#[derive(Debug, Clone)]
pub(super) struct Lent {
    pub(super) view: Arc<View>,
    pub(super) until: Instant,
}

/// A node that left.
#[derive(Debug, Clone)]
pub(super) struct Departed {
    pub(super) id: Id,
    pub(super) label: NodeName,
    pub(super) lent: Lent,
    /// What we had to do with it.
    pub(super) dealings: Arc<Dealings>,
}

/// The nodes that left, at most [`MAX_NODES`] of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(BTreeMap<Id, Departed>);

// === impl Lent ===

impl Lent {
    pub(super) fn is_fresh(&self) -> bool {
        self.until.elapsed() < REMEMBERED
    }

    pub(super) fn has(&self, model: &ModelName) -> bool {
        self.is_fresh() && self.view.digest(model).is_some()
    }
}

// === impl Departed ===

impl Departed {
    /// Whether it ever answered a request of ours: a stranger with a new key each minute pushes out no such node.
    pub(super) fn served(&self) -> bool {
        self.dealings.has_served()
    }

    /// Whether it let us change its models.
    pub(super) fn let_manage(&self) -> bool {
        self.lent.is_fresh() && self.lent.view.report.scope >= Scope::Manage
    }
}

// === impl Memory ===

impl Memory {
    /// Those that are still remembered.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Departed> {
        self.0.values().filter(|departed| departed.lent.is_fresh())
    }

    /// Remembers one that leaves, at the cost of those that served nothing or left before.
    pub(super) fn add(&mut self, departed: Departed) {
        self.0.insert(departed.id, departed);
        self.0.retain(|_, departed| departed.lent.is_fresh());
        while self.0.len() > MAX_NODES || self.models() > MAX_MODELS {
            let least = self.0.values().min_by_key(|departed| (departed.served(), departed.lent.until));
            let Some(id) = least.map(|departed| departed.id) else { return };
            self.0.remove(&id);
        }
    }

    /// One that is back.
    pub(super) fn take(&mut self, id: &Id) -> Option<Departed> {
        self.0.remove(id)
    }

    fn models(&self) -> usize {
        self.0.values().map(|departed| departed.lent.view.models()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::{ModelInfo, Report};

    fn departed(n: usize, models: usize, served: bool) -> Departed {
        let models = (0..models).map(|m| (format!("m{m}"), ModelInfo::default())).collect();
        let view = Arc::new(View::new(Arc::new(Report { models, ..Report::default() })));
        let dealings = Arc::new(Dealings::default());
        if served {
            dealings.served(None);
        }
        Departed {
            id: Id::of_spki(&n.to_be_bytes()),
            label: NodeName::lossy(&n.to_string()),
            lent: Lent { view, until: Instant::now() },
            dealings,
        }
    }

    fn labels(memory: &Memory) -> usize {
        memory.iter().count()
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_do_not_push_out_a_node_that_served() {
        let mut memory = Memory::default();
        let friend = departed(0, 2, true);
        let id = friend.id;
        memory.add(friend);
        for n in 1..1000 {
            tokio::time::advance(Duration::from_millis(10)).await;
            memory.add(departed(n, if n % 2 == 0 { 1 } else { MAX_MODELS + 1 }, false));
            assert!(memory.iter().any(|departed| departed.id == id));
            assert!(labels(&memory) <= MAX_NODES && memory.models() <= MAX_MODELS);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_left_is_forgotten_in_time_and_when_it_comes_back() {
        let mut memory = Memory::default();
        memory.add(departed(1, 1, true));
        memory.add(departed(2, 1, false));
        assert_eq!(labels(&memory), 2);
        assert!(memory.take(&departed(2, 0, false).id).is_some());
        tokio::time::advance(REMEMBERED - Duration::from_secs(1)).await;
        assert_eq!(labels(&memory), 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(labels(&memory), 0);
    }
}
