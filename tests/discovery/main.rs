//! Discovery between hosts in network namespaces: real sockets, real multicast, several interfaces.
//!
//! The test binary starts itself again inside the hosts, with [`ROLE`] set: as a node that prints its sightings as lines
//! of JSON, or as somebody who sends one kind of beacon.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/netns.rs"]
mod netns;
mod node;

use std::net::{IpAddr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use netns::{Net, nft_permitted, trial};
use node::{Node, Send};
use ollana::internals::discovery::GROUP_PORT;
use ollana::internals::wire::beacon::BeaconKind;

/// The environment variable that tells a copy of this program what to be.
const ROLE: &str = "OLLANA_TEST_ROLE";
/// "A node started on a network with a running provider can use it within 1 s": so it must be seen well before.
const SOON: Duration = Duration::from_secs(1);
/// Changes of interfaces are noticed by a poll once a second.
const CHANGE: Duration = Duration::from_secs(2);
/// The longest time between two heartbeats, and some.
const HEARTBEAT: Duration = Duration::from_secs(12);

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok("node") => return node::run(),
        Ok("send") => return node::send(),
        _ => {}
    }
    let netns = netns::permitted();
    let nft = netns.clone().and_then(|()| nft_permitted());
    let mut arguments = libtest_mimic::Arguments::from_args();
    // They wait much more than they work.
    arguments.test_threads = arguments.test_threads.or(Some(8));
    macro_rules! trials {
        ($($permitted:ident: $($test:ident)*;)*) => { vec![$($(trial(stringify!($test), $permitted.clone(), $test),)*)*] };
    }
    let trials = trials! {
        netns:
            two_hosts_see_each_other_within_a_second_by_ipv4_and_ipv6
            hosts_without_ipv4_see_each_other
            hosts_without_ipv6_see_each_other
            an_ipv6_address_that_is_still_being_checked_for_duplicates_delays_and_does_not_prevent
            an_interface_that_appears_later_is_used
            an_interface_that_goes_and_comes_back_is_used_again
            a_cable_that_is_plugged_in_is_noticed
            another_address_is_announced_at_once
            a_node_without_any_network_waits_for_one
            nodes_on_one_host_see_each_other
            nodes_on_one_host_without_a_network_see_each_other
            a_host_with_two_interfaces_sees_both_networks_and_joins_neither_to_the_other
            a_host_with_two_subnets_on_one_wire_is_seen_in_both
            a_goodbye_is_heard_at_once
            a_restart_is_noticed_by_its_instance
            nodes_that_started_while_the_network_was_cut_find_each_other_when_it_is_whole
            a_beacon_with_another_ttl_is_dropped
            a_beacon_sent_by_unicast_is_dropped
            a_beacon_from_off_the_link_is_dropped
            a_port_that_another_program_holds_alone_is_a_clear_error
            more_interfaces_than_one_socket_may_join_are_no_obstacle;
        nft:
            blocked_multicast_hides_hosts_from_each_other
            lost_datagrams_delay_and_do_not_prevent
            a_flood_of_queries_makes_less_traffic_than_it_is
            an_idle_node_sends_one_datagram_a_heartbeat_and_family;
    };
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn two_hosts_see_each_other_within_a_second_by_ipv4_and_ipv6() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4002);
    let (v4, v6) = (second.sees_v4(1, SOON), second.sees_v6(1, SOON));
    assert_eq!(v4.address, format!("{}:4001", a.v4(&lan)));
    assert!(v6.address.starts_with("[fe80::") && v6.address.ends_with("]:4001") && v6.address.contains('%'));
    assert_eq!((v4.name.as_str(), v4.instance), ("node1", first.instance));
    assert!(v4.after < SOON && v6.after < SOON, "{v4:?} {v6:?}");
    assert_eq!(first.sees_v4(2, SOON).address, format!("{}:4002", b.v4(&lan)));
    first.sees_v6(2, SOON);
    // What is passed on can be dialled.
    let ip = v6.address.trim_start_matches('[').split(']').next().unwrap().to_owned();
    assert!(b.command("ping").args(["-c1", "-W1", &ip]).output().is_ok_and(|o| o.status.success()) || !has_ping());
}

