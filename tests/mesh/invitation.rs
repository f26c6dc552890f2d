//! Invitations between real nodes that trust nobody otherwise, and guests that were not invited.

use std::time::{Duration, SystemTime};

use data_encoding::HEXLOWER;
use ollana::internals::control::{InvitationRequest, InviteRequest, InviteView, InvitedView};
use ollana::internals::id::{Scope, Use};
use ollana::internals::identity::Identity;
use ollana::internals::trust::Trust;
use ollana::internals::wire::control::Message;
use ollana::internals::wire::dealing::{Dealing, Hex, Redeem};

use super::fake_ollama::FakeOllama;
use super::node::{Node, node, prompt, until, within};
use super::stranger::Stranger;

async fn invite(node: &Node, uses: u32, lasts: Duration) -> String {
    let until = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + lasts;
    let until = until.as_secs();
    let request = InviteRequest { uses, until, scope: Scope::Infer, use_: false, addresses: Vec::new() };
    node.control().await.post::<InviteView>("/invite", &request).await.unwrap().text
}

async fn invitations(node: &Node) -> Vec<InvitedView> {
    node.control().await.get("/invitations").await.unwrap()
}

const HOUR: Duration = Duration::from_secs(60 * 60);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_invited_trusts_and_is_trusted_and_a_restart_costs_no_second_use() {
    let ollama = FakeOllama::start(&["m"]).await;
    let gpu = node("gpu1").lends(&ollama).paired().start().await;
    let text = invite(&gpu, 1, HOUR).await;
    // Nothing but the invitation says where gpu1 is.
    let mut user = node("laptop").paired().invited(&text).start().await;
    for _ in 0..2 {
        user.until_lent(gpu.id(), "m").await;
        user.until_peer(gpu.id(), |peer| (peer.trust, peer.use_) == (Trust::Trusted, Use::Yes)).await;
        let guest = gpu.until_peer(user.id(), |peer| peer.trust == Trust::Trusted).await;
        assert_eq!((guest.scope, guest.use_), (Scope::Infer, Use::No));
        // The router hears of it a moment after the book.
        within(async {
            while user.post("/api/generate", &prompt("m", 3)).await.status() != 200 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        user = user.stop().await.anywhere().start().await;
    }
    assert_eq!(invitations(&gpu).await[0].redeemed, [user.id()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_that_is_used_up_expired_or_taken_back_lets_nobody_in() {
    let gpu = node("gpu1").paired().start().await;
    let used_up = invite(&gpu, 1, HOUR).await;
    let first = node("first").paired().invited(&used_up).start().await;
    gpu.until_peer(first.id(), |peer| peer.trust == Trust::Trusted).await;
    let taken_back = invite(&gpu, 1, HOUR).await;
    let number = invitations(&gpu).await.pop().unwrap().number;
    let control = gpu.control().await;
    control.post::<InvitedView>("/uninvite", &InvitationRequest { number: number[..9].to_owned() }).await.unwrap();
    let expired = invite(&gpu, 1, Duration::ZERO).await;
    for (what, text) in [("used up", used_up), ("taken back", taken_back), ("expired", expired)] {
        let late = node("late").paired().invited(&text).start().await;
        // Connected both ways: whatever is to be said was said, since it comes before the reports.
        late.until_peer(gpu.id(), |peer| peer.state == ollana::internals::peers::PeerState::Connected).await;
        late.until_peer(gpu.id(), |peer| peer.rtt_us > 0).await;
        let mut probe = Stranger::new("probe").dial(gpu.mesh).await;
        probe.report().await;
        assert_ne!(gpu.peer(late.id()).map(|peer| peer.trust), Some(Trust::Trusted), "{what}");
        assert_ne!(late.peer(gpu.id()).map(|peer| peer.trust), Some(Trust::Trusted), "{what}");
    }
}

/// What comes back is the same whether the number is right, wrong, or the proof another session's.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_is_answered_alike_and_a_connection_has_one_guess() {
    let gpu = node("gpu1").paired().start().await;
    invite(&gpu, 5, HOUR).await;
    let number = HEXLOWER.decode(invitations(&gpu).await[0].number.as_bytes()).unwrap();
    for number in [Hex(number.try_into().unwrap()), Hex([0; 16])] {
        let stranger = Stranger::new("guest");
        let mut met = stranger.dial(gpu.mesh).await;
        let guess = Message::Trust(Dealing::Redeem(Redeem { invitation: number, proof: Hex([7; 64]) }));
        met.control.send(&guess).await.unwrap();
        loop {
            match within(met.control.receive()).await.unwrap() {
                Message::Report(_) | Message::Load(_) => {}
                Message::Trust(Dealing::Redeemed(None)) => break,
                other => panic!("{other:?}"),
            }
        }
        met.control.send(&guess).await.unwrap();
        within(met.connection.closed()).await;
        assert_ne!(gpu.peer(stranger.id).map(|peer| peer.trust), Some(Trust::Trusted));
    }
    assert!(invitations(&gpu).await[0].redeemed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_those_who_come_at_once_as_many_are_let_in_as_were_invited() {
    let gpu = node("gpu1").paired().start().await;
    let text = invite(&gpu, 3, HOUR).await;
    let mut guests = Vec::new();
    for n in 0..6 {
        guests.push(node(&format!("guest{n}")).paired().invited(&text).start().await);
    }
    until("three", || {
        let trusted = gpu.view().peers().into_iter().filter(|peer| peer.trust == Trust::Trusted).count();
        (trusted == 3).then_some(())
    })
    .await;
    for guest in &guests {
        guest.until_peer(gpu.id(), |peer| peer.rtt_us > 0).await;
    }
    let trusted = gpu.view().peers().into_iter().filter(|peer| peer.trust == Trust::Trusted).count();
    assert_eq!((trusted, invitations(&gpu).await[0].redeemed.len()), (3, 3));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_its_maker_is_told_of_an_invitation() {
    // Somebody stands at the maker's address with a key of his own.
    let evil = Stranger::with("gpu1", &Identity::ephemeral().unwrap());
    let gpu = node("gpu1").paired().start().await;
    let text = invite(&gpu, 1, HOUR).await.replace(&gpu.mesh.to_string(), &evil.address.to_string());
    let guest = node("guest").paired().invited(&text).start().await;
    let mut met = within(evil.accept_politely()).await;
    met.control.send(&super::stranger::lends("m")).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(1), met.control.receive()).await;
    assert!(told.is_err(), "{told:?}");
    // Nor does an answer that nobody asked for do anything but end the connection.
    met.control.send(&Message::Trust(Dealing::Redeemed(Some(Hex([7; 32]))))).await.unwrap();
    within(met.connection.closed()).await;
    assert_ne!(guest.peer(evil.id).map(|peer| peer.trust), Some(Trust::Trusted));
}
