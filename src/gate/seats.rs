//! The queue with those who wait in it: what [`Queue`] decides is told to whoever it concerns, and to everybody as
//! [`Load`] in the same breath.
//!
//! One lock around the queue, held for a decision and never across an await. A [`Seat`] is an entry of the queue; dropping
//! it, at whatever stage, takes the entry out and passes on what it held. So no slot outlives the request it was for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use super::own::Using;
use super::queue::{Arrival, EntryId, Event, Flow, Found, Limits, Model, Queue};
use super::shares::Place as Share;
use crate::exchange::{Load, Place, Refusal, RefusalCode};
use crate::ollama::Slots;

/// All that is at the gate.
#[derive(Debug)]
pub(super) struct Seats {
    inner: Mutex<Inner>,
    /// Written under the lock of `inner` where it is about the queue, so that it never says an older thing after a newer.
    load: watch::Sender<Arc<Load>>,
    draining: watch::Sender<bool>,
    /// Something is due sooner than [`Seats::keep_time`] knows of.
    sooner: Notify,
}

#[derive(Debug)]
struct Inner {
    queue: Queue,
    waiters: HashMap<EntryId, Waiter>,
    /// When [`Seats::keep_time`] looks again.
    wakes: Option<std::time::Instant>,
}

/// Whoever is told what becomes of an entry that waits.
#[derive(Debug)]
struct Waiter {
    turn: oneshot::Sender<Result<(), Refusal>>,
    place: watch::Sender<Place>,
}

/// One request at the gate, whatever it asks for, until this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    seats: Arc<Seats>,
    _own: Option<Using>,
    _share: Option<Share>,
}

/// An entry of the queue, until this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    id: EntryId,
    model: Model,
    /// Taken once it has come.
    turn: Option<oneshot::Receiver<Result<(), Refusal>>>,
}

// === impl Seats ===

