//! Nodes that cannot use each other, and whether the people in front of them are told why.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::app::{App, MODEL, Ollama};
use crate::netns::Net;
use crate::node::{Home, Node, OLLANA, until};
use crate::{CHANGE, ROLE};

/// A dial in vain takes 5 s, and the first may have to wait for a beacon.
const DIALLED: Duration = Duration::from_secs(30);
/// A node that was refused asks again after 20 s, and some.
const ASKS_AGAIN: Duration = Duration::from_secs(40);

/// The output of `ollana doctor`, whatever it ends with.
fn doctor(home: &Home) -> String {
    let mut command = Command::new(OLLANA);
    command.arg("doctor").arg("--state-dir").arg(home.state_dir()).env("HOME", home.state_dir());
    String::from_utf8(command.output().unwrap().stdout).unwrap()
}

/// All of a person's ways to look at it say it, as does the log.
fn everywhere(node: &Node, home: &Home, words: &[&str]) {
    let looks = [
        ("peers", node.ollana(&["peers"]).unwrap()),
        ("models", node.ollana(&["models"]).unwrap()),
        ("status", node.ollana(&["status"]).unwrap()),
        ("doctor", doctor(home)),
    ];
    for (look, text) in looks {
        for word in words {
            assert!(text.contains(word), "{look} lacks {word:?}: {text}");
        }
    }
    let unusable = node.status()["unusable"].to_string();
    let json = node.ollana(&["peers", "--json"]).unwrap();
    for word in words {
        let command = word.strip_prefix("→ ").unwrap_or(word);
        assert!(unusable.contains(command), "status --json lacks {command:?}: {unusable}");
        assert!(json.contains(command), "peers --json lacks {command:?}: {json}");
    }
}

/// The rows of `ollana peers --json` that are no peers.
fn others(node: &Node) -> Vec<Value> {
    let rows: Vec<Value> = serde_json::from_str(&node.ollana(&["peers", "--json"]).unwrap()).unwrap();
    rows.into_iter().filter(|row| row.get("trust").is_none()).collect()
}

pub fn a_node_set_up_anew_is_told_who_refuses_it_and_what_to_type() {
    let (net, lan) = Net::new();
    let hosts = ["gpu2", "desktop", "ben"].map(|name| net.host(name, &lan));
    let _ollamas = [Ollama::with(&hosts[0], &["large"], |_| {}), Ollama::start(&hosts[1])];
    let homes = ["gpu2", "desktop", "ben", "ben"].map(Home::new);
    let gpu2 = Node::start(&hosts[0], &homes[0], &[]);
    let mut before = Node::start(&hosts[2], &homes[2], &[]);
    before.until_used("gpu2", CHANGE);
    gpu2.until_peer("ben", CHANGE, |peer| peer.scope == "infer");
    let known = before.id();
    before.kill();
    let _desktop = Node::start(&hosts[1], &homes[1], &[]);

    let ben = Node::start(&hosts[2], &homes[3], &[]);
    assert_ne!(ben.id(), known);
    ben.until_used("desktop", CHANGE);
    let refused = ben.until_peer("gpu2", CHANGE, |peer| peer.remote_scope.is_some());
    assert_eq!((refused.state.as_str(), refused.denial.as_deref()), ("refused", Some("name-known")), "{refused:?}");
    assert_eq!((refused.remote_scope.as_deref(), refused.scope.as_str()), (Some("none"), "infer"));
    let short = ben.id()[..7].to_owned();
    let command = format!("→ on gpu2: ollana trust ben-{short}");
    everywhere(&ben, &homes[3], &["gpu2", "refuses this node", &command]);
    ben.logs(&["WARN", "gpu2 refuses this node", &command], ROLE);
    // That command means the new key, and no other.
    gpu2.until_peer(&format!("ben-{short}"), CHANGE, |peer| peer.id == ben.id());
    assert_eq!(ben.status()["conflicts"], serde_json::json!([]), "it is no conflict");

    // A model that nobody is known to have: `ollama run` pulls it, as without Ollana.
    let app = App::on(&hosts[2]);
    let missing = app.chat_with("large", "hello", 1, None).unwrap();
    assert_eq!(missing.status, 404);
    let request = missing.request.clone().unwrap();
    assert_eq!(missing.refusal(), "404 {\"error\":\"model 'large' not found\"}");
    let explained = ben.ollana(&["explain", &request]).unwrap();
    assert!(explained.contains("gpu2 refuses this node") && explained.contains(&command), "{explained}");
    assert_eq!(app.is_answered("what desktop has"), "desktop");

    gpu2.ollana(&["trust", &ben.id(), "--yes"]).unwrap();
    let lets = ben.until_used("gpu2", CHANGE);
    assert_eq!((lets.remote_scope.as_deref(), lets.denial), (Some("infer"), None));
    ben.logs(&["INFO", "gpu2 lets this node run its models"], ROLE);
    until(CHANGE, "nothing is left to say", || (ben.status()["unusable"] == serde_json::json!([])).then_some(()));
    let chat = app.chat_with("large", "hello", 1, None).unwrap();
    assert_eq!((chat.status, chat.peer.as_deref()), (200, Some("gpu2")));
}