fn hosts_without_ipv4_see_each_other() {
    let (net, lan) = Net::new();
    let hosts = ["a", "b"].map(|name| net.bare_host(name));
    hosts.iter().for_each(|host| drop(host.attach_bare(&lan)));
    let mut first = Node::start(&hosts[0], 1, 4001);
    let mut second = Node::start(&hosts[1], 2, 4001);
    first.sees_v6(2, SOON);
    second.sees_v6(1, SOON);
}

fn hosts_without_ipv6_see_each_other() {
    let (net, lan) = Net::new();
    let hosts = ["a", "b"].map(|name| net.bare_host(name));
    for host in &hosts {
        host.sysctl("net.ipv6.conf.all.disable_ipv6", "1");
        host.sysctl("net.ipv6.conf.default.disable_ipv6", "1");
        let interface = host.attach_bare(&lan);
        host.add_address(&interface, &format!("{}/24", host.v4(&lan)));
    }
    let mut first = Node::start(&hosts[0], 1, 4001);
    let mut second = Node::start(&hosts[1], 2, 4001);
    first.sees_v4(2, SOON);
    second.sees_v4(1, SOON);
}

fn an_ipv6_address_that_is_still_being_checked_for_duplicates_delays_and_does_not_prevent() {
    let (net, lan) = Net::new();
    let (a, b) = (net.bare_host("a"), net.bare_host("b"));
    a.attach_bare(&lan);
    let mut first = Node::start(&a, 1, 4001);
    b.sysctl("net.ipv6.conf.all.accept_dad", "1");
    b.sysctl("net.ipv6.conf.default.accept_dad", "1");
    b.sysctl("net.ipv6.conf.default.dad_transmits", "2");
    b.attach_bare(&lan);
    let mut second = Node::start(&b, 2, 4001);
    // The check takes 2 to 3 s, the interface is noticed after 1 s, and the tries are at most 2 s apart.
    second.logs("cannot send a beacon", CHANGE);
    first.sees_v6(2, Duration::from_secs(8));
    second.sees_v6(1, Duration::from_secs(8));
}

fn an_interface_that_appears_later_is_used() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.bare_host("b"));
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    b.attach(&lan);
    first.sees_v4(2, CHANGE);
    second.sees_v4(1, CHANGE);
    first.sees_v6(2, CHANGE);
    second.sees_v6(1, CHANGE);
}

fn an_interface_that_goes_and_comes_back_is_used_again() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    first.sees_v4(2, SOON);
    second.sees_v4(1, SOON);
    second.sees_v6(1, SOON);
    // Down and up.
    second.forget();
    b.link_down("eth0");
    second.logs("left the discovery group", CHANGE);
    b.link_up("eth0");
    second.sees_v4(1, CHANGE);
    second.sees_v6(1, CHANGE);
    // Away altogether, and another one in its place.
    second.forget();
    b.detach("eth0");
    second.logs("left the discovery group", CHANGE);
    b.attach(&lan);
    second.sees_v4(1, CHANGE);
    second.sees_v6(1, CHANGE);
}

fn a_cable_that_is_plugged_in_is_noticed() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    b.unplug(&lan, "eth0");
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    second.logs("joined the discovery group", SOON);
    b.plug(&lan, "eth0");
    first.sees_v4(2, CHANGE);
    second.sees_v4(1, CHANGE);
}

fn another_address_is_announced_at_once() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    first.sees_v4(2, SOON);
    second.sees_v4(1, SOON);
    b.set_addresses("eth0", &["10.83.0.200/24"]);
    first.sees(CHANGE, |s| s.kind == "Present" && s.id == 2 && s.address == "10.83.0.200:4001");
    // Another subnet: it can no longer be dialled from the first, but the first can follow.
    b.set_addresses("eth0", &["10.99.0.2/24"]);
    a.add_address("eth0", "10.99.0.1/24");
    first.sees(CHANGE, |s| s.kind == "Present" && s.id == 2 && s.address == "10.99.0.2:4001");
    second.sees(CHANGE, |s| s.kind == "Present" && s.id == 1 && s.address == "10.99.0.1:4001");
}

