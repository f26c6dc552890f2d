//! Tickets: a place in a gate's queue for a request that has not been sent yet.
//!
//! A request that would have to wait places a [`Ticket`] at one or two servers. The first that has a free slot gives a
//! [`Slot`], the request is sent there, and the other ticket is withdrawn by dropping it. So a request is bound to a server
//! as late as possible, and its body crosses the network once.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use http::{Request, Response};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Answer, Body, ExchangeError};

/// What a request will ask for, as much as a queue has to know.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ask {
    /// The model, as the request names it.
    pub model: String,
    /// The request's ID, for the logs of both sides.
    pub request: String,
    /// Tickets that stand for this request, here and elsewhere: each counts as a fraction.
    pub copies: u8,
    /// Tokens of the prompt that the server has to evaluate, as estimated.
    pub prompt: u32,
}

/// Where a ticket stands.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Place {
    /// Requests that come before it, not counting those that run; a twin counts as one half.
    pub ahead: f32,
}

/// A place in a queue. Dropping it withdraws it.
pub struct Ticket {
    /// Where it stands, as far as the gate has told.
    pub place: watch::Receiver<Place>,
    /// Resolves when it is its turn.
    pub turn: Pin<Box<dyn Future<Output = Result<Turn, ExchangeError>> + Send>>,
}

/// What a ticket comes to.
pub enum Turn {
    /// A slot is free and kept for the request, for a moment.
    Slot(Slot),
    /// The gate does not queue it: an answer with [`REFUSAL_HEADER`](super::REFUSAL_HEADER).
    Refused(Response<Body>),
}

/// A free slot. Dropping it gives it back.
pub struct Slot(Box<dyn FnOnce(Request<Body>) -> Answer + Send>);

// === impl Slot ===

impl Slot {
    /// A slot that `send` fills.
    pub fn new(send: impl FnOnce(Request<Body>) -> Answer + Send + 'static) -> Self {
        Self(Box::new(send))
    }

    /// Sends the request that it was kept for.
    pub fn exchange(self, request: Request<Body>) -> Answer {
        (self.0)(request)
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Slot(_) => f.write_str("Slot"),
            Self::Refused(answer) => write!(f, "Refused({})", answer.status()),
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("place", &*self.place.borrow()).finish_non_exhaustive()
    }
}
