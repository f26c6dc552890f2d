//! Whether the Ollama here is shared at this moment, and why not: the one writer of what the gate goes by.
//!
//! What can be shared at all is settled at the start (see [`roles`](super::roles)). Here is what changes while the node
//! runs: a copy of it that lives, the hours that its owner set, and whether somebody uses the machine. [`decide`] is the
//! rule, without a clock; [`Lending`] follows it. What runs when sharing ends comes to its end.

mod usage;

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use jiff::ZonedDateTime;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use tokio::sync::watch;

use crate::config::{Hours, Lend, moment};
use crate::exchange::Denial;
use usage::Usage;

/// How long a look at the clock on the wall holds. Whoever sets it, travels or wakes a laptop is not heard of otherwise:
/// timers stand still while a machine sleeps.
const CLOCK: Duration = Duration::from_secs(15);
/// How long it takes at most until somebody who comes back to the machine has it to themselves again, but for what runs.
const RETURN: Duration = Duration::from_secs(10);
/// No time-out is shorter: a clock that is set again and again must not make a busy loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Why the Ollama is not shared at the moment, though it could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NotLent {
    /// A copy of this node is alive: users of the two could not tell whom they trust.
    Cloned,
    /// It is not the time.
    Hours {
        /// When it is.
        from: String,
    },
    /// Somebody uses the machine, or did just now.
    Used {
        /// How long that has to be ago.
        idle: Duration,
    },
}

/// What others follow.
pub(super) struct Lent {
    /// Whether peers are let in.
    pub(super) lend: watch::Receiver<bool>,
    /// Why not, where it could be.
    pub(super) why_not: watch::Receiver<Option<NotLent>>,
}

/// The rules and who is told. [`Lending::keep_up`] is the task.
pub(super) struct Lending {
    /// Whether there is anything to share.
    able: bool,
    rules: Rules,
    usage: Usage,
    /// When the machine was used last, as far as it is known.
    used: Option<Instant>,
    lend: watch::Sender<bool>,
    why_not: watch::Sender<Option<NotLent>>,
}

/// What the owner set.
#[derive(Debug, Clone, Default)]
struct Rules {
    hours: Option<Hours>,
    idle: Option<Duration>,
}

/// What there is to go by.
#[derive(Debug, Clone, Copy)]
struct Now {
    cloned: bool,
    /// What the clock on the wall shows.
    clock: DateTime,
    /// For how long nobody has used the machine; nothing if it was not looked.
    unused: Option<Duration>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision {
    why_not: Option<NotLent>,
    /// When to look again, if nothing happens before; nothing where only an event can change it.
    again: Option<Duration>,
}

// === impl Rules ===

impl Rules {
    /// Whether it is the time; always where nobody set one.
    fn open_at(&self, clock: DateTime) -> bool {
        self.hours.as_ref().is_none_or(|hours| hours.open_at(clock))
    }
}

/// The rule. Whoever may not share for several reasons is told the one that passes last.
fn decide(rules: &Rules, now: &Now) -> Decision {
    let border = rules.hours.as_ref().map(|hours| {
        let left = hours.border_after(now.clock).map(|at| at.duration_since(now.clock));
        left.and_then(|left| Duration::try_from(left).ok()).map_or(CLOCK, |left| left.clamp(PAUSE, CLOCK))
    });
    if now.cloned {
        return Decision { why_not: Some(NotLent::Cloned), again: border };
    }
    if !rules.open_at(now.clock) {
        let at = rules.hours.as_ref().and_then(|hours| hours.opens_after(now.clock));
        let from = at.map_or("another day".to_owned(), |at| moment(at, now.clock));
        return Decision { why_not: Some(NotLent::Hours { from }), again: border };
    }
    let Some(idle) = rules.idle else { return Decision { why_not: None, again: border } };
    let unused = now.unused.unwrap_or_default();
    let left = idle.saturating_sub(unused);
    let why_not = (!left.is_zero()).then_some(NotLent::Used { idle });
    let look = if left.is_zero() { RETURN } else { left.max(PAUSE) };
    Decision { why_not, again: Some(border.map_or(look, |border| border.min(look))) }
}

// === impl Lending ===

impl Lending {
    /// Decides for the first time. Where it is shared only while nobody uses the machine, it is not shared before the first look.
    ///
    /// # Errors
    /// If there are hours and it is not known what time it is here.
    pub(super) fn new(settings: &Lend, able: bool) -> Result<(Self, Lent), LendingError> {
        let rules = Rules { hours: settings.hours.clone(), idle: settings.idle };
        if let Some(hours) = &rules.hours {
            TimeZone::try_system().map_err(|source| LendingError { hours: hours.clone(), source })?;
        }
        let first = decide(&rules, &Now { cloned: false, clock: clock(), unused: None });
        let (lend, lend_seen) = watch::channel(able && first.why_not.is_none());
        let (why_not, why_not_seen) = watch::channel(first.why_not.filter(|_| able));
        let lending = Self { able, rules, usage: Usage::default(), used: None, lend, why_not };
        Ok((lending, Lent { lend: lend_seen, why_not: why_not_seen }))
    }

