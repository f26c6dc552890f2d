//! The methods that Ollama's routes have, for the `Allow` that its router adds to whatever comes of a request by another
//! method: to the 405, which is Ollama's own here, and to what its guard says before that, which is ours.

use http::header::ALLOW;
use http::{HeaderValue, Method, Response};

use crate::exchange::Body;

/// In the order in which gin knows methods: that of the first route of each in Ollama's `server/routes.go` (0.33).
const READ: &str = "HEAD, GET";
const GET: &str = "GET";
const POST: &str = "POST";
const DELETE: &str = "DELETE";
const BLOB: &str = "HEAD, POST";

/// Puts it in, where Ollama's router would.
pub(super) fn add_allow(mut response: Response<Body>, method: &Method, path: &str) -> Response<Body> {
    if let Some(allow) = allowed(path).filter(|allow| !allow.split(", ").any(|one| method == one)) {
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
    }
    response
}

fn allowed(path: &str) -> Option<&'static str> {
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy();
    Some(match &*path {
        "/" | "/api/version" | "/api/tags" => READ,
        "/api/status" | "/api/ps" | "/v1/models" | "/api/experimental/model-recommendations" => GET,
        "/api/delete" => DELETE,
        "/api/pull"
        | "/api/push"
        | "/api/show"
        | "/api/me"
        | "/api/signout"
        | "/api/create"
        | "/api/copy"
        | "/api/generate"
        | "/api/chat"
        | "/api/embed"
        | "/api/embeddings"
        | "/api/experimental/web_search"
        | "/api/experimental/web_fetch"
        | "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/embeddings"
        | "/v1/responses"
        | "/v1/audio/transcriptions"
        | "/v1/messages" => POST,
        path => match path.rsplit_once('/')? {
            (_, "") => return None,
            ("/api/blobs", _) => BLOB,
            ("/v1/models", _) => GET,
            ("/api/user/keys", _) => DELETE,
            _ => return None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(method: Method, path: &str) -> Option<String> {
        let response = add_allow(Response::new(crate::exchange::empty()), &method, path);
        response.headers().get(ALLOW).map(|allow| allow.to_str().unwrap().to_owned())
    }

    #[test]
    fn other_methods_are_told_which_ones_there_are() {
        assert_eq!(added(Method::OPTIONS, "/api/chat").as_deref(), Some("POST"));
        assert_eq!(added(Method::OPTIONS, "/api/%74ags").as_deref(), Some("HEAD, GET"));
        assert_eq!(added(Method::DELETE, "/api/blobs/sha256:0").as_deref(), Some("HEAD, POST"));
        assert_eq!(added(Method::OPTIONS, "/v1/models/a").as_deref(), Some("GET"));
        for (method, path) in
            [(Method::POST, "/api/chat"), (Method::OPTIONS, "/nope"), (Method::OPTIONS, "/v1/models/")]
        {
            assert_eq!(added(method, path), None, "{path}");
        }
    }
}
