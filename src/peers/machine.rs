//! Whom to dial and when, and which connection stands for a peer: decided without I/O and without a clock.
//!
//! Feed it what happened (`handle_*`), then ask what to do ([`Machine::poll_dial`], [`Machine::poll_action`]) and when to
//! come back ([`Machine::poll_timeout`]). Two tables: **candidates** are addresses, with what beacons claim of them;
//! **peers** are keys that were proved. Beacons add candidates and can take nothing away from a peer.

mod dials;
mod peer;
mod unanswered;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::discovery::{Claim, Sighting, SightingKind};
use crate::exchange::Denial;
use crate::id::{Id, Instance, NodeName};
use crate::wire::control::Hello;

use super::backoff::{self, Budget};
use dials::{Candidate, InTheWay};
pub use peer::Peer;
use peer::Rival;
pub use unanswered::{Unanswered, Unanswering};

/// Keys remembered. Whoever can answer a dial can prove as many of them as he likes.
const MAX_PEERS: usize = 512;
/// Whatever beacons and callers say, so many addresses that nobody knows are dialled a second: no packet may make
/// this node a tool against others.
const DIALS_A_SECOND: usize = 10;
/// The same for what follows from the first dial by itself, less than which jitter cannot make of it.
const STRANGERS_AGAIN: Duration = Duration::from_millis(12_500);
/// After an hour of failures an address is forgotten, unless a person named it: a beacon or a call brings it back.
const MAX_FAILURES: u32 = 120;
/// A connection that lasted as long was a good one: what follows on it is a failure of its own. Below that, a peer that
/// takes connections and ends them is dialled ever less often.
const GOOD: Duration = Duration::from_secs(10);
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
    /// The code that it gave for that.
    pub denial: Option<Denial>,
    /// Why, for people.
    pub reason: String,
    /// The command or action that people can take.
    pub advice: Option<String>,
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// Whether the other side said no, so that asking again soon is pointless.
    pub refused: bool,
    /// The code that it gave for that.
    pub denial: Option<Denial>,
    /// Why, for people.
    pub reason: String,
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
            SightingKind::Present => {
                self.add_candidate(now, address, claim);
                if let Some(candidate) = self.candidates.get_mut(&address) {
                    candidate.heard = Some(now);
                }
            }
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
        if let Some(candidate) = self.candidates.get_mut(&address) {
            candidate.called = Some(id);
        }
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
            candidate.in_the_way = None;
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
        let Failed { id, name, refused, denial, reason, advice } = failed;
        let Some(candidate) = self.candidates.get_mut(&address) else { return };
        candidate.dialing_since = None;
        candidate.failures = candidate.failures.saturating_add(1);
        // Of a key that was proved, the peer says it.
        candidate.in_the_way = id.is_none().then(|| {
            let since = candidate.in_the_way.take().map_or(now, |before| before.since);
            InTheWay { since, reason: reason.clone(), advice }
        });
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
            Some(peer) => (peer.refused, peer.denial, peer.problem) = (refused, denial, Some(reason)),
            None => {
                // Proved, and not wanted: people should see it.
                let Some(id) = id.filter(|id| *id != self.me) else { return };
                let claimed = claim.filter(|claim| claim.id == id);
                let instance = claimed.as_ref().map_or(Instance(0), |claim| claim.instance);
                let name = name.or(claimed.map(|claim| claim.name)).unwrap_or_else(|| NodeName::lossy("unknown"));
                if self.make_room_for_peer() {
                    let hello = Hello::of(name, instance);
                    let peer = Peer { refused, denial, problem: Some(reason), ..Peer::new(now, &hello, address, None) };
                    self.peers.insert(id, peer);
                }
            }
        }
    }

    /// A connection is over.
    pub fn handle_lost(&mut self, now: Instant, link: LinkId, lost: Lost) {
        let Lost { refused, denial, reason } = lost;
        let Some((&id, peer)) = self.peers.iter_mut().find(|(_, peer)| peer.has(link)) else { return };
        if peer.rival.as_ref().is_some_and(|rival| rival.link == link) {
            peer.rival = None;
            return;
        }
        let (address, good) = (peer.address, now >= peer.since + GOOD);
        (peer.link, peer.silent) = (None, false);
        (peer.refused, peer.denial, peer.problem) = (refused, denial, Some(reason));
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
        (peer.refused, peer.denial, peer.problem) = (false, None, None);
        let address = peer.address;
        self.retry(now, address, Duration::ZERO);
    }

    /// A person has forgotten a peer. One that is connected is met already, and stays.
    pub fn handle_forgotten(&mut self, id: Id) {
        if self.peers.get(&id).is_some_and(|peer| peer.link.is_none() && peer.rival.is_none()) {
            self.peers.remove(&id);
        }
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

    /// When to call again, if nothing happens before.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let verdict = self.peers.values().filter_map(|peer| Some(peer.rival.as_ref()?.since + VERDICT)).min();
        let cloned = self.peers.values().filter_map(|peer| peer.cloned).chain(self.clone_proved).min();
        [self.next_dial(now), verdict, cloned.map(|proved| proved + CLONE_MEMORY)].into_iter().flatten().min()
    }

    // === inside ===

    /// Whether there is room for one more peer, perhaps by forgetting the one that was lost first.
    fn make_room_for_peer(&mut self) -> bool {
        if self.peers.len() < MAX_PEERS {
            return true;
        }
        let lost = self.peers.iter().filter(|(_, peer)| peer.link.is_none() && peer.rival.is_none());
        let oldest = lost.min_by_key(|(_, peer)| peer.since).map(|(id, _)| *id);
        oldest.is_some_and(|id| self.peers.remove(&id).is_some())
    }

    fn own_clone(&mut self, now: Instant, address: SocketAddr) {
        if self.clone_proved.replace(now).is_none() {
            self.actions.push_back(Action::Cloned(Some(address)));
        }
    }
}

#[cfg(test)]
mod tests;
