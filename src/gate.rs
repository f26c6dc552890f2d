//! The side of a provider that admits requests to its Ollama: a peer's, as far as its scope goes, and the owner's.
//!
//! A request passes [`admit`], which looks at who asks for what and gives a [`Permit`], waits in the
//! [`queue`] for a slot of its model if a runner has work with it, and then passes [`forward`], which takes nothing else
//! and goes to the local Ollama and nowhere else: never onward to a third node. What runs is counted and keeps its slot
//! until the last byte of its answer; [`Gate::load`] tells it to the peers, and [`Gate::report`] what changes seldom.
//!
//! What of a peer's request reaches the Ollama is what was read here, as Ollama reads it, and allowed: see [`inspect`].
//! A peer with scope `infer` does not decide how long models stay in memory, or how they are loaded.

mod admit;
mod forward;
mod holders;
mod inspect;
mod local;
mod own;
mod queue;
mod seats;
mod settings;
mod shares;
mod upkeep;
mod weights;

use std::future::ready;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::exchange::{
    Answer, Ask, Body, Endpoint, ExchangeError, Load, Place, Refusal, RefusalCode, Report, RequestId, Slot, Ticket,
    Turn,
};
use crate::id::{Id, NodeName, Scope};
use crate::ollama::Ollama;
use crate::route::headers::GUEST_HEADER;
use crate::route::{Api, ModelName, render, runs_model};
use admit::{Denied, Permit, Work};
use holders::{Holder, Holders};
use inspect::Ignored;
use own::OwnUse;
use queue::Flow;
use seats::{Seat, Seats};
pub use settings::GateSettings;
use shares::{Crowded, Place as Share, Shares};
pub use weights::Weights;

/// How long a slot that a ticket was given is kept for a request that has not named its model. It is on its way at once.
const NAMED_WITHIN: Duration = Duration::from_secs(2);

/// The gate before one Ollama.
#[derive(Debug)]
pub struct Gate {
    ollama: Ollama,
    settings: Arc<GateSettings>,
    lend: watch::Receiver<bool>,
    seats: Arc<Seats>,
    holders: Arc<Holders>,
    shares: Shares,
    own: OwnUse,
    ignored: Ignored,
    report: watch::Receiver<Arc<Report>>,
    own_report: watch::Receiver<Arc<Report>>,
    tasks: TaskTracker,
    _keeper: AbortOnDropHandle<()>,
}

