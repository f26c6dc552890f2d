//! The number that the balancer compares: how long a request would take at a server, and what it costs the others there.
//!
//! The formula is the one that was best in simulations of whole fleets (`benches/balance` runs them), with these letters:
//! c slots of the model's runner; n requests that run; k = n + q all before this one; K other busy runners on the server;
//! share = 1/(1 + K); b(n) = 1/(1 + 0.2 (n − 1)), how fast one request is in a batch of n; W̄ seconds of work that a usual
//! request is. All of it in seconds, lower is better:
//! ```text
//! service     = ((prompt − cached) / prefill + E[out] / decode) / (share · b(min(k + 1, c)))
//! wait        = max(0, k − c + 1) · W̄ / (c · b(c) · share)
//! load        = 0 in memory; 0.6 · t_load on its way; else t_load + the loads before it
//!               + drain if nothing is idle + 3 · t_load(victim) if something must go
//! externality = (n < c ? n · (1 − b(n + 1)/b(n)) · service : 0) + (n = 0 ? others running/(K + 1) · service : 0)
//! price       = 0.5 · max(0, k − c + 1)/c · service
//! total       = (wait + load + service + externality + price) · (in memory ? 1 : 1.5) · what is held against the server
//! ```
//! The total is what servers are compared by. Whether a request should wait at all while another server is free is asked of
//! [`Score::finish`] and [`Score::alone`], which have no price in them that only the total of many requests knows.
//!
//! More that waits never makes a total smaller, nor does a slower server. One more that *runs* may: the externality is
//! what a newcomer costs those in the batch, and it ends where the batch is full and the wait begins.

use std::fmt;

use crate::exchange::Residence;

/// What a newcomer costs the requests that run counts as much as what it costs itself: it is the sum over all that should
/// be small. Without it p99 at 85 % load is twice as long.
const GAMMA: f64 = 1.0;
/// A model that is thrown out will be wanted again: its load time counts as often as one may expect it to come back while
/// this one is used. With less, models chase each other out of memory.
const KAPPA: f64 = 3.0;
/// Whoever queues up makes those that come later wait. Half, since some of them could have gone elsewhere.
const ETA: f64 = 0.5;
/// A cold server has to be better by this: the estimate of a load is the worst of all, and a copy of the model more in
/// memory has its price later.
const COLD: f64 = 1.5;
/// How much slower each request becomes with each other one in its batch: between a computer bound by memory (0) and one
/// bound by arithmetic (1).
const BATCH: f64 = 0.2;
/// What of a load is left, on average, for who sees it under way: half, and a little since reports are late.
const LOADING: f64 = 0.6;

/// The longest that anything here is believed to take, in seconds: a day. Keeps every sum finite.
const LONGEST: f64 = 86_400.0;
/// The most requests that are believed to be anywhere.
const MOST: f64 = 1e6;

/// What is known of one server, for one model. Whatever the network said it may hold: [`score`] puts up with anything.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Server {
    /// Where the model is.
    pub(crate) residence: Residence,
    /// Requests of the model that run: n.
    pub(crate) running: f64,
    /// Requests of the model that wait, tickets with a twin as halves.
    pub(crate) queued: f64,
    /// What this node has sent or queued there since, which the report cannot know; tickets with a twin as halves.
    pub(crate) unreported: f64,
    /// Requests of this node that are there and not over, whatever the server says: it cannot have fewer.
    pub(crate) own: f64,
    /// Where the request holds a ticket there: what is before it. In place of all that waits.
    pub(crate) ahead: Option<f64>,
    /// Requests that run at the gate's back, in which model nobody knows.
    pub(crate) direct: f64,
    /// Requests of the model that the server works on at a time: c.
    pub(crate) slots: f64,
    /// Prompt tokens a second, of one request alone.
    pub(crate) prefill: f64,
    /// Tokens a second that are generated, of one request alone.
    pub(crate) decode: f64,
    /// Seconds that the model takes to load.
    pub(crate) load_time: f64,
    /// Whether no other model is in memory.
    pub(crate) only: bool,
    /// Other models in memory that have requests: K.
    pub(crate) busy_others: f64,
    /// Requests that run in them.
    pub(crate) others_running: f64,
    /// Seconds until the loads are done that come before one of this model.
    pub(crate) loads_before: f64,
    /// What loading the model throws out, if it does not fit beside what is in memory.
    pub(crate) eviction: Option<Eviction>,
    /// How many times as long as it says it takes ([`Judgement`](super::judgement::Judgement)); at least 1.
    pub(crate) slowness: f64,
    /// The factor for recent failures and for turns that it did not keep. At least 1.
    pub(crate) caution: f64,
    /// The same because it has just come: many see it come, idle, at the same time. At least 1.
    pub(crate) newcomer: f64,
    /// Below 1 draws requests there (its owner's own server), above 1 keeps them off.
    pub(crate) preference: f64,
}

