//! `ollana vouch`, `ollana trust --voucher`, and what is shown of both.

use std::time::{Duration, Instant};

use crate::home::Home;
use ollana::Id;
use serde_json::{Value, json};

fn id(n: u32) -> String {
    Id::of_spki(&n.to_be_bytes()).to_string()
}

#[test]
fn a_vouch_is_given_listed_and_withdrawn_with_a_node_and_without_one() {
    let home = Home::new();
    for with_node in [false, true] {
        if with_node {
            home.ok(&["serve", "-d"]);
        }
        let (known, other) = (id(u32::from(with_node)), id(9));
        assert!(home.ok(&["vouch", "--list"]).contains("vouches for nobody"));
        assert_eq!(home.json(&["vouch", "--list", "--json"]), json!([]));
        let untrusted = home.fails(1, &["vouch", &known]);
        assert!(
            untrusted.contains("nobody on this node trusts it") && untrusted.contains("ollana trust"),
            "{untrusted}"
        );
        home.ok(&["trust", &known, "--yes"]);
        let said = home.ok(&["vouch", &known]);
        assert!(said.contains(&known) && said.contains("for 90d 0h") && said.contains("--withdraw"), "{said}");
        let said = home.ok(&["vouch", &known, "--until", "30d"]);
        assert!(said.contains("for 30d 0h"), "{said}");
        let listed = home.ok(&["vouch", "--list"]);
        assert!(
            listed.contains(&known)
                && (listed.contains("29d 23h") || listed.contains("30d 0h"))
                && listed.lines().count() == 2,
            "{listed}"
        );
        let listed = home.json(&["vouch", "--list", "--json"]);
        assert_eq!((listed[0]["id"].as_str(), listed[0]["until"].is_u64()), (Some(known.as_str()), true));

        assert!(home.fails(1, &["vouch", &other, "--withdraw"]).contains("ollana vouch --list"));
        assert!(home.ok(&["vouch", &known, "--withdraw"]).contains("no longer vouches"));
        assert!(home.fails(1, &["vouch", &known, "--withdraw"]).contains("does not vouch"));
        // With the trust goes the vouch.
        home.ok(&["vouch", &known]);
        home.ok(&["revoke", &known]);
        assert!(home.ok(&["vouch", "--list"]).contains("vouches for nobody"));
        assert!(home.fails(1, &["vouch", &known]).contains("revoked here"));
    }
    let own = home.ok(&["id"]);
    assert!(home.fails(1, &["vouch", own.trim()]).contains("this node itself"));
    assert!(home.fails(1, &["vouch", "nobody"]).contains("ollana peers"));
    home.ok(&["stop"]);
}

#[test]
fn what_makes_no_sense_is_bad_usage_and_says_why() {
    let home = Home::new();
    for args in [
        &["vouch"][..],
        &["vouch", "gpu1", "--list"],
        &["vouch", "--list", "--until", "3d"],
        &["vouch", "gpu1", "--until", "3d", "--withdraw"],
        &["vouch", "gpu1", "--json"],
        &["trust", &id(1), "--yes", "--voucher", "--no-voucher"],
    ] {
        assert_eq!(home.run(args).code, Some(2), "{args:?}");
    }
    for (until, word) in [("soon", "2026-12-31"), ("2001-01-01", "passed"), ("2y", "7d"), ("400d", "more than a year")]
    {
        let line = home.fails(2, &["vouch", &id(1), "--until", until]);
        assert!(line.contains(word), "{until}: {line}");
    }
}

#[test]
fn a_voucher_is_one_until_a_person_says_otherwise() {
    let home = Home::new();
    let gpu1 = id(1);
    assert!(
        home.ok(&["trust", &gpu1, "--yes", "--voucher"])
            .contains("is now trusted, voucher (may run models here; used as a provider)")
    );
    assert!(
        home.ok(&["trust", &gpu1, "--yes", "--scope", "none"])
            .contains("is now trusted, voucher (may not use this node's Ollama; used as a provider)")
    );
    assert!(home.ok(&["trust", "export"]).contains("voucher = true"));
    assert!(
        home.ok(&["trust", &gpu1, "--yes", "--no-voucher"])
            .contains("is now trusted (may run models here; used as a provider)")
    );
    home.ok(&["trust", &gpu1, "--yes", "--voucher"]);
    home.ok(&["revoke", &gpu1]);
    assert!(
        home.ok(&["trust", &gpu1, "--yes"]).contains("is now trusted (may run models here; used as a provider)"),
        "a pardon makes no voucher"
    );
}

#[test]
fn who_is_vouched_for_is_shown_with_by_whom_and_the_log_says_so() {
    let [gpu1, laptop] = [Home::new(), Home::new()];
    gpu1.ok(&["serve", "-d", "--name", "gpu1"]);
    let address = gpu1.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    laptop.ok(&["serve", "-d", "--name", "laptop", "--peer", &address]);
    let server = id(7);
    gpu1.ok(&["trust", &server, "--yes"]);
    gpu1.ok(&["vouch", &server]);
    let own = gpu1.ok(&["id"]);
    laptop.ok(&["trust", own.trim(), "--yes", "--voucher"]);
    let peer = |home: &Home| -> Value {
        let peers = home.json(&["peers", "--json"]);
        peers.as_array().unwrap().iter().find(|peer| peer["id"] == server.as_str()).cloned().unwrap_or_default()
    };
    let began = Instant::now();
    while peer(&laptop)["trust"] != "vouched" {
        assert!(began.elapsed() < Duration::from_secs(30), "{}", laptop.ok(&["peers"]));
        std::thread::sleep(Duration::from_millis(20));
    }
    let shown = peer(&laptop);
    assert_eq!((&shown["use"], &shown["scope"]), (&json!("yes"), &json!("none")));
    assert_eq!(shown["vouched_by"], json!([{"name": "gpu1", "id": own.trim()}]));
    assert_eq!(peer(&gpu1)["vouched_by"], json!([]));
    let table = laptop.ok(&["peers"]);
    assert!(table.contains("vouched by gpu1") && table.contains("trusted, voucher"), "{table}");
    let log = std::fs::read_to_string(laptop.state().join("ollana.log")).unwrap();
    assert!(log.contains("gpu1 vouches for") && log.contains("used from now on"), "{log}");
    assert!(laptop.fails(1, &["vouch", &server]).contains("another's word"));
    // Also where nothing runs.
    laptop.ok(&["stop"]);
    assert!(laptop.fails(1, &["vouch", &server]).contains("another's word"));
    assert!(
        laptop
            .ok(&["revoke", &server])
            .contains("is now revoked (may not use this node's Ollama; not used as a provider)")
    );
    gpu1.ok(&["stop"]);
}
