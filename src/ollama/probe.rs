//! Who holds a port: asked once, before a role is chosen.

use std::time::Duration;

use http::Uri;
use tokio::time::timeout;

use super::client::Client;
use super::meet::meet;
use super::trouble::Trouble;
use super::watching::connect;
use crate::exchange::{PEER_HEADER, ServerKind};
use crate::route::headers::NODE_HEADER;

/// Longest wait for the answer. `/api/version` is a constant to Ollama; a machine that swaps may take a while.
const ANSWER: Duration = Duration::from_secs(3);

/// Who answers at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// An Ollama.
    Ollama {
        /// The version it gives.
        version: String,
    },
    /// A server that speaks the OpenAI API and not Ollama's.
    OpenAi {
        /// What it calls itself, if it does.
        server: Option<String>,
    },
    /// A server that speaks HTTP/2 alone and neither API: gRPC, most likely. Lent only if it is named.
    Grpc,
    /// A node of the mesh: our own listener, or another's. Never to be taken for an Ollama.
    Ollana,
    /// Something else, or something that does not answer, or is not ready to, or asks for a key.
    Other(Trouble),
    /// Nobody: the connection is refused.
    Nothing,
}

/// Asks who is there.
///
/// An Ollana says so in a header on whatever it answers: it hands the questions on to the servers of the mesh, and their
/// answers would look right.
pub async fn probe(url: &Uri) -> Found {
    if connect(url).await.is_err() {
        return Found::Nothing;
    }
    match timeout(ANSWER, meet(&Client::new(url), true)).await {
        Ok(Ok(met)) => match met.state.kind {
            ServerKind::Ollama => Found::Ollama { version: met.state.version },
            ServerKind::OpenAi => Found::OpenAi { server: met.state.server },
            ServerKind::Grpc => Found::Grpc,
        },
        Ok(Err(Trouble::Ollana(_))) => Found::Ollana,
        Ok(Err(trouble)) => Found::Other(trouble),
        Err(_) => Found::Other(Trouble::Silent(url.clone())),
    }
}

/// Whether an answer is a node's own or came through one.
pub(super) fn is_ollana(headers: &http::HeaderMap) -> bool {
    headers.contains_key(PEER_HEADER) || headers.contains_key(NODE_HEADER)
}
