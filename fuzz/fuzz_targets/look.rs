//! The look into a JSON body: however the body is cut, the same is found in it and the same is wrong with it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ollana::internals::route::Look;

fuzz_target!(|input: (u8, &[u8])| {
    let (piece, body) = input;
    let (mut whole, mut cut) = (Look::new(), Look::new());
    whole.feed(body);
    for chunk in body.chunks(usize::from(piece).max(1)) {
        cut.feed(chunk);
    }
    assert_eq!(found(&whole), found(&cut));
});

/// All that can be asked of a look.
fn found(look: &Look) -> impl PartialEq + std::fmt::Debug + use<> {
    let names: Vec<_> = look.names().chain(look.model()).map(|name| name.to_string()).collect();
    let flags = [look.overlong(), look.web_search(), look.remote_host(), look.may_ask(), look.has_model()];
    let unloads = ["/api/generate", "/api/chat"].map(|path| look.unloads(path));
    let hidden = (look.hidden().to_vec(), look.hides_too_much(), look.may_end_in_hidden());
    let options = (look.doubled_option(), look.context());
    (look.progress(), names, look.doubled(), flags, unloads, hidden, options)
}
