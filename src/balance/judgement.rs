//! What was measured of a server, against what it says of itself.
//!
//! A score rests on the speeds that a server reports. One that boasts, or that is throttled, busy with something else or
//! broken, would draw prompts for as long as it likes. So what each request took there is compared with what was expected
//! of it, and the server counts as so many times slower. That fades within minutes, or nobody would notice that it is
//! well again: it then gets a request, and is judged by that.

use std::time::{Duration, Instant};

/// What of the past is left with each new request: about the last five count.
const MEMORY: f64 = 0.8;
/// The same where it took no longer than it should: one that is well again shows it in requests that are seconds apart.
const AMENDS: f64 = 0.5;
/// How long it takes until half of what was measured is forgotten: a server that was 50 times slower than it said gets
/// another chance after some ten minutes, one that was twice as slow after one or two.
const HALF_LIFE: Duration = Duration::from_secs(120);
/// A request may take this much longer than expected before anything is held against the server: the batch fills after it
/// began, and answers are longer than the average about as much as they are shorter.
const TOLERANCE: f64 = 1.5;
/// The most that one request says: that it takes 50 times as long as expected, or 50 seconds if that is longer. Far enough
/// to keep everything off the server while there is any other, near enough to be forgotten. Not the ratio alone: who says
/// that it takes a microsecond is a million times slower, and fifty of its microseconds would still draw everything.
const WORST: f64 = 50.0;
const WORST_SECONDS: f64 = 50.0;
/// What is nobody's fault, in seconds: the network and the clock.
const ASIDE: f64 = 0.05;
/// The least that can be expected, in seconds, lest anything is divided by nothing.
const LEAST: f64 = 1e-6;

/// How one server does with one model, beside what it says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Judgement {
    /// Seconds that requests took, the latest counting most.
    measured: f64,
    /// How many usual requests they should have taken as long as. The sums are compared and not each pair, or one short answer
    /// would outweigh everything. And it is no time: when the server says something else of its speed, or the first thing, what
    /// was held against its last word, or against a guess, is held against the new one by as much as is left of it.
    expected: f64,
    latest: Option<Latest>,
}

/// The expectation when a request was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Promise {
    /// Of the request: the [`promised`](super::score::Score::promised), without what was held against the server then, or it would
    /// be forgiven for being found out.
    pub(crate) time: Duration,
    /// Of a usual request, by the same knowledge.
    pub(crate) usual: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Latest {
    at: Instant,
    /// Of one request, in usual ones: counts as one more that took as long as it should.
    expected: f64,
}

// === impl Judgement ===

impl Judgement {
    /// A request took `measured` from the moment it had a slot to its end.
    pub(crate) fn observe(&mut self, promise: Promise, measured: Duration, now: Instant) {
        let [expected, usual] = [promise.time, promise.usual].map(|time| time.as_secs_f64().max(LEAST));
        let measured = measured.as_secs_f64();
        let measured = if measured > expected { (measured - ASIDE).max(expected) } else { measured };
        let measured = measured.min(TOLERANCE * (WORST * expected).max(WORST_SECONDS));
        let left = self.left(now) * if measured <= TOLERANCE * expected { AMENDS } else { MEMORY };
        self.measured = self.measured * left + measured;
        self.expected = self.expected * left + expected / usual;
        self.latest = Some(Latest { at: now, expected: expected / usual });
    }

    /// Whether nothing was measured.
    pub(crate) const fn says_nothing(&self) -> bool {
        self.latest.is_none()
    }

    /// How many times slower the server counts than it says now, by which a usual request takes `usual`: at least 1, at most what
    /// makes 50 of it or 50 seconds.
    pub(crate) fn slowness(&self, usual: Duration, now: Instant) -> f64 {
        let usual = usual.as_secs_f64().max(LEAST);
        let Some(latest) = self.latest else { return 1.0 };
        let left = self.left(now);
        let one = latest.expected * usual;
        let ratio = (self.measured * left + one) / (self.expected * usual * left + one);
        (ratio / TOLERANCE).max(1.0)
    }

    /// The same, were a request to end now that is under way for so long: one that never answers is never measured.
    pub(crate) fn slowness_with(&self, promise: Promise, so_far: Duration, usual: Duration, now: Instant) -> f64 {
        let mut then = *self;
        then.observe(promise, so_far, now);
        then.slowness(usual, now).max(self.slowness(usual, now))
    }

