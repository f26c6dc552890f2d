//! Eight equal servers, one model, fifty users (H1 of `benches/balance`), in virtual time: the policy beside one queue that sees
//! everything, and beside round robin. Workload and servers are those of `benches/balance`; tickets arrive in no time, what is
//! known of servers is 50 ms old.

mod host;
mod workload;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use self::host::{DECODE, Host, PREFILL, SLOTS};
use self::workload::{CLIENTS, Random, Session};
use super::plan::{Candidate, Knowledge, Plan, next_look, plan};
use super::score::tests::server;
use super::score::{Request, Score, Server, score};

const SERVERS: usize = 8;
/// Requests a second that the servers can just do, of this workload: as measured of the central queue.
const CAPACITY: f64 = 2.869;
const WARM_UP: f64 = 600.0;
/// How old what is known of a server is, in seconds.
const DELAY: f64 = 0.05;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Policy {
    /// What is tested, with reports this late.
    Tickets { delay: f64 },
    /// One queue, exact knowledge, planned again with everything that happens.
    Central,
    /// Each user one server after the other.
    RoundRobin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A session asks its next question.
    Ask(usize),
    /// Something is done at a server, if nothing has changed there since.
    Step(usize, u64),
    /// A request that waits is looked at again.
    Look(usize),
}

/// One at a time, in the order of time and then of making.
type Agenda = BinaryHeap<Reverse<(Moment, u64, Event)>>;

#[derive(Debug, Clone, Copy, PartialEq)]
struct Moment(f64);

