//! Who holds a slot and does nothing with it, while others wait.
//!
//! A slot is held until the last byte of the answer has gone to whoever asked, and from before the last byte of the question
//! has come. So one that reads nothing, or whose question never ends, would hold it for as long as it likes, and a key costs
//! nothing. How long each was waited for is added up: a byte now and then makes up for nothing. Only that counts, and not how
//! long the server takes: a model may be loaded for minutes. An honest reader of an answer is hardly ever waited for.
//!
//! The owner may do with the own machine what the owner likes.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio_util::sync::CancellationToken;

use super::forward::Guard;
use super::seats::Seats;
use crate::exchange::stopwatch::Stopwatch;
use crate::exchange::{Body, ExchangeError};

/// A machine whose processors all compute may take so long until a word that is there is fetched, and an answer may have a
/// hundred thousand of them. Whoever takes no longer for each reads as fast as most models write.
const MOMENT: Duration = Duration::from_millis(20);

/// What is said of it to who comes back and reads on.
const TAKEN: &str = "its slot was given to those who wait: for too long it was not read";

/// All that are held by others than the owner.
#[derive(Default)]
pub(super) struct Holders(Mutex<Vec<Weak<Holder>>>);

/// Who holds one, until its answer is over.
pub(super) struct Holder {
    model: String,
    /// Runs while more of the question is waited for.
    asks: Stopwatch,
    /// Runs while there is something of the answer that is not read: it was handed on and no more was asked for, or whoever
    /// asked was woken for it.
    reads: Stopwatch,
    reader: AtomicWaker,
    /// Once it answers.
    answer: Mutex<Option<Held>>,
    over: CancellationToken,
}

/// An answer's body, and what it keeps until its end.
struct Held {
    body: Body,
    guard: Option<Guard>,
}

/// A question on its way to the server.
struct Question {
    body: Body,
    holder: Arc<Holder>,
}

/// An answer on its way back.
struct Answer(Arc<Holder>);

// === impl Holders ===

impl fmt::Debug for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Holders")
    }
}

impl Holders {
    /// Somebody has a slot for `model`, and may lose it.
    pub(super) fn add(&self, model: &str) -> Arc<Holder> {
        let holder = Holder::new(model);
        let mut all = lock(&self.0);
        if all.len() == all.capacity() {
            all.retain(|holder| holder.strong_count() > 0);
        }
        all.push(Arc::downgrade(&holder));
        holder
    }

    /// Takes slots away from those who were waited for longer than `patience` while others wait, for ever.
    pub(super) async fn keep_moving(&self, seats: &Seats, patience: Duration) {
        let mut load = seats.load();
        loop {
            let someone_waits =
                load.wait_for(|load| load.models.values().any(|model| model.queued > 0.0)).await.is_ok();
            if !someone_waits {
                // Nobody says it any more.
                return;
            }
            tokio::time::sleep(patience / 30).await;
            let load = load.borrow_and_update().clone();
            let all: Vec<Arc<Holder>> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
            for holder in all {
                if load.of(&holder.model).queued > 0.0 && holder.idled() > patience && !holder.over.is_cancelled() {
                    tracing::debug!(model = holder.model, "a slot is taken away from who does nothing with it");
                    holder.over.cancel();
                    holder.take();
                }
            }
        }
    }
}

// === impl Holder ===

impl Holder {
    /// One that nobody takes anything from, unless it is [added](Holders::add).
    pub(super) fn new(model: &str) -> Arc<Self> {
        Arc::new(Self {
            model: model.to_owned(),
            asks: Stopwatch::stopped(),
            reads: Stopwatch::forgiving(MOMENT),
            reader: AtomicWaker::new(),
            answer: Mutex::default(),
            over: CancellationToken::new(),
        })
    }

    /// How long it was waited for in all.
    fn idled(&self) -> Duration {
        self.asks.waited() + self.reads.waited()
    }

    /// A question that it asks.
    pub(super) fn question(self: &Arc<Self>, body: Body) -> Body {
        Question { body, holder: self.clone() }.boxed_unsync()
    }

    /// The answer to it, which keeps `guard` until its end.
    pub(super) fn answer(self: &Arc<Self>, body: Body, guard: Guard) -> Body {
        *lock(&self.answer) = Some(Held { body, guard: Some(guard) });
        self.reads.start();
        if self.over.is_cancelled() {
            self.take();
        }
        Answer(self.clone()).boxed_unsync()
    }

    /// Resolves if its slot is taken away.
    pub(super) async fn is_over(&self) {
        self.over.cancelled().await;
    }

    /// Nothing is answered any more.
    fn take(&self) {
        let held = lock(&self.answer).take();
        drop(held);
    }
}

impl Wake for Holder {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// There is more of the answer.
    fn wake_by_ref(self: &Arc<Self>) {
        self.reads.start();
        self.reader.wake();
    }
}

// === impl Question ===

impl http_body::Body for Question {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match polled {
            Poll::Pending => self.holder.asks.start(),
            Poll::Ready(_) => self.holder.asks.stop(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        // The server wants no more of it.
        self.holder.asks.stop();
    }
}

// === impl Answer ===

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let holder = &self.0;
        holder.reads.stop();
        holder.reader.register(cx.waker());
        let mut answer = lock(&holder.answer);
        let Some(Held { body, guard }) = answer.as_mut() else {
            return Poll::Ready(holder.over.is_cancelled().then(|| Err(ExchangeError::Body(TAKEN.into()))));
        };
        let waker = Waker::from(holder.clone());
        let frame = ready!(Pin::new(body).poll_frame(&mut Context::from_waker(&waker)));
        let over = match frame {
            Some(Ok(_)) => {
                holder.reads.start();
                None
            }
            _ => guard.take(),
        };
        drop(answer);
        // It has the seat in it, and passes it on.
        drop(over);
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.0.answer).as_ref().is_some_and(|held| held.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.0.answer).as_ref().map_or_else(SizeHint::default, |held| held.body.size_hint())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.0.take();
    }
}

/// Nothing is done under it that could panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
