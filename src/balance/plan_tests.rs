use super::*;
use crate::balance::breaker::{Breaker, Outcome};
use crate::balance::judgement::{Judgement, Promise};
use crate::balance::score::tests::{request, server, servers};
use crate::balance::score::{Server, score};
use crate::exchange::Residence;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Instant;

fn of(server: &Server) -> Candidate {
    Candidate {
        score: score(server, &request()),
        eligible: true,
        free: server.has_free_slot(),
        knowledge: Knowledge::Reported,
        local: false,
        held: false,
        due: false,
        idle: false,
    }
}

fn warm(running: f64, queued: f64) -> Candidate {
    of(&Server { running, queued, ..server() })
}

fn cold(load_time: f64) -> Candidate {
    of(&Server { residence: Residence::Disk, load_time, ..server() })
}

fn held(candidate: Candidate) -> Candidate {
    Candidate { held: true, ..candidate }
}

#[test]
fn nobody_is_chosen_where_nobody_may_be() {
    assert_eq!(plan(&[], 0), None);
    assert_eq!(plan(&[Candidate { eligible: false, ..warm(0.0, 0.0) }], 0), None);
    assert_eq!(plan(&[held(Candidate { eligible: false, ..warm(0.0, 0.0) })], 0), None);
}

#[test]
fn a_cold_server_is_queued_at_if_it_is_best_and_at_home_it_is_sent_to() {
    // 12 · 1.5 = 18 against 3 + 8 waiting: 4.2 + 8.4 + price.
    assert_eq!(plan(&[warm(3.0, 8.0), cold(6.0)], 0), Some(Plan::Tickets(1, None)));
    assert_eq!(plan(&[warm(3.0, 0.0), cold(6.0)], 0), Some(Plan::Tickets(0, None)));
    let ours = Candidate { knowledge: Knowledge::Exact, ..cold(6.0) };
    assert_eq!(plan(&[warm(3.0, 8.0), ours], 0), Some(Plan::Send(1)));
    assert_eq!(plan(&[warm(3.0, 8.0), Candidate { free: false, ..ours }], 0), Some(Plan::Tickets(1, None)));
}

#[test]
fn who_came_too_late_for_the_slots_of_a_server_that_loads_waits_there_and_where_it_was() {
    // 0.6 · 6 + 6, and one of three before it; · 1.5.
    let loads = of(&Server { residence: Residence::Loading, running: 3.0, load_time: 6.0, ..server() });
    let waits = held(warm(3.0, 12.0));
    assert_eq!(plan(&[waits, loads], 0), Some(Plan::Tickets(1, Some(0))));
    assert_eq!(plan(&[waits, held(loads)], 0), Some(Plan::Stay));
    assert_eq!(plan(&[held(loads)], 0), Some(Plan::Stay));
    // One that is a little better, and needs to load it as well, is no reason to move.
    let other = of(&Server { residence: Residence::Loading, running: 3.0, load_time: 4.0, ..server() });
    assert_eq!(plan(&[held(loads), other], 0), Some(Plan::Stay));
    assert_eq!(plan(&[held(loads), held(loads), other], 0), Some(Plan::Stay));
    // Somebody else has one free meanwhile, and is better than going on waiting here.
    assert_eq!(plan(&[held(loads), warm(2.0, 0.0)], 0), Some(Plan::Tickets(1, Some(0))));
    // 22.2 there, 7 + 8.4 + 7 here, of which all but the wait is worth a second ticket.
    assert_eq!(plan(&[held(loads), warm(3.0, 4.0)], 0), Some(Plan::Tickets(0, Some(1))));
}

#[test]
fn two_tickets_are_held_at_warm_servers_if_the_second_is_worth_its_while() {
    // k = 13, 11 over: 15.4 + 8.4 + 15.4 = 39.2 against 1.2 · (8.4 + 16.8) = 30.2 there.
    assert_eq!(plan(&[warm(3.0, 12.0), warm(3.0, 10.0), warm(3.0, 11.0)], 0), Some(Plan::Tickets(1, Some(2))));
    // k = 4, 2 over: 2.8 + 8.4 + 2.8 = 14 against 1.2 · (8.4 + 4.2) = 15.1.
    assert_eq!(plan(&[warm(3.0, 3.0), warm(3.0, 1.0), warm(3.0, 2.0)], 0), Some(Plan::Tickets(1, None)));
    // A third as fast takes longer by itself than the whole at the best.
    let slow = of(&Server { prefill: 200.0, decode: 10.0, ..server() });
    assert_eq!(plan(&[warm(3.0, 1.0), slow], 0), Some(Plan::Tickets(0, None)));
}

