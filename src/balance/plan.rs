//! What to do with a request, once the servers have their scores: send it, queue for it, or leave it where it waits.
//!
//! A **ticket** is a place in a server's queue with nothing sent yet. The first server with a free slot takes the request
//! and the other ticket is withdrawn, so that the request is bound as late as possible. With more than two, conversations
//! lose their caches when it is busy.
//!
//! So it is with a server that has to load the model first: who gets one of its slots is sent there and has it loaded, and
//! who comes too late for them has lost nothing. Many may find the same idle server at the same moment, the more the later
//! their reports are; all who were simply sent there would have to wait for one another.
//!
//! Where a simulation of whole fleets (as `benches/balance` runs them) was asked about a choice, its figures
//! stand here: p99 of the time to first token at 85 % load, in seconds, A (eight unlike servers, six models) and H1 (eight equal ones).

use std::time::Duration;

use super::score::Score;

/// A request that waits moves only to what is better by this much. It loses its place, and the score that looks better
/// may be no more than a report that is a moment younger.
const HYSTERESIS: f64 = 0.8;
/// Scores that are so close are the same: nobody measures a server to the percent, and many nodes with the same view should
/// not all run to the same one.
const TIE: f64 = 1.01;

/// A second ticket has to be worth so much more. It is the conversation's cache that is given up if it wins, work for all
/// that the score of one request does not see; the busier, the more it matters. But it is also what makes up for knowledge
/// that is late. `benches/balance` of November 2026, three seeds at 85 %, p99 over the central ideal's with 1, 1.2 and 1.5:
/// H1 1.21, 1.18, 1.14; A 1.38, 1.30, 1.15; A with reports 1 s late 1.31, 1.21, 1.65. In the simulation all are worse
/// without the price of queueing among the costs.
const DETOUR: f64 = 1.2;

/// One server that has what a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Candidate {
    /// What the request would take there.
    pub(crate) score: Score,
    /// Whether it may be chosen at all: healthy, trusted, not tried before, [`Breaker`](super::breaker::Breaker) closed, or
    /// full where the request has a place already.
    pub(crate) eligible: bool,
    /// Whether it would have a slot at once, as far as is known.
    pub(crate) free: bool,
    /// How good that knowledge is.
    pub(crate) knowledge: Knowledge,
    /// Whether it is this machine's own: at a tie, what needs no network wins.
    pub(crate) local: bool,
    /// Whether the request has a ticket there.
    pub(crate) held: bool,
    /// Whether what was waited for the model by many is reason enough to load it there.
    pub(crate) due: bool,
    /// Whether it has had nothing to do for so long that it should be measured again, whatever is held against it.
    pub(crate) idle: bool,
}

/// How good what is known of a server's queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knowledge {
    /// As good as being there: this node's own gate. A free slot *is* free, and a ticket for it would be a detour.
    Exact,
    /// What a peer reported lately. A slot that was free may be gone by the time the request is there, which is then bound
    /// to the wrong server. Sent straight all the same, a fraction of a millisecond is saved, and H1 goes from 7.6 to 7.8
    /// with reports 50 ms late, from 9.1 to 15.9 with reports 1 s late.
    /// (One that is silent for longer than three heartbeats is not eligible any more.)
    Reported,
}

/// What to do with a request. The numbers are indices of the candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Send it there, where a slot is known to be free, and withdraw its tickets. A cold server loads the model for it.
    Send(usize),
    /// Hold tickets there and nowhere else; one that is held already keeps its place. The better one first.
    Tickets(usize, Option<usize>),
    /// Leave it where it waits.
    Stay,
}

/// What to do with a request, the first time or again while it waits; `None` if nobody may be chosen. `random` decides
/// between equals.
pub(crate) fn plan(candidates: &[Candidate], random: usize) -> Option<Plan> {
    let best = best(candidates, random, |_| true)?;
    let warm = best_warm(candidates, &best, random);
    let mut held: Vec<Choice<'_>> = choices(candidates).filter(|choice| choice.of.held).collect();
    held.sort_by(Choice::order);

    if let Some(free) = free(candidates, &best, random) {
        if free.of.knowledge == Knowledge::Exact {
            return Some(Plan::Send(free.index));
        }
        // Where it has queued for a slot that is said to be free there is none, for whatever reason.
        let kept = held.iter().find(|held| !held.of.free).or(held.first());
        let other = kept.map(|held| held.index).or(warm.map(|warm| warm.index));
        return Some(Plan::Tickets(free.index, other.filter(|other| *other != free.index)));
    }
    if let Some(load) = warm.and_then(|warm| load(candidates, &warm)) {
        if load.of.free && load.of.knowledge == Knowledge::Exact {
            return Some(Plan::Send(load.index));
        }
        let warm = held.first().map(|held| held.index).or(warm.map(|warm| warm.index));
        return Some(Plan::Tickets(load.index, warm));
    }
    if !best.of.score.warm {
        if best.of.held {
            let one = if let [one] = held.as_slice() { Some(one) } else { None };
            let second = one.and_then(|one| Some((one.index, second(candidates, one)?.index)));
            return Some(second.map_or(Plan::Stay, |(one, second)| Plan::Tickets(one, Some(second))));
        }
        let waits = held.first().map(|held| warm.map_or(held.total(), |warm| warm.total().min(held.total())));
        let moves = waits.is_none_or(|waits| best.total() < HYSTERESIS * waits);
        if moves && best.of.free && best.of.knowledge == Knowledge::Exact {
            return Some(Plan::Send(best.index));
        }
        if moves {
            return Some(Plan::Tickets(best.index, held.first().map(|held| held.index)));
        }
    }
    let Some(warm) = warm else { return Some(Plan::Stay) };
    if warm.of.free && warm.of.knowledge == Knowledge::Exact && !warm.of.held {
        return Some(Plan::Send(warm.index));
    }
    Some(match *held.as_slice() {
        [] => Plan::Tickets(warm.index, second(candidates, &warm).map(|second| second.index)),
        [one] if warm.of.held => {
            second(candidates, &warm).map_or(Plan::Stay, |second| Plan::Tickets(one.index, Some(second.index)))
        }
        [one] => Plan::Tickets(warm.index, Some(one.index)),
        // A server that came back, or one that turned out to be quick, must not have to wait for new requests only.
        [better, .., worse] if !warm.of.held && warm.total() < HYSTERESIS * worse.total() => {
            Plan::Tickets(warm.index, Some(better.index))
        }
        [..] => Plan::Stay,
    })
}

