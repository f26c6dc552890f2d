//! How applications that always have something to ask use all the servers there are. Times are those of a small model that is
//! loaded and answers in fractions of a second.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::CHANGE;
use crate::app::{App, MODEL, Ollama};
use crate::fake_ollama::{Durations, Settings};
use crate::netns::{Host, Lan, Net};
use crate::node::{Home, Node};

/// Tokens of a short answer.
const SHORT: usize = 8;
const PACE: Duration = Duration::from_millis(25);
const LOAD: Duration = Duration::from_millis(500);

/// Providers with one slot each, users, and an application at each of those.
struct Lab {
    // Before their homes, where their logs are.
    _nodes: Vec<Node>,
    apps: Vec<App>,
    providers: Vec<(Host, Home, Ollama)>,
    _laptops: Vec<(Host, Home)>,
}

impl Lab {
    fn new(net: &Net, lan: &Lan, providers: usize, users: usize, settings: impl Fn(&mut Settings)) -> Self {
        Self::with_models(net, lan, providers, users, &[MODEL], settings)
    }

    fn with_models(
        net: &Net,
        lan: &Lan,
        providers: usize,
        users: usize,
        models: &[&str],
        settings: impl Fn(&mut Settings),
    ) -> Self {
        let providers: Vec<_> = (0..providers)
            .map(|n| {
                let name = format!("gpu{n}");
                let host = net.host(&name, lan);
                let ollama = Ollama::with(&host, models, |all| {
                    (all.pace, all.load, all.parallel, all.record, all.measured) = (PACE, LOAD, 1, false, true);
                    settings(all);
                });
                (host, Home::new(&name).with_slots(1), ollama)
            })
            .collect();
        let mut nodes: Vec<_> = providers.iter().map(|(host, home, _)| Node::spawn(host, home, &[])).collect();
        let laptops: Vec<_> = (0..users).map(|n| format!("laptop{n}")).collect();
        let laptops: Vec<_> = laptops.iter().map(|name| (net.host(name, lan), Home::new(name))).collect();
        nodes.extend(laptops.iter().map(|(host, home)| Node::spawn(host, home, &[])));
        nodes.iter_mut().for_each(Node::is_ready);
        for user in &nodes[providers.len()..] {
            for (_, home, _) in &providers {
                user.until_used(home.name(), 3 * CHANGE);
            }
        }
        let apps = laptops.iter().map(|(host, _)| App::on(host)).collect();
        Self { _nodes: nodes, apps, providers, _laptops: laptops }
    }

    /// Has a model loaded there.
    fn warm(&self, provider: usize, model: &str) {
        let name = self.providers[provider].1.name();
        assert_eq!(self.apps[0].chat_with(model, "hello", 1, Some(name)).unwrap().must_be_right(), name);
    }

    /// Every application asks one provider so many times, so that its node knows what that takes.
    fn ask_at(&self, provider: usize, times: usize, tokens: usize) {
        let name = self.providers[provider].1.name();
        for app in &self.apps {
            for _ in 0..times {
                assert_eq!(app.chat_with(MODEL, "hello", tokens, Some(name)).unwrap().must_be_right(), name);
            }
        }
    }

    /// Each of the applications asks one question after the other, for so many in all. How many each provider answered.
    fn ask(&self, requests: usize, tokens: usize) -> Vec<usize> {
        self.ask_each(requests, tokens, |_| MODEL)
    }

    fn ask_each(&self, requests: usize, tokens: usize, model: impl Fn(usize) -> &'static str) -> Vec<usize> {
        let left = Arc::new(AtomicUsize::new(requests));
        let asking = self.apps.iter().enumerate().map(|(n, app)| {
            let (app, left, model) = (app.clone(), left.clone(), model(n));
            std::thread::spawn(move || {
                let mut answered = BTreeMap::<String, usize>::new();
                while let Ok(nth) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                {
                    let chat = app.chat_with(model, &format!("number {nth}"), tokens, None).unwrap();
                    *answered.entry(chat.must_be_right()).or_default() += 1;
                }
                answered
            })
        });
        let asking: Vec<_> = asking.collect();
        let answered: Vec<_> = asking.into_iter().map(|thread| thread.join().unwrap()).collect();
        let of = |name: &str| answered.iter().filter_map(|by_peer| by_peer.get(name)).sum();
        let shares: Vec<usize> = self.providers.iter().map(|(_, home, _)| of(home.name())).collect();
        println!("{requests} requests: {shares:?}, loads {:?}", self.loads());
        assert_eq!(shares.iter().sum::<usize>(), requests);
        shares
    }

    fn loads(&self) -> Vec<u64> {
        self.providers.iter().map(|(_, _, ollama)| ollama.counts().loads).collect()
    }
}

/// Two of them, of which only one has the model in memory.
pub fn requests_that_always_wait_load_the_model_at_a_second_provider() {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 2, 2, |_| {});
    lab.warm(0, MODEL);
    lab.ask_at(0, 5, SHORT);
    let shares = lab.ask(120, SHORT);
    assert!(shares[1] >= 120 / 4, "{shares:?}");
    let shares = lab.ask(60, SHORT);
    assert!(shares.iter().all(|share| *share >= 60 / 3), "{shares:?}");
    assert_eq!(lab.loads(), [1, 1]);
}

