//! Where the mesh may differ from the Ollama behind it: all of it, and nothing anywhere else. And what differs from one
//! answer of one Ollama to its next, and is therefore not compared.

use std::time::Duration;

use super::wire::{Answer, Framing, Piece, Transcript};

/// A difference that an application may see.
pub struct Allowed {
    pub what: &'static str,
    pub why: &'static str,
    /// Takes it out of an answer. Both sides' answers go through it.
    erase: fn(&mut Answer),
}

/// The list.
pub const ALLOWED: [Allowed; 8] = [
    Allowed {
        what: "the field `Ollana-Peer`",
        why: "says which node answered (README.md, \"What a program can do with it\")",
        erase: |answer| drop_field(answer, "Ollana-Peer"),
    },
    Allowed {
        what: "the field `Ollana-Request`",
        why: "the request's ID, by which `ollana explain` tells why it went where it went",
        erase: |answer| drop_field(answer, "Ollana-Request"),
    },
    Allowed { what: "the value of `Date`", why: "two moments are not one", erase: |answer| mask_field(answer, "Date") },
    Allowed {
        what: "the order of fields of different names",
        why: "it means nothing (RFC 9110 §5.3); the order of several values of one name is kept and compared",
        // Stable, so values of one name stay in their order.
        erase: |answer| answer.headers.sort_by_key(|(name, _)| name.clone()),
    },
    Allowed {
        what: "`Connection: keep-alive` in an answer of HTTP/1.1, or where the close is the end",
        why: "Ollama sets it on events; it speaks of its own connection and ends there, and says what HTTP/1.1 does anyway",
        erase: |answer| {
            if answer.status.starts_with("HTTP/1.1") || answer.framing == Framing::Close {
                for (_, value) in answer.headers.iter_mut().filter(|(name, _)| name == "Connection") {
                    *value = value.replace("keep-alive, ", "");
                }
                answer.headers.retain(|(name, value)| name != "Connection" || value != "keep-alive");
            }
        },
    },
    Allowed {
        what: "a chunk comes in several",
        why: "pieces are passed on as the network cuts them, before the rest is there; none waits for the next, and two \
              never become one",
        erase: |answer| join_cut(answer),
    },
    Allowed {
        what: "length and date of an answer to what is no request",
        why: "Go sends neither there; the connection is closed behind it in any case",
        erase: |answer| {
            if answer.framing != Framing::None && answer.status.starts_with("HTTP/1.1 400 ") && closes(answer) {
                answer.framing = Framing::Close;
                drop_field(answer, "Content-Length");
                drop_field(answer, "Date");
            }
        },
    },
    Allowed {
        what: "why a head is no head",
        why: "the parser that reads heads does not say which part of one it could not read",
        erase: |answer| {
            for reason in [": invalid header name", ": invalid header value"] {
                answer.status = answer.status.replace(reason, "");
                for piece in &mut answer.pieces {
                    piece.bytes = super::wire::lossy(&piece.bytes).replace(reason, "").into_bytes();
                }
            }
        },
    },
];

/// Two more that no answer alone shows, so that [`grammar`](super::grammar) leaves them out:
/// - of two faults in one request a node names the model that nobody has, since it looks for it first to know whom to ask;
///   Ollama looks at the rest first;
/// - the model is `name` where there is no `model`, whatever the route; Ollama reads `name` on some routes only.
///
/// A case that differs although nothing of [`ALLOWED`] says so.
pub struct Known {
    /// What its name, with a blank behind it, begins with.
    pub case: &'static str,
    /// Whether it differs from a simulated Ollama, and from a real one.
    pub from: [bool; 2],
    pub why: &'static str,
}

const BOTH: [bool; 2] = [true, true];
const SIMULATED: [bool; 2] = [true, false];
const REAL: [bool; 2] = [false, true];

