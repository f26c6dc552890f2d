//! Several servers under load, and what happens to them.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::app::{App, End, MODEL, Ollama, PATIENCE};
use crate::netns::{Host, Lan, Net};
use crate::node::{Home, Node, until};
use crate::{CHANGE, SOON};

/// Of each provider.
const SLOTS: u32 = 2;
/// Words of each answer, how long one takes, and all of them.
const WORDS: usize = 10;
const PACE: Duration = Duration::from_millis(50);
const LENGTH: Duration = Duration::from_millis(500);
/// Of what the servers can do.
const LOAD: f64 = 0.85;
/// "It comes back: it has its share within 5 s."
const SHARE: Duration = Duration::from_secs(5);

/// Providers with slots, and users.
struct Lab {
    // Before their homes, where their logs are.
    users: Vec<Node>,
    nodes: Vec<Option<Node>>,
    /// One on each user's machine.
    apps: Vec<App>,
    providers: Vec<(Host, Home, Ollama)>,
    _laptops: Vec<(Host, Home)>,
}

/// Applications that ask at a steady rate, each in a thread of its own, until this is stopped.
struct Load {
    stop: std::sync::mpsc::Sender<()>,
    asking: JoinHandle<Vec<JoinHandle<()>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// One of their requests.
#[derive(Debug, Clone)]
struct Asked {
    at: Instant,
    /// When the head of the answer was there, and from whom it is.
    head: Option<(Instant, String)>,
    end: End,
}

// === impl Lab ===

impl Lab {
    fn new(net: &Net, lan: &Lan, providers: usize, users: usize) -> Self {
        let providers: Vec<_> = (0..providers)
            .map(|n| {
                let name = format!("gpu{n}");
                let host = net.host(&name, lan);
                let ollama = Ollama::with(&host, &[MODEL], |settings| {
                    (settings.pace, settings.parallel, settings.record) = (PACE, SLOTS as usize, false);
                });
                (host, Home::new(&name).with_slots(SLOTS), ollama)
            })
            .collect();
        let nodes = providers.iter().map(|(host, home, _)| Some(Node::start(host, home, &[]))).collect();
        let laptops: Vec<_> = (0..users).map(|n| format!("laptop{n}")).collect();
        let laptops: Vec<_> = laptops.iter().map(|name| (net.host(name, lan), Home::new(name))).collect();
        let users: Vec<_> = laptops.iter().map(|(host, home)| Node::start(host, home, &[])).collect();
        for (user, (_, home, _)) in users.iter().flat_map(|user| providers.iter().map(move |one| (user, one))) {
            user.until_used(home.name(), CHANGE);
        }
        let apps: Vec<_> = laptops.iter().map(|(host, _)| App::on(host)).collect();
        // Loaded everywhere, and measured.
        for (_, home, _) in &providers {
            apps[0].chat_with(MODEL, "hello", WORDS, Some(home.name())).unwrap().must_be_right();
        }
        Self { users, nodes, apps, providers, _laptops: laptops }
    }

    fn user(&self) -> &Node {
        &self.users[0]
    }

    /// Requests a second that so many of the servers can just do.
    fn capacity(servers: usize) -> f64 {
        servers as f64 * f64::from(SLOTS) / LENGTH.as_secs_f64()
    }

    fn ollama(&self, provider: usize) -> &Ollama {
        &self.providers[provider].2
    }

    /// How many requests each Ollama was given so far.
    fn chats(&self) -> Vec<u64> {
        self.providers.iter().map(|(_, _, ollama)| ollama.chats()).collect()
    }

    /// How many each is given within a time.
    fn chats_within(&self, time: Duration) -> Vec<u64> {
        let before = self.chats();
        std::thread::sleep(time);
        self.chats().iter().zip(before).map(|(now, before)| now - before).collect()
    }

    /// What part of the slots of these providers had work, looked at again and again for that time.
    fn busy_within(&self, time: Duration, providers: &[usize]) -> f64 {
        let (until, mut looks, mut running) = (Instant::now() + time, 0, 0);
        while Instant::now() < until {
            looks += providers.len() * SLOTS as usize;
            running += providers.iter().map(|provider| self.ollama(*provider).counts().running).sum::<usize>();
            std::thread::sleep(Duration::from_millis(10));
        }
        running as f64 / looks as f64
    }

    /// How many requests wait at each provider, as the first user is told.
    fn waiting(&self) -> BTreeMap<String, f64> {
        let peers: Value = serde_json::from_str(&self.user().ollana(&["peers", "--json"]).unwrap()).unwrap();
        let of = |peer: &Value| Some((peer["name"].as_str()?.to_owned(), peer["numbers"][MODEL]["queued"].as_f64()?));
        peers.as_array().unwrap().iter().filter_map(of).collect()
    }

