use super::dials::{MAX_CANDIDATES, STAGGER};
use super::*;
use proptest::prelude::*;

struct World {
    machine: Machine,
    now: Instant,
    links: u64,
}

fn id(n: u8) -> Id {
    Id::from_bytes([n; 32])
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 11435))
}

fn claim(n: u8, instance: u64) -> Claim {
    Claim { id: id(n), instance: Instance(instance), name: NodeName::lossy(&format!("node{n}")) }
}

fn hello(n: u8, instance: u64) -> Hello {
    Hello::of(NodeName::lossy(&format!("node{n}")), Instance(instance))
}

fn failed(id: Option<Id>, refused: bool, reason: &str) -> Failed {
    Failed { id, name: None, refused, denial: None, reason: reason.to_owned(), advice: None }
}

fn over(refused: bool, reason: String) -> Lost {
    Lost { refused, denial: None, reason }
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self { machine: Machine::new(id(0), Instance(100)), now, links: 0 }
    }

    fn see(&mut self, at: u8, claim: Option<Claim>) {
        let sighting = Sighting { kind: SightingKind::Present, address: address(at), claim };
        self.machine.handle_sighting(self.now, sighting);
    }

    fn pass(&mut self, wait: Duration) {
        self.now += wait;
        self.machine.handle_timeout(self.now, |_| None);
    }

    fn dials(&mut self) -> Vec<SocketAddr> {
        std::iter::from_fn(|| self.machine.poll_dial(self.now)).collect()
    }

    fn actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.machine.poll_action()).collect()
    }

    fn open(&mut self, at: u8, n: u8, instance: u64) -> LinkId {
        self.links += 1;
        let link = LinkId(self.links);
        self.machine.handle_opened(self.now, address(at), Opened { link, id: id(n), hello: hello(n, instance) });
        link
    }

    fn fail(&mut self, at: u8, refused: bool) {
        self.machine.handle_failed(self.now, address(at), failed(None, refused, "x"));
    }
}

#[test]
fn a_beacon_leads_to_a_dial_and_a_proof_to_a_peer() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    assert_eq!(world.dials(), [address(1)]);
    assert_eq!(world.dials(), [], "it is being dialled");
    let link = world.open(1, 1, 7);
    assert_eq!(world.actions(), [Action::Adopt(link)]);
    world.see(1, Some(claim(1, 7)));
    world.pass(Duration::from_secs(60));
    assert_eq!(world.dials(), [], "it is connected");
}

#[test]
fn our_own_beacon_is_nobody() {
    let mut world = World::new();
    world.see(1, Some(claim(0, 100)));
    assert_eq!(world.dials(), []);
}

#[test]
fn a_second_address_of_a_connected_node_is_left_alone_and_of_an_unconnected_one_waits_its_turn() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.see(2, Some(claim(1, 7)));
    assert_eq!(world.dials().len(), 1);
    world.pass(STAGGER);
    let second = world.dials();
    assert_eq!(second.len(), 1, "the first has not answered in time");
    let link = world.open(1, 1, 7);
    let duplicate = world.open(2, 1, 7);
    assert_eq!(world.actions(), [Action::Adopt(link), Action::Drop(duplicate, Dropped::Duplicate)]);
}

#[test]
fn a_beacon_with_a_trusted_id_and_a_wrong_address_takes_nothing_away() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let link = world.open(1, 1, 7);
    // Someone else says that node 1 runs anew at his address, and proves only his own key there.
    world.see(66, Some(claim(1, 8)));
    assert_eq!(world.dials(), [address(66)]);
    let other = world.open(66, 66, 1);
    assert_eq!(world.actions(), [Action::Adopt(link), Action::Adopt(other)]);
    let (_, peer) = world.machine.peers().find(|(of, _)| **of == id(1)).unwrap();
    assert_eq!((peer.link, peer.address), (Some(link), address(1)));
    world.machine.handle_sighting(
        world.now,
        Sighting { kind: SightingKind::Goodbye, address: address(1), claim: Some(claim(1, 7)) },
    );
    assert_eq!(world.actions(), []);
}

