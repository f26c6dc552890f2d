//! The rest of a peer's body, looked at on its way to the Ollama.
//!
//! Nothing is held up: each frame is looked at and passed on. Ollama acts on a body only when its JSON value is
//! complete, and the frame that completes it is passed on only if all that came before was allowed. Where it was not,
//! the body breaks off, so that it never completes.
//!
//! Where the look and Ollama could disagree is a text that the look cannot read. Then everything behind the offending
//! byte is replaced by blanks: Ollama says what is wrong with it, in its own words, and whatever stood there runs on
//! nobody's account.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;

use super::admit::{refusal, remote};
use crate::exchange::{Body, ExchangeError, Refusal};
use crate::ollama::State;
use crate::route::{Api, Look, ModelName, Progress};

/// Judges a body as it comes.
pub(super) struct Inspector {
    look: Look,
    /// Bytes at the start that the look was fed before they come by here.
    ahead: u64,
    /// Whether the route reads JSON and nothing else.
    json: bool,
    api: Api,
    state: Arc<State>,
}

/// A body with the inspector at its side; the refusal comes out of the other half, at most once.
pub(super) fn inspect(body: Body, inspector: Inspector) -> (Body, oneshot::Receiver<Refusal>) {
    let (tell, objection) = oneshot::channel();
    (Inspected { body, inspector, passed: 0, tell: Some(tell) }.boxed_unsync(), objection)
}

struct Inspected {
    body: Body,
    inspector: Inspector,
    passed: u64,
    tell: Option<oneshot::Sender<Refusal>>,
}

// === impl Inspector ===

impl Inspector {
    pub(super) fn new(look: Look, seen: usize, json: bool, api: Api, state: Arc<State>) -> Self {
        Self { look, ahead: seen as u64, json, api, state }
    }

    pub(super) fn model(&self) -> Option<ModelName> {
        self.look.model()
    }

    /// What is not allowed in what has come so far.
    pub(super) fn objection(&self) -> Option<Refusal> {
        if let Some(key) = self.look.doubled() {
            // Two of them, and two readers may each take another: the check and the run.
            let message = format!("\"{}\" comes twice in the body", key.as_str());
            return Some(refusal(StatusCode::BAD_REQUEST, "doubled-key", message));
        }
        if self.look.overlong() {
            return Some(refusal(StatusCode::BAD_REQUEST, "model-name", "invalid model name".to_owned()));
        }
        if self.api == Api::Anthropic && self.look.web_search() {
            let message = "web search is run by the server on its owner's account; that is not shared".to_owned();
            return Some(refusal(StatusCode::FORBIDDEN, "web-search", message));
        }
        self.look.names().find(|name| self.state.is_remote(name)).map(|name| remote(&name))
    }

    /// Looks at a piece that begins `passed` bytes into the body.
    fn see(&mut self, passed: u64, data: &Bytes) -> Result<(), Refusal> {
        let known = self.ahead.saturating_sub(passed).min(data.len() as u64);
        let new = usize::try_from(known).ok().and_then(|known| data.get(known..)).unwrap_or_default();
        if new.is_empty() || self.look.progress() != Progress::Open {
            return Ok(());
        }
        self.look.feed(new);
        self.objection().map_or(Ok(()), Err)
    }

    /// The piece as it may be passed on.
    fn clear(&self, passed: u64, data: Bytes) -> Bytes {
        let Progress::Broken { at } = self.look.progress() else { return data };
        if !self.json && !self.look.may_ask() {
            return data;
        }
        // Up to the offending byte, with it.
        let kept = usize::try_from((at + 1).saturating_sub(passed)).unwrap_or(usize::MAX);
        if kept >= data.len() {
            return data;
        }
        let mut cleared = BytesMut::with_capacity(data.len());
        cleared.extend_from_slice(data.get(..kept).unwrap_or_default());
        cleared.resize(data.len(), b' ');
        cleared.freeze()
    }
}

// === impl Inspected ===

impl http_body::Body for Inspected {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let this = &mut *self;
        let Some(frame) = ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()? else {
            return Poll::Ready(None);
        };
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        let passed = this.passed;
        this.passed += data.len() as u64;
        if let Err(refusal) = this.inspector.see(passed, &data) {
            let reason = refusal.message.clone();
            if let Some(tell) = this.tell.take() {
                // Nobody waits for it any more once Ollama has answered; the break says it then.
                let _ = tell.send(refusal);
            }
            return Poll::Ready(Some(Err(ExchangeError::Body(reason.into()))));
        }
        Poll::Ready(Some(Ok(Frame::data(this.inspector.clear(passed, data)))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
