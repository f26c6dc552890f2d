//! The table of routes (DESIGN.md §3, from `server/routes.go` of Ollama 0.24 and of 0.33, which has the same but for the
//! two for images) and how a path is read for it.

use http::Method;
use percent_encoding::percent_decode_str;

use super::{Api, Kind, OwnerRoute};

/// Rounds of decoding after which a path counts as read to the ground. Nobody honest encodes twice.
const MAX_DECODING: usize = 8;

/// First segments of `/api/…` that change models, with everything below them.
const MANAGE: &[&str] = &["pull", "push", "create", "copy", "delete", "blobs"];

/// First segments of `/api/…` that act on the owner's account, with everything below them. The last four are not
/// 0.24's: they are where its `experimental/*` and its account routes would go by name.
const OWNER: &[&str] = &["signout", "user", "experimental", "signin", "account", "web_search", "web_fetch"];

/// The route of Ollama that reads a form.
pub(super) const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";

/// The routes that a model in the body decides.
const BODY_MODEL: &[&str] = &[
    "/api/generate",
    "/api/chat",
    "/api/embed",
    "/api/embeddings",
    "/api/show",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    TRANSCRIPTIONS,
    "/v1/images/generations",
    "/v1/images/edits",
];

/// Of those, the ones that no runner works for.
const ONLY_LOOKS: &[&str] = &["/api/show"];

/// What other servers than Ollama have their runners work for beside those: llama-server's own paths, and OpenAI's without
/// its version. (Spelled otherwise they are not lent; an Ollama's are redirected.)
const OTHERS_RUN: &[&str] = &[
    "/v1/rerank",
    "/v1/reranking",
    "/rerank",
    "/reranking",
    "/chat/completions",
    "/completions",
    "/completion",
    "/infill",
    "/embedding",
    "/embeddings",
];