#[test]
fn beacons_cause_ten_dials_a_second_and_one_an_address_in_ten_seconds() {
    let mut world = World::new();
    for n in 1..=100 {
        world.see(n, Some(claim(n, 1)));
    }
    let first = world.dials();
    assert_eq!(first.len(), 10);
    for dialled in &first {
        let SocketAddr::V4(v4) = dialled else { panic!() };
        world.fail(v4.ip().octets()[3], false);
    }
    world.pass(Duration::from_secs(1));
    assert_eq!(world.dials().len(), 10);

    let mut world = World::new();
    for second in 0..10 {
        world.see(1, Some(claim(1, second)));
        let dials = world.dials();
        assert_eq!(dials.len(), usize::from(second == 0), "at second {second}");
        if second == 0 {
            world.open(1, 66, 0);
        }
        world.pass(Duration::from_secs(1));
    }
    world.see(1, Some(claim(1, 99)));
    assert_eq!(world.dials().len(), 1);
}

#[test]
fn a_lost_peer_is_dialled_again_with_growing_waits() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let link = world.open(1, 1, 7);
    world.pass(GOOD);
    world.machine.handle_lost(world.now, link, over(false, "gone".into()));
    let mut waits = Vec::new();
    for _ in 0..12 {
        let due = world.machine.poll_timeout(world.now).unwrap();
        waits.push(due - world.now);
        world.now = due;
        assert_eq!(world.dials(), [address(1)]);
        world.fail(1, false);
    }
    assert!(waits[0] <= Duration::from_millis(300), "{waits:?}");
    assert!(waits[11] >= Duration::from_secs(24) && waits[11] <= Duration::from_secs(36), "{waits:?}");
}

#[test]
fn a_lost_peer_is_looked_for_where_it_was_and_then_wherever_else_it_was_seen() {
    for silent in [false, true] {
        let mut world = World::new();
        world.see(1, Some(claim(1, 7)));
        world.dials();
        let link = world.open(1, 1, 7);
        world.see(2, Some(claim(1, 7)));
        world.see(3, Some(claim(3, 1)));
        assert_eq!(world.dials(), [address(3)], "there is no reason to try the second address of a peer that is there");
        world.open(3, 3, 1);
        world.pass(GOOD);
        match silent {
            true => world.machine.handle_silence(world.now, link, true),
            false => world.machine.handle_lost(world.now, link, over(false, "gone".into())),
        }
        world.pass(Duration::from_millis(300));
        assert_eq!(world.dials(), [address(1)]);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.dials(), [address(2)], "the network may be gone, and not the peer");
        world.open(2, 1, 7);
        world.fail(1, false);
        world.pass(Duration::from_secs(60));
        assert_eq!(world.dials(), []);
    }
}

#[test]
fn who_dials_us_with_a_new_key_or_in_a_new_run_is_dialled_back_at_once() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let link = world.open(1, 1, 7);
    world.machine.handle_lost(world.now, link, over(true, "refused".into()));
    world.machine.handle_inbound(world.now, id(1), &hello(1, 7), address(1));
    assert_eq!(world.dials(), [], "the same run was dialled a moment ago");
    world.machine.handle_inbound(world.now, id(2), &hello(2, 1), address(1));
    assert_eq!(world.dials(), [address(1)]);
}

#[test]
fn a_restart_at_the_same_address_takes_over_at_once() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let old = world.open(1, 1, 7);
    world.actions();
    let new = world.open(1, 1, 8);
    assert_eq!(world.actions(), [Action::Drop(old, Dropped::Restarted), Action::Adopt(new)]);
}

#[test]
fn a_restart_elsewhere_takes_over_when_the_old_connection_is_silent() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let old = world.open(1, 1, 7);
    world.actions();
    let new = world.open(2, 1, 8);
    assert_eq!(world.actions(), [], "the old one may still be alive");
    world.machine.handle_silence(world.now, old, true);
    assert_eq!(world.actions(), [Action::Drop(old, Dropped::Restarted), Action::Adopt(new)]);
    let (_, peer) = world.machine.peers().next().unwrap();
    assert_eq!((peer.link, peer.address, peer.instance), (Some(new), address(2), Instance(8)));
}

#[test]
fn two_live_nodes_with_one_key_are_a_clone_only_if_both_speak() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let old = world.open(1, 1, 7);
    world.actions();
    let new = world.open(2, 1, 8);
    world.now += VERDICT;
    let heard = world.now - Duration::from_millis(100);
    world.machine.handle_timeout(world.now, |_| Some(heard));
    assert_eq!(world.actions(), [Action::Drop(new, Dropped::Duplicate), Action::PeerCloned(id(1))]);
    let (_, peer) = world.machine.peers().next().unwrap();
    assert!(peer.cloned.is_some() && peer.link == Some(old));
}