impl Seats {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let inner = Inner { queue: Queue::new(limits), waiters: HashMap::new(), wakes: None };
        Arc::new(Self {
            inner: Mutex::new(inner),
            load: watch::Sender::new(Arc::default()),
            draining: watch::Sender::new(false),
            sooner: Notify::new(),
        })
    }

    /// Counts a request, which is its owner's own use if that is said.
    pub(super) fn begin(self: &Arc<Self>, own: Option<Using>) -> Running {
        self.load.send_modify(|load| {
            let load = Arc::make_mut(load);
            load.inflight = load.inflight.saturating_add(1);
        });
        Running { seats: self.clone(), _own: own, _share: None }
    }

    /// A place in the line for `model`, of which `slots` run at a time; `copies` if it is a ticket. And where it stands.
    pub(super) fn take(
        self: &Arc<Self>,
        (flow, weight): (Flow, f64),
        model: &str,
        slots: Slots,
        copies: Option<u8>,
    ) -> Result<(Seat, watch::Receiver<Place>), Refusal> {
        let (turn, resolves) = oneshot::channel();
        self.change(|inner, now| {
            let model = inner.queue.named(model);
            let arrival = Arrival { flow, weight, model: model.clone(), slots, copies };
            let id = inner.queue.handle_arrival(now, arrival)?;
            let stands = copies.and_then(|_| inner.queue.place(id));
            let (place, mut seen) = watch::channel(stands.unwrap_or_default());
            if stands.is_some() {
                // Whoever passes it on has not done so yet.
                seen.mark_changed();
            }
            inner.waiters.insert(id, Waiter { turn, place });
            Ok((Seat { seats: self.clone(), id, model, turn: Some(resolves) }, seen))
        })
    }

    /// A seat for an order to unload a model, which needs no slot.
    pub(super) fn unload(self: &Arc<Self>, flow: Flow, model: &str) -> Seat {
        self.change(|inner, now| {
            let model = inner.queue.named(model);
            let id = inner.queue.handle_order(now, flow, &model);
            Seat { seats: self.clone(), id, model, turn: None }
        })
    }

    /// A seat for an order to load a model, which needs no slot either and counts as loading it; none if too many are there.
    pub(super) fn load_order(self: &Arc<Self>, flow: Flow, model: &str) -> Option<Seat> {
        self.change(|inner, now| {
            let model = inner.queue.named(model);
            let id = inner.queue.handle_load(now, flow, &model)?;
            Some(Seat { seats: self.clone(), id, model, turn: None })
        })
    }

    /// What a look at the server that `began` then has found of its models.
    pub(super) fn look(&self, began: Instant, found: &BTreeMap<&str, Found>) {
        self.change(|inner, now| inner.queue.handle_look(now, began.into_std(), found));
    }

    /// How many requests of a model run at a time, as it is known now.
    pub(super) fn slots(&self, slots: impl Fn(&str) -> Slots) {
        self.change(|inner, now| inner.queue.handle_slots(now, slots));
    }

    /// What is found out of the server beside its models.
    pub(super) fn beside(&self, direct: u32, most_loaded: Option<u32>) {
        self.load.send_if_modified(|load| {
            let changed = (load.direct, load.most_loaded) != (direct, most_loaded);
            if changed {
                let load = Arc::make_mut(load);
                (load.direct, load.most_loaded) = (direct, most_loaded);
            }
            changed
        });
    }

    /// Nobody but the owner waits any longer.
    pub(super) fn close(&self, why: RefusalCode) {
        self.change(|inner, now| inner.queue.handle_closed(now, why));
    }

    /// The same for good.
    pub(super) fn drain(&self) {
        self.draining.send_replace(true);
        self.change(|inner, now| inner.queue.handle_drain(now));
    }

    pub(super) fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    pub(super) fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }

    /// How busy it is, as of this moment.
    pub(super) fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.load.subscribe()
    }

    /// Waits until no request is here.
    pub(super) async fn idle(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.load.subscribe().wait_for(|load| load.inflight == 0).await;
    }

    /// Lets the queue have its time-outs, for ever.
    pub(super) async fn keep_time(&self) {
        loop {
            let due = {
                let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
                inner.wakes = inner.queue.poll_timeout();
                inner.wakes
            };
            let timeout = async {
                match due {
                    Some(due) => tokio::time::sleep_until(Instant::from_std(due)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.sooner.notified() => {}
                () = timeout => self.change(|inner, now| inner.queue.handle_timeout(now)),
            }
        }
    }

    /// Lets the queue decide, and tells what follows before anybody else can ask.
    fn change<T>(&self, change: impl FnOnce(&mut Inner, std::time::Instant) -> T) -> T {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let done = change(&mut inner, Instant::now().into_std());
        inner.tell();
        let changed = inner.changed();
        if !changed.is_empty() {
            self.load.send_if_modified(|load| publish(load, changed));
        }
        let due = inner.queue.poll_timeout();
        if due.is_some_and(|due| inner.wakes.is_none_or(|wakes| due < wakes)) {
            self.sooner.notify_one();
        }
        done
    }
}

// === impl Inner ===

impl Inner {
    /// Tells those who wait what became of them. Whoever listens no more is about to drop the seat.
    fn tell(&mut self) {
        while let Some(event) = self.queue.poll_event() {
            match event {
                Event::Granted(id) => {
                    if let Some(waiter) = self.waiters.remove(&id) {
                        let _ = waiter.turn.send(Ok(()));
                    }
                }
                Event::Refused(id, why) => {
                    if let Some(waiter) = self.waiters.remove(&id) {
                        let _ = waiter.turn.send(Err(why));
                    }
                }
                Event::Moved(id, place) => {
                    if let Some(waiter) = self.waiters.get(&id) {
                        waiter.place.send_if_modified(|known| std::mem::replace(known, place) != place);
                    }
                }
            }
        }
    }

    /// What is said of models anew. That of all that the server does not list is nobody's business.
    fn changed(&mut self) -> Vec<(Model, Option<crate::exchange::ModelLoad>)> {
        let queue = &mut self.queue;
        let models: Vec<Model> =
            std::iter::from_fn(|| queue.poll_changed()).filter(|model| !model.is_empty()).collect();
        models.into_iter().map(|model| (model.clone(), queue.load(&model))).collect()
    }
}

/// Whether anything is new.
fn publish(load: &mut Arc<Load>, changed: Vec<(Model, Option<crate::exchange::ModelLoad>)>) -> bool {
    let mut news = false;
    for (model, is) in changed {
        if load.models.get(&*model).copied() == is {
            continue;
        }
        news = true;
        let models = &mut Arc::make_mut(load).models;
        match (models.get_mut(&*model), is) {
            (Some(known), Some(is)) => *known = is,
            (None, Some(is)) => drop(models.insert(model.to_string(), is)),
            (_, None) => drop(models.remove(&*model)),
        }
    }
    news
}

// === impl Running ===

impl Running {
    /// Keeps its share until it is over.
    pub(super) fn at(mut self, share: Option<Share>) -> Self {
        self._share = share;
        self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.seats.load.send_modify(|load| {
            let load = Arc::make_mut(load);
            load.inflight = load.inflight.saturating_sub(1);
        });
    }
}

// === impl Seat ===

impl Seat {
    /// Whose line this is in.
    pub(super) fn model(&self) -> &str {
        &self.model
    }

    /// Waits for its turn.
    pub(super) async fn turn(&mut self) -> Result<(), Refusal> {
        let Some(turn) = self.turn.as_mut() else { return Ok(()) };
        // Only this seat's end takes the other half away unsaid.
        let turned = turn.await.unwrap_or_else(|_| Err(RefusalCode::Draining.into()));
        self.turn = None;
        turned
    }

    /// The request is on its way to the server.
    pub(super) fn sent(&self) {
        self.seats.change(|inner, now| inner.queue.handle_sent(now, self.id));
    }

    /// The server answers; `ran` if as one does that has the model in memory.
    pub(super) fn answered(&self, ran: bool) {
        self.seats.change(|inner, now| inner.queue.handle_answer(now, self.id, ran));
    }

    /// The server has unloaded the model.
    pub(super) fn unloaded(&self) {
        self.seats.change(|inner, _| inner.queue.handle_unloaded(&self.model));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.change(|inner, now| {
            inner.waiters.remove(&self.id);
            inner.queue.handle_end(now, self.id);
        });
    }
}