    fn no_ollama_is_swamped(&self) {
        for (_, home, ollama) in &self.providers {
            assert!(ollama.counts().most_at_a_model <= SLOTS as usize, "{}: {:?}", home.name(), ollama.counts());
        }
    }
}

// === impl Load ===

impl Load {
    /// So many a second, of each application in turn.
    fn start(apps: &[App], rate: f64) -> Self {
        let (stop, stopped): (_, Receiver<()>) = channel();
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let (apps, into) = (apps.to_vec(), asked.clone());
        let asking = std::thread::spawn(move || {
            let (since, mut threads) = (Instant::now(), Vec::new());
            for n in 0u32.. {
                let next = since + Duration::from_secs_f64(f64::from(n) / rate);
                if stopped.recv_timeout(next.saturating_duration_since(Instant::now())).is_ok() {
                    break;
                }
                let (app, into) = (apps[n as usize % apps.len()].clone(), into.clone());
                threads.push(std::thread::spawn(move || {
                    let asked = ask(&app, n);
                    into.lock().unwrap().push(asked);
                }));
            }
            threads
        });
        Self { stop, asking, asked }
    }

    /// Waits until so many were answered.
    fn lasts(&self, requests: f64) {
        until(PATIENCE, format!("{requests} answers"), || {
            (self.asked.lock().unwrap().len() as f64 > requests).then_some(())
        });
    }

