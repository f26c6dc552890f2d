//! The exchange behind the code: who has typed what, who has said what, and when it has failed. Without I/O, without a
//! clock, and without randomness of its own.
//!
//! Feed it what happened (`handle_*`) and do what [`Machine::poll_output`] says; come back at [`Machine::poll_timeout`].
//! What a peer sends changes nothing but what stands beside its own key, and nothing at all beyond a note that it has
//! offered as long as no person here has typed its name. So its tables are bounded by connections and by people.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::News;
use super::code::Session;
use crate::id::Id;
use crate::wire::dealing::{Hex, PairStep, Pairing};

/// How long a person's `ollana trust` waits for the other's: time to walk to the other machine.
pub const WINDOW: Duration = Duration::from_secs(5 * 60);
/// How long pairing stays locked after too many failures. With three a time, somebody in the middle who could make a person
/// type without end would have an even chance after four years.
pub const LOCK: Duration = Duration::from_secs(10 * 60);
/// Failures with one key, each no more than [`LOCK`] after the last, that lock it. A person may misread a code once or twice.
const MAX_FAILURES: u32 = 3;
/// The same for all keys together: keys cost nothing, and each could be given three guesses.
const MAX_FAILURES_OF_ALL: usize = 10;
/// How long the other side may take for a step: it only computes. A lossy network needs some retransmissions.
const STEP: Duration = Duration::from_secs(10);
/// Wishes at once. Each is somebody who sits at a terminal of this machine.
const MAX_WISHES: usize = 16;

/// One connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LineId(pub(super) u64);

/// What there is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Output {
    /// Send this.
    Send(LineId, Pairing),
    /// Tell the person who has typed this peer's name. After [`News::Failed`] and [`News::Over`] the wish is gone.
    Tell(Id, News),
    /// A person on the other side has typed our name, and nobody here has typed this peer's.
    Asked(Id),
    /// A person there says that the codes differ, and one here has confirmed that they do not.
    Disputed(Id),
}

/// Why pairing cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many failures of late.
    #[error("no code for another {} min, since it went wrong too often; compare the whole ID instead", .0.as_secs().div_ceil(60))]
    Locked(Duration),
    /// Typed on another terminal.
    #[error("somebody pairs with this peer on another terminal already")]
    Busy,
    /// More people than there can be.
    #[error("{MAX_WISHES} others are being paired with at this moment")]
    Crowded,
    /// The node itself.
    #[error("that is this node itself")]
    OwnKey,
}

/// What went wrong with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The nonce was not the one that the other side was committed to.
    WrongReveal,
    /// A step that does not belong there.
    OutOfTurn,
    /// The other side has stopped in the middle.
    Stopped,
    /// The person on the other side says that the codes differ.
    Mismatch,
}

/// A person who waits for a peer.
#[derive(Debug)]
struct Wish {
    /// Tells this time from earlier ones.
    round: u64,
    until: Instant,
    stage: Stage,
}

/// How far a wish is.
#[derive(Debug)]
enum Stage {
    /// For the other's offer, or as the responder for its commitment.
    Waiting,
    /// Initiator: for the nonce.
    Committed { with: With, nonce: Hex<32>, due: Instant },
    /// Responder: for what the commitment commits to.
    Answered { with: With, commitment: Hex<32>, nonce: Hex<32>, due: Instant },
    /// For the person.
    Shown { with: With },
}

/// Whom an attempt is with: a connection, and the other's number of this time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct With {
    line: LineId,
    round: u64,
}

/// A connection, and the peer's offer on it.
#[derive(Debug)]
struct Line {
    session: Session,
    offered: Option<Offered>,
}

#[derive(Debug, Clone, Copy)]
struct Offered {
    round: u64,
    at: Instant,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Instant,
}

/// The state machine.
pub(super) struct Machine {
    me: Id,
    /// Where nonces come from.
    nonce: fn() -> Hex<32>,
    wishes: BTreeMap<Id, Wish>,
    lines: BTreeMap<LineId, Line>,
    /// By key; only of peers whose names were typed here.
    failures: BTreeMap<Id, Failures>,
    failures_of_all: VecDeque<Instant>,
    /// Whose codes were confirmed here of late.
    confirmed: BTreeMap<Id, Instant>,
    outputs: VecDeque<Output>,
}

