//! The six digits, against somebody in the middle and somebody who does not keep to the order.
//!
//! That an offer is over after five minutes takes five minutes: `outside_the_window_there_is_no_code` in `pairing/machine`
//! shows it with a clock of its own. Here the window is closed by a person.

use ollana::internals::control::{Lines, PeerRequest};
use ollana::internals::id::{Id, Scope};
use ollana::internals::pairing::{Code, Failure, News, Session};
use ollana::internals::trust::Trust;
use ollana::internals::wire::control::Message;
use ollana::internals::wire::dealing::{Dealing, Hex, PairStep, Pairing};

use super::node::{Node, node, within};
use super::stranger::{Met, Stranger};

/// Types `ollana trust` at a node's terminal.
async fn types(node: &Node, peer: Id) -> Lines {
    node.control().await.follow("/pair", &PeerRequest { peer: peer.to_string() }).await.unwrap()
}

async fn news(terminal: &mut Lines) -> Option<News> {
    within(terminal.next()).await.unwrap()
}

async fn code(terminal: &mut Lines) -> Code {
    match news(terminal).await {
        Some(News::Code(code)) => code,
        other => panic!("{other:?}"),
    }
}

/// Somebody who has to begin, since their ID is the smaller one, connected.
async fn beginner(node: &Node) -> (Stranger, Met) {
    loop {
        let stranger = Stranger::new("evil");
        if stranger.id < node.id() {
            let met = within(stranger.dial(node.mesh)).await;
            return (stranger, met);
        }
    }
}

async fn say(met: &mut Met, round: u64, step: PairStep) {
    met.control.send(&Message::Trust(Dealing::Pair(Pairing { round, step }))).await.unwrap();
}

async fn step(met: &mut Met) -> Pairing {
    loop {
        match within(met.control.receive()).await.unwrap() {
            Message::Report(_) | Message::Load(_) => {}
            Message::Trust(Dealing::Pair(step)) => return step,
            other => panic!("{other:?}"),
        }
    }
}

/// Up to the node's nonce, after it was promised this.
async fn promise(met: &mut Met, commitment: Hex<32>) -> (u64, Hex<32>) {
    let Pairing { round, step: PairStep::Offer } = step(met).await else { panic!() };
    say(met, 7, PairStep::Offer).await;
    say(met, round, PairStep::Commit(commitment)).await;
    let Pairing { step: PairStep::Nonce(nonce), .. } = step(met).await else { panic!() };
    (round, nonce)
}

fn session(stranger: &Stranger, met: &Met, node: &Node) -> Session {
    let secret = met.connection.export(Session::LABEL).unwrap();
    Session { me: stranger.id, peer: node.id(), dialled: true, secret }
}

