//! The name that each node is shown under, and which of them have one name.
//!
//! A name is a label that anyone may take. The key that is known by it keeps it as it is, also while it is away: else a stranger could
//! take it by saying it. The others have the beginning of their ID behind it. A conflict is between nodes that are connected
//! now, and ends with the connection of either.

use std::collections::HashMap;

use crate::id::{Id, NodeName};
use crate::trust::{Snapshot, Trust};

use super::machine::Peer;

/// The names of the connected nodes.
pub(super) struct Names<'a> {
    /// This node's own.
    own: &'a NodeName,
    live: HashMap<String, Vec<Id>>,
    trust: &'a Snapshot,
}

/// Another connected node with the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Namesake {
    /// This node.
    ThisNode,
    /// A peer.
    Peer(Id),
}

// === impl Names ===

impl<'a> Names<'a> {
    pub(super) fn of(peers: impl Iterator<Item = (&'a Id, &'a Peer)>, own: &'a NodeName, trust: &'a Snapshot) -> Self {
        let mut live: HashMap<String, Vec<Id>> = HashMap::new();
        for (id, peer) in peers.filter(|(_, peer)| peer.link.is_some()) {
            live.entry(folded(&peer.name)).or_default().push(*id);
        }
        Self { own, live, trust }
    }

    /// The name to show for a peer, and the other connected node that has it, where that is a conflict.
    pub(super) fn label(&self, id: &Id, peer: &Peer) -> (NodeName, Option<Namesake>) {
        let name = &peer.name;
        let rivals = || self.live.get(&folded(name)).into_iter().flatten().filter(|rival| *rival != id);
        let rival = match self.is_known(id, name) {
            true => rivals().find(|rival| self.is_known(rival, name)),
            false => rivals().find(|rival| self.is_known(rival, name)).or_else(|| rivals().next()),
        };
        let namesake = match rival {
            _ if self.own.is(name.as_str()) => Some(Namesake::ThisNode),
            rival => rival.map(|rival| Namesake::Peer(*rival)),
        };
        let contested = namesake.is_some() || (!self.is_known(id, name) && self.is_taken(id, name));
        let label = if contested { name.with_suffix(&id.short()) } else { name.clone() };
        (label, namesake.filter(|_| peer.link.is_some()))
    }

    /// Whether this key is known by this name.
    fn is_known(&self, id: &Id, name: &NodeName) -> bool {
        self.trust.pin(id).is_some_and(|pin| pin.trust != Trust::Revoked && pin.name.is(name.as_str()))
    }

    /// Whether another key is.
    fn is_taken(&self, id: &Id, name: &NodeName) -> bool {
        self.trust.pins().any(|pin| pin.id != *id && pin.name.is(name.as_str()))
    }
}

/// A name as names are compared.
fn folded(name: &NodeName) -> String {
    name.as_str().to_ascii_lowercase()
}