#[test]
fn a_running_copy_of_ourselves_is_reported_once_and_forgotten_when_it_is_gone() {
    let mut world = World::new();
    world.see(1, Some(claim(0, 200)));
    assert_eq!(world.dials(), [address(1)]);
    let link = world.open(1, 0, 200);
    assert_eq!(world.actions(), [Action::Drop(link, Dropped::OwnKey), Action::Cloned(Some(address(1)))]);
    world.machine.handle_inbound(world.now, id(0), &hello(0, 200), address(1));
    assert_eq!(world.actions(), []);
    world.pass(CLONE_MEMORY);
    assert_eq!(world.actions(), [Action::Cloned(None)]);
}

#[test]
fn dialling_ourselves_is_no_clone() {
    let mut world = World::new();
    world.see(1, None);
    world.dials();
    let link = world.open(1, 0, 100);
    assert_eq!(world.actions(), [Action::Drop(link, Dropped::OwnKey)]);
    world.pass(Duration::from_secs(600));
    assert_eq!(world.dials(), []);
}

#[test]
fn who_dials_us_is_dialled_back() {
    let mut world = World::new();
    world.machine.handle_inbound(world.now, id(1), &hello(1, 7), address(1));
    assert_eq!(world.dials(), [address(1)]);
}

#[test]
fn a_refusal_is_shown_and_not_asked_again_at_once() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let failed = Failed { denial: Some(Denial::Revoked), ..failed(Some(id(1)), true, "revoked there") };
    world.machine.handle_failed(world.now, address(1), failed);
    let (_, peer) = world.machine.peers().next().unwrap();
    assert!(peer.refused && peer.problem.as_deref() == Some("revoked there"));
    assert_eq!(peer.denial, Some(Denial::Revoked));
    world.pass(Duration::from_secs(5));
    assert_eq!(world.dials(), []);
}

/// A stranger with a key and an address of its own.
fn stranger(n: u16) -> (SocketAddr, Claim) {
    let [high, low] = n.to_be_bytes();
    let mut key = [0xee; 32];
    (key[0], key[1]) = (high, low);
    let claim = Claim { id: Id::from_bytes(key), instance: Instance(1), name: NodeName::lossy("stranger") };
    (SocketAddr::from(([10, 1, high, low], 11435)), claim)
}

fn opened(link: u64, claim: &Claim) -> Opened {
    Opened { link: LinkId(link), id: claim.id, hello: Hello::of(claim.name.clone(), claim.instance) }
}

impl World {
    /// A beacon, or a call, of so many strangers.
    fn flood(&mut self, strangers: std::ops::Range<u16>, call: bool) {
        for (address, claim) in strangers.map(stranger) {
            match call {
                true => {
                    let hello = Hello::of(claim.name, claim.instance);
                    self.machine.handle_inbound(self.now, claim.id, &hello, address);
                }
                false => {
                    let sighting = Sighting { kind: SightingKind::Present, address, claim: Some(claim) };
                    self.machine.handle_sighting(self.now, sighting);
                }
            }
        }
    }
}

#[test]
fn keys_that_strangers_prove_are_bounded_and_push_out_nobody_who_is_there() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let link = world.open(1, 1, 7);
    world.actions();
    // Some leave again, and are forgotten for others.
    for n in 0..1000 {
        let (address, claim) = stranger(n);
        world.machine.handle_opened(world.now, address, opened(1000 + u64::from(n), &claim));
        if n % 2 == 0 {
            world.machine.handle_lost(world.now, LinkId(1000 + u64::from(n)), over(false, "x".into()));
        }
        world.pass(Duration::from_millis(1));
    }
    assert_eq!(world.machine.peers().count(), MAX_PEERS);
    let dropped = |action: &Action| matches!(action, Action::Drop(_, Dropped::Crowded));
    assert!(!world.actions().iter().any(dropped));
    // The others stay, until nobody else is let in.
    for n in 1000..2000 {
        let (address, claim) = stranger(n);
        world.machine.handle_opened(world.now, address, opened(1000 + u64::from(n), &claim));
    }
    assert_eq!(world.machine.peers().count(), MAX_PEERS);
    assert!(world.actions().iter().any(dropped));
    assert_eq!(world.machine.peers().find(|(of, _)| **of == id(1)).unwrap().1.link, Some(link));
}

