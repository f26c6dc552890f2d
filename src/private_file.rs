//! Files that only their owner may read: the node's key and its trust book.
//!
//! Reading refuses what could not have been written by this program: links, devices, files that others may read.
//! Writing goes to a temporary file beside the target, is made durable, and then takes the target's name in one step:
//! whoever looks, after whatever crash, finds the old content or the new, whole.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// What group and others have no business with.
const FOREIGN_BITS: u32 = 0o077;
/// Write permission of group and others, on a directory: the right to put another file in a file's place.
const FOREIGN_WRITE: u32 = 0o022;

/// Makes `dir` with mode 0700, and its parents where they are absent. An existing one is left as it is.
///
/// # Errors
/// If it cannot be made, or something that is no directory has its name.
pub fn make_dir(dir: &Path) -> Result<(), FileError> {
    let absent: Vec<&Path> =
        dir.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists()).collect();
    let failed = |source| FileError::io("make the directory", dir, source);
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    for made in &absent {
        sync_dir(parent_of(made)).map_err(failed)?;
    }
    let mode = std::fs::metadata(dir).map_err(failed)?.permissions().mode();
    if absent.is_empty() && mode & FOREIGN_WRITE != 0 {
        // Not refused: under a umask of 002 every directory that a person makes is writable by their own group.
        tracing::warn!(
            "others may write to the state directory {} (mode {:03o}) and so replace this node's key: chmod 700 it",
            dir.display(),
            mode & 0o777
        );
    }
    Ok(())
}

/// The content of the private file at `path`, or `None` if there is none. At most `limit` bytes.
///
/// # Errors
/// If it is a link, no regular file, open to group or others, larger than `limit`, or cannot be read. Nothing is changed.
pub fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    // NONBLOCK: opening a FIFO that someone put there must not wait for its writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(descriptor) => File::from(descriptor),
        Err(Errno::NOENT) => return Ok(None),
        Err(Errno::LOOP | Errno::MLINK) => return Err(FileError::Link(path.to_owned())),
        Err(error) => return Err(FileError::io("read", path, error.into())),
    };
    // Of the open file, not of the name, so that nobody can swap it between the look and the read.
    let metadata = file.metadata().map_err(|source| FileError::io("read", path, source))?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile(path.to_owned()));
    }
    let mode = metadata.permissions().mode() & 0o777;
    if mode & FOREIGN_BITS != 0 {
        return Err(FileError::TooOpen { path: path.to_owned(), mode });
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(|source| FileError::io("read", path, source))?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(content))
}

/// Puts a new file at `path`, 0600 from its first byte, durable when this returns. Says `false`, and leaves everything
/// as it was, if the name is taken.
///
/// # Errors
/// If it cannot be written. Then there is no file at `path`, unless only the last step, the directory's fsync, failed.
pub fn create(path: &Path, content: &[u8]) -> Result<bool, FileError> {
    let failed = |source| FileError::io("write", path, source);
    let dir = parent_of(path);
    match write_beside(path, content).map_err(failed)?.persist_noclobber(path) {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(failed(error.error)),
    }
    sync_dir(dir).map_err(failed)?;
    Ok(true)
}

/// Puts `content` in the place of the file at `path`, or makes it, with mode 0600.
///
/// # Errors
/// If it cannot be written; the old file is then untouched. That the directory could not be made durable afterwards is
/// logged and no error, since the new content is in place by then.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError::io("write", path, source);
    write_beside(path, content).map_err(failed)?.persist(path).map_err(|error| failed(error.error))?;
    if let Err(error) = sync_dir(parent_of(path)) {
        tracing::warn!("{} is written, but a power cut could still undo that: {error}", path.display());
    }
    Ok(())
}

