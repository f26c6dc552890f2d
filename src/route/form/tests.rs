//! The look into a form, by example and by property. What Go makes of odd ones is in `go_vectors`.

use http::HeaderValue;
use proptest::prelude::*;

use super::*;

fn form(content_type: &str, query: &str) -> Option<Form> {
    let uri = format!("/v1/audio/transcriptions{query}").parse().unwrap();
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(content_type).unwrap())]);
    Form::of(&uri, &headers)
}

fn read(body: &[u8]) -> Form {
    let mut form = form("multipart/form-data; boundary=xYz", "").unwrap();
    form.feed(body);
    form
}

fn model(form: &Form) -> Option<String> {
    form.model().map(|model| model.as_written().to_owned())
}

/// As curl writes it.
fn part(head: &str, content: &str) -> String {
    format!("--xYz\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
}

#[test]
fn the_model_is_found_wherever_it_stands() {
    let file = part("name=\"file\"; filename=\"C:\\a\\\"b.wav\"\r\nContent-Type: audio/wav", "RIFF\r\n--xY\r\r\n\r\n-");
    let field = part("name=model", "m");
    let language = part("name=\"language\"", "en");
    for parts in [[&file, &field, &language], [&field, &file, &language], [&language, &file, &field]] {
        let body = format!("{}{}{}--xYz--\r\n", parts[0], parts[1], parts[2]);
        let form = read(body.as_bytes());
        assert_eq!((form.progress(), model(&form).as_deref()), (FormProgress::Complete, Some("m")), "{body}");
        assert!(!form.is_doubled());
    }
    // It is known as soon as its part is over.
    let known = read(format!("{field}--xYz").as_bytes());
    assert_eq!((known.progress(), model(&known).as_deref()), (FormProgress::Open, Some("m")));
}

#[test]
fn the_query_comes_first_and_two_are_told() {
    let body = part("name=\"model\"", "m") + "--xYz--";
    for (query, expected, doubled) in [
        ("", Some("m"), false),
        ("?a=b&Model=q", Some("m"), false),
        ("?model=q%20r", Some("q r"), true),
        ("?%6dodel=q&model=r", Some("q"), true),
        ("?model=", None, true),
    ] {
        let mut form = form("multipart/form-data; boundary=xYz", query).unwrap();
        form.feed(body.as_bytes());
        assert_eq!((model(&form).as_deref(), form.is_doubled()), (expected, doubled), "{query}");
    }
    let twice = part("name=\"model\"", "m") + &part("name=\"model\"", "n") + "--xYz--";
    assert!(read(twice.as_bytes()).is_doubled());
}

#[test]
fn what_is_no_form_is_none() {
    for other in ["application/json", "multipart/mixed; boundary=xYz", "text/plain; x=multipart/form-data", ""] {
        assert!(form(other, "").is_none(), "{other}");
    }
    assert!(Form::of(&Uri::from_static("/"), &HeaderMap::new()).is_none());
}

#[test]
fn what_readers_read_differently_is_told() {
    let unreadable = |form: &Form| matches!(form.progress(), FormProgress::Unreadable(_));
    for odd in [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\"x\\Yz\"",
        "multipart/form-data; boundary*=utf-8''xYz",
        "multipart/form-data; boundary*0=xY; boundary*1=z",
        "multipart/form-data; boundary=xYz; boundary=y",
        "multipart/form-data; boundary=\"xYz",
        "multipart/form-data; boundary=x{z",
    ] {
        assert!(unreadable(&form(odd, "").unwrap()), "{odd}");
    }
    let mut twice = HeaderMap::new();
    twice.append(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=a"));
    twice.append(CONTENT_TYPE, HeaderValue::from_static("multipart/form-data; boundary=b"));
    assert!(unreadable(&Form::of(&Uri::from_static("/"), &twice).unwrap()));

    for odd in [
        // Before the first part.
        "preamble\r\n--xYz\r\n".to_owned(),
        "\r\n--xYz\r\n".to_owned(),
        // Delimiters.
        "--xYz \r\n".to_owned(),
        "--xYz\n".to_owned(),
        part("name=\"file\"", "a\r\n--xYzz"),
        // Heads.
        "--xYz\r\n\r\n".to_owned(),
        "--xYz\r\nContent-Disposition: form-data; name=model\n\n".to_owned(),
        "--xYz\r\nContent-Disposition: form-data;\r\n name=model\r\n\r\n".to_owned(),
        "--xYz\r\nContent-Disposition : form-data; name=model\r\n\r\n".to_owned(),
        "--xYz\r\nContent-Disposition: attachment; name=model\r\n\r\n".to_owned(),
        format!("--xYz\r\nX: {}", "a".repeat(MAX_HEAD)),
        part("name=\"file\"\r\nContent-Disposition: form-data; name=\"model\"", ""),
        part("name=\"file\"; name=\"model\"", ""),
        part("name*=utf-8''model", ""),
        part("name*0=mo; name*1=del", ""),
        part("name=\"mo\\\"del\"", ""),
        part("name=\"model", ""),
        part("x=y", ""),
        // The model itself.
        part("name=\"model\"; filename=\"m\"", "m"),
        part("name=\"model\"\r\nContent-Transfer-Encoding: quoted-printable", "=6d"),
        part("name=\"model\"", &"m".repeat(MAX_VALUE + 1)),
    ] {
        assert!(unreadable(&read(odd.as_bytes())), "{odd}");
    }
    let not_unicode = [part("name=\"model\"", "").as_bytes().trim_ascii_end(), b"\r\n\r\n\xff\r\n--xYz"].concat();
    assert!(unreadable(&read(&not_unicode)));
}

#[test]
fn memory_is_bounded_whatever_the_body() {
    let mut form = read(part("name=\"file\"; filename=\"a\"", "").trim_end().as_bytes());
    form.feed(b"\r\n\r\n");
    for _ in 0..1024 {
        form.feed(&[b'\r'; 4096]);
        form.feed(b"\r\n--xY");
    }
    assert_eq!(form.progress(), FormProgress::Open);
    let held = form.head.capacity() + form.value.as_ref().map_or(0, Vec::capacity) + form.delimiter.capacity();
    assert!(held <= MAX_HEAD + MAX_VALUE + MAX_BOUNDARY, "{held}");
}

/// Bodies of parts and delimiters that are nearly right.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => Just("--xYz\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n"),
        4 => Just("--xYz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"),
        4 => Just("\r\n"),
        2 => Just("m"), 1 => Just("\r"), 1 => Just("\n"), 1 => Just("--"), 1 => Just("--xYz"), 1 => Just("--xY"), 2 => Just("--xYz--"),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_split_into_pieces_gives_the_same(body in body(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8)) {
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).chain([0, body.len()]).collect();
        cuts.sort_unstable();
        let mut pieces = read(b"");
        for cut in cuts.windows(2) {
            pieces.feed(&body[cut[0]..cut[1]]);
        }
        let summary = |form: &Form| (form.progress(), model(form), form.is_doubled());
        prop_assert_eq!(summary(&pieces), summary(&read(&body)));
    }

    #[test]
    fn what_clients_write_is_read(name in "[a-z]{1,8}", content in prop::collection::vec(any::<u8>(), 0..64), model_ in "[a-z:./]{1,20}") {
        prop_assume!(name != "model");
        let file = part(&format!("name=\"{name}\"; filename=\"x.wav\""), "");
        let file = [file.trim_end().as_bytes(), b"\r\n\r\n", content.as_slice(), b"\r\n"].concat();
        let whole = [file.as_slice(), part("name=\"model\"", &model_).as_bytes(), b"--xYz--\r\n"].concat();
        let form = read(&whole);
        prop_assert_eq!((form.progress(), model(&form)), (FormProgress::Complete, Some(model_)));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256), kind in "\\PC{0,40}") {
        let _ = read(&bytes);
        let _ = read(&[b"--xYz\r\n", bytes.as_slice()].concat());
        if let Ok(kind) = HeaderValue::from_str(&format!("multipart/form-data;{kind}")) {
            let _ = Form::of(&Uri::from_static("/"), &HeaderMap::from_iter([(CONTENT_TYPE, kind)]));
        }
    }
}
