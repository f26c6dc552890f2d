//! `ollana peers`.

use super::output::{Table, print, print_json, shown};
use super::{Failure, Place, block_on};
use crate::control::trust_text;
use crate::exchange::ServerKind;
use crate::peers::PeerView;

/// Lists the other nodes.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let peers: Vec<PeerView> = block_on(async { Ok(place.client().await?.get("/peers").await?) })?;
    if json { print_json(&peers) } else { print(&render(&peers)) }
}

fn render(peers: &[PeerView]) -> String {
    if peers.is_empty() {
        return "no other node was seen yet; `ollana doctor` looks for reasons\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "STATE", "TRUST", "USE", "SCOPE", ">MODELS", ">INFLIGHT", ">RTT", "ADDRESS"]);
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
    let mut text = table.render();
    text += &numbers(peers);
    for peer in peers {
        if let Some(problem) = &peer.problem {
            text += &format!("! {}: {}\n", peer.name, shown(problem));
        }
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
    use crate::id::{Id, NodeName, Scope, Use};
    use crate::peers::PeerState;
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
        let text = render(&[peer(b"1", "gpu1")]);
        assert_eq!(
            text,
            "NAME  STATE      TRUST      USE  SCOPE  MODELS  INFLIGHT      RTT  ADDRESS\n\
             gpu1  connected  first-use  yes  infer       2         1  0.31 ms  10.0.0.2:11435\n"
        );
        let stops = PeerView { direct: 2, most_loaded: Some(3), draining: true, ..peer(b"1", "gpu1") };
        let text = render(&[stops]);
        let beside =
            ["2 asked of the server itself by its owner", "keeps 3 models in memory at most", "is about to stop"];
        for (line, what) in text.lines().skip(2).zip(beside) {
            assert_eq!(line.trim_end(), format!("  gpu1    {what}"));
        }
        assert_eq!(text.lines().count(), 2 + beside.len());
        let text = render(&[peer(b"1", "gpu1"), peer(b"2", "GPU1")]);
        assert!(text.contains(&Id::of_spki(b"2").short()));
    }
}
