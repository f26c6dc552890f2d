//! The central ideal: one queue that sees everything at once, computed event by event from the same sessions.
//!
//! Whenever something happens, the queue is gone through in order; each request goes to the server on which it would be
//! done soonest by what is known, if it can start there now, and else counts as waiting there for those behind it.
//! A strong reference, and not a proven optimum. A test holds its results to those of another implementation.

use std::collections::{BTreeMap, VecDeque};

use super::figures::{Outcome, Run, Time};
use super::server::{Event, Job, Server};
use super::workload::{CONTEXT, MODELS, Scenario, Session, Span, batch, sessions, work};

/// Requests of the queue that are looked at.
const HORIZON: usize = 150;
/// What scores expect of a request of which they know nothing: the means of the workload.
const EXPECTED_PROMPT: f64 = 420.0;
const EXPECTED_OUTPUT: f64 = 262.0;
/// Seconds after which a change of a server's speed has been measured.
const MEASURED_AFTER: f64 = 3.0;
/// Weight of what an eviction costs those who have used the victim.
const EVICTION: f64 = 3.0;
/// Weight of what a request costs those who come after it.
const CONGESTION: f64 = 0.5;

struct Ideal<'a> {
    sessions: &'a [Session],
    span: Span,
    now: f64,
    servers: Vec<Server>,
    /// As it was measured, a little late.
    speeds: Vec<f64>,
    queue: VecDeque<usize>,
    requests: Vec<Request>,
    conversations: Vec<Conversation>,
    timers: BTreeMap<Timer, Alarm>,
    alarms_set: u64,
}

/// Ordered by time, which is never negative and so is ordered as its bits are; then as they were set.
type Timer = (u64, u64);

enum Alarm {
    Asks { session: usize, turn: usize },
    Speed { server: usize, factor: f64 },
    Measured { server: usize, factor: f64 },
}

#[derive(Clone, Default)]
struct Conversation {
    /// Tokens so far.
    tokens: f64,
    server: Option<usize>,
}

struct Request {
    session: usize,
    turn: usize,
    prompt: f64,
    issued: f64,
    first: f64,
    done: f64,
}

/// What came of it.
pub fn run(scenario: &Scenario, sessions: &[Session], span: Span) -> Run {
    let loaded = scenario.one_model.then_some(0);
    let mut ideal = Ideal {
        sessions,
        span,
        now: 0.0,
        servers: scenario.servers.iter().map(|spec| Server::new(spec.clone(), loaded)).collect(),
        speeds: scenario.servers.iter().map(|spec| spec.speed).collect(),
        queue: VecDeque::new(),
        requests: Vec::new(),
        conversations: vec![Conversation::default(); sessions.len()],
        timers: BTreeMap::new(),
        alarms_set: 0,
    };
    for (index, session) in sessions.iter().enumerate() {
        ideal.set(session.begins, Alarm::Asks { session: index, turn: 0 });
    }
    for (at, server, factor) in scenario.speed_changes(span) {
        ideal.set(at, Alarm::Speed { server, factor });
        ideal.set(at + MEASURED_AFTER, Alarm::Measured { server, factor });
    }
    ideal.run()
}

// === impl Ideal ===