/// The path as Go's `net/url` hands it to Ollama's router: percent-encoding undone once.
pub(super) fn decoded(path: &str) -> String {
    percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// The path as the most careless router would read it: decoded to the ground, backslashes as slashes, `.` and `..`
/// resolved, empty segments and parameters (`;…`) gone, without case and without blanks around a segment.
pub(super) fn strictest(path: &str) -> String {
    let mut path = path.to_owned();
    for _ in 0..MAX_DECODING {
        let next = decoded(&path);
        if next == path {
            break;
        }
        path = next;
    }
    let mut segments: Vec<String> = Vec::new();
    for segment in path.split(['/', '\\']) {
        let name = segment.split([';', '?', '#']).next().unwrap_or_default();
        match name.trim_matches(|c: char| c.is_whitespace() || c.is_control()) {
            "" | "." => {}
            ".." => drop(segments.pop()),
            name => segments.push(name.to_lowercase()),
        }
    }
    let mut read = String::from("/");
    read.push_str(&segments.join("/"));
    read
}

/// What Ollama's router matches exactly.
pub(super) fn listed(method: &Method, path: &str) -> Option<Kind> {
    let get = method == Method::GET;
    let read = get || method == Method::HEAD;
    Some(match path {
        "/" if read => Kind::Root,
        "/api/tags" if read => Kind::Tags,
        "/api/ps" if get => Kind::Ps,
        "/v1/models" if get => Kind::V1Models,
        "/api/version" if read => Kind::Version,
        "/api/version" => Kind::Any,
        _ if method == Method::POST && BODY_MODEL.contains(&path) => Kind::BodyModel,
        _ => match path.strip_prefix("/v1/models/") {
            Some(model) if get && !model.is_empty() && !has_dots(model) => Kind::PathModel(model.to_owned()),
            _ => return None,
        },
    })
}

/// Whether a `POST` there is work for the runner of a model.
pub(super) fn runs_model(path: &str) -> bool {
    (BODY_MODEL.contains(&path) && !ONLY_LOOKS.contains(&path)) || OTHERS_RUN.contains(&path)
}

/// What needs more than `infer` under the strictest reading.
pub(super) fn guarded(strict: &str) -> Option<Kind> {
    let mut segments = strict.split('/').skip(1);
    let (first, second) = (segments.next()?, segments.next());
    if first == "debug" {
        // Ollama serves Go's default mux, where `net/http/pprof` shows memory, prompts included, if it is linked in.
        return Some(Kind::Owner(OwnerRoute::Forbidden));
    }
    if first != "api" {
        return None;
    }
    match second? {
        "me" => Some(Kind::Owner(OwnerRoute::Me)),
        "status" => Some(Kind::Owner(OwnerRoute::Status)),
        name if OWNER.contains(&name) => Some(Kind::Owner(OwnerRoute::Forbidden)),
        name if MANAGE.contains(&name) => Some(Kind::Manage),
        _ => None,
    }
}

/// Whether Ollama has a route there that is about models or lists them, by whatever method.
pub(super) fn is_ollamas(path: &str) -> bool {
    let named = path.strip_prefix("/v1/models/").is_some_and(|model| !model.is_empty() && !model.contains('/'));
    named || BODY_MODEL.contains(&path) || ["/", "/api/tags", "/api/ps", "/api/version", "/v1/models"].contains(&path)
}

/// What is in no table: harmless as far as anybody knows.
pub(super) fn unlisted(method: &Method, path: &str) -> Kind {
    match *method {
        // A wrong method: a 405 whatever the body names, and who has that model does not matter.
        _ if is_ollamas(path) => Kind::Any,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::CONNECT => Kind::Any,
        _ => Kind::BodyModel,
    }
}

/// Whose clients ask for this path.
pub(super) fn api(strict: &str) -> Api {
    match strict.strip_prefix("/v1/") {
        Some("messages") => Api::Anthropic,
        Some(below) if below.starts_with("messages/") => Api::Anthropic,
        Some(_) => Api::OpenAi,
        None => Api::Ollama,
    }
}

/// A model in a path that walks elsewhere is no model.
fn has_dots(model: &str) -> bool {
    model.split(['/', '\\']).any(|segment| matches!(segment, "." | ".." | ""))
}

#[cfg(test)]
mod tests {
    use super::super::classify;
    use super::*;
    use crate::id::Scope;
    use proptest::prelude::*;

    fn kind(method: Method, path: &str) -> Kind {
        classify(&method, path).kind
    }

    #[test]
    fn every_route_of_ollama_is_sorted_as_the_contract_says() {
        use Kind::*;
        let table = [
            ("GET", "/", Root),
            ("HEAD", "/", Root),
            ("GET", "/api/version", Version),
            ("HEAD", "/api/version", Version),
            ("GET", "/api/status", Owner(OwnerRoute::Status)),
            ("POST", "/api/pull", Manage),
            ("POST", "/api/push", Manage),
            ("HEAD", "/api/tags", Tags),
            ("GET", "/api/tags", Tags),
            ("POST", "/api/show", BodyModel),
            ("DELETE", "/api/delete", Manage),
            ("POST", "/api/me", Owner(OwnerRoute::Me)),
            ("POST", "/api/signout", Owner(OwnerRoute::Forbidden)),
            ("DELETE", "/api/user/keys/abc", Owner(OwnerRoute::Forbidden)),
            ("POST", "/api/create", Manage),
            ("POST", "/api/blobs/sha256:00", Manage),
            ("HEAD", "/api/blobs/sha256:00", Manage),
            ("POST", "/api/copy", Manage),
            ("POST", "/api/experimental/web_search", Owner(OwnerRoute::Forbidden)),
            ("POST", "/api/experimental/web_fetch", Owner(OwnerRoute::Forbidden)),
            ("GET", "/api/experimental/model-recommendations", Owner(OwnerRoute::Forbidden)),
            ("GET", "/api/ps", Ps),
            ("POST", "/api/generate", BodyModel),
            ("POST", "/api/chat", BodyModel),
            ("POST", "/api/embed", BodyModel),
            ("POST", "/api/embeddings", BodyModel),
            ("POST", "/v1/chat/completions", BodyModel),
            ("POST", "/v1/completions", BodyModel),
            ("POST", "/v1/embeddings", BodyModel),
            ("GET", "/v1/models", V1Models),
            ("GET", "/v1/models/smollm2", PathModel("smollm2".into())),
            ("GET", "/v1/models/smollm2%3Alatest", PathModel("smollm2:latest".into())),
            ("POST", "/v1/responses", BodyModel),
            ("POST", "/v1/images/generations", BodyModel),
            ("POST", "/v1/images/edits", BodyModel),
            ("POST", "/v1/audio/transcriptions", BodyModel),
            ("POST", "/v1/messages", BodyModel),
        ];
        for (method, path, expected) in table {
            assert_eq!(kind(method.parse().unwrap(), path), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_runner_has_work_with_what_runs_a_model_and_with_nothing_else() {
        let runs = |method: Method, path: &str| super::super::runs_model(&method, &path.parse().unwrap());
        for path in BODY_MODEL.iter().chain(["/v1/rerank", "/api/%67enerate", "/api/chat?x=1"].iter()) {
            assert_eq!(runs(Method::POST, path), *path != "/api/show", "{path}");
            assert!(!runs(Method::GET, path), "{path}");
        }
        for path in ["/", "/api/tags", "/api/pull", "/api/version", "/v1/models/m", "/v1/messages/count_tokens", "/x"] {
            assert!(!runs(Method::POST, path), "{path}");
        }
    }

    #[test]
    fn no_spelling_of_a_guarded_path_slips_past() {
        let spellings = [
            "/api/delete",
            "/api/delete/",
            "//api/delete",
            "/api//delete",
            "/api/./delete",
            "/api/x/../delete",
            "/../api/delete",
            "/api/%64elete",
            "/%61pi/delete",
            "/api%2fdelete",
            "/api%2Fdelete",
            "/api%252fdelete",
            "/api/%2e/delete",
            "/api/x/%2e%2e/delete",
            "/API/Delete",
            "/api\\delete",
            "/api/delete;x=1",
            "/api/delete%20",
            "/api/delete%00",
            "/api/delete%0a",
            "/api/delete/anything",
            "/api/delete%3fx",
        ];
        for path in spellings {
            for method in [Method::GET, Method::POST, Method::DELETE, Method::PATCH] {
                assert_eq!(kind(method.clone(), path), Kind::Manage, "{method} {path}");
            }
        }
        assert_eq!(kind(Method::POST, "/Api/ME/"), Kind::Owner(OwnerRoute::Me));
        assert_eq!(kind(Method::GET, "//api/status"), Kind::Owner(OwnerRoute::Status));
        assert_eq!(kind(Method::GET, "/v1/models/../../api/me"), Kind::Owner(OwnerRoute::Me));
        assert_eq!(kind(Method::GET, "/v1/models/%2e%2e/%2e%2e/api/signout"), Kind::Owner(OwnerRoute::Forbidden));
        assert_eq!(kind(Method::GET, "/debug/pprof/heap"), Kind::Owner(OwnerRoute::Forbidden));
    }

    #[test]
    fn what_ollama_redirects_or_does_not_know_is_left_to_ollama() {
        assert_eq!(kind(Method::GET, "/api/tags/"), Kind::Any);
        assert_eq!(kind(Method::GET, "//api/tags"), Kind::Any);
        assert_eq!(kind(Method::GET, "/api/x/../tags"), Kind::Any);
        assert_eq!(kind(Method::GET, "/nope"), Kind::Any);
        assert_eq!(kind(Method::POST, "/api/nope"), Kind::BodyModel);
        assert_eq!(kind(Method::GET, "/api/generate"), Kind::Any);
        assert_eq!(kind(Method::PUT, "/api/generate"), Kind::Any);
        assert_eq!(kind(Method::POST, "/api/tags"), Kind::Any);
        assert_eq!(kind(Method::POST, "/v1/models/x"), Kind::Any);
        assert_eq!(kind(Method::HEAD, "/api/ps"), Kind::Any);
        assert_eq!(kind(Method::OPTIONS, "*"), Kind::Any);
    }

    #[test]
    fn errors_are_worded_for_the_clients_of_the_path() {
        assert_eq!(classify(&Method::POST, "/v1/messages").api, Api::Anthropic);
        assert_eq!(classify(&Method::POST, "/v1/messages/count_tokens").api, Api::Anthropic);
        assert_eq!(classify(&Method::POST, "/v1/chat/completions").api, Api::OpenAi);
        assert_eq!(classify(&Method::POST, "/api/chat").api, Api::Ollama);
    }

    #[test]
    fn scopes_follow_the_kind() {
        assert_eq!(classify(&Method::POST, "/api/chat").needs(), Some(Scope::Infer));
        assert_eq!(classify(&Method::POST, "/api/pull").needs(), Some(Scope::Manage));
        assert_eq!(classify(&Method::POST, "/api/me").needs(), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn classify_never_panics(path in "\\PC*", method in "GET|POST|HEAD|X") {
            let _ = classify(&method.parse().unwrap(), &path);
        }

        #[test]
        fn a_guarded_path_stays_guarded_however_it_is_encoded(
            encode in prop::collection::vec(any::<bool>(), 11),
            upper in prop::collection::vec(any::<bool>(), 11),
            slashes in 1usize..4,
        ) {
            let mut path = String::new();
            for ((c, encode), upper) in "/api/delete".chars().zip(encode).zip(upper) {
                let c = if upper { c.to_ascii_uppercase() } else { c };
                let times = if c == '/' { slashes } else { 1 };
                for _ in 0..times {
                    if encode { path.push_str(&format!("%{:02x}", u32::from(c))) } else { path.push(c) }
                }
            }
            prop_assert_eq!(kind(Method::POST, &path), Kind::Manage);
        }
    }
}
