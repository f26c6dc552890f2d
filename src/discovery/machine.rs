//! What discovery does and when, without I/O and without a clock: the caller tells it the time and what arrived, and
//! fetches what to send and what was learnt.
//!
//! On every link (an interface and an address family) a node sends
//! - a burst when it starts and whenever the link appears or its addresses change: four queries (which say all that
//!   announcements say) within [`BURST`]'s 600 ms;
//! - a heartbeat every 10 s ± 1 s;
//! - one announcement 20 to 120 ms after a query, by multicast: the random wait spreads the answers of many nodes, one
//!   answer serves everyone who asked meanwhile, and anything else sent meanwhile is the answer;
//! - two goodbyes at the end.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::Sighting;
use super::bucket::Bucket;
use super::interfaces::Link;
use super::known::Known;
use crate::id::{Id, Instance, NodeName};
use crate::wire::beacon::{Beacon, BeaconError, BeaconKind, MIN_QUERY_LEN};

/// When the queries of a burst go out, counted from its start. The first finds everyone in the usual case, the others
/// stand for its loss or that of its answers, and are further apart than the answer window so that each is answered by
/// itself: with one datagram in five lost, a node that is there is found within 720 ms in 98 of 100 cases
/// (1 - (1 - 0.8²)⁴), and by its heartbeat otherwise.
const BURST: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(130), Duration::from_millis(300), Duration::from_millis(600)];
/// Mean time between heartbeats. Connections notice a dead peer themselves within seconds, and new nodes ask; the
/// heartbeat is for what nobody noticed: a cable that joined two switches, a burst that was lost. 10 s heals that
/// before a person looks for the reason, and costs 250 nodes together 25 datagrams of 100 bytes a second on the link.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Heartbeats differ by up to this, or nodes that a power cut started together would send together for ever.
const JITTER: Duration = Duration::from_secs(1);
/// The window of the random wait before an answer, in milliseconds (mDNS, RFC 6762 §6, uses the same).
const ANSWER_MS: std::ops::RangeInclusive<u64> = 20..=120;
/// Answers on one link: those to the burst of one newcomer, then one a second. An answer goes to everyone, so an honest
/// asker who falls into a flood of forged queries, or among many newcomers, is served all the same.
const ANSWER_BURST: u32 = 4;
const ANSWER_RATE: f64 = 1.0;
/// First and longest wait after a datagram could not be sent. An IPv6 address is not to be used for the first one or
/// two seconds of its life (duplicate address detection), so the first tries are close to each other. A try costs one
/// system call, so the later ones need not be rare.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_LONGEST: Duration = Duration::from_secs(2);

/// Who we are, as our beacons say it.
#[derive(Debug, Clone)]
pub(super) struct Me {
    pub(super) id: Id,
    pub(super) instance: Instance,
    pub(super) name: NodeName,
    pub(super) quic_port: u16,
}

/// A datagram to send to the group on one link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Transmit {
    pub(super) link: Link,
    pub(super) payload: Vec<u8>,
}

/// What became of a datagram, for the trace log.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// Our own, looped back.
    Own,
    /// Somebody's.
    Beacon(Beacon),
}

#[derive(Debug)]
pub(super) struct Machine {
    me: Me,
    links: BTreeMap<Link, LinkState>,
    known: Known,
    transmits: VecDeque<Transmit>,
    rng: StdRng,
    stopped: bool,
}

#[derive(Debug)]
struct LinkState {
    /// When its current burst began, and how many of [`BURST`] are sent.
    burst_start: Instant,
    burst_sent: usize,
    /// When the next beacon goes out that nobody asked for.
    next: Instant,
    /// When an answer is due.
    answer: Option<Instant>,
    answers: Bucket,
    /// Sends that failed since the last one that did not.
    failures: u32,
}

// === impl Machine ===

impl Machine {
    /// `seed` is for the jitter alone and need not be secret.
    pub(super) fn new(me: Me, seed: u64) -> Self {
        Self {
            me,
            links: BTreeMap::new(),
            known: Known::new(),
            transmits: VecDeque::new(),
            rng: StdRng::seed_from_u64(seed),
            stopped: false,
        }
    }

    /// A link appeared, or its addresses changed.
    pub(super) fn handle_link_up(&mut self, now: Instant, link: Link) {
        if self.stopped {
            return;
        }
        self.known.renew(link);
        self.links.entry(link).and_modify(|state| state.start_burst(now)).or_insert_with(|| LinkState::new(now));
        self.handle_timeout(now);
    }

    /// A link is gone. Those heard over it are left to expire (they may be reachable by another way), and are news if
    /// they are heard again.
    pub(super) fn handle_link_down(&mut self, link: Link) {
        self.known.renew(link);
        self.links.remove(&link);
        self.transmits.retain(|transmit| transmit.link != link);
    }

