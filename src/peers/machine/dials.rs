//! Which addresses there are, and which to dial next: what beacons say of one neither hurries nor delays one that is known.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::super::backoff;
use super::{Machine, Peer};
use crate::discovery::Claim;
use crate::id::Id;

/// Addresses remembered. A lab has some hundred nodes with three addresses each; beyond that it is a flood.
pub(super) const MAX_CANDIDATES: usize = 1024;
/// A beacon makes us dial one address at most this often: its sender is not known, and may name anybody's.
const BEACON_INTERVAL: Duration = Duration::from_secs(10);
/// A node's second address is tried if its first has not answered by then (as RFC 8305 staggers its attempts).
pub(super) const STAGGER: Duration = Duration::from_millis(250);
/// The other addresses of a peer that was lost are tried if its last one has not answered by then: when a switch fails,
/// all peers are lost at once, and each address that is dead costs one of ten dials a second.
const OTHER_ADDRESS: Duration = Duration::from_secs(1);
/// Handshakes under way at once with addresses that nobody knows.
const MAX_DIALS: usize = 32;

/// An address to dial.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    pub(super) claim: Option<Claim>,
    /// Named by a person: kept although no beacon speaks for it.
    pub(super) fixed: bool,
    /// Whether a dial has led to a peer there. What beacons say neither hurries nor delays it then.
    pub(super) proved: bool,
    /// When to dial. `None`: there is no reason to.
    pub(super) due: Option<Instant>,
    pub(super) dialing_since: Option<Instant>,
    pub(super) last_dial: Option<Instant>,
    /// Dials that failed, one after the other.
    pub(super) failures: u32,
    /// Connections that ended soon, one after the other.
    pub(super) short: u32,
    /// When it became a candidate.
    pub(super) known_since: Option<Instant>,
    /// When a beacon, or a person, last spoke for it.
    pub(super) heard: Option<Instant>,
    /// The key that was proved by whoever last called from there.
    pub(super) called: Option<Id>,
    /// Why nobody answers there.
    pub(super) in_the_way: Option<InTheWay>,
}

/// Why nobody answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InTheWay {
    /// When the first dial in vain ended.
    pub(super) since: Instant,
    pub(super) reason: String,
    pub(super) advice: Option<String>,
}

/// Why an address is not dialled now.
enum Postponed {
    For(Duration),
    Satisfied,
}

// === impl Candidate ===

impl Candidate {
    /// Whether it is more than what strangers say.
    pub(super) fn is_known(&self) -> bool {
        self.fixed || self.proved
    }
}

impl Machine {
    /// The next address to dial, if one is due and the budget allows it: those that are known first, since whatever
    /// strangers send must not keep us from a peer. It counts as being dialled until
    /// [`handle_opened`](Self::handle_opened) or [`handle_failed`](Self::handle_failed).
    pub fn poll_dial(&mut self, now: Instant) -> Option<SocketAddr> {
        let rank =
            |candidate: &Candidate| candidate.due.filter(|due| *due <= now).map(|due| (!candidate.is_known(), due));
        loop {
            let (&address, _) =
                self.candidates.iter().filter(|(_, c)| rank(c).is_some()).min_by_key(|(_, c)| rank(c))?;
            let postponed = self.reason_to_wait(now, address);
            let strangers = self.dialing_strangers();
            let candidate = self.candidates.get_mut(&address)?;
            match postponed {
                Some(Postponed::For(wait)) => candidate.due = Some(now + wait),
                Some(Postponed::Satisfied) => candidate.due = None,
                None if candidate.is_known() || (strangers < MAX_DIALS && self.budget.take(now)) => {
                    candidate.due = None;
                    candidate.dialing_since = Some(now);
                    candidate.last_dial = Some(now);
                    return Some(address);
                }
                None => return None,
            }
        }
    }

    /// Whether this peer is being dialled.
    pub fn is_dialled(&self, id: &Id) -> bool {
        let dialled = |candidate: &&Candidate| candidate.dialing_since.is_some();
        let its = |candidate: &Candidate| candidate.claim.as_ref().is_some_and(|claim| claim.id == *id);
        self.candidates.values().filter(dialled).any(its)
    }

    /// When an address is due, as far as the budget allows.
    pub(super) fn next_dial(&self, now: Instant) -> Option<Instant> {
        let due =
            |known: bool| self.candidates.values().filter(move |c| c.is_known() == known).filter_map(|c| c.due).min();
        let strangers = if self.dialing_strangers() < MAX_DIALS { due(false) } else { None };
        let strangers = strangers.map(|due| due.max(self.budget.next(now)));
        due(true).into_iter().chain(strangers).min()
    }

