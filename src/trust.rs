//! Who may do what: the trust book, its store and a watch of snapshots.
//!
//! A **pin** records that a key was met and proved. First use makes pins as keys are met: lending (who may use our
//! Ollama) gives `infer`, using (whose Ollama gets our prompts) ends with the first-use window. `manage` is only ever
//! given by a person, and what a person decided no meeting changes. The rules are in `ledger`, without I/O or clock; the
//! file's form is in `file`; `writer` keeps the two in step.
//!
//! Over the pins lies what vouchers say ([`Statement`]): whom nobody here has decided on is used by a voucher's word. It is
//! worked out and never stored as a pin, and `vouching` has its rules.
//!
//! Nothing is granted that is not on the disk: a change counts, and watchers see it, once it was written. What somebody
//! else writes there counts within a second ([`Book::keep_up`]).

mod file;
mod invitations;
mod ledger;
mod list;
mod origins;
mod vouching;
mod writer;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, watch};

use crate::id::{Id, NodeName, Scope, Use};
use crate::private_file::FileError;
pub use invitations::Invited;
pub use list::{Decision, Imported, List, ListError, Listed};
pub use vouching::{MAX_VOUCH_SPAN, MAX_VOUCHES, Said, Statement, VOUCH_SPAN, Vouch, Voucher};
use writer::Writer;

/// The book's file name in the state directory.
pub const TRUST_FILE: &str = "trust.toml";

/// Pins by first use that are kept. Four times what a /24 network can hold, and with some 250 bytes each the file is
/// still written in milliseconds.
pub const MAX_FIRST_USE: usize = 1024;

/// How often to look whether the file was changed: what a person writes into it should count before they wonder. A look is
/// one `stat`, and no watch of a directory that every file system does differently.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a key came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Pinned by the program when it was met.
    FirstUse,
    /// Pinned by a person.
    Trusted,
    /// Used because somebody who is trusted as a voucher says so. Never in the file: it is worked out.
    Vouched,
    /// Refused for good, until a person trusts it again.
    Revoked,
    /// Not pinned.
    #[default]
    None,
}

/// What the book says of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// How the key came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
}

/// What happens to keys that nobody has decided on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Lending: may they use our Ollama?
    pub inbound: Policy,
    /// Using: do they get our prompts?
    pub outbound: Policy,
    /// How long after the first provider new ones are used without asking.
    pub first_use_window: Duration,
}

/// One direction's policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// Keys are pinned when they are met.
    #[default]
    FirstUse,
    /// Nothing without `ollana trust`; what first use pinned earlier does not count either.
    Paired,
}

/// One key in the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The key.
    pub id: Id,
    /// What its node is called: a label, never authority.
    pub name: NodeName,
    /// Where it was last reached, or came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// How it came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
    /// Whether the servers that it vouches for are used too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub voucher: bool,
    /// When it was pinned, in seconds since 1970.
    pub first_met: u64,
    /// When it was last met, in seconds since 1970, to the hour.
    pub last_met: u64,
}

/// A key that has just been proved, and what its node says of itself.
#[derive(Debug, Clone)]
pub struct Met {
    /// The proved key.
    pub id: Id,
    /// The name its hello gives.
    pub name: NodeName,
    /// Where it is.
    pub address: Option<String>,
    /// Who opened the connection.
    pub direction: Direction,
}

/// Who opened the connection, and so which of the two risks it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The peer: it wants to use us.
    Inbound,
    /// We did: we may want to use it. To be met again when it becomes a provider later.
    Outbound {
        /// Whether it lends an Ollama.
        provider: bool,
    },
}

/// What came of a meeting.
#[derive(Debug)]
pub struct Encounter {
    /// What the peer may do and is used for. Of a peer without a pin this says more than a [`Snapshot`] can.
    pub standing: Standing,
    /// What people should hear of.
    pub news: Option<News>,
    /// To be kept as long as the connection lasts.
    pub presence: Presence,
}

