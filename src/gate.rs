//! The side of a provider that admits requests to its Ollama: a peer's, as far as its scope goes, and the owner's.
//!
//! A request passes [`admit`], which looks at who asks for what and gives a [`Permit`](admit::Permit), and then
//! [`forward`], which takes nothing else and goes to the local Ollama and nowhere else: never onward to a third node.
//! What runs is counted until the last byte of its answer, and [`Gate::report`] tells it to the peers.
//!
//! What of a peer's request reaches the Ollama is what was read here, as Ollama reads it, and allowed: see [`inspect`].
//! A peer with scope `infer` does not decide how long models stay in memory.

mod admit;
mod forward;
mod inspect;
mod load;
mod local;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::exchange::{
    Ask, Body, Endpoint, ExchangeError, Load as Busy, ModelLoad, Place, Report, Residence, Slot, Ticket, Turn,
};
use crate::id::{Id, NodeName, Scope};
use crate::ollama::{Ollama, State};
use crate::route::Room;
use load::Load;

/// Shortest time between two reports. At a thousand short requests a second each would be a message to every peer; a
/// peer that is told 20 ms later still knows more than any that measures.
const COALESCE: Duration = Duration::from_millis(20);

/// What the bodies of peers may take of this node's memory while they are looked at, all together, beside the little that
/// each has anyhow (`route::find`): sixteen that write 16 MiB of images before their model, or as many that are
/// decompressed. Of a thousand streams that one peer may open each could want that.
const ROOM: usize = 256 << 20;

/// The gate before one Ollama.
#[derive(Debug)]
pub struct Gate {
    ollama: Ollama,
    settings: GateSettings,
    lend: watch::Receiver<bool>,
    load: Load,
    room: Room,
    report: watch::Receiver<Arc<Report>>,
    own_report: watch::Receiver<Arc<Report>>,
    busy: watch::Receiver<Arc<Busy>>,
    reporting: TaskTracker,
    _reporter: AbortOnDropHandle<()>,
}

/// What the owner has decided for all peers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GateSettings {
    /// Whether peers with scope `manage` may push models, which signs with the owner's key.
    pub lend_push: bool,
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
    },
}

// === impl Gate ===

impl Gate {
    /// A gate before `ollama`, open to peers while `lend` is true.
    pub fn new(ollama: Ollama, settings: GateSettings, lend: watch::Receiver<bool>) -> Arc<Self> {
        let load = Load::new();
        let (publish, report) = watch::channel(Arc::new(Report::default()));
        let (publish_own, own_report) = watch::channel(Arc::new(Report::default()));
        let (publish_busy, busy) = watch::channel(Arc::new(Busy::default()));
        let reporting = TaskTracker::new();
        let reporter = reporting.spawn(keep_reporting(
            ollama.state(),
            lend.clone(),
            load.watch(),
            publish,
            publish_own,
            publish_busy,
        ));
        reporting.close();
        let room = Room::new(ROOM);
        Arc::new(Self {
            ollama,
            settings,
            lend,
            load,
            room,
            report,
            own_report,
            busy,
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
            // Before the look at whether it drains: who waits for nothing to run waits for this one too.
            let running = gate.load.begin();
            let admission = admit::Admission {
                caller: &caller,
                ollama: &gate.ollama,
                settings: gate.settings,
                room: &gate.room,
                lent: *gate.lend.borrow(),
                draining: gate.load.is_draining(),
            };
            match admission.admit(request).await {
                Ok(permit) => forward::forward(permit, &gate.ollama, running).await,
                Err(admit::Denied::Answer(answer)) => Ok(*answer),
                Err(admit::Denied::Broken(error)) => Err(error),
            }
        }
    }

    /// What this node lends and how busy it is, the latest. [`Report::scope`] is left for whoever knows the reader.
    pub fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    /// The same for the owner's own applications, which have their Ollama whether it is lent or not.
    pub fn own_report(&self) -> watch::Receiver<Arc<Report>> {
        self.own_report.clone()
    }

    /// A place in the queue for a request of `caller`'s that comes later.
    pub fn queue(self: &Arc<Self>, caller: Caller, _ask: Ask) -> Ticket {
        let gate = self.clone();
        let slot = Slot::new(move |request| Box::pin(gate.serve(caller, request)));
        let (_, place) = watch::channel(Place::default());
        Ticket { place, turn: Box::pin(async move { Ok(Turn::Slot(slot)) }) }
    }

    /// How busy this node is, the latest. [`Load::counted`](Busy::counted) is left for whoever knows the reader.
    pub fn load(&self) -> watch::Receiver<Arc<Busy>> {
        self.busy.clone()
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
    publish_own: watch::Sender<Arc<Report>>,
    publish_busy: watch::Sender<Arc<Busy>>,
) {
    loop {
        let (report, own, busy) = {
            let (state, load) = (state.borrow_and_update().clone(), *load.borrow_and_update());
            let provider = state.healthy && *lend.borrow_and_update();
            let in_memory = ModelLoad { residence: Residence::Memory, ..ModelLoad::default() };
            let busy = Busy {
                inflight: load.inflight,
                models: state.loaded.iter().map(|name| (name.clone(), in_memory)).collect(),
                ..Busy::default()
            };
            let own = Report {
                provider: state.healthy,
                scope: Scope::None,
                draining: load.draining,
                api: state.kind,
                models: state.models.clone(),
            };
            let report = match provider {
                true => own.clone(),
                false => Report { provider, models: Default::default(), ..own.clone() },
            };
            (report, own, busy)
        };
        publish_busy.send_if_modified(|known| {
            let changed = **known != busy;
            if changed {
                *known = Arc::new(busy);
            }
            changed
        });
        for (publish, report) in [(&publish, report), (&publish_own, own)] {
            publish.send_if_modified(|known| {
                let changed = **known != report;
                if changed {
                    *known = Arc::new(report);
                }
                changed
            });
        }
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