    /// A datagram that arrived over `link`, already known to have been sent to the group by `source` on that link.
    ///
    /// # Errors
    /// [`BeaconError`] if it is not a beacon that we understand; it is dropped.
    pub(super) fn handle_datagram(
        &mut self,
        now: Instant,
        link: Link,
        source: IpAddr,
        payload: &[u8],
    ) -> Result<Heard, BeaconError> {
        let beacon = Beacon::parse(payload)?;
        if beacon.id == self.me.id && beacon.instance == self.me.instance {
            return Ok(Heard::Own);
        }
        self.known.hear(now, link, link.address(source, beacon.quic_port), &beacon);
        if beacon.kind == BeaconKind::Query && payload.len() >= MIN_QUERY_LEN {
            self.answer_soon(now, link);
        }
        Ok(Heard::Beacon(beacon))
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.known.expire(now);
        let mut due = Vec::new();
        for (link, state) in &mut self.links {
            if state.next <= now {
                let in_burst = state.burst_sent < BURST.len();
                due.push((*link, if in_burst { BeaconKind::Query } else { BeaconKind::Announce }));
                state.burst_sent = BURST.len().min(state.burst_sent + 1);
                state.next = match BURST.get(state.burst_sent) {
                    // Never in the past: a machine that slept does not catch up on what it missed.
                    Some(after) => (state.burst_start + *after).max(now + Duration::from_millis(1)),
                    None => now + jittered(&mut self.rng),
                };
                state.answer = None;
            } else if state.answer.is_some_and(|at| at <= now) {
                due.push((*link, BeaconKind::Announce));
                state.answer = None;
            }
        }
        for (link, kind) in due {
            self.send(link, kind);
        }
    }

    /// The last datagram for `link` could not be sent: the burst begins anew a little later. How often in a row that
    /// happened before.
    pub(super) fn handle_send_failed(&mut self, now: Instant, link: Link) -> u32 {
        let Some(state) = self.links.get_mut(&link) else { return 0 };
        let before = state.failures;
        let wait = RETRY_FIRST.saturating_mul(1 << before.min(10)).min(RETRY_LONGEST);
        state.failures = before.saturating_add(1);
        state.start_burst(now + wait);
        state.answer = None;
        before
    }

    /// A datagram for `link` went out.
    pub(super) fn handle_sent(&mut self, link: Link) {
        if let Some(state) = self.links.get_mut(&link) {
            state.failures = 0;
        }
    }

    /// The node stops: says goodbye on every link, and nothing after that. Twice, for a lost goodbye costs others the
    /// time until they notice by themselves.
    pub(super) fn handle_shutdown(&mut self) {
        self.stopped = true;
        self.transmits.clear();
        let links: Vec<Link> = std::mem::take(&mut self.links).into_keys().collect();
        for _ in 0..2 {
            links.iter().for_each(|link| self.send(*link, BeaconKind::Goodbye));
        }
    }

    /// The next datagram to send.
    pub(super) fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Whether [`Machine::poll_sighting`] has something.
    pub(super) fn has_sighting(&self) -> bool {
        self.known.has_sighting()
    }

    /// The next thing learnt.
    pub(super) fn poll_sighting(&mut self) -> Option<Sighting> {
        self.known.poll_sighting()
    }

    /// When [`Machine::handle_timeout`] wants to be called at the latest.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let links = self.links.values().flat_map(|state| [Some(state.next), state.answer]).flatten();
        links.chain(self.known.sweep_at()).min()
    }

    fn answer_soon(&mut self, now: Instant, link: Link) {
        if let Some(state) = self.links.get_mut(&link)
            && state.answer.is_none()
            && state.answers.take(now)
        {
            state.answer = Some(now + Duration::from_millis(self.rng.random_range(ANSWER_MS)));
        }
    }

    fn send(&mut self, link: Link, kind: BeaconKind) {
        let Me { id, instance, name, quic_port } = self.me.clone();
        let payload = Beacon { kind, quic_port, id, instance, name }.encode();
        self.transmits.push_back(Transmit { link, payload });
    }
}

// === impl LinkState ===

impl LinkState {
    fn new(now: Instant) -> Self {
        Self {
            burst_start: now,
            burst_sent: 0,
            next: now,
            answer: None,
            answers: Bucket::new(ANSWER_BURST, ANSWER_RATE),
            failures: 0,
        }
    }

    fn start_burst(&mut self, at: Instant) {
        (self.burst_start, self.burst_sent, self.next) = (at, 0, at);
    }
}

// === impl Link ===

impl Link {
    /// Where to dial a node that was heard from `source` over this link. A link-local address means nothing without
    /// its interface.
    fn address(self, source: IpAddr, port: u16) -> SocketAddr {
        match source {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => {
                std::net::SocketAddrV6::new(ip, port, 0, self.interface).into()
            }
            ip => SocketAddr::new(ip, port),
        }
    }
}

fn jittered(rng: &mut StdRng) -> Duration {
    HEARTBEAT - JITTER + Duration::from_secs_f64(rng.random_range(0.0..=2.0 * JITTER.as_secs_f64()))
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
