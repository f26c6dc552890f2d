//! Estimates from samples of which some are wrong.
//!
//! **Decode** is a median in which newer samples weigh more: a single answer that ran while the machine did something else
//! moves it little. A median of the last dozen notices a server that became four times slower only after half a dozen
//! samples, so it is also watched for a jump: samples that agree with each other, one after the other, and are all far off
//! on the same side say that the server is another one than before, and what was known is forgotten.
//!
//! Whoever is taken for slow is given nothing more to show that it is not. So what was known before a jump downwards is kept,
//! and holds again once the server has had rest.
//!
//! **Prefill** is measured as the tokens of the prompt through the time to evaluate it, and Ollama counts those that were in
//! its cache while the time does not have them (`numPromptInputs` is the whole prompt, and the time begins with what
//! `LoadCacheSlot` has left; in the recorded answers the same ten tokens take 170 ms and then 28). So a conversation that
//! goes on looks ten times as fast as it is, while no sample looks much slower than the truth: the truth is at the low end
//! of the samples, at the twentieth part of their weight. They are weighted by their time, since an uncached prompt takes
//! longest, up to the usual time, or a single one that took for ever would be all there is.

use std::collections::VecDeque;

/// Samples of either kind that are kept.
const KEPT: usize = 48;
/// After so many samples one of decode weighs half.
const DECODE_HALF_LIFE: f64 = 8.0;
/// The same of prefill: the rare uncached prompt must outlive the continuations.
const PREFILL_HALF_LIFE: f64 = 24.0;
/// Where in the samples of prefill the truth is.
const PREFILL_QUANTILE: f64 = 0.05;
/// A sample that is so far from what is known may be a jump. Above what the model of batches is wrong by: four streams on
/// a strong GPU go nearly as fast as one, which reads as 1.5 times the speed.
const FAR: f64 = 1.6;
/// A jump is believed at so much evidence: two samples one after the other with no doubt about either.
const BELIEVED: f64 = 2.0;

/// Tokens a second that are generated.
#[derive(Debug, Default)]
pub(super) struct Decode {
    samples: VecDeque<Sample>,
    known: Option<f64>,
    /// Samples one after the other that are far off on one side.
    far: Vec<Sample>,
    /// What was known before it became slower by a jump, if it has not become as fast again.
    before: Option<f64>,
}

/// Tokens of the prompt a second.
#[derive(Debug, Default)]
pub(super) struct Prefill {
    samples: VecDeque<Sample>,
    known: Option<f64>,
}

/// A mean that follows.
#[derive(Debug, Default)]
pub(super) struct Mean {
    mean: Option<f64>,
    count: u32,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    value: f64,
    weight: f64,
    /// How sure it is, of 1.
    sure: f64,
}

/// The value below which this part of the weight is, the last sample with all of its weight.
fn quantile(samples: &VecDeque<Sample>, part: f64, half_life: f64) -> Option<f64> {
    let fade = 0.5_f64.powf(1.0 / half_life);
    let mut weighted: Vec<(f64, f64)> = Vec::with_capacity(samples.len());
    let mut age = 1.0;
    for sample in samples.iter().rev() {
        weighted.push((sample.value, sample.weight * age));
        age *= fade;
    }
    weighted.sort_by(|one, other| one.0.total_cmp(&other.0));
    let wanted = part * weighted.iter().map(|(_, weight)| weight).sum::<f64>();
    let mut below = 0.0;
    weighted.iter().find_map(|(value, weight)| {
        below += weight;
        (below >= wanted).then_some(*value)
    })
}

/// The samples with none weighing more than the one in the middle.
fn capped(samples: &VecDeque<Sample>) -> VecDeque<Sample> {
    let mut weights: Vec<f64> = samples.iter().map(|sample| sample.weight).collect();
    weights.sort_by(f64::total_cmp);
    let most = weights.get(weights.len() / 2).copied().unwrap_or_default();
    samples.iter().map(|sample| Sample { weight: sample.weight.min(most), ..*sample }).collect()
}

fn keep(samples: &mut VecDeque<Sample>, sample: Sample) {
    if samples.len() == KEPT {
        samples.pop_front();
    }
    samples.push_back(sample);
}

// === impl Decode ===

