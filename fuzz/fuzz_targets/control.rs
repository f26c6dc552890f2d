//! The messages of the control stream.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::wire::control::Message;
use ollana::wire::frame::Kind;

fuzz_target!(|input: (u8, &[u8])| {
    let kind = match input.0 % 4 {
        0 => Kind::Hello,
        1 => Kind::Refused,
        2 => Kind::Report,
        _ => Kind::Data,
    };
    if let Ok(message) = Message::decode(kind, input.1) {
        if let Message::Hello(hello) = &message {
            let _ = hello.agree();
        }
        let _ = message.encode();
    }
});
