//! What two nodes say to each other about vouching, on the control stream. Nothing is signed: it holds as heard from the
//! node itself, over a connection on which that has proved its key, and so it goes one hop. What it means is written in
//! [`trust`](crate::trust) and [`pairing`](crate::pairing).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::id::{Id, NodeName};

/// Servers in one message that are read. A voucher of this program has no more.
pub const MAX_VOUCHED: usize = 256;

/// One message about vouching.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Vouching {
    /// From the dialler: a person there goes by the other side's word, and wants to hear it.
    Ask,
    /// The answer, and sent again on each change and every so often: all whom it vouches for.
    Vouched(Vec<Vouched>),
}

/// One server that a node vouches for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouched {
    /// The key.
    pub id: Id,
    /// What its node is called: a label.
    pub name: NodeName,
    /// Where it is reached: a hint where to dial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

// === impl Vouching ===

impl Vouching {
    /// No more of it than is read.
    pub(super) fn bounded(mut self) -> Self {
        if let Self::Vouched(all) = &mut self {
            all.truncate(MAX_VOUCHED);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::control::Message;
    use crate::wire::frame::{HEADER, Kind};

    fn vouched(n: usize) -> Vouched {
        // Nothing that can be said of a server is longer.
        Vouched {
            id: Id::of_spki(&n.to_be_bytes()),
            name: NodeName::lossy(&"n".repeat(99)),
            address: Some("[fe80:1111:2222:3333:4444:5555:6666:7777%4294967295]:65535".parse().unwrap()),
            until: u64::MAX,
        }
    }

    #[test]
    fn as_many_servers_as_are_read_fit_a_frame_and_survive_and_more_are_left_out() {
        let all = |count| Message::Vouching(Vouching::Vouched((0..count).map(vouched).collect()));
        for message in [all(0), all(MAX_VOUCHED), Message::Vouching(Vouching::Ask)] {
            let frame = message.encode().unwrap();
            assert_eq!(Message::decode(Kind::Vouching, &frame[HEADER..]).unwrap(), message);
        }
        let Message::Vouching(more) = all(MAX_VOUCHED + 9) else { panic!() };
        let read = Message::decode(Kind::Vouching, &serde_json::to_vec(&more).unwrap()).unwrap();
        assert_eq!(read, all(MAX_VOUCHED));
    }

    #[test]
    fn later_fields_are_no_error_and_a_key_that_is_none_is() {
        let id = Id::of_spki(b"1");
        let good = format!(r#"{{"vouched":[{{"id":"{id}","name":"g\u001bpu","until":9,"later":1}}]}}"#);
        let Message::Vouching(Vouching::Vouched(read)) = Message::decode(Kind::Vouching, good.as_bytes()).unwrap()
        else {
            panic!()
        };
        assert_eq!((read[0].id, read[0].name.as_str()), (id, "g-pu"));
        let bad = good.replace(&id.to_string(), "nobody");
        assert!(Message::decode(Kind::Vouching, bad.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_said_is_an_error_or_read_the_same_again(
            name in ".{0,90}", address in "[0-9a-f:.%\\[\\]]{0,50}", until: u64, key: [u8; 32], rest in ".{0,40}", cut: bool,
        ) {
            let server = serde_json::json!({"id": Id::from_bytes(key), "name": name, "address": address, "until": until});
            let mut text = serde_json::json!({"vouched": [server]}).to_string();
            if cut {
                text = text.chars().take(rest.len() * 4).chain(rest.chars()).collect();
            }
            if let Ok(message) = Message::decode(Kind::Vouching, text.as_bytes()) {
                let written = message.encode().unwrap();
                prop_assert_eq!(Message::decode(Kind::Vouching, &written[HEADER..]).unwrap(), message);
            }
        }
    }
}
