//! Handshakes under way. Before a handshake is over nobody has a name: there is nothing but the address that a packet says it
//! comes from, which may be forged until it is proved.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// Handshakes under way at once from addresses that may be forged. Each costs some 100 kB and a signature, and stays up to
/// `HANDSHAKE_TIMEOUT`; a LAN finishes one in milliseconds. Whoever comes when there are so many proves the address first
/// (QUIC Retry), which costs us no memory and an honest one a round trip.
const MAX_UNPROVED: usize = 16;
/// Handshakes under way at once from addresses that are proved.
const MAX_PROVED: usize = 128;
/// Of those, from one address.
const MAX_PROVED_AN_ADDRESS: usize = 16;
/// Beyond [`MAX_PROVED`], from addresses at which somebody whom a person trusts was last met.
const MAX_KNOWN: usize = 32;

/// Who is in the door.
#[derive(Debug, Default)]
pub(super) struct Door {
    unproved: usize,
    proved: usize,
    known: usize,
    of: HashMap<IpAddr, usize>,
}

/// What to do with one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admittance {
    /// Shake hands; to be [given back](Door::leave) when that is over.
    Enter(Way),
    /// It has to prove its address first.
    Prove,
    /// There are too many.
    Refuse,
}

/// How it was let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Unproved,
    Proved,
    Known,
}

// === impl Door ===

impl Door {
    pub(super) fn admit(&mut self, address: IpAddr, is_proved: bool, known: &HashSet<IpAddr>) -> Admittance {
        let address = address.to_canonical();
        if !is_proved {
            if self.unproved >= MAX_UNPROVED {
                return Admittance::Prove;
            }
            self.unproved += 1;
            return Admittance::Enter(Way::Unproved);
        }
        let here = self.of.get(&address).copied().unwrap_or_default();
        let way = if here < MAX_PROVED_AN_ADDRESS && self.proved < MAX_PROVED {
            self.proved += 1;
            Way::Proved
        } else if known.contains(&address) && self.known < MAX_KNOWN {
            self.known += 1;
            return Admittance::Enter(Way::Known);
        } else {
            return Admittance::Refuse;
        };
        *self.of.entry(address).or_default() += 1;
        Admittance::Enter(way)
    }

    /// One that was let in has gone on, or away.
    pub(super) fn leave(&mut self, address: IpAddr, way: Way) {
        match way {
            Way::Unproved => self.unproved = self.unproved.saturating_sub(1),
            Way::Known => self.known = self.known.saturating_sub(1),
            Way::Proved => {
                self.proved = self.proved.saturating_sub(1);
                let address = address.to_canonical();
                if let Some(here) = self.of.get_mut(&address) {
                    *here = here.saturating_sub(1);
                    if *here == 0 {
                        self.of.remove(&address);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::from((0x0a00_0000 + u32::try_from(n).unwrap()).to_be_bytes())
    }

    #[test]
    fn forged_addresses_hold_few_places_and_then_everyone_proves_theirs() {
        let (mut door, nobody) = (Door::default(), HashSet::new());
        for n in 0..100_000 {
            let expected = if n < MAX_UNPROVED { Admittance::Enter(Way::Unproved) } else { Admittance::Prove };
            assert_eq!(door.admit(address(n), false, &nobody), expected);
        }
        assert_eq!(door.admit(address(7), true, &nobody), Admittance::Enter(Way::Proved));
        door.leave(address(3), Way::Unproved);
        assert_eq!(door.admit(address(200_000), false, &nobody), Admittance::Enter(Way::Unproved));
    }

    #[test]
    fn one_address_does_not_fill_the_door_and_many_leave_room_for_who_is_known() {
        let mut door = Door::default();
        let known = HashSet::from([address(1_000_000), address(1)]);
        let from_one = (0..1000).filter(|_| door.admit(address(2), true, &known) != Admittance::Refuse).count();
        assert_eq!(from_one, MAX_PROVED_AN_ADDRESS);
        let from_many = (10..1000).filter(|n| door.admit(address(*n), true, &known) != Admittance::Refuse).count();
        assert_eq!(from_many, MAX_PROVED - MAX_PROVED_AN_ADDRESS);
        let of_known =
            (0..1000).filter(|_| door.admit(address(1), true, &known) == Admittance::Enter(Way::Known)).count();
        assert_eq!(of_known, MAX_KNOWN);
        for _ in 0..MAX_PROVED_AN_ADDRESS {
            door.leave(address(2), Way::Proved);
        }
        assert_eq!(door.of.len(), MAX_PROVED - MAX_PROVED_AN_ADDRESS);
        assert_eq!(door.admit(address(3), true, &known), Admittance::Enter(Way::Proved));
    }
}
