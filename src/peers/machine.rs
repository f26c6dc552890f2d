//! Whom to dial and when, and which connection stands for a peer: decided without I/O and without a clock.
//!
//! Feed it what happened (`handle_*`), then ask what to do ([`Machine::poll_dial`], [`Machine::poll_action`]) and when to
//! come back ([`Machine::poll_timeout`]). Two tables: **candidates** are addresses, with what beacons claim of them;
//! **peers** are keys that were proved. Beacons add candidates and can take nothing away from a peer.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::discovery::{Claim, Sighting, SightingKind};
use crate::id::{Id, Instance, NodeName};
use crate::wire::control::Hello;

use super::backoff::{self, Budget};

/// Addresses remembered. A lab has some hundred nodes with three addresses each; beyond that it is a flood.
const MAX_CANDIDATES: usize = 1024;
/// Handshakes under way at once.
const MAX_DIALS: usize = 32;
/// A beacon makes us dial one address at most this often (DESIGN.md §4).
const BEACON_INTERVAL: Duration = Duration::from_secs(10);
/// A node's second address is tried if its first has not answered by then (as RFC 8305 staggers its attempts).
const STAGGER: Duration = Duration::from_millis(250);
/// The other addresses of a peer that was lost are tried if its last one has not answered by then: when a switch fails,
/// all peers are lost at once, and each address that is dead costs one of ten dials a second.
const OTHER_ADDRESS: Duration = Duration::from_secs(1);
/// Two live connections to one key under two instance numbers: if the older still speaks after this, the key was cloned.
/// Longer than the three heartbeats after which a dead connection counts as silent.
const VERDICT: Duration = Duration::from_millis(3500);
/// A copy of ourselves that was not proved again for this long is gone.
const CLONE_MEMORY: Duration = Duration::from_secs(30);

/// One established connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// What the owner of the machine has to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// This connection now stands for the peer.
    Adopt(LinkId),
    /// End this connection, which stands for nobody (any more).
    Drop(LinkId, Dropped),
    /// A running copy of this very node was proved at this address, or the last one is gone.
    Cloned(Option<SocketAddr>),
    /// Two live nodes have proved this key.
    PeerCloned(Id),
}

/// Why a connection is not wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// There is one already, or a newer one. Answers that run over it may finish.
    Duplicate,
    /// The node it led to runs anew in the same place: nothing will come over it any more.
    Restarted,
    /// The other end has our own key.
    OwnKey,
}

/// A dial that succeeded up to the hellos.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The connection.
    pub link: LinkId,
    /// Whose key was proved.
    pub id: Id,
    /// What it said.
    pub hello: Hello,
}

/// A dial that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// Whose key was proved before it failed, if it came to that.
    pub id: Option<Id>,
    /// Whether the other side said no, so that asking again soon is pointless.
    pub refused: bool,
    /// Why, for people.
    pub reason: String,
}

#[derive(Debug)]
struct Candidate {
    claim: Option<Claim>,
    /// Set by a person, or proved by an inbound connection: kept although no beacon speaks for it.
    kept: bool,
    /// When to dial. `None`: there is no reason to.
    due: Option<Instant>,
    dialing_since: Option<Instant>,
    last_dial: Option<Instant>,
    failures: u32,
}

/// A key that was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name it gave last.
    pub name: NodeName,
    /// Its program's version, for people.
    pub version: String,
    /// Where it was last proved.
    pub address: SocketAddr,
    /// The connection that stands for it.
    pub link: Option<LinkId>,
    /// Whether that connection has fallen silent.
    pub silent: bool,
    /// Whether the last dial was refused.
    pub refused: bool,
    /// The last thing that went wrong.
    pub problem: Option<String>,
    /// Whether two live nodes have proved this key.
    pub cloned: bool,
    instance: Instance,
    rival: Option<Rival>,
}

/// A second live connection to the same key, in another run: a restart, unless the first one goes on speaking.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rival {
    link: LinkId,
    hello: Hello,
    address: SocketAddr,
    since: Instant,
}

/// The state machine.
#[derive(Debug)]
pub struct Machine {
    me: Id,
    instance: Instance,
    candidates: HashMap<SocketAddr, Candidate>,
    peers: BTreeMap<Id, Peer>,
    budget: Budget,
    actions: VecDeque<Action>,
    clone_proved: Option<Instant>,
}

impl Machine {
    /// A machine for the node with this key, in this run.
    pub fn new(me: Id, instance: Instance, now: Instant) -> Self {
        Self {
            me,
            instance,
            candidates: HashMap::new(),
            peers: BTreeMap::new(),
            budget: Budget::new(now),
            actions: VecDeque::new(),
            clone_proved: None,
        }
    }

