//! The owner first: what a machine's owner keeps of its Ollama, when others get it, and how much.
//!
//! The defaults give everyone the same: a slot is whoever's turn it is, at any time. Each setting takes something from
//! the peers for the owner's sake, and none gives a peer more than its scope allows.

use std::time::Duration;

use super::{ConfigError, Hours, Key, Settings, value};
use crate::exchange::limits;
use crate::gate::Weights;
use crate::id::{Id, ParseIdError};

/// What peers get of this node's Ollama, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct Lend {
    /// How many requests a model the Ollama runs at a time, from 1 to 256; found out by the node where nobody says it.
    pub parallel: Option<u32>,
    /// How many models the Ollama keeps in memory at a time, from 1 to 256; found out by the node where nobody says it.
    pub max_loaded: Option<u32>,
    /// Slots of each model that only the owner's own requests may use; less than [`parallel`](Self::parallel) where that
    /// is said.
    pub reserve: u32,
    /// Requests of peers that may wait at this node's gate at once; of those whom no person trusts half as many.
    pub queue: u32,
    /// How much of the queue each peer gets beside others.
    pub weights: Weights,
    /// When peers are let in; always, if nobody says it.
    pub hours: Option<Hours>,
    /// For how long nobody may have used the machine before peers are let in; whether they do or not, if nobody says it.
    pub idle: Option<Duration>,
}

/// How this node's own requests are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Balance {
    /// How many times faster another node must be to be preferred to this node's own Ollama; 1 is no preference.
    pub prefer_local: f64,
    /// A request whose expected wait for a slot is longer is refused at once.
    pub max_wait: Duration,
    /// Requests that may wait for a slot at once on this node.
    pub waiting: u32,
}

// === impl Lend ===

impl Lend {
    /// Requests that may wait where nobody says it.
    #[expect(clippy::cast_possible_truncation, reason = "a few thousand")]
    pub const QUEUE: u32 = limits::WAITING as u32;
    /// More than any Ollama runs at a time: its own default is 1, and each slot takes the memory of a context.
    const MAX_PARALLEL: u32 = 256;
    /// More than any machine holds.
    const MOST_LOADED: u32 = 256;
    /// A request that waits costs some kilobytes here: this is as many as take some tens of megabytes.
    const MAX_QUEUE: u32 = 16_384;
    /// The kernel notes when a terminal was used to eight seconds only, and whoever reads types nothing.
    const MIN_IDLE: Duration = Duration::from_secs(30);

    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let parallel = settings.parse(Key::LendParallel, |text| value::whole(text, 1..=Self::MAX_PARALLEL))?;
        let reserve = settings.parse(Key::LendReserve, |text| {
            let reserve = value::whole(text, 0..=Self::MAX_PARALLEL - 1)?;
            match parallel {
                Some(parallel) if reserve >= parallel => Err(format!(
                    "of {parallel} slots (lend.parallel) that leaves none to share; to share nothing, set mode to client"
                )),
                _ => Ok(reserve),
            }
        })?;
        let max_loaded = settings.parse(Key::LendMaxLoaded, |text| value::whole(text, 1..=Self::MOST_LOADED))?;
        let queue = settings.parse(Key::LendQueue, |text| value::whole(text, 0..=Self::MAX_QUEUE))?;
        Ok(Self {
            parallel,
            max_loaded,
            reserve: reserve.unwrap_or(0),
            queue: queue.unwrap_or(Self::QUEUE),
            weights: settings.parse_all(Key::LendWeights, weights)?.unwrap_or_default(),
            hours: settings.parse_all(Key::LendHours, Hours::parse)?,
            idle: settings.parse(Key::LendIdle, idle)?,
        })
    }
}

impl Default for Lend {
    fn default() -> Self {
        Self {
            parallel: None,
            max_loaded: None,
            reserve: 0,
            queue: Self::QUEUE,
            weights: Weights::default(),
            hours: None,
            idle: None,
        }
    }
}

/// Where nobody can tell whether a machine is used, it would be lent under its owner's hands.
fn idle(text: &str) -> Result<Duration, String> {
    if !cfg!(target_os = "linux") {
        return Err("whether a machine is unused can be detected on Linux only; use lend.hours on this one".to_owned());
    }
    match value::duration(text)? {
        idle if idle < Lend::MIN_IDLE => Err(format!("the minimum is {}s", Lend::MIN_IDLE.as_secs())),
        idle => Ok(idle),
    }
}

// === impl Balance ===

impl Balance {
    /// See [`prefer_local`](Self::prefer_local). What is expected of a server is known to some tenths, so a difference below
    /// a fifth is as likely none; then the request stays at home, where it takes nothing from a neighbour, nothing of it
    /// crosses the network, and the conversation's cache stays where the next question comes from.
    pub const PREFER_LOCAL: f64 = 1.2;
    /// See [`max_wait`](Self::max_wait): no bound, as at an Ollama. The expected time is an estimate, and whoever asks
    /// for much at once knows best how long to wait for it.
    pub const MAX_WAIT: Duration = Duration::MAX;
    /// See [`waiting`](Self::waiting).
    #[expect(clippy::cast_possible_truncation, reason = "a thousand")]
    pub const WAITING: u32 = limits::WAITING_EACH as u32;
    /// The listener takes so many connections.
    const MAX_WAITING: u32 = 4_096;

    pub(super) fn from_settings(settings: &Settings) -> Result<Self, ConfigError> {
        let prefer = settings.parse(Key::BalancePreferLocal, |text| value::factor(text, 1.0..=100.0))?;
        let waiting = settings.parse(Key::BalanceWaiting, |text| value::whole(text, 0..=Self::MAX_WAITING))?;
        Ok(Self {
            prefer_local: prefer.unwrap_or(Self::PREFER_LOCAL),
            max_wait: settings.parse(Key::BalanceMaxWait, value::duration)?.unwrap_or(Self::MAX_WAIT),
            waiting: waiting.unwrap_or(Self::WAITING),
        })
    }
}

impl Default for Balance {
    fn default() -> Self {
        Self { prefer_local: Self::PREFER_LOCAL, max_wait: Self::MAX_WAIT, waiting: Self::WAITING }
    }
}

/// Weights as they are written: NAME=NUMBER or ID=NUMBER.
fn weights(entries: &[String]) -> Result<Weights, String> {
    let mut weights = Weights::default();
    for entry in entries {
        let (peer, weight) = entry
            .rsplit_once('=')
            .ok_or_else(|| format!("{entry:?} is no weight; write NAME=NUMBER or ID=NUMBER, such as gpu1=2"))?;
        let (peer, weight) = (peer.trim(), weight.trim());
        let weight = value::factor(weight, Weights::RANGE).map_err(|problem| format!("{peer}: {problem}"))?;
        let double = match peer.parse::<Id>() {
            Ok(id) => weights.set(id, weight),
            Err(slip @ (ParseIdError::Check(_) | ParseIdError::Alphabet)) => return Err(format!("{peer}: {slip}")),
            Err(ParseIdError::Length(_)) => {
                let name = value::name(peer).map_err(|problem| format!("{peer:?}: {problem}"))?;
                weights.set_name(&name, weight)
            }
        };
        if double {
            return Err(format!("{peer} has two weights"));
        }
    }
    Ok(weights)
}

#[cfg(test)]
mod tests;
