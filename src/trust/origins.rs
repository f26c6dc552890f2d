//! Where the keys come from that first use pins.
//!
//! Keys cost nothing, and how many are pinned is bounded for all together (`PIN_BURST`): one machine with many keys could use
//! that up, and who comes next would wait. So each address has a bound of its own. (On IPv6 a machine has as many addresses
//! as it likes; there the bound on all is the only one.)

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::writer::Bucket;

/// Keys of one address that may be pinned at once: a machine that was set up anew, its containers, its neighbours behind one
/// router. An eighth of what all may (`PIN_BURST`).
pub(super) const PINS_AN_ADDRESS: u32 = 32;
/// And then one every so often.
const PIN_EVERY_AN_ADDRESS: Duration = Duration::from_secs(10 * 60);

/// The addresses that have used some of theirs. There are no more than pins were made in the time that one takes to come
/// back, and so some hundreds at most.
#[derive(Default)]
pub(super) struct Origins(HashMap<IpAddr, Bucket>);

// === impl Origins ===

impl Origins {
    /// Whether one more key that was met there may be pinned. Without an address there is nothing to bound it by.
    pub(super) fn may_pin(&mut self, address: Option<&str>, now: Instant) -> bool {
        let bucket = address.and_then(ip).and_then(|ip| self.0.get_mut(&ip));
        bucket.is_none_or(|bucket| bucket.holds(now))
    }

    /// One was.
    pub(super) fn pinned(&mut self, address: Option<&str>, now: Instant) {
        let Some(ip) = address.and_then(ip) else { return };
        if self.0.len() == self.0.capacity() {
            self.0.retain(|_, bucket| !bucket.is_full(now));
        }
        self.0.entry(ip).or_insert_with(|| Bucket::new(PINS_AN_ADDRESS, PIN_EVERY_AN_ADDRESS)).take(now);
    }
}

/// Of `10.0.0.1:11435` or `[fe80::1%2]:11435`.
fn ip(address: &str) -> Option<IpAddr> {
    address.parse().map(|address: SocketAddr| address.ip().to_canonical()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_has_so_many_pins_at_once_and_then_few() {
        let (mut origins, now) = (Origins::default(), Instant::now());
        let pins = |origins: &mut Origins, address: &str, now| {
            let may = |origins: &mut Origins| origins.may_pin(Some(address), now);
            (0..1000).take_while(|_| may(origins).then(|| origins.pinned(Some(address), now)).is_some()).count()
        };
        assert_eq!(pins(&mut origins, "10.0.0.1:1", now), PINS_AN_ADDRESS as usize);
        assert_eq!(pins(&mut origins, "10.0.0.1:2", now), 0, "another port is the same address");
        assert_eq!(pins(&mut origins, "[::ffff:10.0.0.1]:3", now), 0);
        assert_eq!(pins(&mut origins, "10.0.0.2:1", now), PINS_AN_ADDRESS as usize);
        assert_eq!(pins(&mut origins, "[fe80::1%2]:1", now), PINS_AN_ADDRESS as usize);
        assert_eq!(pins(&mut origins, "10.0.0.1:1", now + 3 * PIN_EVERY_AN_ADDRESS), 3);
        assert!(origins.may_pin(None, now) && origins.may_pin(Some("gpu1:11435"), now));
    }

    #[test]
    fn addresses_are_forgotten() {
        let (mut origins, start) = (Origins::default(), Instant::now());
        for n in 0..100_000u32 {
            let [_, a, b, c] = n.to_be_bytes();
            origins.pinned(Some(&format!("10.{a}.{b}.{c}:1")), start + n * Duration::from_secs(10));
        }
        assert!(origins.0.len() < 1000, "{}", origins.0.len());
    }
}
