//! Beacons, which anybody on the link may send.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use ollana::internals::id::{Id, Instance, NodeName};
use ollana::internals::wire::beacon::{Beacon, BeaconKind};
use socket2::{Domain, Socket, Type};

use crate::app::{App, Ollama};
use crate::netns::{Host, Lan, Net};
use crate::node::{Home, Node, until};

const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 254);
const PORT: u16 = 11436;
/// A dial after a beacon, on a machine that does much else.
const SOON: Duration = Duration::from_secs(5);

/// Somebody on the link with sockets of their own.
struct Evil {
    host: Host,
    source: Ipv4Addr,
}

/// How a datagram is sent that is not as it should be.
#[derive(Clone, Copy)]
struct Sent {
    source: Ipv4Addr,
    to: Ipv4Addr,
    ttl: u32,
}

/// A node that has a friend whom it uses, an attacker, and what holds them.
struct Scene {
    node: Node,
    friend: Node,
    app: App,
    evil: Evil,
    _ollama: Ollama,
    lan: Lan,
    hosts: Vec<Host>,
    homes: Vec<Home>,
    // Last: the hosts go when all that runs in them has gone.
    net: Net,
}

impl Scene {
    fn new() -> Self {
        let (net, lan) = Net::new();
        let hosts = vec![net.host("laptop", &lan), net.host("gpu", &lan)];
        let evil = net.host("evil", &lan);
        let source = evil.v4(&lan);
        let homes = vec![Home::new("laptop"), Home::new("gpu")];
        let ollama = Ollama::start(&hosts[1]);
        let friend = Node::start(&hosts[1], &homes[1], &[]);
        let node = Node::start(&hosts[0], &homes[0], &[]);
        node.until_used("gpu", SOON);
        let app = App::on(&hosts[0]);
        Self { node, friend, app, evil: Evil { host: evil, source }, _ollama: ollama, lan, hosts, homes, net }
    }

    /// All is as it was.
    fn is_untouched(&self) {
        let peer = self.node.peer("gpu").expect("the friend");
        assert_eq!((peer.state.as_str(), peer.use_.as_str(), peer.provider), ("connected", "yes", true));
        assert_eq!(self.app.is_answered("still there"), "gpu");
    }
}

impl Evil {
    /// Sends these to everyone on the link, as one should.
    fn sends(&self, datagrams: &[Vec<u8>]) {
        self.sends_as(Sent { source: self.source, to: GROUP, ttl: 255 }, datagrams);
    }

    fn sends_as(&self, how: Sent, datagrams: &[Vec<u8>]) {
        let own = self.source;
        self.host.inside(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket.set_multicast_if_v4(&own).unwrap();
            socket.set_multicast_ttl_v4(how.ttl).unwrap();
            // To one machine there is no TTL of nothing.
            socket.set_ttl_v4(how.ttl.max(1)).unwrap();
            // So that the source may be anybody's.
            socket.set_ip_transparent_v4(true).unwrap();
            socket.bind(&SocketAddr::from((how.source, 0)).into()).unwrap();
            let to = SocketAddrV4::new(how.to, PORT).into();
            // A full buffer is no end of the attack.
            let sent = datagrams.iter().filter(|datagram| socket.send_to(datagram, &to).is_ok()).count();
            assert!(2 * sent >= datagrams.len(), "{sent} of {} were sent", datagrams.len());
        });
    }

    /// What was sent up to here has been read: one that is as it should be, sent behind it, is acted on. (The kernel drops what
    /// a node does not read at once, so it is sent until it comes.)
    fn is_heard(&self) {
        let trap = self.trap(4001);
        until(SOON, "a good beacon is acted on", || {
            self.sends(&[announce(99, 4001)]);
            std::thread::sleep(Duration::from_millis(100));
            was_dialled(&trap).then_some(())
        });
    }

    /// Waits at this port for who dials.
    fn trap(&self, port: u16) -> UdpSocket {
        let at = self.source;
        let socket = self.host.inside(|| UdpSocket::bind((at, port)).unwrap());
        socket.set_nonblocking(true).unwrap();
        socket
    }
}

/// Whether anything has come there.
fn was_dialled(trap: &UdpSocket) -> bool {
    trap.recv(&mut [0; 2048]).is_ok()
}

