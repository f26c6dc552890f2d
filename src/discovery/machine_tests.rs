use super::*;
use crate::discovery::interfaces::Family;
use crate::discovery::known::{CAPACITY, EXPIRY, REFRESH};
use crate::discovery::{Claim, SightingKind};
use crate::wire::beacon::MAX_ANNOUNCE_LEN;
use proptest::prelude::*;

const LINK: Link = Link { interface: 2, family: Family::V4 };
const OTHER: Link = Link { interface: 3, family: Family::V6 };

fn me(n: u8) -> Me {
    let name = NodeName::lossy(&format!("node{n}"));
    Me { id: Id::from_bytes([n; 32]), instance: Instance(n.into()), name, quic_port: 11435 }
}

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn beacon(n: u8, kind: BeaconKind) -> Beacon {
    let Me { id, instance, name, quic_port } = me(n);
    Beacon { kind, quic_port, id, instance, name }
}

fn kind(transmit: &Transmit) -> BeaconKind {
    Beacon::parse(&transmit.payload).unwrap().kind
}

fn drain(machine: &mut Machine) -> Vec<(SightingKind, SocketAddr, Claim)> {
    std::iter::from_fn(|| machine.poll_sighting()).map(|s| (s.kind, s.address, s.claim.unwrap())).collect()
}

fn kinds(machine: &mut Machine) -> Vec<SightingKind> {
    drain(machine).into_iter().map(|(kind, ..)| kind).collect()
}

/// Runs one machine alone until `end`; what it sends and when.
fn run(machine: &mut Machine, end: Instant) -> Vec<(Instant, Transmit)> {
    let mut sent = Vec::new();
    while let Some(at) = machine.poll_timeout().filter(|at| *at <= end) {
        machine.handle_timeout(at);
        sent.extend(std::iter::from_fn(|| machine.poll_transmit()).map(|transmit| (at, transmit)));
        assert!(machine.poll_timeout().is_none_or(|next| next > at), "a timeout that does not go away");
    }
    sent
}

/// A machine on `LINK` whose first burst is over, and the time then.
fn settled() -> (Machine, Instant) {
    let start = Instant::now();
    let mut machine = Machine::new(me(0), 1);
    machine.handle_link_up(start, LINK);
    run(&mut machine, start + ms(600));
    while machine.poll_transmit().is_some() {}
    (machine, start + ms(600))
}

/// Nodes on one link that loses datagrams.
struct Sim {
    now: Instant,
    nodes: Vec<Machine>,
    loss: f64,
    rng: StdRng,
}

impl Sim {
    fn new(count: u8, loss: f64, seed: u64) -> Self {
        let nodes = (0..count).map(|n| Machine::new(me(n), seed + u64::from(n))).collect();
        Self { now: Instant::now(), nodes, loss, rng: StdRng::seed_from_u64(seed) }
    }

    fn start(&mut self, n: usize) {
        self.nodes[n].handle_link_up(self.now, LINK);
        self.deliver();
    }

