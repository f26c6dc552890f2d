//! The book as the rest of the program has it: it reads snapshots, and asks for changes.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use super::writer::Writer;
use super::{Encounter, Imported, Invited, List, Met, Snapshot, Standing, TrustError, TrustPolicy};
use crate::id::{Id, NodeName, Scope};

/// How often to look whether the file was changed: what a person writes into it should count before they wonder. A look is
/// one `stat`, and no watch of a directory that every file system does differently.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The trust book: clones share it. The only writer of `trust.toml` while it is open.
#[derive(Clone)]
pub struct Book {
    path: Arc<Path>,
    pub(super) writer: Arc<Mutex<Writer>>,
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
            if self.snapshot().opening.runs() {
                // Fails only while the runtime ends.
                let _ = self
                    .write(|writer| {
                        writer.keep_time();
                        Ok(())
                    })
                    .await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The writer goes along into the blocking task. So no runtime thread waits for a disk, and a caller that goes away
    /// in between leaves neither half a change nor a second writer.
    pub(super) async fn write<T: Send + 'static>(
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
