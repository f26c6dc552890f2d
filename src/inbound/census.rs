//! Who has the connections, and who goes when there are too many.
//!
//! A key costs nothing, so there is no use in a bound on each alone: whoever wants all places brings a thousand keys. What
//! costs something on a network are addresses (a handshake proves that its packets come from where they say), and trust. So
//! strangers, all whom no person trusts, share their places by address: when there are no more, who comes from an address
//! with few gets the place of one from an address with many that asks for nothing at the moment. And whom a person trusts
//! does not stand in that queue at all. (On IPv6 a machine has as many addresses as it likes; there the bound is only on all
//! strangers together, of whom those who came last and never asked for anything go first.)

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::id::Id;

/// Connections of strangers together.
pub(super) const MAX_STRANGERS: usize = 1024;
/// Connections in all: the rest is for those whom a person trusts.
pub(super) const MAX_CONNECTIONS: usize = MAX_STRANGERS + 256;
/// Connections of one key: one, and a few more while old ones die.
pub(super) const MAX_CONNECTIONS_A_KEY: usize = 4;
/// Connections of strangers from one address: some nodes in containers, or a few machines behind one router.
pub(super) const MAX_STRANGERS_AN_ADDRESS: usize = 32;

/// All connections. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Census(Arc<Mutex<Seats>>);

#[derive(Debug, Default)]
struct Seats {
    taken: HashMap<u64, Seat>,
    next: u64,
}

#[derive(Debug)]
struct Seat {
    id: Id,
    address: IpAddr,
    trusted: bool,
    doing: Arc<Doing>,
    leave: CancellationToken,
}

#[derive(Debug, Default)]
struct Doing {
    running: AtomicUsize,
    has_asked: AtomicBool,
}

/// One connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    census: Census,
    number: u64,
    doing: Arc<Doing>,
    leave: CancellationToken,
}

/// One request of a connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Asking(Arc<Doing>);

// === impl Census ===

impl Census {
    /// A place for one more connection of this key, from this address.
    pub(super) fn enter(&self, id: Id, address: IpAddr, trusted: bool) -> Option<Place> {
        let address = address.to_canonical();
        let mut seats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seats.count(|seat| seat.id == id) >= MAX_CONNECTIONS_A_KEY {
            return None;
        }
        if trusted {
            if seats.taken.len() >= MAX_CONNECTIONS {
                seats.make_room(0)?;
            }
        } else {
            let here = seats.count(|seat| !seat.trusted && seat.address == address);
            if here >= MAX_STRANGERS_AN_ADDRESS {
                return None;
            }
            if seats.count(|seat| !seat.trusted) >= MAX_STRANGERS || seats.taken.len() >= MAX_CONNECTIONS {
                seats.make_room(here)?;
            }
        }
        let number = seats.next;
        seats.next += 1;
        let (doing, leave) = (Arc::<Doing>::default(), CancellationToken::new());
        seats.taken.insert(number, Seat { id, address, trusted, doing: doing.clone(), leave: leave.clone() });
        drop(seats);
        Some(Place { census: self.clone(), number, doing, leave })
    }
}

// === impl Seats ===

impl Seats {
    fn count(&self, of: impl Fn(&Seat) -> bool) -> usize {
        self.taken.values().filter(|seat| of(seat)).count()
    }

    /// Sends a stranger away from an address with more connections than `few`, if there is one that runs nothing: from the
    /// address with the most, rather one that never asked for anything, rather the last who came.
    fn make_room(&mut self, few: usize) -> Option<()> {
        let mut addresses = HashMap::<IpAddr, usize>::new();
        for seat in self.taken.values().filter(|seat| !seat.trusted) {
            *addresses.entry(seat.address).or_default() += 1;
        }
        let many = |seat: &Seat| addresses.get(&seat.address).copied().unwrap_or_default();
        let (number, _) = self
            .taken
            .iter()
            .filter(|(_, seat)| !seat.trusted && many(seat) > few && seat.doing.running.load(Ordering::Relaxed) == 0)
            .max_by_key(|(number, seat)| {
                (many(seat), Reverse(seat.doing.has_asked.load(Ordering::Relaxed)), **number)
            })?;
        let number = *number;
        let seat = self.taken.remove(&number)?;
        seat.leave.cancel();
        Some(())
    }
}