    /// What of the sums is left.
    fn left(&self, now: Instant) -> f64 {
        let Some(latest) = self.latest else { return 0.0 };
        let halves = now.saturating_duration_since(latest.at).as_secs_f64() / HALF_LIFE.as_secs_f64();
        (-halves).exp2()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Of a request as usual.
    const fn usual(time: Duration) -> Promise {
        Promise { time, usual: time }
    }

    #[test]
    fn nothing_is_held_against_who_keeps_its_word() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        assert_eq!(judgement.slowness(seconds(10), now), 1.0);
        // Answers of very different length, of which nobody could know it.
        for measured in [2, 30, 5, 18, 1, 11, 8, 3, 25, 9] {
            judgement.observe(usual(seconds(10)), seconds(measured), now);
            assert!(judgement.slowness(seconds(10), now) < 1.3, "{}", judgement.slowness(seconds(10), now));
        }
    }

    #[test]
    fn who_boasts_is_found_out_by_the_first_request() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        judgement.observe(usual(seconds(1)), seconds(50), now);
        assert!(judgement.slowness(seconds(1), now) > 15.0);
        for _ in 0..10 {
            judgement.observe(usual(seconds(1)), seconds(50), now);
        }
        assert!((25.0..34.0).contains(&judgement.slowness(seconds(1), now)), "50 over what is put up with");
        for _ in 0..10 {
            judgement.observe(usual(seconds(1)), seconds(100_000), now);
        }
        assert!((35.0..=WORST).contains(&judgement.slowness(seconds(1), now)), "no more is believed of a second");
    }

    #[test]
    fn the_greatest_boast_does_not_make_up_for_the_time_it_takes() {
        for boast in [Duration::ZERO, Duration::from_micros(3), Duration::from_millis(1)] {
            let (mut judgement, now) = (Judgement::default(), Instant::now());
            judgement.observe(usual(boast), seconds(20), now);
            let believed = judgement.slowness(boast, now) * boast.as_secs_f64().max(LEAST);
            assert!((5.0..20.0).contains(&believed), "{boast:?} counts as {believed} s");
        }
        // What is quick in truth may take a moment on the network.
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        judgement.observe(usual(Duration::from_millis(5)), Duration::from_millis(40), now);
        assert_eq!(judgement.slowness(Duration::from_millis(5), now), 1.0);
    }

    #[test]
    fn who_never_answers_is_found_out_while_it_does_not() {
        let (judgement, now) = (Judgement::default(), Instant::now());
        assert_eq!(judgement.slowness_with(usual(seconds(2)), seconds(2), seconds(2), now), 1.0);
        assert!(judgement.slowness_with(usual(seconds(2)), seconds(60), seconds(2), now) > 8.0);
    }

    #[test]
    fn it_is_forgotten_within_minutes() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        for _ in 0..10 {
            judgement.observe(usual(seconds(1)), seconds(5), now);
        }
        let after = |minutes: u64| judgement.slowness(seconds(1), now + seconds(60 * minutes));
        assert!(after(0) > 2.5 && after(2) > 2.0);
        assert!(after(1) < after(0) && after(5) < after(2));
        assert_eq!(after(15), 1.0);
    }

    #[test]
    fn who_gets_well_is_believed_after_a_few_requests() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        for _ in 0..10 {
            judgement.observe(usual(seconds(1)), seconds(20), now);
        }
        let mut requests = 0;
        while judgement.slowness(seconds(1), now) > 1.0 {
            judgement.observe(usual(seconds(1)), seconds(1), now);
            requests += 1;
        }
        assert!((5..20).contains(&requests), "{requests}");
    }

    #[test]
    fn what_the_server_says_later_is_what_it_is_held_to() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        for _ in 0..10 {
            judgement.observe(usual(seconds(1)), seconds(10), now);
        }
        assert!(judgement.slowness(seconds(1), now) > 5.0);
        assert_eq!(judgement.slowness(seconds(10), now), 1.0, "now it says so itself");
        assert!(judgement.slowness(Duration::from_millis(100), now) > 50.0, "or boasts even more");
        // Half of a usual one took as long as a usual one should.
        let half = Promise { time: seconds(5), usual: seconds(10) };
        let mut judgement = Judgement::default();
        for _ in 0..10 {
            judgement.observe(half, seconds(10), now);
        }
        assert!((1.2..1.34).contains(&judgement.slowness(seconds(10), now)), "twice, over what is put up with");
    }

    #[test]
    fn one_that_was_wrongly_judged_shows_it_in_a_few_requests_seconds_apart() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        judgement.observe(usual(seconds(1)), seconds(22), now);
        assert!(judgement.slowness(seconds(1), now) > 7.0);
        for n in 1..=3 {
            judgement.observe(usual(seconds(1)), seconds(1), now + n * seconds(3));
        }
        assert!(judgement.slowness(seconds(1), now + seconds(9)) < 2.0);
    }
}
