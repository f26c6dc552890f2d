use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::turns::{LEAD, OWNERS_IN_A_ROW};
use super::*;
use crate::exchange::Residence;
use crate::id::Id;

mod simulation;
mod turns;

fn peer(n: u8) -> Flow {
    Flow::Peer(Id::from_bytes([n; 32]))
}

const TELL: Duration = Duration::from_millis(200);
const LOAD_TIME: Duration = Duration::from_secs(40);

fn limits() -> Limits {
    Limits { waiting: 256, waiting_each: 64, waiting_strangers: 256, reserve: 0, tell: TELL }
}

fn request(flow: Flow, slots: u32) -> Arrival {
    Arrival { flow, weight: 1.0, model: "m".into(), slots: slots.into(), copies: None }
}

fn ticket(flow: Flow, slots: u32, copies: u8) -> Arrival {
    Arrival { copies: Some(copies), ..request(flow, slots) }
}

fn granted(queue: &mut Queue) -> Vec<EntryId> {
    std::iter::from_fn(|| queue.poll_event())
        .filter_map(|event| if let Event::Granted(id) = event { Some(id) } else { None })
        .collect()
}

/// Runs what is granted to its end, one after the other, until nobody waits; in which order.
fn run_out(queue: &mut Queue, now: Instant, mut running: Vec<EntryId>) -> Vec<EntryId> {
    let mut order = Vec::new();
    while let Some(id) = running.pop() {
        queue.handle_end(now, id);
        let next = granted(queue);
        order.extend(&next);
        running.extend(next);
    }
    order
}

#[test]
fn as_many_run_as_there_are_slots_and_the_rest_comes_in_order() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    let ids: Vec<_> = (0..5).map(|_| queue.handle_arrival(now, request(peer(1), 2)).unwrap()).collect();
    assert_eq!(granted(&mut queue), ids[..2]);
    assert_eq!(
        queue.load("m").unwrap(),
        ModelLoad { residence: Residence::Disk, running: 2, queued: 3.0, begun: 2, waited: 0.0 }
    );
    assert_eq!(queue.place(ids[4]), Some(Place { ahead: 2.0 }));
    queue.handle_end(now, ids[3]);
    assert_eq!(queue.place(ids[4]), Some(Place { ahead: 1.0 }), "who withdraws gives its place up");
    queue.handle_end(now, ids[0]);
    assert_eq!(granted(&mut queue), [ids[2]]);
    queue.handle_end(now, ids[0]);
    assert_eq!(granted(&mut queue), [], "an end counts once");
    // More slots are learned of.
    queue.handle_look(now, now, &[("m", Found { loaded: Some(true), slots: 3.into(), load_time: LOAD_TIME })].into());
    assert_eq!(granted(&mut queue), [ids[4]]);
}

#[test]
fn one_model_does_not_wait_for_another() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    let first = queue.handle_arrival(now, request(peer(1), 1)).unwrap();
    let other = queue.handle_arrival(now, Arrival { model: "n".into(), ..request(peer(1), 1) }).unwrap();
    assert_eq!(granted(&mut queue), [first, other]);
}

#[test]
fn whom_a_person_trusts_has_a_place_and_every_other_turn_however_many_strangers_wait() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    let friend = Flow::Trusted(Id::from_bytes([0; 32]));
    let runs = queue.handle_arrival(now, request(peer(0), 1)).unwrap();
    for n in 0..=255 {
        queue.handle_arrival(now, request(peer(n), 1)).unwrap();
    }
    assert!(queue.handle_arrival(now, request(Flow::Guest, 1)).is_err(), "all places are taken");
    let friends: Vec<_> = (0..20).map(|_| queue.handle_arrival(now, request(friend, 1)).unwrap()).collect();
    let refused = std::iter::from_fn(|| queue.poll_event()).filter(|event| matches!(event, Event::Refused(..)));
    assert_eq!(refused.count(), 20, "strangers make room");
    assert!(queue.place(friends[19]).unwrap().ahead <= 40.0);
    let order = run_out(&mut queue, now, vec![runs]);
    let turns: Vec<_> = friends.iter().map(|id| order.iter().position(|granted| granted == id).unwrap()).collect();
    assert!(turns.iter().enumerate().all(|(n, at)| *at <= 2 * n + 1), "{turns:?}");
    assert_eq!(order.len(), 256);
}

