//! Exchanges between two real QUIC endpoints on loopback.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ollana::internals::exchange::{self, Ask, Body, Endpoint, ExchangeError, Health, ResetCode};
use ollana::internals::id::{NodeName, Use};
use ollana::internals::identity::Identity;
use ollana::internals::transport::remote::Face;
use ollana::internals::transport::{self, CloseCode, Closed, Connection, Pulse, Remote, Transport};
use tokio::sync::{mpsc, oneshot, watch};

/// Two nodes, one connection: `user` dials `provider`.
struct Pair {
    provider: Connection,
    remote: Remote,
    pulse: Arc<Pulse>,
    _transports: [Transport; 2],
}

fn transport() -> Transport {
    let socket = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    Transport::new(&Identity::ephemeral().unwrap(), socket).unwrap()
}

async fn pair() -> Pair {
    let (user, provider) = (transport(), transport());
    let address = provider.local_addr().unwrap();
    let accept = async { provider.accept().await.unwrap().shake_hands().await.unwrap() };
    let (dialled, accepted) = tokio::join!(async { user.dial(address).await.unwrap() }, accept);
    accepted.admit(true);
    let pulse = Arc::new(Pulse::new());
    let face = watch::channel(Face { label: NodeName::lossy("gpu1"), use_: Use::Yes, trusted: false }).1;
    let remote = Remote::new(
        dialled,
        face,
        watch::channel(Arc::default()).1,
        watch::channel(Arc::default()).1,
        Arc::clone(&pulse),
    );
    Pair { provider: accepted, remote, pulse, _transports: [user, provider] }
}

/// Serves the next exchange with `answer`; resolves to how it ended.
async fn serve<A>(
    provider: &Connection,
    answer: impl FnOnce(Request<Body>) -> A,
) -> Result<(), transport::stream::PumpError>
where
    A: Future<Output = Result<Response<Body>, ExchangeError>>,
{
    let incoming = provider.accept_exchange().await.unwrap();
    let (request, responder) = incoming.open(&NodeName::lossy("user")).await?.request()?;
    // Boxed: a test's future is as large as all that it waits for.
    Box::pin(responder.answer(answer(request))).await
}

/// A body whose frames the test sends one by one.
fn scripted() -> (mpsc::Sender<Result<Frame<Bytes>, ExchangeError>>, Body) {
    let (send, receive) = mpsc::channel(1);
    let frames = stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) });
    (send, StreamBody::new(frames).boxed_unsync())
}

fn data(text: &'static str) -> Result<Frame<Bytes>, ExchangeError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("it takes too long")
}

#[tokio::test]
async fn an_exchange_crosses_whole_with_headers_bodies_and_trailers() {
    let pair = pair().await;
    let served = serve(&pair.provider, async |request: Request<Body>| {
        assert_eq!(request.uri(), "/api/chat?x=1");
        assert_eq!(request.headers().get_all("x-two").iter().collect::<Vec<_>>(), ["a", "b"]);
        let body = request.into_body().collect().await.unwrap();
        let trailers = HeaderMap::from_iter([("x-end".parse().unwrap(), HeaderValue::from_static("yes"))]);
        let frames = stream::iter([Ok(Frame::data(body.to_bytes())), Ok(Frame::trailers(trailers))]);
        Ok(Response::builder().status(201).header("x-b", "1").body(StreamBody::new(frames).boxed_unsync()).unwrap())
    });
    let big = Bytes::from(vec![7; 3_000_000]);
    let request =
        Request::post("/api/chat?x=1").header("x-two", "a").header("x-two", "b").body(exchange::full(big.clone()));
    let asked = async {
        let response = pair.remote.exchange(request.unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()["x-b"]), (201, &HeaderValue::from_static("1")));
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x-end"], "yes");
        assert!(body.to_bytes() == big);
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap() }, asked) })).await;
}

#[tokio::test]
async fn each_piece_arrives_before_the_next_is_made() {
    let pair = pair().await;
    let (send, body) = scripted();
    let served = serve(&pair.provider, async |_| Ok(Response::new(body)));
    let asked = async {
        let mut body =
            pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap()).await.unwrap().into_body();
        for token in ["one", "two", "three"] {
            send.send(data(token)).await.unwrap();
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), token);
        }
        drop(send);
        assert!(body.frame().await.is_none());
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap() }, asked) })).await;
}

#[tokio::test]
async fn both_directions_flow_at_once() {
    let pair = pair().await;
    let served = serve(&pair.provider, async |request: Request<Body>| {
        Ok(Response::new(request.into_body().map_frame(|frame| frame).boxed_unsync()))
    });
    let (send, body) = scripted();
    let asked = async {
        let mut echo = pair.remote.exchange(Request::post("/").body(body).unwrap()).await.unwrap().into_body();
        for token in ["ping", "pong"] {
            send.send(data(token)).await.unwrap();
            assert_eq!(echo.frame().await.unwrap().unwrap().into_data().unwrap(), token);
        }
        drop(send);
        assert!(echo.frame().await.is_none());
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap() }, asked) })).await;
}

