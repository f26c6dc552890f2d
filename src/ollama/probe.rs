//! Who holds a port: asked once, before a role is chosen.

use std::time::Duration;

use http::{Method, Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use super::client::{Client, MAX_LISTING};
use super::watching::connect;
use crate::exchange::{PEER_HEADER, empty};
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
    /// A node of the mesh: our own listener, or another's. Never to be taken for an Ollama.
    Ollana,
    /// Somebody else, or somebody who does not answer.
    Other,
    /// Nobody: the connection is refused.
    Nothing,
}

/// Asks `/api/version` there.
///
/// An Ollana says so in a header on whatever it answers. It also gets there first: an Ollana hands this question on to
/// an Ollama of the mesh, and that one's answer would look right.
pub async fn probe(url: &Uri) -> Found {
    if connect(url).await.is_err() {
        return Found::Nothing;
    }
    timeout(ANSWER, ask(url)).await.ok().flatten().unwrap_or(Found::Other)
}

async fn ask(url: &Uri) -> Option<Found> {
    let mut request = Request::new(empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = Uri::from_static("/api/version");
    let response = Client::new(url).ask(request).await.ok()?;
    if is_ollana(response.headers()) {
        return Some(Found::Ollana);
    }
    let body = Limited::new(response.into_body(), MAX_LISTING).collect().await.ok()?.to_bytes();
    let answer: serde_json::Value = serde_json::from_slice(&body).ok()?;
    let version = answer.get("version")?.as_str()?.to_owned();
    Some(Found::Ollama { version })
}

/// Whether an answer is a node's own or came through one.
pub(super) fn is_ollana(headers: &http::HeaderMap) -> bool {
    headers.contains_key(PEER_HEADER) || headers.contains_key(NODE_HEADER)
}
