//! Who a node is (its ID, the instance that is running, the name people call it by) and the words for what it may do.
//!
//! An ID is the SHA-256 of a public key (its `SubjectPublicKeyInfo` in DER). Shown to people it is base32 in eight
//! groups of seven characters, every fourteenth character a Luhn mod 32 check character, the form that Syncthing's
//! [device IDs](https://docs.syncthing.net/dev/device-ids.html) made familiar: a slip of the finger is an error and not
//! another node.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The alphabet of RFC 4648 base32, and so the digits of the check characters.
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
/// 256 bits are 52 base32 characters; each 13 of them are followed by their check character.
const BLOCK: usize = 13;
/// Characters between two dashes.
const GROUP: usize = 7;
/// Below this a prefix is too easily hit by chance, or by someone who searches for a key that begins with it.
pub const MIN_PREFIX: usize = 8;
/// Longest name in bytes: a DNS label's.
pub const MAX_NAME: usize = 63;

/// A node's identity: the SHA-256 of its public key. Always compared whole.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    /// The ID of the key whose `SubjectPublicKeyInfo` (DER) this is.
    pub fn of_spki(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }

    /// The ID with these 32 bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the hash.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first group: enough for a log line or to tell two nodes of one name apart, never to decide on.
    pub fn short(&self) -> String {
        self.digits().into_iter().take(GROUP).map(char::from).collect()
    }

    /// Whether the ID begins with `prefix`, dashes and case aside. Prefixes below [`MIN_PREFIX`] match nothing.
    pub fn matches_prefix(&self, prefix: &str) -> bool {
        let wanted = normalise(prefix);
        wanted.len() >= MIN_PREFIX && self.digits().starts_with(&wanted)
    }

    /// The 56 characters, check characters included, without dashes.
    fn digits(&self) -> Vec<u8> {
        let data = BASE32_NOPAD.encode(&self.0);
        data.as_bytes().chunks(BLOCK).flat_map(|block| block.iter().copied().chain([check_character(block)])).collect()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, digit) in self.digits().into_iter().enumerate() {
            if i > 0 && i % GROUP == 0 {
                f.write_str("-")?;
            }
            write!(f, "{}", char::from(digit))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = normalise(text);
        if digits.len() != (BLOCK + 1) * 4 {
            return Err(ParseIdError::Length(digits.len()));
        }
        let mut data = Vec::with_capacity(BLOCK * 4);
        for (i, block) in digits.chunks(BLOCK + 1).enumerate() {
            match block.split_last() {
                Some((check, block)) if check_character(block) == *check => data.extend_from_slice(block),
                _ => return Err(ParseIdError::Check(i + 1)),
            }
        }
        let bytes = BASE32_NOPAD.decode(&data).map_err(|_| ParseIdError::Alphabet)?;
        bytes.try_into().map(Self).map_err(|_| ParseIdError::Alphabet)
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Why a text is not an ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseIdError {
    /// Not 56 characters once the dashes are gone.
    #[error("an ID has 56 letters and digits beside the dashes, this has {0}")]
    Length(usize),
    /// A check character does not fit.
    #[error("there is a slip in characters {} to {} of the ID: its check character does not fit", (.0 - 1) * 14 + 1, .0 * 14)]
    Check(usize),
    /// A character outside base32.
    #[error("an ID is made of the letters A to Z and the digits 2 to 7")]
    Alphabet,
}

fn normalise(text: &str) -> Vec<u8> {
    text.bytes().filter(|b| *b != b'-' && !b.is_ascii_whitespace()).map(|b| b.to_ascii_uppercase()).collect()
}

/// Luhn mod N with N = 32, weights 1, 2, 1, 2 … from the left as Syncthing computes it.
fn check_character(block: &[u8]) -> u8 {
    let (sum, _) = block.iter().fold((0usize, 1usize), |(sum, factor), byte| {
        let digit = ALPHABET.iter().position(|a| a == byte).unwrap_or(0) * factor;
        (sum + digit / 32 + digit % 32, 3 - factor)
    });
    ALPHABET.get((32 - sum % 32) % 32).copied().unwrap_or(b'A')
}

/// One run of `ollana serve`: random at each start, so that a restart and a clone of a disk can both be told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(pub u64);

impl Instance {
    /// A new random instance number.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0.to_be_bytes()))
    }
}

/// What people call a node: a label, never authority.
///
/// Holds letters and digits of ASCII, `-`, `_` and `.`, at most [`MAX_NAME`] of them. So it is safe in a terminal, in
/// an HTTP header and in a path, whoever chose it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(String);

