//! Simulated time, which runs faster than real time by the tempo, and begins when it is told to.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// A clock in simulated seconds, cheap to clone. Before it is started it stands at zero.
#[derive(Debug, Clone)]
pub struct Clock {
    started: Arc<OnceLock<Instant>>,
    tempo: f64,
}

// === impl Clock ===

impl Clock {
    pub fn new(tempo: f64) -> Self {
        Self { started: Arc::default(), tempo }
    }

    pub fn start(&self) {
        self.started.get_or_init(Instant::now);
    }

    pub fn now(&self) -> f64 {
        self.started.get().map_or(0.0, |started| started.elapsed().as_secs_f64() * self.tempo)
    }

    /// How long it takes.
    pub fn real(&self, seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds.max(0.0) / self.tempo)
    }

    /// When a moment is there; never before the start.
    pub fn instant(&self, at: f64) -> Option<Instant> {
        // What lies centuries ahead need not be reckoned with.
        self.started.get()?.checked_add(Duration::try_from_secs_f64(at.max(0.0) / self.tempo).ok()?)
    }

    pub async fn sleep_until(&self, at: f64) {
        match self.instant(at) {
            Some(instant) => tokio::time::sleep_until(instant.into()).await,
            None => std::future::pending().await,
        }
    }
}