pub fn few_long_requests_load_the_model_at_a_second_provider() {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 2, 2, |settings| settings.pace = Duration::from_millis(100));
    // Of a size that is taken to load in six seconds, and of three seconds each.
    lab.providers.iter().for_each(|(_, _, ollama)| ollama.models(|models| models[0].size = 5_000_000_000));
    lab.warm(0, MODEL);
    lab.ask_at(0, 1, 30);
    let shares = lab.ask(12, 30);
    assert!(shares.iter().all(|share| *share >= 12 / 4), "{shares:?}");
    assert_eq!(lab.loads(), [1, 1]);
}

pub fn requests_that_always_wait_load_the_model_at_all_of_eight_providers() {
    let (net, lan) = Net::new();
    let mut lab = Lab::new(&net, &lan, 8, 4, |settings| settings.pace = Duration::from_millis(50));
    lab.warm(0, MODEL);
    // Two on each machine.
    lab.apps.extend_from_within(..);
    let _ = lab.ask(160, SHORT);
    assert_eq!(lab.loads(), [1; 8], "each once, and none in vain");
    let shares = lab.ask(160, SHORT);
    assert!(shares.iter().all(|share| *share >= 160 / 8 / 3), "{shares:?}");
}

/// Each of two servers has room for one model, and each of two models is always waited for.
pub fn two_models_that_are_both_waited_for_do_not_put_each_other_out() {
    const OTHER: &str = "gemma3:1b";
    let (net, lan) = Net::new();
    let lab = Lab::with_models(&net, &lan, 2, 4, &[MODEL, OTHER], |_| {});
    for (_, _, ollama) in &lab.providers {
        ollama.set(|settings| settings.most_loaded = Some(1));
        ollama.models(|models| {
            models.iter_mut().for_each(|model| model.expires_at = Some("2318-03-05T01:02:03Z".to_owned()))
        });
    }
    lab.warm(0, MODEL);
    lab.warm(1, OTHER);
    let before: u64 = lab.loads().iter().sum();
    let model = |n: usize| if n.is_multiple_of(2) { MODEL } else { OTHER };
    let _ = lab.ask_each(200, SHORT, model);
    let loads = lab.loads().iter().sum::<u64>() - before;
    // Some twenty seconds, in which each load is one in vain. That there is no room is learned by the first of them, and a model
    // that has lost its place has to be loaded again.
    assert!(loads <= 6, "{loads} loads");
}

fn warm_servers_share_the_work(settings: impl Fn(&mut Settings)) {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 2, 2, settings);
    lab.warm(0, MODEL);
    lab.warm(1, MODEL);
    // Answers that are too short to tell how fast a server is take longer than one would guess.
    lab.ask_at(1, 3, SHORT - 1);
    let shares = lab.ask(120, SHORT);
    assert!(shares[1] >= 120 / 4, "{shares:?}");
    let shares = lab.ask(60, SHORT);
    assert!(shares.iter().all(|share| *share >= 60 / 3), "{shares:?}");
}

pub fn honest_warm_servers_share_the_work() {
    warm_servers_share_the_work(|settings| settings.measured = true);
}

pub fn warm_servers_that_say_no_durations_share_the_work() {
    warm_servers_share_the_work(|settings| settings.durations = Durations::Missing);
}

pub fn warm_servers_that_always_say_the_same_durations_share_the_work() {
    warm_servers_share_the_work(|settings| settings.measured = false);
}

pub fn warm_servers_whose_durations_are_zero_share_the_work() {
    warm_servers_share_the_work(|settings| settings.durations = Durations::Zero);
}

pub fn warm_servers_whose_durations_are_absurd_share_the_work() {
    warm_servers_share_the_work(|settings| settings.durations = Durations::Absurd);
}

pub fn a_warm_server_that_lists_a_model_of_one_byte_has_its_share() {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 2, 2, |settings| settings.durations = Durations::Missing);
    lab.providers[0].2.models(|models| models[0].size = 1);
    lab.warm(0, MODEL);
    lab.warm(1, MODEL);
    // Too short to tell how fast it is.
    lab.ask_at(0, 3, SHORT - 1);
    let shares = lab.ask(120, SHORT);
    assert!(shares.iter().all(|share| *share >= 120 / 3), "{shares:?}");
}

/// It is eight times as slow for a while, by no fault of anybody: less is asked of it, but not nothing.
pub fn a_slow_server_that_is_quick_again_has_its_share_again() {
    let (net, lan) = Net::new();
    let lab = Lab::new(&net, &lan, 2, 2, |_| {});
    lab.warm(0, MODEL);
    lab.warm(1, MODEL);
    lab.providers[1].2.set(|settings| settings.pace = 8 * PACE);
    let shares = lab.ask(100, SHORT);
    assert!(shares[0] >= 70 && shares[1] >= 2, "{shares:?}");
    lab.providers[1].2.set(|settings| settings.pace = PACE);
    // Found out by requests that are seconds apart.
    let shares: Vec<_> = (0..5).map(|_| lab.ask(60, SHORT)).collect();
    assert!(shares.iter().any(|shares| shares[1] >= 60 / 3), "{shares:?}");
}
