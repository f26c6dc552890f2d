//! How a stream is cut into frames.
//!
//! A frame is four bytes and a payload. The first byte is the kind, the other three the payload's length, big-endian:
//!
//! | kind | name | on | payload |
//! |---|---|---|---|
//! | 0x01 | request | exchange, towards the gate | a [request head](super::head) |
//! | 0x02 | response | exchange, from the gate | a [response head](super::head) |
//! | 0x03 | data | exchange, both ways | bytes of the body |
//! | 0x04 | end | exchange, both ways | [trailers](super::head), or nothing |
//! | 0x05 | ack | exchange, from the gate | nothing: the request's head was read |
//! | 0x06 | broken | exchange, from the gate | a [`ResetCode`](crate::exchange::ResetCode), 8 bytes: the answer broke off here |
//! | 0x07 | ticket | exchange, towards the gate | JSON: [`Ask`](crate::exchange::Ask) |
//! | 0x08 | place | exchange, from the gate | JSON: [`Place`](crate::exchange::Place) |
//! | 0x09 | turn | exchange, from the gate | nothing: a slot is kept for the request that comes now |
//! | 0x0a | started | exchange, from the gate | nothing: the server has the whole request |
//! | 0x20 | hello | control, both ways | JSON: [`Hello`](super::control::Hello) |
//! | 0x21 | refused | control, from the gate | JSON: [`Refused`](super::control::Refused) |
//! | 0x22 | report | control, from the gate | JSON: [`Report`](crate::exchange::Report) |
//! | 0x23 | trust | control, both ways | JSON: [`Dealing`](super::dealing::Dealing) |
//! | 0x24 | load | control, from the gate | JSON: [`Load`](crate::exchange::Load) |
//! | 0x25 | vouching | control, both ways | JSON: [`Vouching`](super::vouching::Vouching) |
//!
//! On an exchange a request is `request [data* end]`, its response `ack [started] response [data* end]`; the head says
//! whether a body follows. Where the connection is lost, what was acknowledged and not `started` was run by no server; an
//! answer that comes within a millisecond may come without the word. A body that ends without an `end` frame was broken off, whatever QUIC says of the stream: a complete
//! answer is never inferred from silence. A `broken` frame, anywhere behind the `ack`, says so behind all that came before
//! the break, which a reset of the stream could overtake.
//!
//! A request that waits for a slot before it is sent begins with a `ticket`, which is answered by `ack place* turn`, and goes
//! on as above; or by `ack place* response` if the gate will not queue it. Who gives the ticket up resets the stream; so does
//! the gate where the request is not there two seconds after its turn (`ResetCode::Late`), and runs nothing.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Bytes before each payload.
pub const HEADER: usize = 4;
/// Longest data frame written: the length of a payload has 24 bits.
pub const MAX_DATA: usize = (1 << 24) - 1;
/// Longest head or trailers. Twice what the listener lets in (`MAX_HEAD` in its `connection`): a field takes six bytes
/// beside name and value here and four there, so what it let in always fits.
pub const MAX_HEAD: usize = 512 * 1024;
/// Longest hello or refusal: a name, a version and a sentence.
pub const MAX_HELLO: usize = 4 * 1024;
/// Longest message about trust: two proofs of 64 bytes in hexadecimal.
pub const MAX_TRUST: usize = 1024;
/// Longest ticket: a model's name of 640 bytes, escaped, and a few numbers.
pub const MAX_TICKET: usize = 4 * 1024;
/// Longest message of where a ticket stands: one number.
pub const MAX_PLACE: usize = 128;
/// Longest load: some 100 bytes for each of 600 models that are in memory or waited for.
pub const MAX_LOAD: usize = 64 * 1024;
/// Longest message about vouching: [`MAX_VOUCHED`](super::vouching::MAX_VOUCHED) servers of some 250 bytes.
pub const MAX_VOUCHING: usize = 96 * 1024;
/// Longest report: some 120 bytes a model leave room for 8,000 models.
pub const MAX_REPORT: usize = 1024 * 1024;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A request's head.
    Request = 0x01,
    /// A response's head.
    Response = 0x02,
    /// Bytes of a body.
    Data = 0x03,
    /// The end of a body, perhaps with trailers.
    End = 0x04,
    /// The gate has read the request's head.
    Ack = 0x05,
    /// The answer broke off, and why.
    Broken = 0x06,
    /// A place in the queue is asked for.
    Ticket = 0x07,
    /// Where the ticket stands.
    Place = 0x08,
    /// It is the ticket's turn.
    Turn = 0x09,
    /// The server has the whole request.
    Started = 0x0a,
    /// Who speaks.
    Hello = 0x20,
    /// Why there will be no conversation.
    Refused = 0x21,
    /// What a provider says of itself.
    Report = 0x22,
    /// Pairing and invitations.
    Trust = 0x23,
    /// How busy a provider is.
    Load = 0x24,
    /// Whom a node vouches for.
    Vouching = 0x25,
}

