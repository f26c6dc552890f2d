//! Vouching between real nodes: one action on gpu1, and who said `--voucher` uses a new server.

use std::time::{Duration, SystemTime};

use ollana::internals::control::{Changed, ClientError, PeerRequest, TrustRequest, VouchRequest, VouchView};
use ollana::internals::id::{Id, NodeName, Scope, Use};
use ollana::internals::peers::{PeerState, PeerView};
use ollana::internals::trust::Trust;
use ollana::internals::wire::control::Message;
use ollana::internals::wire::vouching::{Vouched, Vouching};

use super::fake_ollama::FakeOllama;
use super::node::{Node, node, prompt, read, within};
use super::stranger::{Met, Stranger, lends};

fn in_an_hour() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() + 3600
}

/// `ollana trust PEER --voucher --no-use --scope none`, or `--no-voucher`
async fn voucher(node: &Node, of: Id, voucher: bool) {
    let request = TrustRequest { peer: of.to_string(), scope: Scope::None, use_: false, voucher: Some(voucher) };
    let changed: Changed = node.control().await.post("/trust", &request).await.unwrap();
    assert_eq!(changed.peer.voucher, voucher);
}

/// `ollana vouch PEER`
async fn vouch(node: &Node, of: Id) -> Result<VouchView, ClientError> {
    let request = VouchRequest { peer: of.to_string(), until: in_an_hour() };
    node.control().await.post("/vouch", &request).await
}

/// `ollana vouch PEER --withdraw`
async fn withdraw(node: &Node, of: Id) {
    node.control().await.post::<()>("/unvouch", &PeerRequest { peer: of.to_string() }).await.unwrap();
}

fn is_used(peer: &PeerView) -> bool {
    (peer.trust, peer.use_) == (Trust::Vouched, Use::Yes) && peer.state == PeerState::Connected
}

fn is_not_used(peer: &PeerView) -> bool {
    peer.trust == Trust::None && peer.use_ == Use::Pending && peer.vouched_by.is_empty()
}

