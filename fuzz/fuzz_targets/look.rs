//! The look into a JSON body: however the body is cut, the same model is found and the same keys are doubled.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::route::{Look, Progress};

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, body) = input;
    let (mut whole, mut cut) = (Look::new(), Look::new());
    whole.feed(body);
    for chunk in body.chunks(usize::from(piece).max(1)) {
        cut.feed(chunk);
    }
    assert_eq!(whole.model().map(|model| model.to_string()), cut.model().map(|model| model.to_string()));
    assert_eq!(whole.doubled(), cut.doubled());
    let broken = |look: &Look| matches!(look.progress(), Progress::Broken { .. });
    assert_eq!(broken(&whole), broken(&cut));
});
