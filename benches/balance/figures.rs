//! What came of a run, in figures.

use super::workload::Span;

/// What became of one request, in simulated seconds.
#[derive(Debug, Clone, Copy)]
pub struct Outcome {
    pub issued: f64,
    /// When the first byte of its answer came.
    pub first: Option<f64>,
    /// When the last one came. A request without either was refused or failed.
    pub done: Option<f64>,
}

/// All that counts of a run.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Seconds to the first token, sorted.
    pub first: Vec<f64>,
    /// Seconds to the last token, sorted.
    pub whole: Vec<f64>,
    /// Requests that were refused or broke off, at any time.
    pub failed: usize,
    /// Loads of a model, an hour of what counts.
    pub loads: f64,
    /// Answers a second of what counts.
    pub throughput: f64,
    /// Share of the prompts' tokens that were in a cache.
    pub hits: f64,
}

/// Which of the two times of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Time {
    First,
    Whole,
}

// === impl Run ===

impl Run {
    pub fn new(span: Span, outcomes: Vec<Outcome>, loads: Vec<f64>, hits: f64) -> Self {
        let counted = || outcomes.iter().filter(|outcome| span.counts(outcome.issued));
        let sorted = |time: fn(&Outcome) -> Option<f64>| {
            let mut times: Vec<f64> = counted().filter_map(|o| Some(time(o)? - o.issued)).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        let seconds = span.end - span.warm_up;
        let done = outcomes.iter().filter_map(|outcome| outcome.done).filter(|done| span.counts(*done)).count();
        Self {
            first: sorted(|outcome| outcome.first),
            whole: sorted(|outcome| outcome.done),
            failed: outcomes.iter().filter(|outcome| outcome.done.is_none()).count(),
            loads: loads.iter().filter(|at| span.counts(**at)).count() as f64 / seconds * 3600.0,
            throughput: done as f64 / seconds,
            hits,
        }
    }

    pub fn quantile(&self, time: Time, quantile: f64) -> f64 {
        self::quantile(if time == Time::First { &self.first } else { &self.whole }, quantile)
    }
}

/// Of sorted values: the one at that place, without interpolation.
pub fn quantile(sorted: &[f64], quantile: f64) -> f64 {
    let at = (sorted.len() as f64 * quantile) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (mut sum, mut count) = (0.0, 0.0);
    for value in values {
        sum += value;
        count += 1.0;
    }
    sum / count
}
