//! The head of a part: is it the model?

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    /// The value of `model`.
    Model,
    /// Something else.
    Other,
}

/// A value and its parameters.
pub(super) type Value<'a> = (&'a [u8], Vec<(String, &'a [u8])>);

/// Codings of a part's content that leave it as it is. Go undoes `quoted-printable` and no other.
const PLAIN: [&str; 3] = ["7bit", "8bit", "binary"];

/// What a part with this head is, or why it cannot be told. Every line ends in CRLF, an empty one is the last.
pub(super) fn field(head: &[u8]) -> Result<Field, &'static str> {
    let (mut disposition, mut plain) = (None, true);
    for line in head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line)) {
        if line.is_empty() {
            continue;
        }
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err("a part's head has a control character");
        }
        // This refuses lines that go on with a blank as well.
        let (name, value) = split_once(line, b':').ok_or("a line of a part's head has no name")?;
        if name.is_empty() || !name.iter().all(is_token) {
            return Err("the name of a line in a part's head is malformed");
        }
        if name.eq_ignore_ascii_case(b"content-disposition") && disposition.replace(value).is_some() {
            return Err("a part has two content-dispositions");
        }
        if name.eq_ignore_ascii_case(b"content-transfer-encoding") {
            plain &= PLAIN.iter().any(|coding| value.trim_ascii().eq_ignore_ascii_case(coding.as_bytes()));
        }
    }
    let disposition = disposition.ok_or("a part has no content-disposition")?;
    let (kind, parameters) = parameters(disposition).ok_or("a part's content-disposition is malformed")?;
    if !kind.eq_ignore_ascii_case(b"form-data") {
        return Err("a part's content-disposition is not form-data");
    }
    if parameters.iter().any(|(name, _)| name.starts_with("name*")) {
        return Err("a part's name is in pieces");
    }
    let mut names = parameters.iter().filter(|(name, _)| name == "name").map(|(_, value)| value);
    let name = names.next().ok_or("a part has no name")?;
    if names.next().is_some() || name.contains(&b'\\') {
        return Err("a part's name is malformed");
    }
    if name != b"model" {
        return Ok(Field::Other);
    }
    if parameters.len() > 1 {
        return Err("its model is sent as a file");
    }
    if !plain {
        return Err("its model is sent in a transfer encoding");
    }
    Ok(Field::Model)
}

/// A value and its parameters (RFC 2045 §5.1): names in lower case, values without their quotes but with what escapes are
/// in them. Nothing if it is not by the book.
pub(super) fn parameters(text: &[u8]) -> Option<Value<'_>> {
    let end = text.iter().position(|byte| *byte == b';').unwrap_or(text.len());
    let (value, mut rest) = text.split_at(end);
    let mut parameters = Vec::new();
    while let Some(after) = rest.trim_ascii_start().strip_prefix(b";") {
        let (name, after) = split_once(after.trim_ascii_start(), b'=')?;
        if name.is_empty() || !name.iter().all(is_token) {
            return None;
        }
        let (value, after) = match after.strip_prefix(b"\"") {
            Some(quoted) => unquoted(quoted)?,
            None => after.split_at(after.iter().position(|byte| !is_token(byte)).unwrap_or(after.len())),
        };
        parameters.push((String::from_utf8_lossy(name).to_ascii_lowercase(), value));
        rest = after;
    }
    rest.trim_ascii().is_empty().then_some((value.trim_ascii(), parameters))
}

/// What stands before the closing quote and what behind it. A backslash escapes what would need it and nothing else, as
/// Go has it: browsers write `C:\x.wav` as it is.
fn unquoted(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut at = 0;
    loop {
        match text.get(at)? {
            b'"' => return Some((text.get(..at)?, text.get(at + 1..)?)),
            b'\\' if text.get(at + 1).is_some_and(is_special) => at += 2,
            _ => at += 1,
        }
    }
}

/// `token` of RFC 2045 §5.1.
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_graphic() && !is_special(byte)
}

/// `tspecials` of RFC 2045 §5.1.
fn is_special(byte: &u8) -> bool {
    b"()<>@,;:\\\"/[]?=".contains(byte)
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at + 1..)?))
}
