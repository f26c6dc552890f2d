//! The servers of a scenario in real time, at the tempo of the clock: one thread moves them all.
//!
//! A thread and not a task, since tokio's timers know milliseconds, of which each is twenty of the simulation. What is due
//! is reckoned with the moment at which it was due, however late the thread comes to it: the servers lose no capacity to
//! the scheduler, only whoever waits for an answer hears of it a little late.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_util::task::AbortOnDropHandle;

use super::clock::Clock;
use super::ollama;
use super::server::{Event, Job, Server, Stages};
use super::workload::{MODELS, Scenario, Span};

/// The servers, each at an address of its own. They end with it.
pub struct Fleet {
    pub addresses: Vec<SocketAddr>,
    orders: mpsc::Sender<Order>,
    thread: JoinHandle<Vec<Server>>,
    _serving: Vec<AbortOnDropHandle<()>>,
}

/// What the rest of a server needs of the thread.
#[derive(Clone)]
pub struct Desk {
    server: usize,
    orders: mpsc::Sender<Order>,
    next_id: Arc<AtomicU64>,
    /// Which models are in memory.
    loaded: Arc<[AtomicBool; MODELS]>,
}

/// How a request gets on. Dropping it gives the request up.
pub struct Progress {
    id: u64,
    desk: Desk,
    stages: UnboundedReceiver<Step>,
}

/// What is said to whoever waits.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    First,
    /// It has so many tokens by now.
    Said(usize),
    Done(Stages),
}

enum Order {
    Submit {
        server: usize,
        job: Job,
        tell: UnboundedSender<Step>,
    },
    GiveUp {
        server: usize,
        id: u64,
    },
    /// The clock was started.
    Begin,
    End,
}

struct Engine {
    clock: Clock,
    servers: Vec<Server>,
    desks: Vec<Desk>,
    waiting: HashMap<u64, UnboundedSender<Step>>,
    /// Those to come, the last first.
    speed_changes: Vec<(f64, usize, f64)>,
    events: Vec<Event>,
    /// When those that wait are told next how far their answers are.
    tells: f64,
}

/// Simulated seconds from one look at how far answers are to the next.
const LOOK: f64 = 0.5;

// === impl Fleet ===

impl Fleet {
    pub async fn start(scenario: &Scenario, span: Span, clock: &Clock) -> Self {
        let (orders, received) = mpsc::channel();
        let next_id = Arc::<AtomicU64>::default();
        let desks: Vec<Desk> = (0..scenario.servers.len())
            .map(|server| Desk {
                server,
                orders: orders.clone(),
                next_id: Arc::clone(&next_id),
                loaded: Arc::default(),
            })
            .collect();
        let loaded = scenario.one_model.then_some(0);
        let mut speed_changes = scenario.speed_changes(span);
        speed_changes.reverse();
        let engine = Engine {
            clock: clock.clone(),
            servers: scenario.servers.iter().map(|spec| Server::new(spec.clone(), loaded)).collect(),
            desks: desks.clone(),
            waiting: HashMap::new(),
            speed_changes,
            events: Vec::new(),
            tells: 0.0,
        };
        engine.publish();
        let thread = std::thread::Builder::new().name("fleet".to_owned()).spawn(move || engine.run(&received)).unwrap();
        let mut addresses = Vec::new();
        let mut serving = Vec::new();
        for (desk, spec) in desks.into_iter().zip(&scenario.servers) {
            let models = (0..if scenario.one_model { 1 } else { MODELS }).filter(|model| spec.disk[*model]).collect();
            let (address, task) = ollama::serve(desk, models, clock.clone()).await;
            addresses.push(address);
            serving.push(task);
        }
        Self { addresses, orders, thread, _serving: serving }
    }

    /// Tells it that the clock was started.
    pub fn begin(&self) {
        self.orders.send(Order::Begin).expect("the thread of the fleet");
    }

