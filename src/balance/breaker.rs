//! Who failed lately is left alone for a while: a circuit breaker for each server and model, and the slow start of a server
//! that has just come.
//!
//! A server that fails at once has nothing running and looks idle: by its score it would draw everything. A 503 is another
//! thing: that server has a backlog (Ollama sends it where too many wait for a model to load) and says how long. Another again
//! is a gate that queues no more: there is room as soon as one is let in, and who has a place there keeps it.
//!
//! Closed: requests pass. Open: none does, for a time that doubles with each failure after it. Half-open, once that time is
//! over: one passes, and what becomes of it decides. A request that passed before the breaker opened decides nothing any
//! more: hundreds may fail at once, for the one reason that opened it.

use std::time::{Duration, Instant};

/// Failures that open it, where none succeeds in between.
const FAILURES: f64 = 3.0;
/// What is left of them when the last one comes, at least: the first are forgotten a little by then, or made up for by half.
const OPENS: f64 = FAILURES - 0.5;
/// What one success makes up for: a server that fails more than every third time does not get away with it.
const AMENDS: f64 = 0.5;
/// How long it is open after failures, at first: what a server needs that was started again.
const FAILED: Duration = Duration::from_secs(1);
/// How long it is open after a 503, at first and at least; and how long nobody new goes where no more are queued.
const BUSY: Duration = Duration::from_secs(5);
/// How long it is open at most, but for what a 503 asks for.
const LONGEST: Duration = Duration::from_secs(60);
/// What a 503 may ask for.
const LONGEST_ASKED: Duration = Duration::from_secs(600);
/// A failure is held against a server that long before anything opens, less and less.
const REMEMBERED: Duration = Duration::from_secs(10);
/// How much one failure makes a score worse at first: so much that anyone who is not far behind comes before it.
const SUSPICION: f64 = 3.0;
/// If the one that passed has not come back by then, another may try. A load can take minutes; after ten it is lost.
const LOST: Duration = Duration::from_secs(600);

/// Within this time a server that has just come has its share.
const SLOW_START: Duration = Duration::from_secs(5);
/// How much worse it looks at first.
const NEWCOMER: f64 = 2.0;

/// Whether requests for one model pass to one server.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Breaker {
    state: State,
    /// Counts how often it opened: what passed before decides nothing.
    round: u64,
    /// Failures not made up for.
    failures: f64,
    failed_at: Option<Instant>,
    /// Since when it is closed again.
    healed_at: Option<Instant>,
    /// Until then no more are queued, which is no failure, and hides none of those who have a place.
    full_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
        /// How long it was opened for.
        length: Duration,
        /// Since when the one that passed is under way.
        trying: Option<Instant>,
    },
}

/// Leave for one request. It has to come back by [`Breaker::settle`], whatever becomes of the request.
#[derive(Debug)]
#[must_use]
pub(crate) struct Pass {
    round: u64,
    /// Whether it is the one of a half-open breaker.
    trial: bool,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An answer that is not the server's fault, were it an error.
    Served,
    /// A 5xx, or it broke off.
    Failed,
    /// A 503, and how long it says it will be so.
    Busy(Option<Duration>),
    /// Its gate queues no more.
    Full,
    /// Nobody knows: the application went away, or another server was quicker.
    Unknown,
}

// === impl Breaker ===

impl Breaker {
    /// Whether nothing ever failed there, and it was never full.
    pub(crate) const fn says_nothing(&self) -> bool {
        matches!(self.state, State::Closed) && self.round == 0 && self.failed_at.is_none() && self.full_until.is_none()
    }

    /// Whether one may pass that queues there already.
    pub(crate) fn keeps_places(&self, now: Instant) -> bool {
        self.open_for(now).is_none()
    }

