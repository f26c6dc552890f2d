//! The settings of the owner, as they are typed, refused and shown.

use std::time::Duration;

use crate::fake_ollama::FakeOllama;
use crate::home::Home;

/// Hours that are not now, whenever that is, in UTC: an hour that begins in two.
fn not_now() -> String {
    let at = |hours| {
        let span = jiff::SignedDuration::from_hours(hours);
        jiff::tz::TimeZone::UTC
            .to_datetime(jiff::Timestamp::now())
            .checked_add(span)
            .unwrap()
            .strftime("%H:%M")
            .to_string()
    };
    format!("{}-{}", at(2), at(3))
}

#[test]
fn each_setting_can_be_set_read_and_taken_out_again() {
    let home = Home::new();
    let keys = [
        ("lend.parallel", "4", "(detected)"),
        ("lend.max_loaded", "3", "(detected)"),
        ("lend.reserve", "1", "0"),
        ("lend.queue", "12", "4096"),
        ("lend.weights", "gpu-lab=2,gpu2=0.5", "(1 for everyone)"),
        ("lend.hours", "Mon-Fri 18:00-08:00,Sun 00:00-24:00", "(always)"),
        ("lend.idle", "15m", "(used or not)"),
        ("balance.prefer_local", "1.5", "1.2"),
        ("balance.max_wait", "90s", "(no bound)"),
        ("balance.waiting", "8", "1024"),
    ];
    for (key, value, _) in keys {
        home.ok(&["config", "set", key, value]);
        assert_eq!(home.ok(&["config", "get", key]), format!("{value}\n"), "{key}");
    }
    assert_eq!(
        std::fs::read_to_string(home.config()).unwrap(),
        "[lend]\nparallel = 4\nmax_loaded = 3\nreserve = 1\nqueue = 12\nweights = { gpu-lab = 2, gpu2 = 0.5 }\n\
         hours = [\"Mon-Fri 18:00-08:00\", \"Sun 00:00-24:00\"]\nidle = \"15m\"\n\n\
         [balance]\nprefer_local = 1.5\nmax_wait = \"90s\"\nwaiting = 8\n"
    );
    let shown = home.ok(&["config", "show"]);
    for (key, value, default) in keys {
        let line = shown.lines().find(|line| line.starts_with(&format!("{key} "))).unwrap();
        assert!(line.contains(value) && line.contains("config.toml:"), "{line}");
        home.ok(&["config", "unset", key]);
        assert_eq!(home.ok(&["config", "get", key]), format!("{default}\n"), "{key}");
    }
}

#[test]
fn what_makes_no_sense_is_not_written_and_told_why() {
    let home = Home::new();
    for (values, said) in [
        (&["lend.parallel", "0"][..], "lend.parallel 0: not a whole number from 1 to 256"),
        (&["lend.parallel", "2", "3"], "lend.parallel takes one value, not 2"),
        (&["lend.weights", "gpu1"], "\"gpu1\" is no weight; write NAME=NUMBER or ID=NUMBER, such as gpu1=2"),
        (&["lend.weights", "gpu1=2", "gpu1=3"], "gpu1 has two weights"),
        (&["lend.weights", "gpu1=much"], "gpu1: not a number from 0.01 to 100"),
        (&["lend.hours", "at night"], "\"at night\": "),
        (&["lend.hours", "22-6"], "\"22\" is no time of the day; hours are such as 18:00-08:00"),
        (&["lend.idle", "1s"], "the minimum is 30s"),
        (&["balance.prefer_local", "0.5"], "not a number from 1 to 100"),
        (&["balance.max_wait", "long"], "not a length of time such as 30s"),
    ] {
        let line = home.fails(2, &[&["config", "set"], values].concat());
        assert!(line.contains(said), "{values:?}: {line}");
    }
    assert!(!home.config().exists());
    home.ok(&["config", "set", "lend.parallel", "2"]);
    let line = home.fails(2, &["config", "set", "lend.reserve", "2"]);
    assert!(line.contains("of 2 slots (lend.parallel) that leaves none to share"), "{line}");
}

#[test]
fn hours_need_to_know_what_time_it_is() {
    let mut home = Home::new();
    home.set("TZ", "Nowhere/City");
    home.set("OLLANA_LEND_HOURS", "18:00-08:00");
    let ran = home.run(&["serve"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    let line = ran.err.lines().last().unwrap();
    assert!(line.contains("lend.hours is 18:00-08:00") && line.contains("TZ=Europe/Berlin"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_doctor_say_why_it_is_not_lent_at_the_moment() {
    let ollama = FakeOllama::start(&["m"]).await;
    let mut home = Home::new();
    home.set("TZ", "UTC");
    home.set("OLLANA_OLLAMA", &ollama.url().to_string());
    home.set("OLLANA_LEND_IDLE", "10m");
    let hours = not_now();
    home.set("OLLANA_LEND_HOURS", &hours);
    home.ok(&["serve", "-d"]);
    let status = loop {
        let status = home.json(&["status", "--json"]);
        if status["ollama"]["healthy"] == true {
            break status;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let why = format!("is shared from {}", &hours[..5]);
    assert_eq!(status["ollama"]["not_lent"], *why);
    assert_eq!(status["ollama"]["lent"], false);
    let text = home.ok(&["status"]);
    assert!(text.contains("not shared now") && text.contains(&format!("it {why}")), "{text}");
    let found = home.run(&["doctor"]).out;
    assert!(found.contains(&format!("is not shared now: it {why}")), "{found}");
    let log = std::fs::read_to_string(home.state().join("ollana.log")).unwrap();
    let whenever = format!("is shared {hours} while nobody has used this machine for 10 min");
    assert!(log.contains(&whenever), "{log}");
    home.ok(&["stop"]);
}