fn is_dialled(trap: &UdpSocket, what: &str) {
    until(SOON, format!("{what} is dialled"), || was_dialled(trap).then_some(()));
}

/// Bytes that have come to and gone from a host's interface.
fn bytes(host: &Host) -> (u64, u64) {
    let all = host.run("cat", &["/proc/net/dev"]);
    let line = all.lines().find_map(|line| line.trim().strip_prefix("eth0:")).unwrap();
    let numbers: Vec<u64> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
    (numbers[0], numbers[8])
}

fn beacon(id: Id, port: u16, kind: BeaconKind) -> Vec<u8> {
    Beacon { kind, quic_port: port, id, instance: Instance(7), name: NodeName::lossy("evil") }.encode()
}

fn announce(n: u8, port: u16) -> Vec<u8> {
    beacon(Id::from_bytes([n; 32]), port, BeaconKind::Announce)
}

pub fn a_trusted_id_with_a_wrong_address_takes_nothing_away() {
    let scene = Scene::new();
    scene.node.ollana(&["trust", &scene.friend.id(), "--yes"]).unwrap();
    let trap = scene.evil.trap(4000);
    let id: Id = scene.friend.id().parse().unwrap();
    let forged: Vec<_> = (0..200).map(|_| beacon(id, 4000, BeaconKind::Announce)).collect();
    scene.evil.sends(&forged);
    // Read it was, or the test would show nothing: another ID from there is dialled.
    scene.evil.is_heard();
    scene.is_untouched();
    let address = scene.node.peer("gpu").unwrap().address.unwrap();
    assert!(!address.starts_with(&scene.evil.source.to_string()), "{address}");
    drop(trap);
}

pub fn our_own_id_from_elsewhere_is_no_clone() {
    let scene = Scene::new();
    let id: Id = scene.node.id().parse().unwrap();
    let friend: Id = scene.friend.id().parse().unwrap();
    let trap = scene.evil.trap(4000);
    for id in [id, friend] {
        scene.evil.sends(&vec![beacon(id, 4000, BeaconKind::Announce); 50]);
        scene.evil.sends(&vec![beacon(id, 4000, BeaconKind::Query); 50]);
    }
    scene.evil.is_heard();
    // Nobody has proved that key there, so nobody stops lending.
    for node in [&scene.node, &scene.friend] {
        assert_eq!(node.status()["conflicts"], serde_json::json!([]));
    }
    assert_eq!(scene.friend.status()["ollama"]["lent"], true);
    scene.is_untouched();
    drop(trap);
}

pub fn an_address_in_a_beacon_is_nobodys_who_did_not_send_it() {
    let scene = Scene::new();
    let third = scene.net.host("third", &scene.lan);
    let at = third.v4(&scene.lan);
    let victim = third.inside(|| UdpSocket::bind((at, 4000)).unwrap());
    victim.set_nonblocking(true).unwrap();
    let own = scene.evil.trap(4000);
    // Wherever a careless reader could look for one: in the name, in a field of a later version.
    let mut with_field = announce(9, 4000);
    with_field.extend([7, 6]);
    with_field.extend(at.octets());
    with_field.extend(4000u16.to_be_bytes());
    let text = format!("{at}:4000");
    with_field.extend([1, u8::try_from(text.len()).unwrap()]);
    with_field.extend(text.as_bytes());
    let named = Beacon {
        kind: BeaconKind::Announce,
        quic_port: 4000,
        id: Id::from_bytes([8; 32]),
        instance: Instance(1),
        name: NodeName::lossy(&text),
    };
    scene.evil.sends(&[with_field, named.encode()]);
    is_dialled(&own, "who has sent it");
    assert!(!was_dialled(&victim), "somebody was dialled who has said nothing");
    scene.is_untouched();
}

