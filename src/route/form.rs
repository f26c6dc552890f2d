//! An incremental look at a `multipart/form-data` body (RFC 7578, RFC 2046 §5.1): which model does it name, as Go's
//! `mime/multipart` reads it, which is what acts on it in the end (`TranscriptionMiddleware` of Ollama).
//!
//! The crates there are pull their input, and read what is not quite by the book each in its own way. Here only that is
//! read which every reader reads alike: lines that end in CRLF, a delimiter line of nothing but the delimiter, parameters
//! without continuations (RFC 2231) or escapes in a name. That is what clients write; everything else is
//! [`FormProgress::Unreadable`], and it is for the caller to say so or not to care.
//!
//! As with `FormValue("model")`, values in the URL's query come before those in the form, and the first one counts.
//!
//! Memory: [`MAX_HEAD`] for the head of the part under way, [`MAX_VALUE`] for the model.

mod head;

use std::fmt;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Uri};
use percent_encoding::percent_decode_str;

use super::ModelName;
use head::{Field, field, parameters};

/// Longest head of a part: those that clients write have two or three lines; a file's name is 255 bytes at most, and three
/// times that when it is encoded.
pub const MAX_HEAD: usize = 8 * 1024;

/// Longest model, as in JSON (`kept::MAX_STRING`).
pub const MAX_VALUE: usize = 4096;

/// Longest boundary (RFC 2046 §5.1.1).
const MAX_BOUNDARY: usize = 70;

/// The type whose bodies are forms.
const FORM: &str = "multipart/form-data";

/// What stands before the two hyphens of a delimiter and belongs to it.
const LINE_END: usize = 2;

/// The look itself. Feed it the body in any pieces.
pub struct Form {
    /// CRLF, two hyphens and the boundary.
    delimiter: Vec<u8>,
    progress: FormProgress,
    stage: Stage,
    /// How much of the delimiter the last bytes were.
    matched: usize,
    /// How much of that was not there: at a part's beginning its line end is the one of the line before.
    implied: usize,
    /// The head of the part under way, or what follows a delimiter.
    head: Vec<u8>,
    /// What the part under way says, if it is the model.
    value: Option<Vec<u8>>,
    /// The first model.
    model: Option<String>,
    /// How many models there are.
    models: usize,
}

/// How far a [`Form`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FormProgress {
    /// It goes on.
    Open,
    /// The last delimiter has come; Ollama ignores what follows, and so does the look.
    Complete,
    /// Not a form that every reader reads alike, and why.
    Unreadable(&'static str),
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The delimiter that a body begins with.
    Start,
    /// A part's content, or the delimiter at its end.
    Content,
    /// What follows a delimiter: a line end or two hyphens.
    Delimited,
    /// A part's head.
    Head,
}

// === impl Form ===

