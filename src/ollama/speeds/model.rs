//! What is known of one model, and what an answer that is over adds to it.

use std::time::{Duration, Instant};

use super::Work;
use super::active::{Active, FEWEST_FRAMES, Loading, Moment};
use super::estimate::{Decode, Mean, Prefill};
use super::meter::Reading;
use super::said::Said;
use crate::exchange::Pace;
use crate::ollama::slots;

/// A warm model takes Ollama some 30 ms to find (recorded: 16 to 39); what takes longer may have been a load.
const LOADED: f64 = 0.05;
/// Fewer tokens say nothing of a speed: what surrounds them takes as long.
const FEWEST_TOKENS: f64 = 8.0;
const FEWEST_OF_PROMPT: f64 = 32.0;
/// The same where only the first byte is known: before it comes much that is no evaluation.
const FEWEST_OF_ROUGH_PROMPT: f64 = 256.0;
/// Samples that make up the means at most.
const MEAN_OF: u32 = 20;
const MEAN_OF_LOADS: u32 = 4;

/// What is known of one model.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) used: u64,
    /// When one of its requests ended last.
    pub(super) ended: Option<Instant>,
    pub(super) decode: Decode,
    pub(super) prefill: Prefill,
    /// Whether a time to evaluate a prompt was ever said: then times of first bytes are not mixed in.
    pub(super) exact: bool,
    pub(super) load: Mean,
    pub(super) prompt: Mean,
    pub(super) output: Mean,
    pub(super) tokens_a_frame: Mean,
    pub(super) slots: slots::Learner,
}

// === impl Model ===

impl Model {
    pub(super) fn new(used: u64, told: Option<u32>, margin: Duration) -> Self {
        let mut slots = slots::Learner::new(margin);
        slots.told(told);
        Self {
            used,
            ended: None,
            decode: Decode::default(),
            prefill: Prefill::default(),
            exact: false,
            load: Mean::default(),
            prompt: Mean::default(),
            output: Mean::default(),
            tokens_a_frame: Mean::default(),
            slots,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "seven digits are plenty")]
    pub(super) fn pace(&self) -> Pace {
        let rounded = |value: Option<f64>| value.map(|value| value as f32);
        let pace = Pace {
            slots: self.slots.known(),
            prefill: rounded(self.prefill.known()),
            decode: rounded(self.decode.known()),
            load: rounded(self.load.known()),
            prompt: rounded(self.prompt.known()),
            output: rounded(self.output.known()),
        };
        pace.plausible()
    }

    /// Takes what an answer that is over tells.
    pub(super) fn learn(&mut self, run: &Active, said: Said, whole: bool, end: Moment, reading: Reading) {
        let (elapsed, elapsed_alone) = end.since(run.began);
        let all = match run.load {
            Loading::None => part(elapsed_alone, elapsed),
            Loading::Awaited => 1.0,
            Loading::Over(part) => part,
        };
        if run.cold {
            let load = if said.only_loads && whole { Some(elapsed) } else { said.load };
            if let Some(load) = load.filter(|load| *load >= LOADED) {
                self.load.take(load, MEAN_OF_LOADS);
                self.slots.reloaded();
            }
        }
        let streamed = run.first.filter(|_| reading.frames >= FEWEST_FRAMES);
        let until_first = streamed.map(|first| first.since(run.began));
        let frames = f64::from(reading.frames.saturating_sub(1));
        let enough = |tokens: &f64| *tokens >= FEWEST_TOKENS;
        if let (Some(output), Some(_)) = (said.output.filter(enough), streamed.filter(|_| whole)) {
            self.tokens_a_frame.take(output / frames, MEAN_OF);
        }
        let counted = streamed.map(|_| frames * self.tokens_a_frame.known().unwrap_or(1.0));
        if let Some(output) = said.output.or(counted).filter(|_| whole && run.work == Work::Generate) {
            self.output.take(output, MEAN_OF);
        }
        let since_first = streamed.map(|first| end.since(first));
        let (time, sure) = match said.output_time {
            Some(time) => (Some(time), true),
            // Nobody said how long it took: as long as its frames came.
            None => (since_first.map(|(time, _)| time), false),
        };
        let slowed = since_first.map_or(all, |(time, alone)| part(alone, time));
        let read = reading.unread.as_secs_f64() <= elapsed * if sure { 0.5 } else { 0.1 };
        if let (Some(output), Some(time), true, true) =
            (said.output.or(counted).filter(enough), time, read, whole || sure)
        {
            // The first token belongs to the prompt: the time is that between them (`startGenerationTime` is set with it).
            self.decodes((output - 1.0) / time / slowed, output, 1.0);
        }
        // After it: a jump forgets the prompts before this one.
        self.learn_prompt(run, said, all, elapsed, until_first);
    }

    /// Nothing of it has run for a while.
    pub(super) fn rested(&mut self) {
        if let Some(times) = self.decode.rested() {
            self.prefill.faster(times);
        }
    }

    pub(super) fn decodes(&mut self, rate: f64, tokens: f64, sure: f64) {
        if self.decode.take(rate, tokens, sure) {
            self.prefill.forget();
        }
    }

    pub(super) fn learn_prompt(
        &mut self,
        run: &Active,
        said: Said,
        all: f64,
        elapsed: f64,
        until_first: Option<(f64, f64)>,
    ) {
        let Some(prompt) = said.prompt else { return };
        let slowed = match until_first {
            Some((time, alone)) if run.load == Loading::None => part(alone, time),
            _ => all,
        };
        let time = match (said.prompt_time, run.work, said.total) {
            (Some(time), _, _) => Some(time),
            // All of an embedding is evaluation.
            (None, Work::Embed, Some(total)) => Some(total - said.load.unwrap_or(0.0)),
            (None, Work::Generate, Some(_)) => None,
            (None, Work::Embed, None) => Some(elapsed).filter(|_| !run.cold),
            (None, Work::Generate, None) => until_first.map(|(time, _)| time).filter(|_| !run.cold),
        };
        let exact = said.prompt_time.is_some() || said.total.is_some();
        if let Some(time) = time {
            let fewest = if exact { FEWEST_OF_PROMPT } else { FEWEST_OF_ROUGH_PROMPT };
            if exact && !self.exact && prompt >= fewest {
                self.exact = true;
                self.prefill = Prefill::default();
            }
            if prompt >= fewest && (exact || !self.exact) {
                self.prefill.take(prompt / time / slowed, time * slowed);
            }
        }
        // What was in the cache took no time.
        let evaluated = match (time, self.prefill.known()) {
            (Some(time), Some(speed)) => prompt.min(speed * time * slowed),
            _ => prompt,
        };
        self.prompt.take(evaluated, MEAN_OF);
    }
}

/// How much of the server it had, of all of it. Never so little that a slip would make it fast beyond measure.
fn part(alone: f64, elapsed: f64) -> f64 {
    if elapsed > 0.0 { (alone / elapsed).clamp(0.01, 1.0) } else { 1.0 }
}
