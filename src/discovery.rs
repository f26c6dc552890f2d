//! Sources of sightings: multicast beacons and fixed peers.

use crate::id::{Id, Instance, NodeName};
use std::net::SocketAddr;

/// A hint where to dial, never evidence of who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What was seen.
    pub kind: SightingKind,
    /// Where its QUIC port is: the datagram's source address (with scope ID for link-local IPv6) and the beacon's port.
    pub address: SocketAddr,
    /// What the beacon claims; nothing for a fixed peer.
    pub claim: Option<Claim>,
}

/// What kind of sighting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SightingKind {
    /// Somebody is (still) there.
    Present,
    /// Somebody says it leaves: a reason to check, nothing more.
    Goodbye,
    /// No beacon for so long that it counts as gone.
    Expired,
}

/// Who a beacon claims to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The claimed ID.
    pub id: Id,
    /// The claimed instance.
    pub instance: Instance,
    /// The claimed name.
    pub name: NodeName,
}
