//! Who waits at the gate, for how long, and what comes of it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use http::StatusCode;
use http_body_util::BodyExt as _;
use ollana::internals::exchange::{Answer, Ask, Body, Load, ModelLoad, REFUSAL_HEADER, Residence, Slot, Ticket, Turn};
use ollana::internals::gate::{Caller, GateSettings, Weights};
use ollana::internals::id::{Id, NodeName, Scope};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fake_ollama::Settings;
use crate::{Provider, by_hand, peer as laptop, post, read, request};

/// Answers that go on until somebody goes away.
fn endless() -> Settings {
    Settings { pace: Duration::from_millis(5), tokens: 1_000_000, parallel: 64, ..Settings::default() }
}

fn parallel(slots: u32) -> GateSettings {
    GateSettings { parallel: Some(slots), ..GateSettings::default() }
}

fn peer(n: u8) -> Caller {
    Caller::Peer {
        id: Id::from_bytes([n; 32]),
        name: NodeName::lossy(&format!("peer{n}")),
        scope: Scope::Infer,
        trusted: false,
    }
}

fn ask(model: &str, tokens: usize) -> http::Request<Body> {
    post("/api/generate", &json!({"model":model,"prompt":"x","options":{"num_predict":tokens}}))
}

fn place(provider: &Provider, caller: &Caller, model: &str, copies: u8) -> Ticket {
    let caller = caller.clone();
    provider.gate.queue(move || caller.clone(), &Ask { model: model.to_owned(), copies, ..Ask::default() })
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

async fn turn(ticket: Ticket) -> Turn {
    within(ticket.turn).await.unwrap()
}

async fn slot(ticket: Ticket) -> Slot {
    match turn(ticket).await {
        Turn::Slot(slot) => slot,
        refused => panic!("{refused:?}"),
    }
}

impl Provider {
    /// Takes a slot and keeps it for as long as the answer is kept.
    async fn hold(&self, caller: Caller, model: &str) -> http::Response<Body> {
        let mut answer = within(self.gate.serve(caller, ask(model, 1_000_000))).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let _ = within(answer.body_mut().frame()).await.unwrap().unwrap();
        answer
    }

    /// How busy the model is at this very moment.
    fn of(&self, model: &str) -> ModelLoad {
        self.gate.load().borrow().of(&format!("{model}:latest"))
    }

    async fn until(&self, wanted: impl FnMut(&Arc<Load>) -> bool) {
        let mut load: watch::Receiver<Arc<Load>> = self.gate.load();
        let seen = timeout(Duration::from_secs(30), load.wait_for(wanted)).await.map(|seen| seen.map(drop));
        seen.unwrap_or_else(|_| panic!("{:?}", self.gate.load().borrow())).unwrap();
    }

    async fn start_one(settings: Settings) -> Self {
        Self::start_as(&["m", "n"], settings, parallel(1)).await
    }
}

#[tokio::test]
async fn how_many_models_fit_is_told_where_the_owner_says_it() {
    let settings = GateSettings { max_loaded: Some(3), ..parallel(1) };
    let provider = Provider::start_as(&["m"], Settings::default(), settings).await;
    provider.until(|load| load.most_loaded == Some(3)).await;
}

#[tokio::test]
async fn no_more_reach_an_ollama_than_it_works_on_at_a_time() {
    for slots in [1, 2, 4] {
        let settings = Settings { pace: Duration::from_millis(2), parallel: 64, ..Settings::default() };
        let provider =
            Provider::start_as(&["m"], Settings { load: Duration::from_millis(300), ..settings }, parallel(slots))
                .await;
        let slots = slots as usize;
        let mut answers = JoinSet::new();
        for n in 0..24 {
            let caller = if n % 5 == 4 { Caller::Owner } else { peer(n % 5) };
            answers.spawn(provider.gate.serve(caller, ask("m", 5)));
        }
        let waits = (24 - slots) as f32;
        assert_eq!((provider.of("m").running as usize, provider.of("m").queued), (slots, waits), "before anything ran");
        assert_eq!(provider.gate.load().borrow().inflight, 24);
        // Also while it is loaded.
        within(provider.fake.until(|counts| counts.waiting == slots)).await;
        while let Some(answer) = within(answers.join_next()).await {
            let answer = read(answer.unwrap().unwrap()).await;
            assert_eq!((answer.status, answer.body.lines().count()), (StatusCode::OK, 6));
        }
        assert_eq!(provider.fake.counts().most_at_a_model, slots);
        provider.until(|load| load.inflight == 0 && load.of("m:latest").running == 0).await;
        let load = provider.of("m");
        assert!(load.waited > 0.0, "those that had to wait have waited");
        assert_eq!(load, ModelLoad { residence: Residence::Memory, running: 0, queued: 0.0, begun: 24, ..load });
    }
}

#[tokio::test]
async fn models_do_not_wait_for_each_other() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "m").await;
    drop(provider.hold(peer(1), "n").await);
}