/// As long as one of these exists the peer is not idle, and its pin is not given up for another.
#[derive(Debug, Clone)]
pub struct Presence(#[expect(dead_code, reason = "held for its count")] Arc<()>);

/// What a meeting has to tell. The book has logged it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// Pinned by first use.
    FirstMet,
    /// It waits for a person to type `ollana trust`.
    Waiting,
    /// It claims a name that another key holds. That gives it nothing.
    NameTaken {
        /// The key that holds the name.
        by: Id,
    },
    /// A known key bears a new name.
    Renamed {
        /// The name before.
        from: NodeName,
    },
    /// Too many keys are new: this one is not pinned. Perhaps later.
    Crowded,
}

/// The book at one moment, as it is in effect under the node's policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pins: BTreeMap<Id, Pin>,
    /// By whose word a key is used.
    vouched_by: BTreeMap<Id, Vec<Id>>,
    /// Whom this node vouches for.
    vouches: Vec<Said>,
    /// When something in it has had its time, in seconds since 1970.
    expires: Option<u64>,
}

/// The trust book: clones share it. The only writer of `trust.toml` while it is open.
#[derive(Clone)]
pub struct Book {
    path: Arc<Path>,
    writer: Arc<Mutex<Writer>>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    policy: TrustPolicy,
}

// === impl Book ===

impl Book {
    /// Opens the book at `path`. No file is an empty book; none is made before there is something to write.
    ///
    /// # Errors
    /// If the file cannot be read, is a link, open to others, damaged, or of a later version. It is left as it is: what
    /// it says of revoked keys must not get lost by a guess.
    pub fn open(path: &Path, policy: TrustPolicy) -> Result<Self, TrustError> {
        let (writer, snapshots) = Writer::open(path, policy)?;
        Ok(Self { path: path.into(), writer: Arc::new(Mutex::new(writer)), snapshots, policy })
    }

    /// The snapshots: one after each change.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// The book as it is now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// The policy it was opened with.
    pub fn policy(&self) -> TrustPolicy {
        self.policy
    }

    /// A key was proved: pins it if first use may, and says where it stands.
    ///
    /// # Errors
    /// If what the meeting grants cannot be written. Then it is not granted.
    pub async fn meet(&self, met: Met) -> Result<Encounter, TrustError> {
        self.write(move |writer| writer.meet(&met)).await
    }

    /// A person trusts this key: with `scope` at our gate, and our prompts if `use_`. Says how it stood before. A voucher
    /// stays one.
    ///
    /// # Errors
    /// If it cannot be written. Then all is as it was.
    pub async fn trust(
        &self,
        id: Id,
        name: NodeName,
        address: Option<String>,
        scope: Scope,
        use_: bool,
    ) -> Result<Standing, TrustError> {
        self.trust_voucher(id, name, address, scope, use_, None).await
    }

    /// A person refuses this key from now on, met or not. Says how it stood before.
    ///
    /// # Errors
    /// If it cannot be written. It is refused all the same, but only until the program ends; the error says that.
    pub async fn revoke(&self, id: Id) -> Result<Standing, TrustError> {
        self.write(move |writer| writer.revoke(id)).await
    }

    /// A list of what people decided, for other nodes.
    pub fn export(&self) -> List {
        List::of(&self.snapshot())
    }

    /// A person takes over a list of decisions, but for what it says of `me`. With `replace`, whom the list does not name is
    /// no longer trusted; keys that are revoked here stay so, whatever it says.
    ///
    /// # Errors
    /// If it cannot be written. Then all is as it was.
    pub async fn import(&self, list: List, me: Option<Id>, replace: bool) -> Result<Imported, TrustError> {
        self.write(move |writer| writer.decide(|ledger, now| ledger.import(&list, me, replace, now))).await
    }

