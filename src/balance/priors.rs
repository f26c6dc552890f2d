//! What is assumed of a server where nothing was measured, and the inputs of a score made from what it reports.
//!
//! Work grows with the bytes of a model: generating a token reads all of them. So a model that has not run on a server yet
//! is taken to be as fast as what has, times the ratio of sizes. Where nothing has run, the server is taken to be like the
//! others that have run the model, the middle one: better would draw everything to whom nobody knows, worse nothing ever.
//! How long prompts and answers are depends on those who ask and not on the server, so one server's word on it counts for
//! no more than any other's: the middle of all again.

use std::collections::BTreeMap;

use super::score::{Eviction, Request, Server, batch};
use crate::exchange::{Load, ModelInfo, ModelLoad, Residence};

/// A model that needs so many bytes is what the speeds below belong to.
const USUAL_SIZE: f64 = 5e9;
/// Tokens a second, and a byte, of a middling server (in `benches/balance` 500 and 25 at speed 1; 2 is the middle).
const PREFILL: f64 = 1000.0 * USUAL_SIZE;
const DECODE: f64 = 50.0 * USUAL_SIZE;
/// Seconds a load takes beside reading: a process starts, memory is set up.
const LOAD_START: f64 = 1.5;
/// Bytes a second from disk into memory: a SATA disk does half, an NVMe disk twice of it.
const BANDWIDTH: f64 = 1e9;
/// Ollama's own default: one request a model at a time.
const SLOTS: u32 = 1;
/// Tokens of a prompt that are in no cache, and of an answer: what the simulation was tuned with.
const PROMPT: f64 = 420.0;
const OUTPUT: f64 = 262.0;
/// Bytes of the smallest model (a toy of 260,000 parameters has some more) and of any that a machine could hold. A list that says
/// anything else does not know, as one that says 0.
const SIZES: std::ops::RangeInclusive<u64> = 1_000_000..=2_000_000_000_000;
/// Work on a model that has fewer bytes is work around it, and no less than with so many.
const LEAST_SIZE: f64 = 1e7;
/// Nobody waits longer for a model to be idle, or would miss a victim more, in seconds.
const LONGEST_DRAIN: f64 = 600.0;
const LONGEST_RELOAD: f64 = 60.0;
/// Models in memory that are looked at: more than any machine holds, fewer than a liar could name.
const MODELS: usize = 64;

/// What is known of a server as a whole from the models that ran there. Worth keeping beside its report.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Machine {
    /// Tokens a second, times bytes.
    prefill: Option<f64>,
    decode: Option<f64>,
    /// Bytes of a model, and seconds that it takes to load: the middle one of those that were loaded.
    load: Option<(f64, f64)>,
}

/// How fast one model is on one server, nothing left open.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Assumed {
    /// Requests at a time.
    pub(crate) slots: u32,
    /// Prompt tokens a second.
    pub(crate) prefill: f64,
    /// Tokens a second that are generated.
    pub(crate) decode: f64,
    /// Seconds to load it.
    pub(crate) load_time: f64,
}

/// What requests for a model are like, whoever serves them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Usual {
    /// Tokens of a prompt that are in no cache.
    pub(crate) prompt: f64,
    /// Tokens of an answer.
    pub(crate) output: f64,
}

// === impl Machine ===

impl Machine {
    /// What its models say of it.
    pub(crate) fn of<'a>(models: impl IntoIterator<Item = &'a ModelInfo> + Clone) -> Self {
        let middle = |measure: fn(&ModelInfo) -> Option<f64>| median(models.clone().into_iter().filter_map(measure));
        Self {
            prefill: middle(|model| Some(f64::from(model.pace.plausible().prefill?) * size(model)?)),
            decode: middle(|model| Some(f64::from(model.pace.plausible().decode?) * size(model)?)),
            load: {
                let load = |model: &ModelInfo| Some((size(model)?, f64::from(model.pace.plausible().load?)));
                let mut loads: Vec<_> = models.into_iter().filter_map(load).collect();
                loads.sort_by(|(bytes, seconds), (others, its)| (bytes * its).total_cmp(&(others * seconds)));
                loads.get(loads.len() / 2).copied()
            },
        }
    }

    /// How fast a model is there; `elsewhere` is what other servers say of the same model. `tempo` is how many times faster
    /// than real ones the servers are ([`Preferences::tempo`](super::Preferences::tempo)).
    pub(crate) fn assume<'a>(
        &self,
        tempo: f64,
        model: &ModelInfo,
        elsewhere: impl IntoIterator<Item = &'a ModelInfo> + Clone,
    ) -> Assumed {
        let pace = model.pace.plausible();
        let bytes =
            size(model).or_else(|| median(elsewhere.clone().into_iter().filter_map(size))).unwrap_or(USUAL_SIZE);
        let others = |measure: fn(&ModelInfo) -> Option<f32>| {
            median(elsewhere.clone().into_iter().filter_map(measure).map(f64::from))
        };
        let prefill = pace.prefill.map(f64::from).or(self.prefill.map(|scale| scale / bytes));
        let decode = pace.decode.map(f64::from).or(self.decode.map(|scale| scale / bytes));
        Assumed {
            slots: pace.slots.unwrap_or(SLOTS),
            prefill: prefill
                .or_else(|| others(|model| model.pace.plausible().prefill))
                .unwrap_or(tempo * PREFILL / bytes),
            decode: decode.or_else(|| others(|model| model.pace.plausible().decode)).unwrap_or(tempo * DECODE / bytes),
            load_time: pace.load.map_or_else(|| self.load_time(tempo, bytes), f64::from),
        }
    }

    fn load_time(&self, tempo: f64, bytes: f64) -> f64 {
        let start = LOAD_START / tempo;
        // A load from the page cache takes hardly more than the start.
        let bandwidth = self.load.map(|(bytes, seconds)| bytes / (seconds - start).max(0.1 / tempo));
        start + bytes / bandwidth.unwrap_or(tempo * BANDWIDTH)
    }
}