#[tokio::test]
async fn what_is_asked_for_is_in_the_load_when_the_call_returns() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "m").await;
    let waiting = provider.gate.serve(peer(2), ask("m", 1));
    let ticket = place(&provider, &peer(3), "m", 2);
    assert_eq!((provider.of("m").queued, provider.gate.load().borrow().inflight), (1.5, 2));
    drop(waiting);
    assert_eq!((provider.of("m").queued, provider.gate.load().borrow().inflight), (0.5, 1));
    drop(ticket);
    assert_eq!(provider.of("m").queued, 0.0);
}

#[tokio::test]
async fn a_withdrawn_request_or_ticket_reaches_no_ollama_and_leaves_its_place() {
    let provider = Provider::start_one(endless()).await;
    let holds = provider.hold(peer(1), "m").await;
    let first = tokio::spawn(provider.gate.serve(peer(1), ask("m", 1)));
    let ticket = place(&provider, &peer(1), "m", 1);
    let mut last = place(&provider, &peer(1), "m", 1);
    provider.until(|load| load.of("m:latest").queued == 3.0).await;
    assert_eq!(last.place.borrow_and_update().ahead, 2.0);
    first.abort();
    within(last.place.wait_for(|place| place.ahead == 1.0)).await.unwrap();
    drop(ticket);
    within(last.place.wait_for(|place| place.ahead == 0.0)).await.unwrap();
    assert_eq!(provider.fake.counts().of("/api/generate"), 1);
    drop(holds);
    let answer = read(within(slot(last).await.exchange(ask("m", 3))).await.unwrap()).await;
    assert_eq!(answer.body.lines().count(), 4);
    assert_eq!(provider.fake.counts().of("/api/generate"), 2);
}

#[tokio::test]
async fn a_ticket_that_has_to_wait_says_at_once_where_it_stands() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "m").await;
    let _before: Vec<_> = (0..3).map(|_| place(&provider, &peer(2), "m", 2)).collect();
    let mut ticket = place(&provider, &peer(2), "m", 1);
    assert!(ticket.place.has_changed().unwrap(), "whoever passes it on has something to say");
    assert_eq!(ticket.place.borrow_and_update().ahead, 1.5);
}

