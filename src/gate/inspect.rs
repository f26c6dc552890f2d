//! The rest of a peer's body, looked at on its way to the Ollama.
//!
//! Nothing is held up: each frame is looked at and passed on. Ollama acts on a body only when its JSON value is
//! complete, and the frame that completes it is passed on only if all that came before was allowed. Where it was not,
//! the body breaks off, so that it never completes.
//!
//! Where the look and Ollama could disagree is a text that the look cannot read. Then everything behind the offending
//! byte is replaced by blanks: Ollama says what is wrong with it, in its own words, and whatever stood there runs on
//! nobody's account. A form that it cannot read is refused.
//!
//! How long a model stays in memory is everybody's business, and so is not for a peer with scope `infer` to say. One byte
//! of the key `keep_alive` is changed, so that Ollama does not know the key: the owner's `OLLAMA_KEEP_ALIVE` holds, and all
//! else passes as it was written, of the same length. An explicit unload (what `ollama stop` sends) is refused: without its
//! `keep_alive` it would be an order to load.
//!
//! So is how a model is loaded ([`options`](crate::route::options)): Ollama loads it anew for a request that asks for it
//! otherwise, and everybody waits. All options but those that are known to be one answer's own are made unknown in the same
//! way, since a newer Ollama may load a model for any other. The context (`num_ctx`) is part of what is asked for; it passes
//! as far as the owner shares it (`lend.max_context`), beyond that the request is refused, and where nothing is shared
//! of it that key is unknown too. Servers of the OpenAI API have none of this, and what they are sent is as it was
//! written.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::Uri;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::oneshot;

use super::Caller;
use super::admit::remote;
use crate::exchange::{self, Body, ExchangeError, Refusal, RefusalCode, ServerKind};
use crate::ollama::State;
use crate::route::{
    Form, FormProgress, Hidden, Look, ModelName, Progress, Reader, ZstdError, runs_web_search, unloads,
};

/// Counts the keys that were made unknown; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Ignored(Arc<AtomicU64>);

/// Judges a body as it comes.
pub(super) struct Inspector {
    pub(super) reader: Reader,
    /// Bytes at the start that the reader was fed before they come by here.
    pub(super) ahead: u64,
    /// Whether the route reads JSON and nothing else.
    pub(super) json: bool,
    pub(super) uri: Uri,
    pub(super) state: Arc<State>,
    /// Who asks, if they may not say how long models stay in memory.
    pub(super) lodger: Option<Caller>,
    /// The longest context that such a one may ask for; none of theirs counts if it is 0.
    pub(super) max_context: Option<u64>,
    pub(super) ignored: Ignored,
    /// Told once the server has all that it acts on.
    pub(super) progress: exchange::Progress,
}

/// A body with the inspector at its side; the refusal comes out of the other half, at most once.
pub(super) fn inspect(body: Body, inspector: Inspector) -> (Body, oneshot::Receiver<Refusal>) {
    let (tell, objection) = oneshot::channel();
    let inspected = Inspected { body, inspector, passed: 0, held: None, next: None, tell: Some(tell) };
    (inspected.boxed_unsync(), objection)
}

struct Inspected {
    body: Body,
    inspector: Inspector,
    /// Bytes that came so far.
    passed: u64,
    /// The last of them, while nobody knows whether it may be passed on as it is.
    held: Option<u8>,
    /// What is passed on next, behind what was held.
    next: Option<Frame<Bytes>>,
    tell: Option<oneshot::Sender<Refusal>>,
}

// === impl Ignored ===

impl Ignored {
    /// So many more.
    fn add(&self, keys: usize) {
        if keys > 0 && self.0.fetch_add(keys as u64, Ordering::Relaxed) == 0 {
            tracing::info!(
                "a peer with scope infer asked how long its model stays in memory, or for it to be loaded otherwise: that is \
                 ignored (how often: `ollana status --json`)"
            );
        }
    }

    /// How many so far.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

// === impl Inspector ===

impl Inspector {
    /// What is not allowed in what has come so far.
    pub(super) fn objection(&self) -> Option<Refusal> {
        match &self.reader {
            Reader::Json(look) => self.to_json(look),
            Reader::Form(form) => self.to_form(form),
            Reader::Packed(_) => Some(unreadable("the body is compressed")),
        }
    }

