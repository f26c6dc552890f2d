use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::super::file;
use super::*;

const DAY: u64 = 24 * 60 * 60;
const NOW: u64 = 1_700_000_000;
const PROVIDER: Direction = Direction::Outbound { provider: true };
const NO_PROVIDER: Direction = Direction::Outbound { provider: false };

fn id(n: u8) -> Id {
    Id::from_bytes([n; 32])
}

fn name(text: &str) -> NodeName {
    text.parse().unwrap()
}

fn met(n: u8, called: &str, direction: Direction) -> Met {
    Met { id: id(n), name: name(called), address: Some(format!("10.0.0.{n}:11435")), direction }
}

fn policy(inbound: Policy, outbound: Policy) -> TrustPolicy {
    TrustPolicy { inbound, outbound, ..TrustPolicy::default() }
}

/// Meets under the default policy at `now`.
fn meet_at(ledger: &mut Ledger, met: &Met, now: u64) -> Outcome {
    meet_under(ledger, met, now, &TrustPolicy::default())
}

fn meet_under(ledger: &mut Ledger, met: &Met, now: u64, policy: &TrustPolicy) -> Outcome {
    ledger.meet(met, &Rules { policy, now, may_pin: true, max_first_use: 1024, present: &|_| false })
}

fn standing(trust: Trust, use_: Use, scope: Scope) -> Standing {
    Standing { trust, use_, scope }
}

#[test]
fn whoever_proves_a_new_key_may_infer_and_gets_no_prompts_for_that() {
    let mut ledger = Ledger::default();
    let outcome = meet_at(&mut ledger, &met(1, "laptop", Direction::Inbound), NOW);
    assert_eq!(outcome.standing, standing(Trust::FirstUse, Use::No, Scope::Infer));
    assert_eq!((outcome.news, outcome.change), (Some(News::FirstMet), Change::Matters));
    let again = meet_at(&mut ledger, &met(1, "laptop", Direction::Inbound), NOW + 5);
    assert_eq!((again.standing, again.news, again.change), (outcome.standing, None, Change::None));
}

#[test]
fn a_provider_is_used_but_may_not_infer_before_it_comes_itself() {
    let mut ledger = Ledger::default();
    let outcome = meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
    assert_eq!(outcome.standing, standing(Trust::FirstUse, Use::Yes, Scope::None));
    let outcome = meet_at(&mut ledger, &met(1, "gpu", Direction::Inbound), NOW);
    assert_eq!(outcome.standing, standing(Trust::FirstUse, Use::Yes, Scope::Infer));
    assert_eq!(outcome.change, Change::Matters);
}

#[test]
fn providers_are_used_as_they_are_met_until_the_window_closes() {
    let mut ledger = Ledger::default();
    // A client does not open the window.
    meet_at(&mut ledger, &met(9, "laptop", Direction::Inbound), NOW - 9 * DAY);
    meet_at(&mut ledger, &met(8, "phone", NO_PROVIDER), NOW - 9 * DAY);
    assert_eq!(meet_at(&mut ledger, &met(1, "gpu1", PROVIDER), NOW).standing.use_, Use::Yes);
    assert_eq!(meet_at(&mut ledger, &met(2, "gpu2", PROVIDER), NOW + DAY - 1).standing.use_, Use::Yes);
    let late = meet_at(&mut ledger, &met(3, "gpu3", PROVIDER), NOW + DAY);
    assert_eq!(late.standing, standing(Trust::FirstUse, Use::Pending, Scope::None));
    assert_eq!(late.news, Some(News::Waiting));
    // Known before, but as a client: it is its lending that is new.
    let turned = meet_at(&mut ledger, &met(9, "laptop", PROVIDER), NOW + DAY);
    assert_eq!(turned.standing, standing(Trust::FirstUse, Use::Pending, Scope::Infer));
    // Waiting does not end by being met again, and being used does not end with the window.
    assert_eq!(meet_at(&mut ledger, &met(3, "gpu3", PROVIDER), NOW + 1).standing.use_, Use::Pending);
    assert_eq!(meet_at(&mut ledger, &met(1, "gpu1", PROVIDER), NOW + 99 * DAY).standing.use_, Use::Yes);
    // A person ends it.
    ledger.trust(id(3), name("gpu3"), None, Scope::Infer, true, NOW + 2 * DAY);
    let trusted = meet_at(&mut ledger, &met(3, "gpu3", PROVIDER), NOW + 2 * DAY);
    assert_eq!(trusted.standing, standing(Trust::Trusted, Use::Yes, Scope::Infer));
}

