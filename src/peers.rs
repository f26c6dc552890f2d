//! Outbound: whom to dial, who is connected, and the directory that others read.
//!
//! An actor owns all of it. It feeds a [state machine](machine) with what happens and does what that says; each
//! connection has a [task](link) that reads its control stream; the [directory] is what the rest of the program sees.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::discovery::{Claim, LookUps, PeerAddress, Sighting, SightingKind};
use crate::exchange::{Health, Load, Report};
use crate::id::{Id, Instance, NodeName, Scope};
use crate::pairing::{Dealer, Desk};
use crate::transport::remote::Face;
use crate::transport::{CloseCode, Closed, Connection, Pulse, Remote, Transport};
use crate::trust::{Book, Snapshot, Standing, Trust};
use crate::wire::control::Hello;

mod allowance;
pub mod backoff;
pub mod directory;
mod link;
mod machine;
mod names;
mod unusable;

pub use directory::{Directory, PeerState, PeerView, Reported};
pub use link::revoked as until_revoked;

use backoff::Budget;
use directory::{Entries, Entry, Live};
use link::{Access, Event, Follow, Opening};
use machine::{Action, Dropped, Failed, LinkId, Lost, Machine, Opened, Unanswering};
use names::Names;

/// Events of links that wait for the actor. It does no I/O of its own, so a few are enough.
const EVENTS: usize = 64;
/// Lines in the log about peers that nobody has decided on, at more than `debug`: strangers can come and go as they like.
const LOUD: usize = 60;
/// See `LOUD`.
const LOUD_WITHIN: Duration = Duration::from_secs(60);

/// A refusal is news once it has lasted for so long.
const REFUSED_FOR: Duration = Duration::from_secs(2);

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
    /// Where people and peers agree to be paired.
    pub desk: Desk,
    /// Where to dial.
    pub sightings: mpsc::Receiver<Sighting>,
    /// Who has dialled us.
    pub callers: mpsc::Receiver<Caller>,
    /// The results of looking up the peers that a person named.
    pub look_ups: watch::Receiver<LookUps>,
    /// The node that made the invitation that this one was started with, and the addresses in it, which are named like
    /// those.
    pub inviter: Option<(Id, Vec<PeerAddress>)>,
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
    actor: AbortOnDropHandle<()>,
}

impl Peers {
    /// Starts the actor.
    pub fn spawn(settings: Settings) -> Self {
        let (entries, entries_seen) = watch::channel(Entries::default());
        let (clone_at, clone_seen) = watch::channel(None);
        let (unanswering, unanswering_seen) = watch::channel(Arc::default());
        let (forget, forgotten) = mpsc::channel(EVENTS);
        let directory = Directory {
            me: Arc::new((settings.hello.name.clone(), settings.me)),
            entries: entries_seen,
            unanswering: unanswering_seen,
            look_ups: settings.look_ups.clone(),
            inviter: settings.inviter.clone().map(Arc::new),
            trust: settings.book.watch(),
            forget,
        };
        let (events, events_seen) = mpsc::channel(EVENTS);
        let actor = Actor {
            machine: Machine::new(settings.me, settings.hello.instance),
            revoked: revoked(&settings.book.snapshot()),
            settings,
            links: HashMap::new(),
            next_link: 0,
            tasks: JoinSet::new(),
            dials: JoinSet::new(),
            events,
            forgotten,
            entries,
            unanswering,
            clone_at,
            loud: Budget::new(LOUD, LOUD_WITHIN),
        };
        Self { directory, clone_seen, actor: AbortOnDropHandle::new(tokio::spawn(actor.run(events_seen))) }
    }

    /// Who there is.
    pub fn directory(&self) -> Directory {
        self.directory.clone()
    }