// === impl Usual ===

impl Usual {
    /// The middle of what all servers that have the model say.
    pub(crate) fn of<'a>(everywhere: impl IntoIterator<Item = &'a ModelInfo> + Clone) -> Self {
        let middle = |measure: fn(&ModelInfo) -> Option<f32>| {
            median(everywhere.clone().into_iter().filter_map(measure).map(f64::from))
        };
        Self {
            prompt: middle(|model| model.pace.plausible().prompt).unwrap_or(PROMPT),
            output: middle(|model| model.pace.plausible().output).unwrap_or(OUTPUT),
        }
    }

    /// A request with so many tokens of which so many are cached, and an answer as usual.
    pub(crate) fn request(&self, prompt: f64, cached: f64) -> Request {
        Request { prompt, cached, output: self.output, usual_prompt: self.prompt, usual_output: self.output }
    }
}

// === impl Server ===

impl Server {
    /// What a server says of itself, made ready for a score; what this node knows beside is still as if it were nothing.
    ///
    /// `model` is the name that the server lists it under, `models` its whole list, and `assumed` how fast the model is
    /// taken to be there.
    pub(crate) fn of(
        model: &str,
        load: &Load,
        models: &BTreeMap<String, ModelInfo>,
        machine: &Machine,
        assumed: Assumed,
        usual: Usual,
        tempo: f64,
    ) -> Self {
        let here = load.of(model);
        let nothing = ModelInfo::default();
        let others: Vec<Other> = load
            .models
            .iter()
            .filter(|(name, _)| *name != model)
            .take(MODELS)
            .map(|(name, load)| Other {
                load,
                assumed: machine.assume(tempo, models.get(name).unwrap_or(&nothing), []),
            })
            .collect();
        let in_memory = || others.iter().filter(|other| other.load.residence == Residence::Memory);
        let busy_others =
            f64::from(u32::try_from(in_memory().filter(|other| other.is_busy()).count()).unwrap_or(u32::MAX));
        Self {
            residence: here.residence,
            running: here.running.into(),
            queued: here.queued.into(),
            unreported: 0.0,
            own: 0.0,
            ahead: None,
            direct: load.direct.into(),
            slots: assumed.slots.into(),
            prefill: assumed.prefill,
            decode: assumed.decode,
            load_time: assumed.load_time,
            only: in_memory().next().is_none(),
            busy_others,
            others_running: in_memory().map(|other| f64::from(other.load.running.min(other.assumed.slots))).sum(),
            // Ollama loads one model at a time, in the order they were asked for.
            loads_before: others
                .iter()
                .map(|other| match other.load.residence {
                    Residence::Loading => 0.5 * other.assumed.load_time,
                    Residence::Disk if other.is_busy() => other.assumed.load_time,
                    Residence::Disk | Residence::Memory | Residence::Unknown => 0.0,
                })
                .sum(),
            eviction: eviction(load, &others, assumed, usual, 1.0 / (1.0 + busy_others)),
            slowness: 1.0,
            caution: 1.0,
            newcomer: 1.0,
            preference: 1.0,
        }
    }
}

/// Another model on the same server.
struct Other<'a> {
    load: &'a ModelLoad,
    assumed: Assumed,
}

impl Other<'_> {
    fn requests(&self) -> f64 {
        let queued = f64::from(self.load.queued);
        f64::from(self.load.running) + if queued.is_finite() { queued.max(0.0) } else { LONGEST_DRAIN }
    }

    fn is_busy(&self) -> bool {
        self.requests() > 0.0
    }
}

/// What has to go before one more model fits, if something has to.
fn eviction(load: &Load, others: &[Other<'_>], assumed: Assumed, usual: Usual, share: f64) -> Option<Eviction> {
    let most = usize::try_from(load.most_loaded?).unwrap_or(usize::MAX);
    if others.iter().filter(|other| other.load.residence != Residence::Disk).count() < most {
        return None;
    }
    // Where all are still on their way, the first of them goes once it is there and has done its work.
    let of = |residence| others.iter().filter(move |other| other.load.residence == residence);
    let from = if of(Residence::Memory).next().is_some() { Residence::Memory } else { Residence::Loading };
    let work = |at: Assumed| usual.prompt / at.prefill + usual.output / at.decode;
    // What runs at the gate's back is in one of them, and keeps it there.
    let idle = of(Residence::Memory).filter(|other| !other.is_busy()).count() > usize::from(load.direct > 0);
    let drain = || {
        let one = |other: &Other<'_>| {
            let slots = f64::from(other.assumed.slots);
            other.requests() * work(other.assumed) / (slots * batch(slots) * share)
        };
        of(from).map(one).reduce(f64::min).unwrap_or(0.0).min(LONGEST_DRAIN).max(work(assumed))
    };
    let victim = of(from).map(|other| other.assumed.load_time).reduce(f64::min)?.min(LONGEST_RELOAD);
    Some(Eviction { drain: if idle { 0.0 } else { drain() }, victim })
}

/// The bytes of a model, if they are known.
fn size(model: &ModelInfo) -> Option<f64> {
    // To 53 bits, which is more than any use of it needs.
    let bytes = f64::from(u32::try_from(model.size >> 20).unwrap_or(u32::MAX)) * 1_048_576.0;
    SIZES.contains(&model.size).then(|| bytes.max(LEAST_SIZE))
}

/// The middle of some numbers, the lower of two.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
#[path = "priors_tests.rs"]
mod tests;
