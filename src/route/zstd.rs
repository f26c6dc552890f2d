//! Bodies with `Content-Encoding: zstd` (RFC 8878), as far as Ollama decompresses them, piece by piece.
//!
//! Memory: the window, of which at most [`MAX_WINDOW`] is allowed (the ring that holds it may be twice as large), one
//! compressed block (128 KiB) and the frame of the body that it came in; and no more than [`MAX_UNPACKED`] comes out.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::header::CONTENT_ENCODING;
use http::{HeaderMap, Method, Uri};
use http_body::Frame;
use http_body_util::BodyExt as _;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use ruzstd::io::Read as _;

use super::{Space, path};
use crate::exchange::{Body, ExchangeError, Refusal, RefusalCode};

/// Largest window: Ollama's (`zstd.WithDecoderMaxMemory(8<<20)` in `server/cloud_proxy.go`). zstd's own levels up to 19
/// use no more than that.
pub const MAX_WINDOW: u64 = 8 << 20;

/// Most that a body may be once it is decompressed: Ollama's (`maxDecompressedBodySize`).
pub const MAX_UNPACKED: usize = 20 << 20;

/// What decompressing one body takes: the ring for the window, twice [`MAX_WINDOW`]. A few hundred bytes of zstd are enough
/// to fill it.
pub(crate) const UNPACKING: usize = 16 << 20;

/// Longest header of a frame: magic number, descriptor, window, dictionary and content size (RFC 8878 §3.1.1.1).
const MAX_HEADER: usize = 18;

/// Largest block (RFC 8878 §3.1.1.2.4).
const MAX_BLOCK: usize = 128 << 10;

/// Most that is handed out at a time: what a frame on its way has anyhow.
const PIECE: usize = 64 << 10;

/// The routes behind `cloudPassthroughMiddleware`, which is what decompresses; `POST` only.
const ROUTES: [&str; 5] =
    ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"];

