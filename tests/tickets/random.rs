//! Chance from a seed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A stream of random numbers (SplitMix64). Clones draw from the same one.
#[derive(Debug, Clone)]
pub struct Random(Arc<Mutex<u64>>);

// === impl Random ===

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))))
    }

    fn bits(&self) -> u64 {
        let mut state = self.0.lock().unwrap();
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub fn unit(&self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// True in so many of all cases.
    pub fn chance(&self, share: f64) -> bool {
        self.unit() < share
    }

    pub fn below(&self, end: usize) -> usize {
        (self.unit() * end as f64) as usize
    }

    pub fn between(&self, least: Duration, most: Duration) -> Duration {
        least + (most - least).mul_f64(self.unit())
    }

    /// Around `mean`, with a long tail.
    pub fn about(&self, mean: Duration) -> Duration {
        mean.mul_f64(-(1.0 - self.unit()).ln())
    }
}
