//! All that one connection has to do with trust, in one place for both of its ends.

use super::{Desk, Line, Session};
use crate::wire::control::Message;
use crate::wire::dealing::Dealing;

/// Deals with trust on behalf of one connection, whose task sends what [`next`](Self::next) gives and passes on what comes.
#[derive(Debug)]
pub struct Dealer {
    line: Line,
}

/// The other end has said what does not belong there.
#[derive(Debug, thiserror::Error)]
#[error("a message about trust that does not belong there")]
pub struct OutOfPlace;

// === impl Dealer ===

impl Dealer {
    /// For a connection that has said hello.
    pub fn new(desk: &Desk, session: Session) -> Self {
        Self { line: desk.line(session) }
    }

    /// The next message to send. Cancel-safe.
    pub async fn next(&mut self) -> Message {
        Message::Trust(Dealing::Pair(self.line.next().await))
    }

    /// The other end has sent a message about trust.
    ///
    /// # Errors
    /// [`OutOfPlace`]: the connection should end.
    pub async fn heard(&mut self, message: Message) -> Result<(), OutOfPlace> {
        match message {
            Message::Trust(Dealing::Pair(step)) => self.line.heard(step),
            _ => return Err(OutOfPlace),
        }
        Ok(())
    }
}
