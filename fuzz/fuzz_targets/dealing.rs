//! Messages about trust, one a line: what is read can be written and is read the same again, and no order of steps that a
//! peer may send upsets the pairing, whether a person waits for it here or not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::Id;
use ollana::internals::pairing::{Desk, Session};
use ollana::internals::wire::control::Message;
use ollana::internals::wire::dealing::Dealing;
use ollana::internals::wire::frame::{HEADER, Kind};

fuzz_target!(|input: (u8, &[u8])| {
    let (start, lines) = input;
    let (me, peer) = (Id::from_bytes([2; 32]), Id::from_bytes([if start & 1 == 0 { 1 } else { 3 }; 32]));
    let desk = Desk::new(me, None);
    let line = desk.line(Session { me, peer, dialled: start & 2 == 0, secret: [7; 32] });
    let _wish = (start & 4 == 0).then(|| desk.wish(peer));
    for payload in lines.split(|byte| *byte == b'\n') {
        let Ok(message) = Message::decode(Kind::Trust, payload) else { continue };
        let written = message.encode().expect("none is too long for its frame");
        let again = Message::decode(Kind::Trust, &written[HEADER..]).expect("what was written can be read");
        assert_eq!(again, message);
        match message {
            Message::Trust(Dealing::Pair(step)) => line.heard(step),
            // No message of a peer's: when a person here says yes.
            Message::Trust(Dealing::Redeemed(None)) => desk.confirm(peer),
            _ => {}
        }
    }
});