#[test]
fn a_clock_that_was_years_ahead_does_not_keep_the_window_open_for_years() {
    let mut ledger = Ledger::default();
    meet_at(&mut ledger, &met(1, "gpu1", PROVIDER), NOW + 3000 * DAY);
    assert_eq!(meet_at(&mut ledger, &met(2, "gpu2", PROVIDER), NOW).standing.use_, Use::Pending);
}

#[test]
fn a_provider_trusted_by_hand_opens_the_window_once_it_is_met() {
    let mut ledger = Ledger::default();
    ledger.trust(id(1), name("gpu1"), None, Scope::None, true, NOW);
    assert_eq!(ledger.first_provider_met, None);
    let outcome = meet_at(&mut ledger, &met(1, "gpu1", PROVIDER), NOW + 5);
    assert_eq!((ledger.first_provider_met, outcome.change), (Some(NOW + 5), Change::Matters));
    assert_eq!(meet_at(&mut ledger, &met(2, "gpu2", PROVIDER), NOW + 5 + DAY).standing.use_, Use::Pending);
}

#[test]
fn paired_gives_nothing_without_a_person_in_its_direction_only() {
    let mut ledger = Ledger::default();
    let paired = policy(Policy::Paired, Policy::Paired);
    for direction in [Direction::Inbound, PROVIDER] {
        let outcome = meet_under(&mut ledger, &met(1, "gpu", direction), NOW, &paired);
        assert_eq!(outcome.standing, standing(Trust::None, Use::Pending, Scope::None));
        assert_eq!((outcome.news, outcome.change), (Some(News::Waiting), Change::None));
    }
    let lend_to_paired = policy(Policy::Paired, Policy::FirstUse);
    meet_under(&mut ledger, &met(1, "gpu", PROVIDER), NOW, &lend_to_paired);
    let outcome = meet_under(&mut ledger, &met(1, "gpu", Direction::Inbound), NOW, &lend_to_paired);
    assert_eq!(outcome.standing, standing(Trust::FirstUse, Use::Yes, Scope::None));
    let use_paired = policy(Policy::FirstUse, Policy::Paired);
    meet_under(&mut ledger, &met(2, "laptop", Direction::Inbound), NOW, &use_paired);
    let outcome = meet_under(&mut ledger, &met(2, "laptop", PROVIDER), NOW, &use_paired);
    assert_eq!(outcome.standing, standing(Trust::FirstUse, Use::Pending, Scope::Infer));
}

#[test]
fn what_first_use_gave_does_not_count_once_the_node_is_paired() {
    let mut ledger = Ledger::default();
    for direction in [PROVIDER, Direction::Inbound] {
        meet_at(&mut ledger, &met(1, "gpu", direction), NOW);
    }
    ledger.trust(id(2), name("mine"), None, Scope::Manage, true, NOW);
    let paired = policy(Policy::Paired, Policy::Paired);
    let snapshot = ledger.snapshot(&paired, NOW);
    assert_eq!(snapshot.standing(&id(1)), standing(Trust::FirstUse, Use::Pending, Scope::None));
    assert_eq!(snapshot.standing(&id(2)), standing(Trust::Trusted, Use::Yes, Scope::Manage));
    let outcome = meet_under(&mut ledger, &met(1, "gpu", Direction::Inbound), NOW, &paired);
    assert_eq!(outcome.standing, snapshot.standing(&id(1)));
}

#[test]
fn a_known_name_with_another_key_inherits_nothing_and_is_told() {
    for known_by_hand in [false, true] {
        let mut ledger = Ledger::default();
        meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
        if known_by_hand {
            ledger.trust(id(1), name("gpu"), None, Scope::Manage, true, NOW);
        }
        let before = ledger.clone();
        for direction in [Direction::Inbound, PROVIDER, NO_PROVIDER] {
            let outcome = meet_at(&mut ledger, &met(2, "GPU", direction), NOW);
            assert_eq!(outcome.standing, standing(Trust::None, Use::Pending, Scope::None));
            assert_eq!(outcome.news, Some(News::NameTaken { by: id(1) }));
        }
        assert_eq!(ledger, before, "the impostor leaves no trace, and the real one keeps all it has");
    }
}