fn a_node_without_any_network_waits_for_one() {
    let (net, lan) = Net::new();
    let (a, b) = (net.bare_host("a"), net.host("b", &lan));
    a.link_down("lo");
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    first.is_running();
    a.attach(&lan);
    first.sees_v4(2, CHANGE);
    second.sees_v4(1, CHANGE);
}

fn nodes_on_one_host_see_each_other() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut nodes = [Node::start(&a, 1, 4001), Node::start(&a, 2, 4002), Node::start(&a, 3, 4003)];
    let mut far = Node::start(&b, 9, 4001);
    for n in [1, 2, 3] {
        far.sees_v4(n, SOON);
        for node in nodes.iter_mut().filter(|node| node.id != n) {
            node.sees(SOON, |s| s.id == n && s.address == format!("{}:400{n}", a.v4(&lan)));
            node.sees(SOON, |s| s.id == n && s.address.starts_with("[fe80::"));
        }
    }
    nodes.iter_mut().for_each(|node| drop(node.sees_v4(9, SOON)));
}

fn nodes_on_one_host_without_a_network_see_each_other() {
    let net = Net::empty();
    let a = net.bare_host("a");
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&a, 2, 4002);
    assert_eq!(second.sees_v4(1, SOON).address, "127.0.0.1:4001");
    assert_eq!(first.sees_v4(2, SOON).address, "127.0.0.1:4002");
}

fn a_host_with_two_interfaces_sees_both_networks_and_joins_neither_to_the_other() {
    let (net, lan) = Net::new();
    let other = net.add_lan();
    let (a, b, c) = (net.host("a", &lan), net.host("b", &other), net.host("c", &lan));
    c.attach(&other);
    let mut left = Node::start(&a, 1, 4001);
    let mut right = Node::start(&b, 2, 4001);
    let mut middle = Node::start(&c, 3, 4001);
    assert_eq!(middle.sees_v4(1, SOON).address, format!("{}:4001", a.v4(&lan)));
    assert_eq!(middle.sees_v4(2, SOON).address, format!("{}:4001", b.v4(&other)));
    assert_eq!(left.sees_v4(3, SOON).address, format!("{}:4001", c.v4(&lan)));
    assert_eq!(right.sees_v4(3, SOON).address, format!("{}:4001", c.v4(&other)));
    // Link-local addresses carry the interface by which they were heard.
    let (l, r) = (middle.sees_v6(1, SOON), middle.sees_v6(2, SOON));
    assert_ne!(l.address.split('%').nth(1), r.address.split('%').nth(1));
    left.never_saw(|s| s.id == 2);
    right.never_saw(|s| s.id == 1);
}

fn a_host_with_two_subnets_on_one_wire_is_seen_in_both() {
    let (net, lan) = Net::new();
    let (a, b, c) = (net.host("a", &lan), net.bare_host("b"), net.host("c", &lan));
    let interface = b.attach_bare(&lan);
    b.add_address(&interface, "10.99.0.2/24");
    c.add_address("eth0", "10.99.0.3/24");
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    let mut third = Node::start(&c, 3, 4001);
    assert_eq!(first.sees_v4(3, SOON).address, format!("{}:4001", c.v4(&lan)));
    assert_eq!(second.sees_v4(3, SOON).address, "10.99.0.3:4001");
    third.sees_v4(1, SOON);
    assert_eq!(third.sees_v4(2, SOON).address, "10.99.0.2:4001");
    first.never_saw(|s| s.address.starts_with("10.99."));
}

fn a_goodbye_is_heard_at_once() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    first.sees_v4(2, SOON);
    first.sees_v6(2, SOON);
    second.say("goodbye");
    first.sees(SOON, |s| s.kind == "Goodbye" && s.id == 2 && s.is_v4());
    first.sees(SOON, |s| s.kind == "Goodbye" && s.id == 2 && !s.is_v4());
    second.ends(SOON);
}

