//! The discovery beacon: what a node says about itself to everyone on a link, in one UDP datagram.
//!
//! Numbers are big-endian. A beacon has at most [`MAX_LEN`] bytes:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `OLNA` |
//! | 4 | 1 | protocol version, 1 |
//! | 5 | 1 | kind: 1 announce, 2 query, 3 goodbye |
//! | 6 | 2 | UDP port of its QUIC endpoint, not 0 |
//! | 8 | 32 | ID, the SHA-256 of its public key |
//! | 40 | 8 | instance, random at each start |
//! | 48 | 1 | *n*, length of the name, not 0 |
//! | 49 | *n* | name, UTF-8 |
//! | 49+*n* | … | extensions until the end: type (1 byte), length *l* (1 byte), value (*l* bytes) |
//!
//! What a later version does to this layout:
//! - A field that older nodes may ignore becomes an extension, and the version stays 1. Extensions of an unknown type
//!   are skipped; each must be whole, or the beacon is refused. Type 0 is padding. No other type is in use yet.
//! - What older nodes would misunderstand gets another version. A beacon of another version is ignored whole, and so is
//!   one of an unknown kind.
//!
//! A query says all that an announcement says, and asks for everyone else's. It is padded to [`MIN_QUERY_LEN`] bytes,
//! which no announcement reaches, and a shorter one need not be answered: whoever forges queries never gets more bytes
//! sent by a node than he sent himself (the rule of RFC 9000 §8.1, with a factor of one).

use crate::id::{Id, Instance, MAX_NAME, NodeName};

/// Longest beacon in bytes. Fits every link (the IPv6 minimum MTU is 1280) with room for later fields.
pub const MAX_LEN: usize = 512;
/// Shortest query in bytes that is answered: above [`MAX_ANNOUNCE_LEN`].
pub const MIN_QUERY_LEN: usize = 128;
/// Longest announcement in bytes that this version makes.
pub const MAX_ANNOUNCE_LEN: usize = NAME_AT + MAX_NAME;

const MAGIC: [u8; 4] = *b"OLNA";
const VERSION: u8 = 1;
const NAME_AT: usize = 49;
const EXTENSION_HEAD: usize = 2;
const PADDING: u8 = 0;

const _: () = assert!(MAX_ANNOUNCE_LEN < MIN_QUERY_LEN && MIN_QUERY_LEN < MAX_LEN);

/// What a node says about itself. A claim: nothing in it is proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beacon {
    /// Why it is sent.
    pub kind: BeaconKind,
    /// The UDP port where it takes QUIC connections, never 0.
    pub quic_port: u16,
    /// Who it claims to be.
    pub id: Id,
    /// Which run of that node.
    pub instance: Instance,
    /// What people call it.
    pub name: NodeName,
}

/// Why a beacon is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BeaconKind {
    /// "I am here."
    Announce,
    /// "I am here. Who else is?"
    Query,
    /// "I am about to leave." A reason to check, never to believe.
    Goodbye,
}

// === impl Beacon ===

