use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::super::ledger::Rules;
use super::super::{Direction, Met, News, Policy, TRUST_FILE, TrustPolicy, file};
use super::rules::{LATEST, STALE};
use super::*;
use crate::id::Use;

const DAY: u64 = 24 * 60 * 60;
const NOW: u64 = 1_700_000_000;
const ME: Id = Id::from_bytes([0; 32]);
const PROVIDER: Direction = Direction::Outbound { provider: true };

fn id(n: u8) -> Id {
    Id::from_bytes([n; 32])
}

fn name(n: u8) -> NodeName {
    NodeName::lossy(&format!("n{n}"))
}

fn said(n: u8, until: u64) -> Said {
    Said { id: id(n), name: name(n), address: Some(format!("10.0.0.{n}:11435")), until }
}

fn met(n: u8, direction: Direction) -> Met {
    Met { id: id(n), name: name(n), address: None, direction }
}

fn standing(trust: Trust, use_: Use, scope: Scope) -> Standing {
    Standing { trust, use_, scope }
}

fn paired() -> TrustPolicy {
    TrustPolicy { inbound: Policy::Paired, outbound: Policy::Paired, ..TrustPolicy::default() }
}

/// A book in which 1 is a voucher.
fn with_voucher() -> Ledger {
    let mut ledger = Ledger::default();
    ledger.trust(id(1), name(1), None, Scope::None, false, NOW);
    ledger.set_voucher(&id(1), true);
    ledger
}

fn of(ledger: &Ledger, n: u8, now: u64) -> Standing {
    ledger.snapshot(&paired(), now).standing(&id(n))
}

const USED: Standing = Standing { trust: Trust::Vouched, use_: Use::Yes, scope: Scope::None };
const NOBODY: Standing = Standing { trust: Trust::None, use_: Use::No, scope: Scope::None };

#[test]
fn whom_a_voucher_vouches_for_is_used_also_by_a_paired_node_and_may_do_nothing_here() {
    let mut ledger = with_voucher();
    ledger.hear(id(1), &[said(2, NOW + DAY)], ME, NOW);
    assert_eq!(of(&ledger, 2, NOW), USED);
    let snapshot = ledger.snapshot(&paired(), NOW);
    assert_eq!(snapshot.vouchers_of(&id(2)), [Voucher { name: name(1), id: id(1) }]);
    let pin = snapshot.pin(&id(2)).unwrap();
    assert_eq!((pin.name.as_str(), pin.address.as_deref()), ("n2", Some("10.0.0.2:11435")));
    let policy = paired();
    let rules = Rules { policy: &policy, now: NOW, may_pin: true, max_first_use: 9, present: &|_| false };
    for direction in [PROVIDER, Direction::Inbound] {
        let outcome = ledger.meet(&met(2, direction), &rules);
        assert_eq!((outcome.standing, outcome.news), (USED, None), "nobody waits");
    }
    assert!(!ledger.pins.contains_key(&id(2)), "a statement makes no pin");
}

#[test]
fn first_use_goes_on_beside_a_statement_and_is_what_is_left_when_it_ends() {
    let mut ledger = with_voucher();
    ledger.first_provider_met = Some(NOW - 9 * DAY);
    ledger.hear(id(1), &[said(2, NOW + DAY)], ME, NOW);
    let policy = TrustPolicy::default();
    let rules = Rules { policy: &policy, now: NOW, may_pin: true, max_first_use: 9, present: &|_| false };
    let outcome = ledger.meet(&met(2, PROVIDER), &rules);
    assert_eq!((outcome.standing, outcome.news), (USED, Some(News::FirstMet)));
    let outcome = ledger.meet(&met(2, Direction::Inbound), &rules);
    assert_eq!(outcome.standing, standing(Trust::Vouched, Use::Yes, Scope::Infer));
    ledger.hear(id(1), &[], ME, NOW);
    let left = ledger.snapshot(&policy, NOW).standing(&id(2));
    assert_eq!(left, standing(Trust::FirstUse, Use::Pending, Scope::Infer));
}