#[test]
fn a_free_slot_is_sent_to_straight_only_where_it_is_known_to_be_free() {
    let ours = Candidate { knowledge: Knowledge::Exact, ..warm(0.0, 0.0) };
    assert_eq!(plan(&[warm(1.0, 0.0), ours], 0), Some(Plan::Send(1)));
    assert_eq!(plan(&[held(warm(3.0, 1.0)), ours], 0), Some(Plan::Send(1)), "also if it becomes free later");
    assert!(matches!(plan(&[warm(1.0, 0.0), warm(0.0, 0.0)], 0), Some(Plan::Tickets(1, _))));
    let full = Candidate { knowledge: Knowledge::Exact, ..warm(3.0, 0.0) };
    assert_eq!(plan(&[full], 0), Some(Plan::Tickets(0, None)));
}

#[test]
fn what_waits_stays_unless_something_is_better_by_a_fifth() {
    let waits = held(warm(3.0, 3.0)); // 5.6 + 8.4 + 5.6 = 19.6
    assert_eq!(plan(&[waits, held(warm(3.0, 3.0))], 0), Some(Plan::Stay));
    assert_eq!(waits.score.total, 19.6);
    // (load + 6) · 1.5 against 0.8 · 19.6 = 15.68
    assert_eq!(plan(&[waits, cold(4.5)], 0), Some(Plan::Stay), "15.75");
    assert_eq!(plan(&[waits, cold(4.4)], 0), Some(Plan::Tickets(1, Some(0))), "15.6");
    // 16.8 is no reason to give one of two places up, 14 is: the worse one goes.
    let two = |third| plan(&[held(warm(3.0, 3.5)), waits, third], 0);
    assert_eq!(two(warm(3.0, 2.5)), Some(Plan::Stay));
    assert_eq!(two(warm(3.0, 1.0)), Some(Plan::Tickets(2, Some(1))));
}

#[test]
fn a_second_ticket_is_taken_later_if_there_was_none() {
    assert_eq!(plan(&[held(warm(3.0, 10.0)), warm(3.0, 11.0)], 0), Some(Plan::Tickets(0, Some(1))));
    assert_eq!(plan(&[held(warm(3.0, 2.0)), warm(3.0, 1.0)], 0), Some(Plan::Tickets(1, Some(0))));
    // One of two servers is not there any more.
    let gone = Candidate { eligible: false, ..held(warm(3.0, 1.0)) };
    assert_eq!(plan(&[gone, held(warm(3.0, 10.0)), warm(3.0, 11.0)], 0), Some(Plan::Tickets(1, Some(2))));
    assert_eq!(plan(&[gone, held(warm(3.0, 2.0))], 0), Some(Plan::Stay));
}

#[test]
fn equals_are_all_drawn_and_our_own_comes_first() {
    let drawn = |candidates: &[Candidate]| -> BTreeSet<usize> {
        let best = |random| match plan(candidates, random) {
            Some(Plan::Tickets(best, _) | Plan::Send(best)) => best,
            other => panic!("{other:?}"),
        };
        (0..9).map(best).collect()
    };
    assert_eq!(drawn(&[warm(0.0, 0.0); 3]), BTreeSet::from([0, 1, 2]));
    assert_eq!(drawn(&[cold(6.0); 3]), BTreeSet::from([0, 1, 2]));
    let almost = of(&Server { decode: 49.9, ..server() });
    assert_eq!(drawn(&[warm(0.0, 0.0), almost]), BTreeSet::from([0, 1]), "nobody measures to the percent");
    let local = Candidate { local: true, ..warm(0.0, 0.0) };
    assert_eq!(drawn(&[warm(0.0, 0.0), local, warm(0.0, 0.0)]), BTreeSet::from([1]));
    let busy = Candidate { local: true, ..warm(1.0, 0.0) };
    assert_eq!(drawn(&[warm(0.0, 0.0), busy]), BTreeSet::from([0]));
}

#[test]
fn looks_are_between_800_and_1200_milliseconds_apart() {
    assert_eq!(next_look(0.0), Duration::from_millis(800));
    assert_eq!(next_look(0.5), Duration::from_secs(1));
    assert_eq!(next_look(1.0), Duration::from_millis(1200));
    assert!(next_look(f64::NAN) <= Duration::from_millis(1200));
}

#[test]
fn a_server_that_fails_at_once_draws_nothing_though_it_is_idle() {
    let now = Instant::now();
    let mut breaker = Breaker::default();
    let mut tries = 0;
    // A thousand requests in one second; the other server is full, with a queue.
    for millisecond in 0..1000 {
        let now = now + Duration::from_millis(millisecond);
        let broken = Server { caution: breaker.caution(now), ..server() };
        let candidates = [warm(3.0, 4.0), Candidate { eligible: breaker.wait(now).is_none(), ..of(&broken) }];
        if let Some(Plan::Tickets(1, _) | Plan::Send(1)) = plan(&candidates, 0) {
            let pass = breaker.pass(now).unwrap();
            breaker.settle(pass, Outcome::Failed, now);
            tries += 1;
        }
    }
    assert!((1..=3).contains(&tries), "{tries}");
}