/// Nothing was said but reports, for as long as it takes to hear three.
async fn says_nothing(met: &mut Met) {
    for _ in 0..3 {
        let heard = within(met.control.receive()).await.unwrap();
        assert!(matches!(heard, Message::Report(_) | Message::Load(_)), "{heard:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_two_people_it_shows_them_two_codes() {
    let (left, right) = (node("left").start().await, node("right").start().await);
    let ((evil, mut to_left), (twin, mut to_right)) = (beginner(&left).await, beginner(&right).await);
    let (mut at_left, mut at_right) = (types(&left, evil.id).await, types(&right, twin.id).await);
    let mut codes = Vec::new();
    for (met, stranger, node, terminal) in
        [(&mut to_left, &evil, &left, &mut at_left), (&mut to_right, &twin, &right, &mut at_right)]
    {
        let session = session(stranger, met, node);
        let nonce = Hex([9; 32]);
        let (round, _) = promise(met, session.commitment(&nonce)).await;
        say(met, round, PairStep::Reveal(nonce)).await;
        codes.push(code(terminal).await);
    }
    assert_ne!(codes[0], codes[1], "the same once in a million runs");
    for (node, peer) in [(&left, evil.id), (&right, twin.id)] {
        assert_ne!(node.peer(peer).map(|peer| peer.trust), Some(Trust::Trusted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_reveal_ends_the_pairing_and_shows_no_code() {
    let node = node("honest").start().await;
    let (evil, mut met) = beginner(&node).await;
    let mut terminal = types(&node, evil.id).await;
    let session = session(&evil, &met, &node);
    let (round, _) = promise(&mut met, session.commitment(&Hex([1; 32]))).await;
    say(&mut met, round, PairStep::Reveal(Hex([2; 32]))).await;
    assert_eq!(news(&mut terminal).await, Some(News::Failed(Failure::WrongReveal)));
    assert_eq!(news(&mut terminal).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_good_in_one_session_is_worth_nothing_in_the_next() {
    let node = node("honest").start().await;
    let (evil, mut met) = beginner(&node).await;
    let nonce = Hex([3; 32]);
    let old = session(&evil, &met, &node);
    let recorded = old.commitment(&nonce);
    let mut terminal = types(&node, evil.id).await;
    let (round, _) = promise(&mut met, recorded).await;
    say(&mut met, round, PairStep::Reveal(nonce)).await;
    code(&mut terminal).await;
    drop(terminal);
    // The same words in another session of the same two.
    let mut again = within(evil.dial(node.mesh)).await;
    drop(met);
    let mut terminal = types(&node, evil.id).await;
    let (round, _) = promise(&mut again, recorded).await;
    say(&mut again, round, PairStep::Reveal(nonce)).await;
    assert_eq!(news(&mut terminal).await, Some(News::Failed(Failure::WrongReveal)));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_our_own_key_there_is_no_pairing() {
    let node = node("honest").start().await;
    // Somebody with a copy of the node's own key.
    let key = ollana::internals::identity::Identity::load_or_create(node.state_dir()).unwrap();
    let copy = Stranger::with("copy", &key);
    assert_eq!(copy.id, node.id());
    let mut met = within(copy.dial(node.mesh)).await;
    for n in 0..20u8 {
        let _ = met.control.send(&Message::Trust(Dealing::Pair(Pairing { round: 0, step: PairStep::Offer }))).await;
        let commit = PairStep::Commit(Hex([n; 32]));
        let _ = met.control.send(&Message::Trust(Dealing::Pair(Pairing { round: 0, step: commit }))).await;
    }
    let refused = node.control().await.follow("/pair", &PeerRequest { peer: node.id().to_string() }).await;
    assert!(refused.is_err_and(|error| error.to_string().contains("this node itself")));
    assert_ne!(node.peer(node.id()).map(|peer| peer.trust), Some(Trust::Trusted));
}

#[tokio::test(flavor = "multi_thread")]
async fn outside_the_window_nothing_that_is_said_has_an_answer() {
    let node = node("calm").start().await;
    let (evil, mut met) = beginner(&node).await;
    // Before.
    say(&mut met, 1, PairStep::Offer).await;
    say(&mut met, 1, PairStep::Commit(Hex([1; 32]))).await;
    says_nothing(&mut met).await;
    // After a person has thought better of it.
    let terminal = types(&node, evil.id).await;
    let Pairing { round, step: PairStep::Offer } = step(&mut met).await else { panic!() };
    drop(terminal);
    let Pairing { step: PairStep::Withdrawn { .. }, .. } = step(&mut met).await else { panic!() };
    say(&mut met, 7, PairStep::Offer).await;
    say(&mut met, round, PairStep::Commit(Hex([1; 32]))).await;
    say(&mut met, round, PairStep::Reveal(Hex([1; 32]))).await;
    says_nothing(&mut met).await;
    assert_ne!(node.peer(evil.id).map(|peer| peer.trust), Some(Trust::Trusted));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_steps_does_nothing_and_those_who_pair_meanwhile_do() {
    let node = node("busy").start().await;
    let (_evil, mut met) = beginner(&node).await;
    let flood = tokio::spawn(async move {
        for n in 0..u64::MAX {
            let step = match n % 3 {
                0 => PairStep::Offer,
                1 => PairStep::Commit(Hex([1; 32])),
                _ => PairStep::Reveal(Hex([2; 32])),
            };
            if met.control.send(&Message::Trust(Dealing::Pair(Pairing { round: n % 5, step }))).await.is_err() {
                return;
            }
        }
    });
    let friend = super::node::node("friend").dials(node.mesh).start().await;
    friend.until_peer(node.id(), |peer| peer.rtt_us > 0).await;
    let (mut here, mut there) = (types(&node, friend.id()).await, types(&friend, node.id()).await);
    assert_eq!(code(&mut here).await, code(&mut there).await);
    node.trust(friend.id(), Scope::Infer).await;
    node.until_peer(friend.id(), |peer| peer.trust == Trust::Trusted).await;
    flood.abort();
    let _ = flood.await;
}