    fn to_json(&self, look: &Look) -> Option<Refusal> {
        if let Some(key) = look.doubled() {
            // Two of them, and two readers may each take another: the check and the run.
            let message = format!("\"{}\" comes twice in the body", key.as_str());
            return Some(Refusal::new(RefusalCode::DoubledKey, message));
        }
        if look.overlong() {
            return Some(RefusalCode::ModelName.into());
        }
        if look.web_search() && runs_web_search(&self.uri, &self.state.version) {
            return Some(RefusalCode::WebSearch.into());
        }
        if look.remote_host() {
            return Some(RefusalCode::Cloud.into());
        }
        if let Some(lodger) = self.lodger.as_ref().filter(|_| unloads(&self.uri, look)) {
            let may = "may run this server's models but not unload them, others may be using them";
            return Some(Refusal::new(RefusalCode::Unload, lodger.limits(may)));
        }
        if let Some(refusal) = self.lodger.as_ref().and_then(|lodger| self.to_options(look, lodger)) {
            return Some(refusal);
        }
        look.names().find(|name| self.state.is_remote(name)).map(|name| remote(&name))
    }

    fn to_options(&self, look: &Look, lodger: &Caller) -> Option<Refusal> {
        if self.state.kind != ServerKind::Ollama {
            return None;
        }
        if let Some(option) = look.doubled_option() {
            let message = format!("\"{option}\" comes twice in the options");
            return Some(Refusal::new(RefusalCode::DoubledKey, message));
        }
        if look.hides_too_much() {
            return Some(RefusalCode::Options.into());
        }
        let most = self.max_context.filter(|most| *most > 0)?;
        // Beyond 2^53 the two are not compared exactly, which is no context that anything has.
        #[expect(clippy::cast_precision_loss, reason = "see above")]
        look.context().filter(|context| *context > most as f64)?;
        let may = format!("may ask for a context (num_ctx) of at most {most} tokens here (lend.max_context)");
        Some(Refusal::new(RefusalCode::Context, lodger.limits(&may)))
    }

    fn to_form(&self, form: &Form) -> Option<Refusal> {
        if let FormProgress::Unreadable(why) = form.progress() {
            return Some(unreadable(why));
        }
        if form.is_doubled() {
            let message = "\"model\" comes twice, in the form or in the query".to_owned();
            return Some(Refusal::new(RefusalCode::DoubledKey, message));
        }
        form.model().filter(|name| self.state.is_remote(name)).map(|name| remote(&name))
    }

    pub(super) fn model(&self) -> Option<ModelName> {
        self.reader.model()
    }

    /// Looks at a piece that begins `passed` bytes into the body.
    fn see(&mut self, passed: u64, data: &Bytes) -> Result<(), Refusal> {
        let known = self.ahead.saturating_sub(passed).min(data.len() as u64);
        let new = usize::try_from(known).ok().and_then(|known| data.get(known..)).unwrap_or_default();
        if new.is_empty() {
            return Ok(());
        }
        self.reader.feed(new);
        self.objection().map_or(Ok(()), Err)
    }

    /// Whether the server acts on what has come: it ignores whatever follows, and does not wait for the end.
    fn is_acted_on(&self) -> bool {
        match &self.reader {
            Reader::Json(look) => look.progress() == Progress::Complete,
            Reader::Form(form) => form.progress() == FormProgress::Complete,
            Reader::Packed(_) => false,
        }
    }

    /// The piece as it may be passed on.
    fn clear(&self, passed: u64, data: Bytes) -> Bytes {
        let Reader::Json(look) = &self.reader else { return data };
        let end = passed + data.len() as u64;
        // Up to the offending byte, with it.
        let blank = match look.progress() {
            Progress::Broken { at } if self.json || look.may_ask() => Some((at + 1).saturating_sub(passed)),
            _ => None,
        };
        let blank = blank.and_then(|from| usize::try_from(from).ok()).filter(|from| *from < data.len());
        let mut keys = self.hidden().filter(|key| key.at >= passed && key.at < end).peekable();
        if keys.peek().is_none() && blank.is_none() {
            return data;
        }
        let mut cleared = BytesMut::from(&*data);
        let mut hidden = 0;
        for key in keys {
            if let Some(byte) = usize::try_from(key.at - passed).ok().and_then(|at| cleared.get_mut(at)) {
                *byte = key.spoiled;
                hidden += 1;
            }
        }
        self.ignored.add(hidden);
        if let Some(rest) = blank.and_then(|from| cleared.get_mut(from..)) {
            rest.fill(b' ');
        }
        cleared.freeze()
    }