async fn is_answered(user: &Node) {
    // The router hears of it a moment after the book.
    within(async {
        while user.post("/api/generate", &prompt("m", 3)).await.status() != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// gpu1, which lends nothing and knows the users and gpu2; gpu2, which lends; users that trust nobody by first use and were
/// told where gpu1 is, and nothing of gpu2.
struct Fleet {
    gpu1: Node,
    gpu2: Node,
    users: [Node; 2],
    _ollama: FakeOllama,
}

impl Fleet {
    async fn start() -> Self {
        let ollama = FakeOllama::start(&["m"]).await;
        let gpu1 = node("gpu1").paired().start().await;
        let gpu2 = node("gpu2").lends(&ollama).dials(gpu1.mesh).start().await;
        let mut users = Vec::new();
        for name in ["laptop1", "laptop2"] {
            let user = node(name).paired().dials(gpu1.mesh).start().await;
            gpu1.trust(user.id(), Scope::Infer).await;
            voucher(&user, gpu1.id(), true).await;
            user.until_peer(gpu1.id(), |peer| peer.state == PeerState::Connected && peer.voucher).await;
            users.push(user);
        }
        gpu1.until_peer(gpu2.id(), |peer| peer.state == PeerState::Connected).await;
        gpu1.trust(gpu2.id(), Scope::None).await;
        let users = users.try_into().unwrap_or_else(|_| panic!("two"));
        Self { gpu1, gpu2, users, _ollama: ollama }
    }

    /// Started, and gpu1's administrator has vouched for gpu2.
    async fn vouched() -> Self {
        let fleet = Self::start().await;
        vouch(&fleet.gpu1, fleet.gpu2.id()).await.unwrap();
        for user in &fleet.users {
            user.until_lent(fleet.gpu2.id(), "m").await;
            user.until_peer(fleet.gpu2.id(), is_used).await;
        }
        fleet
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_costs_one_action_and_not_one_for_each_user() {
    let fleet = Fleet::start().await;
    assert!(fleet.users.iter().all(|user| user.peer(fleet.gpu2.id()).is_none()), "nobody has told them of it");
    let said = vouch(&fleet.gpu1, fleet.gpu2.id()).await.unwrap();
    assert_eq!((said.name.as_str(), said.id), ("gpu2", fleet.gpu2.id()));
    for user in &fleet.users {
        // Where it is, gpu1 has said too.
        user.until_lent(fleet.gpu2.id(), "m").await;
        let peer = user.until_peer(fleet.gpu2.id(), is_used).await;
        assert_eq!(peer.scope, Scope::None, "it may do nothing at the user's gate");
        let by: Vec<_> = peer.vouched_by.iter().map(|by| (by.name.as_str(), by.id)).collect();
        assert_eq!(by, [("gpu1", fleet.gpu1.id())]);
        is_answered(user).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_withdrawn_is_used_no_longer_by_those_who_hear_it_and_by_those_who_come_back() {
    let Fleet { gpu1, gpu2, users: [there, away], _ollama } = Fleet::vouched().await;
    let away = away.stop().await;
    withdraw(&gpu1, gpu2.id()).await;
    there.until_peer(gpu2.id(), is_not_used).await;
    let (status, why) = read(there.post("/api/generate", &prompt("m", 1)).await).await;
    assert!(status == 503 && why.contains("ollana trust gpu2"), "{status} {why}");
    let back = away.dials(gpu2.mesh).start().await;
    back.until_peer(gpu2.id(), |peer| peer.state == PeerState::Connected && is_not_used(peer)).await;
    let again = gpu1.control().await.post::<()>("/unvouch", &PeerRequest { peer: gpu2.id().to_string() }).await;
    assert!(again.unwrap_err().to_string().contains("--list"));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_gone_with_the_vouchers_revocation_its_flag_or_the_servers_own() {
    let Fleet { gpu1, gpu2, users: [one, two], _ollama } = Fleet::vouched().await;
    one.revoke(gpu1.id()).await;
    assert_eq!(one.peer(gpu2.id()).map(|peer| is_not_used(&peer)), Some(true), "as soon as the command is done");
    assert!(is_used(&two.peer(gpu2.id()).unwrap()), "each decides for itself");
    voucher(&two, gpu1.id(), false).await;
    assert_eq!(two.peer(gpu2.id()).map(|peer| is_not_used(&peer)), Some(true));
    // Said again, it is asked again.
    voucher(&two, gpu1.id(), true).await;
    two.until_peer(gpu2.id(), is_used).await;
    // A tombstone is made as ever, and what gpu1 says lifts none.
    two.revoke(gpu2.id()).await;
    let is_buried = |peer: &PeerView| peer.trust == Trust::Revoked && peer.vouched_by.is_empty();
    two.until_peer(gpu2.id(), is_buried).await;
    withdraw(&gpu1, gpu2.id()).await;
    vouch(&gpu1, gpu2.id()).await.unwrap();
    let control = two.control().await;
    let peers: Vec<PeerView> = control.get("/peers").await.unwrap();
    assert!(peers.iter().any(|peer| peer.id == gpu2.id() && is_buried(peer)), "{peers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_while_the_voucher_is_off_changes_nothing() {
    let Fleet { gpu1, gpu2, users: [user, _], _ollama } = Fleet::vouched().await;
    let user = user.stop().await;
    gpu1.stop().await;
    let user = user.anywhere().start().await;
    user.until_lent(gpu2.id(), "m").await;
    user.until_peer(gpu2.id(), is_used).await;
    is_answered(&user).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_one_hop_and_only_for_whom_a_person_trusts() {
    let Fleet { gpu1, gpu2, users: [user, other], _ollama } = Fleet::vouched().await;
    let refused = vouch(&user, gpu2.id()).await.unwrap_err().to_string();
    assert!(refused.contains("another's word") && refused.contains("ollana trust"), "{refused}");
    let nobody = vouch(&gpu1, Id::of_spki(b"nobody")).await.unwrap_err().to_string();
    assert!(nobody.contains("nobody on this node trusts it"), "{nobody}");
    // The other goes by the user's word, and by nobody else's: it hears nothing of gpu2.
    user.trust(other.id(), Scope::Infer).await;
    user.trust(gpu1.id(), Scope::Infer).await;
    vouch(&user, gpu1.id()).await.unwrap();
    let other = other.stop().await.dials(user.mesh).start().await;
    other.revoke(gpu1.id()).await;
    other.trust(gpu1.id(), Scope::None).await;
    voucher(&other, user.id(), true).await;
    // What the user says has come when it has said whom it does vouch for.
    let third = Id::of_spki(b"third");
    user.trust(third, Scope::None).await;
    vouch(&user, third).await.unwrap();
    other.until_peer(third, |peer| peer.trust == Trust::Vouched).await;
    assert!(other.peer(gpu2.id()).is_none_or(|peer| is_not_used(&peer)));
}

fn vouched(n: u8) -> Vouched {
    Vouched { id: Id::from_bytes([n; 32]), name: NodeName::lossy("server"), address: None, until: in_an_hour() }
}

/// The next message about vouching.
async fn vouching(met: &mut Met) -> Vouching {
    loop {
        match within(met.control.receive()).await.unwrap() {
            Message::Vouching(message) => return message,
            Message::Report(_) | Message::Load(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whom_nothing_is_lent_learns_of_no_server_and_forgets_those_it_learned_of() {
    let gpu1 = node("gpu1").paired().start().await;
    let server = Id::of_spki(b"server");
    gpu1.trust(server, Scope::None).await;
    vouch(&gpu1, server).await.unwrap();
    let stranger = Stranger::new("curious");
    let mut met = stranger.dial(gpu1.mesh).await;
    met.control.send(&Message::Vouching(Vouching::Ask)).await.unwrap();
    assert_eq!(vouching(&mut met).await, Vouching::Vouched(Vec::new()));
    gpu1.trust(stranger.id, Scope::Infer).await;
    let Vouching::Vouched(told) = vouching(&mut met).await else { panic!() };
    assert_eq!(told.iter().map(|server| server.id).collect::<Vec<_>>(), [server]);
    gpu1.trust(stranger.id, Scope::None).await;
    assert_eq!(vouching(&mut met).await, Vouching::Vouched(Vec::new()));
    // It is not for a dialler to vouch.
    met.control.send(&Message::Vouching(Vouching::Vouched(vec![vouched(7)]))).await.unwrap();
    within(met.connection.closed()).await;
    assert_eq!(gpu1.peer(vouched(7).id), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_told_who_has_not_asked_and_nobody_heard_who_is_no_voucher() {
    let gpu1 = node("gpu1").start().await;
    let server = Id::of_spki(b"server");
    gpu1.trust(server, Scope::None).await;
    vouch(&gpu1, server).await.unwrap();
    let mut met = Stranger::new("laptop").dial(gpu1.mesh).await;
    for _ in 0..3 {
        let said = within(met.control.receive()).await.unwrap();
        assert!(matches!(said, Message::Report(_) | Message::Load(_)), "{said:?}");
    }

    let liar = Stranger::new("liar");
    let user = node("laptop").dials(liar.address).start().await;
    let mut met = within(liar.accept_politely()).await;
    met.control.send(&Message::Vouching(Vouching::Vouched(vec![vouched(7)]))).await.unwrap();
    met.control.send(&lends("m")).await.unwrap();
    user.until_lent(liar.id, "m").await;
    assert_eq!(user.peer(vouched(7).id), None);
    // Asked it is once it is a voucher; what it said before counts for nothing.
    voucher(&user, liar.id, true).await;
    assert_eq!(vouching(&mut met).await, Vouching::Ask);
    assert_eq!(user.peer(vouched(7).id), None);
    let all = vec![vouched(8), Vouched { id: user.id(), ..vouched(0) }, Vouched { id: liar.id, ..vouched(0) }];
    met.control.send(&Message::Vouching(Vouching::Vouched(all))).await.unwrap();
    user.until_peer(vouched(8).id, |peer| peer.trust == Trust::Vouched).await;
    assert_eq!(user.peer(user.id()), None);
    assert_eq!(user.peer(liar.id).unwrap().trust, Trust::Trusted);
    // The latest counts, however fast they come.
    for n in 9..60 {
        met.control.send(&Message::Vouching(Vouching::Vouched(vec![vouched(n)]))).await.unwrap();
    }
    user.until_peer(vouched(59).id, |peer| peer.trust == Trust::Vouched).await;
    assert_eq!(user.peer(vouched(8).id), None);
    // Nor is it for a voucher to ask.
    met.control.send(&Message::Vouching(Vouching::Ask)).await.unwrap();
    within(met.connection.closed()).await;
}