// === impl Machine ===

impl Machine {
    pub(super) fn new(me: Id, nonce: fn() -> Hex<32>) -> Self {
        Self {
            me,
            nonce,
            wishes: BTreeMap::new(),
            lines: BTreeMap::new(),
            failures: BTreeMap::new(),
            failures_of_all: VecDeque::new(),
            confirmed: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A person has typed the peer's name.
    pub(super) fn handle_wish(&mut self, now: Instant, peer: Id) -> Result<(), Refusal> {
        self.handle_timeout(now);
        if peer == self.me {
            return Err(Refusal::OwnKey);
        }
        if let Some(left) = self.locked(now, &peer) {
            return Err(Refusal::Locked(left));
        }
        if self.wishes.contains_key(&peer) {
            return Err(Refusal::Busy);
        }
        if self.wishes.len() >= MAX_WISHES {
            return Err(Refusal::Crowded);
        }
        let round = (self.nonce)().0.first_chunk().copied().map_or(0, u64::from_be_bytes);
        self.wishes.insert(peer, Wish { round, until: now + WINDOW, stage: Stage::Waiting });
        self.say_everywhere(&peer, round, &PairStep::Offer);
        self.commit(now, peer);
        Ok(())
    }

    /// The person has confirmed, with or without a code.
    pub(super) fn handle_confirm(&mut self, now: Instant, peer: Id) {
        let Some(wish) = self.wishes.remove(&peer) else { return };
        match wish.stage {
            Stage::Shown { with } => {
                self.failures.remove(&peer);
                self.confirmed.retain(|_, at| now < *at + WINDOW);
                self.confirmed.insert(peer, now);
                self.send(with, PairStep::Confirmed);
            }
            _ => self.say_everywhere(&peer, wish.round, &PairStep::Withdrawn { mismatch: false }),
        }
    }

    /// The person is no longer at it; `said_no` to what was shown.
    pub(super) fn handle_end(&mut self, now: Instant, peer: Id, said_no: bool) {
        let Some(wish) = self.wishes.remove(&peer) else { return };
        let shown = matches!(wish.stage, Stage::Shown { .. });
        // Whoever is in the middle must not get another guess for nothing by making people give up.
        if shown || matches!(wish.stage, Stage::Answered { .. }) {
            self.count_failure(now, peer);
        }
        self.say_everywhere(&peer, wish.round, &PairStep::Withdrawn { mismatch: said_no && shown });
    }

    /// A connection has said hello.
    pub(super) fn handle_connected(&mut self, _now: Instant, line: LineId, session: Session) {
        let peer = session.peer;
        if peer == self.me {
            return;
        }
        self.lines.insert(line, Line { session, offered: None });
        if let Some(Wish { round, .. }) = self.wishes.get(&peer) {
            self.send(With { line, round: *round }, PairStep::Offer);
        }
    }

    /// A connection is over.
    pub(super) fn handle_disconnected(&mut self, now: Instant, over: LineId) {
        let Some(Line { session, .. }) = self.lines.remove(&over) else { return };
        let peer = session.peer;
        match self.wishes.get_mut(&peer) {
            // Nothing that could be guessed with was said: on another connection, then.
            Some(wish) if matches!(wish.stage, Stage::Committed { with, .. } if with.line == over) => {
                wish.stage = Stage::Waiting;
                self.commit(now, peer);
            }
            Some(wish) if matches!(wish.stage, Stage::Answered { with, .. } if with.line == over) => {
                self.fail(now, peer, Failure::Stopped);
            }
            // What is shown can be compared without it.
            _ => {}
        }
    }

    /// The peer has sent a step.
    pub(super) fn handle_step(&mut self, now: Instant, at: LineId, Pairing { round, step }: Pairing) {
        self.handle_timeout(now);
        let Some(line) = self.lines.get_mut(&at) else { return };
        let peer = line.session.peer;
        match step {
            PairStep::Offer => {
                let first = line.offered.replace(Offered { round, at: now }).is_none();
                if first && !self.wishes.contains_key(&peer) {
                    self.outputs.push_back(Output::Asked(peer));
                }
                self.renewed(peer, |theirs| theirs != round);
                self.commit(now, peer);
            }
            PairStep::Withdrawn { mismatch } => self.handle_withdrawn(now, peer, round, mismatch),
            step => self.handle_attempt(now, at, round, step),
        }
    }

    /// The peer's person is no longer at it. This goes out on every connection, and counts once.
    fn handle_withdrawn(&mut self, now: Instant, peer: Id, round: u64, mismatch: bool) {
        for line in self.lines.values_mut().filter(|line| line.session.peer == peer) {
            line.offered = line.offered.filter(|offered| offered.round != round);
        }
        if mismatch && self.confirmed.remove(&peer).is_some_and(|at| now < at + WINDOW) {
            self.outputs.push_back(Output::Disputed(peer));
        }
        match self.wishes.get(&peer).map(|wish| &wish.stage) {
            Some(Stage::Answered { with, .. }) if with.round == round => self.fail(now, peer, Failure::Stopped),
            Some(Stage::Shown { with }) if with.round == round => {
                self.fail(now, peer, if mismatch { Failure::Mismatch } else { Failure::Stopped });
            }
            _ => {
                self.renewed(peer, |theirs| theirs == round);
                self.commit(now, peer);
            }
        }
    }

    /// A commitment that the other side cannot answer any more is forgotten. Nothing was learnt from it.
    fn renewed(&mut self, peer: Id, is_over: impl Fn(u64) -> bool) {
        if let Some(wish) = self.wishes.get_mut(&peer)
            && matches!(wish.stage, Stage::Committed { with, .. } if is_over(with.round))
        {
            wish.stage = Stage::Waiting;
        }
    }

    /// A step of the exchange itself.
    fn handle_attempt(&mut self, now: Instant, at: LineId, round: u64, step: PairStep) {
        let Some(line) = self.lines.get(&at) else { return };
        let peer = line.session.peer;
        // What is for an earlier time crossed our withdrawal on its way.
        let Some(wish) = self.wishes.get_mut(&peer).filter(|wish| wish.round == round) else { return };
        match (&wish.stage, step) {
            (Stage::Waiting, PairStep::Commit(commitment)) if !line.session.initiates() => {
                let Some(Offered { round, .. }) = line.offered else { return };
                let (with, nonce) = (With { line: at, round }, (self.nonce)());
                wish.stage = Stage::Answered { with, commitment, nonce, due: now + STEP };
                self.send(with, PairStep::Nonce(nonce));
            }
            (Stage::Committed { with, nonce, .. }, PairStep::Nonce(theirs)) if with.line == at => {
                let (with, code, nonce) = (*with, line.session.code(nonce, &theirs), *nonce);
                wish.stage = Stage::Shown { with };
                self.send(with, PairStep::Reveal(nonce));
                self.outputs.push_back(Output::Tell(peer, News::Code(code)));
            }
            (Stage::Answered { with, commitment, nonce, .. }, PairStep::Reveal(theirs)) if with.line == at => {
                if !line.session.opens(commitment, &theirs) {
                    return self.fail(now, peer, Failure::WrongReveal);
                }
                let code = line.session.code(&theirs, nonce);
                wish.stage = Stage::Shown { with: *with };
                self.outputs.push_back(Output::Tell(peer, News::Code(code)));
            }
            (Stage::Shown { with }, PairStep::Confirmed) if with.line == at => {
                self.outputs.push_back(Output::Tell(peer, News::Confirmed));
            }
            // On another connection, another time, or by whom it is not the turn: not what our program would do.
            _ => self.fail(now, peer, Failure::OutOfTurn),
        }
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<Id> = self.wishes.iter().filter(|(_, wish)| wish.due() <= now).map(|(peer, _)| *peer).collect();
        for peer in due {
            let Some(wish) = self.wishes.get(&peer) else { continue };
            match wish.stage {
                Stage::Committed { .. } | Stage::Answered { .. } => self.fail(now, peer, Failure::Stopped),
                Stage::Waiting | Stage::Shown { .. } => {
                    self.handle_end(now, peer, false);
                    self.outputs.push_back(Output::Tell(peer, News::Over));
                }
            }
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.wishes.values().map(Wish::due).min()
    }

    /// The next thing to do.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    // === inside ===

    /// As the initiator: commits where the peer has offered, if nothing is under way.
    fn commit(&mut self, now: Instant, peer: Id) {
        let Some(wish) = self.wishes.get_mut(&peer).filter(|wish| matches!(wish.stage, Stage::Waiting)) else { return };
        let offer = |line: &Line| line.offered.filter(|offered| now < offered.at + WINDOW);
        let mut lines = self.lines.iter().filter(|(_, line)| line.session.peer == peer && line.session.initiates());
        let Some((&id, line, round)) = lines.find_map(|(id, line)| Some((id, line, offer(line)?.round))) else {
            return;
        };
        let nonce = (self.nonce)();
        let (with, commitment) = (With { line: id, round }, line.session.commitment(&nonce));
        wish.stage = Stage::Committed { with, nonce, due: now + STEP };
        self.send(with, PairStep::Commit(commitment));
    }

    fn fail(&mut self, now: Instant, peer: Id, failure: Failure) {
        let Some(wish) = self.wishes.remove(&peer) else { return };
        // Before the nonces nobody has learnt anything that a guess could be made with.
        if matches!(wish.stage, Stage::Answered { .. } | Stage::Shown { .. }) {
            self.count_failure(now, peer);
        }
        self.say_everywhere(&peer, wish.round, &PairStep::Withdrawn { mismatch: false });
        self.outputs.push_back(Output::Tell(peer, News::Failed(failure)));
    }

    fn count_failure(&mut self, now: Instant, peer: Id) {
        self.failures.retain(|_, failures| now < failures.last + LOCK);
        let failures = self.failures.entry(peer).or_insert(Failures { count: 0, last: now });
        *failures = Failures { count: failures.count + 1, last: now };
        self.failures_of_all.push_back(now);
        while self.failures_of_all.len() > MAX_FAILURES_OF_ALL {
            self.failures_of_all.pop_front();
        }
    }

    /// How long pairing with this peer is locked still.
    fn locked(&self, now: Instant, peer: &Id) -> Option<Duration> {
        let of_peer = self.failures.get(peer).filter(|failures| failures.count >= MAX_FAILURES);
        // All of the last ten lie within the time of one lock: it lasts until the first of them is that old.
        let of_all = self.failures_of_all.front().filter(|_| self.failures_of_all.len() == MAX_FAILURES_OF_ALL);
        let until = of_peer.map(|failures| failures.last).max(of_all.copied())? + LOCK;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }

    fn say_everywhere(&mut self, peer: &Id, round: u64, step: &PairStep) {
        let lines: Vec<LineId> =
            self.lines.iter().filter(|(_, line)| line.session.peer == *peer).map(|(id, _)| *id).collect();
        for line in lines {
            self.send(With { line, round }, step.clone());
        }
    }

    fn send(&mut self, With { line, round }: With, step: PairStep) {
        self.outputs.push_back(Output::Send(line, Pairing { round, step }));
    }
}

// === impl Wish ===

impl Wish {
    fn due(&self) -> Instant {
        match self.stage {
            Stage::Waiting | Stage::Shown { .. } => self.until,
            Stage::Committed { due, .. } | Stage::Answered { due, .. } => due.min(self.until),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::WrongReveal => "the other side did not keep to what it was committed to: somebody may be in between",
            Self::OutOfTurn => "the other side did not keep to the protocol: somebody may be in between",
            Self::Stopped => "the other side stopped in the middle",
            Self::Mismatch => "the person on the other side says that the codes differ: somebody may be in between",
        })
    }
}

#[cfg(test)]
mod tests;
