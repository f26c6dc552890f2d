//! How a request went, kept for whoever asks afterwards: who could have taken it, what each would have cost it, who got it
//! and when. Never what was in it.

use std::fmt;
use std::str::FromStr;

use data_encoding::BASE32_NOPAD;
use serde::{Deserialize, Serialize};

use crate::id::{Id, NodeName};

/// The ID of a request on its way through the mesh: in the answer's [`REQUEST_HEADER`](super::REQUEST_HEADER), in the logs of
/// both nodes, and what `ollana explain` takes. Random, and means nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct RequestId([u8; 5]);

/// This is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request's ID has eight letters and digits, as in the header `ollana-request` of its answer")]
pub struct NoRequestId;

/// How one request went, or goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Account {
    /// Its ID.
    pub id: RequestId,
    /// When it came, in milliseconds since 1970.
    pub at_ms: u64,
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// The model that it is routed by.
    pub model: Option<String>,
    /// Tokens of its prompt, as estimated from its length.
    pub prompt_tokens: Option<u32>,
    /// Each time that it was decided where it should go; the first and the latest few.
    pub looks: Vec<Look>,
    /// Where it was sent.
    pub tries: Vec<Try>,
    /// Status of what the application got, once it got something.
    pub status: Option<u16>,
    /// Why the mesh itself answered, if it did.
    pub refusal: Option<String>,
    /// Milliseconds until it was sent to the one that answered.
    pub sent_ms: Option<u64>,
    /// Milliseconds until the head of the answer was there.
    pub head_ms: Option<u64>,
    /// Milliseconds until the answer was over.
    pub end_ms: Option<u64>,
    /// Why the answer did not come to its end, if it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<CutOff>,
}

/// Why an answer did not come to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CutOff {
    /// The application closed the connection.
    Cancelled,
    /// The provider failed: how.
    Failed(String),
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Look {
    /// Milliseconds after the request came.
    pub after_ms: u64,
    /// What was decided.
    pub decision: Decision,
    /// Who could have taken it, and what each would have cost it.
    pub servers: Vec<Weighed>,
}

/// What was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Decision {
    /// It was sent to the best.
    Send,
    /// It queues at the one or two that are marked.
    Queue,
    /// It goes on waiting where it is.
    Stay,
    /// All of them are full.
    Refuse,
}

/// One server at a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    /// Its name.
    pub peer: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Whether the decision was for it.
    pub chosen: bool,
    /// Whether it has the model in memory.
    pub warm: bool,
    /// Requests for the model that run there, as it said.
    pub running: u32,
    /// Requests for the model that wait there, ours included.
    pub queued: f32,
    /// What runs at a time there.
    pub slots: u32,
    /// Where the request queues there: its place, as what is before it. Tickets with a twin count as halves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ahead: Option<f32>,
    /// Whether nothing new goes there for the moment, since it failed or was full.
    #[serde(default)]
    pub left_alone: bool,
    /// Whether so much was waited for the model that it is worth loading there, whatever the score says.
    #[serde(default)]
    pub due: bool,
    /// Whether it has had nothing to do for so long that it is to be measured again, whatever the score says.
    #[serde(default)]
    pub idle: bool,
    /// Tokens of the prompt that it has cached, as estimated.
    pub cached_tokens: u32,
    /// Expected seconds of waiting for a slot.
    pub wait_s: f32,
    /// Expected seconds of loading the model.
    pub load_s: f32,
    /// Expected seconds of work.
    pub service_s: f32,
    /// What it would cost others there, in seconds.
    pub others_s: f32,
    /// What the sum of these is multiplied by: that the model is not in memory, that the server failed lately or has just
    /// come, that it is this machine's own.
    #[serde(default)]
    pub factor: f32,
    /// The score: all of it, weighted. The lowest is the best.
    pub score_s: f32,
}

/// One try.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Try {
    /// Whose turn it was.
    pub peer: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Milliseconds after the request came.
    pub after_ms: u64,
    /// Whether a slot was kept for it.
    pub slot: bool,
    /// The status that came, or what went wrong; nothing yet if it runs.
    pub outcome: Option<String>,
}

// === impl RequestId ===

impl RequestId {
    /// A new one.
    pub fn random() -> Self {
        Self(rand::random())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 8];
        BASE32_NOPAD.encode_mut(&self.0, &mut text);
        text.make_ascii_lowercase();
        f.pad(std::str::from_utf8(&text).unwrap_or_default())
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for RequestId {
    type Err = NoRequestId;

    fn from_str(text: &str) -> Result<Self, NoRequestId> {
        let bytes = BASE32_NOPAD.decode(text.trim().to_ascii_uppercase().as_bytes()).map_err(|_| NoRequestId)?;
        bytes.try_into().map(Self).map_err(|_| NoRequestId)
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for RequestId {
    type Error = NoRequestId;

    fn try_from(text: String) -> Result<Self, NoRequestId> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_survives_being_read_by_a_person() {
        let id = RequestId::random();
        assert_eq!(id.to_string().len(), 8);
        assert_eq!(format!(" {} ", id.to_string().to_uppercase()).parse(), Ok(id));
        for none in ["", "k3v9p2x", "k3v9p2xqq", "k3v9p2x!", "ä3v9p2xq"] {
            assert_eq!(none.parse::<RequestId>(), Err(NoRequestId), "{none}");
        }
    }
}