#[tokio::test]
async fn a_slot_that_is_not_used_goes_to_the_next() {
    let provider = Provider::start_one(endless()).await;
    let unused = slot(place(&provider, &peer(1), "m", 2)).await;
    assert_eq!(provider.of("m").running, 1);
    let waiting = tokio::spawn(provider.gate.serve(peer(2), ask("m", 3)));
    provider.until(|load| load.of("m:latest").queued == 1.0).await;
    drop(unused);
    assert_eq!((provider.of("m").running, provider.of("m").queued), (1, 0.0), "at once");
    assert_eq!(read(within(waiting).await.unwrap().unwrap()).await.status, StatusCode::OK);
    // Nor is it kept for one that does not say what it wants.
    let (says_nothing, body) = by_hand();
    let since = Instant::now();
    let silent = slot(place(&provider, &peer(1), "m", 2)).await;
    let silent = tokio::spawn(silent.exchange(http::Request::post("/api/generate").body(body).unwrap()));
    let answer = read(within(provider.gate.serve(peer(2), ask("m", 3))).await.unwrap()).await;
    assert!(answer.status == StatusCode::OK && since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    // It has not lost its request by that.
    let late = json!({"model":"m","prompt":"x","options":{"num_predict":2}}).to_string();
    says_nothing.send(Ok(late.into())).await.unwrap();
    drop(says_nothing);
    assert_eq!(read(within(silent).await.unwrap().unwrap()).await.body.lines().count(), 3);
    provider.until(|load| load.of("m:latest").running == 0).await;
}

#[tokio::test]
async fn a_slot_of_one_model_is_none_of_another() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "n").await;
    let slot = slot(place(&provider, &peer(1), "m", 1)).await;
    let other = slot.exchange(ask("n", 1));
    assert_eq!((provider.of("m").running, provider.of("n").queued), (0, 1.0));
    drop(other);
    assert_eq!(provider.of("n").queued, 0.0);
}

#[tokio::test]
async fn a_slot_is_for_who_may_still_use_it_when_the_request_comes() {
    let provider = Provider::start_one(Settings::default()).await;
    let scope = Arc::new(Mutex::new(Scope::Infer));
    let now = scope.clone();
    let caller = move || laptop(*now.lock().unwrap());
    let ticket = provider.gate.queue(caller.clone(), &Ask { model: "m".to_owned(), ..Ask::default() });
    let slot = slot(ticket).await;
    *scope.lock().unwrap() = Scope::None;
    let answer = read(within(slot.exchange(ask("m", 1))).await.unwrap()).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::FORBIDDEN, Some("scope")));
    assert_eq!(provider.of("m").running, 0);
    let Turn::Refused(answer) =
        turn(provider.gate.queue(caller, &Ask { model: "m".to_owned(), ..Ask::default() })).await
    else {
        panic!("it has a slot");
    };
    assert_eq!(
        (answer.status(), &answer.headers()[REFUSAL_HEADER]),
        (StatusCode::FORBIDDEN, &"scope".parse().unwrap())
    );
}

#[tokio::test]
async fn of_two_peers_that_flood_the_first_is_soon_not_ahead_any_more() {
    let settings = Settings { pace: Duration::from_millis(2), ..Settings::default() };
    let provider = Provider::start_one(settings).await;
    let holds = provider.hold(Caller::Guest, "m").await;
    let turns = Arc::new(Mutex::new(Vec::new()));
    let mut all: JoinSet<()> = JoinSet::new();
    for n in [vec![1; 30], vec![2; 10]].concat() {
        let (turns, ticket) = (turns.clone(), place(&provider, &peer(n), "m", 2));
        all.spawn(async move {
            let slot = slot(ticket).await;
            turns.lock().unwrap().push(n);
            assert_eq!(read(within(slot.exchange(ask("m", 3))).await.unwrap()).await.status, StatusCode::OK);
        });
    }
    drop(holds);
    within(all.join_all()).await;
    let turns = turns.lock().unwrap().clone();
    let seconds: Vec<_> = turns.iter().enumerate().filter(|(_, n)| **n == 2).map(|(at, _)| at).collect();
    // Each may have two turns ahead of its share and the one that is due, as they came; then it is turn and turn about.
    let expected: Vec<_> = [3, 4, 5].into_iter().chain((0..7).map(|turn| 2 * turn + 7)).collect();
    assert_eq!(seconds, expected, "{turns:?}");
}

