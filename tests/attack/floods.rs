//! Much of everything, slowly, and half of it: who was there before is served all the while.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http_body_util::BodyExt as _;
use ollana::internals::exchange;
use ollana::internals::id::Scope;
use ollana::internals::transport::CloseCode;
use ollana::internals::trust::Trust;
use quinn::VarInt;
use quinn::crypto::rustls::QuicClientConfig;
use quinn_proto::{EndpointConfig, RandomConnectionIdGenerator};
use rustls::crypto::aws_lc_rs::default_provider;
use tokio::task::JoinSet;

use super::evil::{DATA, END, Evil, Frames, REQUEST, Session, TICKET, frame, head, key};
use super::fake_ollama::FakeOllama;
use super::handshake::lender;
use super::node::{Node, node, until, within};
use super::shown;
use super::stranger::{Met, Stranger};

/// What an honest peer does all the while, and how long it may take on a machine with two processors that are both busy
/// with the attack.
pub(super) async fn is_served(met: &Met) {
    let request = Request::post("/api/generate").body(exchange::full(r#"{"model":"m","prompt":"x"}"#)).unwrap();
    let served = async {
        let answer = met.exchange(request).await.unwrap();
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(10), served).await.expect("it is served");
}

/// Somebody whom a person trusts at the node, connected.
pub(super) async fn trusted(provider: &Node) -> (Stranger, Met) {
    let friend = Stranger::new("friend");
    provider.trust(friend.id, Scope::Infer).await;
    let met = within(friend.dial(provider.mesh)).await;
    (friend, met)
}

/// The first packets of handshakes that nobody means to finish.
fn first_packets(count: usize, node: SocketAddr) -> Vec<Vec<u8>> {
    let crypto = QuicClientConfig::try_from(shown::client(Some(key().0), default_provider())).unwrap();
    let config = quinn_proto::ClientConfig::new(Arc::new(crypto));
    let mut settings = EndpointConfig::default();
    settings.cid_generator(|| Box::new(RandomConnectionIdGenerator::new(8)));
    let mut endpoint = quinn_proto::Endpoint::new(Arc::new(settings), None, true, None);
    let mut packets = Vec::new();
    for _ in 0..count {
        let now = Instant::now();
        let (_, mut connection) = endpoint.connect(now, config.clone(), node, "ollana").unwrap();
        let mut packet = Vec::new();
        let sent = connection.poll_transmit(now, 1, &mut packet).unwrap();
        packet.truncate(sent.size);
        packets.push(packet);
    }
    packets
}

/// Sends each from a port of its own, and reads what comes back: bytes out and in.
fn send_all(packets: &[Vec<u8>], node: SocketAddr) -> (usize, usize) {
    let (mut sent, mut heard) = (0, 0);
    let mut buffer = [0; 2048];
    let sockets: Vec<_> = packets
        .iter()
        .map(|packet| {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            sent += socket.send_to(packet, node).unwrap();
            socket
        })
        .collect();
    // What a node says, it says at once; the rest is of later tries, which the bound below covers as well.
    std::thread::sleep(Duration::from_millis(300));
    for socket in &sockets {
        while let Ok(length) = socket.recv(&mut buffer) {
            heard += length;
        }
    }
    (sent, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_by_the_thousand_keep_nobody_out_and_are_no_amplifier() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (friend, met) = trusted(&provider).await;
    let address = provider.mesh;
    let flood = tokio::task::spawn_blocking(move || {
        let (mut sent, mut heard) = (0, 0);
        for _ in 0..5 {
            let (out, back) = send_all(&first_packets(500, address), address);
            sent += out;
            heard += back;
        }
        (sent, heard)
    });
    while !flood.is_finished() {
        is_served(&met).await;
        // And who comes anew is let in.
        is_served(&within(friend.dial(address)).await).await;
    }
    let newcomer = Evil::new().meet(address, "newcomer").await.unwrap();
    assert_eq!(newcomer.ask("GET", "/api/version", &[], b"").await.unwrap().status, 200);
    let (sent, heard) = flood.await.unwrap();
    assert!(sent > 2_500_000 && heard < sent, "{sent} bytes sent and {heard} heard");
    assert!(heard > 0, "they were handshakes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_keys_takes_neither_connections_nor_pins_from_those_who_are_trusted_or_elsewhere() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (friend, met) = trusted(&provider).await;
    // A hundred keys from one address, with as many connections each as they get.
    let mut held = Vec::new();
    let mut turned_away = 0;
    for n in 0..100 {
        let evil = Evil::new().at(Ipv4Addr::new(127, 0, 0, 2));
        match evil.meet(provider.mesh, &format!("swarm{n}")).await {
            Ok(session) => held.push((evil, session)),
            Err(error) => {
                assert!(error.to_string().contains("too many connections"), "{error}");
                turned_away += 1;
            }
        }
    }
    assert_eq!((held.len(), turned_away), (32, 68));
    let pinned = || provider.view().peers().iter().filter(|peer| peer.trust == Trust::FirstUse).count();
    assert!(pinned() <= 32, "{}", pinned());
    // They go, and others come from the same address: connections are free again, pins are not.
    drop(held);
    let mut crowded = 0;
    for n in 0..20 {
        let evil = Evil::new().at(Ipv4Addr::new(127, 0, 0, 2));
        let session = loop {
            match evil.meet(provider.mesh, &format!("later{n}")).await {
                Ok(session) => break session,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let said = session.ask("GET", "/api/version", &[], b"").await.unwrap();
        crowded += usize::from(said.status == 403);
        session.connection.close(VarInt::from_u32(0), b"");
    }
    assert_eq!(crowded, 20, "one address has pinned more keys than it may");
    is_served(&met).await;
    is_served(&within(friend.dial(provider.mesh)).await).await;
    // Whom nobody trusts, and who comes from elsewhere, is pinned and served.
    let other = Evil::new().at(Ipv4Addr::new(127, 0, 0, 3)).meet(provider.mesh, "other").await.unwrap();
    assert_eq!(other.ask("GET", "/api/version", &[], b"").await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_has_few_connections_and_holds_no_more_by_not_saying_hello() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let evil = Evil::new();
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(evil.meet(provider.mesh, "greedy").await.unwrap());
    }
    let fifth = evil.meet(provider.mesh, "greedy").await;
    assert!(fifth.is_err_and(|error| error.to_string().contains("too many connections")));
    // Others say nothing at all, and are let go after 5 s.
    let silent = Evil::new().dial(provider.mesh).await.unwrap();
    let since = Instant::now();
    let closed = within(silent.closed()).await.to_string();
    assert!(closed.contains("no hello in time") && since.elapsed() < Duration::from_secs(7), "{closed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_hold_their_own_connection_up_and_end_after_ten_seconds() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let slow = Evil::new().meet(provider.mesh, "slow").await.unwrap();
    let whole = frame(REQUEST, &head("GET", "/api/version", &[], false));
    let mut crumbs = JoinSet::new();
    for n in 0..200usize {
        let connection = slow.connection.clone();
        let whole = whole.clone();
        crumbs.spawn(async move {
            let Ok((mut send, recv)) = connection.open_bi().await else { return (false, Duration::ZERO) };
            let since = Instant::now();
            // A byte now and then, and never the last.
            for byte in &whole[..whole.len() - 1] {
                if send.write_all(&[*byte]).await.is_err() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(500 + (n % 7) as u64)).await;
            }
            let said = Frames::of(recv).answer().await;
            (said.is_some(), since.elapsed())
        });
    }
    for _ in 0..20 {
        is_served(&met).await;
    }
    // Those that are looked at first are let go after ten seconds; the others are not even looked at yet.
    let (answered, took) = within(crumbs.join_next()).await.unwrap().unwrap();
    assert!(!answered && took > Duration::from_secs(9) && took < Duration::from_secs(20), "{took:?}");
    is_served(&met).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_opened_and_left_are_bounded_and_cost_others_nothing() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let evil = Evil::new().meet(provider.mesh, "opener").await.unwrap();
    let mut streams = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), evil.connection.open_bi()).await {
        let (mut send, recv) = stream.unwrap();
        // Opened in earnest: a byte goes out.
        let _ = send.write_all(&[REQUEST]).await;
        streams.push((send, recv));
        assert!(streams.len() <= 1536, "more streams than there may be");
    }
    assert!(streams.len() >= 1500, "{}", streams.len());
    for _ in 0..20 {
        is_served(&met).await;
    }
    // A unidirectional one there is none of.
    assert!(tokio::time::timeout(Duration::from_millis(200), evil.connection.open_uni()).await.is_err());
    assert!(evil.connection.send_datagram(vec![0; 10].into()).is_err(), "nor datagrams");
    // Who may do nothing here has eight.
    let closed = node("closed").paired().start().await;
    let unwanted = Evil::new().meet(closed.mesh, "unwanted").await.unwrap();
    let mut opened = Vec::new();
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), unwanted.connection.open_bi()).await {
        opened.push(stream.unwrap());
    }
    assert!((1..=8).contains(&opened.len()), "{}", opened.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_in_every_state_leave_nothing_running() {
    let ollama = FakeOllama::start(&["m"]).await;
    ollama.set(|settings| settings.pace = Duration::from_millis(5));
    let provider = lender(&ollama).await;
    let evil = Evil::new().meet(provider.mesh, "fickle").await.unwrap();
    let prompt = br#"{"model":"m","prompt":"x","options":{"num_predict":100000}}"#;
    let stages = [
        frame(REQUEST, &[])[..2].to_vec(),
        frame(REQUEST, &head("POST", "/api/generate", &[], true)),
        frame(DATA, &prompt[..20]),
        frame(DATA, &prompt[20..]),
        frame(END, &[]),
    ];
    for round in 0..3 {
        for upto in 0..=stages.len() {
            for way in 0..4 {
                let (mut send, mut recv) = within(evil.connection.open_bi()).await.unwrap();
                let from = usize::from(upto > 1);
                for stage in stages.get(from..upto).unwrap_or_default() {
                    send.write_all(stage).await.unwrap();
                }
                if upto == stages.len() && round > 0 {
                    // In the middle of the answer.
                    within(recv.read_chunk(10, true)).await.unwrap();
                }
                match way {
                    0 => drop(send.reset(VarInt::from_u32(7))),
                    1 => drop(recv.stop(VarInt::from_u32(7))),
                    2 => {
                        let _ = recv.stop(VarInt::MAX);
                        let _ = send.reset(VarInt::MAX);
                    }
                    // Its end where no end belongs; and whoever hears no more has gone.
                    _ => {
                        let _ = send.finish();
                        let _ = recv.stop(VarInt::from_u32(0));
                    }
                }
            }
        }
    }
    ollama.until(|counts| counts.running == 0).await;
    let good = evil.ask("GET", "/api/version", &[], b"").await.unwrap();
    assert_eq!(good.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_reads_nothing_stalls_its_own_answers_and_no_ones_memory() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let deaf = Evil::new().meet(provider.mesh, "deaf").await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let (mut send, recv) = within(deaf.connection.open_bi()).await.unwrap();
        let ask = head("GET", "/api/version?fake=download&bytes=100000000000", &[], false);
        send.write_all(&frame(REQUEST, &ask)).await.unwrap();
        streams.push((send, recv));
    }
    ollama.until(|counts| counts.of("/fake/download") == 20).await;
    // What has left the Ollama stops growing: it is held up all the way.
    let mut sent = 0;
    until("the answers to stall", || {
        let before = std::mem::replace(&mut sent, ollama.counts().sent);
        std::thread::sleep(Duration::from_millis(300));
        (sent > 0 && sent == before).then_some(())
    })
    .await;
    assert!(sent < 20 * (8 << 20), "{sent} bytes were taken of answers that nobody reads");
    for _ in 0..20 {
        is_served(&met).await;
    }
    // It goes, and so do they.
    deaf.connection.close(VarInt::from_u32(0), b"");
    ollama.until(|counts| counts.running == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_hear_that_it_is_its_turn_keeps_no_slot() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = node("gpu1").lends(&ollama).runs(1).start().await;
    until("an Ollama that is lent", || provider.view().ollama().lent.then_some(())).await;
    let (_friend, met) = trusted(&provider).await;
    // Room for the acknowledgement, and for nothing behind it.
    let deaf = Evil::new().hearing(6).meet(provider.mesh, "deaf").await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..3 {
        let (mut send, mut recv) = within(deaf.connection.open_bi()).await.unwrap();
        send.write_all(&frame(TICKET, br#"{"model":"m","copies":1}"#)).await.unwrap();
        let mut acknowledged = [0];
        within(recv.read_exact(&mut acknowledged)).await.unwrap();
        streams.push((send, recv));
    }
    for _ in 0..3 {
        is_served(&met).await;
    }
    assert_eq!(ollama.counts().of("/api/generate"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_without_an_end_of_one_peer_are_no_burden_on_others() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let (_friend, met) = trusted(&provider).await;
    let hog = Evil::new().meet(provider.mesh, "hog").await.unwrap();
    let mut streams = Vec::new();
    let image = frame(DATA, &vec![b'x'; 12 << 20]);
    for _ in 0..6 {
        let (mut send, recv) = within(hog.connection.open_bi()).await.unwrap();
        send.write_all(&frame(REQUEST, &head("POST", "/api/generate", &[], true))).await.unwrap();
        send.write_all(&frame(DATA, br#"{"images":[""#)).await.unwrap();
        // Refused in the middle, as soon as there is no room.
        let sent = within(send.write_all(&image)).await;
        streams.push((send, recv, sent.is_ok()));
    }
    // A trusted one whose model comes as late finds room.
    let late = [&br#"{"images":[""#[..], &vec![b'x'; 12 << 20], br#""],"model":"m","prompt":"x"}"#].concat();
    let request = Request::post("/api/generate").body(exchange::full(late)).unwrap();
    let answer = within(met.exchange(request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let (_, recv, _) = streams.pop().unwrap();
    let refused = within(Frames::of(recv).answer()).await.unwrap();
    assert_eq!(refused.status, 503, "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_models_that_are_not_there_makes_ollama_list_few_times() {
    let ollama = FakeOllama::start(&["m"]).await;
    let provider = lender(&ollama).await;
    let evil = Arc::new(Evil::new().meet(provider.mesh, "curious").await.unwrap());
    let before = ollama.counts().of("/api/tags");
    let since = Instant::now();
    let mut asked = JoinSet::new();
    for n in 0..400 {
        let evil: Arc<Session> = evil.clone();
        asked.spawn(async move {
            let body = format!(r#"{{"model":"none{n}","prompt":"x"}}"#);
            evil.ask("POST", "/api/generate", &[], body.as_bytes()).await.unwrap().status
        });
    }
    let statuses: HashSet<u16> = within(asked.join_all()).await.into_iter().collect();
    assert_eq!(statuses, HashSet::from([404]));
    let listed = ollama.counts().of("/api/tags") - before;
    let most = 3 + u64::try_from(since.elapsed().as_millis() / 100).unwrap() + since.elapsed().as_secs() * 4;
    assert!(listed <= most, "{listed} lists in {:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_turned_away_for_want_of_places_is_told_so() {
    let provider = node("gpu1").start().await;
    let stranger = Stranger::new("many");
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(within(stranger.dial(provider.mesh)).await);
    }
    let fifth = stranger.transport.dial(provider.mesh).await.unwrap();
    assert!(within(fifth.closed()).await.is(CloseCode::Busy));
}
