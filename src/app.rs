//! The only wiring: a [`Config`] becomes an [`App`], which runs until it is told to stop, and then drains.
//!
//! Everything that can fail for a reason that a person has to mend fails in [`App::build`], before the node says that it
//! serves: the state directory, the key, the trust book, each port.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tower::discover::Change;

use crate::balance::{GRACE, Preferences, Router, RouterSettings};
use crate::catalog::Catalog;
use crate::config::{Config, Mode, Status};
use crate::control::{self, Handles, Info, Mesh, StateDir, Taken};
use crate::digests::Digests;
use crate::discovery::{Discovery, DiscoverySettings, FixedPeers, GROUP_PORT, PeerAddress};
use crate::gate::{Caller, Gate, GateSettings};
use crate::id::Instance;
use crate::identity::Identity;
use crate::inbound::{Inbound, InboundSettings, NotNow};
use crate::listener::{Listener, ListenerSettings};
use crate::ollama::{Cadence, Ollama, hindrance};
use crate::pairing::Desk;
use crate::peers::{self, Peers};
use crate::transport::Transport;
use crate::trust::{Book, Policy};
use crate::web;
use crate::wire::control::Hello;

pub mod checks;
mod error;
mod guest;
mod lending;
pub mod ports;
mod roles;
mod view;

use checks::CheckResult;
pub use error::AppError;
pub use guest::GuestError;
pub use lending::LendingError;
use lending::{Lending, NotLent};
pub use roles::RoleError;
use view::View;

/// Sightings that wait for the actor of the peers: a burst of a lab's beacons. More are dropped, and come again.
const SIGHTINGS: usize = 256;
/// How often speeds are looked at while answers run, at least: matters to benchmarks alone.
const SHORTEST_BEAT: Duration = Duration::from_millis(250);
/// Callers that wait for it.
const CALLERS: usize = 64;

/// A node that has all it needs.
pub struct App {
    config: Config,
    /// For people.
    when_lent: String,
    /// Why no Ollama is shared before something changes that was so at the start.
    why_not_yet: Option<String>,
    state: StateDir,
    control: control::Server,
    page: Option<StdListener>,
    book: Book,
    desk: Desk,
    digests: Digests,
    mesh: Arc<View>,
    gate: Arc<Gate>,
    listener: Option<(Vec<TcpListener>, Listener)>,
    transport: Transport,
    inbound: Inbound,
    discovery: Option<Discovery>,
    running: Running,
    warnings: Vec<String>,
}

/// What lives as long as the node.
struct Running {
    ollama: Option<AbortOnDropHandle<()>>,
    digests: AbortOnDropHandle<()>,
    lend: AbortOnDropHandle<()>,
    peers: Peers,
    /// Where there are applications to balance for.
    router: Option<Router>,
}

// === impl App ===

