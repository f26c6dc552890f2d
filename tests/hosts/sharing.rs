//! Machines that share their Ollamas, on networks of several kinds.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::app::{App, MODEL, Next, Ollama, PATIENCE};
use crate::netns::{Host, Net};
use crate::node::{Home, Node, until};
use crate::{CHANGE, ROLE, SOON};

pub fn an_application_without_an_ollama_is_answered_by_another_host_token_by_token() {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.host("gpu", &lan), net.host("laptop", &lan));
    // So slow that a token which waited for the next one would be seen to.
    let ollama = Ollama::with(&gpu, &[MODEL], |settings| settings.pace = Duration::from_millis(300));
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let provider = Node::start(&gpu, &homes[0], &[]);
    provider.until_status(ROLE, |status| status["ollama"]["lent"] == true);

    // No flag, no file, no address. The application asks at once, as soon as anything takes its connection.
    let mut user = Node::spawn(&laptop, &homes[1], &[]);
    let app = App::on(&laptop);
    let (since, mut chat) = until(PATIENCE, "the listener takes connections", || {
        let since = Instant::now();
        app.chat("hello", 6).ok().map(|chat| (since, chat))
    });
    assert_eq!(chat.status, 200, "{}", chat.refusal());
    // One pace of it is Ollama's time to the first token.
    let took = since.elapsed();
    assert!(took < SOON + Duration::from_millis(300), "{took:?}");
    assert_eq!(chat.peer.as_deref(), Some("gpu"));
    for said in 1..=6 {
        assert!(matches!(chat.next(), Next::Word(_)));
        assert_eq!(ollama.counts().tokens, said, "a token came when the next one was there already");
    }
    assert_eq!(chat.next(), Next::Done);
    assert_eq!(chat.next(), Next::End);
    user.is_ready();
    assert_eq!(user.status()["listen"], "127.0.0.1:11434");
    assert_eq!(app.models(), [MODEL]);
    // What only looks at the node speaks of it too.
    assert!(user.ollana(&["peers"]).unwrap().contains("gpu"));
    assert!(user.ollana(&["models"]).unwrap().contains(MODEL));
    assert_eq!(app.is_answered("again"), "gpu");
}

pub fn two_users_are_spread_over_three_providers() {
    let (net, lan) = Net::new();
    let names = ["one", "two", "three"];
    let hosts = names.map(|name| net.host(name, &lan));
    let ollamas: Vec<_> = names
        .iter()
        .zip(&hosts)
        .map(|(name, host)| {
            Ollama::with(host, &[MODEL, &format!("only-{name}")], |settings| settings.pace = Duration::from_millis(50))
        })
        .collect();
    let homes = names.map(Home::new);
    let _providers: Vec<_> = hosts.iter().zip(&homes).map(|(host, home)| Node::start(host, home, &[])).collect();
    let users = ["anna", "bert"].map(|name| (net.host(name, &lan), Home::new(name)));
    let nodes = users.each_ref().map(|(host, home)| Node::start(host, home, &[]));
    let apps = users.each_ref().map(|(host, _)| App::on(host));
    for node in &nodes {
        names.iter().for_each(|name| drop(node.until_used(name, CHANGE)));
    }

    for app in &apps {
        let mut all = ["one", "three", "two"].map(|name| format!("only-{name}:latest")).to_vec();
        all.push(MODEL.to_owned());
        assert_eq!(app.models(), all, "one entry a model");
        for name in names {
            let chat = app.chat_with(&format!("only-{name}"), "mine", 1, None).unwrap();
            assert_eq!(chat.peer.as_deref(), Some(name), "only this one has it");
            let chat = app.chat_with(MODEL, "chosen", 1, Some(name)).unwrap();
            assert_eq!(chat.peer.as_deref(), Some(name), "the application chose it");
        }
    }
    for ollama in &ollamas {
        ollama.until_running(0);
    }
    let before: Vec<_> = ollamas.iter().map(Ollama::chats).collect();

    // Twelve at a time, which go on until all have begun.
    let mut served = BTreeMap::<String, u64>::new();
    let chats: Vec<_> = (0..12).map(|n| apps[n % 2].chat(&format!("number {n}"), 60).unwrap()).collect();
    let load: Vec<_> = ollamas.iter().map(|ollama| ollama.counts().running).collect();
    assert!(load.iter().all(|running| (2..=6).contains(running)), "{load:?} at a time");
    for chat in chats {
        *served.entry(chat.must_be_right()).or_default() += 1;
    }
    let counted = ollamas.iter().zip(before).map(|(ollama, before)| ollama.chats() - before);
    assert_eq!(names.map(|name| served[name]).to_vec(), counted.collect::<Vec<_>>(), "each answer names who gave it");
}

pub fn hosts_with_nothing_but_link_local_ipv6_use_each_other() {
    ipv6_only(|_| {});
}

pub fn hosts_without_ipv4_use_each_other() {
    ipv6_only(|host| host.add_address("eth0", &format!("2001:db8::{}/64", host.name.len())));
}