#[test]
fn a_person_says_more_than_a_voucher_either_way() {
    let mut ledger = with_voucher();
    ledger.trust(id(2), name(2), None, Scope::Infer, false, NOW);
    ledger.revoke(id(3), NOW);
    ledger.hear(id(1), &[2, 3, 4].map(|n| said(n, NOW + DAY)), ME, NOW);
    assert_eq!(of(&ledger, 2, NOW), standing(Trust::Trusted, Use::No, Scope::Infer));
    assert_eq!(of(&ledger, 3, NOW), standing(Trust::Revoked, Use::No, Scope::None));
    ledger.revoke(id(4), NOW);
    assert_eq!(of(&ledger, 4, NOW), standing(Trust::Revoked, Use::No, Scope::None));
    assert_eq!(ledger.pins[&id(4)].name, name(4), "a tombstone has the name it was known by");
    ledger.hear(id(1), &[said(4, NOW + DAY)], ME, NOW);
    assert!(ledger.snapshot(&paired(), NOW).vouchers_of(&id(4)).is_empty());
}

#[test]
fn a_statement_ends_with_its_date_and_a_week_after_it_was_last_heard() {
    let mut ledger = with_voucher();
    ledger.hear(id(1), &[said(2, NOW + DAY), said(3, NOW + 99 * DAY)], ME, NOW);
    assert_eq!((of(&ledger, 2, NOW + DAY - 1), of(&ledger, 2, NOW + DAY)), (USED, NOBODY));
    assert_eq!((of(&ledger, 3, NOW + STALE - 1), of(&ledger, 3, NOW + STALE)), (USED, NOBODY));
    // Heard again it goes on, but not beyond its date.
    for day in 1..99 {
        ledger.hear(id(1), &[said(3, NOW + 99 * DAY)], ME, NOW + day * DAY);
    }
    assert_eq!((of(&ledger, 3, NOW + 99 * DAY - 1), of(&ledger, 3, NOW + 99 * DAY)), (USED, NOBODY));
    // What was heard while the clock was years ahead does not count for years.
    ledger.hear(id(1), &[said(4, LATEST)], ME, NOW + 3000 * DAY);
    assert_eq!(of(&ledger, 4, NOW), NOBODY);
    ledger.forget_expired(NOW);
    assert!(ledger.statements.is_empty());
}

#[test]
fn hearing_the_same_again_is_worth_a_write_four_times_a_day() {
    let mut ledger = with_voucher();
    let mut writes = 0;
    for minute in 0..24 * 60 {
        let before = ledger.clone();
        ledger.hear(id(1), &[said(2, NOW + 9 * DAY)], ME, NOW + minute * 60);
        writes += usize::from(ledger != before);
    }
    assert_eq!(writes, 4);
}

#[test]
fn withdrawn_revoked_or_no_voucher_any_more_it_ends_at_once_and_for_good() {
    let heard = || {
        let mut ledger = with_voucher();
        ledger.hear(id(1), &[said(2, NOW + DAY), said(3, NOW + DAY)], ME, NOW);
        ledger
    };
    let mut ledger = heard();
    ledger.hear(id(1), &[said(3, NOW + DAY)], ME, NOW);
    assert_eq!((of(&ledger, 2, NOW), of(&ledger, 3, NOW)), (NOBODY, USED));
    for revoked in [true, false] {
        let mut ledger = heard();
        if revoked {
            ledger.revoke(id(1), NOW);
        } else {
            ledger.set_voucher(&id(1), false);
        }
        assert_eq!(of(&ledger, 2, NOW), NOBODY);
        // What it said before does not come back with it.
        ledger.trust(id(1), name(1), None, Scope::None, false, NOW);
        assert!(!ledger.is_voucher(&id(1)), "a pardon is no word on whom it vouches for");
        ledger.set_voucher(&id(1), true);
        assert_eq!(of(&ledger, 2, NOW), NOBODY);
    }
    // A new scope says nothing about it.
    let mut ledger = heard();
    ledger.trust(id(1), name(1), None, Scope::Manage, true, NOW);
    assert!(ledger.is_voucher(&id(1)) && of(&ledger, 2, NOW) == USED);
}

#[test]
fn only_a_voucher_is_heard_and_nobody_hears_of_itself() {
    let mut ledger = with_voucher();
    ledger.trust(id(5), name(5), None, Scope::Manage, true, NOW);
    for by in [5, 6] {
        ledger.hear(id(by), &[said(2, NOW + DAY)], ME, NOW);
    }
    ledger.set_voucher(&id(6), true);
    assert_eq!(ledger, {
        let mut same = with_voucher();
        same.trust(id(5), name(5), None, Scope::Manage, true, NOW);
        same
    });
    let own = Said { id: ME, ..said(0, NOW + DAY) };
    ledger.hear(id(1), &[said(1, NOW + DAY), own, said(2, NOW), said(3, NOW + DAY), said(3, NOW + 9)], ME, NOW);
    assert_eq!(ledger.statements.len(), 1);
    assert_eq!((ledger.statements[0].id, ledger.statements[0].until), (id(3), NOW + DAY));
}

