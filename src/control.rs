//! How the command line drives a running node: HTTP and JSON over a Unix socket in the state directory.
//!
//! Whoever may open the socket is the owner: the file is 0600 from the moment it has its name, and the kernel's word on
//! who connects is asked as well. What the socket shows are snapshots ([`Mesh`]); what it changes it asks of the one that
//! owns the state (the trust [`Book`], the token that ends the node).
//!
//! | request | answer |
//! |---|---|
//! | `GET /status`, `/peers`, `/unusable`, `/models`, `/id` | [`StatusView`], [`PeerView`]s, [`Unusable`]s, [`ModelView`]s, [`IdView`] |
//! | `POST /resolve`, [`PeerRequest`] | [`Candidate`]: which peer a text means |
//! | `POST /pair`, [`PeerRequest`] | a line of JSON for each of the [`News`](crate::pairing::News), as they come; ending the connection withdraws |
//! | `POST /deny`, [`PeerRequest`] | `null`: the person said no to a code |
//! | `POST /keep`, [`KeepRequest`] | [`Keeping`]: a model's name stands for what that node has, from now on |
//! | `POST /trust`, [`TrustRequest`] | [`Changed`] |
//! | `POST /revoke`, [`PeerRequest`] | [`Changed`] |
//! | `POST /forget`, [`ForgetRequest`] | [`Forgotten`](crate::trust::Forgotten): a peer that is gone is forgotten, or a name is freed |
//! | `POST /invite`, [`InviteRequest`] | [`InviteView`] |
//! | `GET /invitations` | [`InvitedView`]s |
//! | `POST /uninvite`, [`InvitationRequest`] | the [`InvitedView`] that is no more |
//! | `GET /trusted` | [`List`]: what people decided on this node |
//! | `POST /import`, [`ImportRequest`] | [`Imported`](crate::trust::Imported): a list is taken over |
//! | `POST /vouch`, [`VouchRequest`] | [`VouchView`]: this node vouches for a peer |
//! | `GET /vouches` | [`VouchView`]s |
//! | `POST /unvouch`, [`PeerRequest`] | `null`: it vouches for that peer no longer |
//! | `POST /stop` | [`Stopping`]; the node drains and its process ends |
//!
//! An error is `{"error": "…"}`, for an ambiguous peer with its `candidates`.

mod answers;
mod client;
mod models;
mod others;
mod resolve;
mod server;
mod state;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

pub use client::{Client, ClientError, Lines};
pub use models::{Catalog, ModelNode, ModelView, models};
pub use others::{others, quoted};
pub use resolve::{Candidate, Unresolved, candidates, resolve};
pub use server::{ControlError, Server};
pub use state::{StateDir, StateError};

use crate::digests::{Digests, Kept};
use crate::exchange::{Account, Load, Numbers, ServerKind, Unusable};
use crate::id::{Id, NodeName, Scope};
use crate::pairing::Desk;
use crate::peers::{PeerState, PeerView};
use crate::trust::{Book, Invited, List, Policy, Said, Snapshot, TrustPolicy, Voucher, Window};

/// The name of the socket in the state directory.
pub const SOCKET: &str = "ollana.sock";

/// What may be seen of a running node: snapshots, taken when somebody asks.
pub trait Mesh: Send + Sync + 'static {
    /// The node itself.
    fn info(&self) -> Info;

    /// Where other nodes may find it.
    fn addresses(&self) -> Vec<SocketAddr> {
        vec![self.info().mesh]
    }

    /// Its Ollama.
    fn ollama(&self) -> OllamaView;

    /// The nodes it knows of.
    fn peers(&self) -> Vec<PeerView>;

    /// How busy and how fast the models of this node's own server are, if it shares one.
    fn numbers(&self) -> BTreeMap<String, Numbers> {
        BTreeMap::new()
    }

    /// How busy that server is.
    fn load(&self) -> Arc<Load> {
        Arc::default()
    }

    /// Who has which models, this node included if it shares its own.
    fn catalogs(&self) -> Vec<Catalog>;

    /// Which weights a model's name stands for on this node, if it was used.
    fn kept(&self, _model: &str) -> Option<Kept> {
        None
    }

    /// The nodes that are known of and cannot be used, and why.
    fn unusable(&self) -> Vec<Unusable> {
        Vec::new()
    }

    /// How the latest requests of this node's applications went, the latest first.
    fn requests(&self) -> Vec<Account> {
        Vec::new()
    }

    /// Conflicts of names or keys between nodes that are connected now, a sentence each: two nodes with one name, a cloned
    /// key. Behind an arrow stands what ends it.
    fn conflicts(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether providers that are new are used as they are met.
    fn first_use(&self) -> Window {
        Window::default()
    }

    /// These peers are shown no longer, unless they are connected.
    fn forget<'a>(&'a self, _ids: Vec<Id>) -> BoxFuture<'a, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// What the socket needs of the node.