#[tokio::test]
async fn a_peer_with_twice_the_share_has_twice_as_many_turns() {
    let mut weights = Weights::default();
    weights.set(Id::from_bytes([1; 32]), 2.0);
    let lends = GateSettings { weights, ..parallel(1) };
    let provider = Provider::start_as(&["m"], Settings::default(), lends).await;
    let _held = slot(place(&provider, &Caller::Guest, "m", 1)).await;
    let _tickets: Vec<_> = (0..20).map(|n| place(&provider, &peer(1 + n % 2), "m", 1)).collect();
    let next = |n| place(&provider, &peer(n), "m", 1).place.borrow().ahead;
    // The eleventh of the one comes after five or six of the other, and the eleventh of the other after all of them.
    assert!((15.0..=17.0).contains(&next(1)), "{}", next(1));
    assert_eq!(next(2), 20.0);
}

#[tokio::test]
async fn the_owner_does_not_queue_behind_peers() {
    let provider = Provider::start_one(endless()).await;
    let holds = provider.hold(peer(1), "m").await;
    let tickets: Vec<_> = (2..6).map(|n| place(&provider, &peer(n), "m", 1)).collect();
    let owners = tokio::spawn(provider.gate.serve(Caller::Owner, ask("m", 3)));
    provider.until(|load| load.of("m:latest").queued == 5.0).await;
    drop(holds);
    assert_eq!(read(within(owners).await.unwrap().unwrap()).await.status, StatusCode::OK);
    for ticket in tickets {
        drop(slot(ticket).await);
    }
}

#[tokio::test]
async fn what_is_kept_for_the_owner_no_peer_gets() {
    let provider = Provider::start_as(&["m"], endless(), GateSettings { reserve: 1, ..parallel(2) }).await;
    let _first = provider.hold(peer(1), "m").await;
    let waits = provider.gate.serve(peer(2), ask("m", 1));
    assert_eq!((provider.of("m").running, provider.of("m").queued), (1, 1.0));
    let _owners = provider.hold(Caller::Owner, "m").await;
    drop(waits);
}

#[tokio::test]
async fn where_no_more_may_wait_it_is_said_at_once_and_in_the_words_of_the_api() {
    // Of four places strangers have two.
    let provider = Provider::start_as(&["m"], endless(), GateSettings { queue: 4, ..parallel(1) }).await;
    let _holds = provider.hold(peer(1), "m").await;
    let _waiting = [2, 3].map(|n| place(&provider, &peer(n), "m", 1));
    let whole = json!({"model":"m","messages":[{"role":"user","content":"x"}],"max_tokens":1});
    for (path, pointer) in [("/api/chat", "/error"), ("/v1/chat/completions", "/error/message")] {
        let answer = within(provider.ask(peer(4), post(path, &whole))).await;
        assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("busy")));
        let after: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((5..=60).contains(&after), "three of some seconds: {after}");
        let error: Value = serde_json::from_str(&answer.body).unwrap();
        assert!(error.pointer(pointer).unwrap().as_str().unwrap().contains("requests wait"), "{error}");
    }
    let answer = within(provider.ask(peer(4), post("/v1/messages", &whole))).await;
    assert_eq!(serde_json::from_str::<Value>(&answer.body).unwrap()["error"]["type"], "overloaded_error");
    assert!(matches!(turn(place(&provider, &peer(4), "m", 2)).await, Turn::Refused(answer) if answer.status() == 503));
    // The owner's places are others.
    let owners = provider.gate.serve(Caller::Owner, ask("m", 1));
    assert_eq!(provider.of("m").queued, 3.0);
    drop(owners);
}

#[tokio::test]
async fn what_no_runner_works_for_does_not_wait() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "m").await;
    for (caller, asked) in [
        (peer(1), post("/api/show", &json!({"model":"m"}))),
        (peer(1), request("GET", "/api/tags", "")),
        (peer(1), request("GET", "/api/version", "")),
        (peer(1), request("GET", "/v1/models/m", "")),
        (peer(1), post("/api/generate", &json!({"model":"m"}))),
        (peer(1), post("/api/chat", &json!({"model":"m","messages":[]}))),
        (laptop(Scope::Manage), post("/api/copy", &json!({"source":"m","destination":"c"}))),
        (Caller::Owner, post("/api/generate", &json!({"model":"m","keep_alive":0}))),
    ] {
        let what = asked.uri().clone();
        let answer = within(provider.ask(caller, asked)).await;
        assert_eq!(answer.status, StatusCode::OK, "{what}: {}", answer.body);
        assert_eq!(provider.of("m").running, 1);
    }
}

