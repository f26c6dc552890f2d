//! The words that both ends of a request share: bodies, what an endpoint is, and what it reports about itself.
//!
//! An **exchange** is one HTTP request and its response. An [`Endpoint`] carries exchanges out: a peer's gate over
//! QUIC ([`transport`](crate::transport)), or our own gate ([`gate`](crate::gate)). The balancer sees nothing but this.
//! A [`Ticket`] is a place in an endpoint's queue for an exchange that comes later; [`Load`] says how long that may take.

mod account;
mod denial;
pub mod limits;
mod load;
mod progress;
mod refusal;
pub(crate) mod stopwatch;
mod ticket;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::id::{Id, NodeName, Scope, Use};

pub use account::{Account, CutOff, Decision, Look, RequestId, Try, Weighed};
pub use denial::{Denial, Unusable};
pub use load::{Caveat, Load, ModelLoad, Numbers, Pace, Residence};
pub use progress::Progress;
pub use refusal::{Cause, Refusal, RefusalCode};
pub use ticket::{Ask, Place, Slot, Ticket, Turn};

/// Says which node answered; on a request it chooses the node.
pub const PEER_HEADER: HeaderName = HeaderName::from_static("ollana-peer");

/// The ID of a request, on its answer: what `ollana explain` takes. Between nodes on the request too, for their logs.
pub const REQUEST_HEADER: HeaderName = HeaderName::from_static("ollana-request");

/// Says that an answer is the mesh's own and not an Ollama's, and why: a [`RefusalCode`].
/// Only between nodes; the listener takes it off.
pub const REFUSAL_HEADER: HeaderName = HeaderName::from_static("ollana-refusal");

/// A body on its way, in either direction: frames of [`Bytes`] that nobody copies, then perhaps trailers.
/// Dropping it before its end tells the other side to stop.
pub type Body = UnsyncBoxBody<Bytes, ExchangeError>;

/// An empty body.
pub fn empty() -> Body {
    http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is all there.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// What an exchange resolves to. Boxed, since the balancer holds endpoints of several kinds.
pub type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, ExchangeError>> + Send>>;

/// Someone who can answer a request: a peer, or this node's own gate. Cheap to clone (an `Arc`) and always ready.
pub trait Endpoint: fmt::Debug + Send + Sync + 'static {
    /// Whose key it is.
    fn id(&self) -> Id;

    /// The name to show, and what [`PEER_HEADER`] says.
    fn label(&self) -> NodeName;

    /// Whether this is the node's own gate.
    fn is_local(&self) -> bool {
        false
    }

    /// Whether prompts may be sent there.
    fn use_(&self) -> Use;

    /// Whether a person has said that it is whom it says it is; of this node's own gate it is known.
    fn is_trusted(&self) -> bool {
        self.is_local()
    }

    /// What it says of itself; the latest value is a cheap clone away.
    fn report(&self) -> watch::Receiver<Arc<Report>>;

    /// How busy it says that it is; changes often.
    fn load(&self) -> watch::Receiver<Arc<Load>>;

    /// Exchanges and tickets that were opened here so far: what of them its [`Load`] knows, it says by
    /// [`Load::counted`]. Nothing where it always knows all.
    fn opened(&self) -> Option<u64>;

    /// Whether it answers at all.
    fn health(&self) -> watch::Receiver<Health>;

    /// Carries one exchange out. Dropping the future or, later, the response's body cancels it on the other side.
    /// The response's head may come before the request's body was read.
    fn exchange(&self, request: Request<Body>) -> Answer;

    /// Queues for a slot, with nothing sent yet.
    fn queue(&self, ask: Ask) -> Ticket;
}

/// Whether an endpoint can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// It answers.
    Healthy,
    /// It owes an acknowledgement: nothing new goes there, and what has no byte yet moves on if it can.
    Suspect,
    /// The connection is over, or silent for so long that it counts as over.
    Gone,
}

/// What a provider says of itself to one peer, as far as it changes seldom: pushed on change over the control stream. How
/// busy it is stands in its [`Load`].
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Whether its Ollama is healthy and lent.
    pub provider: bool,
    /// What the reader of this report may do here.
    pub scope: Scope,
    /// Why the reader is not served, if it is not: for its person, who may not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub denial: Option<Denial>,
    /// Set while it finishes what runs and takes nothing new.
    pub draining: bool,
    /// The version that an Ollama there says; empty if it says none, or the server is another.
    pub version: String,
    /// What its server speaks. A report without it is of a version that lent nothing but Ollamas.
    pub api: ServerKind,
    /// The models on its disk, by the name Ollama lists them under.
    pub models: BTreeMap<String, ModelInfo>,
}

/// What the server behind a gate speaks, and so which requests it can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerKind {
    /// Ollama's own API, and what of OpenAI's and Anthropic's Ollama has.
    #[default]
    Ollama,
    /// The OpenAI API and nothing of Ollama's: llama.cpp's `llama-server`, vLLM, LM Studio.
    OpenAi,
    /// Neither: a gRPC server. Also whatever a later version may lend: it gets nothing that this one routes by API.
    #[serde(other)]
    Grpc,
}

