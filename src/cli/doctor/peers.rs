//! Which peers can be used, and what is in the way of the others.

use super::Finding;
use crate::control::StatusView;
use crate::id::Use;
use crate::peers::{PeerState, PeerView};
use crate::trust::Window;

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
    let reason = status.first_use.reason();
    if let (Some(reason), Window::ClockBehind { .. }) = (&reason, status.first_use) {
        findings.push(Finding::hint("clock", reason, "`date`; new providers wait for `ollana trust` meanwhile"));
    }
    // A refusal is a finding of its own, below.
    for peer in peers.iter().filter(|peer| peer.denial.is_none()) {
        let shown = peer.problem.as_ref().map(|problem| format!("{}: {problem}", peer.name));
        let (connected, refused) = (peer.state == PeerState::Connected, peer.state == PeerState::Refused);
        match shown {
            // So is a conflict.
            Some(shown) if status.conflicts.contains(&shown) => {}
            Some(shown) if connected || refused => {
                let (found, advice) = shown.split_once(" → ").unwrap_or((&shown, "`ollana peers` shows its state"));
                findings.push(Finding::hint("peers", found, advice));
            }
            _ if connected && peer.use_ == Use::Pending => {
                let why = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
                findings.push(Finding::hint(
                    "peers",
                    format!("{} is not used until it is trusted{why}", peer.name),
                    format!("ollana trust {}", peer.name),
                ));
            }
            _ => {}
        }
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
