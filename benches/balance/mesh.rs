//! The mesh: a provider before each simulated Ollama and nodes of users, all as `ollana serve` runs them, in this process,
//! over QUIC on loopback.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ollana::NodeName;
use ollana::internals::control::Mesh as View;
use ollana::internals::peers::PeerState;
use ollana::{App, AppError};
use ollana::{Config, Mode, Status};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::clients::{Answer, Http, Question, Way, at, failure, http};

/// Until all have found each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// What nodes are told that is for a bench alone.
#[derive(Debug, Clone, Copy)]
pub struct Tuning {
    /// How much faster than real time the servers are: what nodes do every so often, they have to do as much more often.
    pub tempo: f64,
    /// Real time by which what providers report reaches the balancer late.
    pub report_delay: Duration,
}

/// What a server has room for.
#[derive(Debug, Clone, Copy)]
pub struct Holds {
    /// Requests of each model at a time.
    pub slots: usize,
    /// Models.
    pub most_loaded: usize,
}

/// The nodes. Dropping it ends them without a goodbye; see [`stop`](Self::stop).
pub struct Mesh {
    providers: Vec<Node>,
    users: Vec<Node>,
    http: Mutex<Http>,
    _state: TempDir,
}

struct Node {
    listen: Option<SocketAddr>,
    mesh: SocketAddr,
    view: Arc<dyn View>,
    shutdown: CancellationToken,
    running: AbortOnDropHandle<Result<(), AppError>>,
}

// === impl Tuning ===

impl Tuning {
    /// For servers that are as fast as they seem.
    pub const NONE: Self = Self { tempo: 1.0, report_delay: Duration::ZERO };

    /// The one place where a node is told; a provider also how many requests its server runs at a time and how many models it
    /// keeps, as its owner can (`lend.parallel`, `lend.max_loaded`): a real Ollama's environment says both. Nobody waits in vain on a node for a place: all clients of a bench are a few users' nodes.
    fn tell(self, config: &mut Config, holds: Option<Holds>) {
        config.tempo = self.tempo;
        config.report_delay = self.report_delay;
        config.lend.parallel = holds.and_then(|holds| u32::try_from(holds.slots).ok());
        config.lend.max_loaded = holds.and_then(|holds| u32::try_from(holds.most_loaded).ok());
        config.balance.waiting = 4096;
    }
}

// === impl Mesh ===

impl Mesh {
    /// Starts so many nodes of users, and a provider for each server, given with what it has room for; and waits until all users may
    /// use all servers.
    pub async fn start(servers: &[(SocketAddr, Holds)], users: usize, tuning: Tuning) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut providers = Vec::new();
        for (index, (server, holds)) in servers.iter().enumerate() {
            let mut config = Config::for_test(state.path().join(format!("p{index}")));
            config.name = NodeName::lossy(&format!("provider{index}"));
            config.mode = Mode::Server;
            config.ollama.url = format!("http://{server}").parse().unwrap();
            providers.push(Node::start(config, tuning, Some(*holds)).await);
        }
        let peers = || providers.iter().map(|provider| provider.mesh.to_string().parse().unwrap()).collect();
        let mut nodes = Vec::new();
        for index in 0..users {
            let mut config = Config::for_test(state.path().join(format!("u{index}")));
            config.name = NodeName::lossy(&format!("user{index}"));
            config.mode = Mode::Client;
            config.peers = peers();
            nodes.push(Node::start(config, tuning, None).await);
        }
        let mesh = Self { providers, users: nodes, http: Mutex::new(http()), _state: state };
        mesh.until_all_are_met(servers.len()).await;
        mesh
    }

    async fn until_all_are_met(&self, servers: usize) {
        let started = Instant::now();
        for user in &self.users {
            let usable = || {
                let peers = user.view.peers();
                let usable = |peer: &&_| {
                    let peer: &ollana::internals::peers::PeerView = peer;
                    peer.state == PeerState::Connected && peer.provider && !peer.models.is_empty()
                };
                peers.iter().filter(usable).count()
            };
            while usable() < servers {
                assert!(started.elapsed() < PATIENCE, "{:?} sees {} of {servers}", user.view.info().name, usable());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// Closes the connections of the clients that are idle.
    pub fn forget_connections(&self) {
        *self.http.lock().unwrap() = http();
    }

    /// Requests that are not over, as the users are told by the providers.
    pub fn inflight(&self) -> u64 {
        let peers = self.users.iter().flat_map(|user| user.view.peers());
        peers.map(|peer| u64::from(peer.inflight)).sum()
    }

    /// What still has a slot or waits for one, as the gates themselves say; tickets with a twin as halves.
    pub fn at_gates(&self) -> f64 {
        let models = self.providers.iter().flat_map(|provider| provider.view.numbers().into_values());
        models.map(|of| f64::from(of.load.running) + f64::from(of.load.queued)).sum()
    }

    /// Ends the nodes as SIGTERM does.
    pub async fn stop(self) {
        for node in self.users.into_iter().chain(self.providers) {
            node.shutdown.cancel();
            node.running.await.unwrap().unwrap();
        }
    }
}

impl Way for Mesh {
    /// A client always asks by the same node.
    fn ask(&self, client: usize, question: Question) -> Pin<Box<dyn Future<Output = Result<Answer, String>> + Send>> {
        let node = &self.users[client % self.users.len()];
        let asking = self.http.lock().unwrap().request(at(node.listen.expect("a listener"), question));
        Box::pin(async move { Ok(Answer { response: asking.await.map_err(failure)?, counted: Box::new(()) }) })
    }
}

// === impl Node ===

impl Node {
    async fn start(mut config: Config, tuning: Tuning, holds: Option<Holds>) -> Self {
        config.status = Status::Off;
        tuning.tell(&mut config, holds);
        let app = App::build(config).await.unwrap();
        let (info, view) = (app.ready(), app.mesh());
        let shutdown = CancellationToken::new();
        let running = AbortOnDropHandle::new(tokio::spawn(app.run(shutdown.clone())));
        Self { listen: info.listen, mesh: info.mesh, view, shutdown, running }
    }
}
