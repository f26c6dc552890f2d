//! Other policies, over plain HTTP straight to the simulated Ollamas. As many decide, each by what it sees itself, as the
//! mesh has nodes of users, for the same clients.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::stream::{self, StreamExt as _};
use http::Response;
use hyper::body::Incoming;
use tower::balance::p2c::Balance;
use tower::discover::Change;
use tower::load::completion::TrackCompletion;
use tower::load::{PeakEwma, peak_ewma};
use tower::{Service, ServiceExt as _};

use super::clients::{Answer, Http, Question, Way, at, failure, http};
use super::clock::Clock;
use super::workload::Random;

/// Simulated seconds in which `PeakEwma` forgets, linkerd's default.
const DECAY: f64 = 10.0;
/// Simulated seconds that it expects of a server of which it knows nothing.
const DEFAULT_RTT: f64 = 1.0;

/// A policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rival {
    RoundRobin,
    Random,
    LeastConnections,
    PeakEwma,
}

// === impl Rival ===

impl Rival {
    pub const ALL: [Self; 4] = [Self::RoundRobin, Self::Random, Self::LeastConnections, Self::PeakEwma];

    pub fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round robin",
            Self::Random => "random",
            Self::LeastConnections => "least connections",
            Self::PeakEwma => "tower p2c, PeakEwma",
        }
    }

    /// A way by this policy to these servers, of so many users.
    pub fn way(self, servers: &[SocketAddr], users: usize, clock: &Clock, seed: u64) -> Arc<dyn Way> {
        let servers = Arc::<[SocketAddr]>::from(servers);
        if self == Self::PeakEwma {
            return Arc::new(Balanced::new(&servers, users, clock));
        }
        let users = (0..users).map(|user| View {
            // Not all begin with the same server.
            next: user * 3,
            random: Random::new(seed.wrapping_mul(1009) + user as u64),
            running: servers.iter().map(|_| Arc::default()).collect(),
        });
        Arc::new(Local { policy: self, http: http(), users: users.map(Mutex::new).collect(), servers })
    }
}

/// Policies of a few lines.
struct Local {
    policy: Rival,
    http: Http,
    servers: Arc<[SocketAddr]>,
    users: Vec<Mutex<View>>,
}

/// What one user's node knows.
struct View {
    next: usize,
    random: Random,
    /// Its own requests, until the end of the answer.
    running: Vec<Arc<AtomicUsize>>,
}

/// One of those requests.
struct Running(Arc<AtomicUsize>);

impl View {
    fn pick(&mut self, policy: Rival) -> usize {
        let servers = self.running.len();
        match policy {
            Rival::RoundRobin => {
                self.next += 1;
                (self.next - 1) % servers
            }
            Rival::LeastConnections => {
                let running: Vec<_> = self.running.iter().map(|count| count.load(Ordering::Relaxed)).collect();
                let fewest = running.iter().min();
                let equal: Vec<_> = (0..servers).filter(|server| running.get(*server) == fewest).collect();
                equal[self.random.below(equal.len())]
            }
            Rival::Random | Rival::PeakEwma => self.random.below(servers),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Way for Local {
    fn ask(&self, client: usize, question: Question) -> Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>> {
        let (server, running) = {
            let mut view = self.users[client % self.users.len()].lock().unwrap();
            let server = view.pick(self.policy);
            (server, Arc::clone(&view.running[server]))
        };
        running.fetch_add(1, Ordering::Relaxed);
        let counted = Box::new(Running(running));
        let asking = self.http.request(at(self.servers[server], question));
        Box::pin(async move { Ok(Answer { response: asking.await.map_err(failure)?, counted }) })
    }
}

/// `tower`'s balancer, one for each user.
struct Balanced(Vec<Arc<tokio::sync::Mutex<Balancer>>>);

type Balancer = Balance<Servers, Question>;
type Servers = Pin<Box<dyn futures_core::Stream<Item = Result<Change<usize, Measured>, tower::BoxError>> + Send>>;
type Measured = PeakEwma<One, UntilTheEnd>;

/// One server as a service, always ready.
struct One {
    http: Http,
    address: SocketAddr,
}

/// Counts a request until the end of its answer's body: `tower`'s own [`CompleteOnResponse`](tower::load::CompleteOnResponse)
/// stops at the head, which would not be fair where answers stream.
#[derive(Clone)]
struct UntilTheEnd;

// === impl Balanced ===

impl Balanced {
    fn new(servers: &Arc<[SocketAddr]>, users: usize, clock: &Clock) -> Self {
        let http = http();
        let balancer = |_| {
            let (http, clock, servers) = (http.clone(), clock.clone(), Arc::clone(servers));
            let services = (0..servers.len()).map(move |server| {
                let one = One { http: http.clone(), address: servers[server] };
                let decay = clock.real(DECAY).as_nanos() as f64;
                Ok(Change::Insert(server, PeakEwma::new(one, clock.real(DEFAULT_RTT), decay, UntilTheEnd)))
            });
            // Endless: the balancer asks for more as long as it lives.
            let endpoints: Servers = Box::pin(stream::iter(services.collect::<Vec<_>>()).chain(stream::pending()));
            Arc::new(tokio::sync::Mutex::new(Balance::new(endpoints)))
        };
        Self((0..users).map(balancer).collect())
    }
}

impl Way for Balanced {
    fn ask(&self, client: usize, question: Question) -> Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>> {
        let balancer = Arc::clone(&self.0[client % self.0.len()]);
        Box::pin(async move {
            let asking = {
                let mut balancer = balancer.lock().await;
                balancer.ready().await.map_err(|error| error.to_string())?.call(question)
            };
            asking.await.map_err(|error| error.to_string())
        })
    }
}

// === impl One ===

impl Service<Question> for One {
    type Response = Response<Incoming>;
    type Error = tower::BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Incoming>, tower::BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), tower::BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, question: Question) -> Self::Future {
        let asking = self.http.request(at(self.address, question));
        Box::pin(async move { Ok(asking.await?) })
    }
}

impl TrackCompletion<peak_ewma::Handle, Response<Incoming>> for UntilTheEnd {
    type Output = Answer;

    fn track_completion(&self, handle: peak_ewma::Handle, response: Response<Incoming>) -> Answer {
        Answer { response, counted: Box::new(handle) }
    }
}
