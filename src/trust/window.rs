//! The first-use window: how long after the first provider others are used as they are met.
//!
//! Clocks get set: a machine without a battery starts in the past, a time server corrects it by days. The window ends with
//! whichever of two counts is over first: the time since its opening by the system clock, or the time that the node has run
//! since, by a clock that nobody can set. So whatever is done to the system clock, the window is open for no more running
//! time than it is long; and a clock that is set while the window's opening is still in this run moves the opening along.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::writer::Writer;

/// Running time is recorded in steps of this, each as it begins: a node that is restarted again and again spends a step each
/// time. At most 288 small writes, on one day.
pub(super) const RECORD_EVERY: u64 = 5 * 60;

/// The system clock was set if it has gone so much further than the other. Time servers correct less by running it faster or
/// slower.
const JUMP: u64 = 60;

/// The record of the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Opening {
    /// When it opened, in seconds since 1970.
    pub(super) opened: Option<u64>,
    /// Seconds that the node has run since, rounded up to [`RECORD_EVERY`] at each start.
    pub(super) spent: u64,
    /// How long it is, in seconds.
    pub(super) span: u64,
}

/// The first-use window at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "state")]
pub enum Window {
    /// No provider was met yet, or there is no window: providers always wait for a person.
    #[default]
    NotBegun,
    /// New providers are used as they are met.
    Open {
        /// For so many more seconds.
        left_s: u64,
    },
    /// New providers wait for a person.
    Closed {
        /// Since so many seconds; 0 if the clock does not tell.
        for_s: u64,
    },
    /// The system clock is before the time at which the window opened: nobody knows how old it is, so it counts as closed.
    ClockBehind {
        /// By so many seconds.
        by_s: u64,
    },
}

// === impl Opening ===

impl Opening {
    /// Whether running time is counted: the window was opened, and not so much was run since.
    pub(super) fn runs(&self) -> bool {
        self.opened.is_some() && self.spent < self.span.saturating_add(RECORD_EVERY)
    }

    pub(super) fn at(&self, now: u64) -> Window {
        let Some(opened) = self.opened else { return Window::NotBegun };
        // A record is made as its step begins.
        let run = self.spent.saturating_sub(RECORD_EVERY);
        if run >= self.span {
            return Window::Closed { for_s: now.saturating_sub(opened).saturating_sub(self.span) };
        }
        match now.checked_sub(opened) {
            None if opened - now >= JUMP => Window::ClockBehind { by_s: opened - now },
            since => match since.unwrap_or(0).max(run) {
                gone if gone < self.span => Window::Open { left_s: self.span - gone },
                gone => Window::Closed { for_s: gone - self.span },
            },
        }
    }
}

// === impl Window ===

impl Window {
    /// Why a new provider waits for a person, where that is because of the window.
    pub fn reason(self) -> Option<String> {
        match self {
            Self::NotBegun | Self::Open { .. } => None,
            Self::Closed { for_s: 0 } => Some("the first-use window is closed".to_owned()),
            Self::Closed { for_s } => Some(format!("the first-use window closed {} ago", span(for_s))),
            Self::ClockBehind { by_s } => Some(format!(
                "the first-use window counts as closed, since this machine's clock is {} before the time at which the first \
                 provider was met; check the date",
                span(by_s)
            )),
        }
    }
}

fn span(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3_600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, _, _) => format!("{days} d"),
    }
}

/// Two clocks, read together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    /// The system's, which can be set: seconds since 1970.
    pub(super) system: u64,
    /// One that only runs, while the machine sleeps too.
    pub(super) steady: Duration,
}

impl Clocks {
    pub(super) fn read() -> Self {
        #[cfg(target_os = "linux")]
        let steady = {
            let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
            Duration::new(time.tv_sec.unsigned_abs(), 0)
        };
        #[cfg(not(target_os = "linux"))]
        let steady = {
            static START: std::sync::LazyLock<std::time::Instant> = std::sync::LazyLock::new(std::time::Instant::now);
            START.elapsed()
        };
        Self { system: super::writer::unix_now(), steady }
    }

