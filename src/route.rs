//! Which kind of request is it, and for which model: decided from the method, the path and a bounded look into the body.
//!
//! [`classify`] sorts by method and path. Where the kind says [`Kind::BodyModel`], [`find_model`] reads the body until
//! it knows the model and gives the body back whole. The [`Look`] behind it reads JSON as Go's `encoding/json` does, the
//! [`Form`] as its `mime/multipart`, [`Unzstd`] undoes what Ollama decompresses, since that is what acts on the body in the
//! end: another reading would let one model pass a check and another one run.

mod each;
mod find;
mod form;
pub mod headers;
mod listed;
mod look;
mod name;
pub mod options;
mod path;
mod reader;
mod refusal;
mod room;
mod server;
mod unknown;
mod unrouted;
mod zstd;

use http::{Method, Uri};

use crate::id::Scope;

pub(crate) use each::Each;
pub use find::{Peeked, find_model, peek};
pub use form::{Form, FormProgress};
pub(crate) use listed::{Entry, List, Listing, Said};
pub use look::{Hidden, Look, Progress};
pub use name::{ModelName, NameFault};
pub use reader::Reader;
pub(crate) use reader::is_compressed;
pub use refusal::{cloud_off, render, unauthorized};
pub(crate) use room::Space;
pub use room::{NoRoom, Room};
pub use server::{Dialect, is_grpc, is_lent};
pub use unknown::unknown_model;
pub use unrouted::unrouted;
#[cfg(feature = "internals")]
pub use zstd::MAX_UNPACKED;
pub(crate) use zstd::{UNPACKING, is_unpacked, unpacked};
pub use zstd::{Unzstd, ZstdError};

/// Whose error shape and whose clients: decides how a refusal is worded in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/api/…` and all that is not one of the others: `{"error": "…"}`.
    Ollama,
    /// `/v1/…`: the OpenAI error object.
    OpenAi,
    /// `/v1/messages`: the Anthropic error object.
    Anthropic,
}

/// What the mesh does with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `GET`/`HEAD /`: the listener answers by itself.
    Root,
    /// `GET`/`HEAD /api/tags`: merged over all providers.
    Tags,
    /// `GET /api/ps`: merged over all providers.
    Ps,
    /// `GET /v1/models`: merged over all providers.
    V1Models,
    /// Routed by the model that the body names, or any provider if it names none.
    BodyModel,
    /// `/v1/models/{model}`: routed by the model in the path (percent-decoded).
    PathModel(String),
    /// `GET`/`HEAD /api/version`: the lowest of all providers.
    Version,
    /// Any provider: `HEAD` of OpenAI's lists, which only its servers answer.
    Any,
    /// Changes models: needs scope `manage`, goes to one chosen node.
    Manage,
    /// Acts on the owner's account: never crosses the mesh.
    Owner(OwnerRoute),
    /// In no table: never crosses the mesh, since only its server knows what it does.
    Unknown,
}

/// The routes that never cross, by how they are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerRoute {
    /// `/api/me`: 401 in Ollama's shape.
    Me,
    /// `/api/status`: 200 with cloud off.
    Status,
    /// The rest: 403.
    Forbidden,
}

/// What [`classify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What to do.
    pub kind: Kind,
    /// How to word an error.
    pub api: Api,
}

// === impl Route ===

impl Route {
    /// The scope a peer needs at the gate for this; none is enough for what never crosses.
    pub const fn needs(&self) -> Option<Scope> {
        match self.kind {
            Kind::Owner(_) => None,
            Kind::Manage => Some(Scope::Manage),
            _ => Some(Scope::Infer),
        }
    }
}

/// Sorts a request by method and path (without the query).
///
/// A path that Ollama's router would match is sorted as what it matches: percent-encoding undone once, case kept. Any
/// other spelling (`//`, `..`, a slash at the end, other case, doubly encoded) goes by the strictest reading: if a
/// router behind the gate could take it for something that needs more rights, it needs them. All else is [`Kind::Unknown`].
pub fn classify(method: &Method, path: &str) -> Route {
    let seen = path::decoded(path);
    let strict = path::strictest(&seen);
    let kind = path::listed(method, &seen).or_else(|| path::guarded(&strict)).unwrap_or(Kind::Unknown);
    Route { kind, api: path::api(&strict) }
}

/// Whether this is one of the routes that may cross the mesh, by a method and in a spelling that an Ollama would serve.
pub(crate) fn is_known(method: &Method, uri: &Uri) -> bool {
    path::listed(method, &path::decoded(uri.path())).is_some()
}

/// Whether Ollama reads the body of this as JSON and as nothing else, whatever its content type says.
pub(crate) fn reads_json(method: &Method, uri: &Uri) -> bool {
    let seen = path::decoded(uri.path());
    if seen == path::TRANSCRIPTIONS {
        return false;
    }
    match path::listed(method, &seen).or_else(|| path::guarded(&path::strictest(&seen))) {
        Some(Kind::Manage) => !is_upload(uri),
        Some(kind) => kind == Kind::BodyModel,
        None => false,
    }
}

/// Whether the JSON that was read is the order to unload a model, if it is sent to this.
pub(crate) fn unloads(uri: &Uri, look: &Look) -> bool {
    look.unloads(&path::decoded(uri.path()))
}

/// Whether Ollama's route takes the JSON that was read for an order to load or unload a model, with nothing to run, if it is
/// sent to this.
pub(crate) fn is_order(uri: &Uri, look: &Look) -> bool {
    look.is_order(&path::decoded(uri.path()))
}

/// Whether a model's runner has work with this, for which it has so many slots and no more: not with what only asks, lists,
/// or changes what is on disk.
pub(crate) fn runs_model(method: &Method, uri: &Uri) -> bool {
    *method == Method::POST && path::runs_model(&path::decoded(uri.path()))
}

/// Whether an Ollama of this version would itself run a web search, on its owner's account, that the tools of a request
/// to this ask for: for Anthropic's clients always, for OpenAI's since 0.33. (Of a version that cannot be read, a build of
/// one's own perhaps, the worst is believed.)
pub(crate) fn runs_web_search(uri: &Uri, version: &str) -> bool {
    let strict = path::strictest(&path::decoded(uri.path()));
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match path::api(&strict) {
        Api::Anthropic => true,
        Api::OpenAi if strict.starts_with("/v1/responses") => {
            !matches!((numbers.next(), numbers.next()), (Some(Ok(0)), Some(Ok(1..=32))))
        }
        _ => false,
    }
}

/// Whether a model that nobody has is Ollama's reason to refuse a request for this path: of others only their server knows
/// what they are about.
pub(crate) fn is_about_models(path: &str) -> bool {
    path::is_ollamas(&path::decoded(path))
}

/// Whether this may be done twice: it only asks, or it is one of Ollama's own routes that change nothing.
pub(crate) fn is_repeatable(method: &Method, uri: &Uri) -> bool {
    // Not what is listed as a 405: another server than an Ollama may do something there, such as `DELETE /v1/models/m`.
    method.is_safe() || path::listed(method, &path::decoded(uri.path())) == Some(Kind::BodyModel)
}

/// Whether this is a push in any spelling: it needs more than [`Kind::Manage`], since it signs with the owner's key.
pub fn is_push(uri: &Uri) -> bool {
    path::strictest(&path::decoded(uri.path())).starts_with("/api/push")
}

/// Whether the body of this is a file and not something that names a model: a blob's upload.
pub fn is_upload(uri: &Uri) -> bool {
    let seen = path::decoded(uri.path());
    seen.starts_with("/api/blobs/") && path::strictest(&seen).starts_with("/api/blobs/")
}
