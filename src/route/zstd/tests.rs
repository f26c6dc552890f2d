//! The decompressor, by example and by property. What Ollama's own makes of odd bodies is in `go_vectors`.

use futures_util::stream;
use http_body_util::StreamBody;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

fn packed(text: &[u8]) -> Vec<u8> {
    compress_to_vec(text, CompressionLevel::Fastest)
}

/// What comes out of a body that comes in pieces of this size.
fn unpack(body: &[u8], step: usize) -> Result<Vec<u8>, ZstdError> {
    let (mut unzstd, mut out) = (Unzstd::new(), Vec::new());
    for piece in body.chunks(step) {
        unzstd.push(piece);
        while let Some(piece) = unzstd.take()? {
            assert!(piece.len() <= PIECE);
            out.extend_from_slice(&piece);
        }
    }
    if unzstd.may_end() { Ok(out) } else { Err(ZstdError::Short) }
}

/// A frame of blocks that say one byte many times: 4 bytes that become 128 KiB, over and over.
fn bomb(blocks: usize, window: u8) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
    for _ in 0..blocks {
        let header = u32::try_from(MAX_BLOCK).unwrap() << 3 | 1 << 1;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(b'A');
    }
    frame
}

/// Window descriptors (RFC 8878 §3.1.1.1.2).
const ONE_MIB: u8 = 10 << 3;
const EIGHT_MIB: u8 = 13 << 3;

#[test]
fn a_bomb_is_stopped_at_the_bound() {
    for (blocks, window, fits) in [(160, ONE_MIB, true), (200, ONE_MIB, false), (10_000, EIGHT_MIB, false)] {
        let (mut unzstd, mut out) = (Unzstd::new(), 0);
        unzstd.push(&bomb(blocks, window));
        let end = loop {
            match unzstd.take() {
                Ok(Some(piece)) => out += piece.len(),
                Ok(None) => break true,
                Err(ZstdError::TooLong) => break false,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(end, fits, "{blocks}");
        assert!(out <= MAX_UNPACKED, "{out}");
    }
    let (wider, message) = (EIGHT_MIB + 1, "9 MiB");
    let error = unpack(&bomb(1, wider), 7).unwrap_err();
    assert!(matches!(error, ZstdError::Window(_)) && error.to_string().contains(message), "{error}");
}

#[test]
fn no_more_than_a_block_is_held_of_what_comes_in() {
    let mut unzstd = Unzstd::new();
    // An uncompressed block that never comes to its end, and one that claims to be longer than any.
    let header = u32::try_from(MAX_BLOCK).unwrap() << 3;
    unzstd.push(&[&[0x28, 0xb5, 0x2f, 0xfd, 0, ONE_MIB], &header.to_le_bytes()[..3], &vec![0; MAX_BLOCK - 1]].concat());
    assert!(unzstd.take().unwrap().is_none());
    assert!(unzstd.packed.len() <= MAX_BLOCK + 3);
    let header = u32::try_from(MAX_BLOCK + 1).unwrap() << 3;
    let too_long = [&[0x28, 0xb5, 0x2f, 0xfd, 0, ONE_MIB], &header.to_le_bytes()[..3]].concat();
    assert!(matches!(unpack(&too_long, 1), Err(ZstdError::Invalid(_))));
    // What is skipped is not held at all.
    let mut skipping = Unzstd::new();
    skipping.push(&[0x50, 0x2a, 0x4d, 0x18, 0xff, 0xff, 0xff, 0xff]);
    for _ in 0..1024 {
        skipping.push(&[0; 4096]);
        assert!(skipping.take().unwrap().is_none() && skipping.packed.is_empty());
    }
}

#[tokio::test]
async fn a_body_is_decompressed_on_its_way_and_breaks_where_it_is_broken() {
    let body = |bytes: Vec<u8>| -> Body {
        let frames: Vec<_> = bytes.chunks(5).map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece)))).collect();
        unpacked(StreamBody::new(stream::iter(frames)).boxed_unsync(), Space::default())
    };
    let text = br#"{"model":"m"}"#;
    assert_eq!(body(packed(text)).collect().await.unwrap().to_bytes().as_ref(), text);
    assert!(body(Vec::new()).collect().await.unwrap().to_bytes().is_empty());
    let cut = packed(text)[..8].to_vec();
    for broken in [b"{\"model\":\"m\"}".to_vec(), cut] {
        let error = body(broken).collect().await.unwrap_err();
        assert_eq!(
            ZstdError::within(&error).unwrap().refusal().code.status(),
            http::StatusCode::BAD_REQUEST,
            "{error}"
        );
    }
}

#[test]
fn only_what_ollama_decompresses_counts() {
    let is = |method: &str, path: &str, coding: &'static str| {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, http::HeaderValue::from_static(coding))]);
        is_unpacked(&method.parse().unwrap(), &path.parse().unwrap(), &headers)
    };
    assert!(is("POST", "/v1/responses", "zstd") && is("POST", "/v1/%6dessages?x=1", "zstd"));
    for (method, path, coding) in [
        ("PUT", "/v1/responses", "zstd"),
        ("POST", "/v1/responses/", "zstd"),
        ("POST", "/api/chat", "zstd"),
        ("POST", "/v1/audio/transcriptions", "zstd"),
        ("POST", "/v1/responses", "Zstd"),
        ("POST", "/v1/responses", "gzip, zstd"),
        ("POST", "/v1/responses", "gzip"),
    ] {
        assert!(!is(method, path, coding), "{method} {path} {coding}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_into_pieces_gives_the_same(texts in prop::collection::vec(".{0,300}", 1..4), step in 1usize..64, damage in prop::option::of((any::<prop::sample::Index>(), any::<u8>()))) {
        let mut body: Vec<u8> = texts.iter().flat_map(|text| packed(text.as_bytes())).collect();
        if let Some((at, byte)) = &damage {
            let at = at.index(body.len());
            body[at] = *byte;
        }
        let (whole, pieces) = (unpack(&body, body.len()), unpack(&body, step));
        if damage.is_none() {
            prop_assert_eq!(whole.as_ref().unwrap(), &texts.concat().into_bytes());
        }
        prop_assert_eq!(whole.ok(), pieces.ok());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), step in 1usize..64) {
        let _ = unpack(&bytes, step);
        let _ = unpack(&[&[0x28, 0xb5, 0x2f, 0xfd], bytes.as_slice()].concat(), step);
        let _ = unpack(&[&[0x28, 0xb5, 0x2f, 0xfd, 0, ONE_MIB, 0x05 | 0x80], bytes.as_slice()].concat(), step);
    }
}
