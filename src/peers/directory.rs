//! What others read: the peers as people see them, and the endpoints as the balancer does.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_core::Stream;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tower::discover::Change;

use crate::discovery::{LookUps, PeerAddress};
use crate::exchange::{Denial, Endpoint, Health, Load, Numbers, Report, ServerKind};
use crate::id::{Id, NodeName, Scope, Use};
use crate::transport::{Connection, Remote};
use crate::trust::{NameConflict, Snapshot, Standing, Trust, Voucher, Window};

use super::machine::{Peer, Unanswering};
use super::names::Namesake;

/// One peer as `ollana peers --json` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerView {
    /// The name it gives itself, with a piece of its ID where another node bears the same.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Where it was last reached or seen.
    pub address: Option<SocketAddr>,
    /// Whether it can be reached.
    pub state: PeerState,
    /// How its key came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
    /// The access of this node there, if it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote_scope: Option<Scope>,
    /// Why it does not serve this node, if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denial: Option<Denial>,
    /// Whether the servers that it vouches for are used too.
    #[serde(default)]
    pub voucher: bool,
    /// By whose word it is used, where that is so.
    #[serde(default)]
    pub vouched_by: Vec<Voucher>,
    /// Whether it lends an Ollama.
    pub provider: bool,
    /// What the server speaks that it lends.
    #[serde(default)]
    pub api: ServerKind,
    /// The models on its disk.
    pub models: Vec<String>,
    /// Those of them in memory.
    pub loaded: Vec<String>,
    /// Requests at its gate, everyone's.
    pub inflight: u32,
    /// Requests that its Ollama works on and that did not come by the gate.
    #[serde(default)]
    pub direct: u32,
    /// How many models its server keeps in memory, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_loaded: Option<u32>,
    /// Whether it is about to stop, and takes nothing new.
    #[serde(default)]
    pub draining: bool,
    /// How busy and how fast its models are, as far as anything is known: what requests are balanced by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, Numbers>,
    /// Round-trip time in microseconds, 0 while not connected.
    pub rtt_us: u64,
    /// What is wrong, if something is: a refusal's reason, a conflict of names or keys, the last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its program's version, if it said one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// The digest of each model on its disk, which tells two models of one name apart.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub digests: BTreeMap<String, String>,
}

/// Whether a peer can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Its hello came back.
    Connected,
    /// It is being dialled.
    Connecting,
    /// It does not answer.
    Unreachable,
    /// It refuses us, or we refuse it.
    Refused,
}

impl fmt::Display for PeerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Connected => "connected",
            Self::Connecting => "connecting",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
        })
    }
}

/// A proved peer and, if there is one, the connection that stands for it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) peer: Peer,
    pub(super) label: NodeName,
    /// The other connected node that has its name, where that is a conflict.
    pub(super) namesake: Option<Namesake>,
    pub(super) live: Option<Live>,
    /// Whether it is being dialled.
    pub(super) dialled: bool,
}

/// The live half of an entry.
#[derive(Debug, Clone)]
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) remote: Arc<Remote>,
    pub(super) report: watch::Receiver<Arc<Report>>,
    pub(super) load: watch::Receiver<Arc<Load>>,
    pub(super) health: watch::Receiver<Health>,
}

pub(super) type Entries = Arc<BTreeMap<Id, Entry>>;

/// A peer's description of itself.
#[derive(Debug, Clone)]
pub struct Reported {
    /// The name it is shown under.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Whether it gets requests of this node.
    pub use_: Use,
    /// Its latest report.
    pub report: Arc<Report>,
    /// How busy it is.
    pub load: Arc<Load>,
}

/// Who there is. Clones see the same.
#[derive(Debug, Clone)]
pub struct Directory {
    /// This node's name and ID.
    pub(super) me: Arc<(NodeName, Id)>,
    pub(super) entries: watch::Receiver<Entries>,
    pub(super) unanswering: watch::Receiver<Arc<Unanswering>>,
    pub(super) look_ups: watch::Receiver<LookUps>,
    pub(super) inviter: Option<Arc<(Id, Vec<PeerAddress>)>>,
    pub(super) trust: watch::Receiver<Arc<Snapshot>>,
    pub(super) forget: mpsc::Sender<Id>,
}