impl Decode {
    /// Takes a sample: tokens a second, the tokens it was measured over, and how sure it is that nothing else slowed it
    /// down, of 1. Whether it shows that the server has become faster by a jump.
    pub(super) fn take(&mut self, value: f64, tokens: f64, sure: f64) -> bool {
        if !(value.is_finite() && value > 0.0 && tokens > 0.0) {
            return false;
        }
        // An answer of a thousand tokens tells more than one of four, but not a hundred times more.
        let sample = Sample { value, weight: tokens.min(256.0).sqrt(), sure };
        let mut faster = false;
        let known = self.known.unwrap_or(value);
        let far = value > known * FAR || value * FAR < known;
        if !(far && self.far.iter().all(|other| (other.value > known) == (value > known))) {
            // They were odd ones, as the median knows them.
            self.far.drain(..).for_each(|odd| keep(&mut self.samples, odd));
        }
        if far {
            self.far.push(sample);
            if self.far.iter().map(|sample| sample.sure).sum::<f64>() < BELIEVED {
                return false;
            }
            self.samples = self.far.drain(..).collect();
            faster = value > known;
            if !faster {
                self.before = Some(self.before.map_or(known, |before| before.max(known)));
            }
        } else {
            keep(&mut self.samples, sample);
        }
        self.known = quantile(&self.samples, 0.5, DECODE_HALF_LIFE);
        if self.known.zip(self.before).is_some_and(|(known, before)| known * FAR >= before) {
            self.before = None;
        }
        faster
    }

    /// It has had rest: what made it slow may be over. How many times faster it is taken to be, if it is.
    pub(super) fn rested(&mut self) -> Option<f64> {
        let (before, known) = (self.before.take()?, self.known?);
        self.samples.clear();
        self.far.clear();
        self.known = Some(before);
        Some(before / known)
    }

    pub(super) fn known(&self) -> Option<f64> {
        self.known
    }
}

// === impl Prefill ===

impl Prefill {
    /// Takes a sample: tokens a second over so many seconds.
    pub(super) fn take(&mut self, value: f64, seconds: f64) {
        if value.is_finite() && value > 0.0 && seconds > 0.0 {
            keep(&mut self.samples, Sample { value, weight: seconds, sure: 1.0 });
            self.known = quantile(&capped(&self.samples), PREFILL_QUANTILE, PREFILL_HALF_LIFE);
        }
    }

    /// The server has become faster, which the slow samples would hide for long: the next ones alone will tell. That it has
    /// become slower they tell at once.
    pub(super) fn forget(&mut self) {
        self.samples.clear();
    }

    /// It is taken to be so many times faster, until something is measured.
    pub(super) fn faster(&mut self, times: f64) {
        self.known = self.known.map(|known| known * times);
        self.forget();
    }

    pub(super) fn known(&self) -> Option<f64> {
        self.known
    }
}

// === impl Mean ===

impl Mean {
    /// Takes a sample; from then on as many as `slowest` make up the mean at most.
    pub(super) fn take(&mut self, value: f64, slowest: u32) {
        if !(value.is_finite() && value >= 0.0) {
            return;
        }
        self.count = self.count.saturating_add(1).min(slowest);
        let mean = self.mean.unwrap_or(value);
        self.mean = Some(mean + (value - mean) / f64::from(self.count));
    }

