//! A router's knowledge of nodes that are no endpoints, and of its own node's name: for the words of a refusal alone.

use std::fmt;
use std::sync::Arc;

use crate::exchange::Unusable;
use crate::id::{Id, NodeName};

/// This node, and who around it cannot be used. Clones share it.
#[derive(Clone)]
pub(super) struct Around {
    pub(super) own: NodeName,
    pub(super) id: Id,
    unusable: Arc<dyn Fn() -> Vec<Unusable> + Send + Sync>,
}

// === impl Around ===

impl Around {
    pub(super) fn new(own: NodeName, id: Id, unusable: impl Fn() -> Vec<Unusable> + Send + Sync + 'static) -> Self {
        Self { own, id, unusable: Arc::new(unusable) }
    }

    /// The nodes that cannot be used now. Worked out anew at each call, which is when a request is refused.
    pub(super) fn unusable(&self) -> Vec<Unusable> {
        (self.unusable)()
    }
}

impl Default for Around {
    fn default() -> Self {
        Self::new(NodeName::lossy("node"), Id::from_bytes([0; 32]), Vec::new)
    }
}

impl fmt::Debug for Around {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Around").field(&self.own).finish()
    }
}