    /// How far the system clock was set, forward or back, between this reading and a later one.
    fn jump_to(&self, later: &Self) -> i64 {
        let ran = later.steady.saturating_sub(self.steady).as_secs();
        let expected = self.system.saturating_add(ran);
        let by = i64::try_from(later.system.abs_diff(expected)).unwrap_or(i64::MAX);
        match by.unsigned_abs() {
            little if little < JUMP => 0,
            _ if later.system < expected => -by,
            _ => by,
        }
    }
}

/// The writer's knowledge of the window's time in this run.
#[derive(Debug)]
pub(super) struct Watch {
    /// The clocks when the node started, or when the system clock was last found set.
    since: Clocks,
    /// Whether the window was opened in this run, so that its opening is a time of the clock as it was then.
    pub(super) opened_here: bool,
    /// When the step of running time began that was recorded last.
    recorded: Option<Duration>,
    /// How the window was at the last look.
    seen: Option<bool>,
}

impl Watch {
    pub(super) fn new(now: Clocks) -> Self {
        Self { since: now, opened_here: false, recorded: None, seen: None }
    }
}

// === impl Writer ===

impl Writer {
    /// Keeps the window's time. To be called every second or so while that runs, and before something is decided by the
    /// window.
    pub(super) fn keep_time(&mut self) {
        let now = (self.clocks)();
        let jump = self.time.since.jump_to(&now);
        if jump != 0 {
            self.time.since = now;
            let way = if jump > 0 { "forward" } else { "back" };
            tracing::info!("the system clock was set {way} by {}", span(jump.unsigned_abs() + 30));
        }
        let steps = self.time.recorded.is_none_or(|at| now.steady.saturating_sub(at).as_secs() >= RECORD_EVERY);
        let spends = steps && self.ledger.opening(&self.policy).runs();
        if spends || (jump != 0 && self.time.opened_here) {
            // On top of what somebody else has written. Nothing is granted by it, so it counts also where the disk does not
            // take it.
            let fresh = self.refresh();
            let mut next = self.ledger.clone();
            if let Some(opened) = next.first_provider_met.as_mut().filter(|_| self.time.opened_here) {
                *opened = opened.saturating_add_signed(jump);
            }
            if spends {
                self.time.recorded = Some(now.steady);
                next.first_use_spent = next.first_use_spent.saturating_add(RECORD_EVERY);
            }
            let written = fresh.and_then(|_| self.adopt(next.clone()));
            if let Err(error) = written {
                tracing::debug!("how long the first-use window has been open was not written: {error}");
                self.publish(next);
            }
        }
        self.tell_of_window(now.system);
    }

