//! Why the book does not open, or does not take a change.

use std::path::PathBuf;

use super::{MAX_VOUCHES, Trust, invitations};
use crate::id::{Id, NodeName};
use crate::private_file::FileError;

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
    /// There is nothing to forget.
    #[error("no peer {0:?} is in the trust book; `ollana peers` lists those that are")]
    NotKnown(String),
    /// A revocation is not forgotten.
    #[error(
        "{name} ({id}) is revoked, and that is not forgotten; `ollana forget --name {name}` lets another key have its name, \
         and `ollana trust {id}` would let it in again"
    )]
    StaysRevoked {
        /// The key.
        id: Id,
        /// Its name.
        name: NodeName,
    },
    /// It would be met again at once.
    #[error(
        "{name} ({id}) is connected and would be met again at once; stop ollana there first, or refuse its key with `ollana \
         revoke {id}`"
    )]
    StillConnected {
        /// The key.
        id: Id,
        /// Its name.
        name: NodeName,
    },
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
