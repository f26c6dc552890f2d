//! To the Ollama and back.

use std::sync::Arc;

use http::header::CONTENT_LENGTH;
use http::{Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;
use tokio::sync::oneshot;

use super::admit::{Granted, Permit, Work};
use super::holders::Holder;
use super::seats::{Running, Seat};
use crate::exchange::{Body, ExchangeError, Refusal, RefusalCode, full};
use crate::ollama::{self, Changing, Ollama, State};
use crate::route::{Kind, ModelName, is_upload, render};

/// Longest listing that is read to take something out of it: 10,000 models are some 5 MB.
const MAX_LISTING: usize = 32 * 1024 * 1024;

/// Takes an admitted request to the Ollama, counts it and keeps its seat until its answer's last byte.
pub(super) async fn forward(
    permit: Permit,
    ollama: &Ollama,
    running: Running,
    mut seat: Option<Seat>,
    holder: &Arc<Holder>,
) -> Result<Response<Body>, ExchangeError> {
    let Granted { request, route, model, objection, hide_remote, work } = permit.redeem();
    if let Some(seat) = seat.as_ref().filter(|_| work != Work::Unload) {
        seat.sent();
    }
    if seat.is_some()
        && work == Work::Run
        && model.as_ref().is_some_and(|model| is_news(model, &ollama.state().borrow()))
    {
        // Others have to make way for it, perhaps.
        ollama.refresh();
    }
    let run = seat.as_ref().filter(|seat| work == Work::Run && !seat.model().is_empty());
    let run = run.and_then(|seat| Some(ollama.run(seat.model(), ollama::Work::of(request.uri().path())?)));
    // A blob is no model yet.
    let changes_models = route.kind == Kind::Manage && !is_upload(request.uri());
    let changing = changes_models.then(|| Change { _changing: ollama.change(), ollama: ollama.clone() });
    let request = request.map(|body| holder.question(body));
    let sent = tokio::select! {
        sent = send(request, objection, ollama) => sent?,
        () = holder.is_over() => Err(RefusalCode::Stalled.into()),
    };
    let answer = match sent {
        Ok(answer) => match run {
            Some(run) => run.watch(answer),
            None => answer,
        },
        Err(refusal) => return Ok(render(route.api, &refusal)),
    };
    match (&seat, work) {
        (Some(seat), Work::Unload) if answer.status().is_success() => {
            seat.unloaded();
            ollama.refresh();
        }
        (Some(seat), _) if answer.status().is_success() => seat.answered(true),
        // An error is said without the model: the slot is free, whoever may read on.
        (Some(_), _) => seat = None,
        (None, _) => {}
    }
    if work != Work::Unload && model.is_some_and(|model| is_news(&model, &ollama.state().borrow())) {
        // It runs, so it has been loaded.
        ollama.refresh();
    }
    let answer = if hide_remote { without_remote(answer, ollama).await? } else { answer };
    let guard = Guard { _seat: seat, _running: running, _changing: changing };
    Ok(answer.map(|body| holder.answer(body, guard)))
}

/// Sends it; a refusal that the rest of the body earns comes before whatever else happens.
async fn send(
    request: http::Request<Body>,
    objection: Option<oneshot::Receiver<Refusal>>,
    ollama: &Ollama,
) -> Result<Result<Response<Body>, Refusal>, ExchangeError> {
    let Some(mut objection) = objection else { return ollama.send(request).await.map(Ok) };
    let sending = ollama.send(request);
    tokio::pin!(sending);
    let sent = tokio::select! {
        biased;
        Ok(refusal) = &mut objection => return Ok(Err(refusal)),
        sent = &mut sending => sent,
    };
    match (sent, objection.try_recv()) {
        (Err(_), Ok(refusal)) => Ok(Err(refusal)),
        (sent, _) => sent.map(Ok),
    }
}

/// Whether an answer for this model changes what is known of it.
fn is_news(model: &ModelName, state: &State) -> bool {
    state.is_on_disk(model)
}

/// A listing without the models that would run on the owner's account. Untouched if there are none.
async fn without_remote(answer: Response<Body>, ollama: &Ollama) -> Result<Response<Body>, ExchangeError> {
    if answer.status() != StatusCode::OK || answer.body().is_end_stream() {
        return Ok(answer);
    }
    let (mut parts, body) = answer.into_parts();
    let broken = |error| ExchangeError::Ollama(ollama.target().to_string(), error);
    let read = Limited::new(body, MAX_LISTING).collect().await.map_err(broken)?.to_bytes();
    // OpenAI's listing does not say where a model runs; Ollama's own, of this moment, does.
    let state = ollama.listing().await?;
    let listing = serde_json::from_slice::<Value>(&read).ok();
    let body = match listing.and_then(|listing| take_remote(listing, &state)) {
        Some(listing) => {
            parts.headers.remove(CONTENT_LENGTH);
            full(listing.to_string())
        }
        None => full(read),
    };
    Ok(Response::from_parts(parts, body))
}

/// Takes them out of `models` (Ollama's) or `data` (OpenAI's); nothing if there were none.
fn take_remote(mut listing: Value, state: &State) -> Option<Value> {
    let key = if listing.get("models").is_some() { "models" } else { "data" };
    let entries = listing.get_mut(key)?.as_array_mut()?;
    let before = entries.len();
    entries.retain(|entry| {
        let text = |key| entry.get(key).and_then(Value::as_str).filter(|text: &&str| !text.is_empty());
        let elsewhere = text("remote_host").or(text("remote_model")).is_some();
        let name = text("name").or(text("id")).map(ModelName::new);
        !elsewhere && !name.is_some_and(|name| state.is_remote(&name))
    });
    (entries.len() != before).then_some(listing)
}

/// Dropped at the end of an answer, however it ends.
pub(super) struct Guard {
    _seat: Option<Seat>,
    _running: Running,
    _changing: Option<Change>,
}

/// Models are being changed; at the end, whoever gives it up, a look is due.
struct Change {
    _changing: Changing,
    ollama: Ollama,
}

// === impl Change ===

impl Drop for Change {
    fn drop(&mut self) {
        self.ollama.refresh();
    }
}