fn a_restart_is_noticed_by_its_instance() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    first.sees_v4(2, SOON);
    second.kill();
    let second = Node::start(&b, 2, 4001);
    first.sees(SOON, |s| s.id == 2 && s.instance == second.instance);
}

fn nodes_that_started_while_the_network_was_cut_find_each_other_when_it_is_whole() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    lan.cut();
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    // The burst is over after 600 ms: only heartbeats find the other now.
    std::thread::sleep(Duration::from_secs(1));
    lan.join();
    first.sees_v4(2, HEARTBEAT);
    second.sees_v4(1, HEARTBEAT);
    lan.cut();
    let c = net.host("c", &lan);
    let mut third = Node::start(&c, 3, 4001);
    std::thread::sleep(Duration::from_secs(1));
    lan.join();
    third.sees_v4(1, HEARTBEAT);
    first.sees_v4(3, HEARTBEAT);
}

fn a_beacon_with_another_ttl_is_dropped() {
    dropped(|lan, to, from, send, v6| {
        let _ = (lan, to, from, v6);
        send.ttl = 254;
    });
    dropped(|_, _, _, send, _| send.ttl = 1);
}

fn a_beacon_sent_by_unicast_is_dropped() {
    dropped(|lan, to, _, send, v6| send.to = if v6 { to.v6(lan).into() } else { to.v4(lan).into() });
}

fn a_beacon_from_off_the_link_is_dropped() {
    dropped(|_, _, from, send, v6| {
        let (address, prefix) = if v6 { ("2001:db8::7", 128) } else { ("198.51.100.7", 32) };
        from.add_address("eth0", &format!("{address}/{prefix}"));
        send.source = address.parse().unwrap();
    });
}

/// Sends one beacon with something wrong about it, and then the same one without: only the second is seen.
fn dropped(spoil: fn(&netns::Lan, &netns::Host, &netns::Host, &mut Send, bool)) {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    let mut node = Node::start(&a, 1, 4001);
    for v6 in [false, true] {
        let good = Send {
            source: if v6 { IpAddr::V6(b.v6(&lan)) } else { b.v4(&lan).into() },
            to: if v6 {
                IpAddr::V6(Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x6f6c, 0x6c61))
            } else {
                [224, 0, 0, 254].into()
            },
            interface: "eth0".to_owned(),
            ttl: 255,
            id: 7,
            kind: BeaconKind::Announce,
            count: 3,
        };
        let mut bad = Send { id: 66, ..good.clone() };
        spoil(&lan, &a, &b, &mut bad, v6);
        bad.run(&b);
        good.run(&b);
        node.sees(SOON, |s| s.id == 7 && s.is_v4() != v6);
        node.never_saw(|s| s.id == 66);
    }
    // Unicast does not even reach a socket that is bound to the group; all else was received and refused.
}

fn a_port_that_another_program_holds_alone_is_a_clear_error() {
    let net = Net::empty();
    let a = net.bare_host("a");
    let mut hog = Node::hog(&a);
    let error = Node::fails(&a, 1, 4001);
    assert!(error.contains("11436") && error.contains("discovery false") && error.contains("--peer"), "{error}");
    hog.kill();
    Node::start(&a, 1, 4001);
}

fn more_interfaces_than_one_socket_may_join_are_no_obstacle() {
    let (net, lan) = Net::new();
    let (a, b) = (net.host("a", &lan), net.host("b", &lan));
    a.sysctl("net.ipv4.igmp_max_memberships", "2");
    for n in 0..25 {
        a.ip(&["link", "add", &format!("x{n}"), "type", "veth", "peer", "name", &format!("y{n}")]);
        a.ip(&["addr", "add", &format!("10.50.{n}.1/24"), "dev", &format!("x{n}")]);
        a.ip(&["link", "set", &format!("x{n}"), "up"]);
        a.ip(&["link", "set", &format!("y{n}"), "up"]);
    }
    let late = net.add_lan();
    a.attach(&late);
    let (c, mut first) = (net.host("c", &late), Node::start(&a, 1, 4001));
    let (mut second, mut third) = (Node::start(&b, 2, 4001), Node::start(&c, 3, 4001));
    second.sees_v4(1, SOON);
    third.sees_v6(1, SOON);
    third.sees_v4(1, SOON);
    first.sees_v4(2, SOON);
    first.sees_v4(3, SOON);
}

