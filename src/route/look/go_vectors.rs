//! The look into a body held against Go's `encoding/json`: 1,500 bodies, whole and broken, with what Go 1.26.8 read in
//! them (`tests/data/go-json.jsonl`, made by `go-json.go` beside it).

use crate::route::{Look, Progress};
use data_encoding::BASE64;
use serde::Deserialize;

const RECORDED: &str = include_str!("../../../tests/data/go-json.jsonl");

#[derive(Deserialize)]
struct Vector {
    /// In base64, for bytes that are no text.
    body: String,
    /// Whether Go read a request out of it.
    read: bool,
    /// The model of that request, or else its name.
    model: Option<String>,
    /// Whether its first value is a complete object as far as Go is concerned, whatever the types in it.
    valid: bool,
}

#[test]
fn the_look_finds_the_model_that_go_finds() {
    let (mut wrong, mut named) = (Vec::new(), 0);
    for line in RECORDED.lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        let body = BASE64.decode(vector.body.as_bytes()).unwrap();
        for step in [body.len().max(1), 1, 7] {
            let mut look = Look::new();
            for piece in body.chunks(step) {
                look.feed(piece);
            }
            let complete = look.progress() == Progress::Complete;
            if complete != vector.valid {
                wrong.push(format!(
                    "{:?}: {:?}, Go says {}",
                    String::from_utf8_lossy(&body),
                    look.progress(),
                    vector.valid
                ));
            }
            if !vector.read {
                continue;
            }
            let found = look.model().map(|model| squeezed(model.as_written())).unwrap_or_default();
            let expected = squeezed(&vector.model.clone().unwrap());
            named += usize::from(!expected.is_empty());
            if found != expected {
                wrong.push(format!("{:?}: {found:?}, Go says {expected:?}", String::from_utf8_lossy(&body)));
            }
        }
    }
    assert!(named > 1000, "the vectors are there: {named}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is not Unicode becomes U+FFFD in both; how many of them differs, and no model has any in its name.
fn squeezed(text: &str) -> String {
    let mut squeezed = text.to_owned();
    while squeezed.contains("\u{fffd}\u{fffd}") {
        squeezed = squeezed.replace("\u{fffd}\u{fffd}", "\u{fffd}");
    }
    squeezed
}
