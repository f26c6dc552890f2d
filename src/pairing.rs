//! How two people make sure that they mean each other: codes, invitations, vouching.
//!
//! **The six-digit code.** If `ollana trust` is typed on two nodes, each naming the other, within [`WINDOW`], both show the
//! same code. It authenticates the two keys over a channel that a machine in the middle cannot forge: two people who look
//! at two screens. The scheme is the numeric comparison of Bluetooth (Core Specification 5.4, volume 3, part H, 2.3.5.6.2),
//! which ZRTP (RFC 6189, 4.4.1 and 7) and Matrix's short authentication strings share: *commit, then reveal*.
//!
//! ```text
//! initiator: the smaller ID                          responder
//!    offer            <----------------------------->    offer           a person has typed `ollana trust` here
//!    commit(nonce I)  ------------------------------>
//!                     <------------------------------    nonce R
//!    reveal nonce I   ------------------------------>    checks it against the commitment
//!    code             both: HMAC(exporter, roles, IDs, nonces) mod 1,000,000
//! ```
//!
//! Why somebody in the middle, M, gets one guess in a million: with each of the two M has a TLS session of its own, so
//! exporter and IDs, and with them the codes, are unrelated. To make them equal M has to choose a nonce after it knows the
//! other three. Towards whom M is the initiator it is bound by its commitment before it sees nonce R; towards whom M is
//! the responder it sees only a commitment when it has to say nonce R. So there is nothing to grind, neither nonces nor
//! keys (which are older than the nonces). Each attempt needs a person who types on the node, and three that went wrong
//! lock pairing with that key, ten with whatever keys all pairing, for [`machine::LOCK`].
//!
//! Who has which role is decided by the IDs, and so the same on both sides whoever dialled. Both nodes may have dialled
//! each other: a person's offer goes out on every connection to the peer, in both directions, and the initiator commits
//! on the first on which it was offered to. A connection that breaks before the nonces costs nothing, and what comes late
//! of an earlier time is told by its number and ignored.
//!
//! A code grants nothing. It is shown, and a person decides, with `ollana trust`, for this node only.
//!
//! **Invitations** are in [`invitation`]. **Vouching** is in `vouching`, and what it is worth in [`trust`](crate::trust).
//! [`Dealer`] is what a connection needs of all this.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::id::Id;
use crate::wire::dealing::{Hex, Pairing};

mod code;
mod dealer;
pub mod invitation;
mod machine;
mod vouching;

pub use code::{Code, Session};
pub use dealer::Dealer;
pub use invitation::Invitation;
pub use machine::{Failure, Refusal, WINDOW};

use machine::{LineId, Machine, Output};

/// Steps that wait for a connection's task, and news that wait for a person's command. A whole pairing has five.
const WAITING: usize = 16;
/// Lines in the log about peers that want to be paired: keys cost nothing, and each may ask.
const LOUD: u32 = 10;
/// See `LOUD`.
const LOUD_WITHIN: Duration = Duration::from_secs(60);

/// What a person who has typed `ollana trust` is told, in the order in which it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum News {
    /// The code to compare.
    Code(Code),
    /// The person on the other side has confirmed.
    Confirmed,
    /// It went wrong, which should make one think.
    Failed(Failure),
    /// Nobody has typed it on the other side in time.
    Over,
}

/// Where persons and connections meet. Clones share it.
#[derive(Clone)]
pub struct Desk {
    shared: Arc<Mutex<Shared>>,
    /// What this node was started with.
    guest: Option<Arc<Invitation>>,
}

struct Shared {
    machine: Machine,
    lines: HashMap<LineId, mpsc::Sender<Pairing>>,
    wishes: HashMap<Id, (u64, mpsc::Sender<News>)>,
    /// Numbers of wishes and of lines.
    next: u64,
    /// Lines of the log that may still be written in the minute that began then.
    loud: (u32, Instant),
}

/// A person waits for the other side. Dropping it withdraws the wish.
#[derive(Debug)]
pub struct Wish {
    desk: Desk,
    number: u64,
    peer: Id,
    news: mpsc::Receiver<News>,
}

/// A connection over which peers can be paired. Dropping it says that it is over.
#[derive(Debug)]
pub struct Line {
    desk: Desk,
    id: LineId,
    steps: mpsc::Receiver<Pairing>,
}

// === impl Desk ===

impl Desk {
    /// The desk of the node with this ID, which may have been invited.
    pub fn new(me: Id, guest: Option<Invitation>) -> Self {
        let shared = Shared {
            machine: Machine::new(me, || Hex(rand::random())),
            lines: HashMap::new(),
            wishes: HashMap::new(),
            next: 0,
            loud: (LOUD, Instant::now()),
        };
        Self { shared: Arc::new(Mutex::new(shared)), guest: guest.map(Arc::new) }
    }

