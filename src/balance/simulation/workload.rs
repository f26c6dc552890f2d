//! Who asks what, and when: chats and single questions with heavy tails.

/// Users. The n-th asks in proportion to 1/√n.
pub(super) const CLIENTS: usize = 50;
/// Turns of a chat at most, and how often one more follows.
const MOST_TURNS: i32 = 20;
const ANOTHER: f64 = 0.75;
/// How many sessions are chats.
const CHATS: f64 = 0.7;

/// SplitMix64: the same numbers whatever version of whatever crate.
pub(super) struct Random(pub(super) u64);

pub(super) struct Turn {
    /// Tokens that come on top of what was said.
    pub(super) question: f64,
    pub(super) answer: f64,
    pub(super) pause: f64,
}

pub(super) struct Session {
    pub(super) client: usize,
    pub(super) turns: Vec<Turn>,
    pub(super) next: usize,
    /// Tokens that were said.
    pub(super) said: f64,
    /// Where it was answered last.
    pub(super) at: Option<usize>,
}

// === impl Random ===

impl Random {
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither of them.
    pub(super) fn unit(&mut self) -> f64 {
        ((self.bits() >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    pub(super) fn log_normal(&mut self, median: f64, sigma: f64, (low, high): (f64, f64)) -> f64 {
        let normal = (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
        (median * (sigma * normal).exp()).clamp(low, high).round()
    }
}

// === impl Session ===

impl Session {
    /// Questions that a session has, on average.
    pub(super) fn mean_turns() -> f64 {
        1.0 - CHATS + CHATS * (0..MOST_TURNS).map(|n| ANOTHER.powi(n)).sum::<f64>()
    }

    pub(super) fn random(random: &mut Random) -> Self {
        let weight = |client: usize| 1.0 / (client as f64 + 1.0).sqrt();
        let mut left = random.unit() * (0..CLIENTS).map(weight).sum::<f64>();
        let client = (0..CLIENTS).find(|&client| {
            left -= weight(client);
            left <= 0.0
        });
        let chat = random.unit() < CHATS;
        let mut turns = vec![];
        while turns.is_empty() || (chat && turns.len() < MOST_TURNS as usize && random.unit() < ANOTHER) {
            let (median, sigma) = match (chat, turns.len()) {
                (false, _) => (1000.0, 0.8),
                (true, 0) => (300.0, 0.9),
                (true, _) => (50.0, 1.0),
            };
            turns.push(Turn {
                question: random.log_normal(median, sigma, (10.0, 6000.0)),
                answer: random.log_normal(180.0, 0.9, (5.0, 2048.0)),
                pause: random.log_normal(12.0, 0.8, (1.0, 120.0)),
            });
        }
        Self { client: client.unwrap_or(0), turns, next: 0, said: 0.0, at: None }
    }
}
