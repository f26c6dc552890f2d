//! One try at one member: waits for the head of the answer without a time limit, watches the member's health
//! meanwhile, and says what came of it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::RETRY_AFTER;
use http::{Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::watch;

use super::breaker;
use super::dealings::InFlight;
use super::errand::Errand;
use super::journal::Entry;
use super::members::Members;
use super::seek::Found;
use crate::exchange::{Body, Cause, CutOff, ExchangeError, Health, Progress, RefusalCode, ResetCode};

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

/// Sends `request` to who was found for it, into a slot if one is kept there; its `progress` tells how far it came. `elsewhere` says whether another member could take
/// the request over, as things stand when it is asked; it is asked again whenever `members` change, while this member is
/// suspect.
pub(super) async fn attempt(
    Found { member, slot, promised }: Found,
    errand: &Errand,
    request: Request<Body>,
    progress: &Progress,
    mut members: watch::Receiver<Members>,
    elsewhere: impl Fn(&Members) -> bool,
) -> Outcome {
    let in_flight = member.dealings.begin(errand.changes);
    let in_flight = match errand.aim.model().filter(|_| errand.runs) {
        Some(model) => in_flight.runs(model, promised),
        None => in_flight,
    };
    let mut health = member.health();
    let mut answer = match slot {
        Some(slot) => slot.exchange(request),
        None => {
            let answer = member.endpoint.exchange(request);
            member.sent(errand.aim.model().filter(|_| errand.runs), 1);
            answer
        }
    };
    let mut guard = (in_flight, errand.entry.clone());
    let mut watching = true;
    loop {
        let now = *health.borrow_and_update();
        let suspect = now == Health::Suspect;
        let as_they_stand = members.borrow_and_update().clone();
        // A request that a server works on already is not given up for a few lost datagrams.
        if now == Health::Gone || (suspect && !progress.has_started() && elsewhere(&as_they_stand)) {
            // An answer that is there already is still an answer.
            if let Some(result) = futures_util::FutureExt::now_or_never(&mut answer) {
                return outcome(result, guard);
            }
            guard.0.comes_to(breaker::Outcome::Failed);
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

/// What a result says of the server.
fn blame(result: &Result<Response<Body>, ExchangeError>) -> breaker::Outcome {
    let response = match result {
        Ok(response) => response,
        // Nothing was asked of it, or it was not what failed.
        Err(ExchangeError::Body(_) | ExchangeError::Reset(_, ResetCode::Forbidden | ResetCode::Late)) => {
            return breaker::Outcome::Unknown;
        }
        Err(_) => return breaker::Outcome::Failed,
    };
    match RefusalCode::of(response) {
        Some(code) => refused(code),
        None if response.status() == StatusCode::SERVICE_UNAVAILABLE => busy(response),
        None if response.status().is_server_error() => breaker::Outcome::Failed,
        None => breaker::Outcome::Served,
    }
}

/// What a gate's own word says, instead of an answer of its server's: that there is no room, or something about us or
/// about itself, of which it tells all in its report. Nothing failed.
pub(super) fn refused(code: RefusalCode) -> breaker::Outcome {
    match code.cause() {
        Cause::Full => breaker::Outcome::Full,
        Cause::Closed | Cause::Final | Cause::PerhapsRun => breaker::Outcome::Unknown,
    }
}

/// A 503, and for how long.
fn busy(response: &Response<Body>) -> breaker::Outcome {
    let seconds = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    breaker::Outcome::Busy(seconds.map(Duration::from_secs))
}

fn outcome(result: Result<Response<Body>, ExchangeError>, (mut in_flight, entry): (InFlight, Entry)) -> Outcome {
    in_flight.comes_to(blame(&result));
    match result {
        Ok(response) => {
            in_flight.answered();
            in_flight.waits(false);
            let counting = Some(Counting { in_flight, entry });
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

/// The records of an answer.
struct Counting {
    in_flight: InFlight,
    entry: Entry,
}

impl Counting {
    fn saw(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, ExchangeError>>>) {
        self.in_flight.waits(polled.is_pending());
        match polled {
            Poll::Ready(None) => self.done(),
            // Nothing comes after trailers, and HTTP/2 does not ask.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() => self.entry.ended(),
            Poll::Ready(Some(Err(error))) => {
                self.entry.cut_off(CutOff::Failed(error.to_string()));
                if matches!(error, ExchangeError::Ollama(..) | ExchangeError::Reset(_, ResetCode::Upstream)) {
                    self.in_flight.broke_off();
                }
            }
            _ => {}
        }
    }

    fn done(&mut self) {
        self.in_flight.done();
        self.entry.ended();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        // The application does not ask for an end that it knows.
        let is_over = http_body::Body::is_end_stream(&self.body);
        match &mut self.counting {
            Some(counting) if is_over => counting.entry.ended(),
            Some(counting) => counting.entry.cut_off(CutOff::Cancelled),
            None => {}
        }
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        // One whose length is known is not asked for more behind its last byte.
        let is_over = self.body.is_end_stream() || self.body.size_hint().exact() == Some(0);
        if let Some(counting) = &mut self.counting {
            counting.saw(&polled);
            if is_over && matches!(polled, Poll::Ready(Some(Ok(_)))) {
                counting.done();
            }
        }
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.counting = None;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::dealings::Dealings;
    use super::super::journal::Journal;
    use super::*;
    use crate::exchange::full;
    use crate::id::NodeName;
    use crate::route::ModelName;

    #[test]
    fn a_slot_that_was_gone_or_a_node_that_is_not_let_in_is_no_failure_of_the_server() {
        let blamed = |code| blame(&Err(ExchangeError::Reset(NodeName::lossy("a"), code)));
        for code in [ResetCode::Late, ResetCode::Forbidden] {
            assert_eq!(blamed(code), breaker::Outcome::Unknown);
        }
        let failures =
            [ResetCode::Upstream, ResetCode::NotRun, ResetCode::Ended, ResetCode::Protocol, ResetCode::Other(9)];
        for code in failures {
            assert_eq!(blamed(code), breaker::Outcome::Failed);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_known_length_is_measured_though_nobody_asks_for_its_end() {
        let (dealings, model) = (Arc::<Dealings>::default(), ModelName::new("m"));
        let in_flight = dealings.begin(false).runs(&model, Some(Duration::from_secs(1)));
        let entry = Journal::default().begin(&Request::new(()).into_parts().0);
        tokio::time::advance(Duration::from_secs(100)).await;
        let Outcome::Answered(answer) = outcome(Ok(Response::new(full("all of it"))), (in_flight, entry)) else {
            panic!()
        };
        let mut body = answer.into_body();
        let _ = body.frame().await.unwrap().unwrap();
        drop(body);
        assert!(dealings.standing(&model).slowness > 2.0);
    }
}
