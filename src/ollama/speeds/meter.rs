//! The body of an answer with a meter on it: when frames come, how many, and the end of what they say.
//!
//! It must cost next to nothing: a frame is one reading of the clock, a few stores that nobody waits for, and a slice of
//! what is passed on anyhow. Nothing is copied or parsed before the end.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::Run;
use crate::exchange::{Body, ExchangeError};

/// How much of the end is looked at: Ollama's last object without its beginning, or OpenAI's last events. Also what one
/// frame keeps of the answer's memory.
const TAIL: usize = 2048;
/// The frames that may hold it. The last object is one frame, or two where the end of a buffer cuts it; after `usage` come
/// the last event and `[DONE]`.
const TAIL_FRAMES: usize = 4;

/// What is seen of an answer while it passes. Written by whoever reads the body, read by the learner. Times are
/// microseconds since the request was handed over.
#[derive(Debug)]
pub(super) struct Meter {
    since: Instant,
    frames: AtomicU32,
    last: AtomicU64,
    /// The longest silence before a frame, since it was last asked for.
    silence: AtomicU64,
    /// For how long frames were there that nobody read: then nothing here tells the server's speed.
    unread: AtomicU64,
    /// When the last frame came that was waited for, and so was not there before.
    fresh: AtomicU64,
}

/// What the meter shows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) frames: u32,
    /// When the last of them came.
    pub(super) last: Instant,
    pub(super) unread: Duration,
    /// How long it may have been there before it was read, at most.
    pub(super) late: Duration,
}

/// A body with a meter on it.
pub(super) struct Metered {
    body: Body,
    run: Option<Run>,
    meter: Arc<Meter>,
    tail: [Bytes; TAIL_FRAMES],
    next: usize,
    /// When a frame was handed on that the reader has not come back from.
    handed: Option<u64>,
    /// Whether the reader waits for a frame.
    waits: bool,
}

// === impl Meter ===

impl Meter {
    pub(super) fn new(since: Instant) -> Self {
        let zero = AtomicU64::default;
        Self { since, frames: AtomicU32::default(), last: zero(), silence: zero(), unread: zero(), fresh: zero() }
    }

    pub(super) fn read(&self) -> Reading {
        let last = self.last.load(Relaxed);
        Reading {
            frames: self.frames.load(Relaxed),
            last: self.since + Duration::from_micros(last),
            late: Duration::from_micros(last.saturating_sub(self.fresh.load(Relaxed))),
            unread: Duration::from_micros(self.unread.load(Relaxed)),
        }
    }

    /// The longest silence since this was last called.
    pub(super) fn silence(&self) -> Duration {
        Duration::from_micros(self.silence.swap(0, Relaxed))
    }

    /// A frame has come at this time, which was waited for or not. Whether it is the first.
    pub(super) fn frame(&self, at: u64, fresh: bool) -> bool {
        if fresh {
            self.fresh.store(at, Relaxed);
        }
        // One writer: a load and a store are as good as an exchange.
        let last = self.last.load(Relaxed);
        if at.saturating_sub(last) > self.silence.load(Relaxed) {
            self.silence.store(at.saturating_sub(last), Relaxed);
        }
        self.last.store(at, Relaxed);
        let frames = self.frames.load(Relaxed);
        self.frames.store(frames.saturating_add(1), Relaxed);
        frames == 0
    }

    pub(super) fn left_unread(&self, from: u64, to: u64) {
        /// What a scheduler may take anyhow.
        const USUAL: u64 = 20_000;
        let unread = to.saturating_sub(from);
        if unread > USUAL {
            self.unread.fetch_add(unread, Relaxed);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

// === impl Metered ===

impl Metered {
    pub(super) fn new(body: Body, run: Run, meter: Arc<Meter>) -> Self {
        let mut metered =
            Self { body, run: Some(run), meter, tail: Default::default(), next: 0, handed: None, waits: true };
        if metered.body.is_end_stream() {
            metered.end(true);
        }
        metered
    }

    fn data(&mut self, data: &Bytes, at: u64) {
        if data.is_empty() {
            return;
        }
        let fresh = std::mem::take(&mut self.waits);
        if let (true, Some(run)) = (self.meter.frame(at, fresh), &self.run) {
            run.first();
        }
        if let Some(slot) = self.tail.get_mut(self.next) {
            *slot = data.slice(data.len().saturating_sub(TAIL)..);
        }
        self.next = (self.next + 1) % TAIL_FRAMES;
        self.handed = Some(at);
    }

    /// The answer is over, read to its end or not: one that goes away after the last object has had all of it.
    fn end(&mut self, whole: bool) {
        let Some(run) = self.run.take() else { return };
        let (newer, older) = self.tail.split_at(self.next.min(TAIL_FRAMES));
        let tail: Vec<u8> = older.iter().chain(newer).flat_map(|frame| frame.iter().copied()).collect();
        self.tail = Default::default();
        run.over(&tail, whole);
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let this = &mut *self;
        if this.run.is_none() {
            return Pin::new(&mut this.body).poll_frame(cx);
        }
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let handed = this.handed.take();
        this.waits |= polled.is_pending();
        let at = match (&polled, handed) {
            (Poll::Pending, None) => return Poll::Pending,
            _ => this.meter.now(),
        };
        if let Some(handed) = handed {
            this.meter.left_unread(handed, at);
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.data(data, at);
                }
                if this.body.is_end_stream() {
                    this.end(true);
                }
            }
            Poll::Ready(None) => this.end(true),
            Poll::Ready(Some(Err(_))) => this.end(false),
            Poll::Pending => {}
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

impl Drop for Metered {
    fn drop(&mut self) {
        self.end(false);
    }
}
