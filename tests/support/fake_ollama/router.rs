//! What gin, Go's mux and Ollama's guards say before any handler.

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HOST, LOCATION, ORIGIN, VARY};
use http::{HeaderMap, HeaderValue, Method, Request};
use hyper::body::Incoming;

use super::answers::{Answer, empty, plain};

/// What the router knows: path, methods.
const ROUTES: &[(&str, &[&str])] = &[
    ("/", &["GET", "HEAD"]),
    ("/api/version", &["GET", "HEAD"]),
    ("/api/status", &["GET"]),
    ("/api/pull", &["POST"]),
    ("/api/push", &["POST"]),
    ("/api/tags", &["GET", "HEAD"]),
    ("/api/show", &["POST"]),
    ("/api/delete", &["DELETE"]),
    ("/api/me", &["POST"]),
    ("/api/signout", &["POST"]),
    ("/api/create", &["POST"]),
    ("/api/copy", &["POST"]),
    ("/api/experimental/web_search", &["POST"]),
    ("/api/experimental/web_fetch", &["POST"]),
    ("/api/ps", &["GET"]),
    ("/api/generate", &["POST"]),
    ("/api/chat", &["POST"]),
    ("/api/embed", &["POST"]),
    ("/api/embeddings", &["POST"]),
    ("/v1/chat/completions", &["POST"]),
    ("/v1/completions", &["POST"]),
    ("/v1/embeddings", &["POST"]),
    ("/v1/models", &["GET"]),
    ("/v1/audio/transcriptions", &["POST"]),
    ("/v1/responses", &["POST"]),
    ("/v1/messages", &["POST"]),
];

/// The path as Go hands it to the router.
pub(super) fn path(request: &Request<Incoming>) -> String {
    percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned()
}

/// What gin and Go's mux say before any handler.
pub(super) fn routed(path: &str, method: &Method) -> Result<(), Box<Answer>> {
    let clean = cleaned(path);
    if clean != path && path != format!("{clean}/") {
        return Err(Box::new(moved(307, "Temporary Redirect", &clean)));
    }
    if path.starts_with("/fake/") {
        return Ok(());
    }
    let allowed = allowed(path);
    if allowed.is_empty() {
        if clean != path && !self::allowed(&clean).is_empty() {
            let get = method == Method::GET;
            let (status, text) = if get { (301, "Moved Permanently") } else { (307, "Temporary Redirect") };
            return Err(Box::new(moved(status, text, &clean)));
        }
        return Err(Box::new(plain(404, "404 page not found")));
    }
    if allowed.contains(&method.as_str()) {
        return Ok(());
    }
    let mut answer = plain(405, "405 method not allowed");
    answer.headers_mut().insert(ALLOW, HeaderValue::try_from(allowed.join(", ")).unwrap());
    Err(Box::new(answer))
}

pub(super) fn allowed(path: &str) -> &'static [&'static str] {
    let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty() && !rest.contains('/'));
    if below("/api/blobs/") {
        return &["POST", "HEAD"];
    }
    if below("/v1/models/") {
        return &["GET"];
    }
    ROUTES.iter().find(|(known, _)| *known == path).map_or(&[], |(_, methods)| methods)
}

pub(super) fn cleaned(path: &str) -> String {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

pub(super) fn moved(status: u16, text: &str, to: &str) -> Answer {
    let mut answer = plain(status, &format!("<a href=\"{to}\">{text}</a>.\n\n"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    answer.headers_mut().insert(LOCATION, HeaderValue::try_from(to).unwrap());
    answer
}

/// Ollama's guard against web pages: a foreign `Host` or `Origin` is refused; an allowed `Origin` is given back.
pub(super) fn guard(headers: &HeaderMap) -> Result<Option<String>, Box<Answer>> {
    let text = |name| headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let host = text(HOST).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name).to_lowercase();
    let local = |name: &str| {
        let ip = name.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        ip.is_ok_and(|ip| ip.is_loopback() || ip.is_unspecified())
            || name == "localhost"
            || [".localhost", ".local", ".internal"].iter().any(|tld| name.ends_with(tld))
    };
    if !local(&name) {
        return Err(Box::new(empty(403)));
    }
    match text(ORIGIN) {
        None => Ok(None),
        Some(origin) => {
            let allowed = origin.split_once("://").is_some_and(|(scheme, host)| match scheme {
                "http" | "https" => local(host.split(':').next().unwrap_or_default()),
                scheme => ["app", "file", "tauri", "vscode-webview", "vscode-file"].contains(&scheme),
            });
            if allowed { Ok(Some(origin)) } else { Err(Box::new(empty(403))) }
        }
    }
}

pub(super) fn allow(headers: &mut HeaderMap, origin: &str) {
    headers.insert("access-control-allow-origin", HeaderValue::try_from(origin).unwrap());
    headers.append(VARY, HeaderValue::from_static("Origin"));
}

pub(super) fn preflight(path: &str, origin: Option<&str>) -> Answer {
    let mut answer = empty(204);
    answer.headers_mut().remove(CONTENT_LENGTH);
    let headers = answer.headers_mut();
    allow(headers, origin.unwrap_or_default());
    headers.insert("access-control-allow-methods", HeaderValue::from_static("GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"));
    headers.insert(
        "access-control-allow-headers",
        HeaderValue::from_static("Authorization,Content-Type,User-Agent,Accept"),
    );
    headers.insert("access-control-max-age", HeaderValue::from_static("43200"));
    headers.insert(ALLOW, HeaderValue::try_from(allowed(path).join(", ")).unwrap());
    answer
}
