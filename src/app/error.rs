//! Why a node cannot start or go on.

use super::{GuestError, LendingError, RoleError};
use crate::control::{ControlError, StateError};
use crate::discovery::DiscoveryError;
use crate::identity::IdentityError;
use crate::transport::TransportError;
use crate::trust::TrustError;
use crate::web::WebError;

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The socket of the command line.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The trust book.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The invitation.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// The status page.
    #[error(transparent)]
    Web(#[from] WebError),
    /// The ports that applications and peers use.
    #[error(transparent)]
    Role(#[from] RoleError),
    /// When to lend.
    #[error(transparent)]
    Lending(#[from] LendingError),
    /// QUIC.
    #[error("cannot start QUIC: {0}")]
    Transport(#[from] TransportError),
    /// Multicast.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// A part that lives as long as the node.
    #[error("{0} failed, and the node cannot work without it; the log says why, and starting it again may help")]
    Died(&'static str),
    /// A socket that was bound cannot be used.
    #[error("cannot use a socket: {0}")]
    Socket(#[from] std::io::Error),
}