impl App {
    /// Takes the state directory and every port, and starts all that can run before the first request.
    ///
    /// # Errors
    /// If something that the node cannot do without is not to be had; the error says what to do.
    pub async fn build(mut config: Config) -> Result<Self, AppError> {
        let mut warnings = Vec::new();
        for check in checks::files(&config).into_iter().chain(checks::others(&config)) {
            match check.result {
                CheckResult::Fine(_) => {}
                CheckResult::Warning { found, advice, .. } => warnings.push(format!("{found}: {advice}")),
                CheckResult::Fatal(error) => return Err(error),
            }
        }
        let guest = checks::invitation(&config)?;
        let mut inviter = guest.as_ref().map(|guest| (guest.id, Vec::<PeerAddress>::new()));
        for address in guest.iter().flat_map(|guest| &guest.addresses) {
            match (address.parse::<PeerAddress>(), &mut inviter) {
                (Ok(address), Some((_, addresses))) => addresses.push(address),
                _ => tracing::warn!("an address in the invitation is not valid; it is ignored"),
            }
        }
        config.peers.extend(inviter.iter().flat_map(|(_, addresses)| addresses).cloned());
        let state = StateDir::take(&config.state_dir)?;
        let control = control::Server::bind(&state)?;
        let identity = Identity::load_or_create(state.path())?;
        let book = Book::open(&state.trust(), config.trust)?;
        let listen = roles::bind_listener(&config).await?.sockets;
        let listeners = listen.iter().map(StdListener::local_addr).collect::<Result<Vec<_>, _>>()?;
        let transport = Transport::new(&identity, roles::bind_mesh(&config.mesh)?)?;
        let mesh_addr = transport.local_addr()?;
        let page = match config.status {
            Status::Off => None,
            Status::At { addr, explicit } => web::bind(addr, explicit)?,
        };

        let me = identity.id();
        let instance = Instance::random();
        let hello = Hello::of(config.name.clone(), instance);
        let why_not_lent = roles::why_not_lent(&config, &listeners);
        let lends = why_not_lent.is_none();
        let why_not_yet = match lends && !config.ollama.explicit {
            true => hindrance(&config.ollama.url).await.map(|trouble| trouble.to_string()),
            false => None,
        };
        let (lending, lent) = Lending::new(&config.lend, lends)?;
        let when_lent = lending.when();
        let (ollama, ollama_task) = match lends {
            true => {
                let cadence = Cadence::default().faster(config.tempo);
                // A look at answers that run needs several pieces of each in it, and pieces come no faster.
                let cadence = Cadence { beat: cadence.beat.max(SHORTEST_BEAT), ..cadence };
                let (ollama, task) = match config.ollama.explicit {
                    true => Ollama::spawn_with(&config.ollama.url, true, cadence),
                    false => Ollama::spawn_here(&config.ollama.url, cadence),
                };
                (ollama, Some(task))
            }
            false => (Ollama::absent(&config.ollama.url), None),
        };
        let usual = GateSettings::default();
        let settings = GateSettings {
            lend_push: config.lend_push,
            max_context: config.lend_max_context,
            parallel: config.lend.parallel,
            max_loaded: config.lend.max_loaded,
            reserve: config.lend.reserve,
            weights: config.lend.weights.clone(),
            queue: usize::try_from(config.lend.queue).unwrap_or(usize::MAX),
            patience: usual.patience.div_f64(config.tempo),
            tell: usual.tell.div_f64(config.tempo),
            ..usual
        };
        let gate = Gate::new(ollama.clone(), settings, lent.lend);

        let desk = Desk::new(me, guest);
        let (sightings, sightings_seen) = mpsc::channel(SIGHTINGS);
        let (callers, callers_seen) = mpsc::channel(CALLERS);
        let fixed = FixedPeers::spawn(config.peers.clone(), sightings.clone());
        let discovery = match config.discovery {
            true => Some(Discovery::spawn(
                DiscoverySettings {
                    id: me,
                    instance,
                    name: config.name.clone(),
                    quic_port: mesh_addr.port(),
                    group_port: GROUP_PORT,
                },
                sightings,
            )?),
            false => None,
        };
        let peers = Peers::spawn(peers::Settings {
            me,
            hello: hello.clone(),
            transport: transport.clone(),
            book: book.clone(),
            desk: desk.clone(),
            sightings: sightings_seen,
            callers: callers_seen,
            look_ups: fixed.look_ups(),
            inviter,
            look_again: Box::new(move || fixed.ask()),
        });
        let inbound = Inbound::new(InboundSettings {
            me,
            hello,
            transport: transport.clone(),
            book: book.clone(),
            desk: desk.clone(),
            gate: Arc::clone(&gate),
            not_now: lending_denial(lent.why_not.clone()),
            callers,
            tempo: config.tempo,
            report_delay: config.report_delay,
        });

        let listen_addr = listeners.first().copied();
        let digests = Digests::open(&state.digests()).unwrap_or_else(|error| {
            tracing::error!("the digests of the models in use will be lost when this node stops: {error}");
            Digests::default()
        });
        // By a listener that is open to other machines, nobody can be told from the owner.
        let caller = if config.listen.open { Caller::Guest } else { Caller::Owner };
        let own = lends.then(|| Ok(Change::Insert(me, gate.endpoint(me, config.name.clone(), caller))));
        let endpoints = stream::iter(own).chain(peers.directory().endpoints());
        let settings = RouterSettings {
            name: config.name.clone(),
            id: me,
            listen: listen_addr,
            open: config.listen.open,
            digests: digests.clone(),
            preferences: Preferences {
                waiting: usize::try_from(config.balance.waiting).unwrap_or(usize::MAX),
                max_wait: config.balance.max_wait,
                prefer_local: config.balance.prefer_local,
                tempo: config.tempo,
            },
            grace: GRACE,
        };
        let directory = peers.directory();
        let router = Router::spawn(settings, endpoints, move || directory.unusable());
        let mut balances = None;
        let listener = match listen.is_empty() {
            false => {
                balances = Some(router.clone());
                let settings = ListenerSettings {
                    name: config.name.clone(),
                    origins: config.origins.clone(),
                    open: config.listen.open,
                    drain: config.drain,
                };
                let catalog = Catalog::new(router.clone());
                let tcp = listen.into_iter().map(TcpListener::from_std).collect::<Result<Vec<_>, _>>()?;
                Some((tcp, Listener::new(settings, router, catalog)))
            }
            true => None,
        };
        let info = Info {
            name: config.name.clone(),
            id: me,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: config.mode.as_str().to_owned(),
            listen: listen_addr,
            listeners,
            mesh: mesh_addr,
            status_page: page.as_ref().and_then(|page| page.local_addr().ok()),
            state_dir: config.state_dir.clone(),
            config: config.file.clone(),
            taken: Taken {
                listen: listen_addr.and_then(|got| replaced(config.listen.addr, got)),
                mesh: replaced(config.mesh.addr, mesh_addr),
            },
            open_files: roles::open_files(),
            uptime_s: 0,
        };
        let mesh = Arc::new(View {
            info,
            started: Instant::now(),
            ollama: lends.then(|| ollama.state()),
            ollama_url: config.ollama.url.clone(),
            gate: Arc::clone(&gate),
            why_not_lent,
            not_now: lent.why_not,
            report: gate.report(),
            load: gate.load(),
            directory: peers.directory(),
            digests: digests.clone(),
            router: balances.clone(),
            clone_seen: peers.clone_seen(),
        });
        let running = Running {
            ollama: ollama_task,
            digests: digests.keep_saved(),
            lend: AbortOnDropHandle::new(tokio::spawn(lending.keep_up(peers.clone_seen(), gate.own_use()))),
            peers,
            router: balances,
        };
        Ok(Self {
            config,
            when_lent,
            why_not_yet,
            state,
            control,
            page,
            book,
            desk,
            digests,
            mesh,
            gate,
            listener,
            transport,
            inbound,
            discovery,
            running,
            warnings,
        })
    }

