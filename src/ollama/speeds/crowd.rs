//! How much of the server each model has while others run: what a measured speed is divided by.
//!
//! As in the score of the balancer and in the simulated servers of `benches/balance`, `n` requests in one runner each go at `b(n) =
//! 1/(1+0.2(n−1))` of the speed that one alone has, and runners of `K` other models leave it `1/(1+K)`. A request's
//! seconds are weighted with that while it runs, which makes them the seconds that it would have taken alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// What each further request in a batch costs the others.
const BATCH: f64 = 0.2;

/// The models that something runs of.
#[derive(Debug, Default)]
pub(super) struct Crowd(BTreeMap<Arc<str>, Busy>);

/// One of them.
#[derive(Debug, Clone, Copy)]
struct Busy {
    running: u32,
    /// Seconds alone since it became busy, until `at`.
    alone: f64,
    at: Instant,
    /// How many of them pass in a second: its share of the server times that of each request in its batch.
    part: f64,
    batch: f64,
}

/// The speed of each of so many in one batch, of one alone's.
pub(super) fn batch(running: u32) -> f64 {
    1.0 / (1.0 + BATCH * f64::from(running.max(1) - 1))
}

// === impl Crowd ===

impl Crowd {
    /// One more runs, of a model whose runner works on at most `slots`; those beyond wait and slow nobody down.
    pub(super) fn enter(&mut self, model: &Arc<str>, slots: u32, now: Instant) {
        self.pass(now);
        let new = Busy { running: 0, alone: 0.0, at: now, part: 1.0, batch: 1.0 };
        self.0.entry(model.clone()).or_insert(new).running += 1;
        self.share(model, slots);
    }

    /// One fewer.
    pub(super) fn leave(&mut self, model: &Arc<str>, slots: u32, now: Instant) {
        self.pass(now);
        if let Some(busy) = self.0.get_mut(model) {
            busy.running = busy.running.saturating_sub(1);
            if busy.running == 0 {
                self.0.remove(model);
            }
        }
        self.share(model, slots);
    }

    /// The seconds alone of a model from when it became busy until `then`, which is not long before the last change.
    pub(super) fn alone(&self, model: &str, then: Instant) -> f64 {
        let Some(busy) = self.0.get(model) else { return 0.0 };
        let since = then.saturating_duration_since(busy.at).as_secs_f64();
        let before = busy.at.saturating_duration_since(then).as_secs_f64();
        (busy.alone + (since - before) * busy.part).max(0.0)
    }

    /// What a request of the model has of the server at present, of all of it.
    pub(super) fn part(&self, model: &str) -> f64 {
        self.0.get(model).map_or(1.0, |busy| busy.part)
    }

    fn pass(&mut self, now: Instant) {
        for busy in self.0.values_mut() {
            busy.alone += now.saturating_duration_since(busy.at).as_secs_f64() * busy.part;
            busy.at = busy.at.max(now);
        }
    }

    fn share(&mut self, changed: &str, slots: u32) {
        #[expect(clippy::cast_precision_loss, reason = "a few models")]
        let share = 1.0 / self.0.len().max(1) as f64;
        if let Some(busy) = self.0.get_mut(changed) {
            busy.batch = batch(busy.running.min(slots));
        }
        for busy in self.0.values_mut() {
            busy.part = share * busy.batch;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn seconds_alone_follow_batches_and_other_models() {
        let mut crowd = Crowd::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        crowd.enter(&a, 2, at(0));
        crowd.enter(&a, 2, at(10));
        assert!((crowd.alone("a", at(10)) - 10.0).abs() < 1e-9);
        // Two in a batch; a third waits.
        crowd.enter(&a, 2, at(16));
        assert!((crowd.alone("a", at(16)) - 15.0).abs() < 1e-9);
        crowd.enter(&b, 1, at(22));
        assert!((crowd.alone("a", at(22)) - 20.0).abs() < 1e-9);
        // Half the server each.
        assert!((crowd.alone("a", at(34)) - 25.0).abs() < 1e-9);
        assert!((crowd.alone("b", at(34)) - 6.0).abs() < 1e-9);
        crowd.leave(&b, 1, at(34));
        assert!((crowd.alone("a", at(40)) - 30.0).abs() < 1e-9);
        assert!(crowd.alone("b", at(40)).abs() < 1e-9);
        (0..3).for_each(|_| crowd.leave(&a, 2, at(40)));
        assert!(crowd.0.is_empty(), "nobody is remembered who does not run");
    }
}