    /// Whenever, for people.
    pub(super) fn when(&self) -> String {
        let hours = self.rules.hours.as_ref().map(|hours| format!(" {hours}")).unwrap_or_default();
        let idle = self.rules.idle.map(|idle| format!(" while nobody has used this machine for {}", Words(idle)));
        format!("{hours}{}", idle.unwrap_or_default())
    }

    /// Follows what happens until there are no peers any more. `own` says when the owner's own requests were here last: at
    /// the beginning and the end of each; one that lies in the future is a use until then.
    pub(super) async fn keep_up(
        mut self,
        mut clone_seen: watch::Receiver<Option<SocketAddr>>,
        mut own: watch::Receiver<Option<Instant>>,
    ) {
        loop {
            let cloned = clone_seen.borrow_and_update().is_some();
            let unused = match self.rules.idle {
                Some(idle) if self.able && !cloned && self.rules.open_at(clock()) => {
                    Some(self.unused(idle, &mut own).await)
                }
                _ => None,
            };
            let decision = decide(&self.rules, &Now { cloned, clock: clock(), unused });
            let again = decision.again.filter(|_| self.able);
            self.tell(decision.why_not);
            tokio::select! {
                changed = clone_seen.changed() => if changed.is_err() {
                    return;
                },
                // Whoever says nothing more leaves things as they are.
                Ok(()) = own.changed(), if self.rules.idle.is_some() => {}
                () = after(again) => {}
            }
        }
    }

    /// For how long nobody has used the machine. It is looked at only if, as far as is known, that may be long enough: so
    /// somebody who works at it costs nothing.
    async fn unused(&mut self, idle: Duration, own: &mut watch::Receiver<Option<Instant>>) -> Duration {
        self.note(*own.borrow_and_update());
        if self.known() >= idle {
            let found = self.usage.unused_for().await;
            self.note(Instant::now().checked_sub(found));
            self.note(*own.borrow_and_update());
        }
        self.known()
    }

    fn note(&mut self, used: Option<Instant>) {
        self.used = self.used.max(used);
    }

    fn known(&self) -> Duration {
        self.used.map_or(Duration::MAX, |used| used.elapsed())
    }

    fn tell(&self, why_not: Option<NotLent>) {
        if !self.able {
            return;
        }
        let lends = why_not.is_none();
        // The reason first: who sees that it is not shared shall find one.
        self.why_not.send_if_modified(|known| {
            let changed = *known != why_not;
            match &why_not {
                Some(why_not) if changed => tracing::info!("the local Ollama is not shared now: it {why_not}"),
                None if changed => tracing::info!("the local Ollama is shared from now on"),
                _ => {}
            }
            *known = why_not;
            changed
        });
        self.lend.send_if_modified(|known| std::mem::replace(known, lends) != lends);
    }
}

/// What the clock on the wall shows, in the time zone that the machine has at the moment.
fn clock() -> DateTime {
    ZonedDateTime::now().datetime()
}

/// Resolves after a while; never without one.
async fn after(wait: Option<Duration>) {
    match wait {
        Some(wait) => tokio::time::sleep(wait).await,
        None => std::future::pending().await,
    }
}

// === impl NotLent ===

impl NotLent {
    /// The code that peers are told.
    pub(super) fn denial(&self) -> Denial {
        match self {
            Self::Cloned => Denial::Cloned,
            Self::Hours { .. } => Denial::OutsideHours,
            Self::Used { .. } => Denial::InUse,
        }
    }
}

impl fmt::Display for NotLent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cloned => f.write_str("is shared when no copy of this node runs"),
            Self::Hours { from } => write!(f, "is shared from {from}"),
            Self::Used { idle } => write!(f, "is shared when nobody has used this machine for {}", Words(*idle)),
        }
    }
}

/// A length of time as the configuration takes it, in words: `90 s`, `10 min`, `2 h`.
struct Words(Duration);

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds if seconds % 3_600 == 0 => write!(f, "{} h", seconds / 3_600),
            seconds if seconds % 60 == 0 => write!(f, "{} min", seconds / 60),
            seconds => write!(f, "{seconds} s"),
        }
    }
}

/// Hours are set, and it is not known what time it is here.
#[derive(Debug, thiserror::Error)]
#[error(
    "lend.hours is {hours}, and the time zone of this machine is unknown ({source}); set one with timedatectl or TZ, \
     such as TZ=Europe/Berlin, or `ollana config unset lend.hours`"
)]
pub struct LendingError {
    hours: Hours,
    source: jiff::Error,
}

#[cfg(test)]
mod tests;