    /// A person has typed `ollana trust` here and meant this peer.
    ///
    /// # Errors
    /// [`Refusal`]: pairing with it is locked, or being done already.
    pub fn wish(&self, peer: Id) -> Result<Wish, Refusal> {
        let (tell, news) = mpsc::channel(WAITING);
        let mut shared = self.lock();
        shared.machine.handle_wish(Instant::now(), peer)?;
        let number = shared.number();
        shared.wishes.insert(peer, (number, tell));
        shared.act();
        drop(shared);
        Ok(Wish { desk: self.clone(), number, peer, news })
    }

    /// The person has confirmed, by the code or by comparing IDs. Nothing if nobody waits for this peer.
    pub fn confirm(&self, peer: Id) {
        self.close(peer, |machine| machine.handle_confirm(Instant::now(), peer));
    }

    /// The person has said no.
    pub fn deny(&self, peer: Id) {
        self.close(peer, |machine| machine.handle_end(Instant::now(), peer, true));
    }

    /// A connection has said hello.
    pub fn line(&self, session: Session) -> Line {
        let (send, steps) = mpsc::channel(WAITING);
        let mut shared = self.lock();
        let id = LineId(shared.number());
        shared.lines.insert(id, send);
        shared.machine.handle_connected(Instant::now(), id, session);
        shared.act();
        drop(shared);
        Line { desk: self.clone(), id, steps }
    }

    /// Our invitation, if we have dialled whoever made it.
    fn guest_of(&self, session: &Session) -> Option<Arc<Invitation>> {
        self.guest.clone().filter(|guest| session.dialled && guest.id == session.peer)
    }

    fn handle(&self, event: impl FnOnce(&mut Machine)) {
        let mut shared = self.lock();
        event(&mut shared.machine);
        shared.act();
    }

    fn close(&self, peer: Id, event: impl FnOnce(&mut Machine)) {
        self.handle(event);
        self.lock().wishes.remove(&peer);
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Desk")
    }
}

// === impl Shared ===

impl Shared {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Does what the machine says. What does not take a step at once has stopped reading: the other side will miss it and
    /// the attempt come to its end.
    fn act(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Send(line, step) => {
                    if let Some(steps) = self.lines.get(&line) {
                        let _ = steps.try_send(step);
                    }
                }
                Output::Tell(peer, news) => {
                    let last = matches!(news, News::Failed(_) | News::Over);
                    if let News::Failed(failure) = &news {
                        tracing::warn!(%peer, "pairing by code: {failure}");
                    }
                    if let Some((_, told)) = self.wishes.get(&peer) {
                        let _ = told.try_send(news);
                    }
                    if last {
                        self.wishes.remove(&peer);
                    }
                }
                Output::Asked(peer) => self.say_asked(peer),
                Output::Disputed(peer) => tracing::error!(
                    %peer,
                    "the person on the other side says that the codes differ, and here they were confirmed: somebody may be \
                     in between. `ollana revoke {peer}`, and compare again"
                ),
            }
        }
    }

    fn say_asked(&mut self, peer: Id) {
        let (left, since) = &mut self.loud;
        if since.elapsed() >= LOUD_WITHIN {
            (*left, *since) = (LOUD, Instant::now());
        }
        if *left > 0 {
            *left -= 1;
            tracing::info!(%peer, "a person there wants to pair: `ollana trust {peer}` here shows the same code on both");
        }
    }
}

// === impl Wish ===

impl Wish {
    /// The next news, or `None` when there will be none: it was confirmed, denied, or is over.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            let timeout = self.desk.lock().machine.poll_timeout();
            tokio::select! {
                news = self.news.recv() => return news,
                // Whoever waits for a person drives the clock of all of them.
                () = until(timeout) => self.desk.handle(|machine| machine.handle_timeout(Instant::now())),
            }
        }
    }
}

impl Drop for Wish {
    fn drop(&mut self) {
        let mut shared = self.desk.lock();
        // Unless it is another's by now, who has begun anew.
        if shared.wishes.get(&self.peer).is_some_and(|(number, _)| *number == self.number) {
            shared.wishes.remove(&self.peer);
            shared.machine.handle_end(Instant::now(), self.peer, false);
            shared.act();
        }
    }
}

// === impl Line ===

impl Line {
    /// The next step to send. Cancel-safe.
    pub async fn next(&mut self) -> Pairing {
        match self.steps.recv().await {
            Some(step) => step,
            // Only when the line itself is dropped.
            None => std::future::pending().await,
        }
    }

    /// The peer has sent a step.
    pub fn heard(&self, step: Pairing) {
        self.desk.handle(|machine| machine.handle_step(Instant::now(), self.id, step));
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.desk.lock().lines.remove(&self.id);
        self.desk.handle(|machine| machine.handle_disconnected(Instant::now(), self.id));
    }
}

async fn until(timeout: Option<Instant>) {
    match timeout {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
