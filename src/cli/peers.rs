//! `ollana peers`.

use serde::Serialize;

use super::output::{Table, print, print_json, shown};
use super::{Failure, Place, block_on};
use crate::control::{not_peers, trust_text};
use crate::exchange::{ServerKind, Unusable};
use crate::id::Use;
use crate::peers::{PeerState, PeerView};

/// A row of the list: a peer, or a node that has proved no key.
#[derive(Serialize)]
#[serde(untagged)]
enum Row<'a> {
    Peer(&'a PeerView),
    Other {
        /// As a peer's.
        state: PeerState,
        name: &'a str,
        problem: String,
        #[serde(flatten)]
        node: &'a Unusable,
    },
}

/// Lists the other nodes.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let (peers, unusable): (Vec<PeerView>, Vec<Unusable>) = block_on(async {
        let client = place.client().await?;
        Ok((client.get("/peers").await?, client.get("/unusable").await?))
    })?;
    let others = not_peers(&peers, &unusable);
    if json { print_json(&rows(&peers, &others)) } else { print(&render(&peers, &others)) }
}

fn rows<'a>(peers: &'a [PeerView], others: &[&'a Unusable]) -> Vec<Row<'a>> {
    let other = |node: &&'a Unusable| Row::Other {
        state: PeerState::Unreachable,
        name: &node.node,
        problem: node.explanation(),
        node,
    };
    peers.iter().map(Row::Peer).chain(others.iter().map(other)).collect()
}

fn render(peers: &[PeerView], others: &[&Unusable]) -> String {
    if peers.is_empty() && others.is_empty() {
        return "no other node was seen yet; `ollana doctor` looks for reasons\n".to_owned();
    }
    // In the words of `trust.inbound` and `trust.outbound`: what the peer may do here, and what this node may do there.
    let heads = ["NAME", "STATE", "TRUST", "USE", "INBOUND", "OUTBOUND", ">MODELS", ">INFLIGHT", ">RTT", "ADDRESS"];
    let mut table = Table::new(&heads);
    for peer in peers {
        let twice = peers.iter().filter(|other| other.name.is(peer.name.as_str())).count() > 1;
        let rtt = match peer.rtt_us {
            0 => String::new(),
            us => format!("{}.{:02} ms", us / 1000, us % 1000 / 10),
        };
        table.row([
            // A name that two bear says nothing; with the beginning of the ID it can be typed (`id::means`).
            if twice { peer.name.with_suffix(&peer.id.short()).to_string() } else { peer.name.to_string() },
            peer.state.to_string(),
            trust_text(peer.trust, peer.voucher, &peer.vouched_by),
            peer.use_.to_string(),
            peer.scope.to_string(),
            peer.remote_scope.map(|scope| scope.to_string()).unwrap_or_default(),
            match peer.api {
                _ if !peer.provider => String::new(),
                ServerKind::Ollama => peer.models.len().to_string(),
                ServerKind::OpenAi => format!("{} at /v1", peer.models.len()),
                ServerKind::Grpc => "gRPC".to_owned(),
            },
            if peer.provider { peer.inflight.to_string() } else { String::new() },
            rtt,
            peer.address.map(|address| address.to_string()).unwrap_or_default(),
        ]);
    }
    for node in others {
        let mut cells = heads.map(|_| String::new());
        let [name, state, .., address] = &mut cells;
        (*name, *state) = (node.node.clone(), PeerState::Unreachable.to_string());
        *address = node.address.clone().unwrap_or_default();
        table.row(cells);
    }
    let mut text = table.render();
    text += &numbers(peers);
    for peer in peers {
        if let Some(problem) = &peer.problem {
            text += &format!("! {}: {}\n", peer.name, shown(problem));
        }
        if peer.use_ == Use::Pending && peer.provider {
            text += &format!("! {0}: is not used until a person trusts it → ollana trust {0}\n", peer.name);
        }
    }
    for node in others {
        text += &format!("! {}: {}\n", shown(&node.node), shown(&node.explanation()));
    }
    text
}