impl Beacon {
    /// The datagram.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(MIN_QUERY_LEN);
        out.extend_from_slice(&MAGIC);
        out.push(VERSION);
        out.push(self.kind.code());
        out.extend_from_slice(&self.quic_port.to_be_bytes());
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&self.instance.0.to_be_bytes());
        // A `NodeName` has 1 to 63 bytes; `take` states the bound once more where it matters.
        let name = self.name.as_str().as_bytes();
        let n = u8::try_from(name.len().min(MAX_NAME)).unwrap_or(0);
        out.push(n);
        out.extend(name.iter().take(usize::from(n)));
        if self.kind == BeaconKind::Query {
            pad(&mut out, MIN_QUERY_LEN);
        }
        out
    }

    /// Reads a datagram, whoever sent it.
    ///
    /// # Errors
    /// [`BeaconError`] says why the datagram is not a beacon of this version. All but [`BeaconError::Version`] and
    /// [`BeaconError::Kind`] mean that it is damaged, or something else altogether.
    pub fn parse(datagram: &[u8]) -> Result<Self, BeaconError> {
        if datagram.len() > MAX_LEN {
            return Err(BeaconError::TooLong(datagram.len()));
        }
        let mut rest = datagram;
        if take::<4>(&mut rest)? != MAGIC {
            return Err(BeaconError::Magic);
        }
        let [version, kind] = take(&mut rest)?;
        if version != VERSION {
            return Err(BeaconError::Version(version));
        }
        let kind = BeaconKind::of(kind)?;
        let quic_port = u16::from_be_bytes(take(&mut rest)?);
        if quic_port == 0 {
            return Err(BeaconError::Port);
        }
        let id = Id::from_bytes(take(&mut rest)?);
        let instance = Instance(u64::from_be_bytes(take(&mut rest)?));
        let [n] = take(&mut rest)?;
        if n == 0 {
            return Err(BeaconError::Name);
        }
        let name = rest.split_off(..usize::from(n)).ok_or(BeaconError::Truncated)?;
        let name = NodeName::lossy(&String::from_utf8_lossy(name));
        while !rest.is_empty() {
            let [_kind, length] = take(&mut rest)?;
            rest.split_off(..usize::from(length)).ok_or(BeaconError::Truncated)?;
        }
        Ok(Self { kind, quic_port, id, instance, name })
    }
}

// === impl BeaconKind ===

impl BeaconKind {
    fn code(self) -> u8 {
        match self {
            Self::Announce => 1,
            Self::Query => 2,
            Self::Goodbye => 3,
        }
    }

    fn of(code: u8) -> Result<Self, BeaconError> {
        match code {
            1 => Ok(Self::Announce),
            2 => Ok(Self::Query),
            3 => Ok(Self::Goodbye),
            other => Err(BeaconError::Kind(other)),
        }
    }
}

/// Why a datagram is not a beacon for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// More than [`MAX_LEN`] bytes.
    #[error("{0} bytes are more than a beacon has")]
    TooLong(usize),
    /// It ends in the middle of a field.
    #[error("it ends in the middle of a field")]
    Truncated,
    /// It does not begin as a beacon does.
    #[error("it is not a beacon")]
    Magic,
    /// Another protocol version, to be ignored.
    #[error("it is of protocol version {0}, this program speaks {VERSION}")]
    Version(u8),
    /// A kind that this version does not know, to be ignored.
    #[error("it is of the unknown kind {0}")]
    Kind(u8),
    /// Port 0, which nobody can dial.
    #[error("its port is 0")]
    Port,
    /// An empty name.
    #[error("it has no name")]
    Name,
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], BeaconError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(BeaconError::Truncated)?;
    *rest = tail;
    Ok(*head)
}

