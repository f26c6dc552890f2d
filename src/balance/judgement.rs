//! What was measured of a server, against what it says of itself.
//!
//! A score rests on the speeds that a server reports. One that boasts, or that is throttled, busy with something else or
//! broken, would draw prompts for as long as it likes. So what each request took there is compared with what was expected
//! of it, and the server counts as so many times slower. That fades within minutes, or nobody would notice that it is
//! well again: it then gets a request, and is judged by that.

use std::time::{Duration, Instant};

/// What of the past is left with each new request: about the last five count.
const MEMORY: f64 = 0.8;
/// How long it takes until half of what was measured is forgotten: a server that was 50 times slower than it said gets
/// another chance after some ten minutes, one that was twice as slow after one or two.
const HALF_LIFE: Duration = Duration::from_secs(120);
/// A request may take this much longer than expected before anything is held against the server: the batch fills after it
/// began, and answers are longer than the average about as much as they are shorter.
const TOLERANCE: f64 = 1.5;
/// The most that is held against a server. Far enough to keep everything off it while there is any other, near enough to
/// be forgotten.
const WORST: f64 = 50.0;
/// The shortest that is told apart, in seconds: below, it is the network and the clock that were measured.
const SHORTEST: f64 = 0.05;

/// How one server does with one model, beside what it says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Judgement {
    /// Seconds that requests took, the latest counting most.
    measured: f64,
    /// Seconds that they should have taken. The sums are compared and not each pair, or one short answer would outweigh
    /// everything.
    expected: f64,
    latest: Option<Latest>,
}

#[derive(Debug, Clone, Copy)]
struct Latest {
    at: Instant,
    /// Of one request, in seconds: counts as one more that took as long as it should.
    expected: f64,
}

// === impl Judgement ===

impl Judgement {
    /// A request took `measured` from the moment it had a slot to its end, where `expected` (the
    /// [`promised`](super::score::Score::promised) when it was sent: without what was held against the server then, or it would
    /// be forgiven for being found out) was to be expected.
    pub(crate) fn observe(&mut self, expected: Duration, measured: Duration, now: Instant) {
        let expected = expected.as_secs_f64().max(SHORTEST);
        // Beyond the worst nothing more is to be known, and one stuck request must not outweigh all that follow.
        let measured = measured.as_secs_f64().clamp(SHORTEST, 2.0 * WORST * TOLERANCE * expected);
        let left = self.left(now) * MEMORY;
        self.measured = self.measured * left + measured;
        self.expected = self.expected * left + expected;
        self.latest = Some(Latest { at: now, expected });
    }

    /// How many times slower than it says the server counts: 1 to 50.
    pub(crate) fn slowness(&self, now: Instant) -> f64 {
        let Some(latest) = self.latest else { return 1.0 };
        let left = self.left(now);
        let ratio = (self.measured * left + latest.expected) / (self.expected * left + latest.expected);
        (ratio / TOLERANCE).clamp(1.0, WORST)
    }

    /// The same, were a request to end now that is under way for so long: one that never answers is never measured.
    pub(crate) fn slowness_with(&self, expected: Duration, so_far: Duration, now: Instant) -> f64 {
        let mut then = *self;
        then.observe(expected, so_far, now);
        then.slowness(now).max(self.slowness(now))
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

    #[test]
    fn nothing_is_held_against_who_keeps_its_word() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        assert_eq!(judgement.slowness(now), 1.0);
        // Answers of very different length, of which nobody could know it.
        for measured in [2, 30, 5, 18, 1, 11, 8, 3, 25, 9] {
            judgement.observe(seconds(10), seconds(measured), now);
            assert!(judgement.slowness(now) < 1.3, "{}", judgement.slowness(now));
        }
    }

    #[test]
    fn who_boasts_is_found_out_by_the_first_request() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        judgement.observe(seconds(1), seconds(50), now);
        assert!(judgement.slowness(now) > 15.0);
        for _ in 0..10 {
            judgement.observe(seconds(1), seconds(50), now);
        }
        assert!((25.0..34.0).contains(&judgement.slowness(now)), "50 over what is put up with");
        for _ in 0..10 {
            judgement.observe(seconds(1), seconds(100_000), now);
        }
        assert_eq!(judgement.slowness(now), WORST);
    }

    #[test]
    fn who_never_answers_is_found_out_while_it_does_not() {
        let (judgement, now) = (Judgement::default(), Instant::now());
        assert_eq!(judgement.slowness_with(seconds(2), seconds(2), now), 1.0);
        assert!(judgement.slowness_with(seconds(2), seconds(60), now) > 8.0);
    }

    #[test]
    fn it_is_forgotten_within_minutes() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        for _ in 0..10 {
            judgement.observe(seconds(1), seconds(5), now);
        }
        let after = |minutes: u64| judgement.slowness(now + seconds(60 * minutes));
        assert!(after(0) > 2.5 && after(2) > 2.0);
        assert!(after(1) < after(0) && after(5) < after(2));
        assert_eq!(after(15), 1.0);
    }

    #[test]
    fn who_gets_well_is_believed_after_a_few_requests() {
        let (mut judgement, now) = (Judgement::default(), Instant::now());
        for _ in 0..10 {
            judgement.observe(seconds(1), seconds(20), now);
        }
        let mut requests = 0;
        while judgement.slowness(now) > 1.0 {
            judgement.observe(seconds(1), seconds(1), now);
            requests += 1;
        }
        assert!((5..20).contains(&requests), "{requests}");
    }
}
