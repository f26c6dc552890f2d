//! A request's body that can be sent again: what was read of it is kept, up to a bound, until an answer is accepted.
//!
//! The first attempt streams as if nothing stood between: a frame is handed on the moment it comes and kept beside. A
//! later attempt gets what was kept first, then what still comes. Beyond the bound nothing is kept any more, and the
//! body cannot be replayed from there on.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use crate::exchange::{Body, ExchangeError};

/// Kept of one body at most: a long prompt with a few photographs in base64. What is larger is mostly a model's blob,
/// which goes to one chosen node anyway.
const PER_BODY: usize = 4 * 1024 * 1024;
/// Kept of all bodies together: a quarter of what a node may use in all (64 MB resident), so that a hundred waiting
/// requests with images do not add up.
const IN_ALL: usize = 16 * 1024 * 1024;
/// Counted for a frame beside its bytes, so that a body of one-byte chunks is bounded too.
const PER_FRAME: usize = 64;

/// What all bodies together may keep.
#[derive(Debug, Default)]
pub(super) struct Reserve(AtomicUsize);

/// A body and what was kept of it. Dropped once no attempt is needed any more.
pub(super) struct Replay(Arc<Mutex<Kept>>);

/// One attempt's view of the body. Only the latest reads: an earlier one ends with an error, as its attempt was given up.
struct Attempt {
    kept: Arc<Mutex<Kept>>,
    number: u32,
}

struct Kept {
    origin: Body,
    frames: VecDeque<Piece>,
    /// The next of `frames` that the current attempt reads.
    position: usize,
    /// What `frames` count, here and in the reserve.
    size: usize,
    reserve: Arc<Reserve>,
    keeping: Keeping,
    ended: bool,
    /// What the body broke off with while it was only looked at.
    broken: Option<ExchangeError>,
    /// The attempt that may read.
    current: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// Every frame read so far is in `frames`.
    Yes,
    /// Nothing was lost yet, but the next frame read is: an answer was accepted, or the body is known to be too large.
    NoMore,
    /// Frames were handed on that are not kept, or the body broke off.
    Lost,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

// === impl Replay ===

impl Replay {
    /// Keeps `origin` as it is read.
    pub(super) fn new(origin: Body, reserve: Arc<Reserve>) -> Self {
        let fits = usize::try_from(origin.size_hint().lower()).is_ok_and(|size| size <= PER_BODY);
        Self::with(origin, reserve, if fits { Keeping::Yes } else { Keeping::NoMore })
    }

    /// Keeps nothing: of a body that is sent once.
    pub(super) fn once(origin: Body) -> Self {
        Self::with(origin, Arc::default(), Keeping::NoMore)
    }

    fn with(origin: Body, reserve: Arc<Reserve>, keeping: Keeping) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            keeping,
            origin,
            frames: VecDeque::new(),
            position: 0,
            size: 0,
            reserve,
            ended: false,
            broken: None,
            current: 0,
        })))
    }

    /// Shows what of the body is there already, up to some `enough` bytes. It is kept, and read by the attempts. Nothing is
    /// waited for.
    pub(super) async fn look(&self, enough: usize, mut see: impl FnMut(&Bytes)) {
        poll_fn(|cx| {
            let mut kept = lock(&self.0);
            let mut seen = 0;
            while seen < enough
                && let Some(data) = kept.look(cx)
            {
                seen += data.len();
                see(&data);
            }
            Poll::Ready(())
        })
        .await;
    }

    /// Whether another attempt would send the same body.
    pub(super) fn is_possible(&self) -> bool {
        lock(&self.0).keeping != Keeping::Lost
    }

    /// The body from its beginning, for one more attempt. The attempt before loses it.
    pub(super) fn body(&self) -> Body {
        let mut kept = lock(&self.0);
        kept.position = 0;
        kept.current += 1;
        Attempt { kept: self.0.clone(), number: kept.current }.boxed_unsync()
    }
}

impl Drop for Replay {
    /// No more attempts: what the last one has read is let go, the rest is no longer kept.
    fn drop(&mut self) {
        let mut kept = lock(&self.0);
        if kept.keeping == Keeping::Yes {
            kept.keeping = Keeping::NoMore;
        }
        kept.let_go();
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kept = lock(&self.0);
        f.debug_struct("Replay").field("size", &kept.size).field("keeping", &kept.keeping).finish_non_exhaustive()
    }
}

// === impl Attempt ===