pub fn a_revoked_node_is_told_so_at_once_and_after_a_restart() {
    let (net, lan) = Net::new();
    let hosts = ["desktop", "anna", "other"].map(|name| net.host(name, &lan));
    let _ollamas = [Ollama::start(&hosts[0]), Ollama::with(&hosts[2], &["small"], |_| {})];
    let homes = ["desktop", "anna", "other"].map(Home::new);
    let desktop = Node::start(&hosts[0], &homes[0], &[]);
    let mut anna = Node::start(&hosts[1], &homes[1], &[]);
    anna.until_used("desktop", CHANGE);
    desktop.until_peer("anna", CHANGE, |peer| peer.scope == "infer");
    let app = App::on(&hosts[1]);
    assert_eq!(app.is_answered("before"), "desktop");
    // The digests that are used are written a moment later.
    until(CHANGE, "it is written what was used", || homes[1].state_dir().join("digests.toml").exists().then_some(()));

    desktop.ollana(&["revoke", "anna"]).unwrap();
    let words = ["desktop", "this node's key is revoked there", "→ on desktop: ollana trust anna"];
    let told = |anna: &Node| {
        let refused = anna.until_peer("desktop", DIALLED, |peer| peer.denial.as_deref() == Some("revoked"));
        assert_eq!(refused.state, "refused");
        everywhere(anna, &homes[1], &words);
        let refusals =
            [app.chat(MODEL, 1).unwrap().refusal(), String::from_utf8(app.get("/api/tags").body.to_vec()).unwrap()];
        for refusal in refusals {
            assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");
        }
        assert_eq!(anna.status()["conflicts"], serde_json::json!([]));
    };
    told(&anna);
    anna.kill();
    let anna = Node::start(&hosts[1], &homes[1], &[]);
    told(&anna);

    // Where something else can be used: what was used there is named, and not "not found".
    let _other = Node::start(&hosts[2], &homes[2], &[]);
    anna.until_used("other", CHANGE);
    let refused = app.chat("again", 1).unwrap();
    assert_eq!(refused.status, 503);
    let refusal = refused.refusal();
    assert!(words.iter().all(|word| refusal.contains(word)), "{refusal}");

    desktop.ollana(&["trust", &anna.id(), "--yes"]).unwrap();
    anna.until_used("desktop", ASKS_AGAIN);
    assert_eq!(app.is_answered_within(ROLE, "trusted again"), "desktop");
}

pub fn a_provider_that_wants_each_key_trusted_says_so() {
    let (net, lan) = Net::new();
    let hosts = ["gpu2", "laptop"].map(|name| net.host(name, &lan));
    let _ollama = Ollama::start(&hosts[0]);
    let homes = ["gpu2", "laptop"].map(Home::new);
    homes[0].configure("[trust]\ninbound = \"paired\"\n");
    let gpu2 = Node::start(&hosts[0], &homes[0], &[]);
    let laptop = Node::start(&hosts[1], &homes[1], &[]);
    let refused = laptop.until_peer("gpu2", CHANGE, |peer| peer.denial.is_some());
    assert_eq!((refused.denial.as_deref(), refused.state.as_str()), (Some("approval-required"), "refused"));
    let words = ["gpu2 refuses this node", "→ on gpu2: ollana trust laptop"];
    everywhere(&laptop, &homes[1], &words[1..]);
    let app = App::on(&hosts[1]);
    for refusal in [app.chat("hello", 1).unwrap().refusal(), app.chat_with("new", "x", 1, None).unwrap().refusal()] {
        assert!(refusal.starts_with("503") && words.iter().all(|word| refusal.contains(word)), "{refusal}");
    }
    // By the name that it says.
    gpu2.until_peer("laptop", CHANGE, |peer| peer.id == laptop.id());
    gpu2.ollana(&["trust", &laptop.id(), "--scope", "none", "--yes"]).unwrap();
    laptop.until_peer("gpu2", CHANGE, |peer| peer.denial.as_deref() == Some("no-access"));
    gpu2.ollana(&["trust", &laptop.id(), "--scope", "manage", "--yes"]).unwrap();
    let lets = laptop.until_used("gpu2", CHANGE);
    assert_eq!((lets.remote_scope.as_deref(), lets.denial), (Some("manage"), None));
    assert_eq!(app.is_answered_within(ROLE, "hello"), "gpu2");
    assert!(laptop.ollana(&["peers"]).unwrap().lines().next().unwrap().contains("INBOUND  OUTBOUND"));
}