impl Ideal<'_> {
    fn set(&mut self, at: f64, alarm: Alarm) {
        self.alarms_set += 1;
        self.timers.insert((at.to_bits(), self.alarms_set), alarm);
    }

    fn run(mut self) -> Run {
        let mut events = Vec::new();
        loop {
            let alarm = self.timers.first_key_value().map_or(f64::INFINITY, |((at, _), _)| f64::from_bits(*at));
            let soonest = (0..self.servers.len())
                .min_by(|one, other| self.servers[*one].next_event().total_cmp(&self.servers[*other].next_event()));
            let Some(server) = soonest else { break };
            let next = self.servers[server].next_event();
            if alarm.is_infinite() && next.is_infinite() {
                break;
            }
            if next < alarm {
                self.now = next;
                self.servers[server].step(next, &mut events);
                for event in events.drain(..) {
                    self.happened(server, event);
                }
                self.dispatch();
            } else if let Some((_, due)) = self.timers.pop_first() {
                self.now = alarm;
                self.ring(due);
            }
        }
        let outcomes = self.requests.iter().map(|request| Outcome {
            issued: request.issued,
            first: Some(request.first),
            done: Some(request.done),
        });
        let loads = self.servers.iter().flat_map(|server| server.loads.iter().copied()).collect();
        let total = |tokens: fn(&Server) -> f64| self.servers.iter().map(tokens).sum::<f64>();
        let hits = total(|server| server.cached_tokens) / total(|server| server.prompt_tokens).max(1.0);
        Run::new(self.span, outcomes.collect(), loads, hits)
    }

    fn ring(&mut self, alarm: Alarm) {
        match alarm {
            Alarm::Speed { server, factor } => self.servers[server].set_factor(self.now, factor),
            Alarm::Measured { server, factor } => self.speeds[server] = self.servers[server].spec.speed * factor,
            Alarm::Asks { session, turn } => {
                let prompt = self.conversations[session].tokens + self.sessions[session].turns[turn].prompt;
                let issued = self.now;
                self.queue.push_back(self.requests.len());
                self.requests.push(Request { session, turn, prompt, issued, first: 0.0, done: 0.0 });
                self.dispatch();
            }
        }
    }

    fn happened(&mut self, server: usize, event: Event) {
        match event {
            Event::First(id) => self.requests[id as usize].first = self.now,
            Event::Done(id, _) => {
                let request = &mut self.requests[id as usize];
                request.done = self.now;
                let (index, turn) = (request.session, request.turn);
                let session = &self.sessions[index];
                let tokens = request.prompt + session.turns[turn].output;
                self.conversations[index] = Conversation { tokens, server: Some(server) };
                if turn + 1 < session.turns.len() && tokens < CONTEXT {
                    let at = self.now + session.turns[turn].think;
                    self.set(at, Alarm::Asks { session: index, turn: turn + 1 });
                }
            }
        }
    }

    fn dispatch(&mut self) {
        // Those further ahead in the queue that will go to this server.
        let mut ahead = vec![[0.0_f64; MODELS]; self.servers.len()];
        let mut index = 0;
        while index < self.queue.len().min(HORIZON) {
            let id = self.queue[index];
            let model = self.sessions[self.requests[id].session].model;
            let mut best = (f64::INFINITY, 0);
            for server in (0..self.servers.len()).filter(|server| self.servers[*server].spec.disk[model]) {
                let score = self.score(server, id, ahead[server][model]);
                if score < best.0 {
                    best = (score, server);
                }
            }
            let chosen = best.1;
            if ahead[chosen][model] > 0.0 || !self.could_start(chosen, model) {
                ahead[chosen][model] += 1.0;
                index += 1;
                continue;
            }
            self.queue.remove(index);
            let request = &self.requests[id];
            let session = &self.sessions[request.session];
            let job = Job {
                id: id as u64,
                conversation: session.conversation,
                model,
                prompt: request.prompt,
                output: session.turns[request.turn].output,
            };
            self.servers[chosen].submit(self.now, job);
        }
    }

    /// Whether something would be done about it at once.
    fn could_start(&self, server: usize, model: usize) -> bool {
        let server = &self.servers[server];
        if server.is_loaded(model) {
            return server.running(model) + server.queued(model) < server.spec.slots;
        }
        let nothing_pending = (0..MODELS).all(|model| !server.is_pending(model));
        let room = server.occupied() < server.spec.most_loaded || server.has_idle();
        server.loading().is_none() && nothing_pending && room
    }

    /// Expected seconds until the request is done there, and what it costs others: the formula of `src/balance/score.rs`, with
    /// everything known and nothing late.
    fn score(&self, index: usize, id: usize, ahead: f64) -> f64 {
        let (server, speed) = (&self.servers[index], self.speeds[index]);
        let request = &self.requests[id];
        let model = self.sessions[request.session].model;
        let slots = server.spec.slots;
        let capacity = slots as f64;
        let loaded = server.is_loaded(model);

        let busy = |other: &usize| *other != model && server.running(*other) + server.queued(*other) > 0;
        let others = server.loaded().filter(busy).count() as f64;
        let share = 1.0 / (1.0 + others);
        let conversation = &self.conversations[request.session];
        let cached = match conversation.server {
            Some(last) if last == index && loaded => conversation.tokens.min(request.prompt - 1.0),
            _ => 0.0,
        };

        let running = server.running(model);
        let before = running as f64 + server.queued(model) as f64 + ahead;
        let wait = if before >= capacity {
            let throughput = capacity * batch(slots) * speed * share / work(model, EXPECTED_PROMPT, EXPECTED_OUTPUT);
            (before - capacity + 1.0) / throughput
        } else {
            0.0
        };
        let neighbours = (before + 1.0).min(capacity) as usize;
        let service = work(model, request.prompt - cached, EXPECTED_OUTPUT) / (speed * share * batch(neighbours));

        // What it costs those who are there, and those who will wait behind it.
        let mut cost = 0.0;
        let running = running.min(slots);
        if running < slots {
            cost += running as f64 * (1.0 - batch(running + 1) / batch(running)) * service;
        }
        if running == 0 {
            let elsewhere = server.loaded().filter(|other| *other != model);
            let jobs: f64 = elsewhere.map(|other| server.running(other).min(slots) as f64).sum();
            cost += jobs / (others + 1.0) * service;
        }
        cost += CONGESTION * (before - capacity + 1.0).max(0.0) / capacity * service;

        let load = if loaded { 0.0 } else { self.load_score(server, model, speed, share) };
        wait + load + service + cost
    }

    fn load_score(&self, server: &Server, model: usize, speed: f64, share: f64) -> f64 {
        let spec = &server.spec;
        if server.loading() == Some(model) {
            return 0.6 * spec.load_time(model);
        }
        let mut load = spec.load_time(model);
        if let Some(other) = server.loading() {
            load += 0.5 * spec.load_time(other);
        }
        let before = |other: &usize| *other != model && server.is_pending(*other) && server.loading() != Some(*other);
        load += (0..MODELS).filter(before).map(|other| spec.load_time(other)).sum::<f64>();
        if server.occupied() < spec.most_loaded {
            return load;
        }
        let expected = |model| work(model, EXPECTED_PROMPT, EXPECTED_OUTPUT);
        if !server.has_idle() {
            let throughput = spec.slots as f64 * batch(spec.slots) * speed * share;
            let drain =
                |other: usize| (server.running(other) + server.queued(other)) as f64 * expected(other) / throughput;
            let soonest = server.loaded().map(drain).fold(f64::INFINITY, f64::min);
            load += soonest.min(600.0).max(expected(model) / speed);
        }
        let victim = server.loaded().map(|other| spec.load_time(other)).fold(f64::INFINITY, f64::min);
        load + EVICTION * victim.min(60.0)
    }
}

/// That what is computed here is what another implementation computes (2,100 s, of which 300 s warm-up, of its first seed):
/// scenario and load, then quantiles of the time to the first token. Another machine's logarithm may differ in its last
/// digit and so move an event, hence the tolerance.
///
/// # Panics
/// If it is not.
pub fn check() {
    let span = Span { warm_up: 300.0, end: 2100.0 };
    let known = [
        (Scenario::h1(), 0.85, [0.47, 3.35, 5.58]),
        (Scenario::a(), 0.85, [0.88, 10.56, 18.52]),
        (Scenario::a(), 0.95, [1.75, 13.80, 25.22]),
        (Scenario::brownout(), 0.85, [1.24, 11.11, 19.76]),
    ];
    for (scenario, load, wanted) in known {
        let run = run(&scenario, &sessions(&scenario, load, 1, span.end), span);
        for (quantile, wanted) in [0.5, 0.95, 0.99].into_iter().zip(wanted) {
            let found = run.quantile(Time::First, quantile);
            let name = scenario.name;
            assert!((found / wanted - 1.0).abs() < 0.03, "the ideal of {name} at {load}: {found} and not {wanted}");
        }
    }
}