    /// The keys of what has come so far that the server must not know.
    fn hidden(&self) -> impl Iterator<Item = &Hidden> {
        let look = match &self.reader {
            Reader::Json(look) if self.lodger.is_some() && self.state.kind == ServerKind::Ollama => Some(look),
            _ => None,
        };
        let passes = |key: &&Hidden| !(key.is_context && self.max_context != Some(0));
        look.into_iter().flat_map(|look| look.hidden()).filter(passes)
    }

    /// The byte in place of the one at `at`, if that must be another.
    fn in_place_of(&self, at: u64) -> Option<u8> {
        let key = self.hidden().find(|key| key.at == at)?;
        self.ignored.add(1);
        Some(key.spoiled)
    }

    /// Whether the next byte of the body decides about the one before it, of `passed`.
    fn is_undecided(&self, passed: u64) -> bool {
        let at_edge = |look: &Look| passed >= self.ahead && look.may_end_in_hidden();
        let decides = self.lodger.is_some() && self.state.kind == ServerKind::Ollama;
        decides && matches!(&self.reader, Reader::Json(look) if at_edge(look))
    }
}

// === impl Inspected ===

impl Inspected {
    /// What of a piece may be passed on now, with what was held before it in front.
    fn pass(&mut self, data: Bytes) -> Result<Option<Frame<Bytes>>, Refusal> {
        let (held_at, passed) = (self.passed.checked_sub(1), self.passed);
        self.inspector.see(passed, &data)?;
        if self.inspector.is_acted_on() {
            // Else a body that never ends would count as one that nothing was run of, and go to the next server, and the next.
            self.inspector.progress.start();
        }
        self.passed += data.len() as u64;
        let mut data = self.inspector.clear(passed, data);
        let held = self.held.take().zip(held_at);
        let held = held.map(|(byte, at)| self.inspector.in_place_of(at).unwrap_or(byte));
        if self.inspector.is_undecided(self.passed) {
            self.held = data.split_off(data.len() - 1).first().copied();
        }
        let data = (!data.is_empty()).then(|| Frame::data(data));
        let Some(byte) = held else { return Ok(data) };
        self.next = data;
        Ok(Some(one(byte)))
    }

    /// The body breaks off; whoever sends it is told why.
    fn object(&mut self, refusal: Refusal) -> ExchangeError {
        let reason = refusal.message.clone();
        if let Some(tell) = self.tell.take() {
            // Nobody waits for it any more once Ollama has answered; the break says it then.
            let _ = tell.send(refusal);
        }
        ExchangeError::Body(reason.into())
    }
}

impl http_body::Body for Inspected {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let this = &mut *self;
        loop {
            if let Some(frame) = this.next.take() {
                return Poll::Ready(Some(Ok(frame)));
            }
            let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let error = match ZstdError::within(&error).map(ZstdError::refusal) {
                        Some(refusal) => this.object(refusal),
                        None => error,
                    };
                    return Poll::Ready(Some(Err(error)));
                }
                None => return Poll::Ready(this.held.take().map(|byte| Ok(one(byte)))),
            };
            let data = match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => data,
                Err(trailers) => {
                    let Some(byte) = this.held.take() else { return Poll::Ready(Some(Ok(trailers))) };
                    this.next = Some(trailers);
                    return Poll::Ready(Some(Ok(one(byte))));
                }
            };
            match this.pass(data) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(refusal) => return Poll::Ready(Some(Err(this.object(refusal)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_none() && self.next.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let next = self.next.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len);
        let here = next as u64 + u64::from(self.held.is_some());
        let mut hint = self.body.size_hint();
        // The upper bound first: a lower one above it is a panic in http-body.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(here));
        }
        hint.set_lower(hint.lower().saturating_add(here));
        hint
    }
}

fn one(byte: u8) -> Frame<Bytes> {
    Frame::data(Bytes::copy_from_slice(&[byte]))
}

fn unreadable(why: &str) -> Refusal {
    let message = format!("the server that this goes to cannot check the body as it must: {why}");
    Refusal::new(RefusalCode::Unreadable, message)
}

#[cfg(test)]
mod tests;