impl Kind {
    const fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Request,
            0x02 => Self::Response,
            0x03 => Self::Data,
            0x04 => Self::End,
            0x05 => Self::Ack,
            0x06 => Self::Broken,
            0x07 => Self::Ticket,
            0x08 => Self::Place,
            0x09 => Self::Turn,
            0x0a => Self::Started,
            0x20 => Self::Hello,
            0x21 => Self::Refused,
            0x22 => Self::Report,
            0x23 => Self::Trust,
            0x24 => Self::Load,
            0x25 => Self::Vouching,
            _ => return None,
        })
    }

    /// The longest payload a reader accepts.
    const fn limit(self) -> usize {
        match self {
            Self::Request | Self::Response | Self::End => MAX_HEAD,
            Self::Data => MAX_DATA,
            Self::Ack | Self::Turn | Self::Started => 0,
            Self::Broken => 8,
            Self::Ticket => MAX_TICKET,
            Self::Place => MAX_PLACE,
            Self::Hello | Self::Refused => MAX_HELLO,
            Self::Report => MAX_REPORT,
            Self::Trust => MAX_TRUST,
            Self::Load => MAX_LOAD,
            Self::Vouching => MAX_VOUCHING,
        }
    }
}

/// What came out of a [`Decoder`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Bytes of a data frame, as they came: a frame may come in several pieces.
    Data(Bytes),
    /// A whole frame of another kind.
    Frame(Kind, Bytes),
}

/// Why bytes are not frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind nobody knows.
    #[error("a frame of the unknown kind {0:#04x}")]
    Kind(u8),
    /// A payload longer than its kind allows.
    #[error("a {0:?} frame of {1} bytes, more than the {max} allowed", max = .0.limit())]
    TooLong(Kind, usize),
    /// A data frame without data: no writer makes one, and a chunk full of them would keep a reader busy for nothing.
    #[error("an empty data frame")]
    Empty,
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
}

/// Writes the four bytes before a payload of `length` bytes.
///
/// # Errors
/// [`FrameError::TooLong`] where a reader would refuse the frame.
pub fn put_header(out: &mut impl BufMut, kind: Kind, length: usize) -> Result<(), FrameError> {
    match u32::try_from(length) {
        Ok(bits) if length <= kind.limit() => {
            out.put_u32((kind as u32) << 24 | bits);
            Ok(())
        }
        _ => Err(FrameError::TooLong(kind, length)),
    }
}

/// A whole frame in one piece.
///
/// # Errors
/// [`FrameError::TooLong`] where a reader would refuse the frame.
pub fn encode(kind: Kind, payload: &[u8]) -> Result<Bytes, FrameError> {
    let mut out = BytesMut::with_capacity(HEADER + payload.len());
    put_header(&mut out, kind, payload.len())?;
    out.put_slice(payload);
    Ok(out.freeze())
}

/// Cuts the chunks of a stream into frames. Data is handed on without copying and without waiting for its frame's end;
/// other frames are gathered up to their limit, which bounds what a stranger can make us hold.
#[derive(Debug, Default)]
pub struct Decoder {
    /// What came and was not looked at yet.
    chunk: Bytes,
    /// A header of which fewer than four bytes came.
    header: [u8; HEADER],
    header_filled: usize,
    /// The frame we are in, and how much of its payload is missing.
    current: Option<(Kind, usize)>,
    /// The payload so far of a frame that is not data and did not come in one chunk.
    gathered: BytesMut,
}