    /// What is worth saying once the node serves.
    pub fn ready(&self) -> Info {
        self.mesh.info()
    }

    /// Findings of the start that a person should know.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The state of the node as the control socket sees it.
    #[cfg(feature = "internals")]
    pub fn mesh(&self) -> Arc<dyn Mesh> {
        self.mesh.clone()
    }

    /// Serves until `shutdown`; then takes nothing new, says goodbye, lets running answers finish for as long as the
    /// configuration says, and ends.
    ///
    /// # Errors
    /// If something breaks that the node cannot do without.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        if let Some(api) = self.config.ollama.left_out {
            tracing::info!(
                "the server to share is asked at {}: {api} was left out of its address, since requests have it already",
                self.config.ollama.url
            );
        }
        if let (Some(why), Mode::Server) =
            (self.mesh.why_not_lent.as_ref().or(self.why_not_yet.as_ref()), self.config.mode)
        {
            tracing::warn!("this node does nothing: with --mode server it only shares, and nothing is shared: {why}");
        }
        let ended = CancellationToken::new();
        let _end_all = ended.clone().drop_guard();
        let handles = Handles {
            mesh: self.mesh.clone(),
            book: self.book.clone(),
            desk: self.desk.clone(),
            digests: self.digests.clone(),
            policy: self.config.trust,
            stop: shutdown.clone(),
            drain: self.config.drain,
        };
        let mut control = AbortOnDropHandle::new(tokio::spawn(self.control.serve(handles, ended.clone())));
        let book = self.book.clone();
        let mut book = AbortOnDropHandle::new(tokio::spawn(async move { book.keep_up().await }));
        let mut page = self.page.map(|page| {
            let mesh: Arc<dyn Mesh> = self.mesh.clone();
            AbortOnDropHandle::new(tokio::spawn(web::serve(page, mesh, ended.clone())))
        });
        let mut inbound = AbortOnDropHandle::new(tokio::spawn(self.inbound.clone().run()));
        let mut listener = self
            .listener
            .map(|(tcp, listener)| AbortOnDropHandle::new(tokio::spawn(listener.serve(tcp, shutdown.clone()))));
        let mut running = self.running;
        let mut discovery = self.discovery;

        // None of these ends by itself. A node that goes on without one would only seem to serve.
        let died = tokio::select! {
            biased;
            () = shutdown.cancelled() => None,
            _ = &mut control => Some("the control socket"),
            _ = &mut book => Some("the trust file watcher"),
            () = over(&mut page) => Some("the status page"),
            _ = &mut inbound => Some("the port for other nodes"),
            () = over(&mut listener) => Some("the listener for applications"),
            () = over(&mut running.ollama) => Some("the Ollama watcher"),
            _ = &mut running.digests => Some("the record of model digests"),
            _ = &mut running.lend => Some("the sharing schedule"),
            () = running.peers.ended() => Some("the connections to other nodes"),
            () = self.gate.ended() => Some("the queue before Ollama"),
            () = resolved(running.router.as_ref().map(Router::ended)) => Some("the router"),
            () = resolved(discovery.as_mut().map(Discovery::ended)) => Some("the discovery of other nodes"),
        };
        if let Some(what) = died {
            shutdown.cancel();
            self.transport.close().await;
            return Err(AppError::Died(what));
        }
        tracing::info!("stopping: no new requests are accepted");
        self.gate.drain();
        if let Some(discovery) = discovery {
            discovery.goodbye().await;
        }
        let drained = async {
            if let Some(listener) = listener {
                let _ = listener.await;
            }
            self.gate.idle().await;
            // What the gate has given may be on its way still, and would be lost with the connection.
            self.inbound.idle().await;
        };
        if tokio::time::timeout(self.config.drain, drained).await.is_err() {
            tracing::warn!("answers still run after {} s; they are cut off now", self.config.drain.as_secs());
        }
        self.transport.close().await;
        self.digests.save().await;
        drop((inbound, page, book));
        ended.cancel();
        if let Ok(Err(error)) = control.await {
            tracing::debug!(%error, "control socket");
        }
        drop(self.state);
        tracing::info!("stopped");
        Ok(())
    }

    /// A sentence that says which Ollama this node shares, when and with whom.
    pub fn sharing(&self) -> String {
        if let Some(why) = self.mesh.why_not_lent.as_ref().or(self.why_not_yet.as_ref()) {
            return format!("No Ollama is shared: {why}");
        }
        let whom = match self.config.trust.inbound {
            Policy::FirstUse => {
                "with every node on this network; to share with trusted nodes only: ollana config set trust.inbound paired"
            }
            Policy::Paired => "with trusted nodes only",
        };
        format!("The Ollama at {} is shared{}, whenever it runs, {whom}", self.config.ollama.url, self.when_lent)
    }
}