    /// Keeps an invitation, so that it can be redeemed.
    ///
    /// # Errors
    /// If it cannot be written, or there are too many.
    pub async fn invite(&self, invited: Invited) -> Result<(), TrustError> {
        self.write(move |writer| writer.decide(|ledger, now| ledger.invite(invited, now))?).await
    }

    /// The invitations that can be redeemed still, and those that were, until they expire.
    ///
    /// # Errors
    /// If the runtime ends.
    pub async fn invitations(&self) -> Result<Vec<Invited>, TrustError> {
        self.write(|writer| Ok(writer.invitations())).await
    }

    /// Takes an invitation back. Says whether there was one of this number. Who redeemed it stays trusted.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn uninvite(&self, number: String) -> Result<bool, TrustError> {
        self.write(move |writer| writer.decide(|ledger, _| ledger.uninvite(&number))).await
    }

    /// Somebody redeems an invitation: `is_proved` is asked whether they have proved to hold the one with this public key
    /// (or with none: whoever asks must not learn from the time it takes whether there is one). If so, and the invitation
    /// is good, the key is trusted, in one write with the count. Gives the public key back if it was.
    ///
    /// # Errors
    /// If it cannot be written. Then nothing was granted or counted.
    pub async fn redeem(
        &self,
        number: String,
        met: Met,
        is_proved: impl FnOnce(Option<&str>) -> bool + Send + 'static,
    ) -> Result<Option<String>, TrustError> {
        self.write(move |writer| {
            writer.refresh()?;
            let key = writer.invitation_key(&number);
            if !is_proved(key.as_deref()) {
                return Ok(None);
            }
            let redeemed = writer.decide(|ledger, now| ledger.redeem(&number, &met, now))?;
            Ok(key.filter(|_| redeemed))
        })
        .await
    }

    /// Takes in what others write to the file, and takes out what has had its time, as long as it is polled. What cannot be
    /// used is told once, and what was in force before stays so.
    pub async fn keep_up(&self) {
        let mut known = None;
        loop {
            let stamp = Stamp::of(&self.path);
            if known.as_ref() != Some(&stamp) {
                known = Some(stamp);
                match self.write(Writer::refresh).await {
                    Ok(_) | Err(TrustError::Interrupted) => {}
                    Err(error) => tracing::error!(
                        "{error}. Until then what it said before is in force, and nobody new can be trusted"
                    ),
                }
            }
            self.expire().await;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The writer goes along into the blocking task. So no runtime thread waits for a disk, and a caller that goes away
    /// in between leaves neither half a change nor a second writer.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut Writer) -> Result<T, TrustError> + Send + 'static,
    ) -> Result<T, TrustError> {
        let mut writer = self.writer.clone().lock_owned().await;
        tokio::task::spawn_blocking(move || change(&mut writer)).await.map_err(|_| TrustError::Interrupted)?
    }
}

/// What changes when a file is written, replaced, or given other permissions.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Option<[i64; 6]>);

impl Stamp {
    fn of(path: &Path) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let of = |file: std::fs::Metadata| {
            let (inode, size) = (file.ino().cast_signed(), file.size().cast_signed());
            [inode, size, file.mtime(), file.mtime_nsec(), file.ctime(), file.ctime_nsec()]
        };
        Self(std::fs::symlink_metadata(path).ok().map(of))
    }
}

impl fmt::Debug for Book {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Book").field("policy", &self.policy).finish_non_exhaustive()
    }
}

