//! What a request walks through, and what its answer comes back through.

use std::convert::Infallible;

use http::header::{CONTENT_LENGTH, EXPECT, HOST, LOCATION, TE};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::Incoming;
use tower::Service as _;

use super::connection::Signals;
use super::guard::{Guard, Verdict};
use super::guests::Seat;
use super::words::{self, Said};
use crate::balance::Router;
use crate::catalog::{Catalog, List};
use crate::exchange::{self, Body, PEER_HEADER, REFUSAL_HEADER, Refusal, RefusalCode};
use crate::id::NodeName;
use crate::route::headers::{GUEST_HEADER, HOP_HEADER, drop_browser, drop_cors, drop_hop_by_hop};
use crate::route::{self, Kind, OwnerRoute, Route};

/// Answers the requests of all connections.
#[derive(Debug)]
pub(super) struct Answerer {
    name: HeaderValue,
    open: bool,
    guard: Guard,
    router: Router,
    catalog: Catalog,
}

// === impl Answerer ===

impl Answerer {
    pub(super) fn new(name: NodeName, open: bool, guard: Guard, router: Router, catalog: Catalog) -> Self {
        // A node's name holds nothing that a header may not.
        let name = HeaderValue::from_str(name.as_str()).unwrap_or(HeaderValue::from_static("node"));
        Self { name, open, guard, router, catalog }
    }

    /// The answer to one request of an application.
    pub(super) async fn answer(&self, request: Request<Incoming>, signals: &Signals) -> Response<Said> {
        let busy = signals.activity.begin();
        signals.answering.begin();
        let (mut parts, body) = request.into_parts();
        let body = signals.rests.guard(&parts, body);
        let version = parts.version;
        let (response, place) = match signals.seat.as_ref().map(Seat::enter) {
            Some(Err(why)) => {
                let api = route::classify(&parts.method, parts.uri.path()).api;
                (route::render(api, &Refusal::new(RefusalCode::Crowded, why.to_string())), None)
            }
            place => {
                let place = place.and_then(Result::ok);
                if let Some(place) = &place {
                    // Where the body is held while its model is looked for.
                    parts.extensions.insert(place.room());
                }
                (self.guarded(parts, body).await, place)
            }
        };
        let mut response = self.sign(response);
        // HTTP/1.0: here the close is what ends the body, so a break has to look different from it.
        let closes = version < Version::HTTP_11 && http_body::Body::size_hint(response.body()).exact().is_none();
        if closes {
            // Or hyper would promise an application that asked for it to keep the connection.
            *response.version_mut() = Version::HTTP_10;
        }
        response
            .map(|body| Said::new(body, &signals.answering, closes.then(|| signals.broke.clone()), (Some(busy), place)))
    }

    async fn guarded(&self, parts: Parts, body: Body) -> Response<Body> {
        let head = parts.method == Method::HEAD;
        let (mut response, cors) = match self.guard.check(&parts) {
            // The guard's own CORS headers are in its answer: nothing of it came from a server.
            Verdict::Answer(response) => return response,
            Verdict::Pass(cors) => (self.pass(parts, body).await, cors),
        };
        if head && !response.headers().contains_key(PEER_HEADER) {
            response = without_body(response);
        }
        let headers = response.headers_mut();
        drop_hop_by_hop(headers);
        drop_cors(headers);
        headers.remove(REFUSAL_HEADER);
        for (name, value) in cors.iter() {
            headers.append(name, value.clone());
        }
        response
    }

    /// Takes the choice of a node off the path, and gives it back where the answer sends the application elsewhere.
    async fn pass(&self, mut parts: Parts, body: Body) -> Response<Body> {
        let asked = Asked::of(&parts);
        let prefix = take_prefix(&mut parts);
        let mut response = self.route(parts, body).await;
        if let Some(prefix) = prefix {
            keep_choice(&mut response, &prefix, &asked);
        }
        response
    }

    async fn route(&self, mut parts: Parts, body: Body) -> Response<Body> {
        let looped = parts.headers.contains_key(HOP_HEADER);
        let Route { kind, api } = route::classify(&parts.method, parts.uri.path());
        if looped {
            return route::render(api, &loops());
        }
        end_here(&mut parts.headers);
        if self.open {
            parts.headers.insert(GUEST_HEADER, HeaderValue::from_static("1"));
        }
        let request = Request::from_parts(parts, body);
        let list = match kind {
            Kind::Tags => List::Tags,
            Kind::Ps => List::Ps,
            Kind::V1Models => List::V1Models,
            Kind::Root => {
                return words::plain(StatusCode::OK, "text/plain; charset=utf-8", "Ollama is running");
            }
            Kind::Version => return self.catalog.version(request).await,
            Kind::Owner(OwnerRoute::Me) => return route::unauthorized(),
            Kind::Owner(OwnerRoute::Status) => return route::cloud_off(),
            Kind::Owner(OwnerRoute::Forbidden) => return route::render(api, &owner_only()),
            Kind::Manage if self.open => return route::render(api, &open_listener()),
            Kind::Manage | Kind::BodyModel | Kind::PathModel(_) | Kind::Any | Kind::Unknown => {
                let Ok::<_, Infallible>(response) = self.router.clone().call(request).await;
                return response;
            }
        };
        self.catalog.answer(list, request).await
    }