#[test]
fn a_known_key_that_takes_anothers_name_keeps_its_own_and_gains_nothing() {
    let mut ledger = Ledger::default();
    meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
    meet_at(&mut ledger, &met(2, "laptop", Direction::Inbound), NOW);
    let outcome = meet_at(&mut ledger, &met(2, "gpu", PROVIDER), NOW);
    assert_eq!(outcome.standing, standing(Trust::FirstUse, Use::Pending, Scope::Infer));
    assert_eq!(outcome.news, Some(News::NameTaken { by: id(1) }));
    assert_eq!(ledger.pins[&id(2)].name, name("laptop"));
    meet_at(&mut ledger, &met(3, "phone", NO_PROVIDER), NOW);
    assert_eq!(meet_at(&mut ledger, &met(3, "gpu", Direction::Inbound), NOW).standing.scope, Scope::None);
}

#[test]
fn a_new_name_that_is_free_is_taken_over_and_the_old_one_is_free() {
    let mut ledger = Ledger::default();
    meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
    let outcome = meet_at(&mut ledger, &met(1, "gpu1", PROVIDER), NOW);
    assert_eq!((outcome.news, outcome.change), (Some(News::Renamed { from: name("gpu") }), Change::Cosmetic));
    assert_eq!(meet_at(&mut ledger, &met(2, "gpu", PROVIDER), NOW).news, Some(News::FirstMet));
}

#[test]
fn a_copy_of_a_node_that_is_here_does_not_rename_it() {
    let mut ledger = Ledger::default();
    meet_at(&mut ledger, &met(1, "original", PROVIDER), NOW);
    let present = |of: &Id| *of == id(1);
    let policy = TrustPolicy::default();
    let rules = Rules { policy: &policy, now: NOW, may_pin: true, max_first_use: 1024, present: &present };
    assert_eq!(ledger.meet(&met(1, "copy", Direction::Inbound), &rules).news, None);
    // Once the copy has a key of its own its name is free.
    let outcome = ledger.meet(&met(2, "copy", PROVIDER), &rules);
    assert_eq!((outcome.standing.use_, outcome.news), (Use::Yes, Some(News::FirstMet)));
}

#[test]
fn a_tombstone_beats_first_use_but_not_a_person() {
    let mut ledger = Ledger::default();
    meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
    assert_eq!(ledger.revoke(id(1), NOW), standing(Trust::FirstUse, Use::Yes, Scope::None));
    let revoked = standing(Trust::Revoked, Use::No, Scope::None);
    for direction in [Direction::Inbound, PROVIDER, NO_PROVIDER] {
        let outcome = meet_at(&mut ledger, &met(1, "other", direction), NOW);
        assert_eq!((outcome.standing, outcome.change), (revoked, Change::None));
    }
    // Its name is not free: who holds it may come back with a new key.
    for direction in [Direction::Inbound, PROVIDER, NO_PROVIDER] {
        let outcome = meet_at(&mut ledger, &met(2, "GPU", direction), NOW);
        assert_eq!(outcome.standing, standing(Trust::None, Use::Pending, Scope::None));
        assert_eq!((outcome.news, outcome.change), (Some(News::NameTaken { by: id(1) }), Change::None));
    }
    assert_eq!(ledger.trust(id(1), name("gpu"), None, Scope::Infer, false, NOW), revoked);
    let outcome = meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
    assert_eq!(outcome.standing, standing(Trust::Trusted, Use::No, Scope::Infer));
    // A key can be refused before it was ever met.
    ledger.revoke(id(7), NOW);
    assert_eq!(meet_at(&mut ledger, &met(7, "x", Direction::Inbound), NOW).standing, revoked);
}

