//! What other machines may take of a listener that is open to them (`--listen-open`).
//!
//! Nothing but the address tells one from another there. So each address has a bound, and all together have one that leaves
//! room for the applications on this machine, which have none, as with Ollama.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::exchange::limits;
use crate::route::{Each, Room};

/// Connections of one address: over HTTP/1.1 each request has one.
const CONNECTIONS_AN_ADDRESS: usize = limits::WAITING_EACH;
/// Requests at once of one address, over all its connections: HTTP/2 brings 256 on each.
const REQUESTS_AN_ADDRESS: usize = limits::WAITING_EACH;
/// What bodies of other machines may take of this node's memory while their model is looked for, all together, beside the
/// little that each has anyhow (`route::find`).
const ROOM: usize = 128 << 20;
/// Of that, those of one address.
const ROOM_AN_ADDRESS: usize = 64 << 20;

/// All of them.
#[derive(Debug)]
pub(super) struct Guests {
    room: Room,
    connections: Arc<Semaphore>,
    of: Each<IpAddr, Guest>,
}

/// One address, as long as it has a connection.
#[derive(Debug)]
struct Guest {
    room: Room,
    connections: Arc<Semaphore>,
    requests: Arc<Semaphore>,
}

/// One connection's, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    guest: Arc<Guest>,
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// One request's, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Room,
    _request: OwnedSemaphorePermit,
}

/// There is no more of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Crowded {
    #[error("other machines have as many connections as they may have")]
    Connections,
    #[error("this address has {CONNECTIONS_AN_ADDRESS} connections already, which is the most")]
    Address,
    #[error("{REQUESTS_AN_ADDRESS} requests from this address run or wait here already, which is the most")]
    Requests,
}

// === impl Guests ===

impl Guests {
    /// With so many connections for all other machines together.
    pub(super) fn new(connections: usize) -> Self {
        Self { room: Room::new(ROOM), connections: Arc::new(Semaphore::new(connections)), of: Each::default() }
    }

    /// A seat for one more connection; none is needed on this machine.
    pub(super) fn seat(&self, address: IpAddr) -> Result<Option<Seat>, Crowded> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Ok(None);
        }
        let of_all = self.connections.clone().try_acquire_owned().map_err(|_| Crowded::Connections)?;
        let guest = self.guest(address);
        let own = guest.connections.clone().try_acquire_owned().map_err(|_| Crowded::Address)?;
        Ok(Some(Seat { guest, _own: own, _of_all: of_all }))
    }

    fn guest(&self, address: IpAddr) -> Arc<Guest> {
        self.of.of(address, || Guest {
            room: self.room.part(ROOM_AN_ADDRESS),
            connections: Arc::new(Semaphore::new(CONNECTIONS_AN_ADDRESS)),
            requests: Arc::new(Semaphore::new(REQUESTS_AN_ADDRESS)),
        })
    }
}

// === impl Seat ===

impl Seat {
    /// A place for one more request.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Place, Crowded> {
        let request = self.guest.requests.clone().try_acquire_owned().map_err(|_| Crowded::Requests)?;
        Ok(Place { room: self.guest.room.clone(), _request: request })
    }
}

// === impl Place ===

impl Place {
    /// Where its body is held while its model is looked for.
    pub(super) fn room(&self) -> Room {
        self.room.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[test]
    fn one_address_has_so_much_and_gets_it_back() {
        let guests = Guests::new(2048);
        let mut seats: Vec<_> =
            (0..CONNECTIONS_AN_ADDRESS).map(|_| Arc::new(guests.seat(address(1)).unwrap().unwrap())).collect();
        assert_eq!(guests.seat(address(1)).unwrap_err(), Crowded::Address);
        // However it is written.
        let IpAddr::V4(v4) = address(1) else { panic!() };
        assert_eq!(guests.seat(v4.to_ipv6_mapped().into()).unwrap_err(), Crowded::Address);
        let mut places: Vec<_> = (0..REQUESTS_AN_ADDRESS).map(|n| seats[n % seats.len()].enter().unwrap()).collect();
        assert_eq!(seats[0].enter().unwrap_err(), Crowded::Requests);
        let held: Vec<_> = (0..9).map_while(|_| places[0].room().take(16 << 20).ok()).collect();
        assert_eq!(held.len(), ROOM_AN_ADDRESS >> 24);
        let other = Arc::new(guests.seat(address(2)).unwrap().unwrap()).enter().unwrap();
        assert!(other.room().take(16 << 20).is_ok());
        places.pop();
        assert!(seats[1].enter().is_ok());
        seats.pop();
        assert!(guests.seat(address(1)).is_ok());
    }

    #[test]
    fn all_of_them_leave_connections_to_this_machine_which_has_no_bound() {
        let guests = Guests::new(2048);
        let seats: Vec<_> = (0..10_000).map_while(|n| guests.seat(address(n)).ok()).collect();
        assert_eq!(seats.len(), 2048);
        assert!(guests.seat(IpAddr::from([127, 0, 0, 1])).unwrap().is_none());
        drop(seats);
        assert!(guests.seat(address(1)).is_ok());
    }
}
