//! The six-digit code between real nodes, and what somebody who does not keep to the rules can make of it.

use ollana::internals::control::{Client, ClientError, Lines, PeerRequest};
use ollana::internals::id::{Id, Scope};
use ollana::internals::pairing::{Code, Failure, News, Session};
use ollana::internals::peers::PeerState;
use ollana::internals::trust::Trust;
use ollana::internals::wire::control::Message;
use ollana::internals::wire::dealing::{Dealing, Hex, PairStep, Pairing};

use super::node::{Node, node, within};
use super::stranger::{Met, Stranger};

/// Types `ollana trust` at a node's terminal.
async fn pair(node: &Node, peer: Id) -> Result<Lines, ClientError> {
    node.control().await.follow("/pair", &PeerRequest { peer: peer.to_string() }).await
}

async fn news(lines: &mut Lines) -> Option<News> {
    within(lines.next()).await.unwrap()
}

async fn code(lines: &mut Lines) -> Code {
    match news(lines).await {
        Some(News::Code(code)) => code,
        other => panic!("{other:?}"),
    }
}

async fn deny(client: &Client, peer: Id) {
    client.post::<()>("/deny", &PeerRequest { peer: peer.to_string() }).await.unwrap();
}

/// Two nodes that are connected, dialled by one of them; the other finds it by that.
async fn two() -> (Node, Node) {
    let one = node("one").start().await;
    let two = node("two").dials(one.mesh).start().await;
    two.until_peer(one.id(), |peer| peer.state == PeerState::Connected).await;
    (one, two)
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_on_both_nodes_both_show_the_same_code_and_each_decides_for_itself() {
    let (one, two) = two().await;
    let mut at_one = pair(&one, two.id()).await.unwrap();
    let mut at_two = pair(&two, one.id()).await.unwrap();
    assert_eq!(code(&mut at_one).await, code(&mut at_two).await);
    let trust = |node: &Node, of: Id| node.peer(of).map(|peer| peer.trust);
    assert_ne!(trust(&one, two.id()), Some(Trust::Trusted), "nothing is trusted before a person confirms");
    assert_ne!(trust(&two, one.id()), Some(Trust::Trusted));
    one.trust(two.id(), Scope::Infer).await;
    one.until_peer(two.id(), |peer| peer.trust == Trust::Trusted).await;
    assert_eq!(news(&mut at_two).await, Some(News::Confirmed));
    assert_ne!(trust(&two, one.id()), Some(Trust::Trusted), "what is typed counts where it is typed");
    two.trust(one.id(), Scope::None).await;
    two.until_peer(one.id(), |peer| peer.trust == Trust::Trusted).await;
    assert_eq!(news(&mut at_one).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_goes_away_withdraws_and_three_codes_that_nobody_confirmed_lock() {
    let (one, two) = two().await;
    for round in 0..3 {
        let mut at_one = pair(&one, two.id()).await.unwrap();
        let mut at_two = pair(&two, one.id()).await.unwrap();
        assert_eq!(code(&mut at_one).await, code(&mut at_two).await);
        let expected = if round == 0 {
            deny(&one.control().await, two.id()).await;
            Failure::Mismatch
        } else {
            drop(at_one);
            Failure::Stopped
        };
        assert_eq!(news(&mut at_two).await, Some(News::Failed(expected)));
        assert_eq!(news(&mut at_two).await, None);
    }
    for (node, peer) in [(&one, two.id()), (&two, one.id())] {
        let refused = pair(node, peer).await.unwrap_err().to_string();
        assert!(refused.contains("10 min") && refused.contains("whole ID"), "{refused}");
    }
    // By the whole ID it still goes.
    one.trust(two.id(), Scope::Infer).await;
    one.until_peer(two.id(), |peer| peer.trust == Trust::Trusted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_who_answers_with_another_nonce_than_it_was_committed_to_is_found_out() {
    let node = node("honest").start().await;
    let (stranger, mut met) = initiator(&node).await;
    let mut terminal = pair(&node, stranger.id).await.unwrap();
    let (round, _) = commits(&mut met, Hex([1; 32])).await;
    say(&mut met, round, PairStep::Reveal(Hex([2; 32]))).await;
    assert_eq!(news(&mut terminal).await, Some(News::Failed(Failure::WrongReveal)));
}

/// Its own TLS sessions with both, the same two people, every message passed on that can be: other codes.
#[tokio::test(flavor = "multi_thread")]
async fn a_machine_in_the_middle_shows_two_codes() {
    let (left, right) = (node("left").start().await, node("right").start().await);
    let ((evil, mut to_left), (twin, mut to_right)) = (initiator(&left).await, initiator(&right).await);
    let mut at_left = pair(&left, evil.id).await.unwrap();
    let mut at_right = pair(&right, twin.id).await.unwrap();
    let mut codes = Vec::new();
    for (met, stranger, node, terminal) in
        [(&mut to_left, &evil, &left, &mut at_left), (&mut to_right, &twin, &right, &mut at_right)]
    {
        let session = Session { me: stranger.id, peer: node.id(), dialled: true, secret: secret(met) };
        let nonce = Hex([7; 32]);
        let (round, theirs) = commits(met, session.commitment(&nonce)).await;
        say(met, round, PairStep::Reveal(nonce)).await;
        let shown = code(terminal).await;
        assert_eq!(shown, session.code(&nonce, &theirs), "it knows both");
        codes.push(shown);
    }
    assert_ne!(codes[0], codes[1], "once in a million runs they are the same");
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_of_a_stranger_whom_nobody_has_named_cause_nothing_and_it_stays_welcome() {
    let node = node("calm").start().await;
    let (_, mut met) = initiator(&node).await;
    for n in 0..200u8 {
        say(&mut met, n.into(), PairStep::Offer).await;
        say(&mut met, n.into(), PairStep::Commit(Hex([n; 32]))).await;
    }
    // Only reports come back.
    for _ in 0..3 {
        assert!(matches!(within(met.control.receive()).await.unwrap(), Message::Report(_) | Message::Load(_)));
    }
}

/// Someone whose ID is smaller than the node's, on a connection of theirs.
async fn initiator(node: &Node) -> (Stranger, Met) {
    loop {
        let stranger = Stranger::new("evil");
        if stranger.id < node.id() {
            let met = stranger.dial(node.mesh).await;
            return (stranger, met);
        }
    }
}

fn secret(met: &Met) -> [u8; 32] {
    met.connection.export(Session::LABEL).unwrap()
}

async fn say(met: &mut Met, round: u64, step: PairStep) {
    met.control.send(&Message::Trust(Dealing::Pair(Pairing { round, step }))).await.unwrap();
}

/// Waits for the node's offer, offers, and commits; gives the node's number and its nonce.
async fn commits(met: &mut Met, commitment: Hex<32>) -> (u64, Hex<32>) {
    let Pairing { round, step: PairStep::Offer } = step(met).await else { panic!() };
    say(met, 7, PairStep::Offer).await;
    say(met, round, PairStep::Commit(commitment)).await;
    let Pairing { round: 7, step: PairStep::Nonce(nonce) } = step(met).await else { panic!() };
    (round, nonce)
}

/// The next step that is no report.
async fn step(met: &mut Met) -> Pairing {
    loop {
        match within(met.control.receive()).await.unwrap() {
            Message::Report(_) | Message::Load(_) => {}
            Message::Trust(Dealing::Pair(step)) => return step,
            other => panic!("{other:?}"),
        }
    }
}
