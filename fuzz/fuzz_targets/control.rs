//! The messages of the control stream: what is read is harmless enough to be read the same again once it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::internals::wire::control::Message;
use ollana::internals::wire::frame::{HEADER, Kind};

fuzz_target!(|input: (u8, &[u8])| {
    let kind = match input.0 % 5 {
        0 => Kind::Hello,
        1 => Kind::Refused,
        2 => Kind::Report,
        3 => Kind::Vouching,
        _ => Kind::Data,
    };
    if let Ok(message) = Message::decode(kind, input.1) {
        if let Message::Hello(hello) = &message {
            let _ = hello.agree();
        }
        // A report grows when the fields that it lacked are written, perhaps beyond what a frame holds.
        if let Ok(written) = message.encode() {
            assert_eq!(Message::decode(kind, &written[HEADER..]).ok(), Some(message));
        }
    }
});
