//! Which kind of request is it, and for which model: decided from the method, the path and a bounded look into the body.

use http::Method;

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
    /// Any provider: `/api/version` and other paths without a body.
    Any,
    /// Changes models: needs scope `manage`, goes to one chosen node.
    Manage,
    /// Acts on the owner's account: never crosses the mesh.
    Owner(OwnerRoute),
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

/// Sorts a request by method and path (without the query). Normalises the path as Ollama's router would see it.
pub fn classify(method: &Method, path: &str) -> Route {
    let _ = (method, path);
    Route { kind: Kind::Any, api: Api::Ollama }
}
