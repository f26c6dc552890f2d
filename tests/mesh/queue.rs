//! Tickets across the network: a place in another node's queue.

use std::sync::Arc;

use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use ollana::internals::exchange::{
    self, Ask, Body, Endpoint as _, ExchangeError, Load, ResetCode, Residence, Ticket, Turn,
};
use ollana::internals::id::{NodeName, Use};
use ollana::internals::transport::Remote;
use ollana::internals::transport::remote::Face;
use ollana::internals::wire::control::Message;
use serde_json::json;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::fake_ollama::{FakeOllama, Settings};
use super::node::{Node, PATIENCE, node, until, within};
use super::stranger::Stranger;

/// What the server is set to run at a time.
const SLOTS: u32 = 4;

/// A peer that knows how to queue, and what it is told of the load.
struct Peer {
    remote: Remote,
    load: watch::Receiver<Arc<Load>>,
    connection: ollana::internals::transport::Connection,
    _transport: ollana::internals::transport::Transport,
    _control: AbortOnDropHandle<()>,
}

impl Peer {
    async fn of(node: &Node, name: &str) -> Self {
        let stranger = Stranger::new(name);
        let mut met = within(stranger.dial(node.mesh)).await;
        let (publish, load) = watch::channel(Arc::default());
        let control = tokio::spawn(async move {
            while let Ok(message) = met.control.receive().await {
                if let Message::Load(load) = message {
                    publish.send_replace(Arc::new(load));
                }
            }
        });
        let face = watch::channel(Face { label: NodeName::lossy("node"), use_: Use::Yes, trusted: false }).1;
        let report = watch::channel(Arc::default()).1;
        let remote = Remote::new(met.connection.clone(), face, report, load.clone(), Arc::default());
        let (connection, _transport) = (met.connection, stranger.transport);
        Self { remote, load, connection, _transport, _control: AbortOnDropHandle::new(control) }
    }

