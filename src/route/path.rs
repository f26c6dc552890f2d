//! The table of routes (from `server/routes.go` of Ollama 0.24 and of 0.33, which has the same but for the two for images)
//! and how a path is read for it.

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

/// A route, and by which methods, in the order in which Ollama's router lists them in `Allow`.
#[derive(Debug)]
pub(super) struct Known {
    /// A `*` at its end stands for one name.
    path: &'static str,
    pub(super) methods: &'static [&'static str],
    does: Does,
    /// Whether the newest Ollama has it.
    pub(super) current: bool,
}

/// [`Kind`], as the table can name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Does {
    Root,
    Tags,
    Ps,
    V1Models,
    BodyModel,
    PathModel,
    Version,
    Manage,
    Owner(OwnerRoute),
}

const fn known(path: &'static str, methods: &'static [&'static str], does: Does) -> Known {
    Known { path, methods, does, current: true }
}

/// One that the newest Ollama does not have: of an older one, or of the APIs whose clients Ollama serves.
const fn other(path: &'static str, does: Does) -> Known {
    Known { path, methods: &["POST"], does, current: false }
}

/// All that ever crosses the mesh, and what Ollama has beside it.
const ROUTES: &[Known] = &[
    known("/", &["HEAD", "GET"], Does::Root),
    known("/api/version", &["HEAD", "GET"], Does::Version),
    known("/api/tags", &["HEAD", "GET"], Does::Tags),
    known("/api/ps", &["GET"], Does::Ps),
    known("/api/generate", &["POST"], Does::BodyModel),
    known("/api/chat", &["POST"], Does::BodyModel),
    known("/api/embed", &["POST"], Does::BodyModel),
    known("/api/embeddings", &["POST"], Does::BodyModel),
    known("/api/show", &["POST"], Does::BodyModel),
    known("/v1/models", &["GET"], Does::V1Models),
    known(MODEL, &["GET"], Does::PathModel),
    known("/v1/chat/completions", &["POST"], Does::BodyModel),
    known("/v1/completions", &["POST"], Does::BodyModel),
    known("/v1/embeddings", &["POST"], Does::BodyModel),
    known("/v1/responses", &["POST"], Does::BodyModel),
    known("/v1/messages", &["POST"], Does::BodyModel),
    known(TRANSCRIPTIONS, &["POST"], Does::BodyModel),
    other("/v1/images/generations", Does::BodyModel),
    other("/v1/images/edits", Does::BodyModel),
    other("/v1/rerank", Does::BodyModel),
    other("/v1/messages/count_tokens", Does::BodyModel),
    known("/api/pull", &["POST"], Does::Manage),
    known("/api/push", &["POST"], Does::Manage),
    known("/api/create", &["POST"], Does::Manage),
    known("/api/copy", &["POST"], Does::Manage),
    known("/api/delete", &["DELETE"], Does::Manage),
    known("/api/blobs/*", &["HEAD", "POST"], Does::Manage),
    known("/api/status", &["GET"], Does::Owner(OwnerRoute::Status)),
    known("/api/me", &["POST"], Does::Owner(OwnerRoute::Me)),
    known("/api/signout", &["POST"], Does::Owner(OwnerRoute::Forbidden)),
    known("/api/user/keys/*", &["DELETE"], Does::Owner(OwnerRoute::Forbidden)),
    known("/api/experimental/web_search", &["POST"], Does::Owner(OwnerRoute::Forbidden)),
    known("/api/experimental/web_fetch", &["POST"], Does::Owner(OwnerRoute::Forbidden)),
    known("/api/experimental/model-recommendations", &["GET"], Does::Owner(OwnerRoute::Forbidden)),
];

/// The one route whose name may hold slashes where the server is no Ollama: `org/model`.
const MODEL: &str = "/v1/models/*";

/// Of those whose body names a model, the ones that no runner works for.
const ONLY_LOOKS: &[&str] = &["/api/show", "/v1/messages/count_tokens"];

/// Of those, the ones where Ollama knows nothing of a model that is not there.
const OTHERS_MODELS: &[&str] = &["/v1/rerank", "/v1/messages/count_tokens"];

/// What other servers than Ollama have their runners work for beside those: llama-server's own paths, and OpenAI's without
/// its version. (Spelled otherwise they are not lent; an Ollama's are redirected.)
const OTHERS_RUN: &[&str] = &[
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

// === impl Known ===

impl Known {
    /// The name in the path, where the route has one; nothing if it is another route.
    fn name<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.path.strip_suffix('*') {
            Some(before) => path.strip_prefix(before).filter(|name| !name.is_empty()),
            None => (path == self.path).then_some(""),
        }
    }
}

/// The route of the newest Ollama at a path, as its router matches it.
pub(super) fn ollamas(path: &str) -> Option<&'static Known> {
    let one_segment = |name: &str| !name.contains('/');
    ROUTES.iter().filter(|known| known.current).find(|known| known.name(path).is_some_and(one_segment))
}