#[test]
fn a_ticket_with_a_twin_counts_as_half() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    for arrival in [request(peer(1), 1), ticket(peer(1), 1, 2), ticket(peer(2), 1, 2), ticket(peer(3), 1, 0)] {
        queue.handle_arrival(now, arrival).unwrap();
    }
    let last = queue.handle_arrival(now, request(peer(3), 1)).unwrap();
    assert_eq!(queue.load("m").unwrap().queued, 3.0);
    assert_eq!(queue.place(last), Some(Place { ahead: 2.0 }));
}

#[test]
fn a_peer_that_floods_does_not_keep_another_waiting() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    for _ in 0..60 {
        queue.handle_arrival(now, request(peer(1), 1)).unwrap();
    }
    let running = granted(&mut queue);
    let other = queue.handle_arrival(now, request(peer(2), 1)).unwrap();
    assert!(queue.place(other).unwrap().ahead <= f32::from(LEAD + 1), "it is ahead of its share by then");
    let order = run_out(&mut queue, now, running);
    assert!(order[..=usize::from(LEAD + 1)].contains(&other));
}

#[test]
fn who_asks_two_things_at_a_time_waits_for_neither_longer_than_others_that_came_then() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    queue.handle_arrival(now, request(Flow::Guest, 1)).unwrap();
    let running = granted(&mut queue);
    let arrivals = [1, 1, 2, 3, 4, 4, 5, 1].map(|n| queue.handle_arrival(now, request(peer(n), 1)).unwrap());
    assert_eq!(run_out(&mut queue, now, running), arrivals);
}

#[test]
fn withdrawing_costs_no_turn() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    queue.handle_arrival(now, request(Flow::Guest, 1)).unwrap();
    let running = granted(&mut queue);
    // Of each two tickets of the first peer one is withdrawn, as it is if its twin had its turn elsewhere.
    let kept: Vec<_> = (0..20).map(|_| queue.handle_arrival(now, ticket(peer(1), 1, 2)).unwrap()).collect();
    let _others: Vec<_> = (0..10).map(|_| queue.handle_arrival(now, request(peer(2), 1)).unwrap()).collect();
    kept.iter().step_by(2).for_each(|id| queue.handle_end(now, *id));
    let order = run_out(&mut queue, now, running);
    let own: Vec<_> = order.iter().map(|id| kept.contains(id)).collect();
    assert_eq!(own.iter().filter(|own| **own).count(), 10);
    let mut apart = 0;
    for own in &own[..15] {
        apart += if *own { 1 } else { -1 };
        assert!((0..=i32::from(LEAD + 1)).contains(&apart), "who came first is ahead, by that: {own:?}");
    }
}

#[test]
fn the_owner_is_first_and_peers_get_on() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    let first = queue.handle_arrival(now, request(peer(1), 1)).unwrap();
    let others: Vec<_> = (0..4).map(|_| queue.handle_arrival(now, request(peer(1), 1)).unwrap()).collect();
    let owners: Vec<_> = (0..40).map(|_| queue.handle_arrival(now, request(Flow::Owner, 1)).unwrap()).collect();
    granted(&mut queue);
    assert_eq!(queue.place(owners[0]), Some(Place { ahead: 0.0 }));
    assert_eq!(queue.place(others[0]), Some(Place { ahead: OWNERS_IN_A_ROW as f32 }));
    let order = run_out(&mut queue, now, vec![first]);
    let places: Vec<_> = order.iter().enumerate().filter(|(_, id)| others.contains(id)).map(|(at, _)| at).collect();
    assert_eq!(places, [8, 17, 26, 35]);
}

