//! Ollama's own guard against web pages, at the listener: who may be asked under which name (`Host`), and for which
//! page (`Origin`), and the CORS answers. The rules are those of `server/routes.go` (allowedHostsMiddleware)
//! and of gin-contrib/cors 1.7.2 as set up there, which did not change from Ollama 0.24 to 0.33. tower-http's `CorsLayer` cannot say them: it lets a foreign origin
//! through and leaves it to the browser, where Ollama answers 403 and runs nothing.

use std::net::IpAddr;

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE,
    HOST, ORIGIN, VARY,
};
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::allow::add_allow;
use super::words;
use crate::exchange::{self, Body};

/// As Go writes them.
const ALLOW_HEADERS: &str = "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,X-Stainless-Arch,\
X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,X-Stainless-Lang,X-Stainless-Os,\
X-Stainless-Package-Version,X-Stainless-Poll-Helper,X-Stainless-Retry-Count,X-Stainless-Runtime,\
X-Stainless-Runtime-Version,X-Stainless-Timeout";
const ALLOW_METHODS: &str = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS";
/// Twelve hours.
const MAX_AGE: &str = "43200";

/// Ollama's default origins, from `envconfig.AllowedOrigins`; `*` stands for anything.
const DEFAULT_ORIGINS: [&str; 17] = [
    "http://localhost",
    "https://localhost",
    "http://localhost:*",
    "https://localhost:*",
    "http://127.0.0.1",
    "https://127.0.0.1",
    "http://127.0.0.1:*",
    "https://127.0.0.1:*",
    "http://0.0.0.0",
    "https://0.0.0.0",
    "http://0.0.0.0:*",
    "https://0.0.0.0:*",
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
];

/// What an origin without a star begins with.
const SCHEMES: [&str; 6] = [
    "http://",
    "https://",
    "chrome-extension://",
    "safari-extension://",
    "moz-extension://",
    "ms-browser-extension://",
];

/// The rules, for one listener.
#[derive(Debug)]
pub(super) struct Guard {
    any_origin: bool,
    origins: Vec<Rule>,
    /// A listener that others can reach is not protected by names, as an Ollama is not.
    any_host: bool,
}

/// One allowed origin.
#[derive(Debug)]
enum Rule {
    Is(String),
    Between(String, String),
}

/// What the guard says of a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// It may pass; its answer gets these headers too.
    Pass(HeaderMap),
    /// It is answered here.
    Answer(Response<Body>),
}

// === impl Guard ===

impl Guard {
    /// The guard of a listener that others than this machine may reach or not, with the parts of `OLLAMA_ORIGINS` beside the
    /// defaults.
    pub(super) fn new(origins: &[String], beyond_loopback: bool) -> Self {
        let all = || origins.iter().map(String::as_str).chain(DEFAULT_ORIGINS);
        Self {
            any_origin: all().any(|origin| origin == "*"),
            origins: all().filter_map(Rule::parse).collect(),
            any_host: beyond_loopback,
        }
    }

    pub(super) fn check(&self, parts: &Parts) -> Verdict {
        let host = match host(parts) {
            Ok(host) => host,
            Err(problem) => return Verdict::Answer(words::bad_request(problem)),
        };
        if let Some(answer) = words::before_any_router(parts) {
            return Verdict::Answer(answer);
        }
        match self.admit(parts, host) {
            Verdict::Answer(answer) => Verdict::Answer(add_allow(answer, &parts.method, parts.uri.path())),
            pass => pass,
        }
    }

    fn admit(&self, parts: &Parts, host: &str) -> Verdict {
        let origin = parts.headers.get(ORIGIN).filter(|origin| !origin.is_empty());
        let mut cors = HeaderMap::new();
        if let Some(origin) = origin.filter(|origin| !is_same_origin(origin, host)) {
            if !self.allows_origin(origin) {
                return Verdict::Answer(status(StatusCode::FORBIDDEN));
            }
            let preflight = parts.method == Method::OPTIONS;
            cors = self.cors(origin, preflight);
            if preflight {
                return Verdict::Answer(with(status(StatusCode::NO_CONTENT), cors));
            }
        }
        if self.any_host {
            return Verdict::Pass(cors);
        }
        let host = without_port(host);
        if is_own_address(host) {
            return Verdict::Pass(cors);
        }
        if is_own_name(host) {
            if parts.method == Method::OPTIONS {
                return Verdict::Answer(with(status(StatusCode::NO_CONTENT), cors));
            }
            return Verdict::Pass(cors);
        }
        Verdict::Answer(with(status(StatusCode::FORBIDDEN), cors))
    }

    fn allows_origin(&self, origin: &HeaderValue) -> bool {
        self.any_origin || origin.to_str().is_ok_and(|origin| self.origins.iter().any(|rule| rule.allows(origin)))
    }

