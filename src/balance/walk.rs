//! A request while it is tried: what it asks for, how it is sent once more, and what came of it before.

use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;
use http::{Request, Response};

use super::RouterSettings;
use super::errand::Errand;
use super::members::Members;
use super::replay::Replay;
use crate::exchange::{Body, Refusal};

/// A request that may be tried more than once.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) errand: Arc<Errand>,
    parts: Parts,
    replay: Replay,
    /// What came of an earlier try, while somebody else is tried.
    last: Mutex<Option<Result<Response<Body>, Refusal>>>,
}

// === impl Walk ===

impl Walk {
    /// One that begins.
    pub(super) fn new(errand: Errand, parts: Parts, replay: Replay) -> Self {
        Self { errand: Arc::new(errand), parts, replay, last: Mutex::default() }
    }

    /// The request from its beginning. Who had it before loses it.
    pub(super) fn request(&self) -> Request<Body> {
        let mut request = Request::new(self.replay.body());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.parts.uri.clone();
        *request.version_mut() = self.parts.version;
        *request.headers_mut() = self.parts.headers.clone();
        request
    }

    /// Whether somebody else could be tried: its body is still whole, and someone is left. Each is tried once, so that
    /// comes to an end.
    pub(super) fn may_move(&self, members: &Members, node: &RouterSettings) -> bool {
        self.can_be_sent_again() && self.errand.candidates(members, node).is_ok_and(|candidates| !candidates.is_empty())
    }

    /// Whether it may be sent once more: its body is still whole, and it is not for one node.
    pub(super) fn can_be_sent_again(&self) -> bool {
        self.errand.aim.may_move() && self.replay.is_possible()
    }

    /// Somebody else is tried, though this came of it: an Ollama's answer is better than nothing if nobody does better.
    pub(super) fn put_aside(&self, result: Result<Response<Body>, Refusal>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if result.is_ok() || !matches!(*last, Some(Ok(_))) {
            *last = Some(result);
        }
    }

    /// What came of it before.
    pub(super) fn take_last(&self) -> Option<Result<Response<Body>, Refusal>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// What the application gets in the end.
    pub(super) fn ends(&self, result: Result<Response<Body>, Refusal>) -> Result<Response<Body>, Refusal> {
        match (result, self.take_last()) {
            (Err(_), Some(Ok(answer))) => Ok(answer),
            (result, _) => result,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::super::aim::Aim;
    use super::super::journal::Journal;
    use super::super::refuse;
    use super::*;
    use crate::exchange;
    use crate::route::Dialect;

    fn walk() -> Walk {
        let (parts, ()) = Request::new(()).into_parts();
        let entry = Journal::default().begin(&parts);
        let errand = Errand::new(Aim::Any, "/api/version", Dialect::Ollama, entry);
        Walk::new(errand, parts, Replay::once(exchange::empty()))
    }

    fn answer(status: StatusCode) -> Result<Response<Body>, Refusal> {
        let mut answer = Response::new(exchange::empty());
        *answer.status_mut() = status;
        Ok(answer)
    }

    #[test]
    fn an_answer_that_was_to_be_bettered_is_better_than_none() {
        let walk = walk();
        walk.put_aside(answer(StatusCode::INTERNAL_SERVER_ERROR));
        walk.put_aside(Err(refuse::room_is_full(std::time::Duration::ZERO)));
        let ends = walk.ends(Err(refuse::room_is_full(std::time::Duration::ZERO)));
        assert_eq!(ends.unwrap().status(), StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[test]
    fn what_comes_last_is_what_the_application_gets() {
        let walk = walk();
        walk.put_aside(answer(StatusCode::NOT_FOUND));
        assert_eq!(walk.ends(answer(StatusCode::OK)).unwrap().status(), StatusCode::OK);
        walk.put_aside(Err(refuse::room_is_full(std::time::Duration::ZERO)));
        assert!(walk.ends(Err(refuse::room_is_full(std::time::Duration::ZERO))).is_err());
        assert!(walk.take_last().is_none());
    }
}