#[test]
fn what_is_kept_for_the_owner_no_peer_gets_and_one_slot_is_lent_anyhow() {
    for (slots, reserve, lent) in [(4, 1, 3), (4, 0, 4), (2, 5, 1), (1, 1, 1)] {
        let (mut queue, now) = (Queue::new(Limits { reserve, ..limits() }), Instant::now());
        for _ in 0..8 {
            queue.handle_arrival(now, request(peer(1), slots)).unwrap();
        }
        assert_eq!(granted(&mut queue).len(), lent, "{slots} slots, {reserve} kept");
        for _ in 0..8 {
            queue.handle_arrival(now, request(Flow::Owner, slots)).unwrap();
        }
        assert_eq!(granted(&mut queue).len(), slots as usize - lent);
    }
}

#[test]
fn one_that_is_only_tried_is_not_what_is_kept_for_the_owner() {
    let arrival = |flow| Arrival { slots: Slots { at_once: 2, probe: true }, ..request(flow, 0) };
    for (reserve, lent) in [(0, 3), (1, 1)] {
        let (mut queue, now) = (Queue::new(Limits { reserve, ..limits() }), Instant::now());
        for _ in 0..4 {
            queue.handle_arrival(now, arrival(peer(1))).unwrap();
        }
        assert_eq!(granted(&mut queue).len(), lent, "{reserve} kept");
        for _ in 0..4 {
            queue.handle_arrival(now, arrival(Flow::Owner)).unwrap();
        }
        assert_eq!(granted(&mut queue).len(), 3 - lent, "the owner may try one more");
    }
}

#[test]
fn waiting_is_bounded_and_who_waits_most_makes_room() {
    let few = Limits { waiting: 6, waiting_each: 4, ..limits() };
    let (mut queue, now) = (Queue::new(few), Instant::now());
    let running = queue.handle_arrival(now, request(Flow::Guest, 1)).unwrap();
    let first: Vec<_> = (0..4).map(|_| queue.handle_arrival(now, request(peer(1), 1)).unwrap()).collect();
    assert!(
        matches!(queue.handle_arrival(now, request(peer(1), 1)), Err(busy) if busy.message.starts_with("5 ")),
        "its own share"
    );
    assert_eq!(queue.load("m").unwrap().queued, 4.0);
    for n in 2..4 {
        queue.handle_arrival(now, request(peer(n), 1)).unwrap();
    }
    granted(&mut queue);
    let late = queue.handle_arrival(now, request(peer(4), 1)).unwrap();
    let Some(Event::Refused(id, busy)) = queue.poll_event() else { panic!("nobody made room") };
    assert!(busy.code == RefusalCode::Busy && busy.message.starts_with("7 "), "{busy:?}");
    assert_eq!(id, first[3]);
    assert!(queue.place(late).is_some() && queue.place(first[3]).is_none());
    queue.handle_arrival(now, request(peer(5), 1)).unwrap();
    queue.handle_arrival(now, request(peer(6), 1)).unwrap();
    assert!(queue.handle_arrival(now, request(peer(7), 1)).is_err(), "all have one, and it is full");
    // The owner's places are not among these.
    for _ in 0..6 {
        queue.handle_arrival(now, request(Flow::Owner, 1)).unwrap();
    }
    assert!(queue.handle_arrival(now, request(Flow::Owner, 1)).is_err());
    queue.handle_end(now, running);
    assert_eq!(granted(&mut queue).len(), 1);
}

