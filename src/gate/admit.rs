//! May this request go to the Ollama? The only place where a [`Permit`] is made.

use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH};
use http::{Method, Request, Response, request};
use tokio::sync::oneshot;

use super::inspect::{Ignored, Inspector, inspect};
use super::shares::{Crowded, Place};
use super::{Caller, GateSettings};
use crate::exchange::{Body, ExchangeError, Progress, Refusal, RefusalCode, ServerKind};
use crate::id::Scope;
use crate::ollama::Ollama;
use crate::route::headers::HOP_HEADER;
use crate::route::{
    Kind, ModelName, OwnerRoute, Peeked, Reader, Room, Route, UNPACKING, classify, cloud_off, is_compressed, is_grpc,
    is_known, is_lent, is_order, is_push, is_unpacked, is_upload, peek, reads_json, render, runs_model, unauthorized,
    unloads, unpacked, unrouted,
};

/// What is known when a request comes.
pub(super) struct Admission<'a> {
    pub(super) caller: &'a Caller,
    pub(super) ollama: &'a Ollama,
    pub(super) settings: &'a GateSettings,
    /// Keys of peers' requests that were made unknown to the server.
    pub(super) ignored: &'a Ignored,
    /// Where the request is while it runs, or why there is no place for it.
    pub(super) place: Result<&'a Place, &'a Crowded>,
    pub(super) lent: bool,
    pub(super) draining: bool,
}

/// A request that may go to the Ollama. Made by [`Admission::admit`] alone, and good for the request in it alone.
pub(super) struct Permit {
    request: Request<Body>,
    route: Route,
    model: Option<ModelName>,
    objection: Option<oneshot::Receiver<Refusal>>,
    hide_remote: bool,
    work: Work,
}

/// What a request is to the runner of its model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Nothing: it only asks, or changes what is on disk.
    Nothing,
    /// One more to run, for which there must be a slot.
    Run,
    /// To load the model and no more.
    Load,
    /// To unload it.
    Unload,
}

/// What a permit holds, for who forwards it.
pub(super) struct Granted {
    pub(super) request: Request<Body>,
    pub(super) route: Route,
    /// The model it asks for, if it names one early.
    pub(super) model: Option<ModelName>,
    /// Comes if the rest of the body turns out to ask for what is not allowed.
    pub(super) objection: Option<oneshot::Receiver<Refusal>>,
    /// Whether models that run on the owner's account are to be taken out of the answer.
    pub(super) hide_remote: bool,
    pub(super) work: Work,
}

/// Why there is no permit.
pub(super) enum Denied {
    /// The mesh's own answer.
    Answer(Box<Response<Body>>),
    /// The request's body broke off, or Ollama did when it was asked what it has.
    Broken(ExchangeError),
}

// === impl Permit ===

impl Permit {
    pub(super) fn redeem(self) -> Granted {
        let Self { request, route, model, objection, hide_remote, work } = self;
        Granted { request, route, model, objection, hide_remote, work }
    }

    /// What it is to the runner.
    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// The model it asks for, if it names one early.
    pub(super) fn model(&self) -> Option<&ModelName> {
        self.model.as_ref()
    }

    /// The mesh's own answer in place of the server's.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response<Body> {
        render(self.route.api, refusal)
    }
}

// === impl Work ===

impl Work {
    fn of(parts: &request::Parts, reader: Option<&Reader>) -> Self {
        match reader {
            _ if !runs_model(&parts.method, &parts.uri) => Self::Nothing,
            Some(Reader::Json(look)) if unloads(&parts.uri, look) => Self::Unload,
            Some(Reader::Json(look)) if is_order(&parts.uri, look) => Self::Load,
            _ => Self::Run,
        }
    }
}

// === impl Admission ===