/// What else of a server requests are balanced by.
pub(super) fn beside(direct: u32, most_loaded: Option<u32>) -> impl Iterator<Item = String> {
    let direct = (direct > 0).then(|| format!("{direct} asked of the server itself by its owner"));
    let most = most_loaded.map(|most| format!("keeps {most} models in memory at most"));
    direct.into_iter().chain(most)
}

/// How busy and how fast the models of each are: what requests are balanced by.
fn numbers(peers: &[PeerView]) -> String {
    let mut table = Table::plain();
    for peer in peers {
        for (model, numbers) in &peer.numbers {
            table.row([format!("  {}", peer.name), model.clone(), numbers.to_string()]);
        }
        for what in beside(peer.direct, peer.most_loaded).chain(peer.draining.then(|| "is about to stop".to_owned())) {
            table.row([format!("  {}", peer.name), String::new(), what]);
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Denial;
    use crate::id::{Id, NodeName, Scope};
    use crate::trust::Trust;

    #[test]
    fn peers_are_a_table_and_a_name_that_two_bear_has_its_id() {
        let peer = |key: &[u8], name: &str| PeerView {
            name: NodeName::lossy(name),
            id: Id::of_spki(key),
            address: Some("10.0.0.2:11435".parse().unwrap()),
            state: PeerState::Connected,
            trust: Trust::FirstUse,
            use_: Use::Yes,
            scope: Scope::Infer,
            remote_scope: Some(Scope::Manage),
            denial: None,
            voucher: false,
            vouched_by: Vec::new(),
            provider: true,
            api: Default::default(),
            models: vec!["a".to_owned(), "b".to_owned()],
            loaded: Vec::new(),
            inflight: 1,
            direct: 0,
            most_loaded: None,
            draining: false,
            numbers: Default::default(),
            rtt_us: 312,
            problem: None,
            version: String::new(),
            digests: Default::default(),
        };
        let text = render(&[peer(b"1", "gpu1")], &[]);
        assert_eq!(
            text,
            "NAME  STATE      TRUST      USE  INBOUND  OUTBOUND  MODELS  INFLIGHT      RTT  ADDRESS\n\
             gpu1  connected  first-use  yes  infer    manage         2         1  0.31 ms  10.0.0.2:11435\n"
        );
        let stops = PeerView { direct: 2, most_loaded: Some(3), draining: true, ..peer(b"1", "gpu1") };
        let text = render(&[stops], &[]);
        let beside =
            ["2 asked of the server itself by its owner", "keeps 3 models in memory at most", "is about to stop"];
        for (line, what) in text.lines().skip(2).zip(beside) {
            assert_eq!(line.trim_end(), format!("  gpu1    {what}"));
        }
        assert_eq!(text.lines().count(), 2 + beside.len());
        let text = render(&[peer(b"1", "gpu1"), peer(b"2", "GPU1")], &[]);
        assert!(text.contains(&Id::of_spki(b"2").short()));
    }

    #[test]
    fn a_node_that_proved_no_key_is_a_row_that_says_so_and_drives_no_terminal() {
        let heard = Unusable {
            node: "gpu2".to_owned(),
            id: Some(Id::of_spki(b"2")),
            address: Some("10.0.0.3:11435".to_owned()),
            verified: false,
            trusted: false,
            denial: None,
            reason: "does not answer\x1b[2J".to_owned(),
            advice: Some("let UDP 11435 in".to_owned()),
        };
        let text = render(&[], &[&heard]);
        assert!(text.contains("gpu2  unreachable") && text.contains("10.0.0.3:11435"), "{text}");
        assert!(text.contains("! gpu2: does not answer\u{fffd}[2J → let UDP 11435 in"), "{text}");
        let refused = Unusable { denial: Some(Denial::Revoked), ..heard };
        let json = serde_json::to_value(rows(&[], &[&refused])).unwrap();
        assert_eq!(json[0]["name"], "gpu2");
        assert_eq!((&json[0]["state"], &json[0]["verified"]), (&"unreachable".into(), &false.into()));
        assert_eq!((&json[0]["denial"], &json[0]["do"]), (&"revoked".into(), &"let UDP 11435 in".into()));
    }
}
