//! Which peers can be used, and what is in the way of the others.

use super::Finding;
use crate::control::StatusView;
use crate::id::Use;
use crate::peers::{PeerState, PeerView};

pub(super) fn findings(status: &StatusView, peers: &[PeerView]) -> Vec<Finding> {
    let mut findings = Vec::new();
    if peers.is_empty() && status.unusable.is_empty() {
        findings.push(Finding::hint(
            "peers",
            "no other node was seen yet",
            format!(
                "check that `ollana serve` runs there, that firewalls allow UDP {} and 11436, and that both are on one \
                 network; otherwise name the other node with --peer",
                status.info.mesh.port()
            ),
        ));
    } else if !peers.is_empty() {
        findings.push(Finding::ok("peers", format!("{} connected, {} known", status.peers, status.peers_known)));
    }
    for peer in peers.iter().filter(|peer| peer.use_ == Use::Pending && peer.state == PeerState::Connected) {
        findings.push(Finding::hint(
            "peers",
            format!("{} is not used until it is trusted", peer.name),
            format!("ollana trust {}", peer.name),
        ));
    }
    for node in &status.unusable {
        let found = format!("{} {}", node.node, node.reason);
        findings.push(match &node.advice {
            Some(advice) => Finding::hint("peers", found, advice),
            None => Finding { advice: None, ..Finding::hint("peers", found, "") },
        });
    }
    findings
}