/// How long a request waits before it is looked at again: 1 ± 0.2 s, so that many that began to wait at once do not all
/// move at once. `random` is from 0 to 1.
pub(crate) fn next_look(random: f64) -> Duration {
    Duration::from_secs_f64(0.8 + 0.4 * if random.is_nan() { 0.5 } else { random.clamp(0.0, 1.0) })
}

/// One of the candidates.
#[derive(Debug, Clone, Copy)]
struct Choice<'a> {
    index: usize,
    of: &'a Candidate,
}

// === impl Choice ===

impl Choice<'_> {
    fn total(&self) -> f64 {
        self.of.score.total
    }

    fn order(&self, other: &Self) -> std::cmp::Ordering {
        self.total().total_cmp(&other.total())
    }
}

/// Those that may be chosen.
fn choices(candidates: &[Candidate]) -> impl Iterator<Item = Choice<'_>> {
    candidates.iter().enumerate().filter(|(_, of)| of.eligible).map(|(index, of)| Choice { index, of })
}

/// The best of them: of equals one that is held, else our own, else any.
fn best(candidates: &[Candidate], random: usize, which: impl Fn(&Candidate) -> bool) -> Option<Choice<'_>> {
    let among = || choices(candidates).filter(|choice| which(choice.of));
    let best = among().min_by(Choice::order)?;
    let equals: Vec<_> = among()
        .filter(|choice| choice.of.score.warm == best.of.score.warm && choice.total() <= TIE * best.total())
        .collect();
    let preferred = |how: fn(&Candidate) -> bool| equals.iter().find(|choice| how(choice.of));
    let chosen = preferred(|of| of.held).or_else(|| preferred(|of| of.local));
    chosen.or_else(|| equals.get(random.checked_rem(equals.len())?)).copied()
}

fn best_warm<'a>(candidates: &'a [Candidate], best: &Choice<'a>, random: usize) -> Option<Choice<'a>> {
    if best.of.score.warm { Some(*best) } else { self::best(candidates, random, |of| of.score.warm) }
}

/// Work conservation: no request waits while a server that has the model in memory has a slot for it, unless waiting is expected
/// to be over sooner. Compared are the times at which this one request would be done; what queueing costs others, and
/// how far from a conversation's cache it may be, is no reason to leave a server idle. A server that has been idle for
/// long is taken to be as fast as the best one: it is time that it was measured again.
fn free<'a>(candidates: &'a [Candidate], best: &Choice<'_>, random: usize) -> Option<Choice<'a>> {
    // One where it queues already has given it no slot, whatever it says.
    if best.of.free && best.of.score.warm && !best.of.held {
        return None;
    }
    let alone = |of: &Candidate| match of.idle {
        true => of.score.alone_at(best.of.score.service),
        false => of.score.alone(),
    };
    let mut sooner: Vec<Choice<'a>> = choices(candidates)
        .filter(|choice| choice.of.free && choice.of.score.warm && !choice.of.held)
        .filter(|choice| alone(choice.of) <= best.of.score.finish())
        .collect();
    let soonest = sooner.iter().map(|choice| choice.of.score.alone()).reduce(f64::min)?;
    sooner.retain(|choice| choice.of.score.alone() <= TIE * soonest);
    sooner.get(random.checked_rem(sooner.len())?).copied()
}

/// Where the model is to be loaded because so many have waited for it: at the cheapest server that would then be better than
/// waiting, the first of equals, so that all nodes choose the same one.
fn load<'a>(candidates: &'a [Candidate], warm: &Choice<'_>) -> Option<Choice<'a>> {
    if warm.of.free || choices(candidates).any(|choice| choice.of.held && !choice.of.score.warm) {
        return None;
    }
    choices(candidates)
        .filter(|choice| choice.of.due && choice.of.score.loaded() < warm.total())
        .min_by(|one, other| one.of.score.load.total_cmp(&other.of.score.load))
}

/// Where a second ticket is worth its while: at the next best warm server, if being let in at once there would be better by
/// [`DETOUR`] than what the best one promises. What it costs others counts, those included that would wait behind it.
fn second<'a>(candidates: &'a [Candidate], best: &Choice<'_>) -> Option<Choice<'a>> {
    let alone = |score: &Score| score.service + score.externality + score.price;
    choices(candidates)
        .filter(|choice| choice.index != best.index && choice.of.score.warm && !choice.of.held)
        .filter(|choice| DETOUR * alone(&choice.of.score) <= best.total())
        .min_by(Choice::order)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