#[test]
fn the_idlest_pin_of_first_use_goes_first_and_what_people_decided_never() {
    let mut ledger = Ledger::default();
    ledger.trust(id(100), name("trusted"), None, Scope::Infer, false, 0);
    ledger.revoke(id(101), 0);
    let meet = |ledger: &mut Ledger, met: &Met, now, present: &[u8]| {
        let present: BTreeSet<Id> = present.iter().map(|n| id(*n)).collect();
        let policy = TrustPolicy::default();
        let rules =
            Rules { policy: &policy, now, may_pin: true, max_first_use: 3, present: &|id| present.contains(id) };
        ledger.meet(met, &rules)
    };
    meet(&mut ledger, &met(1, "gpu", PROVIDER), NOW, &[]);
    for n in [2, 3] {
        meet(&mut ledger, &met(n, &format!("n{n}"), Direction::Inbound), NOW + u64::from(n), &[]);
    }
    // 2 is idler than 3, and connected: 3 goes. The provider in use is idler still, and stays.
    meet(&mut ledger, &met(4, "n4", Direction::Inbound), NOW + 4, &[2]);
    let kept = |ledger: &Ledger| ledger.pins.keys().copied().collect::<Vec<_>>();
    assert_eq!(kept(&ledger), [id(1), id(2), id(4), id(100), id(101)]);
    // All connected but the provider: no place for one more client, but for a provider within the window.
    let outcome = meet(&mut ledger, &met(5, "n5", Direction::Inbound), NOW + 5, &[2, 4]);
    assert_eq!((outcome.news, outcome.standing.scope), (Some(News::Crowded), Scope::None));
    meet(&mut ledger, &met(5, "n5", PROVIDER), NOW + 5, &[2, 4]);
    assert_eq!(kept(&ledger), [id(2), id(4), id(5), id(100), id(101)]);
}

#[test]
fn meeting_often_is_not_worth_a_write() {
    let mut ledger = Ledger::default();
    meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW);
    assert_eq!(meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW + LAST_MET_STEP - 1).change, Change::None);
    assert_eq!(meet_at(&mut ledger, &met(1, "gpu", PROVIDER), NOW + LAST_MET_STEP).change, Change::Cosmetic);
    assert_eq!(ledger.pins[&id(1)].last_met, NOW + LAST_MET_STEP);
}

#[test]
fn an_address_that_could_deceive_is_not_kept() {
    let mut ledger = Ledger::default();
    let strange = Met { address: Some("10.0.0.1\x1b[2J".to_owned()), ..met(1, "gpu", PROVIDER) };
    meet_at(&mut ledger, &strange, NOW);
    assert_eq!(ledger.pins[&id(1)].address, None);
    meet_at(&mut ledger, &met(1, "gpu", Direction::Inbound), NOW);
    assert_eq!(ledger.pins[&id(1)].address.as_deref(), Some("10.0.0.1:11435"));
    let from_elsewhere = Met { address: Some("10.0.0.99:50000".to_owned()), ..met(1, "gpu", Direction::Inbound) };
    meet_at(&mut ledger, &from_elsewhere, NOW);
    assert_eq!(ledger.pins[&id(1)].address.as_deref(), Some("10.0.0.1:11435"), "where it was reached counts more");
}

#[derive(Debug, Clone)]
enum Step {
    Meet { who: u8, called: u8, direction: Direction, present: Vec<u8>, may_pin: bool },
    Trust { who: u8, called: u8, scope: Scope, use_: bool },
    Revoke { who: u8 },
    Wait { seconds: u64 },
    Policy { inbound: Policy, outbound: Policy },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0u8..12;
    let called = || 0u8..5;
    let direction =
        prop_oneof![Just(Direction::Inbound), any::<bool>().prop_map(|provider| Direction::Outbound { provider })];
    let policy = || prop_oneof![3 => Just(Policy::FirstUse), 1 => Just(Policy::Paired)];
    let scope = prop_oneof![Just(Scope::None), Just(Scope::Infer), Just(Scope::Manage)];
    let present = proptest::collection::vec(who(), 0..4);
    let meet = (who(), called(), direction, present, proptest::bool::weighted(0.9))
        .prop_map(|(who, called, direction, present, may_pin)| Step::Meet { who, called, direction, present, may_pin });
    let step = prop_oneof![
        10 => meet,
        1 => (who(), called(), scope, any::<bool>())
            .prop_map(|(who, called, scope, use_)| Step::Trust { who, called, scope, use_ }),
        1 => who().prop_map(|who| Step::Revoke { who }),
        2 => (0..DAY).prop_map(|seconds| Step::Wait { seconds }),
        1 => (policy(), policy()).prop_map(|(inbound, outbound)| Step::Policy { inbound, outbound }),
    ];
    proptest::collection::vec(step, 0..120)
}

/// What people decided: their word, or a tombstone.
type Decided = HashMap<Id, Standing>;

const FEW: usize = 4;