impl Admission<'_> {
    /// Judges a request by its caller, its method and path, and what of its body names the model.
    ///
    /// The path is classified here again, whatever the peer made of it. The rest of a peer's body is inspected on its
    /// way: see [`inspect`].
    pub(super) async fn admit(&self, request: Request<Body>) -> Result<Permit, Denied> {
        let (parts, body) = request.into_parts();
        let route = classify(&parts.method, parts.uri.path());
        if let Some(denied) = self.by_head(&parts, &route) {
            return Err(denied);
        }
        match self.caller.scope() {
            None => self.owner(parts, body, route).await,
            Some(scope) => self.peer(scope, parts, body, route).await,
        }
    }

    /// The owner's: nothing is forbidden. The model is looked for to know what it loads.
    async fn owner(&self, parts: request::Parts, body: Body, route: Route) -> Result<Permit, Denied> {
        let runs = runs_model(&parts.method, &parts.uri);
        let names_model = route.kind == Kind::BodyModel || (route.kind == Kind::Unknown && runs);
        let reader = Some(&parts).filter(|_| names_model).and_then(Reader::of);
        let (model, body, work) = match reader {
            Some(reader) => {
                let Peeked { reader, body, .. } = self.peek(reader, body, &route).await?;
                (reader.model(), body, Work::of(&parts, Some(&reader)))
            }
            None => (path_model(&route), body, Work::of(&parts, None)),
        };
        let request = Request::from_parts(parts, body);
        Ok(Permit { request, route, model, objection: None, hide_remote: false, work })
    }

    async fn peer(
        &self,
        scope: Scope,
        mut parts: request::Parts,
        mut body: Body,
        route: Route,
    ) -> Result<Permit, Denied> {
        let elsewhere = self.ollama.state().borrow().kind == ServerKind::Ollama;
        let hide_remote = elsewhere && matches!(route.kind, Kind::Tags | Kind::V1Models);
        if hide_remote {
            // What a proxy before the Ollama might compress could not be read here.
            parts.headers.remove(ACCEPT_ENCODING);
        }
        if is_upload(&parts.uri) {
            let request = Request::from_parts(parts, body);
            let work = Work::Nothing;
            return Ok(Permit { request, route, model: None, objection: None, hide_remote, work });
        }
        if is_unpacked(&parts.method, &parts.uri, &parts.headers) {
            // What was read goes to Ollama, and not what it was read from: so nothing can be read in two ways.
            parts.headers.remove(CONTENT_ENCODING);
            parts.headers.remove(CONTENT_LENGTH);
            let space = self.room().map(|room| room.take(UNPACKING)).transpose();
            body = unpacked(body, space.map_err(|_| deny(&route, RefusalCode::NoRoom))?.unwrap_or_default());
        }
        let reader = match Reader::of(&parts) {
            None if parts.method == Method::GET || parts.method == Method::HEAD => Some(Reader::Json(Box::default())),
            reader => reader,
        };
        let Peeked { reader, body, seen } = match reader {
            Some(reader) => self.peek(reader, body, &route).await?,
            // Perhaps not JSON at all, with both sides talking at once: nothing is waited for.
            None => Peeked { reader: Reader::Json(Box::default()), body, seen: 0 },
        };
        let inspector = Inspector {
            reader,
            ahead: seen as u64,
            json: reads_json(&parts.method, &parts.uri),
            uri: parts.uri.clone(),
            state: self.ollama.state().borrow().clone(),
            lodger: (scope < Scope::Manage).then(|| self.caller.clone()),
            max_context: self.settings.max_context,
            ignored: self.ignored.clone(),
            progress: parts.extensions.get::<Progress>().cloned().unwrap_or_default(),
        };
        if let Some(refusal) = inspector.objection() {
            return Err(deny(&route, refusal));
        }
        let model = inspector.model().or_else(|| path_model(&route));
        let there = match &model {
            Some(model) => self.runs_here(model, &route).await?,
            None => true,
        };
        // Of what is not there Ollama says so at once, and no runner has work with it.
        let work = if there { Work::of(&parts, Some(&inspector.reader)) } else { Work::Nothing };
        let (body, objection) = inspect(body, inspector);
        let request = Request::from_parts(parts, body);
        Ok(Permit { request, route, model, objection: Some(objection), hide_remote, work })
    }

    /// What the head alone forbids.
    fn by_head(&self, parts: &request::Parts, route: &Route) -> Option<Denied> {
        if parts.headers.contains_key(HOP_HEADER) {
            return Some(deny(route, RefusalCode::Loop));
        }
        if parts.method == Method::CONNECT {
            return Some(deny(route, RefusalCode::Connect));
        }
        let scope = self.caller.scope()?;
        if let Some(why) = self.closed() {
            return Some(deny(route, why));
        }
        if let Err(why) = self.place {
            return Some(deny(route, Refusal::new(RefusalCode::Crowded, why.to_string())));
        }
        self.by_scope(parts, route, scope).or_else(|| self.by_server(parts, route))
    }

    /// Why nothing at all is lent now.
    fn closed(&self) -> Option<RefusalCode> {
        if self.draining {
            return Some(RefusalCode::Draining);
        }
        (!self.lent).then_some(RefusalCode::NotLent)
    }

    /// Why there is no ticket for this caller, whatever the request will be.
    pub(super) fn ticket(&self) -> Option<Refusal> {
        self.caller.scope()?;
        let closed = self.closed().or_else(|| (!self.ollama.state().borrow().healthy).then_some(RefusalCode::NoOllama));
        closed.map(Refusal::from).or_else(|| self.stranger())
    }

    /// What a peer is told whose use of this server nobody has allowed.
    fn stranger(&self) -> Option<Refusal> {
        let Caller::Peer { name, scope: Scope::None, .. } = self.caller else { return None };
        let message = format!("this server's owner does not let {name} use it; they can with: ollana trust {name}");
        Some(Refusal::new(RefusalCode::Scope, message))
    }

    /// Whether this is in the table of routes, as it is spelled: of all else only the server knows what it does. A gRPC
    /// server was named by its owner as the one to share, with all methods that it has.
    fn is_known(&self, parts: &request::Parts) -> bool {
        let is_call = self.ollama.state().borrow().kind == ServerKind::Grpc && is_grpc(&parts.headers);
        is_call || is_known(&parts.method, &parts.uri)
    }

    /// What the server does not lend, being what it is; all of it while it is not known what it is.
    fn by_server(&self, parts: &request::Parts, route: &Route) -> Option<Denied> {
        let state = self.ollama.state().borrow().clone();
        if !state.healthy {
            return Some(deny(route, RefusalCode::NoOllama));
        }
        if is_lent(state.kind, &parts.method, parts.uri.path()) {
            return None;
        }
        let speaks = match state.kind {
            ServerKind::Ollama | ServerKind::OpenAi => "is no Ollama: of it only what runs and lists models at /v1",
            ServerKind::Grpc => "speaks gRPC: of it what is not below /api or /v1",
        };
        let message = format!("this server {speaks} is shared, which {} {} is not", parts.method, parts.uri.path());
        Some(deny(route, Refusal::new(RefusalCode::OtherApi, message)))
    }

    fn by_scope(&self, parts: &request::Parts, route: &Route, scope: Scope) -> Option<Denied> {
        if let Some(refusal) = self.stranger() {
            return Some(deny(route, refusal));
        }
        match (route.needs(), &route.kind) {
            (_, Kind::Owner(OwnerRoute::Me)) => Some(Denied::Answer(Box::new(unauthorized()))),
            (_, Kind::Owner(OwnerRoute::Status)) => Some(Denied::Answer(Box::new(cloud_off()))),
            (None, _) => Some(deny(route, RefusalCode::OwnerOnly)),
            (Some(needed), _) if scope < needed => {
                let may = "may run this server's models but not change them";
                Some(deny(route, Refusal::new(RefusalCode::Scope, self.caller.limits(may))))
            }
            _ if is_push(&parts.uri) && !self.settings.lend_push => Some(deny(route, RefusalCode::Push)),
            _ if !self.is_known(parts) => {
                tracing::debug!(method = %parts.method, "not in the table of routes, answered as Ollama would");
                Some(Denied::Answer(Box::new(unrouted(&parts.method, &parts.uri))))
            }
            _ if is_upload(&parts.uri) || reads_json(&parts.method, &parts.uri) => None,
            _ if is_compressed(&parts.headers) => Some(deny(route, RefusalCode::Compressed)),
            _ => None,
        }
    }

    /// The owner's requests hold what they like; all others have their share of the gate's room.
    fn room(&self) -> Option<&Room> {
        self.place.ok().and_then(Place::room)
    }

    async fn peek(&self, reader: Reader, body: Body, route: &Route) -> Result<Peeked, Denied> {
        peek(reader, body, self.room()).await.map_err(|error| match error.into_refusal() {
            Ok(refusal) => deny(route, refusal),
            Err(error) => Denied::Broken(error),
        })
    }

    /// Denied if Ollama would have this model run elsewhere; else whether there is one, as far as can be told. One that it did not list at the last look may have been made since, or, where
    /// somebody changes models, replaced, and be a name for a model elsewhere: then it is asked, before the request is sent.
    async fn runs_here(&self, model: &ModelName, route: &Route) -> Result<bool, Denied> {
        let known = self.ollama.state().borrow().clone();
        let is_sure = known.has(model) && !self.ollama.is_in_doubt();
        let state = if known.kind != ServerKind::Ollama || is_sure || known.is_remote(model) {
            known
        } else {
            // It was asked what it has, and not what was to be asked of it.
            self.ollama.listing().await.map_err(|error| Denied::Broken(error.not_run()))?
        };
        match state.is_remote(model) {
            true => Err(deny(route, remote(model))),
            false => Ok(state.kind != ServerKind::Ollama || state.has(model)),
        }
    }
}

/// What a peer is told that asks for a model which runs on the owner's account.
pub(super) fn remote(model: &ModelName) -> Refusal {
    let message = format!("model '{model}' runs in the cloud on the account of the server's owner; that is not shared");
    Refusal::new(RefusalCode::Cloud, message)
}

fn path_model(route: &Route) -> Option<ModelName> {
    match &route.kind {
        Kind::PathModel(model) => Some(ModelName::new(model)),
        _ => None,
    }
}

fn deny(route: &Route, refusal: impl Into<Refusal>) -> Denied {
    let refusal = refusal.into();
    tracing::debug!(status = %refusal.code.status(), code = refusal.code.to_wire(), "refused at the gate");
    Denied::Answer(Box::new(render(route.api, &refusal)))
}