#[test]
fn strangers_that_wait_leave_half_of_the_places() {
    let few = Limits { waiting: 8, waiting_each: 4, waiting_strangers: 4, ..limits() };
    let (mut queue, now) = (Queue::new(few), Instant::now());
    queue.handle_arrival(now, request(Flow::Owner, 1)).unwrap();
    let first: Vec<_> = (0..3).map(|_| queue.handle_arrival(now, request(peer(1), 1)).unwrap()).collect();
    queue.handle_arrival(now, request(peer(2), 1)).unwrap();
    granted(&mut queue);
    // The whole queue has room, and strangers have had theirs: who waits most of them makes it.
    queue.handle_arrival(now, request(peer(3), 1)).unwrap();
    assert!(
        matches!(queue.poll_event(), Some(Event::Refused(id, busy)) if id == first[2] && busy.code == RefusalCode::Busy)
    );
    queue.handle_arrival(now, request(peer(4), 1)).unwrap();
    assert!(
        matches!(queue.poll_event(), Some(Event::Refused(id, busy)) if id == first[1] && busy.code == RefusalCode::Busy)
    );
    assert!(queue.handle_arrival(now, request(peer(5), 1)).is_err(), "each has one");
    for _ in 0..4 {
        queue.handle_arrival(now, request(Flow::Trusted(Id::from_bytes([9; 32])), 1)).unwrap();
    }
    assert!(queue.poll_event().is_none(), "nobody had to go for one that is trusted");
}

#[test]
fn a_stranger_displaces_no_request_of_a_trusted_peer() {
    let few = Limits { waiting: 8, waiting_each: 8, waiting_strangers: 4, ..limits() };
    let (mut queue, now) = (Queue::new(few), Instant::now());
    let friend = Flow::Trusted(Id::from_bytes([9; 32]));
    queue.handle_arrival(now, request(Flow::Owner, 1)).unwrap();
    granted(&mut queue);
    let friends: Vec<_> = (0..7).map(|_| queue.handle_arrival(now, request(friend, 1)).unwrap()).collect();
    let first = queue.handle_arrival(now, request(peer(1), 1)).unwrap();
    for n in 2..7 {
        assert!(queue.handle_arrival(now, request(peer(n), 1)).is_err(), "all places are taken, by others with more");
    }
    assert!(queue.handle_arrival(now, request(Flow::Guest, 1)).is_err());
    assert!(queue.poll_event().is_none());
    assert!(friends.iter().chain([&first]).all(|id| queue.place(*id).is_some()));
    // One that is trusted takes the stranger's.
    let other = Flow::Trusted(Id::from_bytes([8; 32]));
    queue.handle_arrival(now, request(other, 1)).unwrap();
    let Some(Event::Refused(id, busy)) = queue.poll_event() else { panic!("nobody made room") };
    assert_eq!((id, busy.code), (first, RefusalCode::Busy));
}

#[test]
fn one_that_may_not_stay_but_knows_of_a_slot_moves_the_others_up() {
    let (mut queue, now) = (Queue::new(Limits { waiting_each: 1, ..limits() }), Instant::now());
    queue.handle_arrival(now, request(peer(1), 1)).unwrap();
    let second = queue.handle_arrival(now, ticket(peer(2), 1, 1)).unwrap();
    let third = queue.handle_arrival(now, ticket(peer(1), 1, 1)).unwrap();
    let mut at = now + Duration::from_secs(1);
    queue.handle_timeout(at);
    while queue.poll_event().is_some() || queue.poll_changed().is_some() {}
    assert_eq!(queue.place(third), Some(Place { ahead: 1.0 }));

    assert!(queue.handle_arrival(at, request(peer(1), 2)).is_err(), "one of its own waits already");
    assert_eq!(granted(&mut queue), [second]);
    assert_eq!(queue.poll_changed().as_deref(), Some("m"), "and everybody is told");
    at = queue.poll_timeout().expect("something is to be told");
    queue.handle_timeout(at);
    assert_eq!(queue.poll_event(), Some(Event::Moved(third, Place { ahead: 0.0 })));
}