    fn dialing_strangers(&self) -> usize {
        self.candidates.values().filter(|c| c.dialing_since.is_some() && !c.is_known()).count()
    }

    /// Whether nothing but what strangers say speaks for this address.
    pub(super) fn may_forget(&self, address: SocketAddr) -> bool {
        let stands = self.peers.values().any(|peer| peer.link.is_some() && peer.address == address);
        let free = |candidate: &Candidate| !candidate.fixed && candidate.dialing_since.is_none();
        !stands && self.candidates.get(&address).is_none_or(free)
    }

    fn reason_to_wait(&self, now: Instant, address: SocketAddr) -> Option<Postponed> {
        let claim = self.candidates.get(&address).and_then(|candidate| candidate.claim.as_ref());
        let connected = |peer: &Peer| peer.link.is_some() && !peer.silent;
        if self
            .peers
            .values()
            .any(|peer| connected(peer) && peer.address == address && claim.is_none_or(|c| c.instance == peer.instance))
        {
            return Some(Postponed::Satisfied);
        }
        let claim = claim?;
        let by_another_address = self.peers.get(&claim.id);
        if by_another_address.is_some_and(|peer| connected(peer) && peer.instance == claim.instance) {
            return Some(Postponed::Satisfied);
        }
        let known = self.candidates.get(&address).is_some_and(Candidate::is_known);
        let same_node = |other: &&Candidate| {
            let same = |other: &Claim| other.id == claim.id && other.instance == claim.instance;
            // Who claims to be a peer elsewhere must not delay it where it is.
            (other.is_known() || !known) && other.claim.as_ref().is_some_and(same)
        };
        let latest = self.candidates.values().filter(same_node).filter_map(|other| other.dialing_since).max()?;
        (now < latest + STAGGER).then(|| Postponed::For(latest + STAGGER - now))
    }

    pub(super) fn add_candidate(&mut self, now: Instant, address: SocketAddr, claim: Option<Claim>) {
        let fixed = claim.is_none();
        if !self.candidates.contains_key(&address) {
            if self.make_room() || fixed {
                let candidate =
                    Candidate { claim, fixed, due: Some(now), known_since: Some(now), ..Candidate::default() };
                self.candidates.insert(address, candidate);
            }
            return;
        }
        let satisfied = matches!(self.reason_to_wait(now, address), Some(Postponed::Satisfied));
        let Some(candidate) = self.candidates.get_mut(&address) else { return };
        candidate.fixed |= fixed;
        let run = |claim: &Claim| (claim.id, claim.instance);
        let claims_another_run = claim.is_some() && claim.as_ref().map(run) != candidate.claim.as_ref().map(run);
        candidate.claim = claim.or(candidate.claim.take());
        if candidate.dialing_since.is_some() || (satisfied && !claims_another_run) {
            return;
        }
        // It is (still) there: no reason to sit out a long back-off, but none either to let a beacon make us hammer.
        let earliest = candidate.last_dial.map_or(now, |last| (last + BEACON_INTERVAL).max(now));
        candidate.due = Some(candidate.due.map_or(earliest, |due| due.min(earliest)));
    }

    /// Whether there is room for one more candidate, perhaps by forgetting the one that has failed most.
    fn make_room(&mut self) -> bool {
        if self.candidates.len() < MAX_CANDIDATES {
            return true;
        }
        let worst = self.candidates.iter().filter(|(address, _)| self.may_forget(**address));
        let worst = worst.max_by_key(|(_, c)| (!c.proved, c.failures, c.last_dial)).map(|(address, _)| *address);
        worst.is_some_and(|address| self.candidates.remove(&address).is_some())
    }

    pub(super) fn retry(&mut self, now: Instant, address: SocketAddr, wait: Duration) {
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.due = Some(now + backoff::jitter(wait));
        }
    }

    /// Dials a peer that was lost: after `wait` where it was, and then wherever else it was seen, since it may be the
    /// network and not the peer that is gone. As long as it was connected there was no reason to dial its other addresses.
    pub(super) fn look_for(&mut self, now: Instant, id: Id, last: SocketAddr, wait: Duration) {
        self.retry(now, last, wait);
        let its = |candidate: &Candidate| candidate.claim.as_ref().is_some_and(|claim| claim.id == id);
        let idle = |candidate: &Candidate| candidate.due.is_none() && candidate.dialing_since.is_none();
        let others = self.candidates.iter().filter(|(address, c)| **address != last && its(c) && idle(c));
        let others: Vec<SocketAddr> = others.map(|(address, _)| *address).collect();
        for address in others {
            self.retry(now, address, wait.max(OTHER_ADDRESS));
        }
    }
}
