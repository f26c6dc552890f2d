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
/// Keys remembered. Whoever can answer a dial can prove as many of them as he likes.
const MAX_PEERS: usize = 512;
/// Handshakes under way at once with addresses that nobody knows.
const MAX_DIALS: usize = 32;
/// Whatever beacons and callers say, so many addresses that nobody knows are dialled a second (DESIGN.md §4).
const DIALS_A_SECOND: usize = 10;
/// A beacon makes us dial one address at most this often (DESIGN.md §4).
const BEACON_INTERVAL: Duration = Duration::from_secs(10);
/// The same for what follows from the first dial by itself, less than which jitter cannot make of it.
const STRANGERS_AGAIN: Duration = Duration::from_millis(12_500);
/// After an hour of failures an address is forgotten, unless a person named it: a beacon or a call brings it back.
const MAX_FAILURES: u32 = 120;
/// A connection that lasted as long was a good one: what follows on it is a failure of its own. Below that, a peer that
/// takes connections and ends them is dialled ever less often.
const GOOD: Duration = Duration::from_secs(10);
/// A node's second address is tried if its first has not answered by then (as RFC 8305 staggers its attempts).
const STAGGER: Duration = Duration::from_millis(250);
/// The other addresses of a peer that was lost are tried if its last one has not answered by then: when a switch fails,
/// all peers are lost at once, and each address that is dead costs one of ten dials a second.
const OTHER_ADDRESS: Duration = Duration::from_secs(1);
/// Two live connections to one key under two instance numbers: if the older still speaks after this, the key was cloned.
/// Longer than the three heartbeats after which a dead connection counts as silent.
const VERDICT: Duration = Duration::from_millis(3500);
/// A copy, of ourselves or of a peer, that was not proved again for this long is gone.
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
    /// Another one stands for the peer. What runs over this one may come to its end.
    Duplicate,
    /// Its node was started anew, so nothing can come over it any more.
    Restarted,
    /// The other end has our own key.
    OwnKey,
    /// There are too many peers already.
    Crowded,
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
    /// What that one is called, if it is known.
    pub name: Option<NodeName>,
    /// Whether the other side said no, so that asking again soon is pointless.
    pub refused: bool,
    /// Why, for people.
    pub reason: String,
}

/// An address to dial.
#[derive(Debug, Default)]
struct Candidate {
    claim: Option<Claim>,
    /// Named by a person: kept although no beacon speaks for it.
    fixed: bool,
    /// Whether a dial has led to a peer there. What beacons say neither hurries nor delays it then.
    proved: bool,
    /// When to dial. `None`: there is no reason to.
    due: Option<Instant>,
    dialing_since: Option<Instant>,
    last_dial: Option<Instant>,
    /// Dials that failed, one after the other.
    failures: u32,
    /// Connections that ended soon, one after the other.
    short: u32,
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
    /// When two live nodes were last seen to have proved this key.
    pub cloned: Option<Instant>,
    instance: Instance,
    /// When the connection came to stand for it.
    since: Instant,
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
    pub fn new(me: Id, instance: Instance) -> Self {
        Self {
            me,
            instance,
            candidates: HashMap::new(),
            peers: BTreeMap::new(),
            budget: Budget::new(DIALS_A_SECOND, Duration::from_secs(1)),
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
                    candidate.fixed &= claim.is_some();
                }
                if self.may_forget(address) {
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
        // This is no beacon that anyone can forge: whoever runs there now has proved its key and its address.
        if let Some(candidate) =
            self.candidates.get_mut(&address).filter(|candidate| is_news && candidate.due.is_some())
        {
            candidate.due = Some(now);
        }
    }

    /// A dial has led to a proved key and hellos.
    pub fn handle_opened(&mut self, now: Instant, address: SocketAddr, opened: Opened) {
        let Opened { link, id, hello } = opened;
        let claim = Claim { id, instance: hello.instance, name: hello.name.clone() };
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.dialing_since = None;
            candidate.due = None;
            candidate.failures = 0;
            candidate.proved = id != self.me;
            // Proof beats claim.
            candidate.claim = Some(claim);
        }
        if id == self.me {
            self.actions.push_back(Action::Drop(link, Dropped::OwnKey));
            if hello.instance != self.instance {
                self.own_clone(now, address);
                self.retry(now, address, STRANGERS_AGAIN);
            }
            return;
        }
        let Some(peer) = self.peers.get_mut(&id) else {
            let place = self.make_room_for_peer();
            if place {
                self.peers.insert(id, Peer::new(now, &hello, address, Some(link)));
            }
            let action = if place { Action::Adopt(link) } else { Action::Drop(link, Dropped::Crowded) };
            self.actions.push_back(action);
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
            _ => self.actions.extend(peer.adopt(now, Rival { link, hello, address, since: now })),
        }
    }