    pub(super) fn known(&self) -> Option<f64> {
        self.mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn near(value: Option<f64>, truth: f64, part: f64) -> bool {
        value.is_some_and(|value| (value / truth - 1.0).abs() <= part)
    }

    #[test]
    fn what_became_slow_is_taken_for_what_it_was_after_a_rest_and_is_found_out_again() {
        let mut decode = Decode::default();
        let measures = |decode: &mut Decode, value: f64| {
            for _ in 0..3 {
                let _ = decode.take(value, 100.0, 1.0);
            }
        };
        measures(&mut decode, 40.0);
        assert_eq!(decode.rested(), None, "it never was any faster");
        measures(&mut decode, 10.0);
        measures(&mut decode, 2.0);
        assert!(near(decode.known(), 2.0, 0.01));
        assert_eq!((decode.rested(), decode.known()), (Some(20.0), Some(40.0)));
        assert_eq!(decode.rested(), None, "once");
        measures(&mut decode, 2.0);
        assert!(near(decode.known(), 2.0, 0.01), "it is slow still");
        measures(&mut decode, 39.0);
        assert_eq!(decode.rested(), None, "it is well again by itself");
        let mut prefill = Prefill::default();
        prefill.take(100.0, 1.0);
        prefill.faster(4.0);
        assert_eq!(prefill.known(), Some(400.0));
        prefill.take(90.0, 1.0);
        assert_eq!(prefill.known(), Some(90.0));
    }

    proptest! {
        #[test]
        fn decode_is_found_though_one_sample_in_five_is_wrong(
            truth in 1.0..500.0_f64,
            samples in prop::collection::vec((0.95..1.05_f64, 0..5_u8, 0.3..3.0_f64), 40..80),
        ) {
            let mut decode = Decode::default();
            let mut last_wrong = 9;
            for (noise, odd, wrong) in samples {
                // Two wrong ones after another are a jump.
                let is_wrong = odd == 0 && last_wrong > 3;
                last_wrong = if is_wrong { 0 } else { last_wrong + 1 };
                decode.take(truth * if is_wrong { wrong } else { noise }, 100.0, 1.0);
            }
            prop_assert!(near(decode.known(), truth, 0.06), "{:?} is not {truth}", decode.known());
        }

        #[test]
        fn prefill_is_found_though_most_prompts_are_cached(
            truth in 50.0..5000.0_f64,
            samples in prop::collection::vec((0.95..1.05_f64, 0.0..1.0_f64, 0.05..0.95_f64, 200.0..4000.0_f64), 60..90),
        ) {
            let mut prefill = Prefill::default();
            for (noise, luck, cached, tokens) in samples {
                // Three in four go on with a conversation.
                let evaluated = if luck < 0.75 { tokens * (1.0 - cached) } else { tokens };
                let seconds = evaluated / (truth * noise);
                prefill.take(tokens / seconds, seconds);
            }
            prop_assert!(near(prefill.known(), truth, 0.25), "{:?} is not {truth}", prefill.known());
        }
    }

    #[test]
    fn a_jump_is_believed_at_the_second_sample_and_a_single_one_is_not() {
        let mut decode = Decode::default();
        (0..30).for_each(|_| _ = decode.take(40.0, 100.0, 1.0));
        decode.take(10.0, 30.0, 1.0);
        assert!(near(decode.known(), 40.0, 0.01));
        decode.take(10.0, 30.0, 1.0);
        assert!(near(decode.known(), 10.0, 0.01));
        (0..2).for_each(|_| _ = decode.take(40.0, 100.0, 1.0));
        assert!(near(decode.known(), 40.0, 0.01), "and back");
        (0..3).for_each(|_| _ = decode.take(10.0, 30.0, 0.5));
        assert!(near(decode.known(), 40.0, 0.01), "half sure, half the evidence");
        decode.take(10.0, 30.0, 0.5);
        assert!(near(decode.known(), 10.0, 0.01));
        assert!(!decode.take(90.0, 30.0, 1.0) && decode.take(90.0, 30.0, 1.0), "faster");
    }

    #[test]
    fn one_prompt_that_took_for_ever_is_not_all_there_is() {
        let mut prefill = Prefill::default();
        (0..40).for_each(|_| prefill.take(1000.0, 0.5));
        prefill.take(10.0, 50.0);
        assert!(near(prefill.known(), 1000.0, 0.01), "{:?}", prefill.known());
        (0..2).for_each(|_| prefill.take(250.0, 2.0));
        assert!(near(prefill.known(), 250.0, 0.01), "{:?}", prefill.known());
        prefill.forget();
        assert!(near(prefill.known(), 250.0, 0.01), "until the next one");
        prefill.take(1000.0, 0.5);
        assert!(near(prefill.known(), 1000.0, 0.01), "{:?}", prefill.known());
    }

    #[test]
    fn nonsense_is_no_sample() {
        let mut decode = Decode::default();
        let mut prefill = Prefill::default();
        for value in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            decode.take(value, 10.0, 1.0);
            prefill.take(value, 1.0);
        }
        assert_eq!((decode.known(), prefill.known()), (None, None));
    }

    #[test]
    fn a_mean_follows() {
        let mut mean = Mean::default();
        [2.0, 4.0].into_iter().for_each(|value| mean.take(value, 10));
        assert_eq!(mean.known(), Some(3.0));
        (0..100).for_each(|_| mean.take(8.0, 10));
        assert!(near(mean.known(), 8.0, 0.01));
    }
}
