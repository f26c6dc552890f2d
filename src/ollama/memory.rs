//! What is in the server's memory, and how many models fit into it.
//!
//! `OLLAMA_MAX_LOADED_MODELS` is a bound where it can be read ([`process`](super::process)), but memory is full before, as a
//! rule. That shows between two looks at `/api/ps`: a model has vanished long before it was to be unloaded, and another one
//! has come. Where more than that are seen at once, more fit: models differ in size, and this is a count.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use super::State;

/// A model that vanishes so shortly before its time was not put out by another: two clocks and the time of a look.
const SLACK: Duration = Duration::from_secs(2);
/// After one was put out, the one that it made way for shows within this time: Ollama waits until memory is free, up to
/// 5 s, and lists a model when it begins to load.
const MADE_WAY: Duration = Duration::from_secs(15);

/// What is known of the server's memory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Memory {
    /// The models in it, by the name under which they are listed.
    pub models: BTreeMap<String, Resident>,
    /// How many fit, if it was seen.
    pub(super) seen: Option<u32>,
    /// How many its environment allows, if that can be read.
    pub(super) told: Option<u32>,
}

/// A model in memory, as Ollama's `/api/ps` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resident {
    /// Bytes in all.
    pub size: u64,
    /// Bytes of them on GPUs.
    pub size_vram: u64,
    /// When it is unloaded if nobody uses it; far in the future if never.
    pub expires_at: Option<SystemTime>,
}

/// Learns from look to look how many fit.
#[derive(Debug, Default)]
pub(super) struct Fits {
    last: BTreeMap<String, Resident>,
    put_out: Option<SystemTime>,
    full: Option<u32>,
}

// === impl Memory ===

impl Memory {
    /// How many models fit into it, if it is known. What was seen counts before what the owner says, and that before what
    /// the server's environment does: memory may be full before.
    pub fn most_loaded(&self, owner: Option<u32>) -> Option<u32> {
        self.seen.or(owner).or(self.told)
    }
}

// === impl Resident ===

impl Resident {
    /// When it is unloaded, of the time as Ollama writes it.
    pub(super) fn until(text: &str) -> Option<SystemTime> {
        let time = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
        let zero = time::OffsetDateTime::UNIX_EPOCH;
        // As an offset, since not every system has times that are so far away.
        SystemTime::UNIX_EPOCH.checked_add(Duration::try_from(time - zero).ok()?)
    }
}

// === impl Fits ===

impl Fits {
    /// Takes a look; how many fit, as far as it is known then.
    pub(super) fn look(&mut self, models: &BTreeMap<String, Resident>, now: SystemTime) -> Option<u32> {
        let count = u32::try_from(models.len()).unwrap_or(u32::MAX);
        let vanished = self.last.iter().filter(|(name, _)| !models.contains_key(*name));
        let early = |expires: SystemTime| expires > now + SLACK;
        if vanished.clone().any(|(_, model)| model.expires_at.is_some_and(early)) {
            self.put_out = Some(now);
        }
        let lately = |then: SystemTime| now.duration_since(then).is_ok_and(|since| since <= MADE_WAY);
        let has_come = models.keys().any(|name| !self.last.contains_key(name));
        if has_come && self.put_out.take_if(|then| lately(*then)).is_some() {
            self.full = Some(count);
        }
        self.full = self.full.map(|full| full.max(count));
        self.last = models.clone();
        self.full
    }
}

// === impl State ===

impl State {
    /// The models that came into memory since then.
    pub(super) fn loaded_since<'a>(&'a self, then: &'a Self) -> impl Iterator<Item = &'a str> {
        self.loaded.difference(&then.loaded).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks at what is loaded at these seconds, of models that are kept for five minutes.
    fn after(looks: &[(u64, &[&str])]) -> Option<u32> {
        let mut fits = Fits::default();
        let mut known = None;
        for (second, names) in looks {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + second);
            let resident = Resident { expires_at: Some(now + Duration::from_secs(300)), ..Resident::default() };
            known = fits.look(&names.iter().map(|name| ((*name).to_owned(), resident)).collect(), now);
        }
        known
    }

    #[test]
    fn a_model_that_makes_way_for_another_says_that_memory_is_full() {
        assert_eq!(after(&[(0, &["a", "b"]), (5, &["a", "b"])]), None);
        assert_eq!(after(&[(0, &["a", "b"]), (5, &["b", "c"])]), Some(2));
        assert_eq!(after(&[(0, &["a", "b"]), (5, &["b"]), (10, &["b", "c"])]), Some(2), "a look in between");
        assert_eq!(after(&[(0, &["a", "b"]), (5, &["c"])]), Some(1), "a large one");
        assert_eq!(after(&[(0, &["a"]), (5, &["b"]), (10, &["b", "c"])]), Some(2), "more than was thought");
    }

    #[test]
    fn a_model_whose_time_was_over_or_that_was_stopped_says_nothing() {
        assert_eq!(after(&[(0, &["a", "b"]), (299, &["b", "c"])]), None);
        assert_eq!(after(&[(0, &["a", "b"]), (5, &["b"]), (10, &["b"]), (30, &["b", "c"])]), None);
        assert_eq!(after(&[(0, &["a"]), (5, &[])]), None);
    }

    #[test]
    fn times_are_read_as_ollama_writes_them() {
        let until = |text: &str| Resident::until(text).map(|time| time.duration_since(SystemTime::UNIX_EPOCH).unwrap());
        assert_eq!(until("2026-11-22T13:50:51.5+01:00"), Some(Duration::from_millis(1_795_351_851_500)));
        assert_eq!(until("2026-11-22T12:50:51Z"), Some(Duration::from_secs(1_795_351_851)));
        assert!(until("2318-03-05T01:02:03.123456789Z").is_some());
        assert_eq!(until("0001-01-01T00:00:00Z"), None);
        assert_eq!(until("soon"), None);
    }

    #[test]
    fn what_is_seen_counts_before_what_is_allowed() {
        let memory = |seen, owner, told| Memory { seen, told, ..Memory::default() }.most_loaded(owner);
        assert_eq!(memory(Some(2), Some(4), Some(3)), Some(2));
        assert_eq!(memory(None, Some(4), Some(3)), Some(4));
        assert_eq!((memory(None, None, Some(3)), memory(None, None, None)), (Some(3), None));
    }
}