// === impl Place ===

impl Place {
    /// Resolves when somebody else has this place.
    pub(super) async fn is_lost(&self) {
        self.leave.cancelled().await;
    }

    /// One request begins.
    pub(super) fn asks(&self) -> Asking {
        self.doing.running.fetch_add(1, Ordering::Relaxed);
        self.doing.has_asked.store(true, Ordering::Relaxed);
        Asking(self.doing.clone())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.census.0.lock().unwrap_or_else(PoisonError::into_inner).taken.remove(&self.number);
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: usize) -> Id {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_be_bytes());
        Id::from_bytes(id)
    }

    fn address(n: usize) -> IpAddr {
        IpAddr::from((0x0a00_0000 + u32::try_from(n).unwrap()).to_be_bytes())
    }

    fn taken(census: &Census) -> usize {
        census.0.lock().unwrap().taken.len()
    }

    #[test]
    fn one_key_has_few_connections_and_gets_its_places_back() {
        let census = Census::default();
        let enter = |key, trusted| census.enter(id(key), address(key), trusted);
        let mut places: Vec<_> = (0..MAX_CONNECTIONS_A_KEY).map(|_| enter(1, true).unwrap()).collect();
        assert!(enter(1, true).is_none());
        assert!(enter(2, true).is_some());
        places.pop();
        assert!(enter(1, true).is_some());
        places.clear();
        assert_eq!(taken(&census), 0);
    }

    #[test]
    fn one_address_has_few_strangers_however_it_is_written_and_any_number_of_trusted() {
        let census = Census::default();
        let strangers: Vec<_> = (0..1000).map_while(|key| census.enter(id(key), address(1), false)).collect();
        assert_eq!(strangers.len(), MAX_STRANGERS_AN_ADDRESS);
        let IpAddr::V4(v4) = address(1) else { panic!() };
        assert!(census.enter(id(2000), v4.to_ipv6_mapped().into(), false).is_none());
        let trusted: Vec<_> = (3000..3100).map_while(|key| census.enter(id(key), address(1), true)).collect();
        assert_eq!(trusted.len(), 100);
        assert!(census.enter(id(4000), address(2), false).is_some());
    }

    #[test]
    fn strangers_leave_places_to_those_who_are_trusted() {
        let census = Census::default();
        let strangers: Vec<_> =
            (0..MAX_STRANGERS).map(|key| census.enter(id(key), address(key), false).unwrap()).collect();
        let asking: Vec<_> = strangers.iter().map(Place::asks).collect();
        assert!(census.enter(id(5000), address(5000), false).is_none(), "nobody is idle");
        let trusted: Vec<_> = (6000..8000).map_while(|key| census.enter(id(key), address(1), true)).collect();
        assert_eq!(trusted.len(), MAX_CONNECTIONS - MAX_STRANGERS);
        // And further ones, once a stranger is idle.
        drop(asking);
        assert!(census.enter(id(9000), address(1), true).is_some());
        assert_eq!(taken(&census), MAX_CONNECTIONS - 1);
    }

    #[test]
    fn who_comes_from_an_address_with_few_takes_the_place_of_an_idle_one_of_many() {
        let census = Census::default();
        let mut crowd = Vec::new();
        for n in 0..MAX_STRANGERS {
            crowd.push(census.enter(id(n), address(n / MAX_STRANGERS_AN_ADDRESS), false).unwrap());
        }
        let last = crowd.len() - 1;
        // All of the last address but one work, and that one has worked.
        let working: Vec<_> = crowd[last - 31..last].iter().map(Place::asks).collect();
        drop(crowd[last].asks());
        let newcomer = census.enter(id(5000), address(5000), false).unwrap();
        let lost: Vec<_> = crowd.iter().filter(|place| place.leave.is_cancelled()).collect();
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].number, last as u64 - 32, "the last who came of those who never asked");
        // It is worth as much as one of them when it is of such a crowd itself.
        assert!(census.enter(id(5001), address(1), false).is_none());
        assert!(!newcomer.leave.is_cancelled());
        drop((working, crowd, newcomer));
        assert_eq!(taken(&census), 0, "who has lost a place frees no other's");
    }
}