#[tokio::test]
async fn every_route_that_runs_a_model_waits() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "m").await;
    let body = json!({"model":"m","prompt":"x","input":"x","messages":[{"role":"user","content":"x"}]});
    for path in [
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/messages",
    ] {
        for caller in [peer(1), Caller::Owner, Caller::Guest] {
            let waits: Answer = Box::pin(provider.gate.serve(caller, post(path, &body)));
            assert_eq!(provider.of("m").queued, 1.0, "{path}");
            drop(waits);
        }
    }
    let form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--x--\r\n";
    let form = http::Request::post("/v1/audio/transcriptions")
        .header("content-type", "multipart/form-data; boundary=x")
        .body(ollana::internals::exchange::full(form));
    let waits = provider.gate.serve(peer(1), form.unwrap());
    assert_eq!(provider.of("m").queued, 1.0);
    drop(waits);
}

#[tokio::test]
async fn a_gate_that_drains_sends_those_away_that_wait_and_finishes_what_runs() {
    let settings = Settings { pace: Duration::from_millis(50), ..Settings::default() };
    let provider = Provider::start_one(settings).await;
    let runs = tokio::spawn(provider.ask_later(peer(1), 20));
    provider.until(|load| load.of("m:latest").running == 1).await;
    let waits = tokio::spawn(provider.ask_later(peer(2), 2));
    let owners = tokio::spawn(provider.ask_later(Caller::Owner, 2));
    let ticket = place(&provider, &peer(3), "m", 2);
    provider.until(|load| load.of("m:latest").queued == 2.5).await;
    provider.gate.drain();
    let answer = read(within(waits).await.unwrap()).await;
    assert_eq!((answer.status, answer.refusal.as_deref()), (StatusCode::SERVICE_UNAVAILABLE, Some("draining")));
    let Turn::Refused(answer) = turn(ticket).await else { panic!("it has a slot") };
    assert_eq!(answer.headers()[REFUSAL_HEADER], "draining");
    let Turn::Refused(answer) = turn(place(&provider, &peer(3), "m", 2)).await else { panic!("it has a slot") };
    assert_eq!(answer.headers()[REFUSAL_HEADER], "draining");
    assert_eq!(read(within(runs).await.unwrap()).await.body.lines().count(), 21);
    assert_eq!(read(within(owners).await.unwrap()).await.body.lines().count(), 3, "the owner's own go on");
    within(provider.gate.idle()).await;
}

#[tokio::test]
async fn who_waits_for_what_is_not_lent_any_more_is_sent_away() {
    let provider = Provider::start_one(endless()).await;
    let _holds = provider.hold(peer(1), "m").await;
    let waits = tokio::spawn(provider.ask_later(peer(2), 1));
    provider.until(|load| load.of("m:latest").queued == 1.0).await;
    provider.lend.send(false).unwrap();
    assert_eq!(read(within(waits).await.unwrap()).await.refusal.as_deref(), Some("not-lent"));
}