#[test]
fn a_server_that_boasts_draws_a_prompt_or_two_and_then_no_more_for_minutes() {
    let start = Instant::now();
    for times in [20.0, 1e3, 1e7] {
        let mut judgement = Judgement::default();
        let mut drawn = 0;
        // One prompt a second for five minutes. Nothing is shorter than a minute there, whatever it says.
        for second in 0..300 {
            let now = start + Duration::from_secs(second);
            let usual = Server { prefill: 1000.0 * times, decode: 50.0 * times, ..server() }.usual(&request());
            let usual = Duration::from_secs_f64(usual);
            let slowness = judgement.slowness(usual, now);
            let boaster = Server { prefill: 1000.0 * times, decode: 50.0 * times, slowness, ..server() };
            let candidates = [warm(1.0, 0.0), of(&boaster)];
            if let Some(Plan::Tickets(1, _)) = plan(&candidates, 0) {
                let promised = Duration::from_secs_f64(candidates[1].score.promised);
                judgement.observe(Promise { time: promised, usual }, Duration::from_secs(60), now);
                drawn += 1;
            }
        }
        assert!((1..=2).contains(&drawn), "{drawn} prompts to who says to be {times} times as fast");
    }
}

fn candidates() -> impl Strategy<Value = Vec<(Server, Candidate)>> {
    let knowledge = prop_oneof![Just(Knowledge::Exact), Just(Knowledge::Reported)];
    let one = (servers(), any::<bool>(), knowledge, any::<bool>(), prop::bool::weighted(0.2)).prop_map(
        |(server, eligible, knowledge, local, held)| {
            let candidate = Candidate { eligible, knowledge, local, held, ..of(&server) };
            (server, candidate)
        },
    );
    prop::collection::vec(one, 0..9)
}

proptest! {
    #[test]
    fn nobody_is_chosen_who_may_not_be(all in candidates(), random: usize) {
        let all: Vec<Candidate> = all.into_iter().map(|(_, candidate)| candidate).collect();
        let may = |index: usize| all[index].eligible;
        match plan(&all, random) {
            None => prop_assert!(!all.iter().any(|c| c.eligible)),
            Some(Plan::Send(at)) => {
                prop_assert!(may(at));
                prop_assert!(all[at].free && all[at].knowledge == Knowledge::Exact);
            }
            Some(Plan::Tickets(one, other)) => {
                prop_assert!(may(one) && other.is_none_or(may) && other != Some(one));
                prop_assert!(other.is_none_or(|other| all[other].score.warm || all[other].held));
            }
            Some(Plan::Stay) => prop_assert!(all.iter().any(|c| c.eligible && c.held), "there is where to stay"),
        }
    }

    #[test]
    fn the_first_time_nobody_is_better_than_the_chosen(all in candidates(), random: usize) {
        let all: Vec<Candidate> =
            all.into_iter().map(|(_, candidate)| Candidate { held: false, ..candidate }).collect();
        if let Some(Plan::Send(chosen) | Plan::Tickets(chosen, _)) = plan(&all, random) {
            for other in all.iter().filter(|other| other.eligible) {
                // But for who would have to wait there, and is done sooner where there is a free slot.
                let (chosen, score) = (&all[chosen], &other.score);
                let waits = chosen.free && chosen.score.warm && chosen.score.alone() <= score.finish();
                prop_assert!(chosen.score.total <= TIE * score.total || waits);
            }
        }
    }

    /// No starvation: who is idle and no worse than the others is drawn before all of them are full, whatever they are.
    #[test]
    fn an_idle_server_that_is_no_worse_has_its_turn(
        of_all in servers(), others in 1usize..8, randoms in prop::collection::vec(any::<usize>(), 80),
    ) {
        let warm = Server { residence: Residence::Memory, running: 0.0, unreported: 0.0, ahead: None, ..of_all };
        let mut servers = vec![Server { queued: 1.0, ..warm.clone() }; others];
        let idle = Server { queued: 0.0, ..warm };
        servers.push(idle);
        let mut drawn = false;
        for random in randoms {
            let all: Vec<Candidate> = servers.iter().map(of).collect();
            let Some(Plan::Tickets(at, _)) = plan(&all, random) else { panic!("all are warm") };
            drawn |= at == others;
            servers[at].unreported += 1.0;
        }
        prop_assert!(drawn);
    }
}