#[test]
fn it_goes_one_hop() {
    let mut ledger = with_voucher();
    ledger.hear(id(1), &[said(2, NOW + DAY), said(3, NOW + DAY)], ME, NOW);
    // Who is used by another's word is no voucher, whatever it says, and nobody vouches for it here.
    ledger.set_voucher(&id(2), true);
    ledger.hear(id(2), &[said(4, NOW + DAY)], ME, NOW);
    assert_eq!(of(&ledger, 4, NOW), NOBODY);
    let error = ledger.vouch(Vouch { id: id(2), until: NOW + DAY }, NOW).unwrap_err().to_string();
    assert!(error.contains("another's word"), "{error}");
    assert!(ledger.snapshot(&paired(), NOW).vouches().is_empty());
    // Once a person here trusts it, it is their own word.
    ledger.trust(id(2), name(2), None, Scope::None, true, NOW);
    ledger.vouch(Vouch { id: id(2), until: NOW + DAY }, NOW).unwrap();
    let told: Vec<Id> = ledger.snapshot(&paired(), NOW).vouches().iter().map(|said| said.id).collect();
    assert_eq!(told, [id(2)]);
}

#[test]
fn a_node_vouches_for_whom_a_person_trusts_there_as_long_as_they_do() {
    let mut ledger = Ledger::default();
    let vouch = |until| Vouch { id: id(2), until };
    let told = |ledger: &Ledger, now| ledger.snapshot(&TrustPolicy::default(), now).vouches().to_vec();
    let policy = TrustPolicy::default();
    let rules = Rules { policy: &policy, now: NOW, may_pin: true, max_first_use: 9, present: &|_| false };
    for (set_up, reason) in [(None, "nobody"), (Some(true), "first use"), (Some(false), "revoked")] {
        match set_up {
            Some(true) => drop(ledger.meet(&met(2, PROVIDER), &rules)),
            Some(false) => drop(ledger.revoke(id(2), NOW)),
            None => {}
        }
        let error = ledger.vouch(vouch(NOW + DAY), NOW).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains(&id(2).to_string()), "{error}");
    }
    ledger.trust(id(2), name(2), Some("10.0.0.2:11435".to_owned()), Scope::None, true, NOW);
    ledger.vouch(vouch(NOW + 1), NOW).unwrap();
    ledger.vouch(vouch(NOW + DAY), NOW).unwrap();
    assert_eq!(told(&ledger, NOW), [said(2, NOW + DAY)]);
    assert_eq!(ledger.snapshot(&policy, NOW).expires, Some(NOW + DAY));
    assert!(told(&ledger, NOW + DAY).is_empty());
    let year = NOW + MAX_VOUCH_SPAN.as_secs();
    assert_eq!(ledger.vouch(vouch(year + 1), NOW).unwrap(), year);
    assert!(ledger.unvouch(&id(2)) && !ledger.unvouch(&id(2)));
    ledger.vouch(vouch(NOW + DAY), NOW).unwrap();
    ledger.revoke(id(2), NOW);
    assert!(told(&ledger, NOW).is_empty());
    ledger.trust(id(2), name(2), None, Scope::None, true, NOW);
    assert!(told(&ledger, NOW).is_empty(), "trusted again is not vouched for again");
}

#[test]
fn there_are_only_so_many_from_each_voucher_and_of_our_own() {
    let mut ledger = with_voucher();
    let many: Vec<Said> = (0..=u16::MAX)
        .take(MAX_VOUCHES + 50)
        .map(|n| Said { id: Id::of_spki(&n.to_be_bytes()), ..said(2, NOW + DAY) })
        .collect();
    ledger.hear(id(1), &many, ME, NOW);
    assert_eq!(ledger.statements.len(), MAX_VOUCHES);
    for Said { id, .. } in &many[..MAX_VOUCHES] {
        ledger.trust(*id, name(2), None, Scope::None, true, NOW);
        ledger.vouch(Vouch { id: *id, until: NOW + DAY }, NOW).unwrap();
    }
    ledger.trust(id(9), name(9), None, Scope::None, true, NOW);
    let one_more = Vouch { id: id(9), until: NOW + 3 * DAY };
    let error = ledger.vouch(one_more, NOW).unwrap_err();
    assert!(error.to_string().contains("--withdraw"), "{error}");
    // Those that have expired make room.
    ledger.vouch(one_more, NOW + 2 * DAY).unwrap();
    assert_eq!(ledger.vouches.len(), 1);
}

