//! How busy a provider is, as it tells its peers: what the balancer's score is made of.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::Report;

/// How busy a provider is at one moment. Small (some hundred bytes), since it is pushed on every change, coalesced, and
/// with a heartbeat; what changes seldom stands in the [`Report`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Exchanges and tickets of the reader of this, counted from the beginning of its connection, that the numbers below
    /// know of already. What the reader has sent beyond that it adds by itself.
    pub counted: u64,
    /// Requests at its gate that are not over, everyone's; those that wait for a slot included.
    pub inflight: u32,
    /// Requests that its Ollama seems to work on and that did not come by the gate: its owner's own, sent straight there.
    pub direct: u32,
    /// How many models fit into its memory, if it was found out.
    pub most_loaded: Option<u32>,
    /// The models that are in memory, are loaded or are waited for, by the name the [`Report`] lists.
    pub models: BTreeMap<String, ModelLoad>,
}

/// How busy one model of a provider is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelLoad {
    /// Where the model is.
    pub residence: Residence,
    /// Requests that run.
    pub running: u32,
    /// Requests that wait, a ticket that has a twin elsewhere counted as one half.
    pub queued: f32,
    /// Requests that were let in since the gate is there. What an earlier one left in the runner's cache may have made room
    /// for those after it.
    pub begun: u32,
    /// Seconds that requests have waited for a slot in all since the gate is there, a ticket with a twin counted as one half. As
    /// of the last time that one came or went.
    pub waited: f64,
}

/// Whether a model is in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Residence {
    /// In memory.
    Memory,
    /// On its way into memory.
    Loading,
    /// Its server does not say: neither is taken for granted.
    Unknown,
    /// On disk only. Also what a later version may say that this one does not know.
    #[default]
    #[serde(other)]
    Disk,
}

/// What was measured of one model on one server, from Ollama's own answers where they say it. Nothing is known of a model
/// that has not run there.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Pace {
    /// Requests that its runner works on at a time.
    pub slots: Option<u32>,
    /// Prompt tokens a second that are evaluated, of one request alone.
    pub prefill: Option<f32>,
    /// Tokens a second that are generated, of one request alone.
    pub decode: Option<f32>,
    /// Seconds that it takes to load.
    pub load: Option<f32>,
    /// Tokens of a prompt that were not in the cache, on average.
    pub prompt: Option<f32>,
    /// Tokens of an answer, on average.
    pub output: Option<f32>,
}

/// What a node holds against a server for one of its models, beside what the server says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Caveat {
    /// How many times slower it turned out to be than it says.
    pub slowness: f32,
    /// What its scores are multiplied by for the moment, since it failed or has just come.
    pub caution: f32,
    /// Seconds for which nothing new goes there, since it failed or was full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_alone_s: Option<f32>,
}

/// All that is known of one model on one server, for people and programs that look.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Numbers {
    /// How busy it is.
    #[serde(flatten)]
    pub load: ModelLoad,
    /// How fast it is.
    #[serde(flatten)]
    pub pace: Pace,
    /// What this node holds against it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caveat: Option<Caveat>,
}

// === impl Caveat ===

impl Caveat {
    /// Less than this nobody would see.
    const SEEN: f32 = 1.05;

    /// Whether there is nothing to say.
    pub fn is_nothing(&self) -> bool {
        self.slowness < Self::SEEN && self.caution < Self::SEEN && self.left_alone_s.is_none()
    }
}

impl fmt::Display for Caveat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { slowness, caution, left_alone_s } = self;
        let mut separator = "";
        if *slowness >= Self::SEEN {
            write!(f, "{slowness:.1} times slower than it says")?;
            separator = ", ";
        }
        match left_alone_s {
            Some(seconds) => write!(f, "{separator}left alone for {seconds:.1} s"),
            None if *caution >= Self::SEEN => {
                write!(f, "{separator}failed recently or new; deprioritized (×{caution:.1})")
            }
            None => Ok(()),
        }
    }
}

// === impl Numbers ===

impl Numbers {
    /// Of every model of which there is anything to say.
    pub fn of(report: &Report, load: &Load) -> BTreeMap<String, Self> {
        let measured = report.models.iter().filter(|(_, info)| info.pace != Pace::default()).map(|(name, _)| name);
        let names = measured.chain(load.models.keys());
        let pace = |name| report.models.get(name).map(|info| info.pace).unwrap_or_default();
        names.map(|name| (name.clone(), Self { load: load.of(name), pace: pace(name), caveat: None })).collect()
    }
}

