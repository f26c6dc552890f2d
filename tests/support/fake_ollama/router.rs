//! What Go's server and mux, gin and Ollama's guards say before any handler.

use std::path::{Component, Path, PathBuf};

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    ALLOW, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, LOCATION, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;

use super::answers::{Answer, empty, plain};

/// What the router knows: path, methods.
const ROUTES: &[(&str, &[&str])] = &[
    ("/", &["HEAD", "GET"]),
    ("/api/version", &["HEAD", "GET"]),
    ("/api/status", &["GET"]),
    ("/api/pull", &["POST"]),
    ("/api/push", &["POST"]),
    ("/api/tags", &["HEAD", "GET"]),
    ("/api/show", &["POST"]),
    ("/api/delete", &["DELETE"]),
    ("/api/me", &["POST"]),
    ("/api/signout", &["POST"]),
    ("/api/create", &["POST"]),
    ("/api/copy", &["POST"]),
    ("/api/experimental/web_search", &["POST"]),
    ("/api/experimental/web_fetch", &["POST"]),
    ("/api/experimental/model-recommendations", &["GET"]),
    ("/api/ps", &["GET"]),
    ("/api/generate", &["POST"]),
    ("/api/chat", &["POST"]),
    ("/api/embed", &["POST"]),
    ("/api/embeddings", &["POST"]),
    ("/v1/chat/completions", &["POST"]),
    ("/v1/completions", &["POST"]),
    ("/v1/embeddings", &["POST"]),
    ("/v1/models", &["GET"]),
    ("/v1/responses", &["POST"]),
    ("/v1/audio/transcriptions", &["POST"]),
    ("/v1/messages", &["POST"]),
];

/// What Ollama lets pages ask with, as gin-contrib/cors joins it.
const CORS_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,\
X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,\
X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
X-Stainless-Runtime-Version,X-Stainless-Timeout";

/// The path as Go hands it to the router; or one of [`extra`](super::extra), whatever the path, if the query asks for that.
pub(super) fn path(request: &Request<Incoming>) -> String {
    let query = request.uri().query().unwrap_or_default();
    if let Some(name) = query.split('&').find_map(|pair| pair.strip_prefix("fake=")) {
        return format!("/fake/{name}");
    }
    percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned()
}

/// What the handler's answer gets too; or the answer of those before it.
pub(super) fn pass(request: &Request<Incoming>, path: &str) -> Result<HeaderMap, Box<Answer>> {
    if let Some(answer) = server(request) {
        return Err(Box::new(answer));
    }
    let (method, written) = (request.method(), request.uri().path());
    // The mux looks at the path as it is written, and keeps a slash at its end.
    let slash = if written.ends_with('/') && cleaned(written) != "/" { "/" } else { "" };
    let clean = cleaned(written) + slash;
    if clean != written {
        let query = request.uri().query().filter(|query| !query.is_empty());
        let to = clean.replace('%', "%25") + &query.map(|query| format!("?{query}")).unwrap_or_default();
        return Err(Box::new(moved(method, 307, "Temporary Redirect", &to)));
    }
    let methods = allowed(path);
    let clean = path.strip_suffix('/').unwrap_or(path);
    if methods.is_empty() && clean != path && allowed(clean).contains(&method.as_str()) {
        let clean = &(clean.to_owned() + &request.uri().query().map(|query| format!("?{query}")).unwrap_or_default());
        let get = method == Method::GET;
        let (status, text) = if get { (301, "Moved Permanently") } else { (307, "Temporary Redirect") };
        return Err(Box::new(moved(method, status, text, clean)));
    }
    // gin's "no route" and "no method" pass the guards as routes do.
    let none = if path.starts_with("/fake/") || methods.contains(&method.as_str()) {
        None
    } else if methods.is_empty() {
        Some(plain(404, "404 page not found"))
    } else {
        Some(plain(405, "405 method not allowed"))
    };
    let wrong = none.is_some() && !methods.is_empty();
    let result = match (guard(request), none) {
        (Ok(cors), None) => return Ok(cors),
        (Ok(cors), Some(mut none)) => {
            none.headers_mut().extend(cors);
            none
        }
        (Err(refused), _) => *refused,
    };
    let mut answer = result;
    if wrong {
        answer.headers_mut().insert(ALLOW, HeaderValue::try_from(methods.join(", ")).unwrap());
    }
    Err(Box::new(answer))
}

