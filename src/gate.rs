//! The side of a provider that admits requests to its Ollama: a peer's, as far as its scope goes, and the owner's.
//!
//! A request passes [`admit`], which looks at who asks for what and gives a [`Permit`](admit::Permit), and then
//! [`forward`], which takes nothing else and goes to the local Ollama and nowhere else: never onward to a third node.
//! What runs is counted until the last byte of its answer, and [`Gate::report`] tells it to the peers.
//!
//! What of a peer's request reaches the Ollama is what was read here, as Ollama reads it, and allowed: see [`inspect`].
//! A peer with scope `infer` does not decide how long models stay in memory, or how they are loaded.

mod admit;
mod forward;
mod inspect;
mod load;
mod local;
mod shares;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::exchange::{Body, Endpoint, ExchangeError, Report};
use crate::id::{Id, NodeName, Scope};
use crate::ollama::{Ollama, State};
use crate::route::headers::GUEST_HEADER;
use load::Load;
use shares::Shares;

/// Shortest time between two reports. At a thousand short requests a second each would be a message to every peer; a
/// peer that is told 20 ms later still knows more than any that measures.
const COALESCE: Duration = Duration::from_millis(20);

/// The gate before one Ollama.
#[derive(Debug)]
pub struct Gate {
    ollama: Ollama,
    settings: GateSettings,
    lend: watch::Receiver<bool>,
    load: Load,
    shares: Shares,
    report: watch::Receiver<Arc<Report>>,
    reporting: TaskTracker,
    _reporter: AbortOnDropHandle<()>,
}

/// What the owner has decided for all peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateSettings {
    /// Whether peers with scope `manage` may push models, which signs with the owner's key.
    pub lend_push: bool,
    /// The longest context in tokens that peers below scope `manage` may ask for (`num_ctx`); with 0 what they ask for does
    /// not count, with nothing there is no bound but Ollama's.
    pub max_context: Option<u64>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// An application on this machine: everything its own Ollama does is its own.
    Owner,
    /// Whoever reached this node's own listener where that is open to other machines: as a peer with scope `infer`.
    Guest,
    /// A peer whose key was proved, with what the trust book lets it do here.
    Peer {
        /// Its key's ID.
        id: Id,
        /// The name it gives itself.
        name: NodeName,
        /// What it may do.
        scope: Scope,
        /// Whether a person has said so, or someone whom they trust; else it shares with all whom nobody knows.
        trusted: bool,
    },
}

// === impl Gate ===

impl Gate {
    /// A gate before `ollama`, open to peers while `lend` is true.
    pub fn new(ollama: Ollama, settings: GateSettings, lend: watch::Receiver<bool>) -> Arc<Self> {
        let load = Load::new();
        let (publish, report) = watch::channel(Arc::new(Report::default()));
        let reporting = TaskTracker::new();
        let reporter = reporting.spawn(keep_reporting(ollama.state(), lend.clone(), load.watch(), publish));
        reporting.close();
        Arc::new(Self {
            ollama,
            settings,
            lend,
            load,
            shares: Shares::new(),
            report,
            reporting,
            _reporter: AbortOnDropHandle::new(reporter),
        })
    }

    /// Answers one request. A refusal is an answer, in the shape of the API that was asked and with
    /// [`REFUSAL_HEADER`](crate::exchange::REFUSAL_HEADER).
    ///
    /// # Errors
    /// Only if Ollama cannot be reached or breaks off before the head of its answer, or if the request's body does. A
    /// break in mid-answer is an error of the answer's body.
    pub fn serve(
        self: &Arc<Self>,
        caller: Caller,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, ExchangeError>> + Send + 'static + use<> {
        let gate = self.clone();
        async move {
            let caller = caller.through(request.headers());
            // Before the look at whether it drains: who waits for nothing to run waits for this one too.
            let running = gate.load.begin();
            let place = gate.shares.enter(&caller);
            let admission = admit::Admission {
                caller: &caller,
                place: place.as_ref(),
                ollama: &gate.ollama,
                settings: gate.settings,
                lent: *gate.lend.borrow(),
                draining: gate.load.is_draining(),
            };
            match admission.admit(request).await {
                Ok(permit) => {
                    let running = match place {
                        Ok(place) => running.at(place),
                        Err(_) => running,
                    };
                    forward::forward(permit, &gate.ollama, running).await
                }
                Err(admit::Denied::Answer(answer)) => Ok(*answer),
                Err(admit::Denied::Broken(error)) => Err(error),
            }
        }
    }

    /// What this node lends and how busy it is, the latest. [`Report::scope`] is left for whoever knows the reader.
    pub fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    /// The gate as an endpoint of this node's own balancer, whose requests are all `caller`'s: the owner's, or a guest's if
    /// the listener that they come by is open to other machines.
    pub fn endpoint(self: &Arc<Self>, id: Id, name: NodeName, caller: Caller) -> Arc<dyn Endpoint> {
        local::endpoint(self.clone(), id, name, caller)
    }

    /// Takes nothing new from peers; what runs, runs on.
    pub fn drain(&self) {
        self.load.drain();
    }

    /// Resolves if it reports no more, which is a bug: it does as long as this lives.
    pub async fn ended(&self) {
        self.reporting.wait().await;
    }

    /// Waits until nothing runs.
    pub async fn idle(&self) {
        self.load.idle().await;
    }
}

// === impl Caller ===

impl Caller {
    /// The caller of a request with these headers: what a peer passes on for guests is theirs and not its own.
    fn through(self, headers: &HeaderMap) -> Self {
        match self {
            Self::Peer { id, name, scope, trusted } if headers.contains_key(GUEST_HEADER) => {
                Self::Peer { id, name, scope: scope.min(Scope::Infer), trusted }
            }
            caller => caller,
        }
    }

    /// What it may do; nothing for the owner, who may do everything.
    fn scope(&self) -> Option<Scope> {
        match self {
            Self::Owner => None,
            Self::Guest => Some(Scope::Infer),
            Self::Peer { scope, .. } => Some(*scope),
        }
    }

    /// What it `may` do and not do, and how its owner could change that.
    fn limits(&self, may: &str) -> String {
        match self {
            Self::Owner | Self::Guest => format!(
                "who comes by a listener that is open to other machines (--listen-open) {may}; \
                 ask a node that listens on its own machine only"
            ),
            Self::Peer { name, .. } => {
                format!("{name} {may}; its owner can allow it with: ollana trust {name} --scope manage")
            }
        }
    }
}

/// Publishes what changes, the first change at once.
async fn keep_reporting(
    mut state: watch::Receiver<Arc<State>>,
    mut lend: watch::Receiver<bool>,
    mut load: watch::Receiver<load::Now>,
    publish: watch::Sender<Arc<Report>>,
) {
    loop {
        let report = {
            let (state, load) = (state.borrow_and_update().clone(), *load.borrow_and_update());
            let provider = state.healthy && *lend.borrow_and_update();
            Report {
                provider,
                scope: Scope::None,
                draining: load.draining,
                api: state.kind,
                models: if provider { state.models.clone() } else { Default::default() },
                inflight: load.inflight,
            }
        };
        publish.send_if_modified(|known| {
            let changed = **known != report;
            if changed {
                *known = Arc::new(report);
            }
            changed
        });
        sleep(COALESCE).await;
        // Whoever stops publishing leaves things as they are.
        tokio::select! {
            Ok(()) = state.changed() => {}
            Ok(()) = lend.changed() => {}
            Ok(()) = load.changed() => {}
            else => return,
        }
    }
}
