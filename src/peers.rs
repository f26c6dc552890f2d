//! Outbound: whom to dial, who is connected, and the directory that others read.

pub mod backoff;
pub mod machine;

use crate::id::{Id, NodeName, Scope, Use};
use crate::trust::Trust;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// One peer as `ollana peers --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerView {
    /// The name it gives itself.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Where it was last reached or seen.
    pub address: Option<SocketAddr>,
    /// Whether it can be reached.
    pub state: PeerState,
    /// How its key came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
    /// Whether it lends an Ollama.
    pub provider: bool,
    /// The models on its disk.
    pub models: Vec<String>,
    /// Those of them in memory.
    pub loaded: Vec<String>,
    /// Requests at its gate, everyone's.
    pub inflight: u32,
    /// Round-trip time in microseconds, 0 while not connected.
    pub rtt_us: u64,
    /// What is wrong, if something is: a refusal's reason, a conflict of names or keys, the last error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a peer can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PeerState {
    /// Its hello came back.
    Connected,
    /// It is being dialled.
    Connecting,
    /// It does not answer.
    Unreachable,
    /// It refuses us, or we refuse it.
    Refused,
}
