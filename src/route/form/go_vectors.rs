//! The look into a form held against Go's `mime/multipart`: 1,500 forms, most of them odd in one way, with what Go 1.26.8
//! takes `FormValue("model")` for (`tests/data/go-form.jsonl`, made by `go-form.go` beside it).

use crate::route::{Form, FormProgress};
use data_encoding::BASE64;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Uri};
use serde::Deserialize;

const RECORDED: &str = include_str!("../../../tests/data/go-form.jsonl");

#[derive(Deserialize)]
struct Vector {
    /// The content type.
    r#type: String,
    #[serde(default)]
    query: String,
    /// In base64, for bytes that are no text.
    body: String,
    /// The first value of `model`, if Go could read the form at all.
    model: Option<String>,
    /// How many values it has.
    #[serde(default)]
    count: usize,
}

#[test]
fn the_look_finds_the_model_that_go_finds_or_says_that_it_cannot_tell() {
    let (mut wrong, mut read, mut unreadable) = (Vec::new(), 0, 0);
    for line in RECORDED.lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        let body = BASE64.decode(vector.body.as_bytes()).unwrap();
        let uri: Uri = format!("/v1/audio/transcriptions?{}", vector.query).parse().unwrap();
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_str(&vector.r#type).unwrap())]);
        for step in [body.len().max(1), 1, 7] {
            // What Go cannot read is run by nobody, whatever is found in it.
            let Some(expected) = &vector.model else { continue };
            let mut form = Form::of(&uri, &headers).expect("what is a form to Go is one here");
            for piece in body.chunks(step) {
                form.feed(piece);
            }
            let found = form.model().map(|model| model.as_written().to_owned()).unwrap_or_default();
            match form.progress() {
                FormProgress::Unreadable(_) => unreadable += 1,
                // (Go takes a form that ends in a part's head for one that is over.)
                FormProgress::Complete | FormProgress::Open
                    if found == *expected && form.is_doubled() == (vector.count > 1) =>
                {
                    read += 1;
                }
                progress => wrong.push(format!(
                    "{} {} {:?}: {progress:?} {found:?}, Go says {expected:?}",
                    vector.r#type,
                    vector.query,
                    String::from_utf8_lossy(&body)
                )),
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(read > 1000 && unreadable > 300, "the vectors are there: {read} read, {unreadable} not");
}
