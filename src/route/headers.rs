//! Header fields that end at a hop, at the listener, or at the mesh.

use http::header::{
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, CONNECTION, COOKIE, ORIGIN, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderName};

/// On a request that a gate gave to its Ollama: a listener or a gate that sees it stands where an Ollama should, and
/// refuses it, or a request would go round.
pub const HOP_HEADER: HeaderName = HeaderName::from_static("ollana-hop");

/// On a request that came by a listener which is open to other machines (`--listen-open`): whoever asks is not the owner of
/// the node that sends it, and has no more than scope `infer` at any gate, whatever that node has. A listener takes it off
/// what comes in; who forges it between nodes gives something up.
pub const GUEST_HEADER: HeaderName = HeaderName::from_static("ollana-guest");

/// On answers of an Ollana that do not come from a peer: it is none of Ollama's.
pub const NODE_HEADER: HeaderName = HeaderName::from_static("ollana-node");

/// What RFC 9110 §7.6.1 names beside what `Connection` itself lists, and §11.7's fields for the next proxy only.
/// `Trailer` stays: it announces fields that come through.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What a browser says to the listener's own guard, and to nobody behind it.
const BROWSER: [HeaderName; 5] = [
    ORIGIN,
    COOKIE,
    ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD,
    HeaderName::from_static("access-control-request-private-network"),
];

/// Takes away what concerns one connection only (RFC 9110 §7.6.1), in either direction.
pub fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// Takes away what a browser adds to a request for the server it thinks it talks to.
pub fn drop_browser(headers: &mut HeaderMap) {
    for name in &BROWSER {
        headers.remove(name);
    }
}

/// Takes away what an Ollama says to browsers: the listener says its own.
pub fn drop_cors(headers: &mut HeaderMap) {
    let cors: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("access-control-")).cloned().collect();
    for name in cors {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v)));
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value);
        }
        headers
    }

    #[test]
    fn what_connection_names_is_dropped_with_it() {
        let mut fields = headers(&[
            ("connection", "close, X-One"),
            ("connection", "x-two"),
            ("x-one", "1"),
            ("x-two", "2"),
            ("x-three", "3"),
            ("x-three", "3b"),
            ("te", "trailers"),
            ("keep-alive", "timeout=5"),
            ("upgrade", "h2c"),
            ("trailer", "x-sum"),
        ]);
        drop_hop_by_hop(&mut fields);
        assert_eq!(fields, headers(&[("x-three", "3"), ("x-three", "3b"), ("trailer", "x-sum")]));
    }

    #[test]
    fn what_is_between_browser_and_listener_goes_no_further() {
        let mut request = headers(&[
            ("origin", "http://x"),
            ("cookie", "a=b"),
            ("access-control-request-method", "POST"),
            ("accept", "*/*"),
        ]);
        drop_browser(&mut request);
        assert_eq!(request, headers(&[("accept", "*/*")]));
        let mut answer = headers(&[("access-control-allow-origin", "*"), ("vary", "Origin"), ("x-a", "1")]);
        drop_cors(&mut answer);
        assert_eq!(answer, headers(&[("vary", "Origin"), ("x-a", "1")]));
    }
}