fn write_beside(path: &Path, content: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let dir = parent_of(path);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let file = tempfile::Builder::new()
        .prefix(&format!(".{name}."))
        .permissions(Permissions::from_mode(0o600))
        .tempfile_in(dir)
        // Without the temporary file's name, which means nothing to anybody.
        .map_err(|error| io::Error::from(error.kind()))?;
    keep_owner(file.as_file(), dir);
    file.as_file().write_all(content)?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// `sudo ollana trust …` must not leave behind a file that the user's own daemon can no longer open: what root writes
/// belongs to whom the directory belongs. Where that is not possible root's file is still the right content.
fn keep_owner(file: &File, dir: &Path) {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    if let Ok(owner) = std::fs::metadata(dir)
        && owner.uid() != 0
        && let Err(error) = std::os::unix::fs::fchown(file, Some(owner.uid()), Some(owner.gid()))
    {
        tracing::debug!("cannot give a file in {} to its owner: {error}", dir.display());
    }
}

/// Some file systems cannot fsync a directory and say so with EINVAL; they leave nothing better to do.
fn sync_dir(dir: &Path) -> io::Result<()> {
    match File::open(dir).and_then(|dir| dir.sync_all()) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        done => done,
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Why a private file was not read or written. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A symbolic link could lead a root daemon to write, or read, anywhere.
    #[error("{0} is a symbolic link and is not followed: put the file itself there, or choose another --state-dir")]
    Link(PathBuf),
    /// A directory, a FIFO, a device.
    #[error("{0} is not a regular file: move it away, or choose another --state-dir")]
    NotAFile(PathBuf),
    /// Whoever could read it may have.
    #[error(
        "{path} can be read by others than its owner (mode {mode:03o}): \
         chmod 600 it if nobody else had access, else move it away and let a new one be made"
    )]
    TooOpen {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Larger than anything this program writes.
    #[error("{path} has more than {limit} bytes, so it is not what it should be: move it away")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound in bytes.
        limit: u64,
    },
    /// The system says no.
    #[error("cannot {doing} {path}: {source}: {}", advice(source))]
    Io {
        /// A verb.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

// === impl FileError ===

impl FileError {
    fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space and try again",
        io::ErrorKind::ReadOnlyFilesystem => "choose another --state-dir",
        io::ErrorKind::PermissionDenied => "let this user have it, or choose another --state-dir",
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "a file stands where a directory belongs: move it, or choose another --state-dir"
        }
        _ => "mend that, or choose another --state-dir",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
    }

    fn names(dir: &Path) -> Vec<String> {
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn a_directory_is_made_for_its_owner_only_with_its_parents() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        make_dir(&dir).unwrap();
        assert_eq!((mode(&temp.path().join("a")), mode(&dir)), (0o700, 0o700));
        std::fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
        make_dir(&dir).unwrap();
        assert_eq!(mode(&dir), 0o755, "an existing directory is left as it is");
    }

    #[test]
    fn a_file_in_the_directorys_place_is_an_error_that_says_so() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("file/state");
        std::fs::write(temp.path().join("file"), "").unwrap();
        assert!(make_dir(&dir).unwrap_err().to_string().contains("a file stands where a directory belongs"));
    }

    #[test]
    fn what_is_written_is_private_and_leaves_no_other_file() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        assert!(create(&path, b"one").unwrap());
        assert_eq!(mode(&path), 0o600);
        replace(&path, b"two").unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read(&path, 3).unwrap().unwrap(), b"two");
        assert_eq!(names(temp.path()), ["file"]);
    }

    #[test]
    fn create_never_overwrites() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        std::fs::write(&path, "theirs").unwrap();
        assert!(!create(&path, b"ours").unwrap());
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        // Not even a link that leads nowhere.
        let dangling = temp.path().join("link");
        symlink(temp.path().join("nowhere"), &dangling).unwrap();
        assert!(!create(&dangling, b"ours").unwrap());
        assert_eq!(names(temp.path()).len(), 2);
    }

    #[test]
    fn reading_refuses_what_this_program_would_not_have_written() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        assert!(read(&path, 9).unwrap().is_none());
        create(&path, b"content").unwrap();
        assert!(matches!(read(&path, 6), Err(FileError::TooLarge { .. })));
        let link = temp.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(matches!(read(&link, 9), Err(FileError::Link(_))));
        assert!(matches!(read(temp.path(), 9), Err(FileError::NotAFile(_))));
        for open in [0o640, 0o604, 0o610, 0o620] {
            std::fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
            let error = read(&path, 9).unwrap_err();
            assert!(matches!(error, FileError::TooOpen { mode, .. } if mode == open), "{error}");
            assert!(error.to_string().contains("chmod 600"));
        }
    }

    #[test]
    fn a_fifo_is_refused_and_not_waited_for() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        assert!(matches!(read(&path, 9), Err(FileError::NotAFile(_))));
    }

    #[test]
    fn a_directory_that_is_not_there_is_an_error_and_nothing_is_made() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("absent/file");
        assert!(create(&path, b"x").is_err());
        assert!(replace(&path, b"x").is_err());
        assert!(names(temp.path()).is_empty());
    }
}
