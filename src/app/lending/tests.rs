use super::*;
use jiff::SignedDuration;
use jiff::civil::date;
use proptest::prelude::*;

const MINUTE: Duration = Duration::from_secs(60);

fn rules(hours: &str, idle: Option<Duration>) -> Rules {
    Rules { hours: (!hours.is_empty()).then(|| hours.parse().unwrap()), idle }
}

/// 2026-06-01, a Monday.
fn at(hour: i8, minute: i8) -> Now {
    Now { cloned: false, clock: date(2026, 6, 1).at(hour, minute, 0, 0), unused: None }
}

fn said(decision: &Decision) -> Option<String> {
    decision.why_not.as_ref().map(ToString::to_string)
}

#[test]
fn without_settings_it_lends_and_waits_for_nothing() {
    assert_eq!(decide(&rules("", None), &at(12, 0)), Decision { why_not: None, again: None });
    let cloned = decide(&rules("", None), &Now { cloned: true, ..at(12, 0) });
    assert_eq!(cloned, Decision { why_not: Some(NotLent::Cloned), again: None });
}

#[test]
fn outside_its_hours_it_says_when_they_begin() {
    let nights = rules("Mon-Fri 18:00-08:00", None);
    assert_eq!(said(&decide(&nights, &at(17, 59))).as_deref(), Some("is shared from 18:00"));
    assert_eq!(said(&decide(&nights, &at(18, 0))), None);
    let saturday = Now { clock: date(2026, 6, 6).at(12, 0, 0, 0), ..at(0, 0) };
    assert_eq!(said(&decide(&nights, &saturday)).as_deref(), Some("is shared from Mon 18:00"));
    // The clock is looked at often however far the border is, and at the border for certain.
    assert_eq!(decide(&nights, &at(12, 0)).again, Some(CLOCK));
    let just_before = Now { clock: date(2026, 6, 1).at(17, 59, 57, 0), ..at(0, 0) };
    assert_eq!(decide(&nights, &just_before).again, Some(Duration::from_secs(3)));
}

#[test]
fn while_somebody_uses_the_machine_it_says_what_it_waits_for() {
    let idle = rules("", Some(10 * MINUTE));
    let unused = |unused| decide(&idle, &Now { unused, ..at(12, 0) });
    for early in [None, Some(Duration::ZERO), Some(10 * MINUTE - Duration::from_millis(1))] {
        let decision = unused(early);
        assert_eq!(said(&decision).as_deref(), Some("is shared when nobody has used this machine for 10 min"));
        assert!(decision.again.unwrap() <= 10 * MINUTE);
    }
    // Not before it can be.
    assert_eq!(unused(Some(4 * MINUTE)).again, Some(6 * MINUTE));
    assert_eq!(unused(Some(10 * MINUTE)), Decision { why_not: None, again: Some(RETURN) });
    assert_eq!(unused(Some(Duration::MAX)).why_not, None);
}

#[test]
fn hours_and_idleness_have_to_hold_both() {
    let both = rules("18:00-08:00", Some(10 * MINUTE));
    let decided = |hour, unused| said(&decide(&both, &Now { unused: Some(unused), ..at(hour, 0) }));
    assert_eq!(decided(12, Duration::MAX).as_deref(), Some("is shared from 18:00"));
    assert_eq!(decided(12, Duration::ZERO).as_deref(), Some("is shared from 18:00"));
    assert!(decided(20, MINUTE).unwrap().contains("nobody"));
    assert_eq!(decided(20, 10 * MINUTE), None);
}