#[test]
fn who_is_turned_away_is_told_how_long_it_takes() {
    let (mut queue, mut now) = (Queue::new(Limits { waiting: 10, ..limits() }), Instant::now());
    for _ in 0..30 {
        let id = queue.handle_arrival(now, request(Flow::Owner, 2)).unwrap();
        queue.handle_sent(now, id);
        queue.handle_answer(now, id, true);
        now += Duration::from_secs(8);
        queue.handle_end(now, id);
    }
    for n in 0..12 {
        queue.handle_arrival(now, request(peer(n), 2)).unwrap();
    }
    let Err(busy) = queue.handle_arrival(now, request(peer(20), 2)) else { panic!("it is full") };
    let wait = busy.retry_after.unwrap();
    assert!((40..=48).contains(&wait.as_secs()), "eleven of 8 s by two at a time: {wait:?}");
}

#[test]
fn a_queue_that_drains_ends_the_waiting_of_all_but_the_owner() {
    let (mut queue, now) = (Queue::new(limits()), Instant::now());
    let running = queue.handle_arrival(now, request(peer(1), 1)).unwrap();
    let waiting: Vec<_> = (1..4).map(|n| queue.handle_arrival(now, ticket(peer(n), 1, 2)).unwrap()).collect();
    let own = queue.handle_arrival(now, request(Flow::Owner, 1)).unwrap();
    queue.handle_drain(now);
    let refused = waiting.iter().map(|id| Event::Refused(*id, RefusalCode::Draining.into()));
    assert!(std::iter::from_fn(|| queue.poll_event()).eq([Event::Granted(running)].into_iter().chain(refused)));
    assert_eq!(queue.handle_arrival(now, request(peer(1), 1)), Err(RefusalCode::Draining.into()));
    queue.handle_end(now, running);
    assert_eq!(granted(&mut queue), [own]);
}

#[test]
fn places_are_told_when_they_change_and_not_too_often() {
    let (mut queue, mut now) = (Queue::new(limits()), Instant::now());
    let running: Vec<_> = (0..4).map(|_| queue.handle_arrival(now, request(peer(1), 4)).unwrap()).collect();
    assert_eq!(queue.poll_timeout(), None, "nobody waits to be told");
    queue.handle_arrival(now, request(peer(1), 4)).unwrap();
    queue.handle_arrival(now, request(peer(1), 4)).unwrap();
    let waiting = queue.handle_arrival(now, ticket(peer(1), 4, 1)).unwrap();
    let told = |queue: &mut Queue, now| {
        queue.handle_timeout(now);
        let moved = |event| if let Event::Moved(id, place) = event { Some((id, place.ahead)) } else { None };
        std::iter::from_fn(|| queue.poll_event()).filter_map(moved).collect::<Vec<_>>()
    };
    let due = queue.poll_timeout().unwrap();
    assert_eq!((due, told(&mut queue, now)), (now, vec![(waiting, 2.0)]));
    assert_eq!(queue.poll_timeout(), None, "nothing has changed since");
    queue.handle_end(now, running[0]);
    now += Duration::from_millis(50);
    queue.handle_end(now, running[1]);
    queue.handle_end(now, running[2]);
    assert!(granted(&mut queue).contains(&waiting));
    queue.handle_arrival(now, request(peer(2), 4)).unwrap();
    let waiting = queue.handle_arrival(now, ticket(peer(2), 4, 1)).unwrap();
    assert_eq!(told(&mut queue, now), [], "not within {TELL:?}");
    let due = queue.poll_timeout().unwrap();
    assert_eq!(due, now + Duration::from_millis(150));
    assert_eq!(told(&mut queue, due), [(waiting, 1.0)]);
}

