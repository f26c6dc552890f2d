//! Room for what is held of requests on their way, so that many of them together are bounded too.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::exchange::RefusalCode;

/// In what [`Room`] is counted.
const UNIT: usize = 1024;

/// Room for what is held of requests whose senders are not known to be honest, shared by all of them. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Room {
    free: Arc<Semaphore>,
    /// The larger ones that this is a part of, from the inside out.
    within: Vec<Arc<Semaphore>>,
}

/// What was taken of a [`Room`] and of those around it, given back when it is dropped.
#[derive(Debug, Default)]
pub struct Space(Vec<OwnedSemaphorePermit>);

/// There is no more of it.
#[derive(Debug, thiserror::Error)]
#[error("{}", RefusalCode::NoRoom.sentence())]
pub struct NoRoom;

// === impl Room ===

impl Room {
    /// Room for so many bytes.
    pub fn new(bytes: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(bytes / UNIT)), within: Vec::new() }
    }

    /// A room of so many bytes, whatever is taken of which is taken of this one too.
    #[must_use]
    pub fn part(&self, bytes: usize) -> Self {
        let within = std::iter::once(&self.free).chain(&self.within).cloned().collect();
        Self { free: Arc::new(Semaphore::new(bytes / UNIT)), within }
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
        let more = bytes.div_ceil(UNIT).saturating_sub(self.0.first().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let more = u32::try_from(more).map_err(|_| NoRoom)?;
        // Of all or of none: what was taken before one that has no more is given back here.
        let taken: Result<Vec<_>, _> = std::iter::once(&room.free)
            .chain(&room.within)
            .map(|room| room.clone().try_acquire_many_owned(more))
            .collect();
        let taken = taken.map_err(|_| NoRoom)?;
        if self.0.is_empty() {
            self.0 = taken;
        } else {
            self.0.iter_mut().zip(taken).for_each(|(space, more)| space.merge(more));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_has_its_own_bound_and_that_of_the_whole_and_gives_both_back() {
        let whole = Room::new(8 * UNIT);
        let (one, other) = (whole.part(6 * UNIT), whole.part(6 * UNIT));
        let taken = one.take(5 * UNIT).unwrap();
        assert!(one.take(2 * UNIT).is_err(), "its own");
        assert!(other.take(4 * UNIT).is_err(), "the whole");
        // What was refused has taken nothing.
        let mut rest = other.take(2 * UNIT).unwrap();
        rest.grow(&other, 3 * UNIT).unwrap();
        assert!(rest.grow(&other, 4 * UNIT).is_err());
        drop((taken, rest));
        assert!(one.take(6 * UNIT).is_ok());
    }
}