pub fn a_node_behind_a_firewall_is_told_with_the_port_until_it_opens() {
    let (net, lan) = Net::new();
    let hosts = ["gpu", "laptop"].map(|name| net.host(name, &lan));
    let _ollama = Ollama::start(&hosts[0]);
    let homes = ["gpu", "laptop"].map(Home::new);
    hosts[0].nft(
        "table inet wall { chain in { type filter hook input priority 0; iifname != \"lo\" udp dport 11435 drop; }; }",
    );
    let gpu = Node::start(&hosts[0], &homes[0], &[]);
    let laptop = Node::start(&hosts[1], &homes[1], &[]);
    let at = format!("does not answer on UDP 11435 at {}", hosts[0].v4(&lan));
    // Its other addresses may have been dialled before this one.
    let heard = until(DIALLED, "the silent node is told", || {
        others(&laptop).pop().filter(|row| row["problem"].as_str().is_some_and(|problem| problem.contains(&at)))
    });
    assert_eq!(
        (&heard["name"], &heard["state"], &heard["verified"]),
        (&"gpu".into(), &"unreachable".into(), &false.into())
    );
    assert_eq!(heard["id"], gpu.id());
    everywhere(
        &laptop,
        &homes[1],
        &["gpu", "is heard on the network", &at, "a firewall there", "this interface: 1500"],
    );
    let app = App::on(&hosts[1]);
    let refusal = app.chat("hello", 1).unwrap().refusal();
    assert!(refusal.starts_with("503") && refusal.contains(&at), "{refusal}");
    let peers = laptop.ollana(&["peers"]).unwrap();
    assert!(!peers.contains("no other node was seen"), "{peers}");

    hosts[0].nft_flush();
    laptop.until_used("gpu", DIALLED);
    until(CHANGE, "nothing is left to say", || others(&laptop).is_empty().then_some(()));
    assert_eq!(app.is_answered_within(ROLE, "hello"), "gpu");
}

pub fn a_firewall_on_this_machine_is_told_as_such() {
    let (net, lan) = Net::new();
    let hosts = ["gpu", "laptop"].map(|name| net.host(name, &lan));
    let homes = ["gpu", "laptop"].map(Home::new);
    hosts[1].nft(
        "table inet wall { chain out { type filter hook output priority 0; oifname != \"lo\" udp dport 11435 drop; }; }",
    );
    let _gpu = Node::start(&hosts[0], &homes[0], &[]);
    let laptop = Node::start(&hosts[1], &homes[1], &[]);
    until(DIALLED, "the silent node is told", || others(&laptop).pop());
    everywhere(&laptop, &homes[1], &["gpu", "this machine's firewall does not let UDP 11435 out"]);
    assert!(!laptop.log().contains("sendmsg error"), "a type of a library is no message");
}

pub fn an_interface_with_too_small_an_mtu_is_told() {
    let (net, lan) = Net::new();
    let hosts = ["gpu", "laptop"].map(|name| net.host(name, &lan));
    let homes = ["gpu", "laptop"].map(Home::new);
    hosts[1].ip(&["link", "set", "eth0", "mtu", "1220"]);
    let _gpu = Node::start(&hosts[0], &homes[0], &[]);
    let laptop = Node::start(&hosts[1], &homes[1], &[]);
    until(DIALLED, "the silent node is told", || others(&laptop).pop());
    everywhere(&laptop, &homes[1], &["gpu", "the MTU of the interface here is 1220", "QUIC needs 1228"]);
}

