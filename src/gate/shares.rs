//! What each caller may take of the gate, so that nobody can take all of it.
//!
//! A key costs nothing, so a bound on each would be none on somebody with many. So the keys that no person trusts have a
//! bound together too, well below the whole: whom the owner trusts finds room whatever strangers do.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Caller;
use crate::exchange::limits::{REQUESTS_EACH, REQUESTS_OF_STRANGERS};
use crate::id::Id;
use crate::route::{Each, Room};

/// What the bodies of peers may take of this node's memory while they are looked at, all together, beside the little that
/// each has anyhow (`route::find`): sixteen that write 16 MiB of images before their model, or as many that are
/// decompressed. Each of the streams that one peer may open could want that.
const ROOM: usize = 256 << 20;
/// Of that, what one peer may take: four such bodies at once. Those that name their model early need none.
const ROOM_A_PEER: usize = 64 << 20;
/// Of that, what all may take together whom no person trusts.
const ROOM_FOR_STRANGERS: usize = 128 << 20;

/// Who has a share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Who {
    Peer(Id),
    /// Everyone who comes by an open listener: nothing tells them apart but an address.
    Guests,
}

/// All shares.
#[derive(Debug)]
pub(super) struct Shares {
    room: Room,
    strangers_room: Room,
    strangers: Arc<Semaphore>,
    of: Each<Who, Share>,
}

/// One caller's, as long as any of its requests runs.
#[derive(Debug)]
struct Share {
    room: Room,
    requests: Arc<Semaphore>,
}

/// One request's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Option<Taken>);

#[derive(Debug)]
struct Taken {
    share: Arc<Share>,
    _own: OwnedSemaphorePermit,
    _of_strangers: Option<OwnedSemaphorePermit>,
}

/// So much runs for this caller already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Crowded {
    #[error("{REQUESTS_EACH} requests of yours run or wait at this server already; that is the most for one node")]
    Peer,
    #[error(
        "{REQUESTS_OF_STRANGERS} requests of nodes that nobody has trusted run or wait at this server already; \
         its owner can give yours room of its own with: ollana trust"
    )]
    Strangers,
}

// === impl Shares ===

impl Shares {
    pub(super) fn new() -> Self {
        let room = Room::new(ROOM);
        Self {
            strangers_room: room.part(ROOM_FOR_STRANGERS),
            room,
            strangers: Arc::new(Semaphore::new(REQUESTS_OF_STRANGERS)),
            of: Each::default(),
        }
    }

    /// A place for one more request of this caller. The owner has no bound.
    pub(super) fn enter(&self, caller: &Caller) -> Result<Place, Crowded> {
        let (who, trusted) = match caller {
            Caller::Owner => return Ok(Place(None)),
            Caller::Guest => (Who::Guests, false),
            Caller::Peer { id, trusted, .. } => (Who::Peer(*id), *trusted),
        };
        let share = self.share(who, trusted);
        let own = share.requests.clone().try_acquire_owned().map_err(|_| Crowded::Peer)?;
        let of_strangers = match trusted {
            true => None,
            false => Some(self.strangers.clone().try_acquire_owned().map_err(|_| Crowded::Strangers)?),
        };
        Ok(Place(Some(Taken { share, _own: own, _of_strangers: of_strangers })))
    }

    /// One that is trusted while it is here goes on as a stranger until nothing of it runs, which harms nobody.
    fn share(&self, who: Who, trusted: bool) -> Arc<Share> {
        let room = if trusted { &self.room } else { &self.strangers_room };
        let requests = || Arc::new(Semaphore::new(REQUESTS_EACH));
        self.of.of(who, || Share { room: room.part(ROOM_A_PEER), requests: requests() })
    }
}

// === impl Place ===

impl Place {
    /// Where its body is held while it is looked at; no bound for the owner.
    pub(super) fn room(&self) -> Option<&Room> {
        self.0.as_ref().map(|taken| &taken.share.room)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeName, Scope};

    fn peer(n: u16, trusted: bool) -> Caller {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        Caller::Peer { id: Id::from_bytes(id), name: NodeName::lossy("p"), scope: Scope::Infer, trusted }
    }

    #[test]
    fn one_peer_has_so_many_requests_and_gets_its_places_back() {
        let shares = Shares::new();
        let mut places: Vec<_> = (0..REQUESTS_EACH).map(|_| shares.enter(&peer(1, true)).unwrap()).collect();
        assert_eq!(shares.enter(&peer(1, true)).unwrap_err(), Crowded::Peer);
        assert!(shares.enter(&peer(2, true)).is_ok());
        assert!(shares.enter(&Caller::Owner).is_ok_and(|place| place.room().is_none()));
        places.pop();
        assert!(shares.enter(&peer(1, true)).is_ok());
    }

    #[test]
    fn strangers_together_leave_requests_and_room_to_those_who_are_trusted() {
        let shares = Shares::new();
        let mut places = Vec::new();
        let mut spaces = Vec::new();
        for n in 0..u16::MAX {
            let Ok(place) = shares.enter(&peer(n / 100, false)) else { break };
            spaces.extend(place.room().unwrap().take(16 << 20).ok());
            places.push(place);
        }
        assert_eq!((places.len(), spaces.len()), (REQUESTS_OF_STRANGERS, ROOM_FOR_STRANGERS >> 24));
        assert_eq!(shares.enter(&Caller::Guest).unwrap_err(), Crowded::Strangers);
        let trusted = shares.enter(&peer(60_000, true)).unwrap();
        let held: Vec<_> = (0..9).map_while(|_| trusted.room().unwrap().take(16 << 20).ok()).collect();
        assert_eq!(held.len(), ROOM_A_PEER >> 24, "its whole share");
    }
}
