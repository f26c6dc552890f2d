//! How much a peer may say: one that floods us with reports is read as slowly as an honest one writes at most.

use std::time::Duration;

use tokio::time::Instant;

/// What a peer may say at once. Who keeps within it is read without any delay: what is known of a server is as young as the
/// network lets it be.
const BURST: Duration = Duration::from_millis(200);

/// What a peer has spent.
#[derive(Debug, Default)]
pub(super) struct Allowance {
    /// When all that it said will have been within its rate.
    paid_at: Option<Instant>,
}

// === impl Allowance ===

impl Allowance {
    /// Something was read that an honest peer says once in `cost` at most. Resolves once the next may be read.
    pub(super) async fn spend(&mut self, cost: Duration) {
        let now = Instant::now();
        let paid_at = self.paid_at.map_or(now, |at| at.max(now)) + cost;
        self.paid_at = Some(paid_at);
        if paid_at > now + BURST {
            tokio::time::sleep_until(paid_at - BURST).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COST: Duration = Duration::from_millis(10);

    #[tokio::test(start_paused = true)]
    async fn a_burst_costs_nothing_and_a_flood_is_read_at_the_rate() {
        let (mut allowance, began) = (Allowance::default(), Instant::now());
        for _ in 0..20 {
            allowance.spend(COST).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 0..100 {
            allowance.spend(COST).await;
        }
        assert_eq!(began.elapsed(), 100 * COST);
        tokio::time::advance(Duration::from_secs(60)).await;
        let later = Instant::now();
        for _ in 0..21 {
            allowance.spend(COST).await;
        }
        assert_eq!(later.elapsed(), COST, "silence earns no more than a burst");
    }
}