impl Directory {
    /// All peers that are pinned or have proved a key since the start, by name.
    pub fn views(&self) -> Vec<PeerView> {
        let trust = self.trust.borrow().clone();
        let entries = self.entries.borrow().clone();
        let mut views: Vec<PeerView> = entries.iter().map(|(id, entry)| entry.view(*id, &trust)).collect();
        views.extend(trust.pins().filter(|pin| !entries.contains_key(&pin.id)).map(|pin| PeerView {
            // One that is known and connected has the name.
            name: match entries.values().any(|entry| entry.label.is(pin.name.as_str())) {
                true => pin.name.with_suffix(&pin.id.short()),
                false => pin.name.clone(),
            },
            id: pin.id,
            address: pin.address.as_deref().and_then(|address| address.parse().ok()),
            state: if pin.trust == Trust::Revoked { PeerState::Refused } else { PeerState::Unreachable },
            trust: pin.trust,
            use_: pin.use_,
            scope: pin.scope,
            remote_scope: None,
            denial: None,
            voucher: pin.voucher,
            vouched_by: trust.vouchers_of(&pin.id),
            provider: false,
            api: ServerKind::default(),
            models: Vec::new(),
            loaded: Vec::new(),
            inflight: 0,
            direct: 0,
            most_loaded: None,
            draining: false,
            numbers: BTreeMap::new(),
            rtt_us: 0,
            problem: None,
            version: String::new(),
            digests: BTreeMap::new(),
        }));
        for unusable in self.unusable() {
            let Some(view) = views.iter_mut().find(|view| Some(view.id) == unusable.id) else { continue };
            let told = unusable.explanation();
            view.problem = Some(match view.problem.take() {
                // The last error says the same as the other side's code.
                Some(problem) if view.denial.is_none() || view.remote_scope.is_some() => format!("{problem}; {told}"),
                _ => told,
            });
        }
        for view in &mut views {
            // As its owner wants it, for everybody: nothing that a person has to mend, and so in no list of problems.
            let denial = view.denial.filter(|denial| !denial.is_personal() && !view.provider);
            view.problem = view.problem.take().or(denial.map(|denial| denial.reason(&self.me.0)));
        }
        views.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        views
    }

    /// The report of each connected peer that shares something.
    pub fn reports(&self) -> Vec<Reported> {
        let entries = self.entries.borrow().clone();
        let trust = self.trust.borrow().clone();
        let connected = entries.iter().filter(|(_, entry)| entry.is_connected());
        let reported = connected.filter_map(|(id, entry)| {
            let live = entry.live.as_ref()?;
            Some(Reported {
                name: entry.label.clone(),
                id: *id,
                use_: entry.standing(*id, &trust).use_,
                report: live.report.borrow().clone(),
                load: live.load.borrow().clone(),
            })
        });
        reported.filter(|reported| reported.report.provider).collect()
    }

    /// Conflicts between nodes that are connected now, a sentence each: what, and behind an arrow what ends it.
    pub fn conflicts(&self) -> Vec<String> {
        let (trust, entries) = (self.trust.borrow().clone(), self.entries.borrow().clone());
        let conflict = |(id, entry): (&Id, &Entry)| Some(format!("{}: {}", entry.label, entry.conflict(&trust, *id)?));
        entries.iter().filter(|(_, entry)| entry.is_connected()).filter_map(conflict).collect()
    }

    /// The first-use window as it is at `now`, in seconds since 1970.
    pub fn window(&self, now: u64) -> Window {
        self.trust.borrow().window(now)
    }

    /// A person has forgotten these peers: they are shown no longer, unless they are connected.
    pub async fn forget(&self, ids: impl IntoIterator<Item = Id>) {
        for id in ids {
            // An error means that the node stops.
            let _ = self.forget.send(id).await;
        }
    }

    /// The connected peers as endpoints, as they come and go.
    pub fn endpoints(&self) -> impl Stream<Item = Result<Change<Id, Arc<dyn Endpoint>>, Infallible>> + Send + use<> {
        let state = (self.entries.clone(), BTreeMap::<Id, Arc<Remote>>::new(), VecDeque::new(), true);
        futures_util::stream::unfold(state, |(mut entries, mut known, mut changes, mut fresh)| async move {
            loop {
                if let Some(change) = changes.pop_front() {
                    return Some((Ok(change), (entries, known, changes, fresh)));
                }
                if !fresh && entries.changed().await.is_err() {
                    return None;
                }
                fresh = false;
                let now = live(&entries.borrow_and_update());
                changes.extend(known.keys().filter(|id| !now.contains_key(id)).map(|id| Change::Remove(*id)));
                for (id, remote) in &now {
                    if known.get(id).is_none_or(|before| !Arc::ptr_eq(before, remote)) {
                        changes.push_back(Change::Insert(*id, Arc::clone(remote) as Arc<dyn Endpoint>));
                    }
                }
                known = now;
            }
        })
    }
}

fn live(entries: &Entries) -> BTreeMap<Id, Arc<Remote>> {
    entries.iter().filter_map(|(id, entry)| Some((*id, Arc::clone(&entry.live.as_ref()?.remote)))).collect()
}

impl Entry {
    /// Whether readers of the directory see the same in both.
    pub(super) fn shows_the_same(&self, other: &Self) -> bool {
        (&self.peer, &self.label, self.namesake, self.dialled)
            == (&other.peer, &other.label, other.namesake, other.dialled)
    }

