//! Which of the kinds of server a request is for.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method, request};

use super::path;
use crate::exchange::ServerKind;

/// What a server of the OpenAI API lends to peers, beside its list of models: running them. llama-server's slots and
/// adapters, vLLM's loading of adapters, LM Studio's own API and whatever else such a server has is its owner's.
const LENT: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/audio/transcriptions",
    "/v1/rerank",
];

/// Whose API a request belongs to, by its path and content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `/api/…`: nobody but an Ollama understands it.
    Ollama,
    /// `/v1/…`: an Ollama does, and a server of the OpenAI API.
    OpenAi,
    /// A call of gRPC.
    Grpc,
    /// Who knows.
    Other,
}

// === impl Dialect ===

impl Dialect {
    /// The dialect of a request.
    pub fn of(parts: &request::Parts) -> Self {
        let path = path::strictest(&path::decoded(parts.uri.path()));
        match path.split('/').nth(1) {
            Some("api") => Self::Ollama,
            Some("v1") => Self::OpenAi,
            _ if is_grpc(&parts.headers) => Self::Grpc,
            _ => Self::Other,
        }
    }

    /// Whether a server of this kind is one to ask; `local` is this machine's own, of which its owner may ask what they like.
    pub fn suits(self, server: ServerKind, local: bool) -> bool {
        match (self, server) {
            (Self::Ollama, server) => server == ServerKind::Ollama,
            (Self::OpenAi, server) => server != ServerKind::Grpc,
            (Self::Grpc, server) => server == ServerKind::Grpc || local,
            (Self::Other, ServerKind::Ollama) => true,
            (Self::Other, ServerKind::OpenAi) => local,
            (Self::Other, ServerKind::Grpc) => false,
        }
    }

    /// Whether only those that it suits can understand it. Else they come first, and if there are none everybody is
    /// asked, who will say for themselves.
    pub const fn is_strict(self) -> bool {
        !matches!(self, Self::Other)
    }
}

/// Whether this is a call of gRPC (or gRPC-Web, which the same servers answer).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| {
        value.as_bytes().get(..16).is_some_and(|start| start.eq_ignore_ascii_case(b"application/grpc"))
    })
}

/// Whether a server of this kind shares this [known](super::is_known) route with peers, or this method of gRPC. Of an Ollama
/// that is all of them, sorted by [`classify`](super::classify) and their scopes.
pub fn is_lent(server: ServerKind, method: &Method, path: &str) -> bool {
    let strict = path::strictest(&path::decoded(path));
    match server {
        ServerKind::Ollama => true,
        ServerKind::OpenAi => match *method {
            Method::GET | Method::HEAD => {
                path == "/v1/models" || (path.starts_with("/v1/models/") && strict.starts_with("/v1/models/"))
            }
            Method::POST => LENT.contains(&path),
            _ => false,
        },
        ServerKind::Grpc => !matches!(strict.split('/').nth(1), Some("api" | "v1" | "debug")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_of_the_openai_api_lends_inference_and_nothing_else() {
        let lent = |method: Method, path: &str| is_lent(ServerKind::OpenAi, &method, path);
        for path in LENT {
            assert!(lent(Method::POST, path), "{path}");
            assert!(!lent(Method::GET, path) && !lent(Method::DELETE, path), "{path}");
        }
        for path in ["/v1/models", "/v1/models/a", "/v1/models/org/a", "/v1/models/%2Ftmp%2Fm.gguf"] {
            assert!(lent(Method::GET, path) && lent(Method::HEAD, path), "{path}");
            assert!(!lent(Method::POST, path) && !lent(Method::DELETE, path), "{path}");
        }
        for path in [
            "/",
            "/slots",
            "/slots/0?action=save",
            "/props",
            "/lora-adapters",
            "/completion",
            "/completions",
            "/chat/completions",
            "/tokenize",
            "/metrics",
            "/models/load",
            "/api/v0/models",
            "/api/tags",
            "/api/chat",
            "/v1/load_lora_adapter",
            "/v1/unload_lora_adapter",
            "/v1/chat/completions/",
            "//v1/chat/completions",
            "/V1/chat/completions",
            "/v1/chat%2Fcompletions",
            "/v1/x/../completions",
            "/v1/models/../../slots",
            "/v1/models/%2e%2e/%2e%2e/slots",
            "/v1/models/%252e%252e/load_lora_adapter",
            "/v1/models/..\\load_lora_adapter",
        ] {
            for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
                assert!(!lent(method.clone(), path), "{method} {path}");
            }
        }
    }

    #[test]
    fn a_grpc_server_lends_no_path_of_the_known_apis() {
        let lent = |path: &str| is_lent(ServerKind::Grpc, &Method::POST, path);
        assert!(lent("/helloworld.Greeter/SayHello"));
        for path in ["/api/delete", "/api/chat", "//api/delete", "/%61pi/delete", "/x/../v1/models", "/debug/pprof"] {
            assert!(!lent(path), "{path}");
        }
    }

    #[test]
    fn a_request_is_for_those_that_understand_it() {
        use Dialect::*;
        let dialect = |path: &str, content_type: &str| {
            let request = http::Request::post(path).header(CONTENT_TYPE, content_type).body(()).unwrap();
            Dialect::of(&request.into_parts().0)
        };
        assert_eq!(dialect("/api/chat", "application/json"), Ollama);
        assert_eq!(dialect("/api/chat", "application/grpc"), Ollama);
        assert_eq!(dialect("//API/chat", ""), Ollama);
        assert_eq!(dialect("/v1/chat/completions", "application/json"), OpenAi);
        assert_eq!(dialect("/pkg.Service/Call", "application/grpc+proto"), Grpc);
        assert_eq!(dialect("/pkg.Service/Call", "Application/gRPC"), Grpc);
        assert_eq!(dialect("/pkg.Service/Call", "application/json"), Other);
        assert_eq!(dialect("/apiary", ""), Other);
        assert!(!Ollama.suits(ServerKind::OpenAi, true), "an owner's own is no Ollama either");
        assert!(OpenAi.suits(ServerKind::Ollama, false) && OpenAi.suits(ServerKind::OpenAi, false));
    }
}