proptest! {
    #[test]
    fn no_sequence_of_meetings_gives_more_than_first_use_may(steps in steps()) {
        let mut ledger = Ledger::default();
        let mut decided = Decided::new();
        let mut now = NOW;
        let mut policy = TrustPolicy::default();
        for step in steps {
            let before = ledger.clone();
            match step {
                Step::Wait { seconds } => now += seconds,
                Step::Policy { inbound, outbound } => policy = TrustPolicy { inbound, outbound, ..policy },
                Step::Trust { who, called, scope, use_ } => {
                    ledger.trust(id(who), name(&format!("n{called}")), None, scope, use_, now);
                    let use_ = if use_ { Use::Yes } else { Use::No };
                    decided.insert(id(who), standing(Trust::Trusted, use_, scope));
                }
                Step::Revoke { who } => {
                    ledger.revoke(id(who), now);
                    decided.insert(id(who), standing(Trust::Revoked, Use::No, Scope::None));
                }
                Step::Meet { who, called, direction, present, may_pin } => {
                    let present: BTreeSet<Id> = present.into_iter().map(id).collect();
                    let rules = Rules {
                        policy: &policy, now, may_pin, max_first_use: FEW, present: &|id| present.contains(id),
                    };
                    let outcome = ledger.meet(&met(who, &format!("n{called}"), direction), &rules);
                    check_meeting(&before, &ledger, &outcome, id(who), &policy, now, &present)?;
                }
            }
            // What people decided holds whatever was met since.
            for (id, standing) in &decided {
                prop_assert_eq!(ledger.pins[id].standing(), *standing);
                prop_assert_eq!(ledger.snapshot(&policy, now).standing(id), *standing);
            }
            // First use makes nothing but pins of first use, and never more than they may have, nor more of them.
            let others: Vec<&Pin> = ledger.pins.values().filter(|pin| !decided.contains_key(&pin.id)).collect();
            prop_assert!(others.iter().all(|pin| pin.trust == Trust::FirstUse && pin.scope <= Scope::Infer));
            prop_assert!(others.len() <= FEW);
            // What is written is what is read.
            let path = Path::new("trust.toml");
            let written = file::write(path, &ledger).unwrap();
            prop_assert_eq!(&file::parse(path, written.as_bytes()).unwrap(), &ledger);
        }
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}", good in any::<bool>()) {
        let text = if good { format!("version = 1\n[[peer]]\n{text}") } else { text };
        let _ = file::parse(Path::new("trust.toml"), text.as_bytes());
    }
}

fn check_meeting(
    before: &Ledger,
    after: &Ledger,
    outcome: &Outcome,
    who: Id,
    policy: &TrustPolicy,
    now: u64,
    present: &BTreeSet<Id>,
) -> Result<(), TestCaseError> {
    let former = before.pins.get(&who).map(Pin::standing).unwrap_or_default();
    let latter = after.pins.get(&who).map(Pin::standing).unwrap_or_default();
    prop_assert_eq!(outcome.change == Change::None, before == after);
    prop_assert_eq!(outcome.pinned, former.trust == Trust::None && latter.trust != Trust::None);
    if latter.trust != Trust::None {
        prop_assert_eq!(outcome.standing, after.snapshot(policy, now).standing(&who));
    } else {
        prop_assert_eq!(outcome.standing, standing(Trust::None, Use::Pending, Scope::None));
    }
    // Prompts go to a new provider only while the window is open and the policy says so.
    if former.use_ != Use::Yes && latter.use_ == Use::Yes {
        let window = Duration::from_secs(24 * 60 * 60).as_secs();
        prop_assert_eq!(policy.outbound, Policy::FirstUse);
        prop_assert!(before.first_provider_met.is_none_or(|opened| now - opened < window));
        prop_assert!(after.first_provider_met.is_some());
    }
    if former.scope != latter.scope {
        prop_assert_eq!((policy.inbound, former.scope, latter.scope), (Policy::FirstUse, Scope::None, Scope::Infer));
    }
    if let Some(News::NameTaken { .. }) = outcome.news {
        prop_assert_eq!(former.scope, latter.scope);
        prop_assert!(latter.use_ == former.use_ || latter.use_ == Use::Pending);
    }
    // Nobody else loses anything, but one idle pin of first use that made room.
    let lost: Vec<&Pin> = before.pins.values().filter(|pin| !after.pins.contains_key(&pin.id)).collect();
    prop_assert!(lost.len() <= usize::from(outcome.pinned));
    prop_assert!(lost.iter().all(|pin| pin.trust == Trust::FirstUse && !present.contains(&pin.id)));
    for (id, pin) in after.pins.iter().filter(|(id, _)| **id != who) {
        prop_assert_eq!(Some(pin), before.pins.get(id));
    }
    Ok(())
}
