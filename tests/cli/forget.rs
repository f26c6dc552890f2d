//! `ollana forget`, and what becomes of a name that is known with another key.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::home::Home;
use ollana::Id;
use serde_json::{Value, json};

/// Bounds every wait.
const PATIENCE: Duration = Duration::from_secs(30);

fn id(n: u32) -> String {
    Id::of_spki(&n.to_be_bytes()).to_string()
}

/// Whether people trust or have revoked keys by these names.
fn knows(home: &Home, peers: &[(u32, &str, &str)]) {
    let mut list = "version = 1\n".to_owned();
    for (n, name, trust) in peers {
        let use_ = if *trust == "trusted" { "use = true\nscope = \"infer\"\n" } else { "" };
        list += &format!("[[peer]]\nid = \"{}\"\nname = \"{name}\"\ntrust = \"{trust}\"\n{use_}", id(*n));
    }
    std::fs::write(home.path().join("list"), list).unwrap();
    home.ok(&["trust", "import", "list"]);
}

fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) => assert!(began.elapsed() < PATIENCE, "no {what}: {seen}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn peers(home: &Home) -> Vec<Value> {
    home.json(&["peers", "--json"]).as_array().unwrap().clone()
}

/// The peer of this ID, once it is shown like this.
fn peer_once(home: &Home, id: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    until("such peer", || {
        let found = peers(home).into_iter().find(|peer| peer["id"] == id && wanted(peer));
        found.ok_or_else(|| home.ok(&["peers"]))
    })
}

fn start(home: &Home, name: &str, peer: &str) -> String {
    home.ok(&["serve", "-d", "--name", name, "--peer", peer]);
    home.ok(&["id"]).trim().to_owned()
}

/// As on a machine that is set up anew.
fn set_up_anew(home: &Home, name: &str, peer: &str) -> String {
    home.ok(&["stop"]);
    std::fs::remove_dir_all(home.state()).unwrap();
    start(home, name, peer)
}

fn warnings<'a>(log: &'a str, id: &str) -> Vec<&'a str> {
    log.lines().filter(|line| line.contains(id) && (line.contains("WARN") || line.contains("ERROR"))).collect()
}

fn log(home: &Home) -> String {
    std::fs::read_to_string(home.state().join("ollana.log")).unwrap()
}

fn findings(home: &Home, check: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(&home.run(&["doctor", "--json"]).out).unwrap();
    all.as_array().unwrap().iter().filter(|finding| finding["check"] == check).cloned().collect()
}