/// What Go's server and its mux say themselves.
fn server(request: &Request<Incoming>) -> Option<Answer> {
    let close = |mut answer: Answer| {
        if request.method() == Method::HEAD {
            answer.headers_mut().remove(CONTENT_LENGTH);
        }
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        answer
    };
    let host = request.headers().get(HOST).map(|host| host.as_bytes().to_vec()).unwrap_or_default();
    if !host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte)) {
        let mut answer = plain(400, "400 Bad Request: malformed Host header");
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        answer.extensions_mut().insert(ReasonPhrase::from_static(b"Bad Request: malformed Host header"));
        return Some(close(answer));
    }
    if request.headers().get(EXPECT).is_some_and(|expect| !expect.as_bytes().eq_ignore_ascii_case(b"100-continue")) {
        return Some(close(empty(417)));
    }
    match (request.method(), request.uri().path()) {
        (&Method::OPTIONS, "*") => Some(empty(200)),
        (_, "*") => Some(close(empty(400))),
        (&Method::CONNECT, _) => {
            let mut answer = plain(404, "404 page not found\n");
            let headers = answer.headers_mut();
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
            Some(answer)
        }
        _ => None,
    }
}

pub(super) fn allowed(path: &str) -> &'static [&'static str] {
    let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'));
    if below("/api/blobs/") {
        return &["HEAD", "POST"];
    }
    if below("/v1/models/") {
        return &["GET"];
    }
    if below("/api/user/keys/") {
        return &["DELETE"];
    }
    ROUTES.iter().find(|(known, _)| *known == path).map_or(&[], |(_, methods)| methods)
}

/// Go's `path.Clean`, by the rules of the file system, which are the same for a path from the root.
pub(super) fn cleaned(path: &str) -> String {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(clean.pop()),
            Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    clean.to_str().unwrap().to_owned()
}

/// Go writes a page for those who read it.
fn moved(method: &Method, status: u16, text: &str, to: &str) -> Answer {
    let link = to.replace('&', "&amp;").replace('\'', "&#39;");
    let page = if method == Method::GET { format!("<a href=\"{link}\">{text}</a>.\n\n") } else { String::new() };
    let mut answer = plain(status, &page);
    let headers = answer.headers_mut();
    headers.remove(CONTENT_TYPE);
    if method == Method::HEAD {
        headers.remove(CONTENT_LENGTH);
    }
    if method == Method::GET || method == Method::HEAD {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    }
    headers.insert(LOCATION, HeaderValue::try_from(to).unwrap());
    answer
}

/// Ollama's guard against web pages (`server/routes.go`): CORS first, then the names that it is asked under.
fn guard(request: &Request<Incoming>) -> Result<HeaderMap, Box<Answer>> {
    let headers = request.headers();
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let host = request.uri().authority().map(ToString::to_string).or(text(HOST)).unwrap_or_default();
    let options = request.method() == Method::OPTIONS;
    let mut cors = HeaderMap::new();
    let refusal = |status, cors: &HeaderMap| {
        let mut answer = empty(status);
        if status == 204 || request.method() == Method::HEAD {
            answer.headers_mut().remove(CONTENT_LENGTH);
        }
        answer.headers_mut().extend(cors.clone());
        Err(Box::new(answer))
    };
    let origin = text(ORIGIN).unwrap_or_default();
    if !origin.is_empty() && origin != format!("http://{host}") && origin != format!("https://{host}") {
        if !allows(&origin) {
            return refusal(403, &cors);
        }
        cors.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::try_from(origin).unwrap());
        cors.append(VARY, HeaderValue::from_static("Origin"));
        if options {
            cors.append(VARY, HeaderValue::from_static("Access-Control-Request-Method"));
            cors.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
            cors.insert(
                ACCESS_CONTROL_ALLOW_METHODS,
                HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"),
            );
            cors.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(CORS_HEADERS));
            cors.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("43200"));
            return refusal(204, &cors);
        }
    }
    let name = split_host(&host).to_lowercase();
    if name.parse::<std::net::IpAddr>().is_ok_and(|ip| match ip {
        std::net::IpAddr::V4(ip) => ip.is_loopback() || ip.is_private() || ip.is_unspecified(),
        std::net::IpAddr::V6(ip) => ip.is_loopback() || ip.is_unspecified(),
    }) {
        return Ok(cors);
    }
    let own = name.is_empty()
        || name == "localhost"
        || [".localhost", ".local", ".internal"].iter().any(|tld| name.ends_with(tld));
    match (own, options) {
        (true, false) => Ok(cors),
        (true, true) => refusal(204, &cors),
        (false, _) => refusal(403, &cors),
    }
}

/// Ollama's default origins.
fn allows(origin: &str) -> bool {
    origin.split_once("://").is_some_and(|(scheme, rest)| match scheme {
        "http" | "https" => {
            let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
            ["localhost", "127.0.0.1", "0.0.0.0"].contains(&name) && port != Some("")
        }
        scheme => ["app", "file", "tauri", "vscode-webview", "vscode-file"].contains(&scheme),
    })
}

/// As Go's `net.SplitHostPort`; what it cannot split stays whole.
fn split_host(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once("]:")) {
        Some((name, _)) => name,
        None if host.matches(':').count() == 1 && !host.starts_with('[') => host.split(':').next().unwrap(),
        None => host,
    }
}
