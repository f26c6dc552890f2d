//! What runs at the gate.

use tokio::sync::watch;

use super::shares::Place;

/// The count, and whether anything may be added to it.
#[derive(Debug)]
pub(super) struct Load(watch::Sender<Now>);

/// The count at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Now {
    pub(super) inflight: u32,
    pub(super) draining: bool,
}

/// One request that runs, until this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    now: watch::Sender<Now>,
    place: Option<Place>,
}

// === impl Load ===

impl Load {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(Now::default()))
    }

    pub(super) fn begin(&self) -> Running {
        self.0.send_modify(|now| now.inflight = now.inflight.saturating_add(1));
        Running { now: self.0.clone(), place: None }
    }

    pub(super) fn drain(&self) {
        self.0.send_modify(|now| now.draining = true);
    }

    pub(super) fn is_draining(&self) -> bool {
        self.0.borrow().draining
    }

    pub(super) async fn idle(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|now| now.inflight == 0).await;
    }

    pub(super) fn watch(&self) -> watch::Receiver<Now> {
        self.0.subscribe()
    }
}

// === impl Running ===

impl Running {
    /// Keeps its place until it is over.
    pub(super) fn at(mut self, place: Place) -> Self {
        self.place = Some(place);
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.place = None;
        self.now.send_modify(|now| now.inflight = now.inflight.saturating_sub(1));
    }
}