proptest! {
    #[test]
    fn each_setting_only_takes_away_and_each_change_is_looked_for_in_time(
        from in 0..1440i64, length in 1..1440i64, start in 0..10_080i64, idle in 30..7_200u64, unused in 0..10_000u64,
        with_hours: bool, with_idle: bool, cloned: bool,
    ) {
        let midnight = date(2026, 6, 1).at(0, 0, 0, 0);
        let later = |minutes: i64| midnight.checked_add(SignedDuration::from_mins(minutes)).unwrap();
        let time = |minutes: i64| later(minutes).strftime("%H:%M").to_string();
        let hours = format!("{}-{}", time(from), time(from + length));
        let rules = rules(
            if with_hours { &hours } else { "" },
            with_idle.then(|| Duration::from_secs(idle)),
        );
        let now = Now { cloned, clock: later(start), unused: Some(Duration::from_secs(unused)) };
        let decision = decide(&rules, &now);

        let open = !with_hours || hours.parse::<Hours>().unwrap().open_at(now.clock);
        prop_assert_eq!(decision.why_not.is_none(), !cloned && open && (!with_idle || unused >= idle));
        prop_assert_eq!(decision.again.is_none(), !with_hours && (!with_idle || cloned));
        if let Some(again) = decision.again {
            prop_assert!(again >= PAUSE);
            prop_assert!(!with_hours || again <= CLOCK);
            // Without a use, what was decided holds until it is looked at again.
            let between = again.saturating_sub(Duration::from_millis(1));
            let then = Now {
                clock: now.clock.checked_add(between).unwrap(),
                unused: now.unused.map(|unused| unused + between),
                ..now
            };
            prop_assert_eq!(decide(&rules, &then).why_not.is_none(), decision.why_not.is_none());
        }
    }
}

/// The task over settings, with a machine that nobody has ever used.
struct Running {
    lent: Lent,
    cloned: watch::Sender<Option<SocketAddr>>,
    own: watch::Sender<Option<Instant>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
    _dir: tempfile::TempDir,
}

fn running(lend: &Lend, able: bool) -> Running {
    let (dir, usage) = usage::tests::nobody();
    let (mut lending, lent) = Lending::new(lend, able).unwrap();
    lending.usage = usage;
    let (cloned, clone_seen) = watch::channel(None);
    let (own, own_seen) = watch::channel(None);
    let task = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(lending.keep_up(clone_seen, own_seen)));
    Running { lent, cloned, own, _task: task, _dir: dir }
}

impl Running {
    async fn until(&mut self, lends: bool) {
        let wait = self.lent.lend.wait_for(|lent| *lent == lends);
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap().unwrap();
    }

    fn why_not(&self) -> Option<NotLent> {
        self.lent.why_not.borrow().clone()
    }
}

#[tokio::test]
async fn a_copy_of_the_node_ends_lending_and_its_end_begins_it_again() {
    let mut running = running(&Lend::default(), true);
    running.until(true).await;
    running.cloned.send(Some("10.0.0.1:1".parse().unwrap())).unwrap();
    running.until(false).await;
    assert_eq!(running.why_not(), Some(NotLent::Cloned));
    running.cloned.send(None).unwrap();
    running.until(true).await;
    assert_eq!(running.why_not(), None);
}

#[tokio::test]
async fn a_request_of_the_owners_own_ends_lending_at_once() {
    let idle = Some(10 * MINUTE);
    let mut running = running(&Lend { idle, ..Lend::default() }, true);
    running.until(true).await;
    running.own.send(Some(Instant::now())).unwrap();
    running.until(false).await;
    assert_eq!(running.why_not(), Some(NotLent::Used { idle: 10 * MINUTE }));
}

#[tokio::test]
async fn a_machine_that_was_not_looked_at_yet_is_not_lent() {
    let lend = Lend { idle: Some(10 * MINUTE), ..Lend::default() };
    let (_, lent) = Lending::new(&lend, true).unwrap();
    assert!(!*lent.lend.borrow() && lent.why_not.borrow().is_some());
}

#[tokio::test]
async fn where_there_is_nothing_to_lend_there_is_no_reason_of_the_moment() {
    let lend = Lend { idle: Some(10 * MINUTE), ..Lend::default() };
    let mut running = running(&lend, false);
    running.cloned.send(Some("10.0.0.1:1".parse().unwrap())).unwrap();
    running.until(false).await;
    assert_eq!(running.why_not(), None);
}
