//! How far a request came at the server it is for.

use std::sync::Arc;

use tokio::sync::watch;

/// Whether the server has the whole request, so that it may have acted on it whatever comes of it. Among a request's
/// extensions; clones share it, and it goes one way only.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<watch::Sender<bool>>);

// === impl Progress ===

impl Progress {
    /// The server has all of it.
    pub fn start(&self) {
        self.0.send_if_modified(|started| !std::mem::replace(started, true));
    }

    /// Whether it has.
    pub fn has_started(&self) -> bool {
        *self.0.borrow()
    }

    /// Resolves once it has.
    pub async fn started(&self) {
        let mut started = self.0.subscribe();
        // The sender is this one's own, so it is never closed.
        let _ = started.wait_for(|started| *started).await;
    }
}