// === Work conservation and loads that many have paid for ===

#[test]
fn nothing_waits_where_another_server_has_a_free_slot_and_is_done_sooner() {
    // 1.4 + 8.4 there; what it is multiplied by is no reason to wait.
    let full = warm(3.0, 0.0);
    let newcomer = of(&Server { newcomer: 3.0, ..server() });
    assert_eq!(plan(&[full, newcomer], 0), Some(Plan::Tickets(1, Some(0))));
    let cold = of(&Server { residence: Residence::Disk, load_time: 1.0, ..server() });
    let slow = of(&Server { slowness: 1.16, newcomer: 2.0, ..server() });
    assert!(cold.score.total < slow.score.total);
    assert_eq!(plan(&[cold, slow, full], 0), Some(Plan::Tickets(1, Some(2))), "6.96 s against 7");
    // Twice as slow takes longer by itself.
    assert_eq!(plan(&[full, of(&Server { slowness: 2.0, ..server() })], 0), Some(Plan::Tickets(0, None)));
    // Ours is known to be free.
    let ours = Candidate { knowledge: Knowledge::Exact, ..newcomer };
    assert_eq!(plan(&[full, ours], 0), Some(Plan::Send(1)));
}

#[test]
fn a_request_that_waits_is_moved_to_a_server_that_has_a_slot_free() {
    let free = of(&Server { newcomer: 3.0, ..server() });
    assert_eq!(plan(&[held(warm(3.0, 1.0)), free], 0), Some(Plan::Tickets(1, Some(0))));
    // The better one of its places is kept.
    assert_eq!(plan(&[held(warm(3.0, 2.0)), held(warm(3.0, 1.0)), free], 0), Some(Plan::Tickets(2, Some(1))));
    // It has queued there for a slot that is said to be free: that place is the one to give up.
    assert_eq!(plan(&[held(warm(3.0, 1.0)), held(warm(0.0, 0.0)), free], 0), Some(Plan::Tickets(2, Some(0))));
    // It queues there: that slot is somebody else's, or its owner's.
    assert_eq!(plan(&[held(warm(3.0, 1.0)), held(free)], 0), Some(Plan::Stay));
}

#[test]
fn an_idle_server_is_measured_again_whatever_is_held_against_its_speed() {
    let slow = of(&Server { slowness: 7.5, ..server() });
    let idle = |candidate| Candidate { idle: true, ..candidate };
    assert_eq!(plan(&[warm(3.0, 0.0), slow], 0), Some(Plan::Tickets(0, None)));
    assert_eq!(plan(&[warm(3.0, 0.0), idle(slow)], 0), Some(Plan::Tickets(1, Some(0))));
    assert_eq!(plan(&[warm(2.0, 0.0), idle(slow)], 0), Some(Plan::Tickets(0, None)), "not where nothing waits");
    // One that fails has others to say when it is tried again.
    let fails = of(&Server { slowness: 7.5, caution: 4.0, ..server() });
    assert_eq!(plan(&[warm(3.0, 0.0), idle(fails)], 0), Some(Plan::Tickets(0, None)));
    // An owner who wants it five times as soon elsewhere waits at home.
    let home = of(&Server { running: 3.0, preference: 0.2, ..server() });
    assert_eq!(plan(&[home, idle(slow)], 0), Some(Plan::Tickets(0, None)));
}

#[test]
fn what_many_have_waited_loads_a_model_at_the_cheapest_server_for_all_alike() {
    let due = |load_time| Candidate { due: true, ..cold(load_time) };
    let full = warm(3.0, 0.0);
    assert_eq!(plan(&[full, cold(60.0)], 0), Some(Plan::Tickets(0, None)));
    assert_eq!(plan(&[full, due(60.0)], 0), Some(Plan::Tickets(1, Some(0))));
    for random in 0..9 {
        assert_eq!(plan(&[full, due(60.0), due(50.0), due(50.0)], random), Some(Plan::Tickets(2, Some(0))));
    }
    assert_eq!(plan(&[warm(2.0, 0.0), due(60.0)], 0), Some(Plan::Tickets(0, None)), "nothing waits");
    assert_eq!(plan(&[full, held(cold(60.0)), due(50.0)], 0), Some(Plan::Tickets(0, Some(1))), "one load at a time");
    // Ten times as slow, it would be no help.
    let slow = Candidate { due: true, ..of(&Server { residence: Residence::Disk, slowness: 10.0, ..server() }) };
    assert_eq!(plan(&[full, slow], 0), Some(Plan::Tickets(0, None)));
    let ours = Candidate { knowledge: Knowledge::Exact, ..due(60.0) };
    assert_eq!(plan(&[full, ours], 0), Some(Plan::Send(1)));
}