/// Fills up to `len` with one padding extension (at least its head, so the result may be up to a byte longer).
fn pad(out: &mut Vec<u8>, len: usize) {
    let missing = len.saturating_sub(out.len());
    if missing > 0 {
        let value = u8::try_from(missing.saturating_sub(EXTENSION_HEAD)).unwrap_or(u8::MAX);
        out.extend_from_slice(&[PADDING, value]);
        out.resize(out.len() + usize::from(value), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beacon() -> impl Strategy<Value = Beacon> {
        let kind = prop_oneof![Just(BeaconKind::Announce), Just(BeaconKind::Query), Just(BeaconKind::Goodbye)];
        (kind, 1u16.., any::<[u8; 32]>(), any::<u64>(), ".{0,80}").prop_map(|(kind, quic_port, id, instance, name)| {
            Beacon {
                kind,
                quic_port,
                id: Id::from_bytes(id),
                instance: Instance(instance),
                name: NodeName::lossy(&name),
            }
        })
    }

    fn fixed() -> Beacon {
        Beacon {
            kind: BeaconKind::Announce,
            quic_port: 11435,
            id: Id::from_bytes([7; 32]),
            instance: Instance(0x0102_0304_0506_0708),
            name: NodeName::lossy("gpu1"),
        }
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut expected = b"OLNA\x01\x01\x2c\xab".to_vec();
        expected.extend_from_slice(&[7; 32]);
        expected.extend_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 4]);
        expected.extend_from_slice(b"gpu1");
        assert_eq!(fixed().encode(), expected);
    }

    #[test]
    fn a_name_that_would_deceive_in_a_terminal_is_made_harmless() {
        let mut bytes = fixed().encode();
        bytes.truncate(NAME_AT - 1);
        bytes.extend_from_slice(b"\x06\x1b[2J\xff\n");
        assert_eq!(Beacon::parse(&bytes).unwrap().name.as_str(), "--2J--");
    }

    #[test]
    fn other_versions_and_kinds_are_told_from_damage() {
        let mut bytes = fixed().encode();
        bytes[5] = 9;
        assert_eq!(Beacon::parse(&bytes), Err(BeaconError::Kind(9)));
        bytes[4] = 2;
        assert_eq!(Beacon::parse(&bytes), Err(BeaconError::Version(2)));
        bytes[0] = b'X';
        assert_eq!(Beacon::parse(&bytes), Err(BeaconError::Magic));
    }

    #[test]
    fn port_zero_an_empty_name_and_too_many_bytes_are_refused() {
        let mut bytes = fixed().encode();
        bytes[6..8].fill(0);
        assert_eq!(Beacon::parse(&bytes), Err(BeaconError::Port));
        let mut bytes = fixed().encode();
        bytes[48] = 0;
        assert_eq!(Beacon::parse(&bytes), Err(BeaconError::Name));
        let mut bytes = fixed().encode();
        while bytes.len() <= MAX_LEN {
            bytes.extend_from_slice(&[9, 0]);
        }
        assert_eq!(Beacon::parse(&bytes), Err(BeaconError::TooLong(bytes.len())));
        bytes.truncate(bytes.len() - 2);
        assert_eq!(Beacon::parse(&bytes), Ok(fixed()));
    }

    proptest! {
        #[test]
        fn a_beacon_comes_back_as_it_was_sent(beacon in beacon()) {
            let bytes = beacon.encode();
            prop_assert!(bytes.len() <= MAX_LEN);
            prop_assert_eq!(Beacon::parse(&bytes), Ok(beacon));
        }

        #[test]
        fn an_answer_is_never_longer_than_the_query(query in beacon(), answer in beacon()) {
            let query = Beacon { kind: BeaconKind::Query, ..query }.encode();
            let answer = Beacon { kind: BeaconKind::Announce, ..answer }.encode();
            prop_assert!(query.len() >= MIN_QUERY_LEN && answer.len() < query.len());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..700)) {
            let _ = Beacon::parse(&bytes);
        }

        #[test]
        fn arbitrary_bytes_after_a_good_head_never_panic(head in beacon(), tail in prop::collection::vec(any::<u8>(), 0..500)) {
            let mut bytes = head.encode();
            bytes.truncate(NAME_AT - 1);
            bytes.extend(tail);
            if let Ok(parsed) = Beacon::parse(&bytes) {
                prop_assert_eq!(parsed.id, head.id);
            }
        }

        #[test]
        fn a_truncated_beacon_is_refused(beacon in beacon(), cut: prop::sample::Index) {
            let bytes = beacon.encode();
            let end = NAME_AT + beacon.name.as_str().len();
            let cut = cut.index(bytes.len());
            // Without its padding a query is still a whole beacon; it is too short to be answered.
            let parsed = Beacon::parse(&bytes[..cut]);
            prop_assert_eq!(parsed.is_ok(), cut == end, "{} of {}", cut, bytes.len());
        }

        #[test]
        fn fields_of_later_versions_are_skipped(beacon in beacon(), kind in 1u8.., value in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = beacon.encode();
            bytes.push(kind);
            bytes.push(u8::try_from(value.len()).unwrap());
            bytes.extend(&value);
            prop_assert_eq!(Beacon::parse(&bytes), Ok(beacon));
        }
    }
}
