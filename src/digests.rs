//! One name, two digests: which weights a model's name stands for on this node.
//!
//! Two servers may hold different models under one name. A node keeps to the digest that it used first, over restarts
//! too, since embeddings would silently mix otherwise: not even while all who hold it are away is the name taken for
//! another. It is for a person to choose ([`Digests::keep`]), and it is let go once all whom it was used from hold
//! something else, as after an `ollama pull` of a newer version.
//!
//! The balancer asks and tells at each request; what it says is written a moment later, by [`Digests::keep_saved`].

mod file;

use std::collections::HashMap;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

use self::file::Store;
use crate::id::{Id, NodeName};
use crate::private_file::FileError;
use crate::route::ModelName;

/// The file's name in the state directory.
pub const DIGESTS_FILE: &str = "digests.toml";

/// Names that are kept: more than people use, and with less than 2 KB each at most the file is written in milliseconds.
/// The one that was not used for longest goes first, but for those that a person chose.
const MAX: usize = 1024;
/// Longest name in bytes, as Ollama compares it: a host of 350, and three parts of 80.
const MAX_NAME: usize = 600;
/// Longest digest in bytes: SHA-256 in hexadecimal has 64.
const MAX_DIGEST: usize = 160;
/// Nodes remembered for one digest: enough to know for whom to wait.
const MAX_HOLDERS: usize = 4;
/// What changes within this time is written at once.
const DEBOUNCE: Duration = Duration::from_secs(1);

/// The digest that each name stands for. Clones share it.
#[derive(Clone, Default)]
pub struct Digests(Arc<Inner>);

#[derive(Default)]
struct Inner {
    entries: Mutex<HashMap<ModelName, Entry>>,
    /// Whether the file lacks something.
    unsaved: AtomicBool,
    changed: Notify,
    /// Nothing where it is kept in memory only.
    store: Option<Arc<tokio::sync::Mutex<Store>>>,
}

/// What one name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Ollama's digest of the model's manifest.
    pub digest: String,
    /// From whom it was used, the latest last.
    pub holders: Vec<Holder>,
    /// Whether a person chose it.
    pub chosen: bool,
}

/// A node that a digest was used from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its key's ID.
    pub id: Id,
    /// The name it was shown under: a label for people.
    pub name: NodeName,
}

#[derive(Debug, Clone)]
struct Entry {
    kept: Kept,
    /// Whether an answer came from it. Until then a failure lets the name go, or a server that never worked could bind
    /// a name that others serve.
    answered: bool,
    /// When it was last used, in seconds since 1970.
    used: u64,
}

// === impl Digests ===

impl Digests {
    /// What the file at `path` says; none is made before there is something to write. One that is damaged is put aside,
    /// with a loud word in the log: the names are then bound anew by what is used first.
    ///
    /// # Errors
    /// If the file cannot be read or put aside, or is of a later version. It is left as it is.
    pub fn open(path: &Path) -> Result<Self, DigestsError> {
        let (store, entries) = Store::open(path)?;
        let store = Some(Arc::new(tokio::sync::Mutex::new(store)));
        Ok(Self(Arc::new(Inner { entries: Mutex::new(entries), store, ..Inner::default() })))
    }