    /// A dial has failed.
    pub fn handle_failed(&mut self, now: Instant, address: SocketAddr, failed: Failed) {
        let Failed { id, name, refused, reason } = failed;
        let Some(candidate) = self.candidates.get_mut(&address) else { return };
        candidate.dialing_since = None;
        candidate.failures = candidate.failures.saturating_add(1);
        let wait = match refused {
            true => backoff::AFTER_REFUSAL,
            // A beacon is no reason to dial an address again and again that has proved nothing.
            false if !candidate.is_known() => backoff::after(candidate.failures).max(STRANGERS_AGAIN),
            false => backoff::after(candidate.failures),
        };
        let (given_up, claim) = (candidate.failures >= MAX_FAILURES, candidate.claim.clone());
        if given_up && self.may_forget(address) {
            self.candidates.remove(&address);
        } else {
            self.retry(now, address, wait);
        }
        match id.and_then(|id| self.peers.get_mut(&id)) {
            // Another way to it stands.
            Some(peer) if peer.link.is_some() && !peer.silent => {}
            Some(peer) => (peer.refused, peer.problem) = (refused, Some(reason)),
            None => {
                // Proved, and not wanted: people should see it.
                let Some(id) = id.filter(|id| *id != self.me) else { return };
                let claimed = claim.filter(|claim| claim.id == id);
                let instance = claimed.as_ref().map_or(Instance(0), |claim| claim.instance);
                let name = name.or(claimed.map(|claim| claim.name)).unwrap_or_else(|| NodeName::lossy("unknown"));
                if self.make_room_for_peer() {
                    let hello = Hello::of(name, instance);
                    let peer = Peer { refused, problem: Some(reason), ..Peer::new(now, &hello, address, None) };
                    self.peers.insert(id, peer);
                }
            }
        }
    }

