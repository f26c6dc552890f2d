//! The state directory: made if absent, held by one process at a time.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, accessat};

/// Held for as long as a node lives. A file of its own, since the pid file is removed at the end, and a lock on a file
/// that somebody else has just removed and made anew protects nothing.
const LOCK: &str = "ollana.lock";
/// Bytes of a process number that are read, with its line end.
const LONGEST_PID: u64 = 32;

/// A state directory that this process, and no other, uses. Dropping it gives it free.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    lock: File,
}

impl StateDir {
    /// Makes the directory with mode 0700 if it is absent, and its parents.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn make(path: &Path) -> Result<(), StateError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
        made.map_err(|source| StateError::Make { path: path.to_owned(), source })
    }

    /// Whether [`StateDir::take`] can do all that it has to, as far as can be seen without changing anything.
    ///
    /// # Errors
    /// As `take`, but for a process that holds the directory: see [`StateDir::holder`].
    pub fn check(path: &Path) -> Result<(), StateError> {
        let make_error = |source| StateError::Make { path: path.to_owned(), source };
        let write_error = |source| StateError::Write { path: path.to_owned(), source };
        let may_write = |dir: &Path| {
            let access = Access::WRITE_OK | Access::EXEC_OK;
            accessat(CWD, dir, access, AtFlags::EACCESS).map_err(io::Error::from)
        };
        match fs::metadata(path) {
            Ok(found) if !found.is_dir() => return Err(make_error(io::ErrorKind::NotADirectory.into())),
            Ok(_) => may_write(path).map_err(write_error)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = path.ancestors().skip(1).find(|dir| dir.exists()).unwrap_or(Path::new("/"));
                return may_write(parent).map_err(make_error);
            }
            Err(error) => return Err(make_error(error)),
        }
        // Files that another user has left there, root with `sudo` perhaps.
        for file in [path.join(LOCK), Self::pid_file(path)] {
            match open(&file, OFlags::WRONLY) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write_error(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The error of [`StateDir::take`] if a process holds the directory at this moment.
    pub fn holder(path: &Path) -> Option<StateError> {
        let mut lock = open(&path.join(LOCK), OFlags::RDWR).ok()?;
        // Free again at once: the file is closed.
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => Some(held(path, &mut lock)),
            _ => None,
        }
    }

    /// Makes the directory if need be and takes it for this process, whose pid it notes in the pid file.
    ///
    /// # Errors
    /// If it cannot be made or written, or another process holds it.
    pub fn take(path: &Path) -> Result<Self, StateError> {
        Self::make(path)?;
        let mut state = Self::lock(path)?;
        state.note_pid().map_err(|source| StateError::Write { path: path.to_owned(), source })?;
        Ok(state)
    }

    /// Takes a directory that must be there, without noting a pid: for a command that is over in a moment.
    ///
    /// # Errors
    /// If it cannot be opened, or another process holds it.
    pub fn lock(path: &Path) -> Result<Self, StateError> {
        let write_error = |source| StateError::Write { path: path.to_owned(), source };
        let mut lock = open_lock(path).map_err(write_error)?;
        match lock.try_lock() {
            Ok(()) => {
                sweep(path);
                Ok(Self { path: path.to_owned(), lock })
            }
            Err(TryLockError::WouldBlock) => Err(held(path, &mut lock)),
            Err(TryLockError::Error(source)) => Err(write_error(source)),
        }
    }

    /// Waits until nobody holds the directory. Blocks the thread.
    ///
    /// # Errors
    /// If the lock file cannot be opened.
    pub fn wait_until_free(path: &Path) -> io::Result<()> {
        open_lock(path)?.lock()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the trust book is.
    pub fn trust(&self) -> PathBuf {
        self.path.join(crate::trust::TRUST_FILE)
    }

    /// Where it stands which weights a model's name stands for.
    pub fn digests(&self) -> PathBuf {
        self.path.join(crate::digests::DIGESTS_FILE)
    }

    /// Where the pid file of a directory is.
    pub fn pid_file(path: &Path) -> PathBuf {
        path.join("ollana.pid")
    }

    /// The process that the pid file of a directory names.
    pub(super) fn noted_pid(path: &Path) -> Option<u32> {
        read_pid(&mut open(&Self::pid_file(path), OFlags::RDONLY).ok()?)
    }

    /// Where the log file of a directory is, if the node writes one.
    pub fn log_file(path: &Path) -> PathBuf {
        path.join("ollana.log")
    }

    fn note_pid(&mut self) -> io::Result<()> {
        let pid = format!("{}\n", std::process::id());
        self.lock.set_len(0)?;
        self.lock.rewind()?;
        self.lock.write_all(pid.as_bytes())?;
        fs::write(Self::pid_file(&self.path), pid)
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // A pid file names a process that lives. That of another one is not ours to remove.
        if Self::noted_pid(&self.path) == Some(std::process::id()) {
            let _ = fs::remove_file(Self::pid_file(&self.path));
        }
    }
}

/// Removes what a process that was killed while it wrote has left behind. Whoever holds the directory is the only one that
/// writes in it.
fn sweep(path: &Path) {
    let left = |name: &str| {
        [crate::trust::TRUST_FILE, "identity.key"].iter().any(|file| {
            name.strip_prefix('.').and_then(|name| name.strip_prefix(file)).is_some_and(|rest| rest.starts_with('.'))
        })
    };
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(left) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn held(path: &Path, lock: &mut File) -> StateError {
    // Only for the message: a process that takes the lock at this moment has not written yet.
    StateError::Held { path: path.to_owned(), pid: read_pid(lock) }
}

fn read_pid(file: &mut File) -> Option<u32> {
    let mut pid = String::new();
    file.take(LONGEST_PID).read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok()
}

fn open_lock(path: &Path) -> io::Result<File> {
    open(&path.join(LOCK), OFlags::RDWR | OFlags::CREATE)
}

/// Opens a file of a state directory. Root looks into the directories of other users too (`sudo ollana doctor`), where a
/// link could lead anywhere and a FIFO would hold the command for ever.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("a file in it is not a regular file")),
    }
}

/// Why a state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be made.
    #[error("cannot make the state directory {}: {source}; choose another with --state-dir", path.display())]
    Make {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write in the state directory {}: {source}; mend its permissions or choose another with --state-dir", path.display())]
    Write {
        /// Which directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process holds it.
    #[error("another ollana{} already runs on the state directory {}; end it with `ollana stop`, or choose another with --state-dir", pid_text(*pid), path.display())]
    Held {
        /// Which directory.
        path: PathBuf,
        /// Which process, where it can be told.
        pid: Option<u32>,
    },
}

fn pid_text(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_directory_is_made_private_and_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let state = StateDir::take(&path).unwrap();
        for made in [&path, path.parent().unwrap()] {
            assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o777, 0o700);
        }
        let pid = std::process::id();
        assert!(matches!(StateDir::take(&path), Err(StateError::Held { pid: Some(holder), .. }) if holder == pid));
        assert_eq!(fs::read_to_string(StateDir::pid_file(&path)).unwrap().trim(), pid.to_string());
        drop(state);
        assert!(!StateDir::pid_file(&path).exists());
        StateDir::take(&path).unwrap();
    }

    #[test]
    fn where_no_directory_can_be_made_the_error_says_what_to_do() {
        let error = StateDir::take(Path::new("/dev/null/state")).unwrap_err().to_string();
        assert!(error.contains("/dev/null/state") && error.contains("--state-dir"), "{error}");
    }
}
