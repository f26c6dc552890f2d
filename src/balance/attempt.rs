//! One try at one member: waits for the head of the answer without a time limit, watches the member's health
//! meanwhile, and says what came of it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::watch;

use super::errand::Errand;
use super::journal::Entry;
use super::members::{InFlight, Member, Members};
use crate::exchange::{Body, ExchangeError, Health, Slot};

/// What came of a try.
#[derive(Debug)]
pub(super) enum Outcome {
    /// A head came; its body counts as in flight until it ends.
    Answered(Response<Body>),
    /// It did not come to an answer.
    Failed(ExchangeError),
    /// The member fell silent or was lost, and someone else can take the request: given up here.
    Lost(Health),
}

/// Sends `request` to `member`, into a slot if one is kept for it there. `elsewhere` says whether another member could take
/// the request over, as things stand when it is asked; it is asked again whenever `members` change, while this member is
/// suspect.
pub(super) async fn attempt(
    member: &Arc<Member>,
    slot: Option<Slot>,
    errand: &Errand,
    request: Request<Body>,
    mut members: watch::Receiver<Members>,
    elsewhere: impl Fn(&Members) -> bool,
) -> Outcome {
    let in_flight = member.begin(errand.changes);
    let mut health = member.health();
    let mut answer = match slot {
        Some(slot) => slot.exchange(request),
        None => {
            let answer = member.endpoint.exchange(request);
            member.sent(errand.aim.model().filter(|_| errand.runs));
            answer
        }
    };
    let guard = (in_flight, errand.entry.clone());
    let mut watching = true;
    loop {
        let now = *health.borrow_and_update();
        let suspect = now == Health::Suspect;
        let as_they_stand = members.borrow_and_update().clone();
        if now == Health::Gone || (suspect && elsewhere(&as_they_stand)) {
            // An answer that is there already is still an answer.
            if let Some(result) = futures_util::FutureExt::now_or_never(&mut answer) {
                return outcome(result, guard);
            }
            // Dropping the future cancels the exchange on the other side, should it still hear us.
            return Outcome::Lost(now);
        }
        tokio::select! {
            biased;
            result = &mut answer => return outcome(result, guard),
            changed = health.changed(), if watching => watching = changed.is_ok(),
            Ok(()) = members.changed(), if suspect => {}
        }
    }
}

fn outcome(result: Result<Response<Body>, ExchangeError>, (in_flight, entry): (InFlight, Entry)) -> Outcome {
    match result {
        Ok(response) => {
            in_flight.answered();
            let counting = Some(Counting { _in_flight: in_flight, entry });
            Outcome::Answered(response.map(|body| Counted { body, counting }.boxed_unsync()))
        }
        Err(error) => Outcome::Failed(error),
    }
}

/// An answer's body: its request counts as in flight until the body ends, breaks off or is dropped.
struct Counted {
    body: Body,
    counting: Option<Counting>,
}

/// Dropped at the end of an answer.
struct Counting {
    _in_flight: InFlight,
    entry: Entry,
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.entry.ended();
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.counting = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
