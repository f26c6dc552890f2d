use proptest::prelude::*;

use super::*;

const MARGIN: Duration = Duration::from_millis(100);

/// A gate before a runner that works on so many at a time, in milliseconds.
struct Simulated {
    learner: Learner,
    slots: usize,
    /// Whether answers say their durations.
    exact: bool,
    start: Instant,
    now: u64,
    next: u64,
    /// Who was handed over, in order, and when.
    handed: Vec<(u64, u64, Option<Begun>)>,
    prompt: u64,
    most_handed: usize,
}

/// When it was begun, when its first byte comes, when it ends.
type Begun = (u64, u64, u64);

impl Simulated {
    fn new(slots: usize, exact: bool) -> Self {
        Self {
            learner: Learner::new(MARGIN),
            slots,
            exact,
            start: Instant::now(),
            now: 0,
            next: 0,
            handed: Vec::new(),
            prompt: 400,
            most_handed: 0,
        }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// Hands over what may be, of an endless queue, works 10 ms on it, and tells what happens. `lengths`: of the answers.
    fn step(&mut self, mut lengths: impl FnMut() -> u64, alone: bool) {
        loop {
            let may = self.learner.now(self.at(self.now));
            let open = self.handed.len();
            if open >= may.at_once as usize && !(may.probe && open == may.at_once as usize) {
                break;
            }
            self.learner.handed(self.next, false, self.at(self.now));
            self.handed.push((self.next, self.now, None));
            self.next += 1;
        }
        self.most_handed = self.most_handed.max(self.handed.len());
        for (_, _, begun) in self.handed.iter_mut().take(self.slots).filter(|(_, _, begun)| begun.is_none()) {
            let length = lengths();
            *begun = Some((self.now, self.now + self.prompt, self.now + self.prompt + length));
        }
        self.now += 10;
        for &(id, _, begun) in &self.handed {
            if let Some((_, first, _)) = begun.filter(|(_, first, _)| *first <= self.now) {
                self.learner.byte(id, self.at(first), self.at(self.now));
            }
        }
        let over: Vec<_> =
            self.handed.iter().filter(|one| one.2.is_some_and(|(_, _, end)| end <= self.now)).copied().collect();
        for (id, handed, begun) in over {
            let (begun, _, _) = begun.unwrap();
            let ended = match self.exact {
                true => Ended::Exact {
                    work: Duration::from_millis(self.now - begun),
                    waited: Duration::from_millis(begun - handed),
                    total: Duration::from_millis(self.now - handed),
                },
                false => Ended::Streamed,
            };
            self.learner.ended(id, ended, alone, self.at(self.now));
            self.handed.retain(|one| one.0 != id);
        }
    }

    fn run(&mut self, ms: u64, mut lengths: impl FnMut() -> u64) {
        let until = self.now + ms;
        while self.now < until {
            self.step(&mut lengths, true);
        }
    }

    fn believed(&self) -> u32 {
        self.learner.now(self.at(self.now)).at_once
    }
}

/// Some lengths of answers, over and over.
fn lengths(all: Vec<u64>) -> impl FnMut() -> u64 {
    let mut next = 0;
    move || {
        next += 1;
        all[next % all.len()]
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_slots_are_found_and_never_more(
        slots in 1..9_usize,
        exact in any::<bool>(),
        all in prop::collection::vec(800..6000_u64, 3..20),
    ) {
        let mut simulated = Simulated::new(slots, exact);
        let mut lengths = lengths(all);
        let mut found = 0;
        // At most an hour, and ten seconds longer than it takes.
        for _ in 0..36_000 {
            simulated.run(100, &mut lengths);
            found += u32::from(simulated.believed() as usize == slots);
            if found == 100 {
                break;
            }
            prop_assert!(simulated.believed() as usize <= slots, "{} of {slots}", simulated.believed());
            prop_assert!(simulated.most_handed <= slots + 1);
        }
        prop_assert_eq!(simulated.believed() as usize, slots);
        simulated.run(60_000, &mut lengths);
        prop_assert_eq!(simulated.learner.known(), Some(u32::try_from(slots).unwrap()));
    }

    #[test]
    fn a_wrong_guess_is_corrected(
        told in 2..9_u32,
        slots in 1..4_usize,
        exact in any::<bool>(),
        all in prop::collection::vec(800..6000_u64, 3..20),
    ) {
        prop_assume!(slots < told as usize);
        let mut simulated = Simulated::new(slots, exact);
        simulated.learner.told(Some(told));
        simulated.run(240_000, lengths(all));
        prop_assert_eq!(simulated.believed() as usize, slots);
    }

    #[test]
    fn whatever_happens_there_is_one_slot_at_least_and_memory_is_bounded(
        events in prop::collection::vec((0..6_u8, 0..40_u64, 0..5000_u64), 0..400),
    ) {
        let mut learner = Learner::new(MARGIN);
        let start = Instant::now();
        let mut now = start;
        for (event, id, ms) in events {
            let time = Duration::from_millis(ms);
            match event {
                0 | 1 => learner.handed(id, ms % 7 == 0, now),
                2 => learner.byte(id, now, now + time),
                3 => learner.ended(id, Ended::Exact { work: time, waited: time, total: 2 * time }, true, now),
                4 => learner.ended(id, Ended::Streamed, true, now),
                _ => now += time,
            }
            prop_assert!((1..=MOST).contains(&learner.now(now).at_once));
            prop_assert!(learner.past.len() <= KEPT && learner.open.len() <= OPEN);
        }
    }
}

#[test]
fn four_slots_are_found_within_four_contentions() {
    let mut simulated = Simulated::new(4, true);
    simulated.run(6000, || 3000);
    assert_eq!(simulated.believed(), 4);
    assert!(simulated.next <= 12, "after {} requests", simulated.next);
}

#[test]
fn a_probe_that_failed_is_tried_again_after_ten_minutes_and_then_twenty() {
    let mut simulated = Simulated::new(1, true);
    let mut handed_two = Vec::new();
    while simulated.now < 2_400_000 {
        simulated.step(|| 2600, true);
        if simulated.handed.len() == 2 && handed_two.last().is_none_or(|last| simulated.now > last + 60_000) {
            handed_two.push(simulated.now);
        }
    }
    let minutes: Vec<u64> = handed_two.iter().map(|ms| ms / 60_000).collect();
    assert_eq!(minutes, [0, 10, 30]);
    simulated.learner.reloaded();
    assert!(simulated.learner.now(simulated.at(simulated.now)).probe, "a model loaded anew may have other settings");
}

#[test]
fn while_the_owner_uses_the_server_too_a_wait_is_no_evidence() {
    // Two slots, of which somebody else has one.
    let mut simulated = Simulated::new(1, true);
    simulated.learner.told(Some(2));
    (0..6000).for_each(|_| simulated.step(|| 2000, false));
    assert_eq!(simulated.believed(), 2);
}

#[test]
fn embedding_models_run_one_and_are_not_tried() {
    let mut learner = Learner::new(MARGIN);
    let now = Instant::now();
    learner.told(Some(4));
    assert_eq!(learner.now(now).at_once, 4);
    learner.handed(1, true, now);
    assert_eq!(learner.now(now), Slots { at_once: 1, probe: false });
    assert_eq!(learner.known(), Some(1));
    learner.handed(2, false, now);
    assert_eq!(learner.now(now).at_once, 4, "it can do more than that");
}

#[test]
fn requests_that_were_handed_over_together_may_come_in_any_order() {
    let mut learner = Learner::new(MARGIN);
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    learner.told(Some(3));
    learner.told = None;
    (0..4).for_each(|id| learner.handed(id, false, at(id)));
    let ended = |waited: u64, total: u64| {
        let [work, waited, total] = [total - waited, waited, total].map(Duration::from_millis);
        Ended::Exact { work, waited, total }
    };
    // The second has to wait, though it was not the last.
    [0, 2, 3].into_iter().for_each(|id| learner.ended(id, ended(0, 1000), true, at(1000 + id)));
    learner.ended(1, ended(1000, 2000), true, at(2002));
    assert_eq!(learner.now(at(100_000)), Slots { at_once: 3, probe: false });
}

#[test]
fn a_probe_that_says_nothing_is_tried_again_soon_and_not_at_once() {
    let mut learner = Learner::new(MARGIN);
    let now = Instant::now();
    learner.handed(1, false, now);
    assert!(learner.now(now).probe);
    learner.handed(2, false, now);
    assert!(!learner.now(now).probe, "one at a time");
    learner.ended(2, Ended::Unknown, true, now);
    assert!(!learner.now(now).probe);
    assert!(learner.now(now + 10 * MARGIN).probe);
}

#[test]
fn while_one_more_is_tried_its_company_is_made_up_again() {
    let mut learner = Learner::new(MARGIN);
    let now = Instant::now();
    (1..=2).for_each(|id| learner.handed(id, false, now));
    learner.ended(1, Ended::Unknown, true, now);
    assert_eq!(learner.now(now), Slots { at_once: 1, probe: true });
    learner.handed(3, false, now);
    assert!(!learner.now(now).probe, "one more, not two");
}

#[test]
fn no_rhythm_of_answers_hides_a_slot() {
    // Answers that ended whenever one more was tried, so that it was never seen beside all the others, or looked late.
    let all: [(usize, &[u64]); 4] = [
        (7, &[1877, 3933, 833]),
        (4, &[3072, 1023, 1531]),
        (6, &[4741, 911, 5701, 1101, 1501, 2661, 1491, 1121, 2731]),
        (7, &[825, 2242, 1535, 1103, 1121, 3152, 2470, 2754]),
    ];
    for (slots, rhythm) in all {
        let mut simulated = Simulated::new(slots, false);
        simulated.run(60_000, lengths(rhythm.to_vec()));
        assert_eq!(simulated.believed() as usize, slots, "{rhythm:?}");
    }
}

#[test]
fn no_rhythm_of_answers_hides_that_there_are_fewer_than_was_told() {
    // Some waited so little that it could be their prompt, the others for long enough that several ended after their turn.
    for (told, rhythm) in [(5, [1931, 1691, 1461]), (4, [2251, 4961, 2081])] {
        let mut simulated = Simulated::new(3, false);
        simulated.learner.told(Some(told));
        simulated.run(240_000, lengths(rhythm.to_vec()));
        assert_eq!(simulated.believed(), 3, "{rhythm:?}");
    }
}

#[test]
fn slots_that_were_seen_at_work_at_once_are_not_lost_to_first_bytes() {
    // Somebody nearly always ends while another's prompt is read, which looks like a wait for a slot.
    let mut simulated = Simulated::new(8, false);
    let mut lengths = lengths(vec![831, 2004, 2305]);
    simulated.run(15_000, &mut lengths);
    for _ in 0..600 {
        simulated.run(1000, &mut lengths);
        assert_eq!(simulated.believed(), 8);
    }
    // Loaded anew, which it is only when nothing runs, it may have fewer.
    let now = simulated.at(simulated.now);
    for (id, ..) in std::mem::take(&mut simulated.handed) {
        simulated.learner.ended(id, Ended::Unknown, true, now);
    }
    simulated.learner.reloaded();
    simulated.slots = 3;
    simulated.run(240_000, &mut lengths);
    assert_eq!(simulated.believed(), 3);
}

#[test]
fn what_has_shown_that_one_more_is_too_many_ends_the_trial_though_that_one_still_runs() {
    let mut learner = Learner::new(MARGIN);
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    learner.told(Some(2));
    learner.told = None;
    let ended = |waited: u64, total: u64| {
        let [work, waited, total] = [total - waited, waited, total].map(Duration::from_millis);
        Ended::Exact { work, waited, total }
    };
    // The third is one more, and runs for long from when the first ends; who comes then has to wait for the second.
    [(1, 0), (2, 0), (3, 10)].into_iter().for_each(|(id, ms)| learner.handed(id, false, at(ms)));
    learner.ended(1, ended(0, 1000), true, at(1000));
    assert!(learner.now(at(1001)).probe, "it is still tried");
    learner.handed(4, false, at(1001));
    learner.ended(2, ended(0, 2000), true, at(2000));
    learner.handed(5, false, at(2001));
    learner.ended(4, ended(999, 1999), true, at(3000));
    assert_eq!(learner.now(at(3000)), Slots { at_once: 2, probe: false });
    assert!(!learner.now(at(60_000)).probe && learner.now(at(3000) + BACK_OFF).probe);
}
