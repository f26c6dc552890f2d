//! Frames over a QUIC stream, and bodies over frames.
//!
//! Dropping a quinn stream ends it as if all had been said. A [`Writer`] that is dropped before its end resets the stream
//! instead, and a [`Reader`] that is dropped before its end asks the other side to stop.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use super::connection::Closed;
use crate::exchange::{Body, ExchangeError, ResetCode};
use crate::id::NodeName;
use crate::wire::frame::{self, Decoder, Event, FrameError, Kind};
use crate::wire::head::{self, HeadError};
use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};

/// Asked of quinn at once. A chunk is what one packet brought, so this is some 45 kB for one lock of the connection.
const CHUNKS: usize = 32;
/// Up to this size a piece of a body is copied behind its frame's header (one write, one allocation); above it both are
/// handed over as they are. A token is some 150 bytes.
const COPY_BELOW: usize = 1024;
/// Scratch space is taken from the allocator in pieces of this size, and what is held back is written at the latest when
/// it comes to this.
const SCRATCH: usize = 8 * 1024;

/// Why a stream came to no good end.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The connection is over.
    #[error("{0}")]
    Lost(Closed),
    /// The other side will say no more.
    #[error("{0}")]
    Reset(ResetCode),
    /// The other side will hear no more.
    #[error("{0}")]
    Stopped(ResetCode),
    /// The bytes are not frames.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// A frame that does not belong here.
    #[error("a {0:?} frame where none belongs")]
    Unexpected(Kind),
    /// The bytes of a head are not one.
    #[error("a head that cannot be read: {0}")]
    Head(#[from] HeadError),
    /// A body that is longer or shorter than its head says.
    #[error("a body of another length than its head says")]
    Length,
    /// Nothing came for too long.
    #[error("nothing came within {0} s")]
    Slow(u64),
}

impl StreamError {
    /// What an exchange with the peer of this name makes of it, once something of it was sent.
    pub fn into_exchange(self, peer: &NodeName) -> ExchangeError {
        match self {
            Self::Lost(_) => ExchangeError::Lost(peer.clone()),
            Self::Reset(code) | Self::Stopped(code) => ExchangeError::Reset(peer.clone(), code),
            other => ExchangeError::Protocol(peer.clone(), other.to_string()),
        }
    }

    /// What a [`Kind::Broken`] frame with this payload says.
    pub(super) fn broken(payload: &[u8]) -> Self {
        Self::Reset(
            payload.first_chunk().map_or(ResetCode::Upstream, |code| ResetCode::from_wire(u64::from_be_bytes(*code))),
        )
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(ResetCode::from_wire(code.into_inner())),
            ReadError::ConnectionLost(error) => Self::Lost(error.into()),
            // The other kinds are misuse of quinn's interface or of 0-RTT, which is not there.
            _ => Self::Reset(ResetCode::Cancelled),
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(code) => Self::Stopped(ResetCode::from_wire(code.into_inner())),
            WriteError::ConnectionLost(error) => Self::Lost(error.into()),
            _ => Self::Stopped(ResetCode::Cancelled),
        }
    }
}

fn wire_code(code: ResetCode) -> VarInt {
    VarInt::from_u64(code.to_wire()).unwrap_or(VarInt::MAX)
}

/// The half of a stream that we read.
pub struct Reader {
    stream: RecvStream,
    decoder: Decoder,
    /// What quinn had, from `taken` to `filled`.
    chunks: Box<[Bytes; CHUNKS]>,
    taken: usize,
    filled: usize,
    ended: bool,
}