    /// Everything sent reaches everyone, the sender included, unless it is lost.
    fn deliver(&mut self) {
        loop {
            let sent: Vec<_> = self
                .nodes
                .iter_mut()
                .enumerate()
                .flat_map(|(n, node)| std::iter::from_fn(|| node.poll_transmit()).map(move |t| (n, t)))
                .collect();
            if sent.is_empty() {
                return;
            }
            for (from, transmit) in sent {
                for node in self.nodes.iter_mut().filter(|node| !node.links.is_empty()) {
                    if !self.rng.random_bool(self.loss) {
                        let source = ip(u8::try_from(from).unwrap());
                        node.handle_datagram(self.now, LINK, source, &transmit.payload).unwrap();
                    }
                }
            }
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(at) = self.nodes.iter().filter_map(Machine::poll_timeout).min().filter(|at| *at <= end) {
            self.now = at;
            self.nodes.iter_mut().for_each(|node| node.handle_timeout(at));
            self.deliver();
        }
        self.now = end;
    }

    fn present(&mut self, n: usize) -> usize {
        kinds(&mut self.nodes[n]).into_iter().filter(|kind| *kind == SightingKind::Present).count()
    }
}

#[test]
fn a_node_that_joins_late_and_those_that_are_there_see_each_other_within_the_answer_window() {
    let mut sim = Sim::new(5, 0.0, 7);
    (0..4).for_each(|n| sim.start(n));
    sim.run(Duration::from_secs(3));
    (0..4).for_each(|n| assert_eq!(sim.present(n), 3));
    sim.start(4);
    sim.run(ms(120));
    assert_eq!(sim.present(4), 4);
    (0..4).for_each(|n| assert_eq!(sim.present(n), 1));
}

#[test]
fn with_one_datagram_in_five_lost_nodes_still_find_each_other_within_a_second() {
    let missed: usize = (0..200)
        .map(|seed| {
            let mut sim = Sim::new(2, 0.2, seed * 10);
            sim.start(0);
            sim.run(Duration::from_secs(2));
            sim.start(1);
            sim.run(Duration::from_secs(1));
            2 - sim.present(0) - sim.present(1)
        })
        .sum();
    assert!(missed <= 8, "{missed} of 400");
}

#[test]
fn a_heartbeat_goes_out_every_ten_seconds_give_or_take_one() {
    let (mut machine, start) = settled();
    let sent = run(&mut machine, start + Duration::from_secs(1000));
    assert!(sent.iter().all(|(_, transmit)| kind(transmit) == BeaconKind::Announce && transmit.link == LINK));
    let gaps: Vec<_> = sent.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
    assert!(gaps.len() > 90 && gaps.iter().all(|gap| (ms(9000)..=ms(11000)).contains(gap)), "{gaps:?}");
    assert!(gaps.windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
}

#[test]
fn a_burst_goes_out_at_the_start_and_on_every_change_of_a_link() {
    let start = Instant::now();
    let mut machine = Machine::new(me(0), 1);
    machine.handle_link_up(start, LINK);
    let mut sent: Vec<_> = std::iter::from_fn(|| machine.poll_transmit()).collect();
    assert_eq!(sent.len(), 1, "the first at once");
    sent.extend(run(&mut machine, start + ms(600)).into_iter().map(|(_, transmit)| transmit));
    assert_eq!(sent.iter().map(kind).collect::<Vec<_>>(), [BeaconKind::Query; 4]);
    let later = start + Duration::from_secs(3);
    machine.handle_link_up(later, LINK);
    machine.handle_link_up(later, OTHER);
    let mut sent: Vec<_> = std::iter::from_fn(|| machine.poll_transmit()).collect();
    sent.extend(run(&mut machine, later + ms(600)).into_iter().map(|(_, transmit)| transmit));
    assert_eq!(sent.len(), 8);
    machine.handle_link_down(OTHER);
    let sent = run(&mut machine, later + Duration::from_secs(60));
    assert!(!sent.is_empty() && sent.iter().all(|(_, transmit)| transmit.link == LINK));
}

#[test]
fn a_query_is_answered_once_after_a_random_wait_on_its_own_link() {
    let mut waits = Vec::new();
    for seed in 0..50 {
        let start = Instant::now();
        let mut machine = Machine::new(me(0), seed);
        machine.handle_link_up(start, LINK);
        machine.handle_link_up(start, OTHER);
        run(&mut machine, start + ms(600));
        let asked = start + ms(700);
        for n in 1..5 {
            machine.handle_datagram(asked, OTHER, ip(n), &beacon(n, BeaconKind::Query).encode()).unwrap();
        }
        let sent = run(&mut machine, asked + ms(200));
        assert_eq!(sent.len(), 1, "one answer for all who asked");
        assert_eq!((kind(&sent[0].1), sent[0].1.link), (BeaconKind::Announce, OTHER));
        waits.push(sent[0].0 - asked);
    }
    assert!(waits.iter().all(|wait| (ms(20)..=ms(120)).contains(wait)));
    assert!(waits.iter().max().unwrap().saturating_sub(*waits.iter().min().unwrap()) > ms(50), "{waits:?}");
}

#[test]
fn a_flood_of_forged_queries_is_answered_at_most_once_a_second() {
    let (mut machine, start) = settled();
    let query = beacon(9, BeaconKind::Query).encode();
    let (mut bytes_in, mut bytes_out, mut answers) = (0, 0, 0);
    for i in 0..100_000u32 {
        let now = start + Duration::from_micros(100) * i;
        bytes_in += query.len();
        machine.handle_datagram(now, LINK, IpAddr::from((u128::from(i) + 1).to_be_bytes()), &query).unwrap();
        machine.handle_timeout(now);
        while let Some(transmit) = machine.poll_transmit() {
            bytes_out += transmit.payload.len();
            answers += 1;
        }
    }
    assert!((10..=15).contains(&answers), "{answers} in 10 s, a heartbeat included");
    assert!(bytes_out < bytes_in / 100 && bytes_out <= answers * MAX_ANNOUNCE_LEN);
}

#[test]
fn a_query_shorter_than_its_answer_is_not_answered() {
    let (mut machine, start) = settled();
    let mut short = beacon(9, BeaconKind::Query).encode();
    short.truncate(49 + "node9".len());
    machine.handle_datagram(start, LINK, ip(9), &short).unwrap();
    assert_eq!(kinds(&mut machine), [SightingKind::Present], "it is a beacon all the same");
    assert!(run(&mut machine, start + ms(500)).is_empty());
}

#[test]
fn our_own_beacons_are_dropped_and_those_of_another_instance_of_us_are_not() {
    let (mut machine, now) = settled();
    let own = beacon(0, BeaconKind::Query);
    assert_eq!(machine.handle_datagram(now, LINK, ip(1), &own.encode()), Ok(Heard::Own));
    assert!(kinds(&mut machine).is_empty() && run(&mut machine, now + ms(500)).is_empty());
    let clone = Beacon { instance: Instance(99), ..own };
    machine.handle_datagram(now, LINK, ip(1), &clone.encode()).unwrap();
    let [(kind, _, claim)] = &drain(&mut machine)[..] else { panic!() };
    assert_eq!((*kind, claim.id, claim.instance), (SightingKind::Present, me(0).id, Instance(99)));
}

#[test]
fn each_address_of_a_node_is_a_sighting_and_a_link_local_one_keeps_its_scope() {
    let (mut machine, now) = settled();
    let announce = beacon(1, BeaconKind::Announce).encode();
    machine.handle_datagram(now, LINK, ip(1), &announce).unwrap();
    machine.handle_datagram(now, OTHER, "fe80::1".parse().unwrap(), &announce).unwrap();
    machine.handle_datagram(now, OTHER, "fd00::1".parse().unwrap(), &announce).unwrap();
    let addresses: Vec<_> = drain(&mut machine).into_iter().map(|(_, address, _)| address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:11435", "[fe80::1%3]:11435", "[fd00::1]:11435"]);
}

#[test]
fn heartbeats_wake_nobody_but_now_and_then_and_after_a_gap() {
    let (mut machine, start) = settled();
    let announce = beacon(1, BeaconKind::Announce).encode();
    let mut hear = |seconds: u64| {
        machine.handle_datagram(start + Duration::from_secs(seconds), LINK, ip(1), &announce).unwrap();
        kinds(&mut machine).len()
    };
    let passed: Vec<_> = (0..=60).step_by(10).map(&mut hear).collect();
    assert_eq!(passed, [1, 0, 0, 1, 0, 0, 1]);
    assert_eq!(hear(60 + 20), 1, "a heartbeat was missed: the network may have been cut");
    assert!(REFRESH < EXPIRY);
}

#[test]
fn after_a_change_of_the_link_the_next_beacon_is_news() {
    let (mut machine, start) = settled();
    let announce = beacon(1, BeaconKind::Announce).encode();
    let hear_by = |machine: &mut Machine, link| {
        machine.handle_datagram(start, link, ip(1), &announce).unwrap();
        kinds(machine).len()
    };
    assert_eq!([hear_by(&mut machine, LINK), hear_by(&mut machine, LINK)], [1, 0]);
    machine.handle_link_up(start, LINK);
    assert_eq!([hear_by(&mut machine, LINK), hear_by(&mut machine, LINK)], [1, 0], "another address of ours");
    machine.handle_link_down(LINK);
    machine.handle_link_up(start, OTHER);
    assert_eq!([hear_by(&mut machine, OTHER), hear_by(&mut machine, OTHER)], [1, 0], "another interface");
}

#[test]
fn a_restart_and_another_name_are_news_but_not_without_end() {
    let (mut machine, start) = settled();
    let first = beacon(1, BeaconKind::Announce);
    machine.handle_datagram(start, LINK, ip(1), &first.encode()).unwrap();
    let renamed = Beacon { name: NodeName::lossy("new"), ..first.clone() };
    machine.handle_datagram(start, LINK, ip(1), &renamed.encode()).unwrap();
    let restarted = Beacon { instance: Instance(77), ..renamed };
    machine.handle_datagram(start, LINK, ip(1), &restarted.encode()).unwrap();
    let seen = drain(&mut machine);
    let seen: Vec<_> = seen.iter().map(|(_, _, claim)| (claim.name.as_str(), claim.instance.0)).collect();
    assert_eq!(seen, [("node1", 1), ("new", 1), ("new", 77)]);
    for n in 0..10_000u64 {
        let now = start + ms(n);
        machine.handle_datagram(now, LINK, ip(1), &Beacon { instance: Instance(n), ..first.clone() }.encode()).unwrap();
    }
    assert!(kinds(&mut machine).len() <= 13, "once a second in these ten");
}

#[test]
fn silence_expires_a_node_and_two_lost_heartbeats_do_not() {
    let (mut machine, start) = settled();
    let announce = beacon(1, BeaconKind::Announce).encode();
    machine.handle_datagram(start, LINK, ip(1), &announce).unwrap();
    run(&mut machine, start + Duration::from_secs(33));
    assert_eq!(kinds(&mut machine), [SightingKind::Present]);
    let heard = start + Duration::from_secs(33);
    machine.handle_datagram(heard, LINK, ip(1), &announce).unwrap();
    run(&mut machine, heard + EXPIRY - ms(1));
    assert_eq!(kinds(&mut machine), [SightingKind::Present]);
    run(&mut machine, heard + EXPIRY);
    assert_eq!(kinds(&mut machine), [SightingKind::Expired]);
    machine.handle_datagram(heard + EXPIRY, LINK, ip(1), &announce).unwrap();
    assert_eq!(kinds(&mut machine), [SightingKind::Present]);
}

#[test]
fn a_goodbye_is_passed_on_once_and_only_for_the_run_that_is_known() {
    let (mut machine, now) = settled();
    let goodbye = beacon(1, BeaconKind::Goodbye);
    let mut hear = |beacon: &Beacon| {
        machine.handle_datagram(now, LINK, ip(1), &beacon.encode()).unwrap();
        kinds(&mut machine)
    };
    assert_eq!(hear(&goodbye), [], "of a stranger");
    assert_eq!(hear(&beacon(1, BeaconKind::Announce)), [SightingKind::Present]);
    assert_eq!(hear(&Beacon { instance: Instance(5), ..goodbye.clone() }), [], "of an earlier run");
    assert_eq!(hear(&goodbye), [SightingKind::Goodbye]);
    assert_eq!(hear(&goodbye), [], "again");
    assert_eq!(hear(&beacon(1, BeaconKind::Announce)), [SightingKind::Present], "it was forged, or it came back");
    let forged = (0..100).map(|_| hear(&goodbye).len() + hear(&beacon(1, BeaconKind::Announce)).len());
    assert!(forged.sum::<usize>() <= 2, "no ping-pong");
}

#[test]
fn a_goodbye_takes_nothing_away_and_silence_after_it_expires() {
    let (mut machine, start) = settled();
    machine.handle_datagram(start, LINK, ip(1), &beacon(1, BeaconKind::Announce).encode()).unwrap();
    machine.handle_datagram(start + ms(5), LINK, ip(1), &beacon(1, BeaconKind::Goodbye).encode()).unwrap();
    run(&mut machine, start + EXPIRY);
    assert_eq!(kinds(&mut machine), [SightingKind::Present, SightingKind::Goodbye, SightingKind::Expired]);
}

#[test]
fn shutting_down_says_goodbye_on_every_link_and_nothing_more() {
    let (mut machine, now) = settled();
    machine.handle_link_up(now, OTHER);
    machine.handle_shutdown();
    let sent: Vec<_> = std::iter::from_fn(|| machine.poll_transmit()).collect();
    assert!(sent.iter().all(|transmit| kind(transmit) == BeaconKind::Goodbye));
    for link in [LINK, OTHER] {
        assert_eq!(sent.iter().filter(|transmit| transmit.link == link).count(), 2);
    }
    machine.handle_datagram(now, LINK, ip(1), &beacon(1, BeaconKind::Query).encode()).unwrap();
    machine.handle_link_up(now, LINK);
    assert!(run(&mut machine, now + Duration::from_secs(30)).is_empty());
}

#[test]
fn what_cannot_be_sent_is_sent_later_as_a_whole_burst() {
    let start = Instant::now();
    let mut machine = Machine::new(me(0), 1);
    machine.handle_link_up(start, LINK);
    let mut now = start;
    let mut tries = Vec::new();
    while now < start + Duration::from_secs(60) {
        while machine.poll_transmit().is_some() {
            tries.push((now - start).as_secs_f64());
            machine.handle_send_failed(now, LINK);
        }
        now = machine.poll_timeout().unwrap();
        machine.handle_timeout(now);
    }
    assert_eq!(tries[..7], [0.0, 0.25, 0.75, 1.75, 3.75, 5.75, 7.75]);
    let mut sent: Vec<_> = std::iter::from_fn(|| machine.poll_transmit()).collect();
    machine.handle_sent(LINK);
    sent.extend(run(&mut machine, now + ms(600)).into_iter().map(|(_, transmit)| transmit));
    assert_eq!(sent.len(), BURST.len());
}

#[test]
fn a_flood_of_forged_identities_is_bounded_and_pushes_no_real_node_out() {
    let (mut machine, start) = settled();
    let real = beacon(1, BeaconKind::Announce).encode();
    let mut real_seen = Vec::new();
    let mut passed = 0;
    for i in 0..120_000u64 {
        let now = start + ms(i);
        if i % 11_000 == 0 {
            machine.handle_datagram(now, LINK, ip(1), &real).unwrap();
        }
        let mut id = [0xee; 32];
        id[..8].copy_from_slice(&i.to_be_bytes());
        let forged = Beacon { id: Id::from_bytes(id), ..beacon(2, BeaconKind::Announce) };
        machine.handle_datagram(now, LINK, ip(2), &forged.encode()).unwrap();
        machine.handle_timeout(now);
        for (kind, _, claim) in drain(&mut machine) {
            passed += 1;
            if claim.id == me(1).id {
                real_seen.push(kind);
            }
        }
        assert!(machine.known.len() <= CAPACITY);
    }
    assert!(real_seen.len() >= 3 && real_seen.iter().all(|kind| *kind == SightingKind::Present), "{real_seen:?}");
    assert!(passed < 2 * (128 + 120 * 51), "{passed}");
}

#[test]
fn what_nobody_fetches_stays_bounded_and_is_news_again_later() {
    let (mut machine, start) = settled();
    let hear = |machine: &mut Machine, now, n: u16| {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&n.to_be_bytes());
        let beacon = Beacon { id: Id::from_bytes(id), ..beacon(2, BeaconKind::Announce) };
        machine.handle_datagram(now, LINK, ip(2), &beacon.encode()).unwrap();
    };
    for n in 0..400 {
        hear(&mut machine, start + ms(50) * n.into(), n);
    }
    let waiting = drain(&mut machine).len();
    assert_eq!(waiting, 256);
    let later = start + ms(50) * 400;
    hear(&mut machine, later, 399);
    assert_eq!(drain(&mut machine).len(), 1);
}

proptest! {
    #[test]
    fn whatever_happens_timeouts_advance_and_memory_stays_bounded(
        seed: u64,
        steps in prop::collection::vec((0u8..7, 0u64..20_000, 0u8..4, any::<[u8; 3]>()), 1..200),
    ) {
        let mut now = Instant::now();
        let mut machine = Machine::new(me(0), seed);
        for (what, millis, n, bytes) in steps {
            let end = now + ms(millis);
            run(&mut machine, end);
            now = end;
            let link = if n % 2 == 0 { LINK } else { OTHER };
            let kind = [BeaconKind::Announce, BeaconKind::Query, BeaconKind::Goodbye][usize::from(bytes[0] % 3)];
            match what {
                0 => machine.handle_link_up(now, link),
                1 => machine.handle_link_down(link),
                2 => drop(machine.handle_send_failed(now, link)),
                3 => { let _ = machine.handle_datagram(now, link, ip(n), &bytes); }
                _ => {
                    let instance = Instance(u64::from(bytes[1] % 2));
                    let _ = machine.handle_datagram(now, link, ip(n), &Beacon { instance, ..beacon(n, kind) }.encode());
                }
            }
            if bytes[2] % 2 == 0 {
                drain(&mut machine);
            }
            while machine.poll_transmit().is_some() {}
        }
    }
}