/// The port that was wanted, if another one was taken in its place.
fn replaced(wanted: SocketAddr, got: SocketAddr) -> Option<u16> {
    (wanted.port() != 0 && wanted.port() != got.port()).then(|| wanted.port())
}

/// The denial that peers get while the owner wants nothing shared.
fn lending_denial(why_not: watch::Receiver<Option<NotLent>>) -> NotNow {
    NotNow::new(move || why_not.borrow().as_ref().map(NotLent::denial))
}

/// Resolves when the task is over; never without one.
async fn over<T>(task: &mut Option<AbortOnDropHandle<T>>) {
    resolved(task.as_mut()).await;
}

/// Resolves when it does; never where there is nothing that could.
async fn resolved(part: Option<impl Future>) {
    match part {
        Some(part) => {
            part.await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_that_loses_a_part_of_itself_ends_and_says_which() {
        let dir = tempfile::tempdir().unwrap();
        let app = App::build(Config::for_test(dir.path().join("state"))).await.unwrap();
        let transport = app.transport.clone();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(app.run(shutdown.clone()));
        transport.close().await;
        let ended = tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
        assert!(matches!(ended, Err(AppError::Died("the port for other nodes"))), "{ended:?}");
        assert!(shutdown.is_cancelled());
    }

    #[tokio::test]
    async fn a_balance_that_follows_nobody_any_more_says_so() {
        let broken = stream::poll_fn(|_| panic!("as by a bug"));
        let settings = RouterSettings {
            name: crate::id::NodeName::lossy("test"),
            id: crate::id::Id::of_spki(b"test"),
            listen: None,
            open: false,
            digests: Digests::default(),
            preferences: Preferences::default(),
            grace: GRACE,
        };
        let router = Router::spawn(settings, broken, Vec::new);
        tokio::time::timeout(Duration::from_secs(10), router.ended()).await.unwrap();
    }
}
