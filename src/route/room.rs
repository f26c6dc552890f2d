//! Room for what is held of requests on their way, so that many of them together are bounded too.

use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::exchange::Refusal;

/// In what [`Room`] is counted.
const UNIT: usize = 1024;

/// Room for what is held of requests whose senders are not known to be honest, shared by all of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

/// A part of a [`Room`], given back when it is dropped.
#[derive(Debug, Default)]
pub struct Space(Option<OwnedSemaphorePermit>);

/// There is no more of it.
#[derive(Debug, thiserror::Error)]
#[error(
    "the server that this goes to looks into too many long requests at the moment; those that name their model first need no room"
)]
pub struct NoRoom;

/// When another try is worth it for who found none.
const SOON: Duration = Duration::from_secs(1);

// === impl Room ===

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes / UNIT)))
    }

    /// So much of it.
    ///
    /// # Errors
    /// If there is not so much; nobody waits, since those who hold it may hold it as long as they like.
    pub(crate) fn take(&self, bytes: usize) -> Result<Space, NoRoom> {
        let mut space = Space::default();
        space.grow(self, bytes)?;
        Ok(space)
    }
}

// === impl Space ===

impl Space {
    /// Makes it so many bytes, if it is less.
    pub(super) fn grow(&mut self, room: &Room, bytes: usize) -> Result<(), NoRoom> {
        let more = bytes.div_ceil(UNIT).saturating_sub(self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| NoRoom)?;
        let more = room.0.clone().try_acquire_many_owned(more).map_err(|_| NoRoom)?;
        match &mut self.0 {
            Some(space) => space.merge(more),
            None => self.0 = Some(more),
        }
        Ok(())
    }
}

// === impl NoRoom ===

impl NoRoom {
    /// What the application is told.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal {
            status: StatusCode::SERVICE_UNAVAILABLE,
            code: "no-room",
            message: self.to_string(),
            retry_after: Some(SOON),
        }
    }
}