pub fn broken_giant_old_and_odd_beacons_cause_no_dial_and_later_fields_are_no_harm() {
    let scene = Scene::new();
    let good = |port| announce(9, port);
    let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good(4000);
        change(&mut bytes);
        bytes
    };
    let bad = scene.evil.trap(4000);
    let whole = good(4000);
    let mut datagrams: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
    datagrams.extend([
        // Giant, by one byte and by much.
        spoil(&|bytes| {
            while bytes.len() <= 512 {
                bytes.extend([9, 0])
            }
        }),
        spoil(&|bytes| bytes.resize(1400, 0)),
        spoil(&|bytes| bytes.resize(9000, 0)),
        spoil(&|bytes| bytes.resize(60_000, 0)),
        // Of versions and kinds that are no more or not yet.
        spoil(&|bytes| bytes[4] = 0),
        spoil(&|bytes| bytes[4] = 2),
        spoil(&|bytes| bytes[4] = 255),
        spoil(&|bytes| bytes[5] = 0),
        spoil(&|bytes| bytes[5] = 4),
        spoil(&|bytes| bytes[0] = b'o'),
        // Without a name, with one that is longer than the rest, with half a field behind it.
        spoil(&|bytes| bytes[48] = 0),
        spoil(&|bytes| bytes[48] = 255),
        spoil(&|bytes| bytes.extend([7, 200, 1])),
        spoil(&|bytes| bytes.push(7)),
        spoil(&|bytes| bytes[6..8].fill(0)),
        Vec::new(),
        vec![0; 512],
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
    ]);
    for _ in 0..3 {
        scene.evil.sends(&datagrams);
    }
    // Contents of a later version, which this one does not know and skips.
    let later = scene.evil.trap(4001);
    let mut future = good(4001);
    future.extend([200, 3, 1, 2, 3, 0, 0, 255, 0]);
    scene.evil.sends(&[future]);
    is_dialled(&later, "the one of a later version");
    assert!(!was_dialled(&bad), "a broken one was acted on");
    scene.is_untouched();
}

pub fn from_off_the_link_by_unicast_or_with_another_ttl_it_causes_no_dial() {
    let scene = Scene::new();
    let evil = &scene.evil;
    let bad = evil.trap(4000);
    evil.host.add_address("eth0", "198.51.100.7/32");
    let far = evil.host.inside(|| UdpSocket::bind(("198.51.100.7", 4000)).unwrap());
    far.set_nonblocking(true).unwrap();
    let datagrams = vec![announce(9, 4000); 5];
    let right = Sent { source: evil.source, to: GROUP, ttl: 255 };
    let victims: Vec<Ipv4Addr> = scene.hosts.iter().map(|host| host.v4(&scene.lan)).collect();
    for ttl in [0, 1, 2, 64, 128, 254] {
        evil.sends_as(Sent { ttl, ..right }, &datagrams);
    }
    for to in victims.iter().copied().chain([Ipv4Addr::BROADCAST, Ipv4Addr::new(224, 0, 0, 1)]) {
        if to != Ipv4Addr::BROADCAST {
            evil.sends_as(Sent { to, ..right }, &datagrams);
        }
    }
    evil.sends_as(Sent { source: [198, 51, 100, 7].into(), ..right }, &datagrams);
    scene.evil.is_heard();
    assert!(!was_dialled(&bad) && !was_dialled(&far), "one that did not was acted on");
    scene.is_untouched();
}

pub fn forged_goodbyes_part_nobody() {
    let scene = Scene::new();
    let friend: Id = scene.friend.id().parse().unwrap();
    let address = scene.node.peer("gpu").unwrap().address.unwrap();
    let port = address.rsplit_once(':').unwrap().1.parse().unwrap();
    // From the attacker's own address, and as if from the friend's.
    scene.evil.host.sysctl("net.ipv4.ip_nonlocal_bind", "1");
    let real = scene.hosts[1].v4(&scene.lan);
    let goodbye = vec![beacon(friend, port, BeaconKind::Goodbye); 300];
    let mut running = scene.app.chat("running", 50).unwrap();
    for source in [scene.evil.source, real] {
        scene.evil.sends_as(Sent { source, to: GROUP, ttl: 255 }, &goodbye);
    }
    scene.evil.is_heard();
    for _ in 0..10 {
        scene.is_untouched();
    }
    while !matches!(running.next(), crate::app::Next::Done) {}
}