/// A decompressor that takes a body in any pieces.
pub struct Unzstd {
    decoder: FrameDecoder,
    stage: Stage,
    /// What came and was not decompressed yet.
    packed: BytesMut,
    unpacked: usize,
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
enum Stage {
    /// A frame.
    Frame,
    /// So much of a frame that is to be skipped.
    Skip(usize),
    /// A block; whether the frame ends with a checksum.
    Block(bool),
    /// Nothing of the frame under way but what was not handed out yet.
    Drain,
}

/// Why a body cannot be decompressed.
#[derive(Debug, thiserror::Error)]
pub enum ZstdError {
    /// It is not zstd, or damaged.
    #[error("the body is not what its content-encoding says, zstd: {0}")]
    Invalid(String),
    /// It ends in the middle.
    #[error("the body's zstd ends in the middle")]
    Short,
    /// [`MAX_WINDOW`].
    #[error("the body's zstd needs a window of {} MiB to be read; {} MiB is the most that Ollama takes", .0.div_ceil(1 << 20), MAX_WINDOW >> 20)]
    Window(u64),
    /// [`MAX_UNPACKED`].
    #[error("the body has more than the {} MiB that Ollama takes of a compressed one; send it uncompressed", MAX_UNPACKED >> 20)]
    TooLong,
}

/// Whether Ollama decompresses the body of this before it reads it. It looks at the first value, and for this word.
pub(crate) fn is_unpacked(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    headers.get(CONTENT_ENCODING).is_some_and(|coding| coding == "zstd")
        && method == Method::POST
        && ROUTES.contains(&path::decoded(uri.path()).as_str())
}

/// The body decompressed on its way, in the `space` that this takes ([`UNPACKING`]). An error of it is a [`ZstdError`] within [`ExchangeError::Body`].
pub(crate) fn unpacked(body: Body, space: Space) -> Body {
    Unpacked { body, unzstd: Unzstd::new(), over: false, space }.boxed_unsync()
}

struct Unpacked {
    body: Body,
    unzstd: Unzstd,
    over: bool,
    space: Space,
}

// === impl Unzstd ===

impl Unzstd {
    /// For a body of which nothing was read.
    pub fn new() -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_WINDOW);
        Self { decoder, stage: Stage::Frame, packed: BytesMut::new(), unpacked: 0 }
    }

    /// Takes the next piece of the body. Everything of the one before should have been taken out with [`Unzstd::take`].
    pub fn push(&mut self, piece: &[u8]) {
        self.packed.extend_from_slice(piece);
    }

    /// What comes out next; nothing if more must be pushed first.
    ///
    /// # Errors
    /// If this is not zstd, or more of it than is allowed. Nothing comes out after that.
    pub fn take(&mut self) -> Result<Option<Bytes>, ZstdError> {
        loop {
            if let Some(out) = self.collect()? {
                return Ok(Some(out));
            }
            let more = match self.stage {
                Stage::Frame => self.frame()?,
                Stage::Skip(left) => self.skip(left),
                Stage::Block(checksum) => self.block(checksum)?,
                Stage::Drain => {
                    let said = self.decoder.get_checksum_from_data();
                    if said.is_some_and(|said| self.decoder.get_calculated_checksum() != Some(said)) {
                        return Err(ZstdError::Invalid("the checksum is another".to_owned()));
                    }
                    self.stage = Stage::Frame;
                    true
                }
            };
            if !more {
                return Ok(None);
            }
        }
    }

    /// Whether the body may end here: between frames.
    pub fn may_end(&self) -> bool {
        matches!(self.stage, Stage::Frame) && self.packed.is_empty()
    }

    fn collect(&mut self) -> Result<Option<Bytes>, ZstdError> {
        let ready = self.decoder.can_collect().min(PIECE);
        if ready == 0 {
            return Ok(None);
        }
        self.unpacked += ready;
        if self.unpacked > MAX_UNPACKED {
            return Err(ZstdError::TooLong);
        }
        let mut out = vec![0; ready];
        let read = self.decoder.read(&mut out).map_err(|error| ZstdError::Invalid(error.to_string()))?;
        out.truncate(read);
        Ok(Some(out.into()))
    }

    /// A frame's header. Whether there was one.
    fn frame(&mut self) -> Result<bool, ZstdError> {
        if self.packed.len() < 4 {
            return Ok(false);
        }
        let mut source = &*self.packed;
        match self.decoder.reset(&mut source) {
            Ok(()) => {
                let read = self.packed.len() - source.len();
                // The third bit of the descriptor, behind the magic number (RFC 8878 §3.1.1.1.1).
                let checksum = self.packed.get(4).is_some_and(|descriptor| descriptor & 4 != 0);
                self.packed.advance(read);
                self.stage = Stage::Block(checksum);
            }
            Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                self.packed.advance(8);
                self.stage = Stage::Skip(usize::try_from(length).unwrap_or(usize::MAX));
            }
            Err(FrameDecoderError::WindowSizeTooBig { requested, .. }) => return Err(ZstdError::Window(requested)),
            Err(FrameDecoderError::ReadFrameHeaderError(error @ ReadFrameHeaderError::BadMagicNumber(_))) => {
                return Err(ZstdError::Invalid(error.to_string()));
            }
            // Perhaps only the rest of the header is missing.
            Err(_) if self.packed.len() < MAX_HEADER => return Ok(false),
            Err(error) => return Err(ZstdError::Invalid(error.to_string())),
        }
        Ok(true)
    }

    fn skip(&mut self, left: usize) -> bool {
        let skipped = left.min(self.packed.len());
        self.packed.advance(skipped);
        self.stage = if skipped == left { Stage::Frame } else { Stage::Skip(left - skipped) };
        skipped == left
    }

    /// One whole block. Whether there was one.
    fn block(&mut self, checksum: bool) -> Result<bool, ZstdError> {
        // Three bytes, little-endian: whether it is the last, its type, its size (RFC 8878 §3.1.1.2).
        let Some(&[low, middle, high]) = self.packed.first_chunk() else { return Ok(false) };
        let size = usize::from(low >> 3) | usize::from(middle) << 5 | usize::from(high) << 13;
        if size > MAX_BLOCK {
            return Err(ZstdError::Invalid("a block is too long".to_owned()));
        }
        let (last, repeats) = (low & 1 != 0, low >> 1 & 3 == 1);
        let need = 3 + if repeats { 1 } else { size } + if last && checksum { 4 } else { 0 };
        let Some(mut block) = self.packed.get(..need) else { return Ok(false) };
        let ended = self
            .decoder
            .decode_blocks(&mut block, BlockDecodingStrategy::UptoBlocks(1))
            .map_err(|error| ZstdError::Invalid(error.to_string()))?;
        self.packed.advance(need);
        if ended {
            self.stage = Stage::Drain;
        }
        Ok(true)
    }
}

impl Default for Unzstd {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Unzstd {
    /// Without what was read: that is somebody's prompt.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unzstd").field("stage", &self.stage).finish_non_exhaustive()
    }
}

// === impl Unpacked ===

impl http_body::Body for Unpacked {
    type Data = Bytes;
    type Error = ExchangeError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ExchangeError>>> {
        let this = &mut *self;
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            // At most a window's worth of blocks comes out of here before something does.
            if let Some(out) = this.unzstd.take().map_err(broken)? {
                return Poll::Ready(Some(Ok(Frame::data(out))));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => this.unzstd.push(&data),
                Some(Err(trailers)) if this.unzstd.may_end() => return Poll::Ready(Some(Ok(trailers))),
                None if this.unzstd.may_end() => {
                    // This is kept until the answer is over, which the window need not be.
                    this.unzstd = Unzstd::new();
                    this.space = Space::default();
                    this.over = true;
                }
                Some(Err(_)) | None => return Poll::Ready(Some(Err(broken(ZstdError::Short)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }
}

// === impl ZstdError ===

impl ZstdError {
    /// What the application is told.
    pub(crate) fn refusal(&self) -> Refusal {
        Refusal::new(RefusalCode::Unreadable, self.to_string())
    }

    /// The one that a body broke off with.
    pub(crate) fn within(error: &ExchangeError) -> Option<&Self> {
        match error {
            ExchangeError::Body(source) => source.downcast_ref(),
            _ => None,
        }
    }
}

fn broken(error: ZstdError) -> ExchangeError {
    ExchangeError::Body(error.into())
}

#[cfg(test)]
mod go_vectors;
#[cfg(test)]
mod tests;
