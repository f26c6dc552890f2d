//! How a body says what it asks for: in JSON, in JSON that is compressed, or in a form.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::{HeaderMap, request};

use super::zstd::is_unpacked;
use super::{Form, FormProgress, Look, ModelName, Progress, Unzstd, path, reads_json};

/// Reads a body as Ollama's route will. Feed it the body in any pieces. (Boxed, since it is held across the awaits of a
/// request's whole way.)
#[derive(Debug)]
pub enum Reader {
    /// JSON, or something that is no such thing.
    Json(Box<Look>),
    /// JSON that Ollama decompresses before it reads it.
    Packed(Box<Packed>),
    /// A form.
    Form(Box<Form>),
}

/// JSON that is decompressed only to be looked at.
#[derive(Debug, Default)]
pub struct Packed {
    unzstd: Unzstd,
    look: Look,
    broken: bool,
}

// === impl Reader ===

impl Reader {
    /// A reader for the body of this; nothing if it cannot name a model. A path that is not known may carry anything in
    /// both directions at once (gRPC), so that one is not read if it says it is something else.
    pub fn of(parts: &request::Parts) -> Option<Self> {
        let request::Parts { method, uri, headers, .. } = parts;
        if reads_json(method, uri) {
            return Some(match is_unpacked(method, uri, headers) {
                true => Self::Packed(Box::default()),
                false => Self::Json(Box::default()),
            });
        }
        if let Some(form) = Form::of(uri, headers) {
            return Some(Self::Form(Box::new(form)));
        }
        let known = path::listed(method, &path::decoded(uri.path())).is_some();
        let may = !is_compressed(headers) && (known || !says_otherwise(headers));
        may.then(|| Self::Json(Box::default()))
    }

    /// Reads on.
    pub fn feed(&mut self, piece: &[u8]) {
        match self {
            Self::Json(look) => {
                look.feed(piece);
            }
            Self::Packed(packed) => packed.feed(piece),
            Self::Form(form) => {
                form.feed(piece);
            }
        }
    }

    /// The model Ollama would take if the body ended here.
    pub fn model(&self) -> Option<ModelName> {
        match self {
            Self::Json(look) => look.model(),
            Self::Packed(packed) => packed.look.model(),
            Self::Form(form) => form.model(),
        }
    }

    /// Whether the model is known, or will not be known by reading on.
    pub fn is_settled(&self) -> bool {
        match self {
            Self::Json(look) => is_settled(look),
            Self::Packed(packed) => packed.is_settled(),
            Self::Form(form) => form.model().is_some() || form.progress() != FormProgress::Open,
        }
    }
}

// === impl Packed ===

impl Packed {
    fn feed(&mut self, piece: &[u8]) {
        if self.is_settled() {
            return;
        }
        self.unzstd.push(piece);
        while !self.is_settled() {
            match self.unzstd.take() {
                Ok(Some(text)) => {
                    self.look.feed(&text);
                }
                Ok(None) => return,
                Err(_) => self.broken = true,
            }
        }
    }

    fn is_settled(&self) -> bool {
        self.broken || is_settled(&self.look)
    }
}

fn is_settled(look: &Look) -> bool {
    look.has_model() || look.progress() != Progress::Open
}

/// Whether some server might decompress the body before it reads it, with the one coding that is known for it.
pub(crate) fn is_compressed(headers: &HeaderMap) -> bool {
    headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .any(|coding| String::from_utf8_lossy(coding.as_bytes()).to_ascii_lowercase().contains("zstd"))
}

fn says_otherwise(headers: &HeaderMap) -> bool {
    let values = headers.get_all(CONTENT_TYPE).iter();
    let said: String = values.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase()).collect();
    !said.is_empty() && !said.contains("json")
}