pub fn a_hundred_thousand_invented_ids_cause_few_dials_and_hide_nobody() {
    let scene = Scene::new();
    let traps: Vec<UdpSocket> = (4000..4100).map(|port| scene.evil.trap(port)).collect();
    let invented: Vec<Vec<u8>> = (0..100_000u32)
        .map(|n| {
            let mut id = [0x55; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            beacon(Id::from_bytes(id), 4000 + u16::try_from(n % 100).unwrap(), BeaconKind::Announce)
        })
        .collect();
    let since = Instant::now();
    for part in invented.chunks(5000) {
        scene.evil.sends(part);
        scene.is_untouched();
    }
    // Somebody who comes in the middle of it is found.
    let late = scene.net.host("late", &scene.lan);
    let home = Home::new("late");
    let _ollama = Ollama::with(&late, &["other"], |_| {});
    let newcomer = Node::start(&late, &home, &[]);
    scene.evil.sends(&invented[..20_000]);
    scene.node.until_used("late", Duration::from_secs(15));
    let dialled = traps.iter().filter(|trap| was_dialled(trap)).count();
    let most = 10 * (usize::try_from(since.elapsed().as_secs()).unwrap() + 2);
    assert!(dialled > 0 && dialled <= most, "{dialled} dialled in {:?}", since.elapsed());
    assert!(scene.node.peers().len() < 600, "{} peers are remembered", scene.node.peers().len());
    drop(newcomer);
}

pub fn a_flood_of_beacons_hides_no_silent_node_and_fills_no_list() {
    let scene = Scene::new();
    // A machine behind a firewall: it is heard, and does not answer.
    let host = scene.net.host("quiet", &scene.lan);
    let quiet = Evil { source: host.v4(&scene.lan), host };
    let _silent = quiet.trap(11435);
    let rows = || -> Vec<serde_json::Value> {
        let peers = scene.node.ollana(&["peers", "--json"]).unwrap();
        let rows: Vec<serde_json::Value> = serde_json::from_str(&peers).unwrap();
        rows.into_iter().filter(|row| row.get("trust").is_none()).collect()
    };
    let at = format!("{}:11435", quiet.source);
    let is_told = || rows().iter().any(|row| row["address"] == at.as_str());
    let limit = Duration::from_secs(30);
    until(limit, "the silent machine is told", || {
        quiet.sends(&[announce(50, 11435)]);
        is_told().then_some(())
    });
    let _traps: Vec<UdpSocket> = (4000..4100).map(|port| scene.evil.trap(port)).collect();
    let flood: Vec<Vec<u8>> = (0..100u8).map(|n| announce(100 + n, 4000 + u16::from(n))).collect();
    until(limit, "the flood is told in one number", || {
        scene.evil.sends(&flood);
        quiet.sends(&[announce(50, 11435)]);
        rows().iter().any(|row| row["name"].as_str().is_some_and(|name| name.ends_with(" more"))).then_some(())
    });
    let rows = rows();
    // The silent one, one line for the attacker's machine, and how many more there are.
    assert_eq!(rows.len(), 3, "{rows:#?}");
    assert!(is_told(), "{rows:#?}");
    assert!(rows.iter().all(|row| row["verified"] == false), "{rows:#?}");
    scene.is_untouched();
}

pub fn a_flood_of_queries_from_forged_sources_brings_fewer_bytes_out_than_in() {
    let scene = Scene::new();
    scene.evil.host.sysctl("net.ipv4.ip_nonlocal_bind", "1");
    let before = bytes(&scene.hosts[0]);
    let query = vec![beacon(Id::from_bytes([9; 32]), 4000, BeaconKind::Query); 300];
    for n in 100..200u8 {
        // Each as if from another machine; and the shortest that could still be asked for.
        let source = Ipv4Addr::new(10, 83, 0, n);
        scene.evil.sends_as(Sent { source, to: GROUP, ttl: 255 }, &query);
        let mut short = query[0].clone();
        short.truncate(60);
        scene.evil.sends_as(Sent { source, to: GROUP, ttl: 255 }, &vec![short; 20]);
    }
    scene.evil.is_heard();
    let after = bytes(&scene.hosts[0]);
    // All that it has sent, to its friend and to the one that it dialled too.
    let (came, went) = (after.0 - before.0, after.1 - before.1);
    assert!(came > 3_000_000, "the flood arrived: {came}");
    assert!(went < came / 20, "{went} bytes out for {came} in");
    scene.is_untouched();
    drop(scene.homes);
}
