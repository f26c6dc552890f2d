//! A request under way, and what its passing tells.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Work;
use super::meter::{Meter, Reading};
use super::said::Said;
use crate::ollama::slots;

/// Frames of an answer between two looks at it that are enough to tell its speed.
pub(super) const FEWEST_FRAMES: u32 = 4;

/// A request under way.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) model: Arc<str>,
    pub(super) work: Work,
    pub(super) meter: Arc<Meter>,
    /// Whether it is the one that loads the model, as far as it is known.
    pub(super) cold: bool,
    /// Whether it waits for that, or did.
    pub(super) load: Loading,
    pub(super) began: Moment,
    pub(super) first: Option<Moment>,
    pub(super) mark: Option<Mark>,
}

/// What a request has to do with a load of its model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Loading {
    /// Nothing.
    None,
    /// It waits for it, and slows nobody down.
    Awaited,
    /// It has waited for it, and had this part of the server when its answer began.
    Over(f64),
}

/// A time, in seconds that it would have been with the server alone too.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    pub(super) at: Instant,
    pub(super) alone: f64,
}

/// How far a running answer was at the last look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) frames: u32,
    pub(super) last: Moment,
    pub(super) unread: Duration,
}

// === impl Active ===

impl Active {
    /// The frames since the last look and the seconds alone that they took, if they tell how fast it is.
    pub(super) fn passed(&mut self, last: Moment, reading: Reading, beat: Duration) -> Option<(f64, f64)> {
        let new = Mark { frames: reading.frames, last, unread: reading.unread };
        let Some(mark) = self.mark else {
            self.meter.silence();
            self.mark = Some(new);
            return None;
        };
        let (span, alone) = last.since(mark.last);
        let frames = reading.frames.saturating_sub(mark.frames);
        if frames < FEWEST_FRAMES || span < 0.5 * beat.as_secs_f64() {
            return None;
        }
        let unread = reading.unread.saturating_sub(mark.unread).as_secs_f64();
        let silence = self.meter.silence().as_secs_f64();
        self.mark = Some(new);
        (unread < 0.1 * span && silence <= 0.5 * span && alone > 0.0).then_some((f64::from(frames), alone))
    }

    /// When it was worked on.
    pub(super) fn ended(&self, said: Said, whole: bool, reading: Reading, margin: Duration) -> slots::Ended {
        let read = reading.late < margin;
        let work = said.prompt_time.unwrap_or(0.0) + said.output_time.unwrap_or(0.0);
        match (self.work, said.total) {
            (Work::Generate, Some(total)) if read && work > 0.0 => {
                let waited = total - said.load.unwrap_or(0.0) - work;
                slots::Ended::Exact { work: duration(work), waited: duration(waited), total: duration(total) }
            }
            (Work::Generate, None) if read && whole && reading.frames >= FEWEST_FRAMES => slots::Ended::Streamed,
            _ => slots::Ended::Unknown,
        }
    }
}

// === impl Moment ===

impl Moment {
    /// Seconds since then, and how many it would have been alone.
    pub(super) fn since(self, earlier: Self) -> (f64, f64) {
        (self.at.saturating_duration_since(earlier.at).as_secs_f64(), (self.alone - earlier.alone).max(0.0))
    }
}

fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or_default()
}
