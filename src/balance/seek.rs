//! Looking for a server: at once where one is free, else by queueing at one or two and taking the first free slot.
//!
//! The [`WaitingRoom`] is a [`tower::Service`] that bounds how many requests wait at a time, and turns more of them away at
//! once. Tower's own limits count requests that find a free slot too. Dropping the future withdraws all that it queues for.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use http::Response;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::attempt::refused;
use super::errand::Errand;
use super::members::{Member, Members, Obstacle};
use super::weigh::{Queues, Scales};
use super::{Known, RETURN, breaker, refuse};
use crate::exchange::{
    self, Body, Decision, ExchangeError, Health, Refusal, RefusalCode, ResetCode, Slot, Ticket, Turn,
};
use crate::id::NodeName;
use crate::route::ModelName;

/// A ticket that has waited this many times longer than it should, and than [`ASIDE`] in seconds, looks worse and worse. That
/// costs an honest server nothing: where it waits it goes on waiting, with a second ticket at who looks better.
const OVERDUE: f64 = 4.0;
const ASIDE: f64 = 1.0;

/// Finds servers for requests, no more of which wait on this node at a time than there are places for.
#[derive(Debug, Clone)]
pub(super) struct WaitingRoom {
    known: Arc<Known>,
    places: Arc<Semaphore>,
}

/// Who will take it.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) member: Arc<Member>,
    /// A slot that is kept for it there. Without one it is sent and queues there if it has to.
    pub(super) slot: Option<Slot>,
    /// How long it should take from when it has a slot; nothing where nobody could know.
    pub(super) promised: Option<Duration>,
}

/// Why nobody will.
#[derive(Debug)]
pub(super) enum Lost {
    /// In the mesh's own words.
    Refused(Refusal),
    /// In the words of the gate that was asked last.
    TurnedAway(NodeName, Response<Body>),
}

/// A ticket of ours.
struct Held {
    member: Arc<Member>,
    ticket: Ticket,
    health: watch::Receiver<Health>,
    since: Instant,
    /// Seconds that it should take, when it was placed.
    expected: f64,
}

/// What happened while we waited.
enum Event {
    /// It is the turn of the ticket with this index, or it came to nothing.
    Turn(usize, Result<Turn, ExchangeError>),
    /// The server of a ticket does not answer.
    Unwell,
    /// Time to look again.
    Look,
    /// The members changed, which matters where nothing is held.
    Changed,
}

/// A waiting room over what is known of the mesh, for so many at a time.
pub(super) fn waiting_room(known: Arc<Known>, places: usize) -> WaitingRoom {
    WaitingRoom { known, places: Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS))) }
}

// === impl Found ===

impl Found {
    /// One that needs no slot, or has one free as far as is known.
    pub(super) fn without_slot(member: Arc<Member>) -> Self {
        Self { member, slot: None, promised: None }
    }
}

// === impl Lost ===

impl Lost {
    /// What the application is told. A gate says why it queues nothing without knowing which API the request is of, and may
    /// be anybody's: of its answer no more is taken than its words.
    pub(super) async fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::TurnedAway(peer, answer) => refuse::turned_away(&peer, answer).await,
        }
    }
}

// === impl WaitingRoom ===

impl tower::Service<Arc<Errand>> for WaitingRoom {
    type Response = Result<Found, Lost>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, errand: Arc<Errand>) -> Self::Future {
        let room = self.clone();
        Box::pin(async move {
            match errand.aim.model() {
                Some(model) => Ok(seek(&room, &errand, model).await),
                // What is for no model takes no slot, and does not come here.
                None => Ok(Err(Lost::Refused(refuse::nobody(&room.known.members.borrow()).refusal))),
            }
        })
    }
}