pub fn peers_that_were_named_and_do_not_answer_are_told() {
    let (net, lan) = Net::new();
    let host = net.host("laptop", &lan);
    let home = Home::new("laptop");
    let laptop = Node::start(&host, &home, &["--peer", "nowhere.invalid", "--peer", "10.83.0.222:4711"]);
    until(DIALLED, "both are told", || (others(&laptop).len() == 2).then_some(()));
    everywhere(&laptop, &home, &["nowhere.invalid:11435", "has no address", "10.83.0.222:4711"]);
    let silent = others(&laptop).into_iter().find(|row| row["name"] == "10.83.0.222:4711").unwrap();
    let problem = silent["problem"].as_str().unwrap();
    assert!(problem.contains("cannot be reached at") || problem.contains("does not answer on UDP 4711"), "{problem}");
    let refusal = App::on(&host).chat("hello", 1).unwrap().refusal();
    assert!(refusal.contains("nowhere.invalid") && refusal.contains("10.83.0.222:4711"), "{refusal}");
}

pub fn the_log_says_once_what_a_peer_may_do_and_is_used_for() {
    let (net, lan) = Net::new();
    let hosts = ["one", "two"].map(|name| net.host(name, &lan));
    let _ollamas = hosts.each_ref().map(Ollama::start);
    let homes = ["one", "two"].map(Home::new);
    let nodes = [Node::start(&hosts[0], &homes[0], &[]), Node::start(&hosts[1], &homes[1], &[])];
    for (node, other) in [(&nodes[0], "two"), (&nodes[1], "one")] {
        node.until_used(other, CHANGE);
        node.until_peer(other, CHANGE, |peer| peer.scope == "infer");
        // In which order the two directions come is chance: the last word on each is what holds.
        for (says, denies) in
            [("is used as a provider", "is not used as a provider"), ("may run models here", "may do nothing here")]
        {
            let log = node.log();
            let lines = log.lines().filter(|line| line.contains(" INFO ") && line.contains(other));
            let said: Vec<bool> = lines
                .filter(|line| line.contains(says) || line.contains(denies))
                .map(|line| line.contains(says))
                .collect();
            assert_eq!(said.last(), Some(&true), "{says}: {log}");
            assert_eq!(said.iter().filter(|says| **says).count(), 1, "{says}: {log}");
        }
        is_plain(node);
    }
}

pub fn an_invited_node_is_trusted_without_a_warning_before() {
    let (net, lan) = Net::new();
    let hosts = ["gpu1", "node7"].map(|name| net.host(name, &lan));
    let _ollamas = hosts.each_ref().map(Ollama::start);
    let homes = ["gpu1", "node7"].map(Home::new);
    for home in &homes {
        home.configure("[trust]\ninbound = \"paired\"\noutbound = \"paired\"\n");
    }
    let gpu1 = Node::start(&hosts[0], &homes[0], &[]);
    let invitation = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(invitation.path(), gpu1.ollana(&["invite", "--uses", "1"]).unwrap()).unwrap();
    let node7 = Node::start(&hosts[1], &homes[1], &["--invitation-file", invitation.path().to_str().unwrap()]);
    node7.until_used("gpu1", CHANGE);
    gpu1.until_peer("node7", CHANGE, |peer| peer.trust == "trusted" && peer.scope == "infer");
    // A warning would come within 2 s.
    std::thread::sleep(Duration::from_secs(3));
    for (node, other) in [(&gpu1, "node7"), (&node7, "gpu1")] {
        let log = node.log();
        assert!(!log.contains("waits to be trusted") && !log.contains("by hand"), "{log}");
        assert!(log.contains("invitation"), "{log}");
        let refused = |line: &str| line.contains("WARN") && line.contains(other);
        assert!(!log.lines().any(refused), "{log}");
        is_plain(node);
    }
}

/// The output that people read without asking for more has no type of the program in it.
fn is_plain(node: &Node) {
    for line in node.log().lines().filter(|line| !line.contains("DEBUG") && !line.contains("TRACE")) {
        for form in ["use_=", "Some(", "Link {", "Transmit {", "r#"] {
            assert!(!line.contains(form), "{line}");
        }
    }
}