#[test]
fn a_vouchers_label_takes_no_name_from_anybody() {
    let mut ledger = with_voucher();
    ledger.trust(id(7), name(7), None, Scope::None, true, NOW);
    let as_7 = |n| Said { name: NodeName::lossy("N7"), ..said(n, NOW + DAY) };
    ledger.hear(id(1), &[as_7(2), as_7(3)], ME, NOW);
    let snapshot = ledger.snapshot(&paired(), NOW);
    let bear: Vec<Id> = snapshot.pins().filter(|pin| pin.name.is("n7")).map(|pin| pin.id).collect();
    assert_eq!(bear, [id(7)]);
    // Nor does it keep anybody from being met by that name.
    ledger.hear(id(1), &[said(8, NOW + DAY)], ME, NOW);
    let policy = TrustPolicy::default();
    let rules = Rules { policy: &policy, now: NOW, may_pin: true, max_first_use: 9, present: &|_| false };
    let other = Met { name: name(8), ..met(9, Direction::Inbound) };
    assert_eq!(ledger.meet(&other, &rules).standing.scope, Scope::Infer);
}

#[test]
fn of_two_vouchers_one_is_enough() {
    let mut ledger = with_voucher();
    ledger.trust(id(5), name(5), None, Scope::None, true, NOW);
    ledger.set_voucher(&id(5), true);
    for by in [1, 5] {
        ledger.hear(id(by), &[said(2, NOW + DAY)], ME, NOW);
    }
    assert_eq!(ledger.snapshot(&paired(), NOW).vouchers_of(&id(2)).len(), 2);
    ledger.hear(id(1), &[], ME, NOW);
    assert_eq!(of(&ledger, 2, NOW), USED);
    ledger.revoke(id(5), NOW);
    assert_eq!(of(&ledger, 2, NOW), NOBODY);
}

#[test]
fn what_cannot_stand_in_the_file_is_refused_and_what_hangs_on_nothing_is_dropped() {
    let mut ledger = with_voucher();
    ledger.hear(id(1), &[said(2, NOW + DAY)], ME, NOW);
    ledger.trust(id(3), name(3), None, Scope::None, true, NOW);
    ledger.vouch(Vouch { id: id(3), until: NOW + DAY }, NOW).unwrap();
    let path = Path::new(TRUST_FILE);
    let text = file::write(path, &ledger).unwrap();
    let parse = |text: &str| file::parse(path, text.as_bytes());
    assert_eq!(parse(&text).unwrap(), ledger);
    // A person has taken the flag out, or made tombstones.
    let edited = parse(&text.replace("voucher = true\n", "")).unwrap();
    assert!(edited.statements.is_empty() && edited.vouches.len() == 1);
    let edited = parse(&text.replace("\"trusted\"", "\"revoked\"")).unwrap();
    assert!(edited.statements.is_empty() && edited.vouches.is_empty());
    for trust in ["first-use", "vouched"] {
        let error = parse(&text.replace("\"trusted\"", &format!("{trust:?}"))).unwrap_err().to_string();
        assert!(error.contains("first"), "{error}");
    }
}

// === the book ===

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join(TRUST_FILE)
    }

    fn open(&self) -> Book {
        Book::open(&self.path(), paired()).unwrap()
    }

    async fn with_voucher(&self) -> Book {
        let book = self.open();
        book.trust_voucher(id(1), name(1), None, Scope::None, false, Some(true)).await.unwrap();
        book
    }
}

fn disk_full(path: &Path, _: &[u8]) -> Result<(), crate::private_file::FileError> {
    let source = std::io::ErrorKind::StorageFull.into();
    Err(crate::private_file::FileError::Io { doing: "write", path: path.to_owned(), source })
}