impl Reader {
    /// Reads frames from `stream`.
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: Decoder::default(), chunks: Default::default(), taken: 0, filled: 0, ended: false }
    }

    /// The next event, or `None` where the stream ended between two frames.
    ///
    /// # Errors
    /// [`StreamError`]; nothing more can be read after one.
    pub async fn next(&mut self) -> Result<Option<Event>, StreamError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next event, polled.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, StreamError>> {
        loop {
            if let Some(event) = self.next_read()? {
                let (kind, length) = match &event {
                    Event::Data(data) => (Kind::Data, data.len()),
                    Event::Frame(kind, payload) => (*kind, payload.len()),
                };
                tracing::trace!(stream = %self.stream.id(), ?kind, length, "frame");
                return Poll::Ready(Ok(Some(event)));
            }
            // `read_chunks` keeps nothing in its future: quinn holds the waker, so a new future at each poll is sound.
            match ready!(pin!(self.stream.read_chunks(self.chunks.as_mut_slice())).poll(cx)) {
                Ok(Some(filled)) => (self.taken, self.filled) = (0, filled),
                Ok(None) => {
                    self.ended = true;
                    self.decoder.finish()?;
                    return Poll::Ready(Ok(None));
                }
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }

    /// The next event of what has been read already.
    fn next_read(&mut self) -> Result<Option<Event>, FrameError> {
        loop {
            if let Some(event) = self.decoder.next()? {
                return Ok(Some(event));
            }
            let Some(chunk) = self.chunks.get_mut(self.taken..self.filled).and_then(<[Bytes]>::first_mut) else {
                return Ok(None);
            };
            self.decoder.push(std::mem::take(chunk));
            self.taken += 1;
        }
    }

    /// Asks the other side to say no more, and why.
    pub fn stop(&mut self, code: ResetCode) {
        if !self.ended {
            self.ended = true;
            let _ = self.stream.stop(wire_code(code));
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop(ResetCode::Cancelled);
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({})", self.stream.id())
    }
}

/// The half of a stream that we write.
pub struct Writer {
    stream: SendStream,
    scratch: BytesMut,
    ended: bool,
}

impl Writer {
    /// Writes frames to `stream`.
    pub fn new(stream: SendStream) -> Self {
        Self { stream, scratch: BytesMut::new(), ended: false }
    }

    /// Writes a whole frame, behind what is held back.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] or [`StreamError::Lost`].
    pub async fn frame(&mut self, frame: Bytes) -> Result<(), StreamError> {
        if self.scratch.is_empty() {
            return Ok(self.stream.write_chunk(frame).await?);
        }
        self.hold(&frame);
        self.flush().await
    }

    /// Takes a whole frame and holds it back until the next write: what goes together, as a head and a short body do,
    /// is one packet and one wake-up of the connection, and not three.
    pub fn hold(&mut self, frame: &[u8]) {
        self.make_room(frame.len());
        self.scratch.put_slice(frame);
    }

    /// Writes what is held back.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] or [`StreamError::Lost`].
    pub async fn flush(&mut self) -> Result<(), StreamError> {
        if self.scratch.is_empty() {
            return Ok(());
        }
        Ok(self.stream.write_chunk(self.scratch.split().freeze()).await?)
    }

    /// Takes a piece of a body, in as many data frames as it needs. The last of it may be held back, if it is short.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] or [`StreamError::Lost`].
    pub async fn data(&mut self, mut data: Bytes) -> Result<(), StreamError> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(frame::MAX_DATA));
            let copied = piece.len() <= COPY_BELOW;
            self.make_room(frame::HEADER + if copied { piece.len() } else { 0 });
            frame::put_header(&mut self.scratch, Kind::Data, piece.len())?;
            if copied {
                self.scratch.put_slice(&piece);
            } else {
                self.stream.write_all_chunks(&mut [self.scratch.split().freeze(), piece]).await?;
            }
        }
        if self.scratch.len() >= SCRATCH - COPY_BELOW { self.flush().await } else { Ok(()) }
    }

    /// Takes scratch space in large pieces, of which each write leaves with its part.
    fn make_room(&mut self, length: usize) {
        if self.scratch.capacity() - self.scratch.len() < length {
            self.scratch.reserve(length.max(SCRATCH));
        }
    }

    /// Writes the body's end and its trailers, and ends the stream.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] or [`StreamError::Lost`].
    pub async fn end(&mut self, trailers: &HeaderMap) -> Result<(), StreamError> {
        self.frame(head::encode_end(trailers)?).await?;
        self.finish();
        Ok(())
    }

    /// Ends the stream: all was said.
    pub fn finish(&mut self) {
        self.ended = true;
        let _ = self.stream.finish();
    }

    /// Ends the stream as broken.
    pub fn reset(&mut self, code: ResetCode) {
        if !self.ended {
            self.ended = true;
            let _ = self.stream.reset(wire_code(code));
        }
    }

    /// Resolves when the other side will hear no more, or has heard all.
    pub fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let stopped = self.stream.stopped();
        async move {
            let _ = stopped.await;
        }
    }

    /// Says, behind all that was written, that the answer broke off here, and ends the stream.
    ///
    /// # Errors
    /// [`StreamError::Stopped`] or [`StreamError::Lost`].
    pub async fn broken(&mut self, code: ResetCode) -> Result<(), StreamError> {
        self.frame(frame::encode(Kind::Broken, &code.to_wire().to_be_bytes())?).await?;
        self.finish();
        Ok(())
    }

    /// Writes a whole body, its trailers and the end. What of the body is there at once goes together; nothing that is
    /// there waits for what is not.
    ///
    /// # Errors
    /// [`PumpError::Body`] if the body broke: the caller decides how to tell.
    pub async fn pump(&mut self, mut body: Body) -> Result<(), PumpError> {
        loop {
            let at_once = poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
            let frame = match at_once {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    self.flush().await?;
                    body.frame().await
                }
            };
            let Some(frame) = frame else { return Ok(self.end(&HeaderMap::new()).await?) };
            match frame.map_err(PumpError::Body)?.into_data() {
                Ok(data) => self.data(data).await?,
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap_or_default();
                    return Ok(self.end(&trailers).await?);
                }
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.reset(ResetCode::Cancelled);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Writer({})", self.stream.id())
    }
}