    /// Says who answered, if it was nobody else.
    fn sign(&self, mut response: Response<Body>) -> Response<Body> {
        response.headers_mut().entry(PEER_HEADER).or_insert_with(|| self.name.clone());
        response
    }
}

/// Takes `/@name` off the path, and the scheme and authority off the target: what is left is what Ollama would see. The
/// name becomes the choice, unless a header chooses already: that is the more particular of the two. The part that was
/// taken off the path is given back, as it was written.
///
/// As the base of a program's addresses it may end in a slash, and each path begins with one: of two, one is the base's.
fn take_prefix(parts: &mut Parts) -> Option<String> {
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let named = target.strip_prefix("/@").or_else(|| target.strip_prefix("/%40"));
    let (prefix, name, rest) = match named {
        Some(named) => {
            let end = named.find(['/', '?']).unwrap_or(named.len());
            let (name, rest) = named.split_at(end);
            let prefix = target.get(..target.len() - rest.len()).unwrap_or_default();
            let rest = if rest.starts_with("//") { rest.get(1..).unwrap_or_default() } else { rest };
            (Some(prefix.to_owned()), Some(name), rest)
        }
        None => (None, None, target),
    };
    let rest = if rest.starts_with('/') || rest == "*" { rest.to_owned() } else { format!("/{rest}") };
    let choice = name.filter(|_| !parts.headers.contains_key(PEER_HEADER)).and_then(|name| {
        let name: Vec<u8> = percent_encoding::percent_decode_str(name).collect();
        HeaderValue::from_bytes(&name).ok()
    });
    if let Some(choice) = choice {
        parts.headers.insert(PEER_HEADER, choice);
    }
    // It was a part of a valid target.
    parts.uri = rest.parse::<PathAndQuery>().map_or_else(|_| Uri::from_static("/"), Uri::from);
    prefix
}

/// A server behind a node knows nothing of `/@name`: where its answer sends the application to another path, that begins
/// with the choice again. A location at another host is left alone, and a relative path leads there by itself.
fn keep_choice(response: &mut Response<Body>, prefix: &str, asked: &Asked) {
    if !response.status().is_redirection() {
        return;
    }
    let Some(location) = response.headers().get(LOCATION).and_then(|location| location.to_str().ok()) else { return };
    let kept = match location.strip_prefix('/') {
        Some(rest) if rest.starts_with('/') => return,
        Some(_) => format!("{prefix}{location}"),
        None => {
            let Ok(uri) = location.parse::<Uri>() else { return };
            let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return };
            if !asked.is(authority) {
                return;
            }
            format!("{scheme}://{authority}{prefix}{}", uri.path_and_query().map_or("/", PathAndQuery::as_str))
        }
    };
    if let Ok(kept) = HeaderValue::from_str(&kept) {
        response.headers_mut().insert(LOCATION, kept);
    }
}

/// As whom the application knows this node.
struct Asked(Option<Authority>);

impl Asked {
    fn of(parts: &Parts) -> Self {
        let host = || parts.headers.get(HOST)?.to_str().ok()?.parse().ok();
        Self(parts.uri.authority().cloned().or_else(host))
    }

    fn is(&self, authority: &Authority) -> bool {
        self.0.as_ref() == Some(authority)
    }
}

