//! What is learned of the local Ollama from the answers that pass and from what the machine shows.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::BodyExt as _;
use ollana::internals::exchange::{Body, Pace, full};
use ollana::internals::ollama::{Cadence, Ollama, Slots, Work};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::fake_ollama::{FakeOllama, Settings};

const MODEL: &str = "smollm2:latest";

fn measured() -> Settings {
    Settings { measured: true, tokens: 20, pace: Duration::from_millis(10), ..Settings::default() }
}

/// Sends a request as a gate does, and reads what comes of it.
fn run(ollama: &Ollama, path: &'static str, body: Value) -> impl Future<Output = String> + Send + use<> {
    let request: Request<Body> = Request::post(path).body(full(body.to_string())).unwrap();
    let run = ollama.run(MODEL, Work::of(path).unwrap());
    let ollama = ollama.clone();
    async move {
        let answer = run.watch(ollama.send(request).await.unwrap());
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }
}

async fn until<T: Clone>(values: &mut watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) -> T {
    let found = timeout(Duration::from_secs(60), values.wait_for(wanted)).await;
    found.expect("it comes to that").unwrap().clone()
}

async fn pace(paces: &mut watch::Receiver<Arc<BTreeMap<String, Pace>>>, mut wanted: impl FnMut(&Pace) -> bool) -> Pace {
    until(paces, |paces| paces.get(MODEL).is_some_and(&mut wanted)).await[MODEL]
}

async fn healthy(ollama: &Ollama) {
    until(&mut ollama.state(), |state| state.healthy).await;
}

fn near(value: Option<f32>, truth: f64) -> bool {
    value.is_some_and(|value| (f64::from(value) / truth - 1.0).abs() < 0.02)
}

#[tokio::test]
async fn what_an_answer_says_of_itself_becomes_the_pace_of_its_model() {
    let settings = Settings { load: Duration::from_millis(300), prompt: Duration::from_millis(50), ..measured() };
    let fake = FakeOllama::start_with(&["smollm2"], settings).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    healthy(&ollama).await;
    let mut paces = ollama.paces();
    let prompt = vec!["word"; 100].join(" ");
    for (path, stream) in [("/api/generate", true), ("/api/chat", false)] {
        let body = match path {
            "/api/chat" => json!({"model":MODEL,"messages":[{"role":"user","content":prompt}],"stream":stream}),
            _ => json!({"model":MODEL,"prompt":prompt,"stream":stream}),
        };
        let said = run(&ollama, path, body).await;
        let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        let number = |name: &str| last[name].as_f64().unwrap_or_else(|| panic!("{name} in {last}"));
        if stream {
            assert_eq!(said.lines().count(), 21, "nothing is lost on the way");
            let pace = pace(&mut paces, |pace| pace.decode.is_some()).await;
            assert!(near(pace.decode, 19.0 / number("eval_duration") * 1e9), "{pace:?} of {last}");
            assert!(near(pace.prefill, 100.0 / number("prompt_eval_duration") * 1e9), "{pace:?} of {last}");
            assert!(near(pace.load, number("load_duration") / 1e9), "{pace:?} of {last}");
            assert_eq!((pace.prompt, pace.output), (Some(100.0), Some(20.0)));
        }
    }
}

#[tokio::test]
async fn an_answer_that_says_no_durations_is_measured_as_it_passes() {
    let fake = FakeOllama::start_with(&["smollm2"], Settings { tokens: 50, ..measured() }).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    healthy(&ollama).await;
    let mut paces = ollama.paces();
    let body = json!({"model":MODEL,"messages":[{"role":"user","content":"x"}],"stream":true});
    run(&ollama, "/v1/chat/completions", body).await;
    let pace = pace(&mut paces, |pace| pace.decode.is_some()).await;
    // A word takes 10 ms and what a busy machine adds to it.
    assert!((10.0..=110.0).contains(&pace.decode.unwrap()), "{pace:?}");
    assert!(pace.output.is_some_and(|output| (45.0..=55.0).contains(&output)), "{pace:?}");
}

#[tokio::test]
async fn a_server_that_becomes_slower_is_noticed_while_an_answer_runs() {
    let fake = FakeOllama::start_with(&["smollm2"], Settings { tokens: 100, ..measured() }).await;
    let (ollama, _watch) = Ollama::spawn_with(&fake.url(), false, Cadence::default().faster(4.0));
    healthy(&ollama).await;
    let mut paces = ollama.paces();
    run(&ollama, "/api/generate", json!({"model":MODEL,"prompt":"x"})).await;
    let before = pace(&mut paces, |pace| pace.decode.is_some()).await.decode.unwrap();
    // It says no more of itself before this is over, which is after an hour.
    fake.set(|settings| (settings.tokens, settings.pace) = (100_000, Duration::from_millis(50)));
    let long = tokio::spawn(run(&ollama, "/api/generate", json!({"model":MODEL,"prompt":"x"})));
    pace(&mut paces, |pace| pace.decode.is_some_and(|decode| decode < before / 2.0)).await;
    assert!(!long.is_finished());
    long.abort();
}

