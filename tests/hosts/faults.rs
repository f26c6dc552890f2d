//! What happens to machines and networks, and what an application notices of it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::app::{App, MODEL, Next, Ollama, PATIENCE};
use crate::netns::{Host, Lan, Net};
use crate::node::{Home, Node, until};
use crate::{CHANGE, SOON};

/// Set to make tests as long as the issue says rather than as short as they can be.
const FULL: &str = "OLLANA_TEST_FULL";
/// When an answer that runs over a silent connection is given up, and some.
const GIVEN_UP: Duration = Duration::from_secs(20);

pub fn a_provider_that_is_killed_breaks_its_answers_and_the_next_request_is_served_by_another() {
    let (net, lan) = Net::new();
    let hosts = ["first", "second"].map(|name| net.host(name, &lan));
    let laptop = net.host("laptop", &lan);
    let ollamas = hosts.each_ref().map(|host| Ollama::with(host, &[MODEL], |s| s.pace = Duration::from_millis(100)));
    let homes = ["first", "second", "laptop"].map(Home::new);
    let mut first = Node::start(&hosts[0], &homes[0], &[]);
    let _second = Node::start(&hosts[1], &homes[1], &[]);
    let user = Node::start(&laptop, &homes[2], &[]);
    user.until_used("first", CHANGE);
    user.until_used("second", CHANGE);
    let app = App::on(&laptop);
    let endless = 100_000;
    let long = |n: usize, peer| app.chat_with(MODEL, &format!("long {n}"), endless, Some(peer)).unwrap();
    let mut dying: Vec<_> = (0..10).map(|n| long(n, "first")).collect();
    // The other has more to do, so that the next request would go to the one that is gone.
    let _busy: Vec<_> = (10..22).map(|n| long(n, "second")).collect();
    for chat in &mut dying {
        assert!(matches!(chat.next(), Next::Word(_)));
    }
    user.until_peer("first", CHANGE, |peer| peer.inflight == 10);
    user.until_peer("second", CHANGE, |peer| peer.inflight == 12);

    first.kill();
    let since = Instant::now();
    let chat = app.chat("next", 3).unwrap();
    let took = since.elapsed();
    assert_eq!((chat.status, chat.peer.as_deref()), (200, Some("second")));
    // Ollama's time to the first token is not ours.
    assert!(took < SOON + Duration::from_millis(100), "{took:?}");
    chat.must_be_right();
    ollamas[0].until_running(0);
    for chat in dying {
        chat.breaks_within(GIVEN_UP);
    }
    user.until_peer("first", CHANGE, |peer| ["unreachable", "connecting"].contains(&peer.state.as_str()));
    let line = user.logs(&["WARN", "POST /api/chat was cut off: the connection to first was lost"], CHANGE);
    assert!(!line.contains("long "), "no prompt: {line}");
    let listed = user.ollana(&["explain"]).unwrap();
    let cut_off = listed.lines().find(|line| line.ends_with("200, cut off")).unwrap_or_else(|| panic!("{listed}"));
    assert!(cut_off.contains("POST /api/chat") && cut_off.contains("first"), "{cut_off}");
    let told = user.ollana(&["explain", &cut_off[..8]]).unwrap();
    assert!(told.contains("cut off: the connection to first was lost") && !told.contains("completed"), "{told}");
}

pub fn a_bridge_that_is_cut_for_ten_seconds_ends_no_answer_and_hangs_no_request() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let _ollama = Ollama::with(&gpu, &[MODEL], |settings| settings.pace = Duration::from_millis(100));
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    user.until_used("gpu", CHANGE);
    let app = App::on(&laptop);
    let mut running = app.chat("before the cut", 150).unwrap();
    assert!(matches!(running.next(), Next::Word(_)));

    lan.cut();
    let since = Instant::now();
    // Not known to be dead yet; then known to be.
    for prompt in ["into the silence", "into the void"] {
        let asked = Instant::now();
        let refused = app.chat(prompt, 1).unwrap();
        assert!(matches!(refused.status, 502 | 503), "{}", refused.status);
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
    user.until_peer("gpu", CHANGE, |peer| ["unreachable", "connecting"].contains(&peer.state.as_str()));
    std::thread::sleep(Duration::from_secs(10).saturating_sub(since.elapsed()));
    lan.join();
    app.is_answered_within(CHANGE, "after the cut");
    assert_eq!(user.until_used("gpu", CHANGE).state, "connected");
    // A running answer outlives 15 s of silence.
    assert_eq!(running.must_be_right(), "gpu");
}

