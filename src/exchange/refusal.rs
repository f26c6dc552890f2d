//! Why the mesh itself answers a request and no server does: one row for each reason, which both sides read.

use std::time::Duration;

use http::{Response, StatusCode};

use super::REFUSAL_HEADER;

/// When another try is worth it after a refusal that passes by itself.
const SOON: Duration = Duration::from_secs(1);

/// Why the mesh itself answers and no server does. The code crosses in [`REFUSAL_HEADER`], the sentence in the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reason, for programs.
    pub code: RefusalCode,
    /// A sentence for people: what, why, what to do.
    pub message: String,
    /// When it is worth another try.
    pub retry_after: Option<Duration>,
}

/// What the user's side makes of another node's refusal. Matched exhaustively there: a new one is a decision to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// That node has no place for more at the moment. Nothing was run: another is asked, and this one gets nothing new for a
    /// while.
    Full,
    /// That node takes nothing at the moment, and says so in its report too. Nothing was run: another is asked.
    Closed,
    /// Another node is no better: it is about the request, its sender or the choice. Nothing was run, the application gets it.
    Final,
    /// Some of it may have been run: no other node is asked.
    PerhapsRun,
}

/// One row each: the variant, its word in [`REFUSAL_HEADER`], its HTTP status, its [`Cause`], and its sentence where
/// the refusing code has none that says more.
macro_rules! refusal_codes {
    ($($code:ident, $word:literal, $status:ident, $cause:ident, $sentence:literal;)*) => {
        /// The reason of a [`Refusal`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum RefusalCode {
            $(#[doc = $sentence] $code,)*
            /// A reason of a later version, with the status that came with it.
            Other(StatusCode),
        }

        impl RefusalCode {
            /// The word in [`REFUSAL_HEADER`], which is also the one in the log.
            pub const fn to_wire(self) -> &'static str {
                match self {
                    $(Self::$code => $word,)*
                    Self::Other(_) => "other",
                }
            }

            /// The meaning of a word that came with this status. Of a reason that is not known no more than a failure is
            /// believed.
            pub fn from_wire(word: &[u8], status: StatusCode) -> Self {
                $(if word == $word.as_bytes() {
                    return Self::$code;
                })*
                let is_error = status.is_client_error() || status.is_server_error();
                Self::Other(if is_error { status } else { StatusCode::SERVICE_UNAVAILABLE })
            }

            /// What the application's library is told.
            pub const fn status(self) -> StatusCode {
                match self {
                    $(Self::$code => StatusCode::$status,)*
                    Self::Other(status) => status,
                }
            }

            /// Where the fault lies, and so whether another node is asked.
            pub const fn cause(self) -> Cause {
                match self {
                    $(Self::$code => Cause::$cause,)*
                    Self::Other(_) => Cause::PerhapsRun,
                }
            }

            /// What it says where nothing more is known.
            pub const fn sentence(self) -> &'static str {
                match self {
                    $(Self::$code => $sentence,)*
                    Self::Other(_) => "it refuses this request, for a reason that this version does not know",
                }
            }
        }

        #[cfg(test)]
        const ALL: &[RefusalCode] = &[$(RefusalCode::$code),*];
    };
}

