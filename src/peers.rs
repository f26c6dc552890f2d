//! Outbound: whom to dial, who is connected, and the directory that others read.
//!
//! An actor owns all of it. It feeds a [state machine](machine) with what happens and does what that says; each
//! connection has a [task](link) that reads its control stream; the [directory] is what the rest of the program sees.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::discovery::Sighting;
use crate::exchange::{Health, Report};
use crate::id::{Id, NodeName};
use crate::transport::remote::Face;
use crate::transport::{CloseCode, Connection, Remote, Transport};
use crate::trust::{Book, Pin, Snapshot, Trust};
use crate::wire::control::Hello;

mod backoff;
pub mod directory;
mod link;
mod machine;

pub use directory::{Directory, PeerState, PeerView};
use directory::{Entries, Entry, Live};
use link::{Event, Follow, Opening};
use machine::{Action, Dropped, Failed, LinkId, Machine, Opened};

/// Events of links that wait for the actor. It does no I/O of its own, so a few are enough.
const EVENTS: usize = 64;

/// What the actor starts with.
pub struct Settings {
    /// Our own ID.
    pub me: Id,
    /// What we say to whom we dial.
    pub hello: Hello,
    /// How to dial.
    pub transport: Transport,
    /// Whom to trust.
    pub book: Book,
    /// Where to dial.
    pub sightings: mpsc::Receiver<Sighting>,
    /// Who has dialled us.
    pub callers: mpsc::Receiver<Caller>,
    /// Called when a dial failed: whoever knows addresses may want to look them up again.
    pub look_again: Box<dyn Fn() + Send + Sync>,
}

/// A node that dialled us, proved its key and said hello.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Its key's ID.
    pub id: Id,
    /// What it said.
    pub hello: Hello,
    /// Where it called from, which is where it can be called.
    pub address: SocketAddr,
}

/// The outbound half of the mesh. Dropping it ends all outbound connections.
#[derive(Debug)]
pub struct Peers {
    directory: Directory,
    clone_seen: watch::Receiver<Option<SocketAddr>>,
    _actor: AbortOnDropHandle<()>,
}

impl Peers {
    /// Starts the actor.
    pub fn spawn(settings: Settings) -> Self {
        let (entries, entries_seen) = watch::channel(Entries::default());
        let (clone_at, clone_seen) = watch::channel(None);
        let directory = Directory { entries: entries_seen, trust: settings.book.watch() };
        let (events, events_seen) = mpsc::channel(EVENTS);
        let actor = Actor {
            machine: Machine::new(settings.me, settings.hello.instance, Instant::now()),
            settings,
            links: HashMap::new(),
            next_link: 0,
            tasks: JoinSet::new(),
            dials: JoinSet::new(),
            events,
            entries,
            clone_at,
        };
        Self { directory, clone_seen, _actor: AbortOnDropHandle::new(tokio::spawn(actor.run(events_seen))) }
    }

    /// Who there is.
    pub fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// Where a running copy of this node was proved, while there is one.
    pub fn clone_seen(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.clone_seen.clone()
    }
}

struct Actor {
    settings: Settings,
    machine: Machine,
    links: HashMap<LinkId, Link>,
    next_link: u64,
    tasks: JoinSet<()>,
    dials: JoinSet<(SocketAddr, Result<Opening, Failed>)>,
    events: mpsc::Sender<Event>,
    entries: watch::Sender<Entries>,
    clone_at: watch::Sender<Option<SocketAddr>>,
}

/// A connection that both have said hello on.
struct Link {
    connection: Connection,
    remote: Arc<Remote>,
    face: watch::Sender<Face>,
    report: watch::Receiver<Arc<Report>>,
    health: Arc<watch::Sender<Health>>,
    heard: watch::Receiver<Instant>,
    task: tokio::task::AbortHandle,
}

impl Drop for Link {
    /// What waits for a first byte moves on. The connection itself lives as long as an answer runs over it.
    fn drop(&mut self) {
        self.task.abort();
        self.health.send_replace(Health::Gone);
    }
}

