//! What two nodes say to each other about trust, on the control stream: the steps of pairing, and an invitation that is
//! redeemed. What they mean and why they are safe is written in [`pairing`](crate::pairing).

use std::fmt;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// One message about trust.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dealing {
    /// A step of pairing.
    Pair(Pairing),
    /// From the dialler: it was given an invitation of the other side's.
    Redeem(Redeem),
    /// The answer: proof that the other side made it, or nothing.
    Redeemed(Option<Hex<32>>),
}

/// A step of pairing, and for which of the times that somebody has typed `ollana trust`: the numbers that the two sides
/// chose at random when it was typed keep what is late from being taken for what is new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pairing {
    /// With an offer and a withdrawal the sender's number; with the other steps that of the one who shall read it.
    pub round: u64,
    /// The step.
    pub step: PairStep,
}

/// A step of pairing. Who has the smaller ID is the initiator, whoever opened the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PairStep {
    /// A person has typed `ollana trust` and the other's name here.
    Offer,
    /// Initiator: the commitment to a nonce that it has chosen.
    Commit(Hex<32>),
    /// Responder: its nonce, chosen without having seen the other.
    Nonce(Hex<32>),
    /// Initiator: the nonce that it was committed to.
    Reveal(Hex<32>),
    /// The person here has confirmed the code.
    Confirmed,
    /// The person here is no longer at it; `mismatch`: said that the codes differ.
    Withdrawn {
        /// Whether the person said no to a code.
        #[serde(default)]
        mismatch: bool,
    },
}

/// An invitation that somebody was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redeem {
    /// Which one.
    pub invitation: Hex<16>,
    /// An Ed25519 signature by the invitation's key over this session.
    pub proof: Hex<64>,
}

/// Bytes of a fixed number, in hexadecimal. What they are may be secret until it is said, so `Debug` does not show them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

// === impl Hex ===

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hex<{N}>")
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&HEXLOWER.encode(&self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = HEXLOWER.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| serde::de::Error::custom(format_args!("not {N} bytes in hexadecimal")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::control::Message;
    use crate::wire::frame::{HEADER, Kind};

    #[test]
    fn every_dealing_fits_its_frame_and_survives() {
        let hex = Hex([0xab; 32]);
        let steps = [
            PairStep::Offer,
            PairStep::Commit(hex),
            PairStep::Nonce(hex),
            PairStep::Reveal(hex),
            PairStep::Confirmed,
            PairStep::Withdrawn { mismatch: true },
        ];
        let redeem = Redeem { invitation: Hex([1; 16]), proof: Hex([2; 64]) };
        let others = [Dealing::Redeem(redeem), Dealing::Redeemed(Some(hex)), Dealing::Redeemed(None)];
        for dealing in steps.map(|step| Dealing::Pair(Pairing { round: u64::MAX, step })).into_iter().chain(others) {
            let message = Message::Trust(dealing);
            let frame = message.encode().unwrap();
            assert_eq!(Message::decode(Kind::Trust, &frame[HEADER..]).unwrap(), message);
        }
    }

    #[test]
    fn bytes_of_another_number_are_refused_and_not_shown() {
        for wrong in ["\"ab\"", "\"zz\"", "7", "\"\""] {
            assert!(serde_json::from_str::<Hex<2>>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(format!("{:?}", Hex([1, 2])), "Hex<2>");
    }
}
