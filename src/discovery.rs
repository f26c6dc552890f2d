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

/// An address to dial where multicast does not reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerAddress {
    /// An IP address or a DNS name.
    pub host: String,
    /// The QUIC port.
    pub port: u16,
}

impl std::str::FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.contains(' ') {
            return Err("stub".to_owned());
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, "11435"));
        Ok(Self { host: host.to_owned(), port: port.parse().map_err(|_| "stub".to_owned())? })
    }
}