impl Decoder {
    /// Adds the next chunk. Call [`next`](Self::next) until it gives `None` before adding another.
    pub fn push(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "the last chunk was not read to its end");
        self.chunk = chunk;
    }

    /// The next event, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// The stream cannot be read any further after an error.
    #[allow(clippy::should_implement_trait)] // not an iterator: it may have more after it had none
    pub fn next(&mut self) -> Result<Option<Event>, FrameError> {
        loop {
            let Some((kind, missing)) = self.current else {
                if !self.read_header()? {
                    return Ok(None);
                }
                continue;
            };
            if kind == Kind::Data {
                if self.chunk.is_empty() {
                    return Ok(None);
                }
                let piece = self.chunk.split_to(missing.min(self.chunk.len()));
                self.current = (piece.len() < missing).then(|| (kind, missing - piece.len()));
                return Ok(Some(Event::Data(piece)));
            }
            let piece = self.chunk.split_to(missing.min(self.chunk.len()));
            if piece.len() < missing {
                self.gathered.extend_from_slice(&piece);
                self.current = Some((kind, missing - piece.len()));
                return Ok(None);
            }
            self.current = None;
            let payload = if self.gathered.is_empty() {
                piece
            } else {
                self.gathered.extend_from_slice(&piece);
                self.gathered.split().freeze()
            };
            return Ok(Some(Event::Frame(kind, payload)));
        }
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        let between = self.current.is_none() && self.header_filled == 0 && self.chunk.is_empty();
        if between { Ok(()) } else { Err(FrameError::Truncated) }
    }

    fn read_header(&mut self) -> Result<bool, FrameError> {
        let header = if self.header_filled == 0 && self.chunk.len() >= HEADER {
            self.chunk.get_u32()
        } else {
            for slot in self.header.iter_mut().skip(self.header_filled) {
                let Ok(byte) = self.chunk.try_get_u8() else { return Ok(false) };
                *slot = byte;
                self.header_filled += 1;
            }
            self.header_filled = 0;
            u32::from_be_bytes(self.header)
        };
        let [kind, ..] = header.to_be_bytes();
        let length = (header & 0x00ff_ffff) as usize;
        let kind = Kind::from_wire(kind).ok_or(FrameError::Kind(kind))?;
        if length > kind.limit() {
            return Err(FrameError::TooLong(kind, length));
        }
        if kind == Kind::Data && length == 0 {
            return Err(FrameError::Empty);
        }
        self.current = Some((kind, length));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(stream: &[u8], cuts: &[usize]) -> Result<Vec<Event>, FrameError> {
        let mut decoder = Decoder::default();
        let mut events: Vec<Event> = Vec::new();
        let mut rest = Bytes::copy_from_slice(stream);
        let mut cuts = cuts.iter().copied().cycle();
        while !rest.is_empty() {
            let cut = cuts.next().unwrap_or(usize::MAX).clamp(1, rest.len());
            decoder.push(rest.split_to(cut));
            while let Some(event) = decoder.next()? {
                match (events.last_mut(), event) {
                    (Some(Event::Data(before)), Event::Data(piece)) => *before = [&before[..], &piece].concat().into(),
                    (_, event) => events.push(event),
                }
            }
        }
        decoder.finish()?;
        Ok(events)
    }

    #[test]
    fn an_unknown_kind_and_a_frame_of_a_wrong_size_are_refused_before_their_payload_comes() {
        assert_eq!(read_all(&[0x7f, 0, 0, 0], &[4]), Err(FrameError::Kind(0x7f)));
        assert_eq!(read_all(&[0x20, 0xff, 0, 0], &[4]), Err(FrameError::TooLong(Kind::Hello, 0xff_0000)));
        assert_eq!(read_all(&[0x05, 0, 0, 1], &[4]), Err(FrameError::TooLong(Kind::Ack, 1)));
        assert_eq!(read_all(&[0x03, 0, 0, 0], &[4]), Err(FrameError::Empty));
        assert!(put_header(&mut BytesMut::new(), Kind::Data, MAX_DATA + 1).is_err());
    }

    #[test]
    fn a_stream_that_ends_inside_a_frame_is_truncated() {
        assert_eq!(read_all(&[0x03, 0, 0, 2, b'x'], &[5]), Err(FrameError::Truncated));
        assert_eq!(read_all(&[0x03, 0], &[2]), Err(FrameError::Truncated));
    }

    proptest! {
        #[test]
        fn frames_survive_however_the_stream_is_cut(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..300), 1..8),
            cuts in proptest::collection::vec(1usize..40, 1..10),
        ) {
            let kinds = [Kind::Request, Kind::Data, Kind::Report, Kind::End];
            let mut stream = Vec::new();
            let mut expected: Vec<Event> = Vec::new();
            for (kind, payload) in kinds.iter().cycle().zip(&payloads) {
                stream.extend_from_slice(&encode(*kind, payload).unwrap());
                let payload = Bytes::copy_from_slice(payload);
                expected.push(if *kind == Kind::Data { Event::Data(payload) } else { Event::Frame(*kind, payload) });
            }
            prop_assert_eq!(read_all(&stream, &cuts).unwrap(), expected);
        }

        #[test]
        fn arbitrary_bytes_never_panic(stream: Vec<u8>, cuts in proptest::collection::vec(1usize..9, 1..5)) {
            let _ = read_all(&stream, &cuts);
        }
    }
}
