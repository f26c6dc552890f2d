//! The same of requests that queue for a slot: at a real gate, before a simulated Ollama.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use ollana::internals::exchange::{self, Ask, Endpoint as _, Load, Turn};
use ollana::internals::gate::{Caller, Gate, GateSettings};
use ollana::internals::id::{Id, NodeName, Scope};
use ollana::internals::ollama::Ollama;
use ollana::internals::transport::incoming::Opening;
use ollana::internals::transport::remote::Face;
use ollana::internals::transport::stream::PumpError;
use ollana::internals::transport::{Connection, Incoming, Pulse, Remote};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::fake_ollama::{FakeOllama, Settings};
use super::{ALONE, AT_ONCE, EXCHANGES, HALF, LEFT, WARM, memory, pair};

/// Of the model: so few that most have to wait.
const SLOTS: u32 = 2;
/// What is over by then is over.
const SOON: Duration = Duration::from_secs(10);

fn laptop() -> Caller {
    Caller::Peer { id: Id::from_bytes([7; 32]), name: NodeName::lossy("laptop"), scope: Scope::Infer, trusted: true }
}

/// Lets a peer queue at the gate, as `inbound` does.
async fn serve(connection: Connection, gate: Arc<Gate>) {
    let mut running = JoinSet::new();
    while let Ok(incoming) = connection.accept_exchange().await {
        while running.try_join_next().is_some() {}
        running.spawn(queue(incoming, gate.clone()));
    }
}

async fn queue(incoming: Incoming, gate: Arc<Gate>) -> Result<(), PumpError> {
    let peer = NodeName::lossy("laptop");
    match incoming.open(&peer).await? {
        Opening::Request(request, responder) => Box::pin(responder.answer(gate.serve(laptop(), request))).await,
        Opening::Ticket(ask, waiting) => waiting.queue(gate.queue(laptop, &ask), &peer).await,
    }
}

/// What became of them.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Became {
    withdrawn: usize,
    unused: usize,
    answered: usize,
}

/// One that queues. Every other is withdrawn while it waits, and of the others every other leaves its slot unused.
async fn ask(remote: &Remote, n: usize) -> Became {
    let ask = Ask { model: "m".to_owned(), copies: if n.is_multiple_of(3) { 1 } else { 2 }, ..Ask::default() };
    let mut ticket = remote.queue(ask);
    if n.is_multiple_of(2) {
        tokio::select! {
            biased;
            turn = &mut ticket.turn => drop(turn.unwrap()),
            // It is in the queue.
            place = ticket.place.changed() => place.unwrap(),
        }
        return Became { withdrawn: 1, ..Became::default() };
    }
    let Turn::Slot(slot) = ticket.turn.await.unwrap() else { panic!("it is not queued") };
    if n % 4 == 1 {
        return Became { unused: 1, ..Became::default() };
    }
    let body = exchange::full(r#"{"model":"m","prompt":"x","options":{"num_predict":1}}"#);
    let answer = slot.exchange(Request::post("/api/generate").body(body).unwrap()).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer.into_body().collect().await.unwrap();
    Became { answered: 1, ..Became::default() }
}

async fn ask_often(remote: &Arc<Remote>, times: usize) -> Became {
    let asking = stream::iter(0..times).map(|n| ask(remote, n).boxed()).buffer_unordered(AT_ONCE);
    asking
        .fold(Became::default(), async |sum, one| Became {
            withdrawn: sum.withdrawn + one.withdrawn,
            unused: sum.unused + one.unused,
            answered: sum.answered + one.answered,
        })
        .await
}

fn is_idle(load: &Load) -> bool {
    load.inflight == 0 && load.models.values().all(|model| model.running == 0 && model.queued == 0.0)
}

/// Waits until nothing is left of all that was asked: nobody at the gate, no task.
async fn rests(gate: &Gate, tasks: usize) {
    let rest = async {
        gate.load().wait_for(|load| is_idle(load)).await.unwrap();
        while Handle::current().metrics().num_alive_tasks() > tasks {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let left =
        || format!("{:?}, {} tasks of {tasks}", gate.load().borrow(), Handle::current().metrics().num_alive_tasks());
    tokio::time::timeout(SOON, rest).await.unwrap_or_else(|_| panic!("left: {}", left()));
}

#[cfg_attr(not(target_os = "linux"), ignore = "asks Linux how much memory it takes")]
#[tokio::test]
async fn requests_that_queue_leave_nothing_behind_whatever_becomes_of_them() {
    let _alone = ALONE.lock().await;
    let settings = Settings { parallel: 64, record: false, ..Settings::default() };
    let fake = FakeOllama::start_with(&["m"], settings).await;
    let (ollama, _watching) = Ollama::spawn(&fake.url());
    ollama.state().wait_for(|state| state.healthy).await.unwrap();
    let lend = watch::Sender::new(true);
    let settings = GateSettings { parallel: Some(SLOTS), queue_each: 2 * AT_ONCE, ..GateSettings::default() };
    let gate = Gate::new(ollama, settings, lend.subscribe());
    let pair = pair().await;
    let _serving = AbortOnDropHandle::new(tokio::spawn(serve(pair.accepted.clone(), gate.clone())));
    let face =
        watch::channel(Face { label: NodeName::lossy("gpu1"), use_: ollana::internals::id::Use::Yes, trusted: false })
            .1;
    let (report, load) = (watch::channel(Arc::default()).1, watch::channel(Arc::default()).1);
    let remote = Arc::new(Remote::new(pair.dialled.clone(), face, report, load, Arc::new(Pulse::new())));

    ask_often(&remote, WARM).await;
    // Connections to the Ollama that are kept for the next are tasks too, no more of them than slots.
    tokio::time::timeout(SOON, gate.load().wait_for(|load| is_idle(load))).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let tasks = Handle::current().metrics().num_alive_tasks();
    let asked = fake.counts().of("/api/generate");
    let mut left = [0; 2];
    for left in &mut left {
        let before = memory();
        let became = ask_often(&remote, HALF).await;
        rests(&gate, tasks).await;
        *left = memory() - before;
        println!("{became:?}: {left} bytes, {} a request", *left / HALF as i64);
        assert_eq!(became, Became { withdrawn: HALF / 2, unused: HALF / 4, answered: HALF / 4 });
    }
    // What an allocator or a table takes once and for all may come late; what is left behind is so in both halves.
    assert!(left.iter().any(|left| *left < LEFT / 2), "{left:?} bytes are left of {HALF} requests each");
    let counts = fake.counts();
    let answered = counts.of("/api/generate") - asked;
    assert_eq!(answered, (EXCHANGES / 4) as u64, "what was withdrawn or left reached no Ollama");
    assert!(counts.running == 0 && counts.most_at_a_model <= SLOTS as usize, "{counts:?}");
    // No stream is open.
    tokio::time::timeout(SOON, pair.dialled.unused()).await.expect("no exchange is left");
}