impl fmt::Display for Numbers {
    /// A line for people, without what is not known.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { load, pace, caveat } = self;
        f.write_str(match load.residence {
            Residence::Memory => "loaded",
            Residence::Loading => "loading",
            Residence::Unknown => "perhaps loaded",
            Residence::Disk => "on disk",
        })?;
        match pace.slots {
            Some(slots) => write!(f, ", {}/{slots} slots busy", load.running)?,
            None => write!(f, ", {} running", load.running)?,
        }
        if load.queued > 0.0 {
            write!(f, ", {} queued", load.queued)?;
        }
        if let Some(prefill) = pace.prefill {
            write!(f, ", reads {prefill:.0} tokens/s")?;
        }
        if let Some(decode) = pace.decode {
            write!(f, ", writes {decode:.1} tokens/s")?;
        }
        if let Some(load) = pace.load {
            write!(f, ", loads in {load:.1} s")?;
        }
        if let Some(caveat) = caveat {
            write!(f, "; {caveat}")?;
        }
        Ok(())
    }
}

// === impl Load ===

impl Load {
    /// What is said of a model; nothing runs or waits, and it is on disk, if nothing is.
    pub fn of(&self, model: &str) -> ModelLoad {
        self.models.get(model).copied().unwrap_or_default()
    }

    /// The models that are in memory.
    pub fn loaded(&self) -> impl Iterator<Item = &str> {
        self.models.iter().filter(|(_, load)| load.residence == Residence::Memory).map(|(name, _)| name.as_str())
    }
}

// === impl Pace ===

impl Pace {
    /// Whether another is so different that peers should be told: by a tenth.
    pub fn differs(&self, other: &Self) -> bool {
        let apart = |one: Option<f32>, other: Option<f32>| match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() > 0.1 * one.abs().max(other.abs()),
            (None, None) => false,
            _ => true,
        };
        self.slots != other.slots
            || apart(self.prefill, other.prefill)
            || apart(self.decode, other.decode)
            || apart(self.load, other.load)
            || apart(self.prompt, other.prompt)
            || apart(self.output, other.output)
    }

    /// The same without what no measurement can have found: a peer may say anything.
    #[must_use]
    pub fn plausible(self) -> Self {
        let within = |value: Option<f32>, low: f32, high: f32| value.filter(|value| (low..=high).contains(value));
        Self {
            slots: self.slots.filter(|slots| (1..=1024).contains(slots)),
            prefill: within(self.prefill, 0.01, 1e7),
            decode: within(self.decode, 0.01, 1e6),
            load: within(self.load, 0.0, 36e2),
            prompt: within(self.prompt, 0.0, 1e7),
            output: within(self.output, 0.0, 1e7),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_can_have_measured_is_not_known() {
        let absurd = Pace {
            slots: Some(0),
            prefill: Some(f32::INFINITY),
            decode: Some(f32::NAN),
            load: Some(-1.0),
            ..Pace::default()
        };
        assert_eq!(absurd.plausible(), Pace::default());
        let usual = Pace {
            slots: Some(4),
            prefill: Some(900.0),
            decode: Some(30.0),
            load: Some(3.5),
            prompt: Some(0.0),
            output: Some(200.0),
        };
        assert_eq!(usual.plausible(), usual);
    }

    #[test]
    fn what_is_known_is_told_and_what_is_not_is_left_out() {
        let load = ModelLoad { residence: Residence::Memory, running: 1, queued: 0.5, begun: 7, waited: 3.5 };
        let pace = Pace { slots: Some(2), decode: Some(31.25), ..Pace::default() };
        assert_eq!(
            Numbers { load, pace, caveat: None }.to_string(),
            "loaded, 1/2 slots busy, 0.5 queued, writes 31.2 tokens/s"
        );
        assert_eq!(Numbers::default().to_string(), "on disk, 0 running");
        let caveat = |slowness, caution, left_alone_s| Caveat { slowness, caution, left_alone_s };
        let held = |caveat| Numbers { caveat: Some(caveat), ..Numbers::default() }.to_string();
        assert_eq!(held(caveat(2.4, 1.0, None)), "on disk, 0 running; 2.4 times slower than it says");
        assert_eq!(held(caveat(1.0, 4.0, Some(1.6))), "on disk, 0 running; left alone for 1.6 s");
        assert!(held(caveat(1.0, 3.0, None)).ends_with("failed recently or new; deprioritized (×3.0)"));
        assert!(caveat(1.0, 1.0, None).is_nothing() && !caveat(1.0, 1.0, Some(0.1)).is_nothing());
    }

    #[test]
    fn a_tenth_is_a_difference_and_less_is_none() {
        let pace = |decode| Pace { decode: Some(decode), ..Pace::default() };
        assert!(!pace(100.0).differs(&pace(95.0)));
        assert!(pace(100.0).differs(&pace(85.0)) && pace(85.0).differs(&pace(100.0)));
        assert!(pace(100.0).differs(&Pace::default()));
    }

    #[test]
    fn a_load_of_a_later_version_can_be_read() {
        let load: Load =
            serde_json::from_str(r#"{"inflight":2,"later":1,"models":{"m":{"residence":"elsewhere","running":1}}}"#)
                .unwrap();
        assert_eq!(load.of("m"), ModelLoad { running: 1, ..ModelLoad::default() });
    }
}