/// How far a request came before it has to wait for its turn.
enum Entered {
    /// Not further.
    Answered(Response<Body>),
    /// It may go on, once it is the turn of its seat if it has one.
    Admitted(Box<Permit>, Option<Seat>, Option<Share>),
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
        let settings = Arc::new(settings);
        let seats = Seats::new(settings.limits());
        let (publish, report) = watch::channel(Arc::new(Report::default()));
        let (publish_own, own_report) = watch::channel(Arc::new(Report::default()));
        let draining = seats.draining();
        let reports =
            upkeep::keep_reporting(ollama.clone(), settings.clone(), lend.clone(), draining, publish, publish_own);
        let looks = upkeep::keep_looking(ollama.clone(), lend.clone(), seats.clone(), settings.clone());
        let holders = Arc::<Holders>::default();
        let (time, moving, patience) = (seats.clone(), holders.clone(), settings.patience);
        let own = OwnUse::default();
        let used = own.clone();
        let tasks = TaskTracker::new();
        let keeper = tasks.spawn(async move {
            // The first two end if nobody publishes any more, and leave things as they are.
            tokio::join!(reports, looks, time.keep_time(), moving.keep_moving(&time, patience), used.keep_up());
        });
        tasks.close();
        let (shares, ignored, _keeper) = (Shares::new(), Ignored::default(), AbortOnDropHandle::new(keeper));
        Arc::new(Self {
            ollama,
            settings,
            lend,
            seats,
            holders,
            shares,
            own,
            ignored,
            report,
            own_report,
            tasks,
            _keeper,
        })
    }

    /// Answers one request. A refusal is an answer, in the shape of the API that was asked and with
    /// [`REFUSAL_HEADER`](crate::exchange::REFUSAL_HEADER).
    ///
    /// It is counted at once, before the future is polled, and stands in the queue at once if what names its model is here.
    ///
    /// # Errors
    /// Only if Ollama cannot be reached or breaks off before the head of its answer, or if the request's body does. A
    /// break in mid-answer is an error of the answer's body.
    pub fn serve(
        self: &Arc<Self>,
        caller: Caller,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, ExchangeError>> + Send + 'static + use<> {
        self.serve_from(None, caller, request)
    }

    fn serve_from(
        self: &Arc<Self>,
        seat: Option<Seat>,
        caller: Caller,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, ExchangeError>> + Send + 'static + use<> {
        let gate = self.clone();
        let caller = caller.through(request.headers());
        // Before the look at whether it drains: who waits for nothing to run waits for this one too.
        let owner = caller == Caller::Owner;
        let running = gate.seats.begin(owner.then(|| gate.own.begin()));
        let share = gate.shares.enter(&caller);
        let mut entering = Box::pin(gate.clone().enter(seat, caller, share, request));
        // As far as it comes without waiting; whoever polls it next is woken for the rest.
        let early = match entering.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(entered) => Ok(entered),
            Poll::Pending => Err(entering),
        };
        async move {
            let entered = match early {
                Ok(entered) => entered?,
                Err(entering) => entering.await?,
            };
            let (permit, mut seat, share) = match entered {
                Entered::Answered(answer) => return Ok(answer),
                Entered::Admitted(permit, seat, share) => (permit, seat, share),
            };
            if let Some(seat) = &mut seat
                && let Err(why) = seat.turn().await
            {
                return Ok(permit.refuse(&refused(why)));
            }
            let holder = match &seat {
                Some(seat) if !owner => gate.holders.add(seat.model()),
                _ => Holder::new(""),
            };
            forward::forward(*permit, &gate.ollama, running.at(share), seat, &holder).await
        }
    }

    /// Admits a request and seats it.
    async fn enter(
        self: Arc<Self>,
        mut seat: Option<Seat>,
        caller: Caller,
        share: Result<Share, Crowded>,
        request: Request<Body>,
    ) -> Result<Entered, ExchangeError> {
        let admitted = {
            let admission = self.admission(&caller, share.as_ref());
            let mut admitting = pin!(admission.admit(request));
            match seat {
                None => admitting.await,
                Some(_) => match timeout(NAMED_WITHIN, &mut admitting).await {
                    Ok(admitted) => admitted,
                    Err(_) => {
                        // Others wait for the slot.
                        seat = None;
                        admitting.await
                    }
                },
            }
        };
        let permit = match admitted {
            Ok(permit) => Box::new(permit),
            Err(Denied::Answer(answer)) => return Ok(Entered::Answered(*answer)),
            Err(Denied::Broken(error)) => return Err(error),
        };
        let state = self.ollama.state().borrow().clone();
        let (model, slots) = self.settings.line(&self.ollama, &state, permit.model());
        let order = match permit.work() {
            Work::Nothing => return Ok(Entered::Admitted(permit, None, share.ok())),
            Work::Run => None,
            Work::Load => self.seats.load_order(caller.flow(), model),
            Work::Unload => Some(self.seats.unload(caller.flow(), model)),
        };
        let seat = match order {
            Some(order) => Some(order),
            None => match seat.filter(|seat| seat.model() == model) {
                Some(seat) => Some(seat),
                None => match self.seats.take(self.share(&caller), model, slots, None) {
                    Ok((seat, _)) => Some(seat),
                    Err(refusal) => return Ok(Entered::Answered(permit.refuse(&refused(refusal)))),
                },
            },
        };
        Ok(Entered::Admitted(permit, seat, share.ok()))
    }

    /// Whose turn a caller's requests wait for, and how much of the turns that gets.
    fn share(&self, caller: &Caller) -> (Flow, f64) {
        (caller.flow(), self.settings.weights.of_caller(caller))
    }

    /// What is known when a request of this caller's comes.
    fn admission<'a>(&'a self, caller: &'a Caller, place: Result<&'a Share, &'a Crowded>) -> admit::Admission<'a> {
        admit::Admission {
            caller,
            place,
            ollama: &self.ollama,
            settings: &self.settings,
            ignored: &self.ignored,
            lent: *self.lend.borrow(),
            draining: self.seats.is_draining(),
        }
    }

    /// What this node lends, the latest. [`Report::scope`] is left for whoever knows the reader.
    pub fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    /// The same for the owner's own applications, which have their Ollama whether it is lent or not.
    pub fn own_report(&self) -> watch::Receiver<Arc<Report>> {
        self.own_report.clone()
    }

    /// A place in the queue for a request that comes later; `caller` says whose, at any time. It is in the queue, and in
    /// [`Gate::load`], when this returns.
    ///
    /// A refusal is in the shape of Ollama's own API, since nobody knows yet which one the request will be of.
    pub fn queue(self: &Arc<Self>, caller: impl Fn() -> Caller + Send + 'static, ask: &Ask) -> Ticket {
        let gate = self.clone();
        let who = caller();
        let state = self.ollama.state().borrow().clone();
        let name = ModelName::new(&ask.model);
        let (model, slots) = self.settings.line(&self.ollama, &state, Some(&name));
        // It takes of the caller's share while it waits, as a request does.
        let share = self.shares.enter(&who);
        let seat = match self.admission(&who, share.as_ref()).ticket() {
            Some(refusal) => Err(refusal),
            None => self.seats.take(self.share(&who), model, slots, Some(ask.copies)).map_err(refused),
        };
        let refuse = |refusal: &Refusal| Turn::Refused(render(Api::Ollama, refusal));
        let (mut seat, place) = match seat {
            Ok(taken) => taken,
            Err(refusal) => {
                let (_, place) = watch::channel(Place::default());
                return Ticket { place, turn: Box::pin(ready(Ok(refuse(&refusal)))) };
            }
        };
        // What a peer calls it is logged only if it is an ID.
        let request = ask.request.parse::<RequestId>().ok().map(tracing::field::display);
        tracing::debug!(request, model, ahead = place.borrow().ahead, "a ticket");
        let turn = async move {
            let turned = seat.turn().await;
            drop(share);
            Ok(match turned {
                Ok(()) => Turn::Slot(Slot::new(move |request| gate.serve_in(seat, caller(), request))),
                Err(refusal) => refuse(&refused(refusal)),
            })
        };
        Ticket { place, turn: Box::pin(turn) }
    }

    /// Serves what comes into a slot. Nothing but what needs one has any business there: whether a caller may still do what
    /// else it does is looked at by whoever knows what that is from its beginning.
    fn serve_in(self: &Arc<Self>, seat: Seat, caller: Caller, request: Request<Body>) -> Answer {
        let (method, uri) = (request.method(), request.uri());
        if runs_model(method, uri) {
            return Box::pin(self.serve_from(Some(seat), caller, request));
        }
        let message = format!("a slot is kept for what runs a model, which {method} {} does not", uri.path());
        let answer = render(Api::Ollama, &Refusal::new(RefusalCode::Slot, message));
        Box::pin(ready(Ok(answer)))
    }

    /// How busy this node is, as of this very moment: what [`Gate::serve`] or [`Gate::queue`] was called for is in it.
    /// [`Load::counted`] is left for whoever knows the reader.
    pub fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.seats.load()
    }

    /// The gate as an endpoint of this node's own balancer, whose requests are all `caller`'s: the owner's, or a guest's if
    /// the listener that they come by is open to other machines.
    pub fn endpoint(self: &Arc<Self>, id: Id, name: NodeName, caller: Caller) -> Arc<dyn Endpoint> {
        local::endpoint(self.clone(), id, name, caller)
    }

    /// When the owner's own applications used the server by this gate last; now, while they do.
    pub fn own_use(&self) -> watch::Receiver<Option<Instant>> {
        self.own.last()
    }

    /// How many keys of peers' requests counted for nothing so far, since they would have kept a model in memory or had it
    /// loaded anew.
    pub fn ignored(&self) -> u64 {
        self.ignored.count()
    }

    /// Takes nothing new from peers and ends the waiting of those that wait; what runs, runs on.
    pub fn drain(&self) {
        self.seats.drain();
    }

    /// Resolves if it reports no more, which is a bug: it does as long as this lives.
    pub async fn ended(&self) {
        self.tasks.wait().await;
    }

    /// Waits until nothing runs.
    pub async fn idle(&self) {
        self.seats.idle().await;
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

    /// Whose share of the slots it uses.
    fn flow(&self) -> Flow {
        match self {
            Self::Owner => Flow::Owner,
            Self::Guest => Flow::Guest,
            Self::Peer { id, trusted: true, .. } => Flow::Trusted(*id),
            Self::Peer { id, .. } => Flow::Peer(*id),
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

fn refused(refusal: Refusal) -> Refusal {
    tracing::debug!(code = refusal.code.to_wire(), "refused in the queue");
    refusal
}
