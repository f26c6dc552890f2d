//! The decompressor: however the body is cut, the same comes out, and never more than is allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::internals::route::{MAX_UNPACKED, Unzstd};

/// A frame of unknown length, with a window of 1 MiB and no checksum.
const BEGUN: [u8; 6] = [0x28, 0xb5, 0x2f, 0xfd, 0, 10 << 3];

/// How much comes out, a sum over it, and whether it was good to its end; nothing if it was not good.
fn unpack(begun: bool, body: &[u8], piece: usize) -> Option<(usize, u64, bool)> {
    let (mut unzstd, mut length, mut sum) = (Unzstd::new(), 0, 0_u64);
    if begun {
        unzstd.push(&BEGUN);
    }
    for chunk in body.chunks(piece.max(1)) {
        unzstd.push(chunk);
        while let Some(out) = unzstd.take().ok()? {
            length += out.len();
            sum = out.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
        }
        assert!(length <= MAX_UNPACKED);
    }
    Some((length, sum, unzstd.may_end()))
}

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (piece, begun, body) = input;
    assert_eq!(unpack(begun, body, piece.into()), unpack(begun, body, body.len()));
});