impl http_body::Body for Attempt {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let mut kept = lock(&self.kept);
        if kept.current == self.number {
            kept.poll_frame(cx)
        } else {
            Poll::Ready(Some(Err(ExchangeError::Body("the attempt was given up".into()))))
        }
    }

    fn is_end_stream(&self) -> bool {
        let kept = lock(&self.kept);
        kept.position == kept.frames.len() && kept.broken.is_none() && (kept.ended || kept.origin.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let kept = lock(&self.kept);
        let ahead: u64 = kept.frames.iter().skip(kept.position).map(Piece::len).sum();
        let mut hint = if kept.ended { SizeHint::with_exact(0) } else { kept.origin.size_hint() };
        // The upper bound first: a lower one above it is a panic in http-body.
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper.saturating_add(ahead));
        }
        hint.set_lower(hint.lower().saturating_add(ahead));
        hint
    }
}

// === impl Kept ===

impl Kept {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        if let Some(piece) = self.frames.get(self.position) {
            let frame = piece.clone().into();
            self.position += 1;
            if self.keeping != Keeping::Yes {
                self.let_go();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(error) = self.broken.take() {
            self.keeping = Keeping::Lost;
            self.let_go();
            return Poll::Ready(Some(Err(error)));
        }
        if self.ended {
            return Poll::Ready(None);
        }
        match std::task::ready!(Pin::new(&mut self.origin).poll_frame(cx)) {
            Some(Ok(frame)) => {
                self.keep(&frame);
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                self.ended = true;
                self.keeping = Keeping::Lost;
                self.let_go();
                Poll::Ready(Some(Err(error)))
            }
            None => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    /// The next data that is there, if it is to be kept at all.
    fn look(&mut self, cx: &mut Context<'_>) -> Option<Bytes> {
        while self.keeping == Keeping::Yes && self.size < PER_BODY && !self.ended {
            let Poll::Ready(frame) = Pin::new(&mut self.origin).poll_frame(cx) else { return None };
            match frame {
                Some(Ok(frame)) => {
                    let Some(piece) = Piece::of(&frame) else { continue };
                    // It was read, so it is kept though there may be no room for it: one frame.
                    self.size += piece.cost();
                    self.reserve.charge(piece.cost());
                    self.frames.push_back(piece);
                    if let Ok(data) = frame.into_data() {
                        return Some(data);
                    }
                }
                Some(Err(error)) => (self.ended, self.broken) = (true, Some(error)),
                None => self.ended = true,
            }
        }
        None
    }

    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(piece) = Piece::of(frame) else { return };
        let cost = piece.cost();
        if self.keeping == Keeping::Yes && self.size + cost <= PER_BODY && self.reserve.take(cost) {
            self.frames.push_back(piece);
            self.position = self.frames.len();
            self.size += cost;
        } else {
            self.keeping = Keeping::Lost;
            self.let_go();
        }
    }

    /// Frees what was kept and read, once it is not needed for another attempt.
    fn let_go(&mut self) {
        for piece in self.frames.drain(..self.position.min(self.frames.len())) {
            let cost = piece.cost();
            self.size = self.size.saturating_sub(cost);
            self.reserve.give_back(cost);
            // From here on the beginning is missing.
            self.keeping = Keeping::Lost;
        }
        self.position = 0;
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.reserve.give_back(self.size);
    }
}

// === impl Piece ===

impl Piece {
    fn of(frame: &Frame<Bytes>) -> Option<Self> {
        match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Some(Self::Data(data.clone())),
            (_, Some(trailers)) => Some(Self::Trailers(trailers.clone())),
            (None, None) => None,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }

    fn cost(&self) -> usize {
        PER_FRAME
            + match self {
                Self::Data(data) => data.len(),
                Self::Trailers(trailers) => trailers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum(),
            }
    }
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Self {
        match piece {
            Piece::Data(data) => Frame::data(data),
            Piece::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

// === impl Reserve ===

impl Reserve {
    fn take(&self, cost: usize) -> bool {
        let fits = |used: usize| used.checked_add(cost).filter(|sum| *sum <= IN_ALL);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }

    /// Takes it, whether there is room or not.
    fn charge(&self, cost: usize) {
        self.0.fetch_add(cost, Ordering::Relaxed);
    }

    fn give_back(&self, cost: usize) {
        self.0.fetch_sub(cost, Ordering::Relaxed);
    }
}

/// A panic elsewhere does not make the body's bytes wrong.
fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use http_body_util::StreamBody;
    use proptest::prelude::*;

    fn body(chunks: Vec<Vec<u8>>) -> Body {
        let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from(chunk))));
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    /// Reads `count` frames, or all.
    fn read(body: &mut Body, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            match body.frame().now_or_never().expect("ready") {
                Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().expect("data")),
                Some(Err(error)) => panic!("{error}"),
                None => break,
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn every_attempt_sends_the_whole_body(
            chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..12),
            attempts in prop::collection::vec(0usize..14, 0..4),
        ) {
            let whole = chunks.concat();
            let reserve = Arc::new(Reserve::default());
            let replay = Replay::new(body(chunks), reserve.clone());
            for read_before_giving_up in attempts {
                let mut attempt = replay.body();
                let begun = read(&mut attempt, read_before_giving_up);
                prop_assert!(whole.starts_with(&begun));
                prop_assert!(replay.is_possible());
            }
            let mut last = replay.body();
            let begun = read(&mut last, 2);
            // Accepted in the middle: the rest still comes, and nothing stays reserved.
            drop(replay);
            let rest = read(&mut last, usize::MAX);
            prop_assert_eq!([begun, rest].concat(), whole);
            drop(last);
            prop_assert_eq!(reserve.0.load(Ordering::Relaxed), 0);
        }
    }

    #[tokio::test]
    async fn a_look_takes_nothing_away_and_waits_for_nothing() {
        let later = stream::iter([Ok(Frame::data(Bytes::from("one"))), Ok(Frame::data(Bytes::from("two")))]);
        let replay = Replay::new(StreamBody::new(later.chain(stream::pending())).boxed_unsync(), Arc::default());
        let mut seen = Vec::new();
        replay.look(4, |data| seen.extend_from_slice(data)).await;
        replay.look(4, |data| seen.extend_from_slice(data)).await;
        assert_eq!(seen, b"onetwo");
        for _ in 0..2 {
            let mut attempt = replay.body();
            assert_eq!(read(&mut attempt, 2), b"onetwo");
            assert!(attempt.frame().now_or_never().is_none(), "the rest is awaited");
        }
        let breaks = stream::iter([Ok(Frame::data(Bytes::from("x"))), Err(ExchangeError::Body("gone".into()))]);
        let replay = Replay::new(StreamBody::new(breaks).boxed_unsync(), Arc::default());
        replay.look(9, |_| {}).await;
        let mut attempt = replay.body();
        assert_eq!(read(&mut attempt, 1), b"x");
        assert!(attempt.frame().now_or_never().unwrap().unwrap().is_err(), "a break that was only seen is still one");
        assert!(!replay.is_possible());
    }

    #[test]
    fn beyond_the_bound_it_streams_on_but_is_not_kept() {
        let chunk = vec![7u8; PER_BODY / 4];
        let reserve = Arc::new(Reserve::default());
        let replay = Replay::new(body(vec![chunk.clone(); 6]), reserve.clone());
        let mut attempt = replay.body();
        read(&mut attempt, 3);
        assert!(replay.is_possible());
        read(&mut attempt, 1);
        assert!(!replay.is_possible());
        assert_eq!(reserve.0.load(Ordering::Relaxed), 0, "what cannot be replayed is not kept either");
        assert_eq!(read(&mut attempt, usize::MAX).len(), 2 * chunk.len());
    }

    #[test]
    fn what_is_announced_as_too_large_can_be_sent_elsewhere_until_it_is_read() {
        let whole = vec![1u8; PER_BODY + 1];
        let replay = Replay::new(crate::exchange::full(whole.clone()), Arc::default());
        drop(replay.body());
        assert!(replay.is_possible());
        let mut second = replay.body();
        assert_eq!(read(&mut second, usize::MAX), whole);
        assert!(!replay.is_possible());
    }

    #[test]
    fn an_attempt_that_was_given_up_takes_nothing_from_the_next() {
        let replay = Replay::new(body(vec![vec![1], vec![2]]), Arc::default());
        let mut first = replay.body();
        let mut second = replay.body();
        assert!(first.frame().now_or_never().unwrap().unwrap().is_err());
        assert_eq!(read(&mut second, usize::MAX), [1, 2]);
    }

    #[test]
    fn the_length_is_announced_as_it_is() {
        let replay = Replay::new(crate::exchange::full("four"), Arc::default());
        let mut first = replay.body();
        assert_eq!(first.size_hint().exact(), Some(4));
        read(&mut first, 1);
        assert!(first.is_end_stream());
        assert_eq!(replay.body().size_hint().exact(), Some(4));
        assert!(Replay::new(crate::exchange::empty(), Arc::default()).body().is_end_stream());
    }
}