#[test]
fn a_server_that_does_not_say_is_not_taken_to_have_a_model_on_disk() {
    let (mut queue, start) = (Queue::new(limits()), Instant::now());
    let at = |s| start + Duration::from_secs(s);
    let residence = |queue: &Queue| queue.load("m").unwrap_or_default().residence;
    let silent = BTreeMap::from([("m", Found { loaded: None, slots: 1.into(), load_time: LOAD_TIME })]);
    queue.handle_look(at(0), at(0), &silent);
    assert_eq!(residence(&queue), Residence::Unknown);
    let id = queue.handle_arrival(at(1), request(peer(1), 1)).unwrap();
    queue.handle_sent(at(1), id);
    assert_eq!(residence(&queue), Residence::Loading);
    queue.handle_answer(at(2), id, true);
    queue.handle_end(at(3), id);
    queue.handle_look(at(5), at(5), &silent);
    assert_eq!(residence(&queue), Residence::Memory, "it has answered, and no look knows better");
    let nothing = BTreeMap::from([("m", Found { loaded: Some(false), ..silent["m"] })]);
    queue.handle_look(at(10), at(10), &nothing);
    assert_eq!(residence(&queue), Residence::Disk);
    queue.handle_look(at(15), at(15), &silent);
    assert_eq!(residence(&queue), Residence::Unknown);
}

#[test]
fn a_model_is_loading_until_it_answers_and_then_in_memory() {
    let (mut queue, start) = (Queue::new(limits()), Instant::now());
    let at = |s| start + Duration::from_secs(s);
    let residence = |queue: &Queue| queue.load("m").unwrap_or_default().residence;
    let nothing = BTreeMap::from([("m", Found { loaded: Some(false), slots: 1.into(), load_time: LOAD_TIME })]);
    let there = BTreeMap::from([("m", Found { loaded: Some(true), slots: 1.into(), load_time: LOAD_TIME })]);
    let id = queue.handle_arrival(at(0), request(peer(1), 1)).unwrap();
    assert_eq!(residence(&queue), Residence::Disk, "nothing was sent");
    queue.handle_sent(at(0), id);
    assert_eq!(residence(&queue), Residence::Loading);
    queue.handle_look(at(0), at(0), &nothing);
    assert_eq!(residence(&queue), Residence::Loading);
    queue.handle_look(at(30), at(30), &there);
    assert_eq!(residence(&queue), Residence::Loading, "an Ollama lists it as soon as it begins to load");
    queue.handle_look(at(50), at(50), &there);
    assert_eq!(residence(&queue), Residence::Memory, "the answer may say nothing before its end");
    queue.handle_answer(at(60), id, true);
    assert_eq!(residence(&queue), Residence::Memory);
    queue.handle_look(at(62), at(59), &nothing);
    assert_eq!(residence(&queue), Residence::Memory, "a look that began before");
    queue.handle_look(at(63), at(62), &there);
    queue.handle_look(at(70), at(70), &nothing);
    assert_eq!(residence(&queue), Residence::Disk, "it is unloaded");
    queue.handle_end(at(70), id);

    // One that fails has loaded nothing.
    let id = queue.handle_arrival(at(71), request(peer(1), 1)).unwrap();
    queue.handle_sent(at(71), id);
    queue.handle_answer(at(72), id, false);
    assert_eq!(residence(&queue), Residence::Disk);
    queue.handle_end(at(72), id);
    // One that no look ever finds was unloaded before.
    let id = queue.handle_order(at(80), peer(1), &"m".into());
    queue.handle_sent(at(80), id);
    assert_eq!(queue.load("m").unwrap(), ModelLoad { residence: Residence::Loading, begun: 2, ..ModelLoad::default() });
    queue.handle_answer(at(81), id, true);
    queue.handle_end(at(81), id);
    assert_eq!(residence(&queue), Residence::Memory);
    queue.handle_look(at(83), at(82), &nothing);
    assert_eq!(queue.load("m"), None);
    // An order to unload it is at once believed.
    queue.handle_look(at(100), at(100), &there);
    queue.handle_unloaded(&"m".into());
    assert_eq!(queue.load("m"), None);
    // It is gone from the disk.
    queue.handle_look(at(101), at(101), &BTreeMap::new());
    assert!(queue.lines.is_empty());
}

