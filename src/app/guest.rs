//! The invitation that a node is started with.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use crate::pairing::Invitation;
use crate::pairing::invitation::{InvitationError, MAX_TEXT};

/// Why the invitation cannot be redeemed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The file.
    #[error("cannot read the invitation {path}: {source}; name another with --invitation-file")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it.
    #[error("{path}: {source}")]
    Unclear {
        /// Which.
        path: PathBuf,
        /// Why.
        source: InvitationError,
    },
}

/// Reads the invitation. Blocks, on standard input until its end.
pub(super) fn read(path: &Path) -> Result<Invitation, GuestError> {
    let limit = MAX_TEXT as u64 + 1;
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().take(limit).read_to_string(&mut text),
        _ => File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
    };
    read.map_err(|source| GuestError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|source| GuestError::Unclear { path: path.to_owned(), source })
}