    /// The keys that were proved.
    pub fn peers(&self) -> impl Iterator<Item = (&Id, &Peer)> {
        self.peers.iter()
    }

    /// Something was seen, or is said to be.
    pub fn handle_sighting(&mut self, now: Instant, sighting: Sighting) {
        let Sighting { kind, address, claim } = sighting;
        if claim.as_ref().is_some_and(|claim| claim.id == self.me && claim.instance == self.instance) {
            return;
        }
        match kind {
            SightingKind::Present => self.add_candidate(now, address, claim),
            // A beacon is unsigned: whoever leaves closes its connections, and that is what counts.
            SightingKind::Goodbye => {}
            SightingKind::Expired => {
                if let Some(candidate) = self.candidates.get_mut(&address) {
                    // No claim: a fixed peer's name has another address now.
                    candidate.kept &= claim.is_some();
                }
                if self.candidates.get(&address).is_some_and(|candidate| !candidate.kept && !self.stands(address)) {
                    self.candidates.remove(&address);
                }
            }
        }
    }

    /// A node that dialled us has proved its key and said hello: so it can be dialled at the address it came from.
    pub fn handle_inbound(&mut self, now: Instant, id: Id, hello: &Hello, address: SocketAddr) {
        if id == self.me {
            if hello.instance != self.instance {
                self.own_clone(now, address);
            }
            return;
        }
        let claim = Claim { id, instance: hello.instance, name: hello.name.clone() };
        let another_run = |candidate: &Candidate| {
            candidate.claim.as_ref().is_none_or(|known| (known.id, known.instance) != (id, hello.instance))
        };
        let is_news = self.candidates.get(&address).is_some_and(another_run);
        self.add_candidate(now, address, Some(claim));
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.kept = true;
            // This is no beacon that anyone can forge: whoever runs there now has proved its key and its address.
            if is_news && candidate.due.is_some() {
                candidate.due = Some(now);
            }
        }
    }

    /// A dial has led to a proved key and hellos.
    pub fn handle_opened(&mut self, now: Instant, address: SocketAddr, opened: Opened) {
        let Opened { link, id, hello } = opened;
        self.candidate_settled(address, &hello, id);
        if id == self.me {
            self.actions.push_back(Action::Drop(link, Dropped::OwnKey));
            if hello.instance != self.instance {
                self.own_clone(now, address);
                self.retry(now, address, BEACON_INTERVAL);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            self.peers.insert(id, Peer::new(&hello, address, Some(link)));
            self.actions.push_back(Action::Adopt(link));
            return;
        };
        match peer.link {
            Some(_) if !peer.silent && peer.instance == hello.instance => {
                self.actions.push_back(Action::Drop(link, Dropped::Duplicate));
            }
            // One address is one socket, so another run there means that the first is over.
            Some(_) if !peer.silent && peer.address != address => {
                if let Some(rival) = peer.rival.replace(Rival { link, hello, address, since: now }) {
                    self.actions.push_back(Action::Drop(rival.link, Dropped::Duplicate));
                }
            }
            older => {
                let restarted = peer.address == address && peer.instance != hello.instance;
                let why = if restarted { Dropped::Restarted } else { Dropped::Duplicate };
                self.actions.extend(older.map(|older| Action::Drop(older, why)));
                self.actions.push_back(Action::Adopt(peer.adopt(Rival { link, hello, address, since: now })));
            }
        }
    }

    /// A dial has failed.
    pub fn handle_failed(&mut self, now: Instant, address: SocketAddr, failed: Failed) {
        if let Some(peer) = failed.id.and_then(|id| self.peers.get_mut(&id)) {
            peer.refused = failed.refused;
            peer.problem = Some(failed.reason);
        } else if let Some((id, claim)) = failed.id.zip(self.candidates.get(&address).and_then(|c| c.claim.clone())) {
            // Proved, and not wanted: people should see it.
            let hello = Hello::of(claim.name, claim.instance);
            let refused =
                Peer { refused: failed.refused, problem: Some(failed.reason), ..Peer::new(&hello, address, None) };
            self.peers.insert(id, refused);
        }
        let Some(candidate) = self.candidates.get_mut(&address) else { return };
        candidate.dialing_since = None;
        candidate.failures = candidate.failures.saturating_add(1);
        let wait = if failed.refused { backoff::AFTER_REFUSAL } else { backoff::after(candidate.failures) };
        self.retry(now, address, wait);
    }

    /// A connection is over.
    pub fn handle_lost(&mut self, now: Instant, link: LinkId, refused: bool, reason: String) {
        let Some((&id, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.has(link)) else { return };
        if peer.rival.as_ref().is_some_and(|rival| rival.link == link) {
            peer.rival = None;
            return;
        }
        let address = peer.address;
        (peer.link, peer.silent, peer.refused, peer.problem) = (None, false, refused, Some(reason));
        if let Some(rival) = peer.rival.take() {
            // The older is over, so the newer was a restart.
            self.actions.push_back(Action::Adopt(peer.adopt(rival)));
            return;
        }
        if refused {
            self.retry(now, address, backoff::AFTER_REFUSAL);
        } else {
            self.look_for(now, id, address);
        }
    }

    /// A connection has fallen silent, or speaks again.
    pub fn handle_silence(&mut self, now: Instant, link: LinkId, silent: bool) {
        let Some((&id, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.link == Some(link)) else { return };
        peer.silent = silent;
        if !silent {
            return;
        }
        if let Some(rival) = peer.rival.take() {
            self.actions.push_back(Action::Drop(link, Dropped::Duplicate));
            self.actions.push_back(Action::Adopt(peer.adopt(rival)));
            return;
        }
        // It may have come back elsewhere, or with another socket: dial while we wait.
        let address = peer.address;
        self.look_for(now, id, address);
    }

    /// A person has pardoned a peer, or may have: no reason to wait any longer.
    pub fn handle_pardon(&mut self, now: Instant, id: Id) {
        let Some(peer) = self.peers.get_mut(&id) else { return };
        (peer.refused, peer.problem) = (false, None);
        let address = peer.address;
        self.retry(now, address, Duration::ZERO);
    }

    /// Time has passed. `last_heard` says when a connection last spoke.
    pub fn handle_timeout(&mut self, now: Instant, last_heard: impl Fn(LinkId) -> Option<Instant>) {
        for (id, peer) in &mut self.peers {
            let Some(rival) = peer.rival.take_if(|rival| now >= rival.since + VERDICT) else { continue };
            let older_speaks = peer.link.and_then(&last_heard).is_some_and(|heard| heard > rival.since);
            if older_speaks {
                peer.cloned = true;
                self.actions.push_back(Action::Drop(rival.link, Dropped::Duplicate));
                self.actions.push_back(Action::PeerCloned(*id));
            } else {
                self.actions.extend(peer.link.map(|older| Action::Drop(older, Dropped::Duplicate)));
                self.actions.push_back(Action::Adopt(peer.adopt(rival)));
            }
        }
        if self.clone_proved.is_some_and(|proved| now >= proved + CLONE_MEMORY) {
            self.clone_proved = None;
            self.actions.push_back(Action::Cloned(None));
        }
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next address to dial, if one is due and the budget allows it. It counts as being dialled until
    /// [`handle_opened`](Self::handle_opened) or [`handle_failed`](Self::handle_failed).
    pub fn poll_dial(&mut self, now: Instant) -> Option<SocketAddr> {
        if self.dialing() >= MAX_DIALS {
            return None;
        }
        loop {
            let due = |candidate: &Candidate| candidate.due.filter(|due| *due <= now);
            let (&address, _) = self.candidates.iter().filter(|(_, c)| due(c).is_some()).min_by_key(|(_, c)| due(c))?;
            let postponed = self.reason_to_wait(now, address);
            let budget_left = postponed.is_none() && self.budget.take(now);
            let candidate = self.candidates.get_mut(&address)?;
            match postponed {
                Some(Postponed::For(wait)) => candidate.due = Some(now + wait),
                Some(Postponed::Satisfied) => candidate.due = None,
                None if budget_left => {
                    candidate.due = None;
                    candidate.dialing_since = Some(now);
                    candidate.last_dial = Some(now);
                    return Some(address);
                }
                None => return None,
            }
        }
    }

    /// When to call again, if nothing happens before.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let dials = self.candidates.values().filter_map(|candidate| candidate.due);
        let dial = dials.min().map(|due| due.max(self.budget.next(now)));
        let verdict = self.peers.values().filter_map(|peer| Some(peer.rival.as_ref()?.since + VERDICT)).min();
        let clone = self.clone_proved.map(|proved| proved + CLONE_MEMORY);
        let dial = if self.dialing() >= MAX_DIALS { None } else { dial };
        [dial, verdict, clone].into_iter().flatten().min()
    }

    // === inside ===

    fn dialing(&self) -> usize {
        self.candidates.values().filter(|candidate| candidate.dialing_since.is_some()).count()
    }

    /// Whether a live connection to this address stands for a peer.
    fn stands(&self, address: SocketAddr) -> bool {
        self.peers.values().any(|peer| peer.link.is_some() && peer.address == address)
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
        let same_node = |other: &&Candidate| {
            other.claim.as_ref().is_some_and(|other| other.id == claim.id && other.instance == claim.instance)
        };
        let latest = self.candidates.values().filter(same_node).filter_map(|other| other.dialing_since).max()?;
        (now < latest + STAGGER).then(|| Postponed::For(latest + STAGGER - now))
    }

    fn add_candidate(&mut self, now: Instant, address: SocketAddr, claim: Option<Claim>) {
        if !self.candidates.contains_key(&address) {
            self.make_room();
            let candidate = Candidate {
                kept: claim.is_none(),
                claim,
                due: Some(now),
                dialing_since: None,
                last_dial: None,
                failures: 0,
            };
            self.candidates.insert(address, candidate);
            return;
        }
        let satisfied = matches!(self.reason_to_wait(now, address), Some(Postponed::Satisfied));
        let Some(candidate) = self.candidates.get_mut(&address) else { return };
        let claim_changed = claim.is_some() && claim != candidate.claim;
        let claims_another_run = claim_changed
            && claim.as_ref().map(|c| (c.id, c.instance)) != candidate.claim.as_ref().map(|c| (c.id, c.instance));
        if claim_changed {
            candidate.claim = claim;
        }
        candidate.kept |= candidate.claim.is_none();
        if candidate.dialing_since.is_some() || (satisfied && !claims_another_run) {
            return;
        }
        // It is (still) there: no reason to sit out a long back-off, but none either to let a beacon make us hammer.
        let earliest = candidate.last_dial.map_or(now, |last| (last + BEACON_INTERVAL).max(now));
        if claims_another_run {
            candidate.failures = 0;
        }
        candidate.due = Some(candidate.due.map_or(earliest, |due| due.min(earliest)));
    }

    /// Room for one more candidate: the one that has failed most goes, never one that stands or was set by hand.
    fn make_room(&mut self) {
        if self.candidates.len() < MAX_CANDIDATES {
            return;
        }
        let expendable = |(address, candidate): &(&SocketAddr, &Candidate)| {
            !candidate.kept && candidate.dialing_since.is_none() && !self.stands(**address)
        };
        let worst = self.candidates.iter().filter(expendable).max_by_key(|(_, c)| (c.failures, c.last_dial));
        // Among strangers that were never tried, any one is as good; none left means that all are real.
        if let Some(address) = worst.map(|(address, _)| *address).or_else(|| self.candidates.keys().next().copied()) {
            self.candidates.remove(&address);
        }
    }

    fn candidate_settled(&mut self, address: SocketAddr, hello: &Hello, id: Id) {
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.dialing_since = None;
            candidate.failures = 0;
            candidate.due = None;
            // Proof beats claim.
            candidate.claim = Some(Claim { id, instance: hello.instance, name: hello.name.clone() });
        }
    }

    fn retry(&mut self, now: Instant, address: SocketAddr, wait: Duration) {
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.due = Some(now + backoff::jitter(wait));
        }
    }

    /// Dials a peer that was lost: where it was, and then wherever else it was seen, since it may be the network and not
    /// the peer that is gone. As long as it was connected there was no reason to dial its other addresses.
    fn look_for(&mut self, now: Instant, id: Id, last: SocketAddr) {
        self.retry(now, last, backoff::after(0));
        let claimed = |candidate: &Candidate| candidate.claim.as_ref().is_some_and(|claim| claim.id == id);
        let others = self.candidates.iter().filter(|(address, candidate)| **address != last && claimed(candidate));
        let idle: Vec<_> =
            others.filter(|(_, candidate)| candidate.due.is_none()).map(|(address, _)| *address).collect();
        for address in idle {
            if self.candidates.get(&address).is_some_and(|candidate| candidate.dialing_since.is_none()) {
                self.retry(now, address, OTHER_ADDRESS);
            }
        }
    }

    fn own_clone(&mut self, now: Instant, address: SocketAddr) {
        if self.clone_proved.replace(now).is_none() {
            self.actions.push_back(Action::Cloned(Some(address)));
        }
    }
}

enum Postponed {
    For(Duration),
    Satisfied,
}

// === impl Peer ===

impl Peer {
    fn new(hello: &Hello, address: SocketAddr, link: Option<LinkId>) -> Self {
        Self {
            name: hello.name.clone(),
            version: hello.version.clone(),
            address,
            link,
            silent: false,
            refused: false,
            problem: None,
            cloned: false,
            instance: hello.instance,
            rival: None,
        }
    }

    /// The newer connection stands for the peer from here on.
    fn adopt(&mut self, newer: Rival) -> LinkId {
        let cloned = self.cloned && self.instance != newer.hello.instance;
        *self = Self { cloned, ..Self::new(&newer.hello, newer.address, Some(newer.link)) };
        newer.link
    }

    fn has(&self, link: LinkId) -> bool {
        self.link == Some(link) || self.rival.as_ref().is_some_and(|rival| rival.link == link)
    }
}

#[cfg(test)]
mod tests;