    /// Resolves if the actor ends, which is a bug: it lives as long as this.
    pub async fn ended(&mut self) {
        let _ = (&mut self.actor).await;
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
    /// Peers that a person has forgotten.
    forgotten: mpsc::Receiver<Id>,
    entries: watch::Sender<Entries>,
    unanswering: watch::Sender<Arc<Unanswering>>,
    clone_at: watch::Sender<Option<SocketAddr>>,
    /// The keys that were revoked when the book was looked at last.
    revoked: BTreeSet<Id>,
    loud: Budget,
}

/// A connection that both have said hello on. What drops it retires it: see [`link::Retired`].
struct Link {
    connection: Connection,
    remote: Arc<Remote>,
    face: watch::Sender<Face>,
    report: watch::Receiver<Arc<Report>>,
    load: watch::Receiver<Arc<Load>>,
    health: watch::Receiver<Health>,
    heard: watch::Receiver<Instant>,
    retire: oneshot::Sender<(CloseCode, &'static str)>,
}

/// Says it at this level while that is not too often, and at `debug` otherwise.
macro_rules! say {
    ($loud:expr, $level:ident, $($what:tt)*) => {
        if $loud { tracing::$level!($($what)*) } else { tracing::debug!($($what)*) }
    };
}

// === impl Actor ===

impl Actor {
    async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut trust = self.settings.book.watch();
        let mut callers_open = true;
        let mut sightings_open = true;
        self.seek_vouched();
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
                Some(dialled) = self.dials.join_next() => match dialled {
                    Ok((address, opened)) => self.dialled(address, opened),
                    Err(error) => tracing::error!(%error, "a dial's task ended; this is a bug"),
                },
                Some(event) = events.recv() => self.heard_of(event),
                Some(id) = self.forgotten.recv() => self.machine.handle_forgotten(id),
                Some(_) = self.tasks.join_next() => {}
                Ok(()) = trust.changed() => {
                    self.pardon();
                    self.seek_vouched();
                }
                () = until(timeout) => {
                    let links = &self.links;
                    self.machine.handle_timeout(Instant::now(), |link| Some(*links.get(&link)?.heard.borrow()));
                }
            }
        }
    }

    fn dial(&mut self, address: SocketAddr) {
        tracing::debug!(%address, "dialling");
        let Settings { me, transport, hello, book, .. } = &self.settings;
        let open = link::open(transport.clone(), address, *me, hello.clone(), book.clone());
        let open = AssertUnwindSafe(open).catch_unwind();
        self.dials.spawn(async move { (address, open.await.unwrap_or_else(|_| Err(Failed::by_a_bug()))) });
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
                // Said again and again by who says no again and again: once is enough.
                let known = failed.id.and_then(|id| self.machine.peers().find(|(of, _)| **of == id));
                let known = known.map(|(_, peer)| (peer.name.clone(), peer.problem.clone()));
                let news = known.as_ref().is_none_or(|(_, problem)| problem.as_ref() != Some(&failed.reason));
                let loud = failed.refused && news && self.loud(failed.id);
                let peer = failed.name.clone().or(known.map(|(name, _)| name));
                match (peer, failed.id) {
                    (Some(peer), Some(id)) => {
                        say!(loud, warn, %peer, %id, %address, reason = %failed.reason, "cannot connect to a peer");
                    }
                    _ => say!(loud, warn, %address, reason = %failed.reason, "cannot connect to a peer"),
                }
                self.machine.handle_failed(now, address, failed);
            }
        }
    }

    /// Whether to say something of this peer so that people see it.
    fn loud(&mut self, id: Option<Id>) -> bool {
        let trust = id.map(|id| self.settings.book.snapshot().standing(&id).trust);
        matches!(trust, Some(Trust::Trusted | Trust::Vouched)) || self.loud.take(Instant::now())
    }

    /// Starts reading the control stream of a new connection.
    fn follow(&mut self, opening: Opening) -> LinkId {
        let Opening { connection, control, hello, session } = opening;
        let greeted = hello.name.clone();
        self.next_link += 1;
        let link = LinkId(self.next_link);
        let standing = self.settings.book.snapshot().standing(&connection.id());
        let (face, face_seen) = watch::channel(face(hello.name.clone(), standing));
        let (report, report_seen) = watch::channel(Arc::new(Report::default()));
        let (load, load_seen) = watch::channel(Arc::new(Load::default()));
        let (heard, heard_seen) = watch::channel(Instant::now());
        let (retire, retired) = oneshot::channel();
        let pulse = Arc::new(Pulse::new());
        let remote = Arc::new(Remote::new(
            connection.clone(),
            face_seen,
            report_seen.clone(),
            load_seen.clone(),
            Arc::clone(&pulse),
        ));
        let health_seen = pulse.watch();
        let follow = Follow {
            link,
            connection: connection.clone(),
            hello,
            book: self.settings.book.clone(),
            face: face.clone(),
            report,
            load,
            pulse,
            heard,
            events: self.events.clone(),
            access: None,
            access_told: 0,
            met: None,
            blocked: false,
            presence: None,
        };
        let events = self.events.clone();
        let Settings { desk, book, .. } = &self.settings;
        let dealer = Dealer::new(desk, book, session, greeted, connection.address());
        let following = AssertUnwindSafe(follow.run(control, dealer, retired)).catch_unwind();
        self.tasks.spawn(async move {
            if following.await.is_err() {
                let _ = events.send(Event::Lost(link, Closed::Failed(link::BUG.to_owned()))).await;
            }
        });
        let (report, load, health, heard) = (report_seen, load_seen, health_seen, heard_seen);
        self.links.insert(link, Link { connection, remote, face, report, load, health, heard, retire });
        link
    }

    fn heard_of(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Silence(link, silent) => {
                if let Some(held) = self.links.get(&link) {
                    let peer = held.face.borrow().label.clone();
                    let id = held.connection.id();
                    let loud = self.loud(Some(id));
                    if silent {
                        say!(loud, warn, %peer, "peer is unreachable: silent for {} s", link::SILENCE.as_secs());
                    } else {
                        say!(loud, info, %peer, "peer answers again");
                    }
                }
                self.machine.handle_silence(now, link, silent);
            }
            Event::Lost(link, closed) => {
                if let Some(held) = self.links.remove(&link) {
                    let loud = self.loud(Some(held.connection.id()));
                    say!(loud, info, peer = %held.face.borrow().label, reason = %closed, "disconnected");
                }
                let (refused, denial) = (link::is_refusal(&closed), link::denial(&closed));
                self.machine.handle_lost(now, link, Lost { refused, denial, reason: closed.to_string() });
            }
            Event::Access(link, access) => self.say_access(link, access),
        }
    }

    /// A provider has changed what this node may do there.
    fn say_access(&mut self, link: LinkId, access: Access) {
        // Of several connections to a peer one speaks for it.
        if !self.machine.peers().any(|(_, peer)| peer.link == Some(link)) {
            return;
        }
        let Some(held) = self.links.get(&link) else { return };
        let (id, peer, report) = (held.connection.id(), held.face.borrow().label.clone(), held.report.clone());
        let loud = self.loud(Some(id));
        match access {
            Access::Refused(denial) => {
                let own = &self.settings.hello.name;
                let (reason, advice) = (denial.reason(own), denial.advice(peer.as_str(), own, &self.settings.me));
                let advice = advice.map(|advice| format!(" → {advice}")).unwrap_or_default();
                self.tasks.spawn(async move {
                    // An invitation that is redeemed at once, or a pairing, makes it untrue.
                    tokio::time::sleep(REFUSED_FOR).await;
                    if Access::of(&report.borrow()) == Some(access) {
                        say!(loud, warn, %id, "{peer} {reason}{advice}");
                    }
                });
            }
            Access::Granted(Scope::Manage) => say!(loud, info, %id, "{peer} lets this node run and change its models"),
            Access::Granted(_) => say!(loud, info, %id, "{peer} lets this node run its models"),
        }
    }

    /// Who is revoked is cut off by the task of its connection; whom a person has pardoned need not wait any longer.
    fn pardon(&mut self) {
        let revoked = revoked(&self.settings.book.snapshot());
        let pardoned: Vec<Id> = self.revoked.difference(&revoked).copied().collect();
        self.revoked = revoked;
        for id in pardoned {
            self.machine.handle_pardon(Instant::now(), id);
        }
    }

    /// Looks for those whom a voucher vouches for where it says they are: they may be beyond this link, where no beacon comes
    /// from. It is a hint as a beacon is, and causes as few dials.
    fn seek_vouched(&mut self) {
        let live = self.machine.peers().filter(|(_, peer)| peer.link.is_some());
        let (here, taken): (HashSet<Id>, HashSet<SocketAddr>) = live.map(|(id, peer)| (*id, peer.address)).unzip();
        for pin in self.settings.book.snapshot().vouched().filter(|pin| !here.contains(&pin.id)) {
            let address = pin.address.as_deref().and_then(|address| address.parse().ok());
            let Some(address) = address.filter(|address| !taken.contains(address)) else { continue };
            // Which run it is nobody has said.
            let claim = Some(Claim { id: pin.id, instance: Instance(0), name: pin.name.clone() });
            let sighting = Sighting { kind: SightingKind::Present, address, claim };
            self.machine.handle_sighting(Instant::now(), sighting);
        }
    }

    fn act(&mut self) {
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Adopt(link) => {
                    if let Some(link) = self.links.get(&link) {
                        let (peer, id) = (link.face.borrow().label.clone(), link.connection.id());
                        let address = link.connection.address();
                        let loud = self.loud(Some(id));
                        say!(loud, info, %peer, %id, %address, "connected");
                    }
                }
                Action::Drop(link, why) => {
                    let Some(link) = self.links.remove(&link) else { continue };
                    let close = match why {
                        Dropped::Duplicate => continue,
                        Dropped::Restarted => (CloseCode::Replaced, "the node was started anew"),
                        Dropped::OwnKey => (CloseCode::SameKey, "this is my own key"),
                        Dropped::Crowded => (CloseCode::Busy, "too many peers"),
                    };
                    // An error means that it is over anyhow.
                    let _ = link.retire.send(close);
                }
                Action::Cloned(Some(address)) => {
                    tracing::error!(
                        %address,
                        "a running copy of this node has its key (a cloned disk?): neither shares until one of them \
                         was given a key of its own: stop it, delete identity.key from its state directory, start it \
                         again"
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
        let trust = self.settings.book.snapshot();
        let names = Names::of(self.machine.peers(), &self.settings.hello.name, &trust);
        let entries: BTreeMap<Id, Entry> =
            self.machine.peers().map(|(id, peer)| (*id, self.entry(*id, peer, &names))).collect();
        for (id, entry) in &entries {
            let Some(link) = entry.peer.link.and_then(|link| self.links.get(&link)) else { continue };
            let face = face(entry.label.clone(), trust.standing(id));
            link.face.send_if_modified(|known| {
                let changed = *known != face;
                *known = face;
                changed
            });
        }
        let unanswering = self.machine.unanswering(|id| trust.pin(id).is_some());
        self.unanswering.send_if_modified(|known| {
            let changed = **known != unanswering;
            if changed {
                *known = Arc::new(unanswering);
            }
            changed
        });
        self.entries.send_if_modified(|known| {
            let same = known.len() == entries.len()
                && known.iter().zip(&entries).all(|((a, x), (b, y))| a == b && x.shows_the_same(y));
            if !same {
                *known = Arc::new(entries);
            }
            !same
        });
    }

    fn entry(&self, id: Id, peer: &machine::Peer, names: &Names<'_>) -> Entry {
        let live = peer.link.and_then(|link| self.links.get(&link)).map(|link| Live {
            connection: link.connection.clone(),
            remote: Arc::clone(&link.remote),
            report: link.report.clone(),
            load: link.load.clone(),
            health: link.health.clone(),
        });
        let (label, namesake) = names.label(&id, peer);
        Entry { peer: peer.clone(), label, namesake, live, dialled: self.machine.is_dialled(&id) }
    }
}

/// How a peer is shown to whoever chooses among providers.
fn face(label: NodeName, standing: Standing) -> Face {
    let trusted = matches!(standing.trust, Trust::Trusted | Trust::Vouched);
    Face { label, use_: standing.as_provider().use_, trusted }
}

fn revoked(trust: &Snapshot) -> BTreeSet<Id> {
    trust.pins().filter(|pin| pin.trust == Trust::Revoked).map(|pin| pin.id).collect()
}

async fn until(timeout: Option<Instant>) {
    match timeout {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