#[tokio::test]
async fn a_break_behind_the_gate_is_a_break_and_never_an_end() {
    let pair = pair().await;
    let served = serve(&pair.provider, async |_| {
        let broken = ExchangeError::Ollama("x".into(), "reset".into());
        Ok(Response::new(StreamBody::new(stream::iter([data("half"), Err(broken)])).boxed_unsync()))
    });
    let asked = async {
        let mut body =
            pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap()).await.unwrap().into_body();
        loop {
            match body.frame().await.expect("no end before the break") {
                Ok(frame) => assert_eq!(frame.into_data().unwrap(), "half"),
                Err(ExchangeError::Reset(_, code)) => break assert_eq!(code, ResetCode::Upstream),
                Err(other) => panic!("{other}"),
            }
        }
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap_err() }, asked) })).await;
}

#[tokio::test]
async fn a_body_of_another_length_than_its_head_says_is_a_break() {
    let pair = pair().await;
    for (length, pieces) in [("4", ["ab", "c"]), ("2", ["ab", "c"]), ("2", ["abc", "d"])] {
        let served = serve(&pair.provider, async |_| {
            let body = StreamBody::new(stream::iter(pieces.map(data))).boxed_unsync();
            Ok(Response::builder().header("content-length", length).body(body).unwrap())
        });
        let asked = async {
            let answer = pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap()).await.unwrap();
            let error = answer.into_body().collect().await.expect_err("a break");
            assert!(matches!(error, ExchangeError::Protocol(..)), "{error}");
        };
        let _ = within(Box::pin(async { tokio::join!(served, asked) })).await;
    }
}

#[tokio::test]
async fn who_gives_up_ends_the_work_in_every_phase() {
    let pair = pair().await;
    // While the answer is awaited.
    let (working, mut dropped) = oneshot::channel::<()>();
    let served = serve(&pair.provider, async |_| {
        let _working = working;
        std::future::pending().await
    });
    let asked = async {
        let exchange = pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(50), exchange).await.is_err());
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap_err() }, asked) })).await;
    assert_eq!(dropped.try_recv(), Err(oneshot::error::TryRecvError::Closed));
    // Between two tokens.
    let (send, body) = scripted();
    let served = serve(&pair.provider, async |_| Ok(Response::new(body)));
    let asked = async {
        let mut body =
            pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap()).await.unwrap().into_body();
        send.send(data("one")).await.unwrap();
        body.frame().await.unwrap().unwrap();
        drop(body);
        send.closed().await;
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap_err() }, asked) })).await;
    // During an upload.
    let (send, body) = scripted();
    let served = serve(&pair.provider, async |request: Request<Body>| {
        request.into_body().collect().await?;
        panic!("the body had no end")
    });
    let asked = async {
        send.send(data("one")).await.unwrap();
        let exchange = pair.remote.exchange(Request::post("/").body(body).unwrap());
        assert!(tokio::time::timeout(Duration::from_millis(50), exchange).await.is_err());
        send.closed().await;
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap_err() }, asked) })).await;
}

#[tokio::test]
async fn an_answer_may_come_before_the_body_was_read() {
    let pair = pair().await;
    let served = serve(&pair.provider, async |_unread| Ok(Response::new(exchange::full("already there"))));
    let endless = stream::repeat_with(|| Ok(Frame::data(Bytes::from_static(&[0; 65536]))));
    let asked = async {
        let request = Request::post("/").body(StreamBody::new(endless).boxed_unsync()).unwrap();
        let body = pair.remote.exchange(request).await.unwrap().into_body();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "already there");
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap() }, asked) })).await;
}

#[tokio::test]
async fn a_reader_that_stalls_stalls_the_writer() {
    let pair = pair().await;
    let (send, mut sent) = mpsc::channel(1000);
    let served = serve(&pair.provider, async |_| {
        let chunks = stream::repeat_with(move || {
            let _ = send.try_send(());
            Ok(Frame::data(Bytes::from_static(&[0; 65536])))
        });
        Ok(Response::new(StreamBody::new(chunks.take(1000)).boxed_unsync()))
    });
    let asked = async {
        let body = pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap()).await.unwrap().into_body();
        // All that is in flight, by the windows of the stream and of quinn's send buffer.
        let mut before = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            if sent.len() == before {
                break;
            }
            before = sent.len();
        }
        assert!((1..=170).contains(&before), "{before} chunks of 64 KiB were made for a reader that reads nothing");
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 65_536_000);
        while sent.recv().await.is_some() {}
    };
    within(Box::pin(async { tokio::join!(async { served.await.unwrap() }, asked) })).await;
}