async fn seek(room: &WaitingRoom, errand: &Errand, model: &ModelName) -> Result<Found, Lost> {
    let known = &*room.known;
    let mut members = known.members.clone();
    // Since when there has been nobody to take it.
    let mut since = Instant::now();
    // Whose connection was lost while this waited there may be back by then.
    let mut back_by = known.grace_ends;
    let mut held: Vec<Held> = Vec::new();
    // Where it does not queue any more, and why not at the last of them. Who is back by another connection is another member.
    let (mut full, mut turned_away): (Vec<Arc<Member>>, _) = (Vec::new(), None);
    // How often its turn was over before it was heard of.
    let mut late = 0;
    // Taken once it has to wait.
    let mut place: Option<OwnedSemaphorePermit> = None;
    loop {
        let tickets = held.len();
        held.retain(|held| !held.is_gone());
        if held.len() < tickets {
            back_by = Instant::now() + RETURN;
        }
        let snapshot = members.borrow_and_update().clone();
        let candidates = match errand.candidates(&snapshot, &known.node) {
            Ok(candidates) => candidates,
            Err(unmet) => {
                // A ticket stays where nobody else can take it: hundreds that were withdrawn and placed anew would be more
                // work for a server that has too much to do already.
                held.retain(Held::may_stay);
                if held.is_empty() && errand.has_failed() {
                    return Err(Lost::Refused(unmet.refusal));
                }
                let waits = known.wait_for_more(&mut members, since, back_by, unmet);
                let idle = held.is_empty();
                tokio::select! {
                    biased;
                    (at, turn) = turn(&mut held), if !idle => {
                        let held = held.swap_remove(at);
                        match turn {
                            // The prompt may not go there any more.
                            Ok(Turn::Slot(_)) if !held.may_stay() => {}
                            Ok(Turn::Slot(slot)) => {
                                return Ok(Found { member: held.member, slot: Some(slot), promised: None });
                            }
                            Ok(Turn::Refused(_)) | Err(_) => {}
                        }
                        back_by = Instant::now() + RETURN;
                    }
                    waited = waits => waited.map_err(Lost::Refused)?,
                }
                continue;
            }
        };
        let is_full = |member: &Arc<Member>| full.iter().any(|full| Arc::ptr_eq(full, member));
        let candidates: Vec<_> = candidates.into_iter().filter(|member| !is_full(member)).collect();
        // Where others can take it, none is waited for that is not well, perhaps by an older connection, or may not have it
        // any more.
        let tickets = held.len();
        held.retain(Held::is_well);
        if held.len() < tickets {
            back_by = Instant::now() + RETURN;
        }
        held.retain(|held| candidates.iter().any(|member| member.id() == held.member.id()));
        let tempo = known.node.preferences.tempo;
        let places: Vec<Queues> = held.iter().map(|held| held.place(tempo)).collect();
        let scales = Scales { known, errand, model, held: &places };
        let Some(weighed) = scales.weigh(candidates) else {
            match &turned_away {
                Some(Lost::Refused(refusal)) if !errand.has_failed() => {
                    let waits = known.wait_for_more(&mut members, since, back_by, refusal.clone().into());
                    waits.await.map_err(Lost::Refused)?;
                    continue;
                }
                _ => return Err(turned_away.unwrap_or_else(|| Lost::Refused(refuse::nobody(&snapshot).refusal))),
            }
        };
        since = Instant::now();
        tracing::debug!(request = %errand.entry.id(), %model, decision = ?weighed.decision(), "{weighed}");
        errand.entry.looked(weighed.look());
        match weighed.decision() {
            Decision::Send => {
                if let Some(found) = weighed.sends() {
                    return Ok(found);
                }
            }
            Decision::Queue => {
                let wanted: Vec<_> = weighed.queues_at().cloned().collect();
                // A request that finds a free slot does not wait. If it is gone by then, there is one more who waits,
                // and as few of them as there are slots.
                if place.is_none() && !weighed.finds_slot() {
                    place = room.places.clone().try_acquire_owned().ok();
                    if place.is_none() && held.is_empty() {
                        let wait = wanted.first().map_or(0.0, |best| weighed.wait(best.id()));
                        let wait = Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX);
                        return Err(Lost::Refused(refuse::room_is_full(wait)));
                    }
                }
                held.retain(|held| wanted.iter().any(|member| member.id() == held.member.id()));
                let copies = u8::try_from(wanted.len()).unwrap_or(u8::MAX);
                let new = wanted.into_iter().filter(|member| places.iter().all(|held| held.id != member.id()));
                held.extend(new.map(|member| Held::queue(weighed.wait(member.id()), member, errand, copies)));
            }
            Decision::Stay if place.is_none() => place = room.places.clone().try_acquire_owned().ok(),
            Decision::Stay => {}
            Decision::Refuse => return Err(Lost::Refused(weighed.refusal())),
        }
        match next(&mut held, weighed.look_again(), &mut members).await {
            Event::Turn(at, turn) => {
                let Held { member, .. } = held.swap_remove(at);
                match turn {
                    // The prompt does not go there any more; others may have a slot too.
                    Ok(Turn::Slot(_)) if !weighed.still_lets(&member) => {}
                    Ok(Turn::Slot(slot)) => {
                        let promised = weighed.promised(member.id());
                        return Ok(Found { member, slot: Some(slot), promised });
                    }
                    Ok(Turn::Refused(answer)) => {
                        tracing::debug!(request = %errand.entry.id(), peer = %member.label(), status = %answer.status(), "does not queue it");
                        let (outcome, answer) = match RefusalCode::of(&answer) {
                            Some(code) => (refused(code), answer),
                            // No reason: it is no gate that keeps to the protocol.
                            None => (breaker::Outcome::Failed, Response::new(exchange::empty())),
                        };
                        weighed.failed(&member, outcome);
                        turned_away = Some(Lost::TurnedAway(member.label(), answer));
                        full.push(member);
                    }
                    Err(error) => {
                        tracing::debug!(request = %errand.entry.id(), peer = %member.label(), %error, "a ticket is lost");
                        match error {
                            ExchangeError::Reset(_, ResetCode::Late) if late < weighed.most_late() => {
                                late += 1;
                                continue;
                            }
                            ExchangeError::Reset(_, ResetCode::Late) => {}
                            // That a connection is lost says nothing of the server behind it.
                            ExchangeError::Unreachable(_) => back_by = Instant::now() + RETURN,
                            _ => weighed.failed(&member, breaker::Outcome::Failed),
                        }
                        turned_away = Some(Lost::Refused(refuse::ticket_lost(&error, &snapshot)));
                        full.push(member);
                    }
                }
            }
            Event::Unwell | Event::Look | Event::Changed => {}
        }
    }
}