/// Why a body did not get across.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The body itself broke.
    #[error(transparent)]
    Body(ExchangeError),
    /// The stream did.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// A body that comes over a stream.
pub struct RecvBody {
    reader: Reader,
    peer: NodeName,
    /// What the head's `content-length` promises still: hyper need not chunk then, and trusts that it is kept.
    length: Option<u64>,
    done: bool,
    kept: Option<Box<dyn Send>>,
}

impl RecvBody {
    /// The body behind a head that was just read from `reader`; `peer` for its errors.
    pub fn new(reader: Reader, peer: NodeName, headers: &HeaderMap) -> Self {
        // A head with a length that cannot be read was refused with the head, or has no body.
        let length = head::content_length(headers).ok().flatten();
        Self { reader, peer, length, done: false, kept: None }
    }

    /// Keeps something as long as anyone wants this body: the task that sends the other direction, say.
    pub fn keeping(mut self, kept: impl Send + 'static) -> Self {
        self.kept = Some(Box::new(kept));
        self
    }

    /// Takes note of a piece of the body, or of its end.
    fn count(&mut self, piece: Option<&Bytes>) -> Result<(), StreamError> {
        let Some(length) = &mut self.length else { return Ok(()) };
        match piece {
            Some(piece) => *length = length.checked_sub(piece.len() as u64).ok_or(StreamError::Length)?,
            None if *length > 0 => return Err(StreamError::Length),
            None => {}
        }
        Ok(())
    }
}

impl fmt::Debug for RecvBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecvBody").field("reader", &self.reader).field("done", &self.done).finish_non_exhaustive()
    }
}

impl http_body::Body for RecvBody {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let frame = match ready!(self.reader.poll_next(cx)) {
            Ok(Some(Event::Data(data))) => self.count(Some(&data)).map(|()| Some(Frame::data(data))),
            Ok(Some(Event::Frame(Kind::End, payload))) => {
                self.reader.ended = true;
                self.count(None).and_then(|()| {
                    let trailers = head::decode_fields(payload)?;
                    self.done = true;
                    Ok((!trailers.is_empty()).then(|| Frame::trailers(trailers)))
                })
            }
            Ok(Some(Event::Frame(Kind::Broken, payload))) => Err(StreamError::broken(&payload)),
            Ok(Some(Event::Frame(kind, _))) => Err(StreamError::Unexpected(kind)),
            Ok(None) => Err(FrameError::Truncated.into()),
            Err(error) => Err(error),
        };
        Poll::Ready(match frame {
            Ok(frame) => frame.map(Ok),
            Err(error) => {
                self.done = true;
                Some(Err(error.into_exchange(&self.peer)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.done
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// Whether there is a body to send at all.
pub fn has_body(body: &Body) -> bool {
    !body.is_end_stream()
}