/// A provider and a user, and the provider's host changed while its node is down.
fn restarted(lan: &Lan, net: &Net, change: impl FnOnce(&Host)) {
    let (gpu, laptop) = (net.host("gpu", lan), net.host("laptop", lan));
    let _ollama = Ollama::start(&gpu);
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let mut provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    let before = user.until_used("gpu", CHANGE);
    let app = App::on(&laptop);
    assert_eq!(app.is_answered("before"), "gpu");
    provider.kill();
    change(&gpu);
    let provider = Node::start(&gpu, &homes[0], &[]);
    assert_eq!(provider.id(), before.id, "a node keeps its key");
    app.is_answered_within(CHANGE, "after");
    user.until_used("gpu", CHANGE);
    assert_eq!(user.peers().len(), 1, "{:?}", user.peers());
    // The other direction too: the provider sees its user again.
    provider.until_peer("laptop", CHANGE, |peer| peer.state == "connected" && peer.scope == "infer");
    // And a stop that is no power cut.
    provider.stop();
    user.until_peer("gpu", SOON, |peer| ["unreachable", "connecting"].contains(&peer.state.as_str()));
    let _again = Node::start(&gpu, &homes[0], &[]);
    app.is_answered_within(CHANGE, "once more");
}

pub fn a_node_that_comes_back_at_another_address_is_used_again() {
    let (net, lan) = Net::new();
    restarted(&lan, &net, |host| host.set_addresses("eth0", &["10.83.0.200/24"]));
}

pub fn a_node_that_comes_back_at_its_address_is_used_again() {
    let (net, lan) = Net::new();
    restarted(&lan, &net, |_| {});
}

pub fn a_node_whose_address_changes_while_it_runs_is_used_again() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let _ollama = Ollama::start(&gpu);
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    user.until_used("gpu", CHANGE);
    let app = App::on(&laptop);
    gpu.set_addresses("eth0", &["10.83.0.200/24"]);
    // 3 s of silence come first.
    app.is_answered_within(2 * CHANGE, "at the new address of the provider");
    laptop.set_addresses("eth0", &["10.83.0.201/24"]);
    app.is_answered_within(2 * CHANGE, "at the new address of the user");
    user.until_used("gpu", CHANGE);
}

pub fn answers_are_right_although_a_fifth_of_all_datagrams_gets_lost() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let _ollama = Ollama::with(&gpu, &[MODEL], |settings| settings.pace = Duration::from_millis(10));
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    user.until_used("gpu", CHANGE);
    // Of all that comes in at both ends, discovery and QUIC alike.
    gpu.lose(20);
    laptop.lose(20);
    let lasts = Duration::from_secs(if std::env::var_os(FULL).is_some() { 60 } else { 20 });
    let (since, answered) = (Instant::now(), AtomicU32::new(0));
    let app = App::on(&laptop);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (app, answered) = (app.clone(), &answered);
            scope.spawn(move || {
                for n in 0.. {
                    if since.elapsed() > lasts {
                        return;
                    }
                    app.chat(&format!("thread {thread}, number {n}"), 20).unwrap().must_be_right();
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let answered = answered.into_inner();
    // With nothing lost it would be some 4 a second and thread.
    assert!(f64::from(answered) > lasts.as_secs_f64() * 8.0, "only {answered} answers");
}

pub fn a_node_that_stops_lets_its_answers_finish_and_takes_nothing_new() {
    let (net, lan) = Net::new();
    let hosts = ["first", "second"].map(|name| net.host(name, &lan));
    let laptop = net.host("laptop", &lan);
    let ollamas = hosts.each_ref().map(|host| Ollama::with(host, &[MODEL], |s| s.pace = Duration::from_millis(100)));
    let homes = ["first", "second", "laptop"].map(Home::new);
    let mut first = Node::start(&hosts[0], &homes[0], &[]);
    let _second = Node::start(&hosts[1], &homes[1], &[]);
    let user = Node::start(&laptop, &homes[2], &[]);
    user.until_used("first", CHANGE);
    user.until_used("second", CHANGE);
    let app = App::on(&laptop);
    let running = app.chat_with(MODEL, "to be finished", 40, Some("first")).unwrap();
    ollamas[0].until_running(1);
    first.terminate();
    first.logs(&["stopping"], SOON);
    let before = ollamas[0].chats();
    for n in 0..5 {
        assert_eq!(app.is_answered(&format!("new {n}")), "second");
    }
    assert_eq!(ollamas[0].chats(), before);
    assert_eq!(running.must_be_right(), "first");
    assert_eq!(first.ends(CHANGE).code(), Some(0));
    user.until_peer("first", SOON, |peer| ["unreachable", "connecting"].contains(&peer.state.as_str()));
}

pub fn a_node_that_stops_lets_the_answers_of_its_own_applications_finish() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    let _ollama = Ollama::with(&gpu, &[MODEL], |settings| settings.pace = Duration::from_millis(100));
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let mut user = Node::start(&laptop, &homes[1], &[]);
    user.until_used("gpu", CHANGE);
    let app = App::on(&laptop);
    let running = app.chat("to be finished", 30).unwrap();
    user.terminate();
    until(PATIENCE, "the listener takes nothing new", || app.chat("too late", 1).is_err().then_some(()));
    assert_eq!(running.must_be_right(), "gpu");
    assert_eq!(user.ends(CHANGE).code(), Some(0));
}