    fn tell_of_window(&mut self, now: u64) {
        let window = self.ledger.opening(&self.policy).at(now);
        let open = window.reason().is_none();
        if window == Window::NotBegun {
            return;
        }
        match (self.time.seen.replace(open), window) {
            (Some(before), _) if before == open => {}
            (_, Window::ClockBehind { .. }) => {
                if let Some(reason) = window.reason() {
                    tracing::warn!("{reason}. New providers wait for `ollana trust`");
                }
            }
            (Some(_), Window::Closed { .. }) => {
                tracing::info!("the first-use window is closed: new providers wait for `ollana trust` from now on");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 60 * 60;
    const DAY: u64 = 24 * HOUR;
    const OPENED: u64 = 1_700_000_000;

    fn at(now: u64, spent: u64) -> Window {
        Opening { opened: Some(OPENED), spent, span: DAY }.at(now)
    }

    #[test]
    fn the_window_ends_with_either_count() {
        assert_eq!(Opening::default().at(OPENED), Window::NotBegun);
        assert_eq!(at(OPENED + HOUR, RECORD_EVERY), Window::Open { left_s: 23 * HOUR });
        assert_eq!(at(OPENED + DAY + HOUR, RECORD_EVERY), Window::Closed { for_s: HOUR });
        assert_eq!(at(OPENED + HOUR, RECORD_EVERY + DAY - 1), Window::Open { left_s: 1 });
        assert!(matches!(at(OPENED + HOUR, RECORD_EVERY + DAY), Window::Closed { .. }));
    }

    #[test]
    fn a_clock_before_the_opening_closes_the_window_and_says_so() {
        assert_eq!(at(OPENED - JUMP + 1, RECORD_EVERY), Window::Open { left_s: DAY });
        assert_eq!(at(OPENED - 14 * DAY, RECORD_EVERY), Window::ClockBehind { by_s: 14 * DAY });
        assert!(at(OPENED - 14 * DAY, RECORD_EVERY).reason().unwrap().contains("14 d before"));
        assert_eq!(at(OPENED - 14 * DAY, RECORD_EVERY + DAY), Window::Closed { for_s: 0 });
    }

    #[test]
    fn a_clock_that_was_set_is_told_from_one_that_drifts() {
        let clocks = |system, steady| Clocks { system, steady: Duration::from_secs(steady) };
        let from = clocks(OPENED, 100);
        assert_eq!(from.jump_to(&clocks(OPENED + HOUR + 30, 100 + HOUR)), 0);
        assert_eq!(from.jump_to(&clocks(OPENED + 14 * DAY + 10, 110)), (14 * DAY).cast_signed());
        assert_eq!(from.jump_to(&clocks(OPENED - DAY + 10, 110)), -DAY.cast_signed());
    }

    #[tokio::test]
    async fn running_time_closes_the_window_whatever_the_clock_is_set_to() {
        use std::sync::Arc;
        use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

        use crate::id::{Id, NodeName, Use};
        use crate::trust::{Book, Direction, Met, TrustPolicy};

        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("trust.toml");
        let (system, steady) = (Arc::new(AtomicU64::new(OPENED)), Arc::new(AtomicU64::new(1000)));
        let run = async || {
            let book = Book::open(&path, TrustPolicy::default()).unwrap();
            let mut writer = book.writer.lock().await;
            let (at, ran) = (system.clone(), steady.clone());
            writer.clocks =
                Box::new(move || Clocks { system: at.load(Relaxed), steady: Duration::from_secs(ran.load(Relaxed)) });
            writer.time = Watch::new((writer.clocks)());
            drop(writer);
            book
        };
        let mut keys = 0u32;
        let mut meets = async |book: &Book| {
            keys += 1;
            let id = Id::of_spki(&keys.to_be_bytes());
            let name = NodeName::lossy(&format!("n{keys}"));
            let direction = Direction::Outbound { provider: true };
            book.meet(Met { id, name, address: None, direction }).await.unwrap().standing.use_
        };
        // Each day somebody sets the clock back to the opening and starts the node anew: eight hours a run.
        let mut runs = 0;
        loop {
            system.store(OPENED, Relaxed);
            let book = run().await;
            if meets(&book).await == Use::Pending {
                break;
            }
            for _ in 0..8 * 60 {
                system.fetch_add(60, Relaxed);
                steady.fetch_add(60, Relaxed);
                book.writer.lock().await.keep_time();
            }
            runs += 1;
            assert!(runs < 10, "it stays open for ever");
        }
        assert_eq!(runs, 3);
        // The same by many starts, each of which spends a step.
        std::fs::remove_file(&path).unwrap();
        let mut starts = 0;
        loop {
            system.store(OPENED, Relaxed);
            let book = run().await;
            if meets(&book).await == Use::Pending {
                break;
            }
            book.writer.lock().await.keep_time();
            starts += 1;
            assert!(starts < 1000, "it stays open for ever");
        }
        assert!((280..300).contains(&starts), "{starts}");
    }
}