    fn cors(&self, origin: &HeaderValue, preflight: bool) -> HeaderMap {
        let mut cors = HeaderMap::new();
        if preflight {
            cors.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOW_HEADERS));
            cors.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(ALLOW_METHODS));
        }
        let allowed = if self.any_origin { HeaderValue::from_static("*") } else { origin.clone() };
        cors.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        if preflight {
            cors.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
        }
        if !self.any_origin {
            cors.append(VARY, HeaderValue::from_static("Origin"));
            if preflight {
                cors.append(VARY, HeaderValue::from_static("Access-Control-Request-Method"));
                cors.append(VARY, HeaderValue::from_static("Access-Control-Request-Headers"));
            }
        }
        cors
    }
}

// === impl Rule ===

impl Rule {
    /// `None` for what Ollama would not start with: more than one star, or neither a star nor a scheme.
    fn parse(text: &str) -> Option<Self> {
        match text.split_once('*') {
            None => {
                let origin = text.trim().to_lowercase();
                let known = SCHEMES.iter().any(|scheme| text.trim().starts_with(scheme));
                if !known {
                    tracing::warn!(
                        origin = text,
                        "ignored: an origin in OLLAMA_ORIGINS begins with http:// or holds a *"
                    );
                }
                known.then_some(Self::Is(origin))
            }
            Some((_, after)) if after.contains('*') => {
                tracing::warn!(origin = text, "ignored: an origin in OLLAMA_ORIGINS may hold one * at most");
                None
            }
            Some((before, after)) => Some(Self::Between(before.to_owned(), after.to_owned())),
        }
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            Self::Is(allowed) => origin == allowed,
            Self::Between(before, after) => origin.starts_with(before.as_str()) && origin.ends_with(after.as_str()),
        }
    }
}

/// Whom the request takes us for: of HTTP/2 and of a target in absolute form the authority, else the `Host`. An error is
/// what Go's server says of it.
fn host(parts: &Parts) -> Result<&str, Option<&'static str>> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(None),
        (Some(host), None) => {
            let host = host.to_str().ok().filter(|host| host.bytes().all(may_be_in_a_host));
            Some(host.ok_or(Some("400 Bad Request: malformed Host header"))?)
        }
        (None, _) if parts.version == Version::HTTP_11 && parts.method != Method::CONNECT => {
            return Err(Some("400 Bad Request: missing required Host header"));
        }
        (None, _) => None,
    };
    Ok(parts.uri.authority().map(Authority::as_str).or(host).unwrap_or_default())
}

/// What RFC 3986 has in a host and port; Go asks for no more.
fn may_be_in_a_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}

/// A page that this very server gave out. (It gives out none, but a reverse proxy in front may.) After DNS rebinding a
/// foreign page is of the same origin too, which is why the host is looked at in any case.
fn is_same_origin(origin: &HeaderValue, host: &str) -> bool {
    let host_of = |origin: &HeaderValue, scheme: &str| {
        origin.as_bytes().strip_prefix(scheme.as_bytes()).is_some_and(|rest| rest == host.as_bytes())
    };
    host_of(origin, "http://") || host_of(origin, "https://")
}

/// As Go's `net.SplitHostPort`: what it cannot split stays whole.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((address, port)) if port.starts_with(':') => address,
            _ => host,
        };
    }
    match host.split_once(':') {
        Some((name, port)) if !port.contains(':') => name,
        _ => host,
    }
}

/// An address that no DNS name can be made to stand for, so no page can be behind it: this machine's, or its network's.
fn is_own_address(host: &str) -> bool {
    let Ok(address) = host.split('%').next().unwrap_or(host).parse::<IpAddr>() else { return false };
    let address = address.to_canonical();
    let private = match address {
        IpAddr::V4(v4) => v4.is_private(),
        IpAddr::V6(v6) => v6.is_unique_local(),
    };
    address.is_loopback()
        || private
        || address.is_unspecified()
        || if_addrs::get_if_addrs().is_ok_and(|all| all.iter().any(|interface| interface.ip() == address))
}

fn is_own_name(host: &str) -> bool {
    let host = host.to_lowercase();
    host.is_empty()
        || host == "localhost"
        || [".localhost", ".local", ".internal"].iter().any(|tld| host.ends_with(tld))
        || rustix::system::uname().nodename().to_str().is_ok_and(|own| own.to_lowercase() == host)
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(exchange::empty());
    *response.status_mut() = status;
    response
}