    /// What the book says of it, as far as it lends.
    pub(super) fn standing(&self, id: Id, trust: &Snapshot) -> Standing {
        let standing = trust.standing(&id);
        let provides = self.live.as_ref().is_some_and(|live| live.report.borrow().provider);
        if provides { standing.as_provider() } else { standing }
    }

    /// Why it does not serve this node in particular, if it shares something.
    pub(super) fn refuses(&self, report: &Report) -> Option<Denial> {
        let refuses = report.provider && report.scope == Scope::None;
        refuses.then(|| report.denial.unwrap_or(Denial::Unknown))
    }

    pub(super) fn is_connected(&self) -> bool {
        self.live.as_ref().is_some_and(|live| *live.health.borrow() != Health::Gone)
    }

    fn view(&self, id: Id, trust: &Snapshot) -> PeerView {
        let standing = self.standing(id, trust);
        let report = self.live.as_ref().map(|live| live.report.borrow().clone()).unwrap_or_default();
        let load = self.live.as_ref().map(|live| live.load.borrow().clone()).unwrap_or_default();
        let connected = self.is_connected();
        PeerView {
            name: self.label.clone(),
            id,
            address: Some(self.live.as_ref().map_or(self.peer.address, |live| live.connection.address())),
            state: match connected {
                true if self.refuses(&report).is_some() => PeerState::Refused,
                true => PeerState::Connected,
                false if self.peer.refused || standing.is_revoked() => PeerState::Refused,
                false if self.dialled => PeerState::Connecting,
                false => PeerState::Unreachable,
            },
            trust: standing.trust,
            use_: standing.use_,
            scope: standing.scope,
            // Before its first report nothing is known.
            remote_scope: (connected && *report != Report::default()).then_some(report.scope),
            denial: if connected { report.denial } else { self.peer.denial },
            voucher: trust.is_voucher(&id),
            vouched_by: trust.vouchers_of(&id),
            provider: report.provider,
            api: report.api,
            models: report.models.keys().cloned().collect(),
            loaded: load.loaded().map(str::to_owned).collect(),
            inflight: load.inflight,
            direct: load.direct,
            most_loaded: load.most_loaded,
            draining: report.draining,
            numbers: Numbers::of(&report, &load),
            rtt_us: match (&self.live, connected) {
                (Some(live), true) => u64::try_from(live.connection.rtt().as_micros()).unwrap_or(u64::MAX),
                _ => 0,
            },
            problem: self.problem(id, trust),
            version: self.peer.version.clone(),
            digests: report.models.iter().map(|(name, model)| (name.clone(), model.digest.clone())).collect(),
        }
    }

    fn problem(&self, id: Id, trust: &Snapshot) -> Option<String> {
        let name = &self.peer.name;
        if trust.standing(&id).is_revoked() {
            // As somebody here wants it.
            return None;
        }
        if let Some(conflict) = self.conflict(trust, id) {
            return Some(conflict);
        }
        match trust.name_conflict(&id, name) {
            Some(NameConflict { with, revoked: true }) => {
                return Some(format!(
                    "{name} is the name of a revoked key, {with}. This peer, with a new key, is blocked → to let it in: ollana \
                     trust {id}; to let any new key have the name: ollana forget --name {name}"
                ));
            }
            Some(NameConflict { with, revoked: false }) => {
                return Some(format!(
                    "name conflict: {name} is known with a different key, {with}. This peer is blocked → if that machine was set \
                     up anew: ollana trust {id}"
                ));
            }
            None => {}
        }
        // Of the other side's words none may look like advice of ours.
        self.peer.problem.as_ref().map(|problem| problem.replace('→', "-"))
    }

    /// A conflict with another node that is connected now, and what ends it.
    fn conflict(&self, trust: &Snapshot, id: Id) -> Option<String> {
        if self.peer.cloned.is_some() {
            return Some(
                "two live nodes use this key (a copied disk?) → on one of them stop ollana, delete identity.key from its state \
                 directory and start it again"
                    .to_owned(),
            );
        }
        let name = &self.peer.name;
        let rename = "rename one of them: `ollana config set name NAME` there, and restart it";
        Some(match self.namesake? {
            Namesake::ThisNode => format!("this node is named {name} too → {rename}"),
            Namesake::Peer(other) if trust.name_conflict(&id, name).is_some_and(|conflict| conflict.with == other) => {
                format!(
                    "name conflict: {name} is known with a different key, {other}, and that node is connected too. This peer is \
                     blocked → if both machines are yours, {rename}"
                )
            }
            Namesake::Peer(other) => format!("another connected node, {other}, is named {name} too → {rename}"),
        })
    }
}