    async fn hold(&self) -> http::Response<Body> {
        let mut answer = within(self.remote.exchange(ask(1_000_000))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let _ = within(answer.body_mut().frame()).await.unwrap().unwrap();
        answer
    }

    /// A ticket that the gate has for certain.
    async fn place(&self) -> (AbortOnDropHandle<Result<Turn, ExchangeError>>, watch::Receiver<exchange::Place>) {
        let ask = Ask { model: "m".to_owned(), copies: 2, ..Ask::default() };
        let Ticket { place, turn } = self.remote.queue(ask);
        let turn = AbortOnDropHandle::new(tokio::spawn(turn));
        self.until(|_| true).await;
        (turn, place)
    }

    /// Waits until this is so, in a load that knows all that this peer has opened.
    async fn until(&self, mut wanted: impl FnMut(&Load) -> bool) {
        let opened = self.remote.opened().unwrap();
        let mut load = self.load.clone();
        let so = load.wait_for(|load| load.counted == opened && wanted(load));
        let so = tokio::time::timeout(PATIENCE, so).await.map(|load| load.map(drop));
        so.unwrap_or_else(|_| panic!("opened {opened}, and {:?}", self.load.borrow())).unwrap();
    }
}

fn ask(tokens: usize) -> Request<Body> {
    let body = json!({"model":"m","prompt":"x","options":{"num_predict":tokens}}).to_string();
    Request::post("/api/generate").body(exchange::full(body)).unwrap()
}

async fn provider() -> (FakeOllama, Node) {
    let settings = Settings { pace: std::time::Duration::from_millis(5), parallel: 64, ..Settings::default() };
    let ollama = FakeOllama::start_with(&["m"], settings).await;
    let provider = node("gpu1").lends(&ollama).runs(SLOTS).start().await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    (ollama, provider)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_waits_has_its_turn_and_the_request_runs() {
    let (ollama, provider) = provider().await;
    let (busy, peer) = (Peer::of(&provider, "busy").await, Peer::of(&provider, "laptop").await);
    let mut holds = Vec::new();
    for _ in 0..SLOTS {
        holds.push(busy.hold().await);
    }
    // Of somebody who has had no turn either.
    let other = Peer::of(&provider, "other").await;
    let before = other.place().await;
    let (turn, mut place) = peer.place().await;
    let queued = |load: &Load| {
        let of = load.of("m:latest");
        (of.residence, of.running, of.queued) == (Residence::Memory, SLOTS, 1.0)
    };
    peer.until(queued).await;
    within(place.wait_for(|place| place.ahead == 0.5)).await.unwrap();
    drop(before);
    within(place.wait_for(|place| place.ahead == 0.0)).await.unwrap();
    holds.pop();
    let Turn::Slot(slot) = within(turn).await.unwrap().unwrap() else { panic!("no slot") };
    // The Ollama takes a moment to see that the other has left.
    within(ollama.until(|counts| counts.aborted == 1)).await;
    let answer = within(slot.exchange(ask(3))).await.unwrap();
    let body = within(answer.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(String::from_utf8_lossy(&body).lines().count(), 4);
    peer.until(|load| load.of("m:latest").running == SLOTS - 1).await;
    let counts = ollama.counts();
    assert_eq!((counts.of("/api/generate"), counts.most_at_a_model), (5, SLOTS as usize));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withdrawn_ticket_and_one_that_is_not_used_leave_their_places_and_reach_no_ollama() {
    let (ollama, provider) = provider().await;
    let (busy, peer) = (Peer::of(&provider, "busy").await, Peer::of(&provider, "laptop").await);
    let mut holds = Vec::new();
    for _ in 0..SLOTS {
        holds.push(busy.hold().await);
    }
    let (turn, _) = peer.place().await;
    peer.until(|load| load.of("m:latest").queued == 0.5).await;
    drop(turn);
    peer.until(|load| load.of("m:latest").queued == 0.0).await;
    // A turn that comes to nothing: the slot is given back, once by who has it and once by the clock.
    let (dropped, _) = peer.place().await;
    let (kept, _) = peer.place().await;
    holds.pop();
    let Turn::Slot(slot) = within(dropped).await.unwrap().unwrap() else { panic!("no slot") };
    drop(slot);
    let Turn::Slot(slot) = within(kept).await.unwrap().unwrap() else { panic!("no slot") };
    peer.until(|load| load.of("m:latest").running == SLOTS - 1).await;
    let late = within(slot.exchange(ask(3))).await;
    assert!(matches!(late, Err(ExchangeError::Reset(_, ResetCode::Late))), "{late:?}");
    holds.push(peer.hold().await);
    assert_eq!(ollama.counts().of("/api/generate"), u64::from(SLOTS) + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_before_it_was_opened_is_not_counted_on_either_side() {
    let (_ollama, provider) = provider().await;
    let peer = Peer::of(&provider, "laptop").await;
    drop(peer.remote.queue(Ask::default()));
    drop(peer.remote.exchange(ask(3)));
    assert_eq!(peer.remote.opened(), Some(0));
    let _answer = peer.hold().await;
    peer.until(|load| load.of("m:latest").running == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_dies_leaves_its_slots_and_its_places() {
    let (_ollama, provider) = provider().await;
    let (dying, peer) = (Peer::of(&provider, "dying").await, Peer::of(&provider, "laptop").await);
    let mut holds = Vec::new();
    for _ in 1..SLOTS {
        holds.push(dying.hold().await);
    }
    // Holds the last with a turn that it does nothing with, and waits for more.
    let slot = within(dying.place().await.0).await.unwrap().unwrap();
    let waits = [dying.place().await, dying.place().await];
    let (turn, _) = peer.place().await;
    peer.until(|load| load.of("m:latest").queued == 1.5).await;
    dying.connection.close(ollana::internals::transport::CloseCode::Protocol, "it dies");
    let Turn::Slot(granted) = within(turn).await.unwrap().unwrap() else { panic!("no slot") };
    peer.until(|load| (load.of("m:latest").running, load.of("m:latest").queued) == (1, 0.0)).await;
    assert!(within(granted.exchange(ask(1))).await.unwrap().status().is_success());
    drop((slot, waits, holds));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_at_a_node_that_stops_is_told_so() {
    let (_ollama, provider) = provider().await;
    let peer = Peer::of(&provider, "laptop").await;
    let mut holds = Vec::new();
    for _ in 0..SLOTS {
        holds.push(peer.hold().await);
    }
    let (turn, _) = peer.place().await;
    let stopped = provider.stop();
    let told = async {
        let Turn::Refused(answer) = within(turn).await.unwrap().unwrap() else { panic!("a slot") };
        assert_eq!(answer.headers()[exchange::REFUSAL_HEADER], "draining");
        drop((answer, holds));
    };
    tokio::join!(told, stopped);
}