    /// A connection is over.
    pub fn handle_lost(&mut self, now: Instant, link: LinkId, refused: bool, reason: String) {
        let Some((&id, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.has(link)) else { return };
        if peer.rival.as_ref().is_some_and(|rival| rival.link == link) {
            peer.rival = None;
            return;
        }
        let (address, good) = (peer.address, now >= peer.since + GOOD);
        (peer.link, peer.silent, peer.refused, peer.problem) = (None, false, refused, Some(reason));
        if let Some(rival) = peer.rival.take() {
            // The older is over, so the newer was a restart.
            self.actions.extend(peer.adopt(now, rival));
            return;
        }
        let mut wait = backoff::AFTER_REFUSAL;
        if let Some(candidate) = self.candidates.get_mut(&address).filter(|_| !refused) {
            candidate.short = if good { 0 } else { candidate.short.saturating_add(1) };
            wait = backoff::after(candidate.short);
        }
        self.look_for(now, id, address, wait);
    }

    /// A connection has fallen silent, or speaks again.
    pub fn handle_silence(&mut self, now: Instant, link: LinkId, silent: bool) {
        let Some((&id, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.link == Some(link)) else { return };
        peer.silent = silent;
        if !silent {
            return;
        }
        if let Some(rival) = peer.rival.take() {
            self.actions.extend(peer.adopt(now, rival));
            return;
        }
        // It may have come back elsewhere, or with another socket: dial while we wait.
        let address = peer.address;
        self.look_for(now, id, address, backoff::after(0));
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
        let mut copies = Vec::new();
        for (id, peer) in &mut self.peers {
            let Some(rival) = peer.rival.take_if(|rival| now >= rival.since + VERDICT) else { continue };
            let older_speaks = peer.link.and_then(&last_heard).is_some_and(|heard| heard > rival.since);
            if older_speaks {
                self.actions.push_back(Action::Drop(rival.link, Dropped::Duplicate));
                copies.push(rival.address);
                if peer.cloned.replace(now).is_none() {
                    self.actions.push_back(Action::PeerCloned(*id));
                }
            } else {
                self.actions.extend(peer.adopt(now, rival));
            }
        }
        // To see whether the copy is still there.
        copies.into_iter().for_each(|address| self.retry(now, address, STRANGERS_AGAIN));
        for peer in self.peers.values_mut() {
            peer.cloned = peer.cloned.filter(|proved| now < *proved + CLONE_MEMORY);
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

    /// When to call again, if nothing happens before.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let due =
            |known: bool| self.candidates.values().filter(move |c| c.is_known() == known).filter_map(|c| c.due).min();
        let strangers = if self.dialing_strangers() < MAX_DIALS { due(false) } else { None };
        let strangers = strangers.map(|due| due.max(self.budget.next(now)));
        let verdict = self.peers.values().filter_map(|peer| Some(peer.rival.as_ref()?.since + VERDICT)).min();
        let cloned = self.peers.values().filter_map(|peer| peer.cloned).chain(self.clone_proved).min();
        [due(true), strangers, verdict, cloned.map(|proved| proved + CLONE_MEMORY)].into_iter().flatten().min()
    }

    // === inside ===

    fn dialing_strangers(&self) -> usize {
        self.candidates.values().filter(|c| c.dialing_since.is_some() && !c.is_known()).count()
    }

    /// Whether nothing but what strangers say speaks for this address.
    fn may_forget(&self, address: SocketAddr) -> bool {
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

    fn add_candidate(&mut self, now: Instant, address: SocketAddr, claim: Option<Claim>) {
        let fixed = claim.is_none();
        if !self.candidates.contains_key(&address) {
            if self.make_room() || fixed {
                let candidate = Candidate { claim, fixed, due: Some(now), ..Candidate::default() };
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

    /// Whether there is room for one more peer, perhaps by forgetting the one that was lost first.
    fn make_room_for_peer(&mut self) -> bool {
        if self.peers.len() < MAX_PEERS {
            return true;
        }
        let lost = self.peers.iter().filter(|(_, peer)| peer.link.is_none() && peer.rival.is_none());
        let oldest = lost.min_by_key(|(_, peer)| peer.since).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.peers.remove(&id).is_some())
    }

    fn retry(&mut self, now: Instant, address: SocketAddr, wait: Duration) {
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.due = Some(now + backoff::jitter(wait));
        }
    }

    /// Dials a peer that was lost: after `wait` where it was, and then wherever else it was seen, since it may be the
    /// network and not the peer that is gone. As long as it was connected there was no reason to dial its other addresses.
    fn look_for(&mut self, now: Instant, id: Id, last: SocketAddr, wait: Duration) {
        self.retry(now, last, wait);
        let its = |candidate: &Candidate| candidate.claim.as_ref().is_some_and(|claim| claim.id == id);
        let idle = |candidate: &Candidate| candidate.due.is_none() && candidate.dialing_since.is_none();
        let others = self.candidates.iter().filter(|(address, c)| **address != last && its(c) && idle(c));
        let others: Vec<SocketAddr> = others.map(|(address, _)| *address).collect();
        for address in others {
            self.retry(now, address, wait.max(OTHER_ADDRESS));
        }
    }

    fn own_clone(&mut self, now: Instant, address: SocketAddr) {
        if self.clone_proved.replace(now).is_none() {
            self.actions.push_back(Action::Cloned(Some(address)));
        }
    }
}

// === impl Candidate ===

impl Candidate {
    /// Whether it is more than what strangers say.
    fn is_known(&self) -> bool {
        self.fixed || self.proved
    }
}

enum Postponed {
    For(Duration),
    Satisfied,
}

// === impl Peer ===

impl Peer {
    fn new(now: Instant, hello: &Hello, address: SocketAddr, link: Option<LinkId>) -> Self {
        Self {
            name: hello.name.clone(),
            version: hello.version.clone(),
            address,
            link,
            silent: false,
            refused: false,
            problem: None,
            cloned: None,
            instance: hello.instance,
            since: now,
            rival: None,
        }
    }

    /// The newer connection stands for the peer from here on.
    fn adopt(&mut self, now: Instant, newer: Rival) -> impl Iterator<Item = Action> + use<> {
        let why = if self.instance == newer.hello.instance { Dropped::Duplicate } else { Dropped::Restarted };
        let older = self.link.map(|older| Action::Drop(older, why));
        *self = Self { cloned: self.cloned, ..Self::new(now, &newer.hello, newer.address, Some(newer.link)) };
        older.into_iter().chain([Action::Adopt(newer.link)])
    }

    fn has(&self, link: LinkId) -> bool {
        self.link == Some(link) || self.rival.as_ref().is_some_and(|rival| rival.link == link)
    }
}

#[cfg(test)]
mod tests;