proptest! {
    /// Whatever else they do, of those that wait all the while none is further ahead of its share than by the lead and the
    /// one that it has just had; and so none further behind than by that of each other.
    #[test]
    fn turns_go_by_weight(
        weights in prop::collection::vec(0.2f32..5.0, 2..6),
        slots in 1u32..5,
        ends in prop::collection::vec(any::<prop::sample::Index>(), 50..300),
    ) {
        let weighs = |n: u8| Arrival { weight: weights[usize::from(n)].into(), ..request(peer(n), slots) };
        let (mut queue, now) = (Queue::new(limits()), Instant::now());
        let mut whose = HashMap::new();
        let mut running: Vec<EntryId> = Vec::new();
        let mut counts = vec![0.0; weights.len()];
        // All begin to wait behind somebody else's.
        for _ in 0..slots {
            queue.handle_arrival(now, request(Flow::Guest, slots)).unwrap();
        }
        running.extend(granted(&mut queue));
        for (n, _) in (0..).zip(&weights) {
            for _ in 0..3 {
                whose.insert(queue.handle_arrival(now, weighs(n)).unwrap(), n);
            }
        }
        for end in ends {
            let id = running.swap_remove(end.index(running.len()));
            queue.handle_end(now, id);
            for id in granted(&mut queue) {
                running.push(id);
                let n = whose[&id];
                counts[n as usize] += 1.0;
                whose.insert(queue.handle_arrival(now, weighs(n)).unwrap(), n);
            }
            for (one, of_one) in weights.iter().zip(&counts) {
                for (other, of_other) in weights.iter().zip(&counts) {
                    let apart: f32 = of_one / one - of_other / other;
                    let (ahead, others) = (f32::from(LEAD + 1), weights.len() as f32 - 1.0);
                    prop_assert!(apart <= ahead / one + others * ahead / other + 0.001, "{weights:?}: {counts:?}");
                }
            }
        }
    }

    /// What a place says is what comes before, if nobody else comes or goes.
    #[test]
    fn places_are_right(
        arrivals in prop::collection::vec((0u8..5, 0u8..4, any::<bool>()), 1..80),
        slots in 1u32..4,
        weights in prop::collection::vec(0.3f32..3.0, 5),
    ) {
        let weighs = |n: u8| Arrival { weight: weights[usize::from(n)].into(), ..request(peer(n), slots) };
        let (mut queue, now) = (Queue::new(limits()), Instant::now());
        let mut counts = HashMap::new();
        let mut running = Vec::new();
        for (n, copies, end) in arrivals {
            let flow = if n == 0 { Flow::Owner } else { peer(n) };
            let arrival = Arrival { copies: (copies > 0).then_some(copies), ..weighs(n) };
            let arrival = Arrival { flow, ..arrival };
            let id = queue.handle_arrival(now, arrival).unwrap();
            counts.insert(id, 1.0 / f32::from(copies.max(1)));
            running.extend(granted(&mut queue));
            if end {
                queue.handle_end(now, running.remove(0));
                running.extend(granted(&mut queue));
            }
        }
        let said: HashMap<_, _> = counts.keys().filter_map(|id| Some((*id, queue.place(*id)?.ahead))).collect();
        let queued = queue.load("m").map_or(0.0, |load| load.queued);
        let sum: f32 = said.keys().map(|id| counts[id]).sum();
        prop_assert!((queued - sum).abs() < 0.001);
        let mut ahead = 0.0;
        let order = run_out(&mut queue, now, running);
        prop_assert_eq!(order.len(), said.len());
        for id in order {
            prop_assert!((said[&id] - ahead).abs() < 0.001, "{} and not {}", said[&id], ahead);
            ahead += counts[&id];
        }
    }
}