/// What has to go before a model can be loaded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Eviction {
    /// Seconds until one is idle; 0 if one is.
    pub(crate) drain: f64,
    /// Seconds that it will take to load again.
    pub(crate) victim: f64,
}

/// What is known of the request, at one server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Request {
    /// Tokens of its prompt.
    pub(crate) prompt: f64,
    /// How many of them the server has in its cache, if the model is in memory.
    pub(crate) cached: f64,
    /// Tokens that its answer will have: E\[out\].
    pub(crate) output: f64,
    /// Tokens of a usual request's prompt that are in no cache: W̄.
    pub(crate) usual_prompt: f64,
    /// Tokens of a usual request's answer: W̄.
    pub(crate) usual_output: f64,
}

/// What a request would take at a server, in seconds, and why.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Score {
    /// Until a slot is free.
    pub(crate) wait: f64,
    /// Until the model is in memory.
    pub(crate) load: f64,
    /// Its own work, in the company it will have.
    pub(crate) service: f64,
    /// The same by what the server says of itself: what a [`Judgement`](super::judgement::Judgement) measures against.
    pub(crate) promised: f64,
    /// What it costs those that run.
    pub(crate) externality: f64,
    /// What it costs those that come.
    pub(crate) price: f64,
    /// What the sum is multiplied by.
    pub(crate) factor: f64,
    /// The part of it that stands for failures and for what the owner prefers.
    bias: f64,
    /// What is compared.
    pub(crate) total: f64,
    /// Whether the model is in memory.
    pub(crate) warm: bool,
}

/// The score of a server for a request.
pub(crate) fn score(server: &Server, request: &Request) -> Score {
    let warm = server.is_warm();
    let slots = server.c();
    let before = server.before();
    let running = server.n();
    // What runs at the gate's back is in another model if there is another one, and slows this one down all the same.
    let direct = if server.direct_is_ours() { 0.0 } else { count(server.direct) };
    let busy_others = count(server.busy_others).max(if direct > 0.0 { 1.0 } else { 0.0 });
    let others_running = count(server.others_running) + direct;
    let share = 1.0 / (1.0 + busy_others);
    let over = (before - slots + 1.0).max(0.0);

    let cached = if warm { tokens(request.cached).min((tokens(request.prompt) - 1.0).max(0.0)) } else { 0.0 };
    let work = server.work(tokens(request.prompt) - cached, tokens(request.output));
    let usual = server.work(tokens(request.usual_prompt), tokens(request.usual_output));

    let service = seconds(work / (share * batch((before + 1.0).floor().min(slots))));
    let promised = service / slowness(server.slowness);
    let wait = seconds(over * usual / (slots * batch(slots) * share));
    let load = seconds(server.load());
    let slower = if running < slots { running * (1.0 - batch(running + 1.0) / batch(running)) } else { 0.0 };
    let crowding = if running == 0.0 { others_running / (busy_others + 1.0) } else { 0.0 };
    let externality = GAMMA * (slower + crowding) * service;
    let price = ETA * over / slots * service;

    let cold = if warm { 1.0 } else { COLD };
    let bias = times(server.caution, 1.0) * times(server.preference, 0.01);
    let factor = cold * times(server.caution, 1.0).max(times(server.newcomer, 1.0)) * times(server.preference, 0.01);
    let total = (wait + load + service + externality + price) * factor;
    Score { wait, load, service, promised, externality, price, factor, bias, total, warm }
}

/// b(n): how fast each of n requests in a batch is, beside one alone.
pub(super) fn batch(n: f64) -> f64 {
    1.0 / (1.0 + BATCH * (n - 1.0).max(0.0))
}

// === impl Server ===

impl Server {
    /// Whether the model is in memory.
    pub(crate) fn is_warm(&self) -> bool {
        matches!(self.residence, Residence::Memory | Residence::Unknown)
    }

    /// Whether one more request would have a slot at once, as far as is known.
    pub(crate) fn has_free_slot(&self) -> bool {
        self.before() < self.c()
    }

