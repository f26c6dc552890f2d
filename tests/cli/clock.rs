//! The first-use window on a machine whose clock is set.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::fake_ollama::FakeOllama;
use crate::home::Home;

const PATIENCE: Duration = Duration::from_secs(30);
const DAY: i64 = 24 * 60 * 60;

/// A library that makes the clock of who loads it show another time.
fn build_clock(dir: &Path) -> String {
    let library = dir.join("clock.so").to_str().unwrap().to_owned();
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/clock.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o", &library, source, "-ldl"]).status().unwrap();
    assert!(built.success());
    library
}

fn peer_once(home: &Home, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let peers = home.json(&["peers", "--json"]);
        if let Some(peer) = peers.as_array().unwrap().iter().find(|peer| peer["name"] == name && wanted(peer)) {
            return peer.clone();
        }
        assert!(began.elapsed() < PATIENCE, "{peers:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A provider that comes to a user, and how the user has it.
fn comes(provider: &Home, name: &str, user: &Home) -> String {
    let address = user.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    provider.ok(&["serve", "-d", "--name", name, "--peer", &address]);
    peer_once(user, name, |peer| peer["provider"] == true && peer["use"] != "no")["use"].as_str().unwrap().to_owned()
}

fn window(home: &Home) -> Value {
    home.json(&["status", "--json"])["first_use"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_neither_closes_the_first_use_window_nor_opens_it() {
    let ollama = FakeOllama::start(&["m"]).await;
    let mut user = Home::new();
    let clock = build_clock(user.path());
    let offset = user.path().join("offset").to_str().unwrap().to_owned();
    let set_clock = |seconds: i64| {
        std::fs::write(format!("{offset}.new"), seconds.to_string()).unwrap();
        std::fs::rename(format!("{offset}.new"), &offset).unwrap();
    };
    user.set("LD_PRELOAD", &clock);
    user.set("CLOCK_OFFSET_FILE", &offset);
    let providers: Vec<Home> = (0..5)
        .map(|_| {
            let mut home = Home::new();
            home.set("OLLANA_OLLAMA", &ollama.url().to_string());
            home
        })
        .collect();
    // It starts two weeks in the past, as without a battery, and is corrected, and more than that, while it runs.
    set_clock(-14 * DAY);
    user.ok(&["serve", "-d", "--name", "laptop"]);
    assert_eq!(window(&user)["state"], "not-begun");
    assert_eq!(comes(&providers[0], "gpu0", &user), "yes");
    for (n, seconds) in [(1, 0), (2, 400 * DAY), (3, -400 * DAY)] {
        set_clock(seconds);
        assert_eq!(comes(&providers[n], &format!("gpu{n}"), &user), "yes", "clock set by {seconds} s");
        assert_eq!(window(&user)["state"], "open");
        let status = user.ok(&["status"]);
        assert!(status.contains("for 1d 0h more") || status.contains("for 23h 59m more"), "{status}");
    }
    let log = || std::fs::read_to_string(user.state().join("ollana.log")).unwrap();
    assert!(log().contains("the system clock was set forward by 14 d"), "{}", log());

    // A change while it does not run cannot be told from time that passes.
    // An hour beside whole days, since each jump is measured to a second or so.
    for (seconds, state, said) in [
        (3600, "closed", "window closed 399 d ago"),
        (-800 * DAY + 3600, "clock-behind", "this machine's clock is 399 d before"),
    ] {
        user.ok(&["stop"]);
        set_clock(seconds);
        user.ok(&["serve", "-d", "--name", "laptop"]);
        assert_eq!(window(&user)["state"], state);
        let status = user.ok(&["status"]);
        assert!(status.contains(said) && status.contains("wait for `ollana trust`"), "{status}");
        if state != "closed" {
            providers[4].ok(&["stop"]);
        }
        assert_eq!(comes(&providers[4], "gpu4", &user), "pending");
        let doctor = user.run(&["doctor"]).out;
        assert!(doctor.contains(said) && doctor.contains("ollana trust gpu4"), "{doctor}");
        // The warning waits a moment for an invitation that may settle it.
        let began = Instant::now();
        while !log().lines().any(|line| line.contains("WARN") && line.contains(said)) {
            assert!(began.elapsed() < PATIENCE, "{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
        // A provider that was used is used, whatever the clock says.
        peer_once(&user, "gpu0", |peer| peer["use"] == "yes");
    }
    // Where providers always wait for a person there is no window to tell of.
    user.ok(&["stop"]);
    user.ok(&["config", "set", "trust.outbound", "paired"]);
    user.ok(&["serve", "-d", "--name", "laptop"]);
    assert_eq!(window(&user)["state"], "not-begun");
    assert!(!user.ok(&["status"]).contains("first use"));
    for home in providers.iter().chain([&user]) {
        home.ok(&["stop"]);
    }
}