    /// How long until the next new one may go there; nothing if one may now. While one tries, an estimate.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        let full = self.full_until.map(|until| until.saturating_duration_since(now)).filter(|wait| !wait.is_zero());
        full.max(self.open_for(now))
    }

    fn open_for(&self, now: Instant) -> Option<Duration> {
        let State::Open { until, trying, .. } = self.state else { return None };
        let trial = trying.map(|since| (since + LOST).saturating_duration_since(now).min(FAILED));
        Some(until.saturating_duration_since(now).max(trial.unwrap_or_default())).filter(|wait| !wait.is_zero())
    }

    /// Lets one pass, if one may.
    pub(crate) fn pass(&mut self, now: Instant) -> Option<Pass> {
        if !self.keeps_places(now) {
            return None;
        }
        let trial = match &mut self.state {
            State::Closed => false,
            State::Open { trying, .. } => {
                *trying = Some(now);
                true
            }
        };
        Some(Pass { round: self.round, trial })
    }

    /// What became of one that passed.
    pub(crate) fn settle(&mut self, pass: Pass, outcome: Outcome, now: Instant) {
        if pass.round != self.round {
            return;
        }
        match outcome {
            Outcome::Served => self.served(pass.trial, now),
            Outcome::Failed => {
                self.failures = (self.suspected(now) + 1.0).min(FAILURES);
                self.failed_at = Some(now);
                if pass.trial || self.failures >= OPENS {
                    self.open(FAILED, now);
                }
            }
            Outcome::Busy(asked) => self.open(BUSY.max(asked.unwrap_or_default().min(LONGEST_ASKED)), now),
            Outcome::Full | Outcome::Unknown => {
                if outcome == Outcome::Full {
                    self.full_until = Some(now + BUSY);
                }
                if let State::Open { trying, .. } = &mut self.state {
                    *trying = None;
                }
            }
        }
    }

    /// What its score is multiplied by: it failed a moment ago, or it is well again since a moment.
    pub(crate) fn caution(&self, now: Instant) -> f64 {
        let suspicion = 1.0 + SUSPICION * self.suspected(now);
        suspicion.max(self.healed_at.map_or(1.0, |at| slow_start(now.saturating_duration_since(at))))
    }

    fn served(&mut self, trial: bool, now: Instant) {
        if trial {
            self.state = State::Closed;
            self.failures = 0.0;
            self.healed_at = Some(now);
            self.round += 1;
        } else {
            self.failures = (self.failures - AMENDS).max(0.0);
        }
    }

    /// Opens for `at_least`, or for twice as long as the last time if that did not help.
    fn open(&mut self, at_least: Duration, now: Instant) {
        let doubled = match self.state {
            State::Closed => Duration::ZERO,
            State::Open { length, .. } => length.saturating_mul(2).min(LONGEST),
        };
        let length = at_least.max(doubled);
        self.state = State::Open { until: now + length, length: length.min(LONGEST), trying: None };
        self.round += 1;
    }

    /// The failures, as far as they are remembered.
    fn suspected(&self, now: Instant) -> f64 {
        let Some(at) = self.failed_at else { return 0.0 };
        let age = now.saturating_duration_since(at).as_secs_f64() / REMEMBERED.as_secs_f64();
        self.failures * (1.0 - age).max(0.0)
    }
}