#[test]
fn a_flood_of_addresses_displaces_none_that_a_person_named_and_delays_no_peer() {
    for call in [false, true] {
        let mut world = World::new();
        world.see(2, Some(claim(2, 1)));
        world.see(2, None);
        world.see(1, Some(claim(1, 7)));
        assert_eq!(world.dials().len(), 2);
        let link = world.open(1, 1, 7);
        world.fail(2, false);
        world.flood(0..3000, call);
        assert!(world.machine.candidates.len() <= MAX_CANDIDATES);
        world.dials();
        world.pass(GOOD);
        world.machine.handle_lost(world.now, link, over(false, "gone".into()));
        world.flood(0..3000, call);
        let mut missing = vec![address(1), address(2)];
        let end = world.now + Duration::from_millis(400);
        while world.now < end {
            let dialled = world.dials();
            missing.retain(|address| !dialled.contains(address));
            world.pass(Duration::from_millis(50));
        }
        assert_eq!(missing, [], "call: {call}");
    }
}

#[test]
fn an_address_that_nobody_knows_is_dialled_once_in_ten_seconds_however_it_fails() {
    let mut world = World::new();
    let mut dials = 0;
    for second in 0..60 {
        if second % 3 == 0 {
            world.see(1, Some(claim(1, second)));
        }
        for _ in world.dials() {
            dials += 1;
            world.fail(1, false);
        }
        world.pass(Duration::from_secs(1));
    }
    assert!((4..=6).contains(&dials), "{dials}");
}

#[test]
fn who_takes_connections_and_ends_them_is_dialled_ever_less_often() {
    let mut world = World::new();
    world.see(1, None);
    let mut dials = 0;
    let end = world.now + Duration::from_secs(60);
    while world.now < end {
        for _ in world.dials() {
            dials += 1;
            let link = world.open(1, 1, 7);
            world.machine.handle_lost(world.now, link, over(false, "no reason".into()));
        }
        world.pass(Duration::from_millis(50));
    }
    assert!((4..=10).contains(&dials), "{dials}");
}

#[test]
fn an_address_that_a_person_named_outlives_its_beacons() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.see(1, None);
    let gone = Sighting { kind: SightingKind::Expired, address: address(1), claim: Some(claim(1, 7)) };
    world.machine.handle_sighting(world.now, gone.clone());
    assert_eq!(world.dials(), [address(1)]);
    world.fail(1, false);
    world.machine.handle_sighting(world.now, Sighting { claim: None, ..gone });
    world.pass(Duration::from_secs(600));
    assert_eq!(world.dials(), [], "the name that was typed has another address now");
}

#[test]
fn a_copy_of_a_peer_is_reported_once_and_forgotten_when_it_is_gone() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.see(2, Some(claim(1, 8)));
    world.dials();
    world.open(1, 1, 7);
    let mut reports = 0;
    for copy_is_there in [true, true, true, false, false, false, false] {
        if copy_is_there {
            world.open(2, 1, 8);
        }
        for _ in 0..10 {
            world.now += Duration::from_secs(1);
            let now = world.now;
            world.machine.handle_timeout(now, |_| Some(now));
            reports += world.actions().iter().filter(|action| matches!(action, Action::PeerCloned(_))).count();
        }
        if copy_is_there {
            assert_eq!(world.dials(), [], "not yet");
            assert!(world.machine.peers().next().unwrap().1.cloned.is_some());
        }
    }
    assert_eq!(reports, 1);
    assert!(world.machine.peers().next().unwrap().1.cloned.is_none());
}

