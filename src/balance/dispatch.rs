//! One request's walk: whom it is for, where it goes, what came of it, and perhaps once more.

use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response};
use tower::ServiceExt as _;

use super::aim::Aim;
use super::errand::Errand;
use super::journal::Entry;
use super::replay::Replay;
use super::walk::Walk;
use super::{Inner, refuse};
use crate::exchange::{Body, PEER_HEADER, REQUEST_HEADER, Refusal};
use crate::route::{self, Dialect, Kind, ModelName};

// === impl Inner ===

impl Inner {
    /// Takes a request to an answer, or says why there is none.
    pub(super) async fn dispatch(
        &self,
        kind: Kind,
        request: Request<Body>,
        entry: Entry,
    ) -> Result<Response<Body>, Refusal> {
        let (mut parts, body) = request.into_parts();
        let dialect = Dialect::of(&parts);
        let (aim, body) = aim_of(&kind, dialect, &mut parts, body).await?;
        // What changes models, or was sent to one node, is tried there and nowhere else.
        let replay = if aim.may_move() { Replay::new(body, self.reserve.clone()) } else { Replay::once(body) };
        let mut errand = Errand::new(aim, parts.uri.path(), dialect, entry);
        if kind == Kind::Unknown && dialect != Dialect::Grpc && !self.is_for_own_server(&errand)? {
            return Ok(route::unrouted(&parts.method, &parts.uri));
        }
        errand.runs = route::runs_model(&parts.method, &parts.uri) && errand.aim.model().is_some();
        errand.repeatable = route::is_repeatable(&parts.method, &parts.uri);
        errand.changes = kind == Kind::Manage;
        if errand.runs {
            let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
            errand.read(&replay, &self.known, length.unwrap_or(0)).await;
        }
        if let Ok(id) = HeaderValue::from_str(&errand.entry.id().to_string()) {
            // For the log of the other side.
            parts.headers.insert(REQUEST_HEADER, id);
        }
        let walk = Arc::new(Walk::new(errand, parts, replay));
        let Ok(tried) = self.tries.clone().oneshot(walk.clone()).await;
        walk.ends(tried.result)
    }

    /// Whether what is in no table of routes goes to this machine's own server, as its owner's applications ask it.
    fn is_for_own_server(&self, errand: &Errand) -> Result<bool, Refusal> {
        let known = &self.known;
        let members = known.members.borrow().clone();
        let candidates = errand.candidates(&members, &known.node);
        match (candidates, &errand.aim) {
            (Ok(candidates), _) => Ok(!known.node.open && candidates.iter().all(|member| member.is_local())),
            (Err(unmet), Aim::Chosen(_)) => Err(unmet.refusal),
            (Err(_), _) => Ok(false),
        }
    }
}

/// What decides who may take it. Reads as much of the body as it takes to know the model.
async fn aim_of(kind: &Kind, dialect: Dialect, parts: &mut Parts, body: Body) -> Result<(Aim, Body), Refusal> {
    if let Some(choice) = take_choice(&mut parts.headers) {
        return Ok((Aim::Chosen(choice), body));
    }
    match kind {
        Kind::Manage => Ok((Aim::Manage, body)),
        Kind::BodyModel => {
            let (model, body) = route::find_model(parts, body)
                .await
                .map_err(|error| error.into_refusal().unwrap_or_else(|broken| refuse::bad_body(&broken)))?;
            Ok((model.map_or(Aim::Any, Aim::of), body))
        }
        Kind::PathModel(model) => Ok((Aim::of(ModelName::new(model)), body)),
        // Of gRPC only its servers know the methods.
        Kind::Unknown if dialect != Dialect::Grpc => Ok((Aim::Own, body)),
        Kind::Root
        | Kind::Tags
        | Kind::Ps
        | Kind::V1Models
        | Kind::Version
        | Kind::Any
        | Kind::Owner(_)
        | Kind::Unknown => Ok((Aim::Any, body)),
    }
}

/// The node that the request chose. The header goes no further: it was for us.
fn take_choice(headers: &mut HeaderMap) -> Option<String> {
    let choice = headers.remove(PEER_HEADER)?;
    let choice = String::from_utf8_lossy(choice.as_bytes()).trim().to_owned();
    (!choice.is_empty()).then_some(choice)
}