impl Actor {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut trust = self.settings.book.watch();
        let mut callers_open = true;
        let mut sightings_open = true;
        loop {
            let now = Instant::now();
            while let Some(address) = self.machine.poll_dial(now) {
                self.dial(address);
            }
            self.act();
            self.publish();
            let timeout = self.machine.poll_timeout(now);
            tokio::select! {
                sighting = self.settings.sightings.recv(), if sightings_open => match sighting {
                    Some(sighting) => {
                        tracing::trace!(?sighting, "sighting");
                        self.machine.handle_sighting(Instant::now(), sighting);
                    }
                    None => sightings_open = false,
                },
                caller = self.settings.callers.recv(), if callers_open => match caller {
                    Some(Caller { id, hello, address }) => {
                        self.machine.handle_inbound(Instant::now(), id, &hello, address);
                    }
                    None => callers_open = false,
                },
                Some(Ok((address, opened))) = self.dials.join_next() => self.dialled(address, opened),
                Some(event) = events.recv() => self.heard_of(event),
                Some(_) = self.tasks.join_next() => {}
                Ok(()) = trust.changed() => self.apply_trust(),
                () = until(timeout) => {
                    let links = &self.links;
                    self.machine.handle_timeout(Instant::now(), |link| Some(*links.get(&link)?.heard.borrow()));
                }
            }
        }
    }

    fn dial(&mut self, address: SocketAddr) {
        tracing::debug!(%address, "dialling");
        let Settings { transport, hello, book, .. } = &self.settings;
        let open = link::open(transport.clone(), address, hello.clone(), book.clone());
        self.dials.spawn(async move { (address, open.await) });
    }

    fn dialled(&mut self, address: SocketAddr, opened: Result<Opening, Failed>) {
        let now = Instant::now();
        match opened {
            Ok(opening) => {
                let (id, hello) = (opening.connection.id(), opening.hello.clone());
                let link = self.follow(opening);
                self.machine.handle_opened(now, address, Opened { link, id, hello });
            }
            Err(failed) => {
                (self.settings.look_again)();
                if failed.refused {
                    tracing::warn!(%address, id = ?failed.id, reason = %failed.reason, "no connection to a peer");
                } else {
                    tracing::debug!(%address, reason = %failed.reason, "dial failed");
                }
                self.machine.handle_failed(now, address, failed);
            }
        }
    }

    /// Starts reading the control stream of a new connection.
    fn follow(&mut self, opening: Opening) -> LinkId {
        let Opening { connection, control, hello } = opening;
        self.next_link += 1;
        let link = LinkId(self.next_link);
        let use_ = self.settings.book.watch().borrow().standing(&connection.id()).as_provider().use_;
        let (face, face_seen) = watch::channel(Face { label: hello.name.clone(), use_ });
        let (report, report_seen) = watch::channel(Arc::new(Report::default()));
        let (heard, heard_seen) = watch::channel(Instant::now());
        let health = Arc::new(watch::Sender::new(Health::Healthy));
        let remote = Remote::new(connection.clone(), face_seen, report_seen.clone(), Arc::clone(&health));
        let follow = Follow {
            link,
            connection: connection.clone(),
            hello,
            book: self.settings.book.clone(),
            face: face.clone(),
            report,
            health: Arc::clone(&health),
            heard,
            events: self.events.clone(),
            presence: None,
        };
        let task = self.tasks.spawn(follow.run(control));
        let remote = Arc::new(remote);
        self.links
            .insert(link, Link { connection, remote, face, report: report_seen, health, heard: heard_seen, task });
        link
    }

    fn heard_of(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Silence(link, silent) => {
                if let Some(held) = self.links.get(&link) {
                    let peer = held.face.borrow().label.clone();
                    if silent {
                        tracing::warn!(%peer, "unreachable: silent for {} s", link::SILENCE.as_secs());
                    } else {
                        tracing::info!(%peer, "it answers again");
                    }
                }
                self.machine.handle_silence(now, link, silent);
            }
            Event::Lost(link, closed) => {
                if let Some(held) = self.links.remove(&link) {
                    tracing::info!(peer = %held.face.borrow().label, reason = %closed, "disconnected");
                }
                self.machine.handle_lost(now, link, link::is_refusal(&closed), closed.to_string());
            }
        }
    }

    /// A revoked peer is cut off at once, live streams included; others get the face that the book gives them.
    fn apply_trust(&mut self) {
        let trust = self.settings.book.watch().borrow().clone();
        for link in self.links.values() {
            if trust.standing(&link.connection.id()).trust == Trust::Revoked {
                link.connection.close(CloseCode::Revoked, "revoked");
            }
        }
        let now = Instant::now();
        let refused: Vec<Id> = self.machine.peers().filter(|(_, peer)| peer.refused).map(|(id, _)| *id).collect();
        for id in refused.into_iter().filter(|id| trust.standing(id).trust != Trust::Revoked) {
            self.machine.handle_pardon(now, id);
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Adopt(link) => {
                    if let Some(link) = self.links.get(&link) {
                        let (peer, id) = (link.face.borrow().label.clone(), link.connection.id());
                        tracing::info!(%peer, %id, address = %link.connection.address(), "connected");
                    }
                }
                Action::Drop(link, why) => {
                    let Some(link) = self.links.remove(&link) else { continue };
                    match why {
                        Dropped::OwnKey => link.connection.close(CloseCode::SameKey, "this is my own key"),
                        // What still waits on it breaks now and not after 15 s of silence.
                        Dropped::Restarted => link.connection.close(CloseCode::Replaced, "restarted"),
                        Dropped::Duplicate => {}
                    }
                }
                Action::Cloned(Some(address)) => {
                    tracing::error!(
                        %address,
                        "a running copy of this node has its key (a cloned disk?): neither lends until one of them was \
                         given a key of its own: stop it, delete identity.key from its state directory, start it again"
                    );
                    self.clone_at.send_replace(Some(address));
                }
                Action::Cloned(None) => {
                    tracing::info!("the copy of this node is gone");
                    self.clone_at.send_replace(None);
                }
                Action::PeerCloned(id) => tracing::warn!(%id, "two live nodes use this key"),
            }
        }
    }

    /// Shows the rest of the program how things are now.
    fn publish(&self) {
        let trust = self.settings.book.watch().borrow().clone();
        let entries: BTreeMap<Id, Entry> =
            self.machine.peers().map(|(id, peer)| (*id, self.entry(*id, peer, &trust))).collect();
        for (id, entry) in &entries {
            let Some(link) = entry.peer.link.and_then(|link| self.links.get(&link)) else { continue };
            let face = Face { label: entry.label.clone(), use_: trust.standing(id).as_provider().use_ };
            link.face.send_if_modified(|known| {
                let changed = *known != face;
                *known = face;
                changed
            });
        }
        self.entries.send_if_modified(|known| {
            let same = known.len() == entries.len()
                && known.iter().zip(&entries).all(|((a, x), (b, y))| a == b && x.peer == y.peer && x.label == y.label);
            if !same {
                *known = Arc::new(entries);
            }
            !same
        });
    }

    fn entry(&self, id: Id, peer: &machine::Peer, trust: &Snapshot) -> Entry {
        let live = peer.link.and_then(|link| self.links.get(&link)).map(|link| Live {
            connection: link.connection.clone(),
            remote: Arc::clone(&link.remote),
            report: link.report.clone(),
            health: link.health.subscribe(),
        });
        Entry { peer: peer.clone(), label: self.label(id, peer, trust), live }
    }

    /// The name to show: with a piece of the ID if another live node, or this one, bears the same. Who holds the name in
    /// the trust book keeps it as it is, also while it is away: else a stranger could take it from it by saying it.
    fn label(&self, id: Id, peer: &machine::Peer, trust: &Snapshot) -> NodeName {
        let name = peer.name.as_str();
        let holds = |pin: &Pin| pin.trust != Trust::Revoked && pin.name.is(name);
        let rival_holds = trust.pins().any(|pin| pin.id != id && holds(pin));
        let rival_lives =
            || self.machine.peers().any(|(other, of)| *other != id && of.link.is_some() && of.name.is(name));
        let contested = match trust.pin(&id).is_some_and(holds) {
            true => rival_holds,
            false => rival_holds || rival_lives(),
        };
        if contested || self.settings.hello.name.is(name) {
            peer.name.with_suffix(&id.short())
        } else {
            peer.name.clone()
        }
    }
}

async fn until(timeout: Option<Instant>) {
    match timeout {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