fn blocked_multicast_hides_hosts_from_each_other() {
    let (net, lan) = Net::new();
    let (a, b, c) = (net.host("a", &lan), net.host("b", &lan), net.host("c", &lan));
    b.block_multicast();
    let mut first = Node::start(&a, 1, 4001);
    let mut second = Node::start(&b, 2, 4001);
    second.logs("cannot send a beacon", SOON);
    let mut third = Node::start(&c, 3, 4001);
    first.sees_v4(3, SOON);
    third.sees_v4(1, SOON);
    first.never_saw(|s| s.id == 2);
    second.never_saw(|s| s.id != 2);
    // A firewall that is opened later is noticed without a restart.
    b.nft_flush();
    second.sees_v4(1, HEARTBEAT);
    first.sees_v4(2, HEARTBEAT);
}

fn lost_datagrams_delay_and_do_not_prevent() {
    let (net, lan) = Net::new();
    let hosts: Vec<_> = (1..=4).map(|n| net.host(&format!("h{n}"), &lan)).collect();
    hosts.iter().for_each(|host| host.lose(20));
    let mut nodes: Vec<_> = (1..).zip(&hosts).map(|(n, host)| Node::start(host, n, 4001)).collect();
    for node in &mut nodes {
        let own = node.id;
        for n in (1..=4).filter(|n| *n != own) {
            node.sees_v4(n, 3 * HEARTBEAT);
        }
    }
}

fn a_flood_of_queries_makes_less_traffic_than_it_is() {
    let (net, lan) = Net::new();
    let (a, b, c) = (net.host("a", &lan), net.host("b", &lan), net.host("c", &lan));
    let mut node = Node::start(&a, 1, 4001);
    node.logs("joined the discovery group", SOON);
    let mut late = Node::start(&c, 3, 4001);
    late.sees_v4(1, SOON);
    node.sees_v4(3, SOON);
    a.count(GROUP_PORT);
    let flood = Send {
        source: b.v4(&lan).into(),
        to: [224, 0, 0, 254].into(),
        interface: "eth0".to_owned(),
        ttl: 255,
        id: 66,
        kind: BeaconKind::Query,
        count: 20_000,
    };
    flood.run(&b);
    node.sees_v4(66, SOON);
    let ((packets_in, bytes_in), (packets_out, bytes_out)) = a.counted();
    assert!(packets_in >= 10_000, "the flood arrived: {packets_in}");
    // Four answers and one a second, and perhaps a heartbeat on each of three links.
    assert!(packets_out <= 30 && bytes_out < bytes_in / 100, "{packets_out} packets, {bytes_out} bytes");
    // Those who are honest are still found.
    let d = net.host("d", &lan);
    let mut newcomer = Node::start(&d, 4, 4001);
    newcomer.sees_v4(1, CHANGE);
    node.sees_v4(4, CHANGE);
}

fn an_idle_node_sends_one_datagram_a_heartbeat_and_family() {
    let (net, lan) = Net::new();
    let a = net.host("a", &lan);
    let _node = Node::start(&a, 1, 4001);
    std::thread::sleep(Duration::from_secs(1));
    a.count(GROUP_PORT);
    std::thread::sleep(Duration::from_secs(23));
    let (_, (packets, bytes)) = a.counted();
    // Two heartbeats on eth0 and lo by IPv4, and on eth0 (and on lo, if it can) by IPv6.
    assert!((6..=8).contains(&packets) && bytes < packets * 130, "{packets} packets, {bytes} bytes");
}

fn has_ping() -> bool {
    std::process::Command::new("ping").arg("-V").output().is_ok()
}