/// Why the book does not open, or does not take a change.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file or its directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// Not what this program writes.
    #[error(
        "{path} is damaged{}: {reason}. Mend it or put back a good copy; \
         moving it away forgets every decision in it, revoked keys included",
        line.map(|line| format!(" in line {line}")).unwrap_or_default()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: Option<usize>,
        /// What is wrong.
        reason: String,
    },
    /// Written by a later version.
    #[error("{path} is of version {version}, which this ollana does not know: use the ollana that wrote it")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
    /// It was there when this program started.
    #[error("{0} is gone: put it back, for revoked keys are in it. To forget all that it said, stop ollana first")]
    Gone(PathBuf),
    /// A revocation that memory has and the disk has not.
    #[error("{id} is refused, but only until this program ends, since that could not be written: {source}")]
    RevokedForNow {
        /// The refused key.
        id: Id,
        /// Why.
        source: Box<TrustError>,
    },
    /// More invitations than a person can have made.
    #[error(
        "{} invitations are open; take some back with `ollana invite --revoke`, or let them expire",
        invitations::MAX_OPEN
    )]
    TooManyInvitations,
    /// Who vouches has to know, and an administrator's word is what a voucher's users go by.
    #[error("{}", no_vouching(id, *trust))]
    NotTrusted {
        /// The key.
        id: Id,
        /// How it stands.
        trust: Trust,
    },
    /// More vouches than a voucher is believed.
    #[error(
        "this node vouches for {MAX_VOUCHES} peers, and no more are believed; `ollana vouch <peer> --withdraw` makes room"
    )]
    TooManyVouches,
    /// The runtime ends.
    #[error("ollana is shutting down")]
    Interrupted,
}

/// Why this node cannot vouch for a peer.
fn no_vouching(id: &Id, trust: Trust) -> String {
    let why = match trust {
        Trust::Revoked => "it is revoked here",
        Trust::Vouched => "this node itself goes by another's word, and that goes one step only",
        Trust::FirstUse => "this node knows it by first use only",
        Trust::None | Trust::Trusted => "nobody on this node trusts it",
    };
    format!("cannot vouch for {id}: {why}. Compare its ID, `ollana trust` it, and then vouch for it")
}

// === impl Snapshot ===

impl Snapshot {
    /// What the book says of `id`; of a key without a pin, nothing: [`Standing::default`].
    pub fn standing(&self, id: &Id) -> Standing {
        self.pins.get(id).map(Pin::standing).unwrap_or_default()
    }

    /// The pin of `id`.
    pub fn pin(&self, id: &Id) -> Option<&Pin> {
        self.pins.get(id)
    }

    /// All pins, tombstones included, in the order of their IDs.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values()
    }
}

// === impl Pin ===

impl Pin {
    /// What the book says of this key.
    pub fn standing(&self) -> Standing {
        Standing { trust: self.trust, use_: self.use_, scope: self.scope }
    }
}

// === impl Standing ===

impl Standing {
    /// Whether it was refused by a person.
    pub fn is_revoked(&self) -> bool {
        self.trust == Trust::Revoked
    }

    /// How it stands as a provider: where nobody decided on a provider, it waits.
    #[must_use]
    pub fn as_provider(mut self) -> Self {
        if self.use_ == Use::No && matches!(self.trust, Trust::None | Trust::FirstUse) {
            self.use_ = Use::Pending;
        }
        self
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FirstUse => "first-use",
            Self::Trusted => "trusted",
            Self::Vouched => "vouched",
            Self::Revoked => "revoked",
            Self::None => "none",
        })
    }
}

// === impl TrustPolicy ===

impl Default for TrustPolicy {
    fn default() -> Self {
        // A day: whoever sets up a few machines has them all on within it.
        let first_use_window = Duration::from_secs(24 * 60 * 60);
        Self { inbound: Policy::FirstUse, outbound: Policy::FirstUse, first_use_window }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::FirstUse => "first-use",
            Self::Paired => "paired",
        })
    }
}

impl FromStr for Policy {
    type Err = ParsePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "first-use" => Ok(Self::FirstUse),
            "paired" => Ok(Self::Paired),
            _ => Err(ParsePolicyError),
        }
    }
}

/// Not a policy's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a trust policy is first-use or paired")]
pub struct ParsePolicyError;

#[cfg(test)]
mod tests;