/// Takes off what concerns this connection, or the browser on it.
fn end_here(headers: &mut HeaderMap) {
    // gRPC insists on being told that trailers are welcome, as they are here (RFC 9110 §10.1.4).
    let wants_trailers = headers
        .get_all(TE)
        .iter()
        .filter_map(|te| te.to_str().ok())
        .flat_map(|te| te.split(','))
        .any(|coding| coding.trim().eq_ignore_ascii_case("trailers"));
    drop_hop_by_hop(headers);
    drop_browser(headers);
    // hyper has said "continue", or will when the body is read.
    headers.remove(EXPECT);
    headers.remove(REFUSAL_HEADER);
    headers.remove(GUEST_HEADER);
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// What the mesh itself says to `HEAD`: the length of the body and not the body, which HTTP/2 would send.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    let length = http_body::Body::size_hint(response.body()).exact().filter(|length| *length > 0);
    if let Some(length) = length {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response.map(|_| exchange::empty())
}

fn loops() -> Refusal {
    let message = "this is an Ollana listener and no Ollama: `--ollama` or OLLAMA_HOST of the node that asks must point at an \
                   Ollama server";
    Refusal::new(RefusalCode::Loop, message)
}

fn owner_only() -> Refusal {
    let message = "this acts on the account of an Ollama's owner and is never sent to other nodes: ask the Ollama on its own \
                   machine directly";
    Refusal::new(RefusalCode::OwnerOnly, message)
}

fn open_listener() -> Refusal {
    let message = "this listener is open to other machines (--listen-open) and so does not change models: ask a node that \
                   listens on its own machine only";
    Refusal::new(RefusalCode::Scope, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(target: &str) -> (String, Option<String>) {
        let (mut parts, ()) = Request::builder().uri(target).body(()).unwrap().into_parts();
        take_prefix(&mut parts);
        let choice = parts.headers.get(PEER_HEADER).map(|choice| choice.to_str().unwrap().to_owned());
        (parts.uri.to_string(), choice)
    }

    #[test]
    fn the_prefix_chooses_and_disappears() {
        let gpu1 = Some("gpu1".to_owned());
        assert_eq!(taken("/@gpu1/api/pull?x=1"), ("/api/pull?x=1".to_owned(), gpu1.clone()));
        assert_eq!(taken("/%40gpu1/api/tags"), ("/api/tags".to_owned(), gpu1.clone()));
        assert_eq!(taken("http://h:1/@gpu1"), ("/".to_owned(), gpu1.clone()));
        assert_eq!(taken("/@gpu1/"), ("/".to_owned(), gpu1.clone()));
        assert_eq!(taken("/@gpu1?q"), ("/?q".to_owned(), gpu1.clone()));
        assert_eq!(taken("/@gpu1//api/chat?x=/"), ("/api/chat?x=/".to_owned(), gpu1.clone()));
        assert_eq!(taken("/@gpu1///api/chat"), ("//api/chat".to_owned(), gpu1.clone()));
        assert_eq!(taken("/@gpu%31/"), ("/".to_owned(), gpu1));
        assert_eq!(taken("/api/@gpu1/x"), ("/api/@gpu1/x".to_owned(), None));
        assert_eq!(taken("http://h:1//api/tags"), ("//api/tags".to_owned(), None));
        assert_eq!(taken("*"), ("*".to_owned(), None));
    }

    #[test]
    fn a_header_chooses_before_the_prefix() {
        let request = Request::builder().uri("/@gpu1/api/tags").header(PEER_HEADER, "gpu2").body(()).unwrap();
        let (mut parts, ()) = request.into_parts();
        take_prefix(&mut parts);
        assert_eq!(parts.headers[PEER_HEADER], "gpu2");
        assert_eq!(parts.uri, "/api/tags");
    }

    #[test]
    fn a_redirect_keeps_the_choice_on_this_host_only() {
        let kept = |target: &str, location: &str| {
            let request = Request::builder().uri(target).header(HOST, "localhost:11434").body(()).unwrap();
            let (mut parts, ()) = request.into_parts();
            let asked = Asked::of(&parts);
            let prefix = take_prefix(&mut parts).unwrap();
            let answer = Response::builder().status(307).header(LOCATION, location).body(exchange::empty());
            let mut answer = answer.unwrap();
            keep_choice(&mut answer, &prefix, &asked);
            answer.headers()[LOCATION].to_str().unwrap().to_owned()
        };
        assert_eq!(kept("/@gpu1///api/chat", "/api/chat?a=b"), "/@gpu1/api/chat?a=b");
        assert_eq!(kept("/%40gpu1/api/tags/", "/api/tags"), "/%40gpu1/api/tags");
        assert_eq!(kept("/@gpu1/a", "http://localhost:11434/b?c"), "http://localhost:11434/@gpu1/b?c");
        assert_eq!(kept("http://[::1]:1/@gpu1/a", "http://[::1]:1/b"), "http://[::1]:1/@gpu1/b");
        for elsewhere in ["http://localhost:1/b", "//other/b", "b", "?c", ""] {
            assert_eq!(kept("/@gpu1/a", elsewhere), elsewhere);
        }
    }

    #[test]
    fn of_the_hop_only_the_wish_for_trailers_goes_on() {
        let mut headers = HeaderMap::new();
        headers.insert(TE, HeaderValue::from_static("deflate, Trailers"));
        headers.insert("connection", HeaderValue::from_static("te, upgrade"));
        headers.insert("upgrade", HeaderValue::from_static("h2c"));
        headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
        headers.insert("cookie", HeaderValue::from_static("a=b"));
        headers.insert("x-mine", HeaderValue::from_static("1"));
        end_here(&mut headers);
        let mut expected = HeaderMap::new();
        expected.insert("x-mine", HeaderValue::from_static("1"));
        expected.insert(TE, HeaderValue::from_static("trailers"));
        assert_eq!(headers, expected);
    }
}
