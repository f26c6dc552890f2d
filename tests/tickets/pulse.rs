//! How a gate is, as seen over one connection: as `transport::pulse` has it.

use std::sync::atomic::{AtomicU32, Ordering};

use ollana::internals::exchange::Health;
use tokio::sync::watch;

/// Whether it answers.
pub struct Pulse {
    pub health: watch::Sender<Health>,
    owed: AtomicU32,
}

/// An acknowledgement that is late.
pub struct Owed<'a>(&'a Pulse);

// === impl Pulse ===

impl Pulse {
    /// An acknowledgement is late, until this is dropped.
    pub fn owes(&self) -> Owed<'_> {
        self.owed.fetch_add(1, Ordering::Relaxed);
        self.turn(|health| if health == Health::Healthy { Health::Suspect } else { health });
        Owed(self)
    }

    fn owes_nothing(&self) -> bool {
        self.owed.load(Ordering::Relaxed) == 0
    }

    /// It came.
    pub fn paid(&self) {
        let well = self.owes_nothing();
        self.turn(|health| if health == Health::Suspect && well { Health::Healthy } else { health });
    }

    pub fn spoke(&self) {
        let well = self.owes_nothing();
        self.turn(|_| if well { Health::Healthy } else { Health::Suspect });
    }

    fn turn(&self, to: impl FnOnce(Health) -> Health) {
        self.health.send_if_modified(|health| {
            let before = *health;
            *health = to(before);
            *health != before
        });
    }
}

impl Default for Pulse {
    fn default() -> Self {
        Self { health: watch::Sender::new(Health::Healthy), owed: AtomicU32::new(0) }
    }
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        self.0.owed.fetch_sub(1, Ordering::Relaxed);
    }
}