/// The list. A case that does not differ any more fails until it is taken off.
pub const KNOWN: &[Known] = &[
    Known {
        case: "chunked and with a length",
        from: REAL,
        why: "an attacker may mean the two to be read differently, so the connection is closed (RFC 9112 §6.1)",
    },
    Known {
        case: "large,",
        from: BOTH,
        why: "Go gives a connection up rather than read more than 256 kB of a body that nobody wants; a node reads on, since \
              what was sent meanwhile would make the application see a reset and not the answer",
    },
    Known { case: "expected, and refused early", from: BOTH, why: CONTINUE },
    Known { case: "expected, by a wrong method", from: BOTH, why: CONTINUE },
    Known { case: "a blob that is there, after a promise of more than comes", from: BOTH, why: CONTINUE },
    Known {
        case: "an unknown coding",
        from: BOTH,
        why: "the parser that reads heads says 400 to it, where Go says 501",
    },
    Known {
        case: "a break of what only the close ends",
        from: SIMULATED,
        why: "with HTTP/1.0 a break looks like the end; a node makes it a reset, so that nobody takes half an answer for whole",
    },
    Known { case: "GET http://127.0.0.1", from: REAL, why: NO_PATH },
    Known { case: "HEAD http://127.0.0.1", from: REAL, why: NO_PATH },
    Known { case: "POST http://127.0.0.1", from: REAL, why: NO_PATH },
    Known {
        case: "an unclean path for",
        from: BOTH,
        why: "Go's mux redirects before any guard; a node's guard stands before all paths, since behind it may be another \
              server than Ollama",
    },
    Known {
        case: "[] for POST",
        from: REAL,
        why: "a gate does not let through what it cannot read: Ollama misses the end, and says so",
    },
    Known { case: "[] for DELETE", from: REAL, why: "the same" },
    Known {
        case: "fields of 300 KB",
        from: BOTH,
        why: "a node's limit for a head is 256 KiB, where Go's is 1 MiB: each connection may keep as much",
    },
    Known { case: "a target of 70 KB", from: BOTH, why: "a node's limit for a target is 64 KiB, and its answer 414" },
];

const CONTINUE: &str = "who answers, and what, is known when the body is: whoever waits for a word is told to continue";
const NO_PATH: &str = "a target without a path is read as one with `/`, where Go's mux redirects to it";

/// Of JSON and of events: what an Ollama says otherwise each time.
const VARIES: [&str; 16] = [
    // Of `show`: the order of parameters is that of a map of Go's, another one each time.
    "modelfile",
    "parameters",
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
        for allowed in &ALLOWED {
            (allowed.erase)(answer);
        }
        mask_body(answer);
    }
    transcript
}

/// Both lists, to read.
pub fn listed() -> String {
    let allowed = ALLOWED.iter().map(|allowed| format!("{}: {}\n", allowed.what, allowed.why));
    let known = KNOWN.iter().map(|known| format!("\"{}\": {}\n", known.case, known.why));
    allowed.chain(known).collect()
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
pub fn known(case: &str, real: bool) -> Option<&'static str> {
    let case = format!("{case} ");
    let known = KNOWN.iter().filter(|known| known.from[usize::from(real)]);
    known.into_iter().find(|known| case.starts_with(&format!("{} ", known.case))).map(|known| known.why)
}

fn closes(answer: &Answer) -> bool {
    answer.values("connection").any(|value| value == "close")
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
                Some(string) => end_of_text(string).map_or(rest.len(), |end| end + 2),
                None => rest.find([',', '}', ']']).unwrap_or(rest.len()),
            };
            text.replace_range(value..value + length, "*");
            from = value;
        }
    }
    text.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect()
}

/// Where a text of JSON ends: at the first quote that is not escaped.
fn end_of_text(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let ends = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        ends
    })
}

/// Joins what may have been one chunk: of lines and events, what does not end with one; of anything else, all of it.
fn join_cut(answer: &mut Answer) {
    if answer.framing != Framing::Chunked {
        return;
    }
    let lines = answer.values("content-type").any(|kind| kind.contains("ndjson") || kind.contains("event-stream"));
    let mut joined: Vec<Piece> = Vec::new();
    for piece in answer.pieces.drain(..) {
        match joined.last_mut() {
            Some(last) if !lines || !last.bytes.ends_with(b"\n") => last.bytes.extend(piece.bytes),
            _ => joined.push(piece),
        }
    }
    answer.pieces = joined;
}
