//! The string under way in a body, bounded.

use std::borrow::Cow;
use std::fmt;

use serde::Deserializer as _;
use serde::de::Visitor;

/// Longest string that is kept, in bytes as written. A name has at most 350 + 3 · 80 characters to Ollama, and an
/// escape makes six bytes of one; what is longer is no name, unless blanks hide one, and so is an error at the gate.
pub(super) const MAX_STRING: usize = 4096;

/// The raw bytes of the string under way, if anybody may want it.
#[derive(Default)]
pub(super) struct Kept {
    wanted: bool,
    overlong: bool,
    raw: Vec<u8>,
}

// === impl Kept ===

impl Kept {
    pub(super) fn begin(&mut self, wanted: bool) {
        self.wanted = wanted;
        self.overlong = false;
        self.raw.clear();
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if !self.wanted || self.overlong {
            return;
        }
        if self.raw.len() + bytes.len() > MAX_STRING {
            self.overlong = true;
        } else {
            self.raw.extend_from_slice(bytes);
        }
    }

    /// Whether it was longer than [`MAX_STRING`].
    pub(super) fn is_overlong(&self) -> bool {
        self.overlong
    }

    /// Bytes that it holds on to.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.raw.capacity()
    }

    /// The byte that makes it a text that no server has for a name, in place of its last byte: a character that stands
    /// in none. Nothing if it is empty, too long for a name, or ends in such a character.
    pub(super) fn spoiled(&self) -> Option<u8> {
        if self.overlong {
            return None;
        }
        let mut rest = &*self.raw;
        let last = loop {
            let length = match rest {
                [] => return None,
                [b'\\', b'u', ..] => 6,
                [b'\\', ..] => 2,
                _ => 1,
            };
            match rest.get(length..) {
                Some(more) if !more.is_empty() => rest = more,
                _ => break rest,
            }
        };
        match last {
            [byte] if byte.is_ascii() => Some(b' '),
            // The last digit is what may be another: ` `, `?`, `@`, `[`, `` ` `` and `{`.
            [b'\\', b'u', b'0', b'0', digit, _] => match digit {
                b'2' | b'4' | b'6' => Some(b'0'),
                b'3' => Some(b'f'),
                b'5' | b'7' => Some(b'b'),
                _ => None,
            },
            _ => None,
        }
    }

    /// The string with its escapes undone, what is not Unicode in it replaced as Go does; nothing if it was too long.
    pub(super) fn text(&self) -> Option<Cow<'_, str>> {
        if self.overlong {
            return None;
        }
        if !self.raw.contains(&b'\\') {
            return Some(String::from_utf8_lossy(&self.raw));
        }
        let mut quoted = Vec::with_capacity(self.raw.len() + 2);
        quoted.push(b'"');
        quoted.extend_from_slice(&self.raw);
        quoted.push(b'"');
        // As bytes, since as a text serde_json refuses lone surrogates, which Go replaces.
        let bytes = serde_json::Deserializer::from_slice(&quoted).deserialize_bytes(Unescaped).ok()?;
        Some(Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

struct Unescaped;

impl<'de> Visitor<'de> for Unescaped {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        if bytes.len() > MAX_STRING { Err(E::custom("too long")) } else { Ok(bytes.to_vec()) }
    }
}
