//! The decompressor held against the one that Ollama uses: 430 bodies of one frame and of several, with checksums,
//! skippable frames and damages, with what Go's klauspost/compress makes of them under Ollama's bounds
//! (`tests/data/go-zstd.jsonl`, made by `go-zstd.go` beside it).

use crate::route::{Unzstd, ZstdError};
use data_encoding::{BASE64, HEXLOWER};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const RECORDED: &str = include_str!("../../../tests/data/go-zstd.jsonl");

#[derive(Deserialize)]
struct Vector {
    /// In base64.
    body: String,
    /// Of what came out.
    length: usize,
    /// SHA-256 of it, where nothing was wrong with the body.
    sum: Option<String>,
    error: Option<String>,
}

fn unpack(body: &[u8], step: usize) -> Result<(usize, String), ZstdError> {
    let (mut unzstd, mut sum, mut length) = (Unzstd::new(), Sha256::new(), 0);
    for piece in body.chunks(step) {
        unzstd.push(piece);
        while let Some(out) = unzstd.take()? {
            sum.update(&out);
            length += out.len();
        }
    }
    match unzstd.may_end() {
        true => Ok((length, HEXLOWER.encode(&sum.finalize()))),
        false => Err(ZstdError::Short),
    }
}

#[test]
fn what_ollama_decompresses_is_decompressed_to_the_same() {
    let (mut wrong, mut read, mut refused, mut lenient) = (Vec::new(), 0, 0, 0);
    for line in RECORDED.lines() {
        let vector: Vector = serde_json::from_str(line).unwrap();
        let body = BASE64.decode(vector.body.as_bytes()).unwrap();
        // Megabytes byte by byte would take a test's time and show nothing new.
        let steps = if vector.length > 1 << 20 { vec![body.len()] } else { vec![body.len().max(1), 1, 7] };
        for step in steps {
            match (unpack(&body, step), &vector.sum) {
                (Ok(out), Some(sum)) if out == (vector.length, sum.clone()) => read += 1,
                (Err(_), None) => refused += 1,
                // Damaged, and nobody's harm: what comes out is what is checked and what is passed on.
                (Ok(_), None) => lenient += 1,
                (found, _) => {
                    wrong.push(format!("{}: {found:?}, Go says {:?} {}", vector.body, vector.error, vector.length))
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(lenient <= 3, "{lenient}");
    assert!(read > 700 && refused > 100, "the vectors are there: {read} read, {refused} refused");
}