/// Words of the answers, one after the other. Of one length they would end in step for ever: whoever is handed over at the
/// end of one finds the next slot free in the same moment, and a probe that waits for nothing says nothing. They differ by
/// 300 ms, and a wait has to last 200 to say something.
const LENGTHS: [usize; 4] = [30, 120, 60, 90];

/// Hands over as many requests as it is told to, of as many as are wanted, until that has been so many and no more was to be
/// tried for a while; the most that were handed over at a time.
async fn contend(ollama: &Ollama, slots: u32) -> u32 {
    let (mut running, mut most, mut untried) = (JoinSet::new(), 0, 0);
    let under_way = Arc::new(AtomicU32::new(0));
    let mut lengths = LENGTHS.into_iter().cycle();
    let contention = async {
        while untried < 20 {
            let known = ollama.slots(MODEL);
            let now = under_way.load(Ordering::SeqCst);
            if now < known.at_once || (known.probe && now == known.at_once) {
                most = most.max(under_way.fetch_add(1, Ordering::SeqCst) + 1);
                let (ollama, under_way) = (ollama.clone(), under_way.clone());
                // Handed over at once, as a gate must before it asks again.
                let body = json!({"model":MODEL,"prompt":"x","options":{"num_predict":lengths.next()}});
                let run = run(&ollama, "/api/generate", body);
                running.spawn(async move {
                    run.await;
                    under_way.fetch_sub(1, Ordering::SeqCst);
                });
                continue;
            }
            running.join_next().await.unwrap().unwrap();
            // A probe that has failed is not repeated for ten minutes, one that said nothing within a second or so.
            let settled = known == Slots { at_once: slots, probe: false };
            untried = if settled && now <= slots { untried + 1 } else { 0 };
        }
    };
    timeout(Duration::from_secs(60), contention).await.expect("it comes to that");
    most
}

#[tokio::test]
async fn the_slots_of_a_runner_are_found_when_requests_contend() {
    let settings = Settings { parallel: 3, ..measured() };
    let fake = FakeOllama::start_with(&["smollm2"], settings).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    healthy(&ollama).await;
    assert_eq!(ollama.slots(MODEL), Slots { at_once: 1, probe: true });
    let most = contend(&ollama, 3).await;
    assert!(most <= 4, "one more than there are is tried, not {most}");
    assert_eq!(ollama.paces().borrow()[MODEL].slots, Some(3));
}

#[tokio::test]
async fn one_slot_is_found_by_the_wait_for_it() {
    let fake = FakeOllama::start_with(&["smollm2"], Settings { parallel: 1, ..measured() }).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    healthy(&ollama).await;
    assert_eq!(contend(&ollama, 1).await, 2);
    assert_eq!(ollama.paces().borrow()[MODEL].slots, Some(1));
}

#[tokio::test]
async fn how_many_models_fit_is_seen_when_one_makes_way() {
    let fake = FakeOllama::start(&["one", "two", "three"]).await;
    let loaded = |names: &[&str]| {
        fake.models(|models| {
            for model in models {
                model.loaded = names.contains(&model.name.as_str());
                model.expires_at = Some("2318-03-05T01:02:03.5+01:00".to_owned());
            }
        });
    };
    loaded(&["one:latest", "two:latest"]);
    let (ollama, _watch) = Ollama::spawn_with(&fake.url(), false, Cadence::default().faster(10.0));
    let mut memory = ollama.memory();
    let known = until(&mut memory, |memory| memory.models.len() == 2).await;
    assert!(known.most_loaded(None).is_none() && known.models["one:latest"].size > 0, "{known:?}");
    loaded(&["two:latest", "three:latest"]);
    until(&mut memory, |memory| memory.most_loaded(None) == Some(2)).await;
    loaded(&["one:latest", "two:latest", "three:latest"]);
    until(&mut memory, |memory| memory.most_loaded(None) == Some(3)).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn requests_that_go_straight_to_the_server_are_counted_and_ours_are_not() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    let settings = Settings { tokens: 100_000, pace: Duration::from_millis(100), ..Settings::default() };
    let fake = FakeOllama::start_with(&["smollm2"], settings).await;
    let (ollama, _watch) = Ollama::spawn(&fake.url());
    healthy(&ollama).await;
    let mut direct = ollama.direct();
    let ours = tokio::spawn(run(&ollama, "/api/generate", json!({"model":MODEL,"prompt":"x"})));
    let _kept = TcpStream::connect(fake.addr()).await.unwrap();
    let body = json!({"model":MODEL,"prompt":"x"}).to_string();
    let head = format!("POST /api/generate HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut straight = TcpStream::connect(fake.addr()).await.unwrap();
    straight.write_all((head + &body).as_bytes()).await.unwrap();
    fake.until(|counts| counts.running == 2).await;
    let reading = tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while straight.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    });
    assert_eq!(until(&mut direct, |direct| *direct > 0).await, 1);
    reading.abort();
    until(&mut direct, |direct| *direct == 0).await;
    assert!(!ours.is_finished(), "ours runs all the time");
    ours.abort();
}