/// What the score of a server is multiplied by that came so long ago. Many nodes see it come at once, and see it idle: at
/// first only those go there that would wait for long elsewhere, and in 5 s all that would.
pub(crate) fn slow_start(age: Duration) -> f64 {
    1.0 + NEWCOMER * (1.0 - age.as_secs_f64() / SLOW_START.as_secs_f64()).max(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Lets one pass that comes to this.
    fn once(breaker: &mut Breaker, outcome: Outcome, now: Instant) {
        let pass = breaker.pass(now).expect("it admits one");
        breaker.settle(pass, outcome, now);
    }

    fn opened(outcome: Outcome, now: Instant) -> Breaker {
        let mut breaker = Breaker::default();
        while breaker.wait(now).is_none() {
            once(&mut breaker, outcome, now);
        }
        breaker
    }

    #[test]
    fn a_few_failures_open_it_and_the_time_doubles_up_to_a_minute() {
        let mut now = Instant::now();
        let mut breaker = Breaker::default();
        once(&mut breaker, Outcome::Failed, now);
        once(&mut breaker, Outcome::Failed, now);
        assert!(breaker.wait(now).is_none(), "two may be chance");
        now += SECOND;
        once(&mut breaker, Outcome::Failed, now);
        for expected in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(breaker.wait(now), Some(expected * SECOND));
            now += expected * SECOND;
            once(&mut breaker, Outcome::Failed, now);
        }
    }

    #[test]
    fn a_503_opens_it_at_once_for_what_it_asks_but_not_less_than_5_seconds() {
        let now = Instant::now();
        let busy = |asked: Option<u64>| opened(Outcome::Busy(asked.map(Duration::from_secs)), now).wait(now);
        assert_eq!(busy(None), Some(5 * SECOND));
        assert_eq!(busy(Some(1)), Some(5 * SECOND));
        assert_eq!(busy(Some(20)), Some(20 * SECOND));
        assert_eq!(busy(Some(u64::MAX)), Some(LONGEST_ASKED), "whatever it says");
        let mut again = opened(Outcome::Busy(None), now);
        once(&mut again, Outcome::Busy(None), now + 5 * SECOND);
        assert_eq!(again.wait(now + 5 * SECOND), Some(10 * SECOND));
    }

    #[test]
    fn who_has_a_place_keeps_it_where_no_more_are_queued_and_not_where_it_fails() {
        let now = Instant::now();
        let full = opened(Outcome::Full, now);
        assert_eq!((full.wait(now), full.keeps_places(now)), (Some(5 * SECOND), true));
        for outcome in [Outcome::Failed, Outcome::Busy(None)] {
            assert!(!opened(outcome, now).keeps_places(now));
        }
        // Those who have one find out that it fails meanwhile.
        let mut fails = opened(Outcome::Full, now);
        for _ in 0..3 {
            once(&mut fails, Outcome::Failed, now);
        }
        assert!(!fails.keeps_places(now) && fails.pass(now).is_none());
        assert!(fails.keeps_places(now + SECOND) && fails.wait(now + SECOND).is_some());
        // The one that tries after failures finds no room: that decides nothing, and another may try.
        let mut failed = opened(Outcome::Failed, now);
        once(&mut failed, Outcome::Full, now + SECOND);
        assert!(failed.pass(now + SECOND).is_some_and(|pass| pass.trial));
        assert!(Breaker::default().keeps_places(now));
    }

    #[test]
    fn half_open_lets_one_through_and_its_success_closes() {
        let mut breaker = opened(Outcome::Failed, Instant::now());
        let now = Instant::now() + SECOND;
        let pass = breaker.pass(now).unwrap();
        assert!(breaker.pass(now).is_none() && breaker.wait(now + 100 * SECOND).is_some());
        breaker.settle(pass, Outcome::Served, now);
        assert!((0..100).all(|_| breaker.pass(now).is_some()));
        assert_eq!(breaker.caution(now), 3.0, "it starts slowly");
        // All is forgiven: it takes as many failures as the first time, and opens for as short.
        once(&mut breaker, Outcome::Failed, now);
        assert!(breaker.wait(now).is_none());
    }

    #[test]
    fn the_one_that_tries_may_go_away_or_get_lost() {
        let mut breaker = opened(Outcome::Failed, Instant::now());
        let now = Instant::now() + SECOND;
        once(&mut breaker, Outcome::Unknown, now);
        let lost = breaker.pass(now).expect("another may try");
        assert!(breaker.wait(now + LOST / 2).is_some());
        assert!(breaker.wait(now + LOST).is_none());
        drop(lost);
    }

    #[test]
    fn what_passed_before_it_opened_decides_nothing() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        let mut before: Vec<Pass> = (0..100).map_while(|_| breaker.pass(now)).collect();
        assert_eq!(before.len(), 100);
        let late = before.pop().unwrap();
        for pass in before {
            breaker.settle(pass, Outcome::Failed, now);
        }
        assert_eq!(breaker.wait(now), Some(SECOND), "a hundred that fail at once count once");
        breaker.settle(late, Outcome::Served, now);
        assert!(breaker.wait(now).is_some());
    }

    #[test]
    fn who_fails_every_other_time_is_found_out_and_who_fails_seldom_is_not() {
        let now = Instant::now();
        let survives = |every: u32| {
            let mut breaker = Breaker::default();
            (0..1000).all(|i| {
                let Some(pass) = breaker.pass(now) else { return false };
                breaker.settle(pass, if i % every == 0 { Outcome::Failed } else { Outcome::Served }, now);
                true
            })
        };
        assert!(!survives(2) && survives(4));
    }

    #[test]
    fn one_failure_makes_it_look_worse_for_a_moment() {
        let now = Instant::now();
        let mut breaker = Breaker::default();
        assert_eq!(breaker.caution(now), 1.0);
        once(&mut breaker, Outcome::Failed, now);
        assert_eq!(breaker.caution(now), 4.0);
        assert_eq!(breaker.caution(now + REMEMBERED / 2), 2.5);
        assert_eq!(breaker.caution(now + REMEMBERED), 1.0);
    }

    #[test]
    fn a_newcomer_has_its_share_within_5_seconds() {
        assert_eq!(slow_start(Duration::ZERO), 3.0);
        assert_eq!(slow_start(SLOW_START / 2), 2.0);
        assert_eq!(slow_start(SLOW_START), 1.0);
        assert_eq!(slow_start(Duration::MAX), 1.0);
    }

    proptest! {
        /// Whatever happens: an open breaker lets no more than one out at a time, and never stays shut for good.
        #[test]
        fn never_two_while_it_is_open_and_never_shut_for_good(
            steps in prop::collection::vec((0u8..6, 0u64..20_000), 1..200),
        ) {
            let (mut breaker, mut now) = (Breaker::default(), Instant::now());
            let mut out: Vec<(Pass, Instant)> = Vec::new();
            for (what, milliseconds) in steps {
                now += Duration::from_millis(milliseconds);
                if what == 0 {
                    let is_out = |(pass, at): &(Pass, Instant)| {
                        pass.trial && pass.round == breaker.round && now.duration_since(*at) < LOST
                    };
                    let another = out.iter().any(is_out);
                    if let Some(pass) = breaker.pass(now) {
                        prop_assert!(!another);
                        out.push((pass, now));
                    }
                } else if let Some((pass, _)) = out.pop() {
                    let outcome =
                        [Outcome::Served, Outcome::Failed, Outcome::Busy(None), Outcome::Full, Outcome::Unknown]
                            [usize::from(what - 1)];
                    breaker.settle(pass, outcome, now);
                }
                prop_assert!(breaker.wait(now).is_none_or(|wait| wait <= LONGEST_ASKED));
                prop_assert!(breaker.wait(now + LOST + LONGEST).is_none(), "it opens again some day");
                let caution = breaker.caution(now);
                prop_assert!((1.0..=1.0 + SUSPICION * FAILURES).contains(&caution));
            }
        }
    }
}
