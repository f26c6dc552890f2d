//! What is left of very many exchanges on one connection: nothing. A test of its own process, whose memory it looks at.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
mod tickets;

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use ollana::internals::exchange::{self, Body, Endpoint, ExchangeError};
use ollana::internals::id::{NodeName, Use};
use ollana::internals::identity::Identity;
use ollana::internals::transport::remote::Face;
use ollana::internals::transport::{self, Connection, Pulse, Remote, Transport};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// At once; fewer than a peer may have open.
const AT_ONCE: usize = 64;
/// Until all that is kept for reuse is there.
const WARM: usize = 4_000;
/// The exchanges that are measured, of each kind.
const EXCHANGES: usize = 20_000;
/// They are measured twice.
const HALF: usize = EXCHANGES / 2;
/// What they may leave behind: an allocator's odds and ends. One entry an exchange in a table of quinn's took 780 kB.
const LEFT: i64 = 400 * 1024;

/// Held by the one whose memory is measured.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Both ends of a connection.
struct Pair {
    dialled: Connection,
    accepted: Connection,
    _transports: [Transport; 2],
}

/// How an exchange ends before its time.
#[derive(Debug, Clone, Copy)]
enum End {
    /// The user goes away while it waits for the answer.
    Cancelled,
    /// The user goes away in the middle of the answer.
    InMidAnswer,
    /// The user goes away in the middle of its request.
    InMidUpload,
    /// The Ollama behind the gate cannot be reached.
    NoAnswer,
    /// The Ollama behind the gate breaks off.
    BrokenAnswer,
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
    Pair { dialled, accepted, _transports: [user, provider] }
}

/// Answers whatever comes as its path says.
async fn serve(connection: Connection) {
    let mut running = JoinSet::new();
    while let Ok(incoming) = connection.accept_exchange().await {
        while running.try_join_next().is_some() {}
        running.spawn(async move {
            let (request, responder) = incoming.open(&NodeName::lossy("user")).await?.request()?;
            let path = request.uri().path().to_owned();
            let answer = async {
                // Ollama takes its time: by then it is known whether the user is still there.
                tokio::task::yield_now().await;
                let broken = || ExchangeError::Ollama("x".into(), "refused".into());
                match path.as_str() {
                    "/NoAnswer" => Err(broken()),
                    "/BrokenAnswer" => Ok(Response::new(body([Some(data()), Some(Err(broken()))]))),
                    "/InMidAnswer" => Ok(Response::new(body([Some(data()), None]))),
                    "/InMidUpload" => Err(request.into_body().collect().await.unwrap_err()),
                    _ => pending().await,
                }
            };
            responder.answer(answer).await
        });
    }
}

fn data() -> Result<Frame<Bytes>, ExchangeError> {
    Ok(Frame::data(Bytes::from_static(b"word")))
}

/// A body of these frames, of which `None` never comes.
fn body(frames: [Option<Result<Frame<Bytes>, ExchangeError>>; 2]) -> Body {
    let frames = stream::iter(frames).then(async |frame| match frame {
        Some(frame) => frame,
        None => pending().await,
    });
    StreamBody::new(frames).boxed_unsync()
}

async fn ask(remote: &Remote, end: End) {
    let request = Request::post(format!("/{end:?}"));
    match end {
        End::Cancelled => {
            let exchange = remote.exchange(request.body(exchange::empty()).unwrap());
            let _ = tokio::time::timeout(Duration::from_millis(5), exchange).await.unwrap_err();
        }
        End::InMidAnswer => {
            let answer = remote.exchange(request.body(exchange::empty()).unwrap()).await.unwrap();
            answer.into_body().frame().await.unwrap().unwrap();
        }
        End::InMidUpload => {
            let exchange = remote.exchange(request.body(body([Some(data()), None])).unwrap());
            let _ = tokio::time::timeout(Duration::from_millis(5), exchange).await.unwrap_err();
        }
        End::NoAnswer => {
            remote.exchange(request.body(exchange::empty()).unwrap()).await.unwrap_err();
        }
        End::BrokenAnswer => {
            let answer = remote.exchange(request.body(exchange::empty()).unwrap()).await.unwrap();
            answer.into_body().collect().await.unwrap_err();
        }
    }
}

async fn ask_often(remote: &Arc<Remote>, end: End, times: usize) {
    stream::iter(0..times).for_each_concurrent(AT_ONCE, |_| ask(remote, end).boxed()).await;
}

/// Resident, in bytes.
fn memory() -> i64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap() * 1024
}

#[cfg_attr(not(target_os = "linux"), ignore = "asks Linux how much memory it takes")]
#[tokio::test]
async fn exchanges_that_end_before_their_time_leave_nothing_behind_on_their_connection() {
    let _alone = ALONE.lock().await;
    let pair = pair().await;
    let _serving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(serve(pair.accepted.clone())));
    let face = watch::channel(Face { label: NodeName::lossy("gpu1"), use_: Use::Yes, trusted: false }).1;
    let remote = Remote::new(
        pair.dialled.clone(),
        face,
        watch::channel(Arc::default()).1,
        watch::channel(Arc::default()).1,
        Arc::new(Pulse::new()),
    );
    let remote = Arc::new(remote);
    for end in [End::Cancelled, End::InMidAnswer, End::InMidUpload, End::NoAnswer, End::BrokenAnswer] {
        ask_often(&remote, end, WARM).await;
        let mut left = [0; 2];
        for left in &mut left {
            let before = memory();
            ask_often(&remote, end, HALF).await;
            *left = memory() - before;
            println!("{end:?}: {left} bytes, {} an exchange", *left / HALF as i64);
        }
        // What an allocator or a table takes once and for all may come late; what is left behind is so in both halves.
        assert!(left.iter().any(|left| *left < LEFT / 2), "{end:?}: {left:?} bytes are left of {HALF} exchanges each");
    }
}