impl Form {
    /// For a body of which nothing was read; nothing if no reader would take what it says for a form.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Option<Self> {
        let mut types = headers.get_all(CONTENT_TYPE).iter();
        let said = types.next()?.as_bytes();
        let kind = said.split(|byte| *byte == b';').next().unwrap_or_default();
        // Go lowers the case and takes blanks away as Unicode has it: to it `multİpart` is a form, and so is one with a
        // no-break space behind it. Nobody writes those honestly.
        let odd = !kind.is_ascii();
        if !odd && !kind.trim_ascii().eq_ignore_ascii_case(FORM.as_bytes()) {
            return None;
        }
        let boundary = match types.next() {
            _ if odd => Err("its content-type is not in ASCII"),
            Some(_) => Err("it has more than one content-type"),
            None => boundary(said),
        };
        let (delimiter, progress) = match boundary {
            Ok(boundary) => ([b"\r\n--", boundary].concat(), FormProgress::Open),
            Err(why) => (Vec::new(), FormProgress::Unreadable(why)),
        };
        let mut queried = queried(uri);
        let model = queried.next();
        Some(Self {
            delimiter,
            progress,
            stage: Stage::Start,
            matched: LINE_END,
            implied: LINE_END,
            head: Vec::new(),
            value: None,
            models: usize::from(model.is_some()) + queried.count(),
            model,
        })
    }

    /// Reads on. Once it is not [`FormProgress::Open`] nothing changes any more.
    pub fn feed(&mut self, piece: &[u8]) -> FormProgress {
        let mut rest = piece;
        while let (FormProgress::Open, Some((&byte, after))) = (self.progress, rest.split_first()) {
            if self.stage == Stage::Content && self.matched == 0 && byte != b'\r' {
                // Files are long; nothing but a line end is of interest in them.
                let end = memchr::memchr(b'\r', rest).unwrap_or(rest.len());
                let (content, after) = rest.split_at(end);
                self.content(content);
                rest = after;
                continue;
            }
            match self.stage {
                Stage::Start | Stage::Content => self.delimiter(byte),
                Stage::Delimited => self.delimited(byte),
                Stage::Head => self.head(byte),
            }
            rest = after;
        }
        self.progress
    }

    /// How far it has come.
    pub fn progress(&self) -> FormProgress {
        self.progress
    }

    /// The model that Ollama would take.
    pub fn model(&self) -> Option<ModelName> {
        self.model.as_deref().filter(|model| !model.is_empty()).map(ModelName::new)
    }

    /// Whether there is more than one model, of which another reader may take another.
    pub fn is_doubled(&self) -> bool {
        self.models > 1
    }

    /// A byte that may be one of the delimiter's. Its first byte is a CR and it has no other, so where one does not fit, it
    /// can begin nowhere but there.
    fn delimiter(&mut self, byte: u8) {
        if self.delimiter.get(self.matched) == Some(&byte) {
            self.matched += 1;
            if self.matched == self.delimiter.len() {
                self.part_ends();
            }
            return;
        }
        if self.stage == Stage::Start {
            self.progress = FormProgress::Unreadable("it does not begin with its boundary");
            return;
        }
        if self.value.is_some() {
            let content = self.delimiter.get(self.implied..self.matched).unwrap_or_default().to_vec();
            self.content(&content);
        }
        (self.matched, self.implied) = (0, 0);
        if byte == b'\r' {
            self.matched = 1;
        } else {
            self.content(&[byte]);
        }
    }

    /// What is no delimiter.
    fn content(&mut self, content: &[u8]) {
        let Some(value) = &mut self.value else { return };
        if value.len() + content.len() > MAX_VALUE {
            self.progress = FormProgress::Unreadable("its model is longer than any name");
        } else {
            value.extend_from_slice(content);
        }
    }

    /// A part is over, if there was one.
    fn part_ends(&mut self) {
        self.stage = Stage::Delimited;
        self.head.clear();
        let Some(value) = self.value.take() else { return };
        match String::from_utf8(value) {
            Ok(value) => {
                self.models = self.models.saturating_add(1);
                self.model.get_or_insert(value);
            }
            Err(_) => self.progress = FormProgress::Unreadable("its model is not Unicode"),
        }
    }

    fn delimited(&mut self, byte: u8) {
        self.head.push(byte);
        match self.head.as_slice() {
            b"\r" | b"-" => {}
            b"\r\n" => {
                self.head.clear();
                self.stage = Stage::Head;
            }
            b"--" => self.progress = FormProgress::Complete,
            _ => self.progress = FormProgress::Unreadable("a boundary is followed by something else than a line end"),
        }
    }

    fn head(&mut self, byte: u8) {
        let after_cr = self.head.last() == Some(&b'\r');
        if (byte == b'\n') != after_cr {
            self.progress = FormProgress::Unreadable("a line of a part's head does not end in CRLF");
            return;
        }
        if self.head.len() >= MAX_HEAD {
            self.progress = FormProgress::Unreadable("a part's head is too long");
            return;
        }
        self.head.push(byte);
        if self.head != b"\r\n" && !self.head.ends_with(b"\r\n\r\n") {
            return;
        }
        match field(&self.head) {
            Ok(Field::Model) => self.value = Some(Vec::new()),
            Ok(Field::Other) => {}
            Err(why) => self.progress = FormProgress::Unreadable(why),
        }
        // A delimiter may follow at once, as the whole of an empty part.
        (self.stage, self.matched, self.implied) = (Stage::Content, LINE_END, LINE_END);
    }
}

impl fmt::Debug for Form {
    /// Without what was read: that is somebody's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Form").field("progress", &self.progress).finish_non_exhaustive()
    }
}

/// The boundary that a content type gives.
fn boundary(content_type: &[u8]) -> Result<&[u8], &'static str> {
    let (_, parameters) = parameters(content_type).ok_or("its content-type is malformed")?;
    if parameters.iter().any(|(name, _)| name.contains('*')) {
        return Err("its content-type has a parameter in pieces");
    }
    let mut boundaries = parameters.into_iter().filter(|(name, _)| name == "boundary").map(|(_, value)| value);
    let boundary = boundaries.next().ok_or("its content-type names no boundary")?;
    // RFC 2046 §5.1.1: `bchars`, of which the last is no blank.
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
    let valid = (1..=MAX_BOUNDARY).contains(&boundary.len()) && boundary.iter().all(allowed);
    if boundaries.next().is_some() || !valid || boundary.ends_with(b" ") {
        return Err("its boundary is malformed");
    }
    Ok(boundary)
}

/// The models that the query names, as Go's `url.ParseQuery` reads it.
fn queried(uri: &Uri) -> impl Iterator<Item = String> {
    let text = |text: &str| {
        let text = text.replace('+', " ");
        percent_decode_str(&text).decode_utf8_lossy().into_owned()
    };
    let pairs = uri.query().unwrap_or_default().split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(key, _)| text(key) == "model").map(move |(_, value)| text(value))
}

#[cfg(test)]
mod go_vectors;
#[cfg(test)]
mod tests;