impl Eq for Moment {}
impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Moment {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

struct Asked {
    session: usize,
    client: usize,
    prompt: f64,
    answer: f64,
    since: f64,
    tickets: Vec<usize>,
    placed: bool,
    first: bool,
}

struct World {
    policy: Policy,
    random: Random,
    now: f64,
    agenda: Agenda,
    events: u64,
    sessions: Vec<Session>,
    requests: Vec<Asked>,
    hosts: Vec<Host>,
    /// Where each client's turn is.
    turns: Vec<usize>,
    /// The central queue.
    queue: VecDeque<usize>,
    /// Tickets by client, server, time and weight, as long as no report can know of them.
    recent: VecDeque<(f64, usize, usize, f64)>,
    /// Seconds to the first token.
    waits: Vec<f64>,
}

// === impl World ===

impl World {
    fn new(policy: Policy, load: f64, horizon: f64, seed: u64) -> Self {
        let mut random = Random(seed);
        let (mut at, mut sessions, mut agenda) = (0.0, vec![], Agenda::new());
        while at < horizon {
            at += random.exponential(Session::mean_turns() / (load * CAPACITY));
            agenda.push(Reverse((Moment(at), sessions.len() as u64, Event::Ask(sessions.len()))));
            sessions.push(Session::random(&mut random));
        }
        Self {
            policy,
            random,
            now: 0.0,
            agenda,
            events: sessions.len() as u64,
            sessions,
            requests: vec![],
            hosts: (0..SERVERS).map(|_| Host::default()).collect(),
            turns: (0..CLIENTS).collect(),
            queue: VecDeque::new(),
            recent: VecDeque::new(),
            waits: vec![],
        }
    }

    /// Seconds to the first token of all that was asked between the end of the warm-up and the horizon.
    fn run(mut self, horizon: f64) -> Vec<f64> {
        let mut asked_in_time = 0;
        while let Some(Reverse((Moment(now), _, event))) = self.agenda.pop() {
            self.now = now;
            match event {
                Event::Ask(session) => {
                    if (WARM_UP..horizon).contains(&now) {
                        asked_in_time += 1;
                    }
                    self.ask(session);
                }
                Event::Step(host, version) if self.hosts[host].version == version => self.step(host, horizon),
                Event::Look(request) if !self.requests[request].placed => self.look(request),
                Event::Step(..) | Event::Look(_) => {}
            }
        }
        assert_eq!(self.waits.len(), asked_in_time, "none is lost, none is run twice");
        self.waits
    }

    fn at(&mut self, after: f64, event: Event) {
        self.events += 1;
        self.agenda.push(Reverse((Moment(self.now + after), self.events, event)));
    }

    fn ask(&mut self, session: usize) {
        let (of, request) = (&self.sessions[session], self.requests.len());
        let turn = &of.turns[of.next];
        self.requests.push(Asked {
            session,
            client: of.client,
            prompt: of.said + turn.question,
            answer: turn.answer,
            since: self.now,
            tickets: vec![],
            placed: false,
            first: false,
        });
        match self.policy {
            Policy::Tickets { .. } => self.look(request),
            Policy::Central => {
                self.queue.push_back(request);
                self.plan_all();
            }
            Policy::RoundRobin => {
                let turn = &mut self.turns[self.requests[request].client];
                *turn += 1;
                let host = *turn % SERVERS;
                self.send(request, host);
            }
        }
    }

    fn send(&mut self, request: usize, host: usize) {
        self.withdraw(request);
        self.requests[request].placed = true;
        self.hosts[host].run_until(self.now);
        self.hosts[host].queue.push_back(request);
        self.fill(host);
    }

    /// Lets in what there is room for, and says so.
    fn fill(&mut self, host: usize) {
        while self.hosts[host].jobs.len() < SLOTS {
            let request = match self.hosts[host].queue.pop_front() {
                Some(request) => request,
                None => {
                    let Some(request) = self.hosts[host].tickets.front().copied() else { break };
                    self.withdraw(request);
                    self.requests[request].placed = true;
                    request
                }
            };
            self.hosts[host].begin(request, &self.requests[request]);
        }
        let of = &mut self.hosts[host];
        of.version += 1;
        let (version, next) = (of.version, of.next_step());
        if let Some(next) = next {
            self.at(next + 1e-7, Event::Step(host, version));
        }
        self.report(host);
    }

    fn report(&mut self, host: usize) {
        let requests = &self.requests;
        let of = &mut self.hosts[host];
        let weight = |request: &usize| 1.0 / requests[*request].tickets.len().max(1) as f64;
        let waits = of.queue.len() as f64 + of.tickets.iter().map(weight).sum::<f64>();
        of.reports.push_back((self.now, of.jobs.len(), waits));
        while of.reports.get(1).is_some_and(|(at, ..)| *at < self.now - 5.0) {
            of.reports.pop_front();
        }
    }

    fn step(&mut self, host: usize, horizon: f64) {
        self.hosts[host].run_until(self.now);
        let mut index = 0;
        while let Some(job) = self.hosts[host].jobs.get(index) {
            let (request, reading, writing) = (job.request, job.reading, job.writing);
            let asked = &mut self.requests[request];
            if reading <= 1e-6 && !asked.first {
                asked.first = true;
                if (WARM_UP..horizon).contains(&asked.since) {
                    self.waits.push(self.now - asked.since);
                }
            }
            if reading > 1e-6 || writing > 1e-6 {
                index += 1;
                continue;
            }
            self.hosts[host].jobs.swap_remove(index);
            let (session, said) = (asked.session, asked.prompt + asked.answer);
            self.hosts[host].end(session, said);
            let of = &mut self.sessions[session];
            let pause = of.turns[of.next].pause;
            (of.said, of.at, of.next) = (said, Some(host), of.next + 1);
            if of.next < of.turns.len() && said < 8192.0 {
                self.at(pause, Event::Ask(session));
            }
        }
        self.fill(host);
        if self.policy == Policy::Central {
            self.plan_all();
        }
    }

    fn withdraw(&mut self, request: usize) {
        for host in std::mem::take(&mut self.requests[request].tickets) {
            self.hosts[host].tickets.retain(|other| *other != request);
            self.report(host);
        }
    }

    fn score(&self, request: usize, host: usize, server: &Server) -> Score {
        let asked = &self.requests[request];
        let session = &self.sessions[asked.session];
        let cached = if session.at == Some(host) { session.said } else { 0.0 };
        let ask = Request { prompt: asked.prompt, cached, output: 262.0, usual_prompt: 420.0, usual_output: 262.0 };
        score(server, &ask)
    }

    fn server(running: usize, queued: f64) -> Server {
        Server { running: running as f64, queued, slots: SLOTS as f64, prefill: PREFILL, decode: DECODE, ..server() }
    }

    /// The policy under test: what a node does with a request, the first time and while it waits.
    fn look(&mut self, request: usize) {
        let Policy::Tickets { delay } = self.policy else { return };
        while self.recent.front().is_some_and(|(at, ..)| *at < self.now - delay) {
            self.recent.pop_front();
        }
        let asked = &self.requests[request];
        let candidates: Vec<Candidate> = (0..SERVERS)
            .map(|at| {
                let host = &self.hosts[at];
                let seen = host.reports.iter().rev().find(|(when, ..)| *when <= self.now - delay);
                let (_, running, queued) = seen.or(host.reports.front()).copied().unwrap_or_default();
                let unreported =
                    self.recent.iter().filter(|(_, client, host, _)| (*client, *host) == (asked.client, at));
                let held = asked.tickets.contains(&at);
                let before = host.tickets.iter().take_while(|other| **other != request);
                let ahead = before.map(|other| 1.0 / self.requests[*other].tickets.len() as f64).sum();
                let server = Server {
                    unreported: unreported.map(|(.., weight)| weight).sum(),
                    ahead: held.then_some(ahead),
                    ..Self::server(running, queued)
                };
                Candidate {
                    score: self.score(request, at, &server),
                    eligible: true,
                    free: server.has_free_slot(),
                    knowledge: Knowledge::Reported,
                    local: false,
                    held,
                    due: false,
                    idle: false,
                }
            })
            .collect();
        let tie = usize::try_from(self.random.bits() >> 33).expect("31 bits");
        match plan(&candidates, tie).expect("there are servers") {
            Plan::Send(host) => self.send(request, host),
            Plan::Tickets(one, other) => self.hold(request, &[Some(one), other]),
            Plan::Stay => {}
        }
        if !self.requests[request].placed {
            let after = next_look(self.random.unit()).as_secs_f64();
            self.at(after, Event::Look(request));
        }
    }

    fn hold(&mut self, request: usize, hosts: &[Option<usize>; 2]) {
        let hosts = || hosts.iter().flatten().copied();
        let weight = 1.0 / hosts().count() as f64;
        for given_up in std::mem::take(&mut self.requests[request].tickets) {
            if !hosts().any(|host| host == given_up) {
                self.hosts[given_up].tickets.retain(|other| *other != request);
                self.report(given_up);
            }
        }
        self.requests[request].tickets = hosts().collect();
        for host in hosts() {
            if !self.hosts[host].tickets.contains(&request) {
                self.hosts[host].tickets.push_back(request);
                self.recent.push_back((self.now, self.requests[request].client, host, weight));
            }
        }
        for host in hosts() {
            if !self.requests[request].placed {
                self.hosts[host].run_until(self.now);
                self.fill(host);
            }
        }
    }

    /// What one perfect dispatcher would do: each in its turn is given to where it would be done first, as the queue
    /// stands; those who would run at once do.
    fn plan_all(&mut self) {
        let mut planned = [0.0; SERVERS];
        let mut index = 0;
        while let Some(&request) = self.queue.get(index) {
            let total = |host: usize| {
                let running = self.hosts[host].jobs.len();
                self.score(request, host, &Self::server(running, planned[host])).total
            };
            let best = (0..SERVERS).min_by(|&one, &other| total(one).total_cmp(&total(other))).expect("there are some");
            if planned[best] == 0.0 && self.hosts[best].jobs.len() < SLOTS {
                self.queue.remove(index);
                self.send(request, best);
            } else {
                planned[best] += 1.0;
                index += 1;
            }
        }
    }
}

/// The time to the first token that 99 of 100 do not exceed, on average over seeds.
fn p99(policy: Policy, load: f64, horizon: f64, seeds: std::ops::Range<u64>) -> f64 {
    let count = seeds.clone().count() as f64;
    let of = |seed| {
        let mut waits = World::new(policy, load, horizon, seed).run(horizon);
        waits.sort_by(f64::total_cmp);
        waits[waits.len() * 99 / 100]
    };
    seeds.map(of).sum::<f64>() / count
}

#[test]
fn many_who_decide_alone_do_nearly_as_well_as_one_who_sees_all() {
    let p99 = |policy| p99(policy, 0.85, 4000.0, 0..4);
    let (ours, central) = (p99(Policy::Tickets { delay: DELAY }), p99(Policy::Central));
    let round_robin = p99(Policy::RoundRobin);
    println!("p99 of the time to the first token: {ours:.1} s, central {central:.1} s, round robin {round_robin:.1} s");
    assert!(ours <= 1.25 * central, "{ours} against {central}");
    assert!(round_robin >= 5.0 * ours, "{round_robin} against {ours}");
}

#[test]
#[ignore = "takes a minute or two: cargo test --lib balance::simulation -- --ignored --nocapture"]
fn at_full_length() {
    let p99 = |policy, load| p99(policy, load, 9000.0, 100..108);
    println!("load  tickets  1 s late  central  round robin");
    for load in [0.5, 0.7, 0.85, 0.95] {
        let (ours, late) = (p99(Policy::Tickets { delay: DELAY }, load), p99(Policy::Tickets { delay: 1.0 }, load));
        let (central, round_robin) = (p99(Policy::Central, load), p99(Policy::RoundRobin, load));
        println!("{load:.2}  {ours:7.2}  {late:8.2}  {central:7.2}  {round_robin:11.2}");
        // A quarter above the ideal at 85 %, and at 95 %, where little is lost for long, six tenths.
        assert!(ours <= if load < 0.9 { 1.25 } else { 1.6 } * central, "{ours} against {central}");
        assert!(round_robin >= if load < 0.8 { 1.0 } else { 5.0 } * ours, "{round_robin} against {ours}");
        assert!(late <= 1.3 * ours, "reports 1 s late: {late} against {ours}");
    }
}
