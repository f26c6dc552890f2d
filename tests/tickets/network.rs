//! The network between a user's node and a gate: streams that keep their order and overtake each other, messages that are
//! late because a datagram was lost, silence, and connections that are lost without either side being told.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use crate::random::Random;

/// One connection.
#[derive(Debug)]
pub struct Link {
    random: Random,
    /// Whether nothing is between the two: the node's own gate.
    local: bool,
    state: watch::Sender<State>,
    frozen_until: Mutex<Option<Instant>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Nothing arrives any more.
    cut: bool,
    /// Whether each side has noticed.
    lost: [bool; 2],
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    User = 0,
    Gate = 1,
}

/// Why nothing more comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The connection is lost.
    Lost,
    /// The other side gave the stream up.
    Reset,
    /// It has said all.
    Finished,
}

/// One direction of a stream, where it goes in. Dropping it before [`Out::finish`] resets it.
pub struct Out<T> {
    link: Arc<Link>,
    sender: mpsc::UnboundedSender<(Instant, T)>,
    last: Instant,
    reset: watch::Sender<Option<Instant>>,
    finished: bool,
}

/// One direction of a stream, where it comes out.
pub struct In<T> {
    link: Arc<Link>,
    side: Side,
    receiver: mpsc::UnboundedReceiver<(Instant, T)>,
    next: Option<(Instant, T)>,
    reset: watch::Receiver<Option<Instant>>,
}

// === impl Link ===

impl Link {
    pub fn new(random: &Random, local: bool) -> Arc<Self> {
        let (state, frozen_until) = (watch::Sender::default(), Mutex::default());
        Arc::new(Self { random: random.clone(), local, state, frozen_until })
    }

    /// One direction of a stream to `side`.
    pub fn pipe<T>(self: &Arc<Self>, side: Side) -> (Out<T>, In<T>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (reset, is_reset) = watch::channel(None);
        let out = Out { link: self.clone(), sender, last: Instant::now(), reset, finished: false };
        (out, In { link: self.clone(), side, receiver, next: None, reset: is_reset })
    }

    /// When something sent now will be there.
    fn arrival(&self) -> Instant {
        if self.local {
            return Instant::now();
        }
        let ms = Duration::from_millis;
        let delay = match self.random.unit() {
            // Sent once more, or several times.
            lost if lost < 0.0005 => self.random.between(ms(400), ms(3000)),
            lost if lost < 0.02 => self.random.between(ms(30), ms(400)),
            _ => self.random.about(ms(3)).min(ms(30)),
        };
        let frozen = *self.frozen_until.lock().unwrap();
        frozen.map_or(Instant::now(), |until| until.max(Instant::now())) + delay
    }

    /// How long a user's node takes to use a slot: seldom too long, as where its machine was asleep.
    pub fn dozes(&self) -> Duration {
        let ms = Duration::from_millis;
        if self.random.chance(0.003) { self.random.between(ms(1500), ms(2500)) } else { Duration::ZERO }
    }

    /// Nothing arrives until then.
    pub fn freeze(&self, until: Instant) {
        *self.frozen_until.lock().unwrap() = Some(until);
    }

    /// What is on its way is lost, and so is all that comes. Nobody is told.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cut = true);
    }

    pub fn is_cut(&self) -> bool {
        self.state.borrow().cut
    }

    /// One side notices.
    pub fn lose(&self, side: Side) {
        self.state.send_modify(|state| (state.cut, state.lost[side as usize]) = (true, true));
    }

    /// Resolves once this side has noticed.
    pub async fn lost(&self, side: Side) {
        let mut state = self.state.subscribe();
        let _ = state.wait_for(|state| state.lost[side as usize]).await.map(drop);
    }
}

// === impl Out ===

impl<T> Out<T> {
    pub fn send(&mut self, message: T) {
        self.last = self.last.max(self.link.arrival());
        let _ = self.sender.send((self.last, message));
    }

    /// Nothing more comes, which is no reset.
    pub fn finish(&mut self) {
        self.finished = true;
    }
}

impl<T> Drop for Out<T> {
    fn drop(&mut self) {
        if !self.finished {
            // A reset may overtake what was said before it.
            self.reset.send_replace(Some(self.link.arrival()));
        }
    }
}

// === impl In ===

impl<T> In<T> {
    /// What comes next. Nothing is lost if the future is dropped.
    pub async fn recv(&mut self) -> Result<T, Broken> {
        let (link, side) = (self.link.clone(), self.side);
        tokio::select! {
            biased;
            () = link.lost(side) => Err(Broken::Lost),
            came = self.arrives() => {
                if link.is_cut() {
                    // It was on its way.
                    link.lost(side).await;
                    return Err(Broken::Lost);
                }
                came
            }
        }
    }

    async fn arrives(&mut self) -> Result<T, Broken> {
        if self.next.is_none() {
            let reset = &mut self.reset;
            tokio::select! {
                biased;
                () = resets(reset) => return Err(Broken::Reset),
                next = self.receiver.recv() => match next {
                    Some(next) => self.next = Some(next),
                    None => {
                        let Some(at) = self.reset() else { return Err(Broken::Finished) };
                        sleep_until(at).await;
                        return Err(Broken::Reset);
                    }
                },
            }
        }
        let at = self.next.as_ref().map_or_else(Instant::now, |(at, _)| *at);
        tokio::select! {
            biased;
            () = resets(&mut self.reset) => Err(Broken::Reset),
            () = sleep_until(at) => self.next.take().map(|(_, message)| message).ok_or(Broken::Finished),
        }
    }

    /// When a reset arrives that was sent already.
    pub fn reset(&self) -> Option<Instant> {
        *self.reset.borrow()
    }

    /// The same, for whoever looks on.
    pub fn resets(&self) -> watch::Receiver<Option<Instant>> {
        self.reset.clone()
    }
}

/// Resolves when a reset arrives; never if there is none.
async fn resets(reset: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let at = *reset.borrow_and_update();
        match at {
            Some(at) => return sleep_until(at).await,
            None if reset.changed().await.is_err() => {
                // Dropped: after a reset or without one.
                let at = *reset.borrow();
                match at {
                    Some(at) => return sleep_until(at).await,
                    None => std::future::pending().await,
                }
            }
            None => {}
        }
    }
}