    /// Writes what changes, a moment later, for as long as the handle is held.
    pub fn keep_saved(&self) -> AbortOnDropHandle<()> {
        let digests = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                digests.0.changed.notified().await;
                tokio::time::sleep(DEBOUNCE).await;
                digests.save().await;
            }
        }))
    }

    /// Writes what is not written yet. What cannot be is said in the log and tried again with the next change.
    pub async fn save(&self) {
        let Some(store) = &self.0.store else { return };
        let store = store.clone().lock_owned().await;
        if !self.0.unsaved.swap(false, Ordering::AcqRel) {
            return;
        }
        let entries = self.lock().clone();
        let written = tokio::task::spawn_blocking(move || store.write(&entries)).await;
        if let Ok(Err(error)) = written {
            self.0.unsaved.store(true, Ordering::Release);
            tracing::warn!("which weights the models' names stand for was not written: {error}");
        }
    }

    /// What the name stands for, if it was used.
    pub fn of(&self, model: &ModelName) -> Option<Kept> {
        self.lock().get(model).map(|entry| entry.kept.clone())
    }

    /// A request for the name is about to go to `holder`, which has this digest: before the answer, so that requests that
    /// come together stay together. `seen` is the digest that the caller found by [`of`](Self::of) when it chose; another
    /// one than that means that nobody can be waited for who holds it. `false` if that is no longer so: choose again.
    #[must_use]
    pub fn claim(&self, model: &ModelName, digest: &str, holder: Holder, seen: Option<&str>) -> bool {
        if digest.is_empty() || digest.len() > MAX_DIGEST || model.canonical().len() > MAX_NAME {
            return true;
        }
        let mut entries = self.lock();
        match entries.get_mut(model) {
            Some(entry) if entry.kept.digest == digest => {
                entry.used = now();
                if entry.kept.held_by(holder) && entry.answered {
                    drop(entries);
                    self.change();
                }
                true
            }
            Some(entry) if seen == Some(&*entry.kept.digest) => {
                let was = &entry.kept.digest;
                tracing::warn!(%model, %was, now = %digest, "nobody holds the weights that this name stood for so far");
                *entry = Entry::new(digest, holder);
                true
            }
            None if seen.is_none() => {
                insert(&mut entries, model, Entry::new(digest, holder));
                true
            }
            _ => false,
        }
    }

    /// An answer came from this digest.
    pub fn answered(&self, model: &ModelName, digest: &str) {
        let mut entries = self.lock();
        let entry = entries.get_mut(model).filter(|entry| entry.kept.digest == digest && !entry.answered);
        if let Some(entry) = entry {
            entry.answered = true;
            drop(entries);
            self.change();
        }
    }

    /// None came.
    pub fn failed(&self, model: &ModelName, digest: &str) {
        let mut entries = self.lock();
        if entries.get(model).is_some_and(|entry| entry.kept.digest == digest && !entry.answered) {
            entries.remove(model);
            drop(entries);
            // It may have stood for another before, which the file still says.
            self.change();
        }
    }

    /// A person chooses: from now on the name stands for what `holder` has.
    pub fn keep(&self, model: &ModelName, digest: &str, holder: Holder) {
        let entry = Entry { answered: true, ..Entry::new(digest, holder) };
        let kept = Kept { chosen: true, ..entry.kept };
        insert(&mut self.lock(), model, Entry { kept, ..entry });
        self.change();
    }

    /// A person revoked this node: names that were used from it alone are free again.
    pub fn forget(&self, holder: &Id) {
        let mut held_any = false;
        self.lock().retain(|_, entry| {
            let holders = &mut entry.kept.holders;
            let held = holders.iter().any(|other| other.id == *holder);
            holders.retain(|other| other.id != *holder);
            held_any |= held;
            !(held && holders.is_empty())
        });
        if held_any {
            self.change();
        }
    }

    fn change(&self) {
        self.0.unsaved.store(true, Ordering::Release);
        self.0.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ModelName, Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Digests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Digests").field("names", &self.lock().len()).finish_non_exhaustive()
    }
}

fn insert(entries: &mut HashMap<ModelName, Entry>, model: &ModelName, entry: Entry) {
    if entries.len() >= MAX && !entries.contains_key(model) {
        let idle = entries.iter().min_by_key(|(_, entry)| (entry.kept.chosen, entry.used));
        let Some(idle) = idle.map(|(name, _)| name.clone()) else { return };
        entries.remove(&idle);
    }
    entries.insert(model.clone(), entry);
}

/// A clock before 1970 counts as 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

// === impl Entry ===

impl Entry {
    fn new(digest: &str, holder: Holder) -> Self {
        let kept = Kept { digest: digest.to_owned(), holders: vec![holder], chosen: false };
        Self { kept, answered: false, used: now() }
    }
}

// === impl Kept ===

impl Kept {
    /// Takes note of a node that it was used from; says whether that is new.
    fn held_by(&mut self, holder: Holder) -> bool {
        if self.holders.contains(&holder) {
            return false;
        }
        self.holders.retain(|known| known.id != holder.id);
        if self.holders.len() >= MAX_HOLDERS {
            self.holders.remove(0);
        }
        self.holders.push(holder);
        true
    }
}