refusal_codes! {
    // The provider, for the moment.
    Busy, "busy", SERVICE_UNAVAILABLE, Full, "too many requests wait already";
    Crowded, "crowded", SERVICE_UNAVAILABLE, Full, "too many requests of one sender run or wait already";
    NoRoom, "no-room", SERVICE_UNAVAILABLE, Full,
        "the server that this goes to looks into too many long requests at the moment; those that name their model first need \
         no room";
    Draining, "draining", SERVICE_UNAVAILABLE, Closed, "this server is about to stop and takes nothing new";
    NotLent, "not-lent", SERVICE_UNAVAILABLE, Closed, "this node does not share its Ollama at the moment";
    NoOllama, "no-ollama", SERVICE_UNAVAILABLE, Closed, "this server has no Ollama running at the moment";

    // What the sender may do.
    Scope, "scope", FORBIDDEN, Final, "this node may not do this there";
    OwnerOnly, "owner-only", FORBIDDEN, Final,
        "this acts on the account of the server's owner and is only for that machine itself";
    NotSignedIn, "not-signed-in", UNAUTHORIZED, Final, "unauthorized";
    Push, "push", FORBIDDEN, Final,
        "a push is signed with the key of the server's owner, who has to allow that on that machine beside the scope, with: \
         ollana config set lend.push true";
    WebSearch, "web-search", FORBIDDEN, Final,
        "web search is run by the server on its owner's account; that is not shared";
    Cloud, "cloud", FORBIDDEN, Final,
        "a model that runs elsewhere would run on the account of the server's owner; that is not shared";
    Unload, "unload", FORBIDDEN, Final, "others may be using the model that this would unload";
    Context, "context", FORBIDDEN, Final, "it asks for a longer context than it may";

    // The request itself.
    Body, "body", BAD_REQUEST, Final, "the body broke off";
    Unreadable, "unreadable", BAD_REQUEST, Final, "the body cannot be checked";
    Compressed, "compressed", UNSUPPORTED_MEDIA_TYPE, Final,
        "a compressed body cannot be checked here by the server it goes to; send it uncompressed, or ask that machine itself";
    DoubledKey, "doubled-key", BAD_REQUEST, Final, "a key comes twice in the body";
    Options, "options", BAD_REQUEST, Final, "there are too many options in it that no Ollama knows";
    ModelName, "model-name", BAD_REQUEST, Final, "invalid model name";
    ModelTooLate, "no-model-in-prefix", PAYLOAD_TOO_LARGE, Final, "the request does not name its model early enough";
    NoModel, "no-model", NOT_FOUND, Final, "no server has this model";
    OtherApi, "other-api", FORBIDDEN, Final, "this server does not speak the API of this request";
    Slot, "slot", BAD_REQUEST, Final, "a slot is kept for what runs a model";
    Connect, "connect", METHOD_NOT_ALLOWED, Final, "there are no tunnels through a gate";
    Loop, "loop", LOOP_DETECTED, Final,
        "this request has been at an Ollana's gate already and would go round; the address that node has for its Ollama \
         (--ollama, OLLAMA_HOST) is a node's";

    // The choice of a server on the user's node.
    NoProvider, "no-provider", SERVICE_UNAVAILABLE, Final, "no server can be used at the moment";
    NoServerOfApi, "no-server-of-api", SERVICE_UNAVAILABLE, Final, "no server speaks the API of this request";
    OtherWeights, "other-weights", SERVICE_UNAVAILABLE, Final, "the weights used so far cannot be had at the moment";
    NodeUnusable, "node-unusable", SERVICE_UNAVAILABLE, Final, "the chosen node cannot be used";
    NoSuchNode, "no-such-node", NOT_FOUND, Final, "no node is called so";
    AmbiguousNode, "ambiguous-node", CONFLICT, Final, "more than one node is called so";
    ChooseNode, "choose-node", CONFLICT, Final, "more than one node could be meant";

    // In the middle of it.
    BrokeOff, "broke-off", BAD_GATEWAY, PerhapsRun, "the server broke off";
    Stalled, "stalled", REQUEST_TIMEOUT, PerhapsRun,
        "others wait for this model, and the rest of this request did not come: send it again";
}

// === impl Refusal ===

impl Refusal {
    /// A refusal that says more than its code does.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        let passes = match code.cause() {
            Cause::Full | Cause::Closed => true,
            Cause::Final | Cause::PerhapsRun => false,
        };
        Self { code, message: message.into(), retry_after: passes.then_some(SOON) }
    }

    /// The same, worth another try after this time.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }
}

impl From<RefusalCode> for Refusal {
    fn from(code: RefusalCode) -> Self {
        Self::new(code, code.sentence())
    }
}

// === impl RefusalCode ===

impl RefusalCode {
    /// Why the mesh itself gave this answer; nothing if a server did.
    pub fn of<B>(answer: &Response<B>) -> Option<Self> {
        let word = answer.headers().get(REFUSAL_HEADER)?;
        Some(Self::from_wire(word.as_bytes(), answer.status()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_means_the_same_on_both_sides() {
        for code in ALL {
            assert_eq!(RefusalCode::from_wire(code.to_wire().as_bytes(), StatusCode::OK), *code);
            assert!(code.status().is_client_error() || code.status().is_server_error(), "{code:?}");
        }
    }

    #[test]
    fn a_code_of_a_later_version_is_no_reason_to_try_again() {
        let read = |status| RefusalCode::from_wire(b"later", status);
        assert_eq!(read(StatusCode::FORBIDDEN).status(), StatusCode::FORBIDDEN);
        // It would look like the answer of a model.
        assert_eq!(read(StatusCode::OK).status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(read(StatusCode::SERVICE_UNAVAILABLE).cause(), Cause::PerhapsRun);
        assert_eq!(Refusal::from(read(StatusCode::SERVICE_UNAVAILABLE)).retry_after, None);
    }
}
