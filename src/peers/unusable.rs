//! Which nodes are known of and cannot be used, and why: one answer for the command line, the status page and the errors of
//! requests.

use std::net::SocketAddr;

use super::directory::{Directory, Entry};
use super::machine::Unanswered;
use crate::discovery::{LookUp, PeerAddress};
use crate::exchange::{Denial, Unusable};
use crate::id::{Id, Instance, NodeName, Use};
use crate::trust::{Snapshot, Trust};

// === impl Directory ===

impl Directory {
    /// The nodes that cannot be used although somebody may expect it: providers that refuse this node, peers that a person
    /// named and that do not answer, and nodes that are only heard. Bounded, whatever is sent on the link.
    pub fn unusable(&self) -> Vec<Unusable> {
        let trust = self.trust.borrow().clone();
        let entries = self.entries.borrow().clone();
        let unanswering = self.unanswering.borrow().clone();
        let mut found: Vec<Unusable> =
            entries.iter().filter_map(|(id, entry)| self.refusing(*id, entry, &trust)).collect();
        let connected = |address: &SocketAddr| {
            entries.values().any(|entry| {
                entry.is_connected() && entry.live.as_ref().is_some_and(|live| live.connection.address() == *address)
            })
        };
        // An invitation has all addresses of its maker, and one is enough.
        let is_enough = |peer: &PeerAddress| {
            self.inviter.as_ref().is_some_and(|inviter| {
                let (id, addresses) = &**inviter;
                addresses.contains(peer) && entries.get(id).is_some_and(Entry::is_connected)
            })
        };
        for (peer, look_up) in self.look_ups.borrow().iter().filter(|(peer, _)| !is_enough(peer)) {
            let answer = |address: &SocketAddr| unanswering.shown.iter().find(|row| row.address == *address);
            match look_up {
                LookUp::Pending => {}
                LookUp::Failed(error) => found.push(unresolved(peer, error)),
                LookUp::Found(addresses) if addresses.iter().any(connected) => {}
                // All of them: while one is being dialled it may answer.
                LookUp::Found(addresses) if addresses.iter().all(|address| answer(address).is_some()) => {
                    let first = addresses.iter().find_map(answer);
                    found.extend(first.map(|row| named(peer, row)));
                }
                LookUp::Found(_) => {}
            }
        }
        let heard = unanswering.shown.iter().filter(|row| !row.fixed);
        found.extend(heard.filter_map(|row| self.heard(row, &trust)));
        if unanswering.more > 0 {
            found.push(more(unanswering.more));
        }
        found
    }

    /// A peer that has proved its key and refuses this node.
    fn refusing(&self, id: Id, entry: &Entry, trust: &Snapshot) -> Option<Unusable> {
        let standing = entry.standing(id, trust);
        // A person's decision here needs no reason.
        if standing.is_revoked() || (standing.trust == Trust::Trusted && standing.use_ == Use::No) {
            return None;
        }
        let denial = match &entry.live {
            Some(live) if entry.is_connected() => entry.refuses(&live.report.borrow())?,
            _ => entry.peer.denial?,
        };
        let (own, me) = &*self.me;
        let node = entry.label.to_string();
        Some(Unusable {
            id: Some(id),
            address: Some(entry.peer.address.to_string()),
            verified: true,
            trusted: is_trusted(standing.trust),
            denial: Some(denial),
            reason: self.reason(denial, entry),
            advice: denial.advice(&node, own, me),
            node,
        })
    }

    fn reason(&self, denial: Denial, entry: &Entry) -> String {
        match (denial, &entry.peer.problem) {
            // Its numbers say more.
            (Denial::Version, Some(problem)) => format!("cannot be used: {problem}"),
            _ => denial.reason(&self.me.0),
        }
    }

    /// A node that is only heard, or has called and cannot be called back.
    fn heard(&self, row: &Unanswered, trust: &Snapshot) -> Option<Unusable> {
        let claim = row.claim.as_ref()?;
        if trust.standing(&claim.id).is_revoked() {
            return None;
        }
        let how = match () {
            () if row.called => "reached this node, but ",
            // Of a peer that is vouched for, nobody has heard.
            () if claim.instance == Instance(0) => "",
            () => "is heard on the network, but ",
        };
        Some(Unusable {
            node: self.name_of(&claim.name, &claim.id, trust).to_string(),
            id: Some(claim.id),
            address: Some(row.address.to_string()),
            verified: row.called,
            // It is not proved that this is the one.
            trusted: false,
            denial: None,
            reason: format!("{how}{}", row.reason),
            advice: row.advice.clone(),
        })
    }

    /// A name that was not proved, told from whoever is known to bear it.
    fn name_of(&self, name: &NodeName, id: &Id, trust: &Snapshot) -> NodeName {
        let own = self.me.0.is(name.as_str());
        let borne = trust.pins().any(|pin| pin.id != *id && pin.name.is(name.as_str()));
        if own || borne { name.with_suffix(&id.short()) } else { name.clone() }
    }
}

/// Whether it is used by somebody's word, and not by first use.
fn is_trusted(trust: Trust) -> bool {
    matches!(trust, Trust::Trusted | Trust::Vouched)
}

fn unresolved(peer: &PeerAddress, error: &str) -> Unusable {
    Unusable {
        node: peer.to_string(),
        id: None,
        address: None,
        verified: false,
        trusted: false,
        denial: None,
        reason: format!("(--peer) has no address: {error}"),
        advice: Some("correct the name, or give its IP address".to_owned()),
    }
}

fn named(peer: &PeerAddress, row: &Unanswered) -> Unusable {
    Unusable {
        node: peer.to_string(),
        id: None,
        address: Some(row.address.to_string()),
        verified: false,
        trusted: false,
        denial: None,
        reason: format!("(--peer) {}", row.reason),
        advice: row.advice.clone(),
    }
}

/// The line for nodes that do not fit into a list that people read.
fn more(count: usize) -> Unusable {
    Unusable {
        node: format!("{count} more"),
        id: None,
        address: None,
        verified: false,
        trusted: false,
        denial: None,
        reason: "are announced on the network and do not answer".to_owned(),
        advice: None,
    }
}