/// The known route that this is, spelled as its server will read it and not otherwise.
pub(super) fn listed(method: &Method, path: &str) -> Option<Kind> {
    let (known, name) = ROUTES.iter().find_map(|known| Some((known, known.name(path)?)))?;
    // A path that a careless router would find elsewhere is no name.
    let below = || strictest(path).starts_with(known.path.trim_end_matches('*'));
    let is_name = name.is_empty() || (!has_dots(name) && (known.path == MODEL || !name.contains('/')) && below());
    if is_name && method == Method::HEAD && matches!(known.does, Does::V1Models | Does::PathModel) {
        // Servers of the OpenAI API have it; an Ollama says that it has not.
        return Some(Kind::Any);
    }
    (known.methods.contains(&method.as_str()) && is_name).then(|| match known.does {
        Does::Root => Kind::Root,
        Does::Tags => Kind::Tags,
        Does::Ps => Kind::Ps,
        Does::V1Models => Kind::V1Models,
        Does::BodyModel => Kind::BodyModel,
        Does::PathModel => Kind::PathModel(name.to_owned()),
        Does::Version => Kind::Version,
        Does::Manage => Kind::Manage,
        Does::Owner(route) => Kind::Owner(route),
    })
}

/// Whether a `POST` there is work for the runner of a model.
pub(super) fn runs_model(path: &str) -> bool {
    (names_model(path) && !ONLY_LOOKS.contains(&path)) || OTHERS_RUN.contains(&path)
}

fn names_model(path: &str) -> bool {
    ROUTES.iter().any(|known| known.does == Does::BodyModel && known.path == path)
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
    let of_body = names_model(path) && !OTHERS_MODELS.contains(&path);
    named || of_body || ["/", "/api/tags", "/api/ps", "/api/version", "/v1/models"].contains(&path)
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
        let named = ROUTES.iter().filter(|known| known.does == Does::BodyModel).map(|known| known.path);
        for path in named.chain(["/v1/reranking", "/api/%67enerate", "/api/chat?x=1"]) {
            assert_eq!(runs(Method::POST, path), !ONLY_LOOKS.contains(&path), "{path}");
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
    fn what_is_not_in_the_table_as_it_is_written_is_unknown() {
        for (method, path) in [
            (Method::GET, "/api/tags/"),
            (Method::GET, "//api/tags"),
            (Method::GET, "/api/x/../tags"),
            (Method::GET, "/API/tags"),
            (Method::GET, "/nope"),
            (Method::POST, "/api/nope"),
            (Method::GET, "/api/generate"),
            (Method::PUT, "/api/generate"),
            (Method::POST, "/api/tags"),
            (Method::POST, "/api/version"),
            (Method::POST, "/v1/models/x"),
            (Method::DELETE, "/v1/models/x"),
            (Method::GET, "/v1/models/%252e%252e/slots"),
            (Method::GET, "/v1/models/a%5C..%5C..%5Cslots"),
            (Method::HEAD, "/api/ps"),
            (Method::GET, "/v1/rerank"),
            (Method::OPTIONS, "*"),
        ] {
            assert_eq!(kind(method.clone(), path), Kind::Unknown, "{method} {path}");
        }
        assert_eq!(kind(Method::GET, "/v1/models/org/model"), Kind::PathModel("org/model".into()));
        assert_eq!(kind(Method::POST, "/v1/messages/count_tokens"), Kind::BodyModel);
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