fn with(mut response: Response<Body>, headers: HeaderMap) -> Response<Body> {
    response.headers_mut().extend(headers);
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Request;

    const LOOPBACK: &str = "127.0.0.1:11434";

    fn check(
        guard: &Guard,
        method: Method,
        host: &str,
        origin: Option<&str>,
    ) -> Result<HeaderMap, Box<Response<Body>>> {
        let mut request = Request::builder().method(method).uri("/api/tags").header(HOST, host);
        if let Some(origin) = origin {
            request = request.header(ORIGIN, origin);
        }
        match guard.check(&request.body(()).unwrap().into_parts().0) {
            Verdict::Pass(cors) => Ok(cors),
            Verdict::Answer(answer) => Err(Box::new(answer)),
        }
    }

    fn guard(origins: &[&str], address: &str) -> Guard {
        let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let address: std::net::SocketAddr = address.parse().unwrap();
        Guard::new(&origins, !address.ip().is_loopback())
    }

    #[test]
    fn hosts_are_allowed_as_ollama_allows_them() {
        let guard = guard(&[], LOOPBACK);
        let passes = |host: &str| match check(&guard, Method::GET, host, None) {
            Ok(_) => true,
            Err(answer) => {
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{host}");
                false
            }
        };
        for host in [
            "127.0.0.1:11434",
            "127.0.0.1",
            "localhost",
            "LOCALHOST:1",
            "[::1]:11434",
            "::1",
            "0.0.0.0:11434",
            "10.1.2.3",
            "192.168.0.9:80",
            "172.16.0.1",
            "[fd00::1]:1",
            "a.local",
            "x.internal:9",
            "a.b.localhost",
            "",
            ":11434",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(passes(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:11434",
            "localhost.evil.example",
            "8.8.8.8",
            "[2001:db8::1]:1",
            "notlocal",
            "127.0.0.1.evil.example",
            "[::1]",
            "172.32.0.1",
            "local",
        ] {
            assert!(!passes(host), "{host}");
        }
        let own = rustix::system::uname().nodename().to_str().unwrap().to_owned();
        assert!(passes(&own), "{own}");
    }

    #[test]
    fn beyond_loopback_any_host_is_allowed_and_foreign_origins_are_not() {
        let guard = guard(&[], "0.0.0.0:11434");
        assert!(check(&guard, Method::GET, "evil.example", None).is_ok());
        let refused = check(&guard, Method::GET, "evil.example", Some("http://other.example")).unwrap_err();
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn origins_are_allowed_as_ollama_allows_them() {
        let guard = guard(&["https://page.example", "chrome-extension://*", " http://Trimmed.example "], LOOPBACK);
        let passes = |origin: &str| match check(&guard, Method::POST, LOOPBACK, Some(origin)) {
            Ok(cors) => {
                assert_eq!(cors[ACCESS_CONTROL_ALLOW_ORIGIN], origin);
                assert_eq!(cors[VARY], "Origin");
                true
            }
            Err(answer) => {
                assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{origin}");
                assert!(!answer.headers().contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
                false
            }
        };
        for origin in [
            "http://localhost",
            "http://localhost:3000",
            "https://127.0.0.1:8443",
            "http://0.0.0.0",
            "app://obsidian.md",
            "file://",
            "vscode-webview://abc",
            "tauri://localhost",
            "https://page.example",
            "chrome-extension://abc",
            "http://trimmed.example",
        ] {
            assert!(passes(origin), "{origin}");
        }
        for origin in [
            "null",
            "https://evil.example",
            "http://localhost.evil.example",
            "https://page.example.evil.example",
            "moz-extension://abc",
            "http://page.example",
            "HTTP://localhost",
        ] {
            assert!(!passes(origin), "{origin}");
        }
    }

    #[test]
    fn a_page_of_the_same_origin_needs_no_cors_but_still_a_good_host() {
        let guard = guard(&[], LOOPBACK);
        let cors = check(&guard, Method::GET, "my.local:8080", Some("http://my.local:8080")).unwrap();
        assert!(cors.is_empty());
        let rebound = check(&guard, Method::GET, "evil.example:11434", Some("http://evil.example:11434")).unwrap_err();
        assert_eq!(rebound.status(), StatusCode::FORBIDDEN);
    }

    #[test]
    fn a_star_allows_every_origin() {
        let cors = check(&guard(&["*"], LOOPBACK), Method::GET, LOOPBACK, Some("https://evil.example")).unwrap();
        assert_eq!(cors[ACCESS_CONTROL_ALLOW_ORIGIN], "*");
        assert!(!cors.contains_key(VARY));
    }

    #[test]
    fn a_preflight_is_answered_as_recorded() {
        let answer =
            check(&guard(&[], LOOPBACK), Method::OPTIONS, LOOPBACK, Some("http://localhost:3000")).unwrap_err();
        assert_eq!(answer.status(), StatusCode::NO_CONTENT);
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_HEADERS], ALLOW_HEADERS);
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_METHODS], ALLOW_METHODS);
        assert_eq!(answer.headers()[ACCESS_CONTROL_ALLOW_ORIGIN], "http://localhost:3000");
        assert_eq!(answer.headers()[ACCESS_CONTROL_MAX_AGE], "43200");
        assert_eq!(answer.headers().get_all(VARY).iter().count(), 3);
    }

    #[test]
    fn options_without_origin_is_ollamas_business_except_under_a_name() {
        let guard = guard(&[], LOOPBACK);
        assert!(check(&guard, Method::OPTIONS, LOOPBACK, None).is_ok());
        assert_eq!(check(&guard, Method::OPTIONS, "localhost", None).unwrap_err().status(), StatusCode::NO_CONTENT);
    }
}
