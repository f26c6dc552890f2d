//! What becomes of the trust book when commands are killed, run at once, or a list is taken over.

use std::time::Duration;

use crate::home::{Home, signal};
use ollana::Id;
use ollana::internals::control::StateDir;
use rustix::process::Signal;

fn id(n: u32) -> String {
    Id::of_spki(&n.to_be_bytes()).to_string()
}

/// The book as the next command reads it.
fn book(home: &Home) -> String {
    home.ok(&["trust", "export"])
}

#[test]
fn nothing_is_lost_or_damaged_by_kill_9_at_any_moment() {
    let home = Home::new();
    home.ok(&["trust", &id(0), "--yes"]);
    let mut told = vec![0];
    let mut killed = 0;
    for n in 1..120 {
        let who = id(n);
        let mut child = home.command(&["trust", &who, "--yes"]).stdout(std::process::Stdio::null()).spawn().unwrap();
        // From before it reads to after it has written.
        std::thread::sleep(Duration::from_micros(u64::from(n) * 150));
        signal(child.id(), Signal::KILL);
        match child.wait().unwrap().code() {
            Some(0) => told.push(n),
            Some(code) => panic!("it failed with {code}"),
            None => killed += 1,
        }
        let now = book(&home);
        for n in &told {
            assert!(now.contains(&id(*n)), "what was confirmed is gone: {n}");
        }
    }
    assert!(killed > 0, "none was killed");
    let left: Vec<_> = std::fs::read_dir(home.state()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn a_node_that_is_killed_while_it_edits_loses_nothing_that_it_confirmed() {
    let home = Home::new();
    let mut told = Vec::new();
    for round in 0..4 {
        home.ok(&["serve", "-d"]);
        let pid = std::fs::read_to_string(home.state().join("ollana.pid")).unwrap().trim().parse().unwrap();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(120));
            signal(pid, Signal::KILL);
        });
        for n in 0.. {
            let n = round * 1000 + n;
            if home.run(&["trust", &id(n), "--yes"]).code != Some(0) {
                break;
            }
            told.push(n);
            if killer.is_finished() {
                break;
            }
        }
        killer.join().unwrap();
        // Killed is not gone yet: it may take one more connection, and never answer.
        while std::os::unix::net::UnixStream::connect(home.state().join("ollana.sock")).is_ok() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let now = book(&home);
        for n in &told {
            assert!(now.contains(&id(*n)), "{n} of {told:?}");
        }
    }
    assert!(!told.is_empty());
}

#[test]
fn commands_at_once_lose_nothing_with_a_node_and_without_one() {
    let home = Home::new();
    for with_node in [false, true] {
        if with_node {
            home.ok(&["serve", "-d"]);
        }
        let base = u32::from(with_node) * 100;
        let children: Vec<_> = (base..base + 16)
            .map(|n| {
                (n, home.command(&["trust", &id(n), "--yes"]).stderr(std::process::Stdio::piped()).spawn().unwrap())
            })
            .collect();
        let mut done = Vec::new();
        for (n, child) in children {
            let ran = child.wait_with_output().unwrap();
            assert!(ran.status.success(), "{n}: {}", String::from_utf8_lossy(&ran.stderr));
            done.push(n);
        }
        let now = book(&home);
        assert!(done.iter().all(|n| now.contains(&id(*n))), "{done:?}");
    }
    home.ok(&["stop"]);
}

#[test]
fn who_holds_the_book_and_does_not_answer_is_waited_for_and_then_named() {
    let home = Home::new();
    home.ok(&["trust", &id(1), "--yes"]);
    let held = StateDir::take(&home.state()).unwrap();
    let said = home.fails(1, &["trust", &id(2), "--yes"]);
    assert!(said.contains(&format!("process {}", std::process::id())) && said.contains("ollana stop"), "{said}");
    let waits = home.command(&["trust", &id(2), "--yes"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    drop(held);
    assert!(waits.wait_with_output().unwrap().status.success());
    assert!(book(&home).contains(&id(2)));
}

#[test]
fn a_list_goes_from_node_to_node_and_a_revocation_in_it_counts_at_once() {
    let [one, two] = [Home::new(), Home::new()];
    one.ok(&["trust", &id(1), "--yes", "--scope", "manage"]);
    one.ok(&["trust", &id(2), "--yes", "--no-use"]);
    one.ok(&["revoke", &id(3)]);
    let list = book(&one);
    let file = one.path().join("trusted.toml");
    std::fs::write(&file, &list).unwrap();
    let file = file.to_str().unwrap();

    two.ok(&["serve", "-d"]);
    two.ok(&["trust", &id(3), "--yes"]);
    let said = two.ok(&["trust", "import", file]);
    assert!(said.contains("2 trusted, 1 revoked, 0 unchanged"), "{said}");
    assert_eq!(book(&two), list);
    assert!(two.ok(&["trust", "import", file]).contains("0 trusted, 0 revoked, 3 unchanged"));
    two.ok(&["trust", &id(4), "--yes"]);
    two.ok(&["revoke", &id(1)]);
    let said = two.ok(&["trust", "import", file, "--replace"]);
    assert!(said.contains("1 no longer trusted") && said.contains("1 stay revoked"), "{said}");
    two.ok(&["stop"]);

    let own = two.ok(&["id"]);
    std::fs::write(one.path().join("bad"), "version = 1\n[[peer]]\nid = \"x\"\n").unwrap();
    assert!(two.fails(1, &["trust", "import", one.path().join("bad").to_str().unwrap()]).contains("no list"));
    assert!(two.fails(1, &["trust", "import", "/nowhere"]).contains("cannot read"));
    assert!(!book(&two).contains(own.trim()));
}

#[test]
fn a_book_that_is_edited_while_the_node_runs_counts_and_a_damaged_one_is_told_loudly() {
    let home = Home::new();
    home.ok(&["serve", "-d"]);
    home.ok(&["trust", &id(1), "--yes"]);
    let path = home.state().join("trust.toml");
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("\"trusted\"", "\"revoked\"")).unwrap();
    let until = |what: &str, there: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !there() {
            assert!(start.elapsed() < Duration::from_secs(30), "{what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until("it counts", &|| home.json(&["peers", "--json"])[0]["trust"] == "revoked");
    std::fs::write(&path, &good[..good.len() / 2]).unwrap();
    let log = || std::fs::read_to_string(home.state().join("ollana.log")).unwrap();
    until("it is told", &|| {
        log().contains("trust.toml is damaged") && log().contains("what it said before is in force")
    });
    assert_eq!(home.json(&["peers", "--json"])[0]["trust"], "revoked");
    assert!(home.fails(1, &["trust", &id(2), "--yes"]).contains("damaged"));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), &good[..good.len() / 2]);
    home.ok(&["stop"]);
}