#[derive(Clone)]
pub struct Handles {
    /// Snapshots of it.
    pub mesh: Arc<dyn Mesh>,
    /// Who may do what.
    pub book: Book,
    /// Where people and peers agree to be paired.
    pub desk: Desk,
    /// Which weights each model's name stands for.
    pub digests: Digests,
    /// What the book believes of new keys; `revoke` words its advice by it.
    pub policy: TrustPolicy,
    /// Ends the node.
    pub stop: CancellationToken,
    /// How long it will let answers run on, which `stop` tells.
    pub drain: Duration,
}

/// What does not change, or seldom, while a node runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Info {
    /// The node's name.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Ollana's version.
    pub version: String,
    /// `auto`, `client` or `server`.
    pub mode: String,
    /// Where applications find it, if it has a listener.
    pub listen: Option<SocketAddr>,
    /// All addresses of the listener; that one is the first.
    #[serde(default)]
    pub listeners: Vec<SocketAddr>,
    /// Where other nodes find it.
    pub mesh: SocketAddr,
    /// Where the status page is, if there is one.
    pub status_page: Option<SocketAddr>,
    /// Where its state is.
    pub state_dir: PathBuf,
    /// The configuration file that it read at its start, or would have read if it was there.
    #[serde(default)]
    pub config: Option<PathBuf>,
    /// The ports that it did not get and replaced by others, since nobody chose them.
    #[serde(default)]
    pub taken: Taken,
    /// How many files and sockets its process may have open; nothing if there is no bound.
    #[serde(default)]
    pub open_files: Option<u64>,
    /// Seconds since it started.
    pub uptime_s: u64,
}

/// Default ports that were taken when the node started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Taken {
    /// The listener's.
    pub listen: Option<u16>,
    /// The UDP port for other nodes.
    pub mesh: Option<u16>,
}

impl Info {
    /// Where applications find it, for people; nothing without a listener.
    pub fn applications(&self) -> Option<String> {
        let addresses: Vec<_> = self.listeners.iter().map(|at| format!("http://{at}")).collect();
        (!addresses.is_empty()).then(|| addresses.join(" and "))
    }
}

/// The local Ollama as `status` shows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OllamaView {
    /// Where it is, or would be.
    pub url: String,
    /// Whether it answers as one of the servers that can be shared.
    pub healthy: bool,
    /// Which version it says it is, if it is an Ollama.
    pub version: Option<String>,
    /// What it speaks, if it is there.
    #[serde(default)]
    pub api: Option<ServerKind>,
    /// Which program it says it is, if it is no Ollama.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Whether it is shared with other nodes at this moment.
    #[serde(default)]
    pub lent: bool,
    /// Why it is not shared at this moment though it could be: what its owner set for times like this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_lent: Option<String>,
    /// How many fields of peers' requests were ignored, since they would keep a model in memory or have it loaded anew.
    #[serde(default)]
    pub ignored: u64,
    /// Why it is not healthy, or why it is never shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// A word for programs that says which problem it is: `nothing`, `silent`, `not-ready`, `needs-key`, `other-program`,
    /// `ollana`, `broken`, `elsewhere`, `unresolved`
    /// or `address`. Nothing where it is never shared.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem_code: Option<String>,
    /// Flaws of a healthy server, a sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flaws: Vec<String>,
}