    /// The servers as they are now.
    pub fn end(self) -> Vec<Server> {
        self.orders.send(Order::End).expect("the thread of the fleet");
        self.thread.join().expect("the thread of the fleet")
    }
}

// === impl Desk ===

impl Desk {
    pub fn is_loaded(&self, model: usize) -> bool {
        self.loaded[model].load(Ordering::Relaxed)
    }

    /// Hands in a job; its id is given here.
    pub fn submit(&self, mut job: Job) -> Progress {
        job.id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (tell, stages) = unbounded_channel();
        // A thread that has ended drops the sender, and the request breaks off.
        let _ = self.orders.send(Order::Submit { server: self.server, job, tell });
        Progress { id: job.id, desk: self.clone(), stages }
    }
}

// === impl Progress ===

impl Progress {
    /// The next step; `None` after the last, or if the server is gone.
    pub async fn next(&mut self) -> Option<Step> {
        self.stages.recv().await
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        // Does nothing about a job that is done.
        let _ = self.desk.orders.send(Order::GiveUp { server: self.desk.server, id: self.id });
    }
}

// === impl Engine ===

impl Engine {
    fn run(mut self, orders: &mpsc::Receiver<Order>) -> Vec<Server> {
        loop {
            let next = self.servers.iter().map(Server::next_event).fold(self.next_speed_change(), f64::min);
            let next = if self.waiting.is_empty() { next } else { next.min(self.tells) };
            // Without a moment it is an order that comes next.
            let wait = self.clock.instant(next).map(|at| at.saturating_duration_since(std::time::Instant::now()));
            let order = orders.recv_timeout(wait.unwrap_or(Duration::from_secs(3600)));
            let now = self.clock.now();
            self.catch_up(now);
            if now >= self.tells {
                self.tell(now);
            }
            match order {
                Ok(Order::Submit { server, job, tell }) => {
                    self.waiting.insert(job.id, tell);
                    self.servers[server].submit(now, job);
                }
                Ok(Order::GiveUp { server, id }) => {
                    if self.waiting.remove(&id).is_some() {
                        self.servers[server].cancel(now, id);
                    }
                }
                Ok(Order::Begin) | Err(RecvTimeoutError::Timeout) => {}
                Ok(Order::End) | Err(RecvTimeoutError::Disconnected) => return self.servers,
            }
            self.publish();
        }
    }

    fn next_speed_change(&self) -> f64 {
        self.speed_changes.last().map_or(f64::INFINITY, |(at, _, _)| *at)
    }

    /// Does in order whatever was due before now.
    fn catch_up(&mut self, now: f64) {
        while let Some((at, server, factor)) = self.speed_changes.pop_if(|(at, _, _)| *at <= now) {
            self.step_until(at);
            self.servers[server].set_factor(at, factor);
        }
        self.step_until(now);
    }

    fn step_until(&mut self, until: f64) {
        for server in &mut self.servers {
            while server.next_event() <= until {
                server.step(server.next_event(), &mut self.events);
            }
        }
        for event in self.events.drain(..) {
            // Nobody listens to a request that was given up a moment ago.
            match event {
                Event::First(id) => drop(self.waiting.get(&id).map(|tell| tell.send(Step::First))),
                Event::Done(id, stages) => drop(self.waiting.remove(&id).map(|tell| tell.send(Step::Done(stages)))),
            }
        }
    }

    fn tell(&mut self, now: f64) {
        self.tells = now + LOOK;
        for server in &mut self.servers {
            for (id, tokens) in server.said(now) {
                if let Some(tell) = self.waiting.get(&id) {
                    let _ = tell.send(Step::Said(tokens));
                }
            }
        }
    }

    fn publish(&self) {
        for (server, desk) in self.servers.iter().zip(&self.desks) {
            for (model, loaded) in desk.loaded.iter().enumerate() {
                loaded.store(server.is_loaded(model), Ordering::Relaxed);
            }
        }
    }
}