/// Waits for something to happen.
async fn next(held: &mut [Held], delay: Duration, members: &mut watch::Receiver<Members>) -> Event {
    let idle = held.is_empty();
    let mut healths: FuturesUnordered<_> = held.iter().map(|held| unwell(held.health.clone())).collect();
    tokio::select! {
        biased;
        (at, turn) = turn(held), if !idle => Event::Turn(at, turn),
        Some(()) = healths.next() => Event::Unwell,
        Ok(()) = members.changed(), if idle => Event::Changed,
        () = tokio::time::sleep(delay) => Event::Look,
    }
}

/// Resolves once a server does not answer.
async fn unwell(mut health: watch::Receiver<Health>) {
    // One that is gone for good is not well either.
    let _ = health.wait_for(|now| *now != Health::Healthy).await;
}

/// The first of the tickets whose turn it is, or that is lost, or whose server fell silent.
async fn turn(held: &mut [Held]) -> (usize, Result<Turn, ExchangeError>) {
    poll_fn(|cx| {
        for (at, held) in held.iter_mut().enumerate() {
            if let Poll::Ready(turn) = held.ticket.turn.poll_unpin(cx) {
                return Poll::Ready((at, turn));
            }
        }
        Poll::Pending
    })
    .await
}

// === impl Held ===

impl Held {
    fn queue(expected: f64, member: Arc<Member>, errand: &Errand, copies: u8) -> Self {
        let ticket = member.endpoint.queue(errand.ask(copies));
        member.sent(errand.aim.model(), copies);
        let health = member.health();
        Self { member, ticket, health, since: Instant::now(), expected }
    }

    fn is_gone(&self) -> bool {
        *self.health.borrow() == Health::Gone
    }

    fn is_well(&self) -> bool {
        *self.health.borrow() == Health::Healthy
    }

    /// Whether it may stay though its server cannot be chosen now.
    fn may_stay(&self) -> bool {
        matches!(self.member.obstacle(), None | Some(Obstacle::Suspect))
    }

    /// Where it stands, as the gate says; and as time says: a gate that always has a slot in a moment would else be waited at
    /// for ever, and nothing that is measured of servers would tell.
    fn place(&self, tempo: f64) -> Queues {
        let expected = OVERDUE * (self.expected + ASIDE / tempo);
        let overdue = (self.since.elapsed().as_secs_f64() / expected).max(1.0);
        Queues { id: self.member.id(), ahead: self.ticket.place.borrow().ahead, overdue }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_holds_no_ticket_waits_for_the_next_look_or_for_somebody_to_come() {
        let (sender, mut members) = watch::channel(Members::default());
        assert!(matches!(next(&mut [], Duration::from_secs(1), &mut members).await, Event::Look));
        sender.send_replace(Members::default());
        assert!(matches!(next(&mut [], Duration::from_secs(1), &mut members).await, Event::Changed));
    }
}