impl NodeName {
    /// A name out of whatever text a stranger or a host name gives: other characters become `-`, an empty one `node`.
    pub fn lossy(text: &str) -> Self {
        let name: String = text.chars().take(MAX_NAME).map(|c| if is_name_character(c) { c } else { '-' }).collect();
        if name.is_empty() { Self("node".to_owned()) } else { Self(name) }
    }

    /// `name-SUFFIX`, the name cut as short as it must be.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        let room = MAX_NAME.saturating_sub(suffix.len() + 1);
        Self::lossy(&format!("{}-{suffix}", self.0.chars().take(room).collect::<String>()))
    }

    /// The name that the node of this ID gives itself, where this is the one it is shown under: without the beginning of
    /// its ID that [`with_suffix`](Self::with_suffix) adds if several bear the name.
    pub fn plain(&self, id: &Id) -> Self {
        match self.0.strip_suffix(&id.short()).and_then(|name| name.strip_suffix('-')) {
            Some(plain) if !plain.is_empty() => Self(plain.to_owned()),
            _ => self.clone(),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Names are compared without case, as host names are.
    pub fn is(&self, other: &str) -> bool {
        self.0.eq_ignore_ascii_case(other)
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for NodeName {
    type Err = ParseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() || text.len() > MAX_NAME {
            return Err(ParseNameError::Length(text.len()));
        }
        match text.chars().find(|c| !is_name_character(*c)) {
            Some(c) => Err(ParseNameError::Character(c)),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for NodeName {
    /// Lossy: a name that a stranger chose must not make the rest unreadable.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::lossy(&String::deserialize(deserializer)?))
    }
}

/// Whether `text` means the node of this ID that is shown as `label`: by its name, by its name with the beginning of the
/// ID behind it (as it is shown where several bear the name), by the ID or by at least [`MIN_PREFIX`] characters of it.
///
/// A name is a label that anyone may bear, also one that looks like another node's ID: so a text may mean several, and
/// none of them before the others. Only a whole ID ([`Id::from_str`]) means one for certain.
pub fn means(text: &str, label: &NodeName, id: &Id) -> bool {
    let plain = label.plain(id);
    plain.is(text) || plain.with_suffix(&id.short()).is(text) || label.is(text) || id.matches_prefix(text)
}

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNameError {
    /// Empty or too long.
    #[error("a name has 1 to {MAX_NAME} characters, this has {0}")]
    Length(usize),
    /// A character that does not belong in a name.
    #[error("a name is made of letters, digits, '-', '_' and '.', not of {0:?}")]
    Character(char),
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

/// Whether this node sends prompts to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Use {
    /// It does.
    Yes,
    /// Not before a person has typed `ollana trust`.
    Pending,
    /// A person said no, or nothing was decided.
    #[default]
    No,
}

/// What a peer may do at a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Nothing but to be told so.
    #[default]
    None,
    /// Run and look at models.
    Infer,
    /// Also change them.
    Manage,
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Yes => "yes",
            Self::Pending => "pending",
            Self::No => "no",
        })
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Infer => "infer",
            Self::Manage => "manage",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn check_characters_are_those_of_syncthing() {
        // The device ID that Syncthing's documentation prints, its check characters included.
        let id = "MFZWI3D-BONSGYC-YLTMRWG-C43ENR5-QXGZDMM-FZWI3DP-BONSGYY-LTMRWAD";
        assert_eq!(id.parse::<Id>().unwrap().to_string(), id);
    }

    #[test]
    fn a_slip_is_an_error_that_says_where() {
        let id = Id::of_spki(b"key").to_string();
        let (first, rest) = id.split_at(1);
        let slipped = format!("{}{rest}", if first == "A" { "B" } else { "A" });
        assert_eq!(slipped.parse::<Id>(), Err(ParseIdError::Check(1)));
        assert_eq!("ABC".parse::<Id>(), Err(ParseIdError::Length(3)));
    }

    #[test]
    fn a_strangers_name_loses_what_could_deceive() {
        assert_eq!(NodeName::lossy("gpu\u{202e}1\x1b[2J\n").as_str(), "gpu-1--2J-");
        assert_eq!(NodeName::lossy("").as_str(), "node");
        assert!("gpu 1".parse::<NodeName>().is_err());
    }

    proptest! {
        #[test]
        fn an_id_survives_being_shown(bytes: [u8; 32], lower: bool) {
            let id = Id::from_bytes(bytes);
            let shown = id.to_string();
            let typed = if lower { shown.to_lowercase().replace('-', "") } else { shown.clone() };
            prop_assert_eq!(typed.parse::<Id>().unwrap(), id);
            prop_assert!(id.matches_prefix(&shown[..9]));
            prop_assert!(!id.matches_prefix(&shown[..7]));
        }
    }
}