#[tokio::test]
async fn what_was_heard_is_there_after_a_restart_and_every_other_writer_keeps_it() {
    let home = Home::new();
    let book = home.with_voucher().await;
    book.trust(id(3), name(3), None, Scope::Infer, true).await.unwrap();
    book.vouch(Vouch { id: id(3), until: unix_now() + DAY }).await.unwrap();
    book.hear(id(1), vec![said(2, unix_now() + DAY)], ME).await.unwrap();
    let book = home.open();
    book.meet(met(1, PROVIDER)).await.unwrap();
    book.trust(id(1), name(1), None, Scope::Manage, true).await.unwrap();
    book.revoke(id(9)).await.unwrap();
    book.import(book.export(), Some(ME), false).await.unwrap();
    let snapshot = home.open().snapshot();
    assert_eq!(snapshot.standing(&id(2)), USED);
    assert!(snapshot.is_voucher(&id(1)) && snapshot.vouches().len() == 1);
    // A list that does not say so takes it away, as with the scope.
    let text = book.export().to_text().unwrap();
    assert_eq!(text.matches("voucher = true").count(), 1);
    let list = super::super::List::parse(&text.replace("voucher = true\n", "")).unwrap();
    assert_eq!(book.import(list, Some(ME), false).await.unwrap().trusted, 1);
    assert_eq!(book.snapshot().standing(&id(2)), NOBODY);
}

#[tokio::test]
async fn what_has_had_its_time_ends_while_the_node_runs() {
    let home = Home::new();
    let book = home.with_voucher().await;
    book.trust(id(3), name(3), None, Scope::Infer, true).await.unwrap();
    book.vouch(Vouch { id: id(3), until: unix_now() + 2 }).await.unwrap();
    book.hear(id(1), vec![said(2, unix_now() + 2)], ME).await.unwrap();
    assert_eq!(book.snapshot().standing(&id(2)), USED);
    let mut watch = book.watch();
    let ended = watch.wait_for(|snapshot| snapshot.standing(&id(2)) == NOBODY && snapshot.vouches().is_empty());
    tokio::select! {
        () = book.keep_up() => unreachable!(),
        ended = tokio::time::timeout(Duration::from_secs(20), ended) => drop(ended.unwrap().unwrap()),
    }
    let left = std::fs::read_to_string(home.path()).unwrap();
    assert!(!left.contains("[[statement]]") && !left.contains("[[vouch]]"), "{left}");
}

#[tokio::test]
async fn a_full_disk_keeps_new_statements_out_and_withdrawn_ones_not_in() {
    let home = Home::new();
    let book = home.with_voucher().await;
    let until = unix_now() + DAY;
    book.hear(id(1), vec![said(2, until), said(3, until)], ME).await.unwrap();
    book.writer.lock().await.replace = disk_full;
    book.hear(id(1), vec![said(3, until), said(4, until)], ME).await.unwrap_err();
    let of = |n| book.snapshot().standing(&id(n));
    assert_eq!((of(2), of(3), of(4)), (NOBODY, USED, NOBODY));
}

// === whatever is said in whatever order ===