/// How many conflicts the metrics count.
fn conflicts_counted(home: &Home) -> String {
    let page = home.json(&["status", "--json"])["status_page"].as_str().unwrap().to_owned();
    let mut asked = TcpStream::connect(&page).unwrap();
    asked.write_all(format!("GET /metrics HTTP/1.1\r\nHost: {page}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    asked.read_to_string(&mut text).unwrap();
    text.lines().find_map(|line| line.strip_prefix("ollana_conflicts ")).unwrap().to_owned()
}

#[test]
fn a_peer_is_forgotten_and_a_name_freed_with_a_node_and_without() {
    let home = Home::new();
    for with_node in [false, true] {
        if with_node {
            home.ok(&["serve", "-d"]);
        }
        let ben = if with_node { 12 } else { 2 };
        knows(&home, &[(1, "gpu", "trusted"), (ben, "ben", "revoked"), (3, "twin", "trusted"), (4, "Twin", "trusted")]);
        let said = home.ok(&["forget", "GPU"]);
        assert!(said.contains(&id(1)) && said.contains("forgotten"), "{said}");
        assert!(!home.ok(&["trust", "export"]).contains(&id(1)));
        // A revocation is not forgotten, by whatever name or ID.
        for named in ["ben", &id(ben)] {
            let said = home.fails(1, &["forget", named]);
            assert!(said.contains("is revoked") && said.contains("ollana forget --name ben"), "{said}");
        }
        let said = home.fails(1, &["forget", "twin"]);
        assert!(said.contains(&id(3)) && said.contains(&id(4)) && said.contains("give the ID"), "{said}");
        let gone = home.json(&["forget", "--name", "twin", "--json"]);
        assert_eq!(gone["forgotten"].as_array().unwrap().len(), 2, "{gone}");
        assert_eq!((&gone["freed"], &gone["kept"]), (&json!([]), &json!([])));

        let said = home.ok(&["forget", "--name", "BEN"]);
        assert!(said.contains(&id(ben)) && said.contains("stays revoked") && said.contains("name is free"), "{said}");
        let list = home.ok(&["trust", "export"]);
        assert!(list.contains(&id(ben)) && list.contains("revoked") && !list.contains("\"ben\""), "{list}");
        assert!(home.fails(1, &["forget", "--name", "ben"]).contains("ollana peers"));
        for unknown in ["nobody", "10.9.8.7", &id(9)] {
            assert!(home.fails(1, &["forget", unknown]).contains("ollana peers"), "{unknown}");
        }
    }
    home.ok(&["stop"]);
}

#[test]
fn forget_without_sense_is_bad_usage() {
    let home = Home::new();
    for args in [&["forget"][..], &["forget", "gpu", "--name", "gpu"], &["forget", "--name", "two words"]] {
        assert_eq!(home.run(args).code, Some(2), "{args:?}");
    }
    assert!(!home.state().exists());
    let slipped = id(1).replacen(&id(1)[..1], if id(1).starts_with('A') { "B" } else { "A" }, 1);
    assert!(home.fails(1, &["forget", &slipped]).contains("slip in characters 1 to 14"));
}

#[test]
fn a_new_key_under_a_revoked_name_waits_until_the_name_is_freed() {
    let [gpu, laptop] = [Home::new(), Home::new()];
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    let address = gpu.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    let old = start(&laptop, "ben", &address);
    peer_once(&gpu, &old, |peer| peer["scope"] == "infer" && peer["state"] == "connected");
    let said = gpu.ok(&["revoke", "ben"]);
    assert!(said.contains("ollana forget --name ben") && said.contains("under another name"), "{said}");
    // One's own revocation is no failure.
    peer_once(&gpu, &old, |peer| peer["state"] == "refused" && peer["problem"].is_null());
    assert_eq!(findings(&gpu, "conflict"), Vec::<Value>::new());
    assert_eq!(gpu.json(&["status", "--json"])["conflicts"], json!([]));
    assert_eq!(conflicts_counted(&gpu), "0");
    assert!(!gpu.run(&["doctor"]).out.contains("ben"));

    let new = set_up_anew(&laptop, "ben", &address);
    let blocked = peer_once(&gpu, &new, |peer| peer["state"] == "connected");
    assert_eq!((&blocked["trust"], &blocked["scope"]), (&json!("none"), &json!("none")));
    let problem = blocked["problem"].as_str().unwrap();
    for part in ["revoked key", &old, &format!("ollana trust {new}"), "ollana forget --name ben"] {
        assert!(problem.contains(part), "{part}: {problem}");
    }
    assert!(gpu.ok(&["peers"]).contains("ollana forget --name ben"));
    let found = findings(&gpu, "peers");
    assert!(found.iter().any(|finding| finding["do"].as_str().unwrap_or_default().contains(&new)), "{found:?}");
    assert_eq!(gpu.json(&["status", "--json"])["conflicts"], json!([]), "the old key is gone");
    // The refusal is said once, whatever laptop does.
    laptop.ok(&["stop"]);
    laptop.ok(&["serve", "-d", "--name", "ben", "--peer", &address]);
    peer_once(&gpu, &new, |peer| peer["state"] == "connected" && peer["scope"] == "none");
    let log = log(&gpu);
    let warned = warnings(&log, &new);
    assert!(warned.len() == 1 && warned[0].contains("WARN"), "{warned:?}");
    assert!(
        warned[0].contains(&format!("ollana trust {new}")) && warned[0].contains("forget --name ben"),
        "{warned:?}"
    );

    gpu.ok(&["forget", "--name", "ben"]);
    // At once, without a new connection.
    peer_once(&gpu, &new, |peer| peer["scope"] == "infer" && peer["trust"] == "first-use" && peer["name"] == "ben");
    assert_eq!(peer_once(&gpu, &old, |_| true)["trust"], "revoked");
    for home in [gpu, laptop] {
        home.ok(&["stop"]);
    }
}

#[test]
fn a_machine_set_up_anew_is_blocked_until_it_is_trusted() {
    let [gpu, laptop] = [Home::new(), Home::new()];
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    let address = gpu.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    let old = start(&laptop, "anna", &address);
    peer_once(&gpu, &old, |peer| peer["state"] == "connected");
    gpu.ok(&["trust", &old, "--yes", "--scope", "manage"]);
    let said = gpu.fails(1, &["forget", "anna"]);
    assert!(said.contains("is connected") && said.contains("ollana revoke"), "{said}");

    let new = set_up_anew(&laptop, "anna", &address);
    let blocked = |peer: &Value| peer["problem"].as_str().is_some_and(|problem| problem.contains("set up anew"));
    let shown = peer_once(&gpu, &new, |peer| peer["state"] == "connected" && blocked(peer));
    assert_eq!((&shown["trust"], &shown["scope"]), (&json!("none"), &json!("none")));
    let problem = shown["problem"].as_str().unwrap();
    assert!(problem.contains(&old) && problem.contains(&format!("ollana trust {new}")), "{problem}");
    assert_eq!(gpu.json(&["status", "--json"])["conflicts"], json!([]), "a conflict is between connected nodes");
    let said = gpu.fails(1, &["revoke", "anna"]);
    assert!(said.contains(&old) && said.contains(&new) && said.contains("not trusted, connected"), "{said}");

    // The command that the message names ends it.
    gpu.ok(&["trust", &new, "--yes"]);
    let shown = peer_once(&gpu, &new, |peer| peer["scope"] == "infer" && peer["problem"].is_null());
    assert_eq!(shown["name"], "anna");
    let left = peer_once(&gpu, &old, |_| true)["problem"].to_string();
    assert!(!left.contains("anna") && !left.contains("trust"), "{left}");
    assert_eq!(findings(&gpu, "conflict"), Vec::<Value>::new());
    // The name means the machine that is there; the old key has left it.
    assert!(gpu.ok(&["vouch", "anna"]).contains(&new));
    let listed = gpu.ok(&["forget", "anna"]);
    assert!(listed.contains(&old) && listed.contains("which was trusted"), "{listed}");
    assert!(peers(&gpu).iter().all(|peer| peer["id"] != old.as_str()));
    assert!(!gpu.ok(&["trust", "export"]).contains(&old));
    for home in [gpu, laptop] {
        home.ok(&["stop"]);
    }
}

#[test]
fn of_two_live_machines_of_one_name_one_is_to_be_renamed() {
    let [mut gpu, one, two] = [Home::new(), Home::new(), Home::new()];
    gpu.set("RUST_LOG", "info,ollana::trust=debug");
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    let address = gpu.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    let first = start(&one, "ubuntu", &address);
    peer_once(&gpu, &first, |peer| peer["state"] == "connected" && peer["scope"] == "infer");
    let second = start(&two, "Ubuntu", &address);
    let renames = |peer: &Value| peer["problem"].as_str().is_some_and(|problem| problem.contains("rename one"));
    let shown = peer_once(&gpu, &second, renames);
    assert_eq!(shown["scope"], "none");
    assert!(peer_once(&gpu, &first, |_| true)["problem"].is_null());
    let conflicts = gpu.json(&["status", "--json"])["conflicts"].clone();
    assert_eq!(conflicts.as_array().unwrap().len(), 1, "{conflicts}");
    assert_eq!(conflicts_counted(&gpu), "1");
    let found = findings(&gpu, "conflict");
    assert!(found.len() == 1 && found[0]["do"].as_str().unwrap().contains("config set name"), "{found:?}");
    let (doctor, peers, log) = (gpu.run(&["doctor"]).out, gpu.ok(&["peers"]), log(&gpu));
    for said in [&doctor, &peers, &warnings(&log, &second).join("")] {
        assert!(said.contains("rename one") && !said.contains("revoke"), "{said}");
    }
    // Renamed, there is no conflict, and nobody has to be trusted.
    two.ok(&["stop"]);
    until("end of the conflict", || match &gpu.json(&["status", "--json"])["conflicts"] {
        none if *none == json!([]) => Ok(()),
        some => Err(some.to_string()),
    });
    start(&two, "ubuntu2", &address);
    let shown = peer_once(&gpu, &second, |peer| peer["scope"] == "infer" && peer["state"] == "connected");
    assert_eq!((&shown["name"], &shown["problem"]), (&json!("ubuntu2"), &Value::Null));
    assert_eq!(findings(&gpu, "conflict"), Vec::<Value>::new());
    // A name that is this node's own is as much a conflict.
    two.ok(&["stop"]);
    start(&two, "gpu1", &address);
    peer_once(&gpu, &second, |peer| renames(peer) && peer["name"] != "gpu1");
    assert_eq!(gpu.json(&["status", "--json"])["conflicts"].as_array().unwrap().len(), 1);
    // A known key that takes the name of another keeps its own, and is not met again and again for that.
    two.ok(&["stop"]);
    start(&two, "ubuntu", &address);
    let shown = peer_once(&gpu, &second, |peer| renames(peer) && peer["name"] != "gpu1");
    assert_eq!((&shown["scope"], &shown["trust"]), (&json!("infer"), &json!("first-use")));
    std::thread::sleep(Duration::from_millis(500));
    let again = self::log(&gpu).lines().filter(|line| line.contains("more of the same")).count();
    assert!(again < 10, "{again}");
    for home in [gpu, one, two] {
        home.ok(&["stop"]);
    }
}

#[test]
fn a_peer_that_is_gone_and_in_no_book_is_forgotten() {
    let [gpu, laptop] = [Home::new(), Home::new()];
    gpu.ok(&["config", "set", "trust.inbound", "paired"]);
    gpu.ok(&["serve", "-d", "--name", "gpu1"]);
    let address = gpu.json(&["status", "--json"])["mesh"].as_str().unwrap().to_owned();
    let gone = start(&laptop, "gone", &address);
    peer_once(&gpu, &gone, |peer| peer["state"] == "connected" && peer["trust"] == "none");
    assert!(gpu.fails(1, &["forget", "gone"]).contains("is connected"));
    laptop.ok(&["stop"]);
    peer_once(&gpu, &gone, |peer| peer["state"] != "connected");
    assert!(gpu.ok(&["forget", "gone"]).contains(&gone));
    until("empty list", || match peers(&gpu) {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?}")),
    });
    gpu.ok(&["stop"]);
}