/// `ollana status --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StatusView {
    /// The node itself.
    #[serde(flatten)]
    pub info: Info,
    /// Its Ollama.
    pub ollama: OllamaView,
    /// How busy and how fast its models are, as far as anything is known.
    #[serde(default)]
    pub numbers: BTreeMap<String, Numbers>,
    /// Requests that its server works on and that its owner's applications sent there themselves.
    #[serde(default)]
    pub direct: u32,
    /// How many models its server keeps in memory, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub most_loaded: Option<u32>,
    /// How many peers are connected.
    pub peers: usize,
    /// How many are known at all.
    pub peers_known: usize,
    /// The node's process.
    pub pid: u32,
    /// See [`Mesh::conflicts`].
    pub conflicts: Vec<String>,
    /// See [`Mesh::unusable`].
    #[serde(default)]
    pub unusable: Vec<Unusable>,
    /// See [`Mesh::first_use`].
    #[serde(default)]
    pub first_use: Window,
}

impl StatusView {
    /// A snapshot.
    pub fn of(mesh: &dyn Mesh) -> Self {
        let (peers, load) = (mesh.peers(), mesh.load());
        Self {
            info: mesh.info(),
            ollama: mesh.ollama(),
            numbers: mesh.numbers(),
            direct: load.direct,
            most_loaded: load.most_loaded,
            peers: peers.iter().filter(|peer| peer.state == PeerState::Connected).count(),
            peers_known: peers.len(),
            pid: std::process::id(),
            conflicts: mesh.conflicts(),
            unusable: mesh.unusable(),
            first_use: mesh.first_use(),
        }
    }
}

/// `ollana id --json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IdView {
    /// The key's ID.
    pub id: Id,
    /// The node's name.
    pub name: NodeName,
}

/// Names a peer: by name, ID, beginning of an ID, or address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PeerRequest {
    /// What was typed.
    pub peer: String,
}

/// The request of `ollana forget`: one of the two.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForgetRequest {
    /// Which peer, as in [`PeerRequest`].
    Peer(String),
    /// The name that others may have.
    Name(String),
}

/// What `ollana trust` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrustRequest {
    /// Which peer, as in [`PeerRequest`].
    pub peer: String,
    /// What it may do here.
    pub scope: Scope,
    /// Whether prompts are sent there.
    #[serde(rename = "use")]
    pub use_: bool,
    /// Whether the servers that it vouches for are used too; nothing leaves that as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voucher: Option<bool>,
}

/// What `ollana models --keep` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KeepRequest {
    /// A model's name.
    pub model: String,
    /// The node whose weights it is to stand for: this one, or a peer as in [`PeerRequest`].
    pub peer: String,
}

/// What a model's name stands for now.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keeping {
    /// The model's name, as the node lists it.
    pub model: String,
    /// The digest of its weights.
    pub digest: String,
    /// The node that has them.
    pub peer: NodeName,
}

/// What `ollana trust import` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImportRequest {
    /// What to take over.
    pub list: List,
    /// Whether whom it does not name is no longer trusted.
    pub replace: bool,
}

/// What `ollana invite` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InviteRequest {
    /// How many nodes may redeem it.
    pub uses: u32,
    /// Until when, in seconds since 1970.
    pub until: u64,
    /// What they may do here.
    pub scope: Scope,
    /// Whether they are sent prompts.
    #[serde(rename = "use")]
    pub use_: bool,
    /// Where they find this node, if not where it thinks.
    pub addresses: Vec<String>,
}

/// A new invitation, for whoever asked and nobody else.
#[derive(Clone, Serialize, Deserialize)]
pub struct InviteView {
    /// What to hand over.
    pub text: String,
}

