//! Where the mesh may differ from the Ollama behind it: all of it, and nothing anywhere else. And what differs from one
//! answer of one Ollama to its next, and is therefore not compared.

use std::time::Duration;

use super::wire::{Answer, Framing, Transcript};

/// A difference that an application may see.
pub struct Allowed {
    pub what: &'static str,
    pub why: &'static str,
    /// Takes it out of an answer. Both sides' answers go through it.
    erase: fn(&mut Answer),
}

/// The list.
pub const ALLOWED: [Allowed; 5] = [
    Allowed {
        what: "the field `Ollana-Peer`",
        why: "says which node answered: the one thing that DESIGN §3 adds",
        erase: |answer| drop_field(answer, "Ollana-Peer"),
    },
    Allowed { what: "the value of `Date`", why: "two moments are not one", erase: |answer| mask_field(answer, "Date") },
    Allowed {
        what: "the order of fields of different names",
        why: "it means nothing (RFC 9110 §5.3); the order of several values of one name is kept and compared",
        // Stable, so values of one name stay in their order.
        erase: |answer| answer.headers.sort_by_key(|(name, _)| name.clone()),
    },
    Allowed {
        what: "`Connection: keep-alive` in an answer of HTTP/1.1",
        why: "Ollama sets it on events; it speaks of its own connection and ends there, and says what HTTP/1.1 does anyway",
        erase: |answer| {
            if answer.status.starts_with("HTTP/1.1") {
                answer.headers.retain(|(name, value)| name != "Connection" || value != "keep-alive");
            }
        },
    },
    Allowed {
        what: "a chunk of more than a kilobyte comes in several",
        why: "pieces are passed on as they come from the network, before the rest of them is there",
        erase: |answer| join_long(answer),
    },
];

/// A case that differs although nothing of [`ALLOWED`] says so.
pub struct Known {
    /// What its name begins with.
    pub case: &'static str,
    pub why: &'static str,
}

/// The list. A case that does not differ any more fails until it is taken off.
pub const KNOWN: [Known; 0] = [];

/// Of JSON and of events: what an Ollama says otherwise each time.
const VARIES: [&str; 14] = [
    "created_at",
    "completed_at",
    "created",
    "expires_at",
    "modified_at",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "eval_duration",
    "id",
    "item_id",
    "request_id",
    "size_vram",
    "prompt_eval_count",
];

/// Less than the pace at which [`cases`](super::cases) has its slow answers come, and more than a busy machine needs.
const LATER: Duration = Duration::from_millis(50);

/// What is left to compare.
pub fn comparable(transcript: &Transcript) -> Transcript {
    let mut transcript = transcript.clone();
    for answer in &mut transcript.answers {
        mask_body(answer);
        for allowed in &ALLOWED {
            (allowed.erase)(answer);
        }
    }
    transcript
}

/// Whether each piece came when it came directly: none waited for the next one.
pub fn in_time(direct: &Transcript, mesh: &Transcript) -> bool {
    let moments = |transcript: &Transcript| {
        let pieces = transcript.answers.iter().flat_map(|answer| &answer.pieces);
        pieces.map(|piece| piece.at).collect::<Vec<_>>()
    };
    moments(direct).iter().zip(moments(mesh)).all(|(direct, mesh)| mesh.abs_diff(*direct) < LATER)
}

/// Why this case differs, if that is known.
pub fn known(case: &str) -> Option<&'static str> {
    KNOWN.iter().find(|known| case.starts_with(known.case)).map(|known| known.why)
}

fn drop_field(answer: &mut Answer, field: &str) {
    answer.headers.retain(|(name, _)| name != field);
}

fn mask_field(answer: &mut Answer, field: &str) {
    for (_, value) in answer.headers.iter_mut().filter(|(name, _)| name == field) {
        "*".clone_into(value);
    }
}

/// Takes the values out that vary, and their lengths out of the length.
fn mask_body(answer: &mut Answer) {
    for piece in &mut answer.pieces {
        piece.bytes = masked(&piece.bytes);
    }
    if answer.framing == Framing::Length && answer.whole {
        let length = answer.body().len().to_string();
        for (_, value) in answer.headers.iter_mut().filter(|(name, _)| name == "Content-Length") {
            value.clone_from(&length);
        }
    }
}

/// Replaces the value behind each `"key":` that varies.
fn masked(bytes: &[u8]) -> Vec<u8> {
    let mut text = super::wire::lossy(bytes);
    for key in VARIES {
        let mark = format!("\"{key}\":");
        let mut from = 0;
        while let Some(found) = text[from..].find(&mark) {
            let value = from + found + mark.len();
            let rest = &text[value..];
            let length = match rest.strip_prefix('"') {
                Some(string) => string.find('"').map_or(rest.len(), |end| end + 2),
                None => rest.find([',', '}', ']']).unwrap_or(rest.len()),
            };
            text.replace_range(value..value + length, "*");
            from = value;
        }
    }
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Joins what may have been one chunk. What ends a line or an event is the end of what was said, and stays one.
fn join_long(answer: &mut Answer) {
    if answer.framing != Framing::Chunked {
        return;
    }
    let mut joined: Vec<super::wire::Piece> = Vec::new();
    for piece in answer.pieces.drain(..) {
        match joined.last_mut() {
            Some(last) if last.bytes.len() > 1024 && !last.bytes.ends_with(b"\n") => last.bytes.extend(piece.bytes),
            _ => joined.push(piece),
        }
    }
    answer.pieces = joined;
}