#[derive(Debug, Clone)]
enum Step {
    Hear { by: u8, of: Vec<(u8, u64)> },
    Meet { who: u8, direction: Direction },
    Trust { who: u8, scope: Scope, use_: bool, voucher: Option<bool> },
    Revoke { who: u8 },
    Vouch { who: u8 },
    Wait { seconds: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let who = || 0u8..8;
    let direction = || prop_oneof![Just(Direction::Inbound), Just(PROVIDER)];
    let scope = prop_oneof![Just(Scope::None), Just(Scope::Infer), Just(Scope::Manage)];
    let of = proptest::collection::vec((who(), 0..20 * DAY), 0..6);
    let step = prop_oneof![
        6 => (who(), of).prop_map(|(by, of)| Step::Hear { by, of }),
        4 => (who(), direction()).prop_map(|(who, direction)| Step::Meet { who, direction }),
        2 => (who(), scope, any::<bool>(), any::<Option<bool>>())
            .prop_map(|(who, scope, use_, voucher)| Step::Trust { who, scope, use_, voucher }),
        1 => who().prop_map(|who| Step::Revoke { who }),
        1 => who().prop_map(|who| Step::Vouch { who }),
        2 => (0..5 * DAY).prop_map(|seconds| Step::Wait { seconds }),
    ];
    proptest::collection::vec(step, 0..80)
}

fn policies() -> impl Strategy<Value = TrustPolicy> {
    let policy = || prop_oneof![Just(Policy::FirstUse), Just(Policy::Paired)];
    (policy(), policy()).prop_map(|(inbound, outbound)| TrustPolicy { inbound, outbound, ..TrustPolicy::default() })
}

/// The same book as if nobody had ever vouched.
fn without_statements(ledger: &Ledger) -> Ledger {
    Ledger { statements: Vec::new(), ..ledger.clone() }
}

proptest! {
    #[test]
    fn no_sequence_of_statements_raises_a_scope_or_beats_a_persons_word(steps in steps(), policy in policies()) {
        let mut ledger = Ledger::default();
        let mut now = NOW;
        // When each voucher last said something of each: what may count at all.
        let mut heard: BTreeMap<(Id, Id), (u64, u64)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Wait { seconds } => now += seconds,
                Step::Hear { by, of } => {
                    let all: Vec<Said> = of.iter().map(|(n, lasts)| said(*n, now + lasts)).collect();
                    let before = ledger.clone();
                    ledger.hear(id(by), &all, ME, now);
                    prop_assert_eq!(&without_statements(&before), &without_statements(&ledger), "it changes nothing else");
                    if before.is_voucher(&id(by)) {
                        heard.retain(|(voucher, _), _| *voucher != id(by));
                        for said in all.iter().rev().filter(|said| now < said.until) {
                            heard.insert((id(by), said.id), (now, said.until));
                        }
                    }
                }
                Step::Meet { who, direction } => {
                    let rules = Rules { policy: &policy, now, may_pin: true, max_first_use: 9, present: &|_| false };
                    let mut by_itself = without_statements(&ledger);
                    let outcome = ledger.meet(&met(who, direction), &rules);
                    let alone = by_itself.meet(&met(who, direction), &rules);
                    prop_assert_eq!(outcome.standing.scope, alone.standing.scope);
                    prop_assert_eq!(&ledger.pins, &by_itself.pins, "a voucher's word makes and changes no pin");
                    let vouched = ledger.vouchers_of(&id(who), now).next().is_some();
                    prop_assert_eq!(outcome.standing.trust == Trust::Vouched, vouched);
                    prop_assert!(vouched || outcome == alone);
                }
                Step::Trust { who, scope, use_, voucher } => {
                    ledger.trust(id(who), name(who), None, scope, use_, now);
                    if let Some(voucher) = voucher {
                        ledger.set_voucher(&id(who), voucher);
                    }
                }
                Step::Revoke { who } => drop(ledger.revoke(id(who), now)),
                Step::Vouch { who } => {
                    let vouched = ledger.vouch(Vouch { id: id(who), until: now + DAY }, now);
                    let trusted = ledger.pins.get(&id(who)).is_some_and(|pin| pin.trust == Trust::Trusted);
                    prop_assert_eq!(vouched.is_ok(), trusted);
                }
            }
            heard.retain(|(by, _), _| ledger.is_voucher(by));
            let (with, without) = (ledger.snapshot(&policy, now), without_statements(&ledger).snapshot(&policy, now));
            for n in 0..8 {
                let (with, without) = (with.standing(&id(n)), without.standing(&id(n)));
                prop_assert_eq!(with.scope, without.scope);
                if matches!(without.trust, Trust::Trusted | Trust::Revoked) {
                    prop_assert_eq!(with, without);
                } else if with != without {
                    prop_assert_eq!(with, vouched(without));
                    let good = |((by, of), (at, until)): (&(Id, Id), &(u64, u64))| {
                        *of == id(n) && *by != *of && *of != ME && now < *until && now - at < STALE
                    };
                    prop_assert!(heard.iter().any(good), "somebody must have said it, lately");
                }
            }
            // One hop: whom this node tells of, a person here trusts.
            for said in with.vouches() {
                prop_assert_eq!(with.standing(&said.id).trust, Trust::Trusted);
                prop_assert!(now < said.until);
            }
            // Nothing is in force beyond the moment at which the book says that something ends.
            if let Some(ends) = with.expires {
                prop_assert!(ends > now);
                let later = ledger.snapshot(&policy, ends - 1);
                prop_assert_eq!(&later.vouched_by, &with.vouched_by);
                prop_assert_eq!(later.vouches(), with.vouches());
            }
            let path = Path::new(TRUST_FILE);
            let written = file::write(path, &ledger).unwrap();
            prop_assert_eq!(&file::parse(path, written.as_bytes()).unwrap(), &ledger);
        }
    }
}
