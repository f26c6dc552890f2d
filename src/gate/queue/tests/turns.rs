//! Who has how many turns, over a long time.

use super::*;

/// Lets one after the other run, so many times, and each ask for as much again; who had how many turns.
fn turns(queue: &mut Queue, who: &[(Flow, f64)], times: usize) -> BTreeMap<Flow, usize> {
    let now = Instant::now();
    let ask = |queue: &mut Queue, flow: Flow, weight: f64| {
        queue.handle_arrival(now, Arrival { weight, ..request(flow, 1) }).unwrap()
    };
    let first = queue.handle_arrival(now, request(Flow::Guest, 1)).unwrap();
    let mut whose: HashMap<EntryId, (Flow, f64)> = HashMap::new();
    for (flow, weight) in who.iter().flat_map(|one| [*one; 3]) {
        whose.insert(ask(queue, flow, weight), (flow, weight));
    }
    assert_eq!(granted(queue), [first]);
    let (mut runs, mut had) = (first, BTreeMap::new());
    for _ in 0..times {
        queue.handle_end(now, runs);
        runs = granted(queue)[0];
        let (flow, weight) = whose[&runs];
        *had.entry(flow).or_default() += 1;
        whose.insert(ask(queue, flow, weight), (flow, weight));
    }
    had
}

#[test]
fn strangers_are_owed_nothing_for_what_they_do_not_have_beside_who_is_trusted() {
    let mut queue = Queue::new(limits());
    let friend = Flow::Trusted(Id::from_bytes([0; 32]));
    let had = turns(&mut queue, &[(friend, 1.0), (peer(1), 1.0), (peer(2), 1.0)], 600);
    assert_eq!(had[&friend], 300, "every other turn is not theirs");
    let honest = queue.handle_arrival(Instant::now(), request(peer(3), 1)).unwrap();
    // Each of the two may be ahead of it by its lead and one, and as many of the friend's come between.
    assert!(queue.place(honest).unwrap().ahead <= 4.0 * f32::from(LEAD + 1) + 1.0, "{:?}", queue.place(honest));
}

#[test]
fn weights_hold_among_those_who_are_trusted_however_many_strangers_wait() {
    let friends = [(Flow::Trusted(Id::from_bytes([1; 32])), 4.0), (Flow::Trusted(Id::from_bytes([2; 32])), 1.0)];
    let strangers = (10..60).map(|n| (peer(n), 1.0));
    let had = turns(&mut Queue::new(limits()), &friends.into_iter().chain(strangers).collect::<Vec<_>>(), 400);
    let [four, one] = friends.map(|(flow, _)| had[&flow]);
    assert_eq!(four + one, 200);
    assert!((155..=165).contains(&four), "{four} and {one} turns of 4 and 1");
}

#[test]
fn a_stranger_beside_many_who_are_trusted_has_a_share_and_not_every_other_turn() {
    let friends = (1..10).map(|n| (Flow::Trusted(Id::from_bytes([n; 32])), 1.0));
    let had = turns(&mut Queue::new(limits()), &friends.chain([(peer(1), 1.0)]).collect::<Vec<_>>(), 400);
    assert!((38..=42).contains(&had[&peer(1)]), "{had:?}");
}