#[tokio::test]
async fn a_missing_acknowledgement_makes_the_peer_suspect_and_a_late_one_well_again() {
    let pair = pair().await;
    let mut health = pair.pulse.watch();
    let asked = pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap());
    let served = async {
        // The gate takes the stream and does nothing.
        let incoming = pair.provider.accept_exchange().await.unwrap();
        health.wait_for(|health| *health == Health::Suspect).await.unwrap();
        // That it says something else is no acknowledgement.
        pair.pulse.spoke();
        assert_eq!(*health.borrow_and_update(), Health::Suspect);
        let (_, responder) = incoming.open(&NodeName::lossy("user")).await.unwrap().request().unwrap();
        health.wait_for(|health| *health == Health::Healthy).await.unwrap();
        responder.answer(async { Ok(Response::new(exchange::full("late"))) }).await.unwrap();
    };
    let (answer, ()) = within(Box::pin(async { tokio::join!(asked, served) })).await;
    assert_eq!(answer.unwrap().into_body().collect().await.unwrap().to_bytes(), "late");
}

/// How a peer is lost.
const WAYS: [fn(&Pair); 2] = [
    |pair| {
        pair.pulse.gone();
    },
    |pair| pair.provider.close(CloseCode::Goodbye, "this node stops"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_peer_that_is_gone_moves_on() {
    for (lose, before) in WAYS.into_iter().flat_map(|way| [(way, Health::Healthy), (way, Health::Suspect)]) {
        let pair = pair().await;
        let asked = pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap());
        let (asked, queues) = (tokio::spawn(asked), tokio::spawn(pair.remote.queue(Ask::default()).turn));
        let _kept = [within(pair.provider.accept_exchange()).await, within(pair.provider.accept_exchange()).await];
        within(pair.pulse.watch().wait_for(|health| *health == before)).await.unwrap();
        lose(&pair);
        // Whether the gate has taken it nobody knows; of who only queues it has nothing.
        let answer = within(asked).await.unwrap();
        assert!(matches!(answer, Err(ExchangeError::Lost(_))), "{answer:?}");
        let turn = within(queues).await.unwrap();
        assert!(matches!(turn, Err(ExchangeError::Unreachable(_))), "{turn:?}");
        // Nothing is owed any more.
        pair.pulse.spoke();
        assert_eq!(*pair.pulse.watch().borrow(), Health::Healthy);
    }
}

#[tokio::test]
async fn what_was_acknowledged_by_a_peer_that_is_lost_says_so() {
    for lose in WAYS {
        let pair = pair().await;
        let asked = pair.remote.exchange(Request::get("/").body(exchange::empty()).unwrap());
        let served = async {
            let incoming = pair.provider.accept_exchange().await.unwrap();
            let _kept = incoming.open(&NodeName::lossy("user")).await.unwrap().request().unwrap();
            // Until the acknowledgement has crossed.
            tokio::time::sleep(Duration::from_millis(200)).await;
            lose(&pair);
            std::future::pending::<()>().await
        };
        let answer = within(async {
            tokio::select! { answer = asked => answer, () = served => unreachable!() }
        })
        .await;
        assert!(matches!(answer, Err(ExchangeError::Lost(_))), "{answer:?}");
    }
}

#[tokio::test]
async fn a_closed_connection_says_why_in_harmless_words() {
    let (user, provider) = (transport(), transport());
    let address = provider.local_addr().unwrap();
    let accept = async { provider.accept().await.unwrap().shake_hands().await.unwrap() };
    let (dialled, accepted) = tokio::join!(async { user.dial(address).await.unwrap() }, accept);
    accepted.close(CloseCode::Revoked, "revoked\u{1b}[2J");
    let closed = within(dialled.closed()).await;
    assert!(closed.is(CloseCode::Revoked));
    assert_eq!(closed, Closed::ByPeer(1, "revoked[2J".into()));
    assert_eq!(closed.to_string(), "this node's key is revoked there", "in this side's words");
}

#[tokio::test]
async fn a_node_that_was_killed_and_comes_back_tells_that_old_connections_are_over() {
    let identity = Identity::ephemeral().unwrap();
    let user = transport();
    let socket = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = socket.local_addr().unwrap();
    // Killed: its runtime is gone in one step, and nothing is said.
    let first_life = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let provider = {
        let _inside = first_life.enter();
        Transport::new(&identity, socket).unwrap()
    };
    let accepted = first_life.spawn(async move {
        let connection = provider.accept().await.unwrap().shake_hands().await.unwrap();
        connection.closed().await;
    });
    let dialled = user.dial(address).await.unwrap();
    first_life.shutdown_background();
    drop(accepted);
    let socket = within(async {
        loop {
            match transport::bind(address) {
                Ok(socket) => break socket,
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    })
    .await;
    let _second_life = Transport::new(&identity, socket).unwrap();
    // The keep-alive meets a stranger, well before the connection would count as silent.
    assert_eq!(within(dialled.closed()).await, Closed::Restarted);
}