    /// c.
    fn c(&self) -> f64 {
        if self.slots.is_nan() { 1.0 } else { self.slots.floor().clamp(1.0, 1024.0) }
    }

    /// n.
    fn n(&self) -> f64 {
        count(self.running) + if self.direct_is_ours() { count(self.direct) } else { 0.0 }
    }

    /// k: everything that comes before the request.
    fn before(&self) -> f64 {
        let waiting = match self.ahead {
            Some(ahead) => count(ahead),
            None => count(self.queued) + count(self.unreported),
        };
        (self.n() + waiting).max(count(self.own))
    }

    /// Whether what runs at the gate's back must be in this model: there is no other.
    fn direct_is_ours(&self) -> bool {
        self.only && self.is_warm()
    }

    /// Seconds that a usual request takes alone.
    pub(crate) fn usual(&self, request: &Request) -> f64 {
        seconds(self.work(tokens(request.usual_prompt), tokens(request.usual_output)))
    }

    /// Seconds until the model is in memory, and what that costs others.
    pub(crate) fn loading(&self) -> f64 {
        seconds(self.load())
    }

    /// Whether what is in memory beside the model has something to do.
    pub(crate) fn others_are_busy(&self) -> bool {
        let direct = if self.direct_is_ours() { 0.0 } else { count(self.direct) };
        count(self.busy_others) + direct > 0.0 || seconds(self.loads_before) > 0.0
    }

    /// Seconds that so many tokens take, of one request alone.
    fn work(&self, prompt: f64, output: f64) -> f64 {
        (prompt / speed(self.prefill) + output / speed(self.decode)) * slowness(self.slowness)
    }

    /// Seconds until the model is in memory.
    fn load(&self) -> f64 {
        let load_time = seconds(self.load_time);
        match self.residence {
            Residence::Memory | Residence::Unknown => 0.0,
            Residence::Loading => LOADING * load_time,
            Residence::Disk => {
                let eviction =
                    self.eviction.map_or(0.0, |Eviction { drain, victim }| seconds(drain) + KAPPA * seconds(victim));
                load_time + seconds(self.loads_before) + eviction
            }
        }
    }
}

// === impl Score ===

impl Score {
    /// When the request would be done, where it has to wait.
    pub(crate) fn finish(&self) -> f64 {
        (self.wait + self.load + self.service) * self.bias
    }

    /// The time with a slot at once, what that costs others included.
    pub(crate) fn alone(&self) -> f64 {
        (self.service + self.externality) * self.bias
    }

    /// The same if the server were as fast as one where this request takes `service`.
    pub(crate) fn alone_at(&self, service: f64) -> f64 {
        self.alone().min(service * self.bias)
    }

    /// The score with the model in memory and a slot at once, of a server whose model is not.
    pub(crate) fn loaded(&self) -> f64 {
        (self.wait + self.service + self.externality + self.price) * self.bias
    }
}

impl fmt::Display for Score {
    /// The whole sum on one line: a log that says why a request went where it went.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wait, load, service, promised, externality, price, factor, total, warm, .. } = self;
        let warm = if *warm { "warm" } else { "cold" };
        write!(
            f,
            "{total:.2} s ({warm}) = (wait {wait:.2} + load {load:.2} + service {service:.2} of which {promised:.2} promised \
             + externality {externality:.2} + price {price:.2}) × {factor:.2}"
        )
    }
}

/// A number of requests. What is no number is as bad as can be, here and below: nobody gains by sending it.
fn count(value: f64) -> f64 {
    if value.is_nan() { MOST } else { value.clamp(0.0, MOST) }
}

/// A number of tokens.
fn tokens(value: f64) -> f64 {
    if value.is_nan() { 0.0 } else { value.clamp(0.0, 1e9) }
}

/// Tokens a second.
fn speed(value: f64) -> f64 {
    if value.is_nan() { 0.01 } else { value.clamp(0.01, 1e7) }
}

fn seconds(value: f64) -> f64 {
    if value.is_nan() { LONGEST } else { value.clamp(0.0, LONGEST) }
}

/// How many times slower; more than any other factor, since what a server says may be as far from the truth.
fn slowness(value: f64) -> f64 {
    if value.is_nan() { 1.0 } else { value.clamp(1.0, 1e9) }
}

/// A factor.
fn times(value: f64, least: f64) -> f64 {
    if value.is_nan() { 1.0 } else { value.clamp(least, 100.0) }
}

#[cfg(test)]
#[path = "score_tests.rs"]
pub(super) mod tests;