fn ipv6_only(prepare: fn(&Host)) {
    let (net, lan) = Net::new();
    let (gpu, laptop) = (net.bare_host("gpu"), net.bare_host("laptop"));
    for host in [&gpu, &laptop] {
        host.attach_bare(&lan);
        prepare(host);
    }
    let _ollama = Ollama::start(&gpu);
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    let peer = user.until_used("gpu", CHANGE);
    assert!(peer.address.unwrap().starts_with('['));
    assert_eq!(App::on(&laptop).is_answered("by IPv6"), "gpu");
}

pub fn a_host_on_two_networks_uses_both_and_joins_neither_to_the_other() {
    let (net, left) = Net::new();
    let right = net.add_lan();
    let (one, two, middle) = (net.host("one", &left), net.host("two", &right), net.host("middle", &left));
    middle.attach(&right);
    let _ollamas =
        [(&one, "m1"), (&two, "m2"), (&middle, "m3")].map(|(host, model)| Ollama::with(host, &[model], |_| {}));
    let homes = ["one", "two", "middle"].map(Home::new);
    let nodes =
        [Node::start(&one, &homes[0], &[]), Node::start(&two, &homes[1], &[]), Node::start(&middle, &homes[2], &[])];
    nodes[2].until_used("one", CHANGE);
    nodes[2].until_used("two", CHANGE);
    nodes[0].until_used("middle", CHANGE);
    nodes[1].until_used("middle", CHANGE);
    // Beside an Ollama a node listens at the port before.
    assert_eq!(App::at(&middle, 11433).models(), ["m1:latest", "m2:latest", "m3:latest"]);
    // Never onward to a third node.
    assert_eq!(App::at(&one, 11433).models(), ["m1:latest", "m3:latest"]);
    assert_eq!(App::at(&two, 11433).models(), ["m2:latest", "m3:latest"]);
    assert!(nodes[0].peer("two").is_none() && nodes[1].peer("one").is_none());
}

pub fn a_host_on_two_networks_is_reached_by_the_other_when_one_is_cut() {
    let (net, left) = Net::new();
    let right = net.add_lan();
    let (gpu, laptop) = (net.host("gpu", &left), net.host("laptop", &left));
    gpu.attach(&right);
    laptop.attach(&right);
    let _ollama = Ollama::start(&gpu);
    let homes = [Home::new("gpu"), Home::new("laptop")];
    let _provider = Node::start(&gpu, &homes[0], &[]);
    let user = Node::start(&laptop, &homes[1], &[]);
    let app = App::on(&laptop);
    let by = |peer: crate::node::Peer| {
        // Link-local addresses end with the interface by which they are reached.
        let address = peer.address.unwrap();
        address.contains("%eth1")
            || address.starts_with("10.83.1.")
            || address.starts_with("[fd83:1:")
            || address.ends_with(&format!("%{}]:11435", interface_index(&laptop, "eth1")))
    };
    let by_right = by(user.until_used("gpu", CHANGE));
    app.is_answered("by the one");
    if by_right {
        right.cut()
    } else {
        left.cut()
    }
    // 3 s of silence, and a dial at another address.
    app.is_answered_within(2 * CHANGE, "by the other");
    assert_ne!(by(user.until_used("gpu", CHANGE)), by_right);
}

fn interface_index(host: &Host, interface: &str) -> String {
    host.run("cat", &[&format!("/sys/class/net/{interface}/ifindex")]).trim().to_owned()
}

pub fn a_peer_that_is_named_is_found_without_multicast_and_finds_who_named_it() {
    let (net, lan) = Net::new();
    let (one, two) = (net.host("one", &lan), net.host("two", &lan));
    one.block_multicast();
    two.block_multicast();
    let _ollamas = [(&one, "m1"), (&two, "m2")].map(|(host, model)| Ollama::with(host, &[model], |_| {}));
    let homes = ["one", "two"].map(Home::new);
    let named = Node::start(&one, &homes[0], &[]);
    let naming = Node::start(&two, &homes[1], &["--peer", &one.v4(&lan).to_string()]);
    naming.until_used("one", CHANGE);
    named.until_used("two", CHANGE);
    for (host, model, peer) in [(&one, "m2", "two"), (&two, "m1", "one")] {
        let chat = App::at(host, 11433).chat_with(model, "across", 1, None).unwrap();
        assert_eq!((chat.status, chat.peer.as_deref()), (200, Some(peer)));
    }
}

pub fn a_node_without_a_network_uses_its_own_ollama_and_joins_the_network_that_comes() {
    let (net, lan) = Net::new();
    let (laptop, gpu) = (net.bare_host("laptop"), net.host("gpu", &lan));
    let _ollamas = [Ollama::at(&laptop, 11500, &[MODEL], |_| {}), Ollama::with(&gpu, &["large"], |_| {})];
    let homes = [Home::new("laptop"), Home::new("gpu")];
    let alone = Node::start(&laptop, &homes[0], &["--ollama", "http://127.0.0.1:11500"]);
    alone.until_status(ROLE, |status| status["ollama"]["lent"] == true);
    let app = App::on(&laptop);
    assert_eq!(app.is_answered("alone"), "laptop");
    let other = Node::start(&gpu, &homes[1], &[]);

    laptop.attach(&lan);
    alone.until_used("gpu", CHANGE);
    other.until_used("laptop", CHANGE);
    assert_eq!(app.models(), ["large:latest", MODEL]);
    assert_eq!(App::at(&gpu, 11433).is_answered("the other way"), "laptop");
}