    /// Asks no more, and waits for all that was asked.
    fn stop(self) -> Vec<Asked> {
        self.stop.send(()).unwrap();
        for thread in self.asking.join().unwrap() {
            thread.join().unwrap();
        }
        let mut asked = std::mem::take(&mut *self.asked.lock().unwrap());
        asked.sort_by_key(|asked| asked.at);
        asked
    }
}

fn ask(app: &App, n: u32) -> Asked {
    let at = Instant::now();
    match app.chat(&format!("number {n}"), WORDS) {
        Ok(chat) => {
            let head = chat.peer.clone().filter(|_| chat.status == 200).map(|peer| (Instant::now(), peer));
            Asked { at, head, end: chat.ends() }
        }
        Err(error) => Asked { at, head: None, end: End::Refused(error) },
    }
}

pub fn a_provider_that_is_killed_under_load_costs_nobody_an_answer_and_has_its_share_again_within_5_s() {
    let (net, lan) = Net::new();
    let mut lab = Lab::new(&net, &lan, 4, 3);
    let rate = LOAD * Lab::capacity(4);
    let load = Load::start(&lab.apps, rate);
    load.lasts(2.0 * rate);
    until(PATIENCE, "the first works", || (lab.ollama(0).counts().running > 0).then_some(()));

    lab.nodes[0].as_mut().unwrap().kill();
    let killed = Instant::now();
    std::thread::sleep(SOON);
    // More than the others can do, of whose slots one in seven had no work before.
    let busy = lab.busy_within(SOON, &[1, 2, 3]);
    assert!(busy > 0.94, "of the slots that are left {busy:.2} have work");
    lab.user().until_peer("gpu0", CHANGE, |peer| ["unreachable", "connecting"].contains(&peer.state.as_str()));

    let (host, home, _) = &lab.providers[0];
    lab.nodes[0] = Some(Node::start(host, home, &[]));
    lab.user().until_used("gpu0", CHANGE);
    // All that waits sees it come, idle, at the same time.
    let (until, mut most) = (Instant::now() + SHARE, 0.0_f64);
    while Instant::now() < until {
        let waiting = lab.waiting();
        let here = waiting.get("gpu0").copied().unwrap_or_default();
        let elsewhere = waiting.iter().filter(|(name, _)| *name != "gpu0").map(|(_, queued)| *queued);
        most = most.max(here - elsewhere.fold(0.0, f64::max));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(most <= f64::from(SLOTS), "{most} more wait there than anywhere else");
    let taken = lab.chats_within(Duration::from_secs(2));
    let fair = taken.iter().sum::<u64>() as f64 / 4.0;
    assert!(taken[0] as f64 >= fair / 2.0, "after {SHARE:?} it gets {taken:?}");
    lab.no_ollama_is_swamped();

    for asked in load.stop() {
        let Asked { at, head, end } = &asked;
        match (end, head) {
            (End::Whole, _) => {}
            // Its answer had begun, at the one that died.
            (End::Broken, Some((head, peer))) if peer == "gpu0" && *head <= killed + SOON && *at <= killed => {}
            _ => panic!("{:?} before it was killed: {asked:?}", killed.saturating_duration_since(*at)),
        }
    }
}

pub fn a_provider_that_stops_under_load_finishes_what_runs_and_nothing_is_lost() {
    let (net, lan) = Net::new();
    let mut lab = Lab::new(&net, &lan, 3, 1);
    let rate = LOAD * Lab::capacity(3);
    let load = Load::start(&lab.apps, rate);
    load.lasts(2.0 * rate);
    lab.ollama(0).until_running(SLOTS as usize);

    let mut stopping = lab.nodes[0].take().unwrap();
    stopping.ollana(&["stop"]).unwrap();
    assert_eq!(stopping.ends(CHANGE).code(), Some(0));
    let taken = lab.chats_within(SOON);
    assert!(taken[0] == 0 && taken[1..].iter().all(|chats| *chats > 0), "{taken:?}");
    let asked = load.stop();
    let lost: Vec<_> = asked.iter().filter(|asked| asked.end != End::Whole).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    assert_eq!(lab.ollama(0).counts().aborted, 0, "what ran was finished");
    lab.no_ollama_is_swamped();
}

pub fn a_provider_whose_ollama_fails_at_once_draws_little() {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 3, 1);
    let before = lab.chats();
    lab.ollama(0).set(|settings| settings.failing = true);
    // The two that are left can do that.
    let rate = LOAD * Lab::capacity(2);
    let load = Load::start(&lab.apps, rate);
    load.lasts(8.0 * rate);
    let asked = load.stop();
    let lost: Vec<_> = asked.iter().filter(|asked| asked.end != End::Whole).collect();
    assert!(lost.is_empty(), "{lost:#?}");
    let drawn: Vec<_> = lab.chats().iter().zip(before).map(|(now, before)| now - before).collect();
    let peers = lab.user().ollana(&["peers"]).unwrap();
    let held = |line: &str| line.contains("left alone for") || line.contains("deprioritized");
    assert!(peers.lines().any(|line| line.contains("gpu0") && held(line)), "{peers}");
    // Until the breaker opens, and now and then one that tries: after 1, 2 and 4 s.
    assert!((3..=10).contains(&drawn[0]), "of {} requests: {drawn:?}", asked.len());
}

pub fn a_request_is_explained_after_the_fact() {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 2, 1);
    let explained = |id: &str| -> (String, Value) {
        let json = lab.user().ollana(&["explain", id, "--json"]).unwrap();
        (lab.user().ollana(&["explain", id]).unwrap(), serde_json::from_str(&json).unwrap())
    };
    let chat = lab.apps[0].chat("why", WORDS).unwrap();
    let (id, peer) = (chat.request.clone().unwrap(), chat.peer.clone().unwrap());
    chat.must_be_right();
    let (text, json) = explained(&id);
    let told = ["POST /api/chat", MODEL, "gpu0", "gpu1", &format!("sent to {peer}"), "the answer began", "completed"];
    assert!(told.iter().all(|part| text.contains(part)), "{text}");
    assert_eq!((&json["id"], &json["model"], &json["status"]), (&id.clone().into(), &MODEL.into(), &200.into()));
    let servers = json["looks"][0]["servers"].as_array().unwrap();
    let mut names: Vec<_> = servers.iter().map(|server| server["peer"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["gpu0", "gpu1"], "who could have served it");
    for server in servers {
        let number = |key: &str| server[key].as_f64().unwrap();
        assert!(
            number("score_s") > 0.0 && number("service_s") > 0.0 && number("slots") == f64::from(SLOTS),
            "{server}"
        );
        assert_eq!(server["warm"], true);
    }
    let best = |key: &str| servers[0][key].clone();
    assert!(best("chosen") == true && best("score_s").as_f64() <= servers[1]["score_s"].as_f64(), "{json:#}");
    let tries = json["tries"].as_array().unwrap();
    assert_eq!((tries.len(), &tries[0]["peer"], &tries[0]["outcome"]), (1, &peer.into(), &"200".into()));
    let times = ["sent_ms", "head_ms", "end_ms"].map(|key| json[key].as_u64().unwrap());
    assert!(times.is_sorted() && u128::from(times[2]) >= LENGTH.as_millis(), "{times:?}");
    let listed = lab.user().ollana(&["explain"]).unwrap();
    assert!(listed.lines().nth(1).unwrap().contains(&id), "the latest comes first: {listed}");

    // One that has to wait says for what.
    let full: Vec<_> = (0..2 * SLOTS).map(|n| lab.apps[0].chat(&format!("long {n}"), 2 * WORDS).unwrap()).collect();
    let waited = lab.apps[0].chat("wait", 1).unwrap();
    let id = waited.request.clone().unwrap();
    waited.must_be_right();
    let (text, json) = explained(&id);
    assert!(text.contains("queues at") && text.contains(&format!("{SLOTS} of {SLOTS}")), "{text}");
    assert!(text.contains("slot reserved") && json["tries"][0]["slot"] == true, "{text}");
    assert!(json["sent_ms"].as_u64().unwrap() >= 100, "it waited: {text}");
    full.into_iter().for_each(|chat| drop(chat.must_be_right()));

    let unknown = lab.user().ollana(&["explain", "aaaaaaaa"]).unwrap_err();
    assert!(unknown.contains("aaaaaaaa") && unknown.contains("`ollana explain` lists"), "{unknown}");
    let malformed = lab.user().ollana(&["explain", "gpu0"]).unwrap_err();
    assert!(malformed.contains("ollana-request"), "{malformed}");
}
