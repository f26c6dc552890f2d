//! The invitation that a node is started with.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::pairing::Invitation;
use crate::pairing::invitation::{InvitationError, MAX_TEXT};

/// What group and others have no business with.
const FOREIGN_BITS: u32 = 0o077;

/// The one more bit that systemd's credentials may have: they are root's, 0440 with an access control list for the
/// service's user, which shows as the right of a group.
const CREDENTIAL_BITS: u32 = 0o040;

/// Why the invitation cannot be redeemed.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The file.
    #[error("cannot read the invitation {path}: {source}; {}", advice(source))]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Whoever could read it may have, and use it.
    #[error(
        "the invitation {path} can be read by other users (mode {mode:03o}), and anyone who has it can use it: chmod 600 \
         it, and if somebody may have read it, revoke it with `ollana invite --revoke` on the machine that made it"
    )]
    TooOpen {
        /// Which.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
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

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "let the user of this node read it; a service of systemd gets it by LoadCredential= (see README.md)"
        }
        _ => "name another with --invitation-file",
    }
}

/// Reads the invitation. Blocks, on standard input until its end.
pub(super) fn read(path: &Path, credentials: Option<&Path>) -> Result<Invitation, GuestError> {
    let limit = MAX_TEXT as u64 + 1;
    let mut text = String::new();
    let failed = |source| GuestError::Read { path: path.to_owned(), source };
    if path.to_str() == Some("-") {
        io::stdin().lock().take(limit).read_to_string(&mut text).map_err(failed)?;
    } else {
        let file = File::open(path).map_err(failed)?;
        // Of the open file, and so of what a link leads to: where secrets are mounted, they are links. What a shell makes
        // of `<(…)` is a pipe, and nobody else's.
        let metadata = file.metadata().map_err(failed)?;
        let mode = metadata.permissions().mode() & 0o777;
        let allowed = if is_credential(path, credentials) { CREDENTIAL_BITS } else { 0 };
        if metadata.is_file() && mode & FOREIGN_BITS & !allowed != 0 {
            return Err(GuestError::TooOpen { path: path.to_owned(), mode });
        }
        file.take(limit).read_to_string(&mut text).map_err(failed)?;
    }
    text.parse().map_err(|source| GuestError::Unclear { path: path.to_owned(), source })
}

/// Whether systemd passed the file to this service (systemd.exec(5), `LoadCredential=`): it lies in the directory that
/// `$CREDENTIALS_DIRECTORY` names, which nobody else may enter.
fn is_credential(path: &Path, credentials: Option<&Path>) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).ok();
    let dir = real(path).and_then(|path| real(path.parent()?));
    dir.is_some() && dir == credentials.and_then(real)
}
