//! Heads: what is read can be written, and is read the same again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use ollana::internals::wire::{frame, head};

fuzz_target!(|bytes: &[u8]| {
    let bytes = Bytes::copy_from_slice(bytes);
    if let Ok((request, has_body)) = head::decode_request(bytes.clone()) {
        let (parts, ()) = request.into_parts();
        if let Ok(mut written) = head::encode_request(&parts, has_body) {
            let again = head::decode_request(written.split_off(frame::HEADER)).expect("what was written can be read");
            assert_eq!(again.0.headers(), &parts.headers);
            assert_eq!(again.0.method(), parts.method);
            assert_eq!(again.0.uri(), &parts.uri);
            assert_eq!(again.1, has_body);
        }
    }
    if let Ok((response, has_body)) = head::decode_response(bytes.clone()) {
        let (parts, ()) = response.into_parts();
        if let Ok(mut written) = head::encode_response(&parts, has_body) {
            let again = head::decode_response(written.split_off(frame::HEADER)).expect("what was written can be read");
            assert_eq!(again.0.headers(), &parts.headers);
            assert_eq!(again.0.status(), parts.status);
            assert_eq!(again.1, has_body);
        }
    }
    if let Ok(fields) = head::decode_fields(bytes)
        && let Ok(mut written) = head::encode_end(&fields)
    {
        assert_eq!(head::decode_fields(written.split_off(frame::HEADER)).ok(), Some(fields));
    }
});