#[tokio::test]
async fn a_model_is_loading_until_its_first_word_and_then_in_memory() {
    let provider = Provider::start_one(Settings { load: Duration::from_secs(3600), ..endless() }).await;
    assert_eq!(provider.of("m"), ModelLoad::default());
    let loads = tokio::spawn(provider.gate.serve(peer(1), ask("m", 1)));
    provider.until(|load| load.of("m:latest").residence == Residence::Loading).await;
    loads.abort();
    provider.until(|load| load.of("m:latest") == ModelLoad::default()).await;
    provider.fake.set(|settings| settings.load = Duration::from_millis(500));
    let waits = tokio::spawn(provider.gate.serve(peer(1), ask("m", 1_000_000)));
    provider.until(|load| load.of("m:latest").residence == Residence::Loading).await;
    let answer = within(waits).await.unwrap().unwrap();
    assert_eq!(provider.of("m").residence, Residence::Memory, "no look at Ollama is waited for");
    // Nor is one believed that began before. After some looks it is still so.
    let looks = provider.fake.counts().of("/api/ps");
    within(provider.fake.until(|counts| counts.of("/api/ps") > looks + 1)).await;
    assert_eq!(provider.of("m").residence, Residence::Memory);
    drop(answer);
    let stop = post("/api/generate", &json!({"model":"m","keep_alive":0}));
    assert!(within(provider.ask(Caller::Owner, stop)).await.status.is_success());
    assert_eq!(provider.of("m").residence, Residence::Disk, "at once");
}

#[tokio::test]
async fn orders_to_load_do_not_fill_the_ollamas_own_queue() {
    let provider = Provider::start_one(Settings { load: Duration::from_secs(3600), ..endless() }).await;
    let load = || post("/api/generate", &json!({"model":"m"}));
    let orders: Vec<Answer> = (0..20).map(|_| Box::pin(provider.gate.serve(peer(1), load())) as Answer).collect();
    let orders = tokio::spawn(futures_util::future::join_all(orders));
    // Four as they come and one in the model's slot; the others wait for that.
    within(provider.fake.until(|counts| counts.of("/api/generate") == 5)).await;
    assert_eq!((provider.of("m").running, provider.of("m").queued), (1, 15.0));
    let owners = tokio::spawn(provider.gate.serve(Caller::Owner, load()));
    within(provider.fake.until(|counts| counts.of("/api/generate") == 6)).await;
    provider.fake.set(|settings| settings.load = Duration::ZERO);
    orders.abort();
    owners.abort();
    provider.until(|load| load.of("m:latest") == ModelLoad::default() && load.inflight == 0).await;
}

#[tokio::test]
async fn an_ollama_that_breaks_off_leaves_no_slot_taken() {
    let settings = Settings { break_after: Some(2), ..Settings::default() };
    let provider = Provider::start_one(settings).await;
    for _ in 0..5 {
        let answer = within(provider.gate.serve(peer(1), ask("m", 5))).await.unwrap();
        assert!(within(answer.into_body().collect()).await.is_err());
        assert_eq!(provider.of("m").running, 0);
    }
    provider.until(|load| load.inflight == 0).await;
}

#[tokio::test]
async fn an_error_keeps_no_slot_while_it_is_read_and_what_is_not_there_needs_none() {
    let provider = Provider::start_one(endless()).await;
    // Gone since the last look: it is the Ollama that says so.
    provider.fake.models(|models| models.retain(|model| model.name != "m:latest"));
    let first = within(provider.gate.serve(peer(1), ask("m", 1))).await.unwrap();
    let second = within(provider.gate.serve(peer(1), ask("m", 1))).await.unwrap();
    assert_eq!((first.status(), second.status()), (StatusCode::NOT_FOUND, StatusCode::NOT_FOUND));
    assert_eq!(provider.of("m"), ModelLoad::default());
    for caller in [peer(1), Caller::Owner] {
        let unread = (0..20).map(|_| provider.gate.serve(caller.clone(), ask("nobody", 1)));
        for unread in within(futures_util::future::join_all(unread)).await {
            assert_eq!(unread.unwrap().status(), StatusCode::NOT_FOUND);
        }
    }
}

impl Provider {
    /// Asks, and keeps the gate for that.
    fn ask_later(
        &self,
        caller: Caller,
        tokens: usize,
    ) -> impl Future<Output = http::Response<Body>> + Send + 'static + use<> {
        let answer = self.gate.serve(caller, ask("m", tokens));
        async move { answer.await.unwrap() }
    }
}
