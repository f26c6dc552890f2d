//! All that one connection has to do with trust, in one place for both of its ends.

use std::collections::VecDeque;
use std::net::SocketAddr;

use data_encoding::HEXLOWER;

use super::invitation::{Invitation, answer, is_proved};
use super::vouching::Part;
use super::{Desk, Line, Session};
use crate::id::{NodeName, Scope};
use crate::trust::{Book, Direction, Met, Trust};
use crate::wire::control::Message;
use crate::wire::dealing::{Dealing, Hex, Redeem};

/// Deals with trust on behalf of one connection, whose task sends what [`next`](Self::next) gives and passes on what comes.
#[derive(Debug)]
pub struct Dealer {
    line: Line,
    book: Book,
    session: Session,
    name: NodeName,
    address: SocketAddr,
    /// What is to be said before anything else.
    first: VecDeque<Message>,
    /// Whether an invitation has been redeemed, or refused, on this connection. Who guesses has to shake hands for each guess.
    redeemed: bool,
    vouching: Part,
}

/// The other end has said what does not belong there.
#[derive(Debug, thiserror::Error)]
#[error("a message about trust that does not belong there")]
pub struct OutOfPlace;

// === impl Dealer ===

impl Dealer {
    /// For a connection that has said hello, with the peer of this name at this address.
    pub fn new(desk: &Desk, book: &Book, session: Session, name: NodeName, address: SocketAddr) -> Self {
        let line = desk.line(session.clone());
        let mut first = VecDeque::new();
        if let Some(guest) = desk.guest_of(&session) {
            match guest.redeem(&session) {
                Ok(redeem) => first.push_back(Message::Trust(Dealing::Redeem(redeem))),
                Err(error) => tracing::error!(%error, "cannot redeem the invitation"),
            }
        }
        let vouching = Part::new(&session, book, address);
        Self { line, book: book.clone(), session, name, address, first, redeemed: false, vouching }
    }

    /// The next message to send. Cancel-safe.
    pub async fn next(&mut self) -> Message {
        loop {
            if let Some(message) = self.first.pop_front().or_else(|| self.vouching.due()) {
                return message;
            }
            self.vouching.tell(&self.book, &self.name).await;
            tokio::select! {
                step = self.line.next() => return Message::Trust(Dealing::Pair(step)),
                () = self.vouching.changed() => {}
            }
        }
    }

    /// The other end has sent a message about trust.
    ///
    /// # Errors
    /// [`OutOfPlace`]: the connection should end.
    pub async fn heard(&mut self, message: Message) -> Result<(), OutOfPlace> {
        match message {
            Message::Trust(Dealing::Pair(step)) => {
                self.line.heard(step);
                Ok(())
            }
            Message::Trust(Dealing::Redeem(redeem)) if !self.session.dialled && !self.redeemed => {
                self.redeemed = true;
                let told = self.redeem(redeem).await;
                self.first.push_back(Message::Trust(Dealing::Redeemed(told)));
                Ok(())
            }
            Message::Trust(Dealing::Redeemed(told)) => match self.line.desk.guest_of(&self.session) {
                Some(guest) if !self.redeemed => {
                    self.redeemed = true;
                    self.accepted(&guest, told).await;
                    Ok(())
                }
                _ => Err(OutOfPlace),
            },
            Message::Vouching(message) => self.vouching.heard(message),
            _ => Err(OutOfPlace),
        }
    }

    /// Whatever is wrong with it is answered alike.
    async fn redeem(&self, Redeem { invitation, proof }: Redeem) -> Option<Hex<32>> {
        let met = Met {
            id: self.session.peer,
            name: self.name.clone(),
            address: Some(self.address.to_string()),
            direction: Direction::Inbound,
        };
        let session = self.session.clone();
        let check = move |key: Option<&str>| is_proved(key, &proof, &session);
        match self.book.redeem(HEXLOWER.encode(&invitation.0), met, check).await {
            Ok(Some(key)) => {
                tracing::info!(peer = %self.name, id = %self.session.peer, "an invitation was redeemed: the peer is trusted");
                Some(answer(&key, &self.session))
            }
            Ok(None) => {
                tracing::debug!(peer = %self.name, id = %self.session.peer, "an invitation that is not good");
                None
            }
            Err(error) => {
                tracing::error!(peer = %self.name, %error, "an invitation cannot be redeemed");
                None
            }
        }
    }

    /// Who made the invitation has taken it. Whoever gave it to this node meant it to be used: as by `ollana trust`, but not
    /// against what a person has decided here.
    async fn accepted(&self, guest: &Invitation, told: Option<Hex<32>>) {
        let id = self.session.peer;
        let trusted = matches!(self.book.snapshot().standing(&id).trust, Trust::Trusted | Trust::Revoked);
        match told {
            Some(told) if guest.is_answered_by(&told, &self.session) => {
                if trusted {
                    return;
                }
                let address = Some(self.address.to_string());
                match self.book.trust(id, self.name.clone(), address, Scope::Infer, true).await {
                    Ok(_) => tracing::info!(peer = %self.name, %id, "this node's invitation was redeemed"),
                    Err(error) => {
                        tracing::error!(peer = %self.name, %error, "the invitation was redeemed, and the peer cannot be trusted");
                    }
                }
            }
            // At each start after it has expired: no news.
            _ if trusted => tracing::debug!(peer = %self.name, "it does not take the invitation any more"),
            _ => tracing::warn!(
                peer = %self.name, %id,
                "it does not take the invitation: it was used up, has expired, was taken back, or is not one of its own"
            ),
        }
    }
}