/// Why the digests are kept in memory only.
#[derive(Debug, thiserror::Error)]
pub enum DigestsError {
    /// The file or its directory.
    #[error(transparent)]
    File(#[from] FileError),
    /// Written by a later version.
    #[error("{path} is of version {version}, which this ollana does not know")]
    Newer {
        /// The file.
        path: std::path::PathBuf,
        /// Its version.
        version: u32,
    },
    /// A damaged file that cannot be put aside.
    #[error("{path} is damaged and cannot be put aside: {source}")]
    Stuck {
        /// The file.
        path: std::path::PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(name: &str) -> Holder {
        Holder { id: Id::of_spki(name.as_bytes()), name: NodeName::lossy(name) }
    }

    fn model(name: &str) -> ModelName {
        ModelName::new(name)
    }

    #[test]
    fn a_name_is_bound_by_the_first_that_answers() {
        let digests = Digests::default();
        let m = model("m");
        assert!(digests.claim(&m, "broken", holder("a"), None));
        digests.failed(&m, "broken");
        assert_eq!(digests.of(&m), None);
        assert!(digests.claim(&m, "one", holder("a"), None));
        assert!(!digests.claim(&m, "two", holder("b"), None), "somebody else was first");
        digests.failed(&m, "two");
        digests.answered(&m, "one");
        digests.failed(&m, "one");
        assert_eq!(digests.of(&model("M:latest")).unwrap().digest, "one");
        assert!(digests.claim(&m, "two", holder("b"), Some("one")), "seen to be held by nobody");
        assert_eq!(digests.of(&m).unwrap().digest, "two");
    }

    #[test]
    fn whom_a_digest_was_used_from_is_known_up_to_a_bound() {
        let digests = Digests::default();
        let m = model("m");
        for n in 0..10 {
            let seen = digests.of(&m).map(|kept| kept.digest);
            assert!(digests.claim(&m, "one", holder(&format!("n{n}")), seen.as_deref()));
        }
        let names: Vec<_> = digests.of(&m).unwrap().holders.into_iter().map(|holder| holder.name.to_string()).collect();
        assert_eq!(names, ["n6", "n7", "n8", "n9"]);
    }

    #[test]
    fn who_is_revoked_holds_no_name() {
        let digests = Digests::default();
        for (name, from) in [("m", vec!["evil"]), ("n", vec!["evil", "good"])] {
            for from in from {
                let seen = digests.of(&model(name)).map(|kept| kept.digest);
                assert!(digests.claim(&model(name), "d", holder(from), seen.as_deref()));
            }
        }
        digests.forget(&holder("evil").id);
        assert_eq!(digests.of(&model("m")), None);
        assert_eq!(digests.of(&model("n")).unwrap().holders, [holder("good")]);
    }

    #[test]
    fn names_are_bounded_and_what_a_person_chose_stays() {
        let digests = Digests::default();
        digests.keep(&model("chosen"), "d", holder("a"));
        for n in 0..2 * MAX {
            assert!(digests.claim(&model(&format!("m{n}")), "d", holder("a"), None));
        }
        assert_eq!(digests.lock().len(), MAX);
        assert!(digests.of(&model("chosen")).unwrap().chosen);
        assert!(digests.claim(&model(&"x".repeat(MAX_NAME + 1)), "d", holder("a"), None));
        assert_eq!(digests.of(&model(&"x".repeat(MAX_NAME + 1))), None);
    }

    #[tokio::test]
    async fn what_answered_is_there_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIGESTS_FILE);
        let digests = Digests::open(&path).unwrap();
        digests.save().await;
        assert!(!path.exists(), "there was nothing to write");
        assert!(digests.claim(&model("used"), "one", holder("a"), None));
        digests.answered(&model("used"), "one");
        assert!(digests.claim(&model("only-asked"), "one", holder("a"), None));
        digests.keep(&model("host:5000/ns/m:tag"), "two", holder("b"));
        digests.save().await;
        let again = Digests::open(&path).unwrap();
        for name in ["used", "host:5000/ns/m:tag"] {
            assert_eq!(again.of(&model(name)), digests.of(&model(name)));
        }
        assert_eq!(again.of(&model("only-asked")), None);
    }

    #[tokio::test]
    async fn the_task_writes_what_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIGESTS_FILE);
        let digests = Digests::open(&path).unwrap();
        let _task = digests.keep_saved();
        digests.keep(&model("m"), "one", holder("a"));
        let written = async {
            while !path.exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), written).await.unwrap();
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_a_later_one_left() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIGESTS_FILE);
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        for damaged in ["version = 1\n[[model]]\nname = ", "\u{0}", "version = 1\nmodel = 3\n"] {
            write(damaged);
            assert_eq!(Digests::open(&path).unwrap().lock().len(), 0);
            assert!(!path.exists());
            assert_eq!(std::fs::read_to_string(dir.path().join("digests.toml.damaged")).unwrap(), damaged);
        }
        write("version = 2\nfuture = true\n");
        assert!(matches!(Digests::open(&path), Err(DigestsError::Newer { version: 2, .. })));
        assert!(path.exists());
    }
}
