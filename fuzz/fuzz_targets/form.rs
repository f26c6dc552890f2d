//! The look into a form: however the body is cut, the same model is found or the same is wrong with it.
#![no_main]

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Uri};
use libfuzzer_sys::fuzz_target;
use ollana::internals::route::Form;

fuzz_target!(|input: (u8, bool, &[u8])| {
    let (piece, begun, body) = input;
    let kind = HeaderValue::from_static("multipart/form-data; boundary=xYz");
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, kind)]);
    let form = || {
        let mut form = Form::of(&Uri::from_static("/v1/audio/transcriptions"), &headers).expect("it says so");
        if begun {
            form.feed(b"--xYz\r\nContent-Disposition: form-data; name");
        }
        form
    };
    let (mut whole, mut cut) = (form(), form());
    whole.feed(body);
    for chunk in body.chunks(usize::from(piece).max(1)) {
        cut.feed(chunk);
    }
    assert_eq!(whole.progress(), cut.progress());
    assert_eq!(whole.model().map(|model| model.to_string()), cut.model().map(|model| model.to_string()));
    assert_eq!(whole.is_doubled(), cut.is_doubled());
    // The content type is read from strangers as well.
    if let Ok(kind) = HeaderValue::from_bytes(&[b"multipart/form-data;", body].concat()) {
        let _ = Form::of(&Uri::from_static("/"), &HeaderMap::from_iter([(CONTENT_TYPE, kind)]));
    }
});