#[derive(Debug, Clone)]
enum Step {
    See(u8, u8, u64),
    Fixed(u8),
    Answer(bool, u8, u64),
    Lose(u64),
    Silence(u64, bool),
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1..6u8, 0..4u8, 1..4u64).prop_map(|(at, n, i)| Step::See(at, n, i)),
        (1..6u8).prop_map(Step::Fixed),
        (any::<bool>(), 0..4u8, 1..4u64).prop_map(|(ok, n, i)| Step::Answer(ok, n, i)),
        (1..20u64).prop_map(Step::Lose),
        (1..20u64, any::<bool>()).prop_map(|(link, silent)| Step::Silence(link, silent)),
        (0..8000u16).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens in whatever order: every connection is adopted or dropped at most once each, nothing is adopted
    /// after it was dropped, and a peer's connection is always one that was adopted and not dropped.
    #[test]
    fn connections_never_leak_and_never_come_back(steps in proptest::collection::vec(step(), 1..200)) {
        let mut world = World::new();
        let mut dialling: Vec<u8> = Vec::new();
        let (mut adopted, mut dropped, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::See(at, n, instance) => world.see(at, Some(claim(n, instance))),
                Step::Fixed(at) => world.see(at, None),
                Step::Answer(ok, n, instance) => if let Some(at) = dialling.pop() {
                    if ok { world.open(at, n, instance); } else { world.fail(at, n == 0); }
                },
                Step::Lose(link) if link <= world.links && !dropped.contains(&LinkId(link)) => {
                    lost.push(LinkId(link));
                    world.machine.handle_lost(world.now, LinkId(link), over(false, "lost".into()));
                }
                Step::Silence(link, silent) => world.machine.handle_silence(world.now, LinkId(link), silent),
                Step::Lose(_) => {}
                Step::Pass(ms) => world.pass(Duration::from_millis(ms.into())),
            }
            for dialled in world.dials() {
                let SocketAddr::V4(v4) = dialled else { panic!() };
                dialling.push(v4.ip().octets()[3]);
            }
            for action in world.actions() {
                match action {
                    Action::Adopt(link) => {
                        prop_assert!(!adopted.contains(&link) && !dropped.contains(&link));
                        adopted.push(link);
                    }
                    Action::Drop(link, _) => {
                        prop_assert!(!dropped.contains(&link));
                        dropped.push(link);
                    }
                    Action::Cloned(_) | Action::PeerCloned(_) => {}
                }
            }
            for (_, peer) in world.machine.peers() {
                if let Some(link) = peer.link {
                    prop_assert!(adopted.contains(&link) && !dropped.contains(&link) && !lost.contains(&link));
                }
            }
        }
    }
}

fn unanswered_names(machine: &Machine, known: impl Fn(&Id) -> bool) -> Vec<String> {
    let shown = machine.unanswering(known).shown.into_iter();
    shown.filter_map(|unanswered| Some(unanswered.claim?.name.to_string())).collect()
}

#[test]
fn a_node_that_is_heard_and_does_not_answer_is_told() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    assert!(unanswered_names(&world.machine, |_| false).is_empty(), "it is being dialled");
    world.fail(1, false);
    assert_eq!(unanswered_names(&world.machine, |_| false), ["node1"]);
    world.open(1, 1, 7);
    assert!(unanswered_names(&world.machine, |_| false).is_empty());
}

#[test]
fn a_node_that_was_switched_off_is_not_taken_for_one_behind_a_firewall() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    let link = world.open(1, 1, 7);
    world.machine.handle_lost(world.now, link, over(false, "gone".into()));
    world.pass(Duration::from_secs(1));
    world.dials();
    world.fail(1, false);
    assert!(unanswered_names(&world.machine, |_| false).is_empty());
    world.pass(Duration::from_secs(1));
    world.see(1, Some(claim(1, 7)));
    assert_eq!(unanswered_names(&world.machine, |_| false), ["node1"], "it is heard, and so it runs");
}

#[test]
fn a_flood_of_beacons_hides_nobody_who_was_heard_before_or_is_known() {
    let mut world = World::new();
    world.see(1, Some(claim(1, 7)));
    world.dials();
    world.fail(1, false);
    for n in 0..400u16 {
        world.pass(Duration::from_secs(1));
        let (address, claim) = stranger(n);
        let sighting = Sighting { kind: SightingKind::Present, address, claim: Some(claim) };
        world.machine.handle_sighting(world.now, sighting);
        world.dials();
        world.machine.handle_failed(world.now, address, failed(None, false, "x"));
    }
    world.see(2, Some(claim(2, 7)));
    world.pass(Duration::from_secs(1));
    world.dials();
    world.fail(2, false);
    let unanswering = world.machine.unanswering(|id| *id == claim(2, 7).id);
    assert_eq!(unanswering.shown.len(), 16);
    assert!(unanswering.more > 300, "{}", unanswering.more);
    assert_eq!(unanswered_names(&world.machine, |id| *id == claim(2, 7).id)[..2], ["node2", "node1"]);
}

#[test]
fn one_host_that_claims_many_names_is_one_line() {
    let mut world = World::new();
    for n in 0..50u16 {
        world.pass(Duration::from_secs(1));
        let (_, claim) = stranger(n);
        let address = SocketAddr::from(([10, 0, 0, 66], 1000 + n));
        let sighting = Sighting { kind: SightingKind::Present, address, claim: Some(claim) };
        world.machine.handle_sighting(world.now, sighting);
        world.dials();
        world.machine.handle_failed(world.now, address, failed(None, false, "x"));
    }
    let unanswering = world.machine.unanswering(|_| false);
    assert_eq!((unanswering.shown.len(), unanswering.more), (1, 49));
}