impl fmt::Display for ServerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ollama => "ollama",
            Self::OpenAi => "openai",
            Self::Grpc => "grpc",
        })
    }
}

/// What a report says of one model.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelInfo {
    /// Ollama's digest of its manifest, in hexadecimal.
    pub digest: String,
    /// Bytes on its disk; 0 if its server does not say.
    pub size: u64,
    /// How fast it is there.
    pub pace: Pace,
}

/// Why an exchange did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The peer cannot be reached, and nothing of the request was sent there.
    #[error("the connection to {0} is gone")]
    Unreachable(NodeName),
    /// The peer cannot be reached any more, and the request was on its way there: its Ollama may have worked on it, or do so
    /// still until that side has noticed. That its gate has not acknowledged it says nothing: the acknowledgement may be what
    /// was lost.
    #[error("the connection to {0} was lost")]
    Lost(NodeName),
    /// The other side gave the exchange up: what it said.
    #[error("{0} broke off: {1}")]
    Reset(NodeName, ResetCode),
    /// The other side did not keep to the protocol.
    #[error("{0} sent what the protocol does not allow: {1}")]
    Protocol(NodeName, String),
    /// The application, or whoever else the body comes from, went away.
    #[error("the body broke off: {0}")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server behind the gate broke the connection off after it had the whole request, and answers still.
    #[error("the Ollama at {0} broke off: {1}")]
    Ollama(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server behind the gate did not get the whole request: it refused the connection, or was gone before.
    #[error("the Ollama at {0} was not reached: {1}")]
    NotRun(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server behind the gate had the whole request and does not answer any more, or is another process since.
    #[error("the Ollama at {0} ended while it had the request: {1}")]
    Ended(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

impl ExchangeError {
    /// The same of something that was asked of the server before the request was sent there.
    #[must_use]
    pub fn not_run(self) -> Self {
        match self {
            Self::Ollama(at, why) | Self::Ended(at, why) => Self::NotRun(at, why),
            error => error,
        }
    }
}

/// Why a stream was reset, as it stands on the wire (QUIC application error codes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetCode {
    /// Nobody wants the answer any more.
    Cancelled,
    /// The server broke off after it had the whole request, and answers still.
    Upstream,
    /// What came was not the protocol.
    Protocol,
    /// The peer's key is revoked, or never had the right.
    Forbidden,
    /// What was waited for came too late, or not at all: the slot that was kept for a request is another's by now. Nothing
    /// was run.
    Late,
    /// The server could not be reached, or did not get the whole request: nothing was run.
    NotRun,
    /// The server had the whole request, and its process ended.
    Ended,
    /// Something else, or a code of a later version.
    Other(u64),
}

impl ResetCode {
    /// The code on the wire.
    pub const fn to_wire(self) -> u64 {
        match self {
            Self::Cancelled => 1,
            Self::Upstream => 2,
            Self::Protocol => 3,
            Self::Forbidden => 4,
            Self::Late => 5,
            Self::NotRun => 6,
            Self::Ended => 7,
            Self::Other(code) => code,
        }
    }

    /// The meaning of a code from the wire.
    pub const fn from_wire(code: u64) -> Self {
        match code {
            1 => Self::Cancelled,
            2 => Self::Upstream,
            3 => Self::Protocol,
            4 => Self::Forbidden,
            5 => Self::Late,
            6 => Self::NotRun,
            7 => Self::Ended,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for ResetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cancelled => f.write_str("nobody waits for the answer any more"),
            Self::Upstream => f.write_str("its Ollama broke off"),
            Self::Protocol => f.write_str("it did not understand the stream"),
            Self::Forbidden => f.write_str("it does not trust this node"),
            Self::Late => f.write_str("the request came too late for its slot, and nothing was run"),
            Self::NotRun => f.write_str("its Ollama was not reached, and nothing was run"),
            Self::Ended => f.write_str("its Ollama ended while it had the request"),
            Self::Other(code) => write!(f, "code {code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reset_means_the_same_on_both_sides_and_one_that_is_not_known_is_kept_as_it_is() {
        for code in 0..10 {
            assert_eq!(ResetCode::from_wire(code).to_wire(), code);
        }
        assert_eq!((ResetCode::from_wire(5), ResetCode::from_wire(8)), (ResetCode::Late, ResetCode::Other(8)));
    }

    #[test]
    fn a_report_of_another_version_gets_what_that_version_can_answer() {
        let api = |json: &str| serde_json::from_str::<Report>(json).unwrap().api;
        assert_eq!(api(r#"{"provider":true}"#), ServerKind::Ollama, "an old one lends nothing else");
        assert_eq!(api(r#"{"api":"openai"}"#), ServerKind::OpenAi);
        assert_eq!(api(r#"{"api":"something-new"}"#), ServerKind::Grpc, "no API that is known");
        for kind in [ServerKind::Ollama, ServerKind::OpenAi, ServerKind::Grpc] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.to_string());
        }
    }
}