/// An invitation as its maker may see it. There is no secret in it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InvitedView {
    /// Which one of those that are kept.
    pub place: u32,
    /// Which one of all: whoever holds the invitation knows it.
    pub number: String,
    /// What whoever redeems it may do here.
    pub scope: Scope,
    /// Whether they are sent prompts.
    #[serde(rename = "use")]
    pub use_: bool,
    /// How many nodes may redeem it.
    pub uses: u32,
    /// Until when, in seconds since 1970.
    pub until: u64,
    /// Who has.
    pub redeemed: Vec<Id>,
    /// The names of those, in the same order.
    #[serde(default)]
    pub names: Vec<NodeName>,
}

impl InvitedView {
    /// An invitation, with the names of who came as the book has them.
    pub fn of(invited: &Invited, book: &Snapshot) -> Self {
        let name = |id: &Id| book.pin(id).map_or_else(|| NodeName::lossy(&id.short()), |pin| pin.name.clone());
        let Invited { place, number, scope, use_, uses, until, redeemed, .. } = invited.clone();
        let names = redeemed.iter().map(name).collect();
        Self { place, number, scope, use_, uses, until, redeemed, names }
    }
}

/// Names an invitation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct InvitationRequest {
    /// Its place in the list, its number, or the beginning of that.
    pub number: String,
}

/// What `ollana vouch` asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VouchRequest {
    /// For whom, as in [`PeerRequest`].
    pub peer: String,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

/// `ollana vouch --list --json`: one peer for which this node vouches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VouchView {
    /// What it is called.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Where it was last reached.
    pub address: Option<String>,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

impl From<&Said> for VouchView {
    fn from(said: &Said) -> Self {
        let Said { id, name, address, until } = said.clone();
        Self { name, id, address, until }
    }
}

/// What became of a peer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changed {
    /// The peer as it stands now.
    #[serde(flatten)]
    pub peer: Candidate,
    /// What a person should know about the consequences, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// The answer to `POST /stop`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stopping {
    /// The process that is going to end.
    pub pid: u32,
    /// How long it lets running answers go on.
    pub drain_s: u64,
}

/// What an error looks like on the socket.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ErrorView {
    /// A sentence: what, why, what to do.
    pub error: String,
    /// Whom an ambiguous text could mean.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub candidates: Vec<Candidate>,
}

/// How a peer's key came to be known, for people: who vouches for it, or that it is a voucher itself.
pub fn trust_text(trust: crate::trust::Trust, voucher: bool, vouched_by: &[Voucher]) -> String {
    let by: Vec<&str> = vouched_by.iter().map(|voucher| voucher.name.as_str()).collect();
    match (by.is_empty(), voucher) {
        (false, _) => format!("{trust} by {}", by.join(", ")),
        (true, true) => format!("{trust}, voucher"),
        (true, false) => trust.to_string(),
    }
}

/// Those of the nodes that cannot be used that are no peers: nobody there has proved a key to this node.
pub fn not_peers<'a>(peers: &[PeerView], unusable: &'a [Unusable]) -> Vec<&'a Unusable> {
    let is_peer = |node: &&Unusable| peers.iter().any(|peer| Some(peer.id) == node.id);
    unusable.iter().filter(|node| !is_peer(node)).collect()
}

/// What to say where there is nothing to withdraw.
pub fn no_vouch(peer: &Candidate) -> String {
    format!("this node does not vouch for {}; `ollana vouch --list` shows for whom it does", peer.name)
}

/// The advice after a key is revoked: its owner may make a new one, which first use would let in under another name.
pub fn revoke_advice(policy: &TrustPolicy, peer: &Candidate) -> String {
    let name = peer.plain_name();
    let waits = format!(
        "a new key with the name {name} waits for `ollana trust`, unless you free the name: ollana forget --name {name}"
    );
    match policy.inbound {
        Policy::Paired => waits,
        Policy::FirstUse => format!(
            "{waits}. The owner of this key can come back with a new one under another name, since this node accepts keys \
             that it meets for the first time; to prevent that: ollana config set trust.inbound paired, and restart the node"
        ),
    }
}

/// Seconds as people say them: `42s`, `5m 10s`, `3h 12m`, `9d 4h`.
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m {}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h {minutes}m"),
        (days, hours, _) => format!("{days}d {hours}h"),
    }
}
