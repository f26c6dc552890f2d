//! A stream of frames, cut anywhere: whatever the cuts, the same data and frames come out, or the same error.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ollana::internals::wire::frame::{Decoder, Event, FrameError, Kind};

/// What came out, and how it ended.
type Read = (Vec<u8>, Vec<(Kind, Bytes)>, Result<(), FrameError>);

fn read(stream: &[u8], piece: usize) -> Read {
    let (mut data, mut frames) = (Vec::new(), Vec::new());
    let mut decoder = Decoder::default();
    for chunk in stream.chunks(piece.max(1)) {
        decoder.push(Bytes::copy_from_slice(chunk));
        loop {
            match decoder.next() {
                Ok(Some(Event::Data(piece))) => data.extend_from_slice(&piece),
                Ok(Some(Event::Frame(kind, payload))) => frames.push((kind, payload)),
                Ok(None) => break,
                Err(error) => return (data, frames, Err(error)),
            }
        }
    }
    let end = decoder.finish();
    (data, frames, end)
}

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, stream) = input;
    assert_eq!(read(stream, piece.into()), read(stream, stream.len()));
});
