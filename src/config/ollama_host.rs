//! Where the local Ollama is, read as Ollama's own client reads it.
//!
//! The rules are those of `Host` and `ConnectableHost` in `envconfig/config.go` of Ollama 0.33: a missing scheme is
//! `http`, a missing port 11434, or with a scheme written out that scheme's own; a port out of range is the default; and
//! an address to listen at on all interfaces is, for a client, the loopback of its family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use http::Uri;

use super::LISTEN_PORT;

/// What Ollama's client makes of `OLLAMA_HOST`, whatever stands there: a slip in it is Ollama's to report, and what
/// cannot be an address at all counts as not set.
pub(super) fn lenient(text: &str) -> Uri {
    let default = Uri::from_static("http://127.0.0.1:11434");
    split(text).into_uri().unwrap_or(default)
}

/// The same for `--ollama`, where a slip is an error.
pub(super) fn strict(text: &str) -> Result<Uri, String> {
    let parts = split(text);
    if parts.scheme == "https" {
        return Err(
            "an Ollama behind https is not supported; give its plain http:// address, or run `ollana serve` on \
                    that machine"
                .to_owned(),
        );
    }
    let uri = if parts.port_is_odd { None } else { parts.into_uri() };
    match uri {
        Some(uri) if uri.scheme_str() == Some("http") => Ok(uri),
        _ => Err("not the address of an Ollama, such as http://127.0.0.1:11434".to_owned()),
    }
}

/// Paths that clients of either API put behind the address of a server, and that Ollana adds by itself.
const API_PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/models", "/v1", "/api"];

/// The address without the path of an API at its end, and that path if there was one.
pub(super) fn without_api(url: Uri) -> (Uri, Option<&'static str>) {
    let path = url.path().trim_end_matches('/');
    let Some(api) = API_PATHS.into_iter().find(|api| path.ends_with(api)) else { return (url, None) };
    let rest = path.strip_suffix(api).unwrap_or(path);
    let scheme = url.scheme_str().unwrap_or("http");
    let authority = url.authority().map_or("", |authority| authority.as_str());
    match format!("{scheme}://{authority}{rest}/").trim_end_matches('/').parse() {
        Ok(base) => (base, Some(api)),
        Err(_) => (url, None),
    }
}

struct Parts {
    scheme: String,
    host: String,
    port: u16,
    /// The port that stood there was not one.
    port_is_odd: bool,
    path: String,
}

fn split(text: &str) -> Parts {
    let text = text.trim().trim_matches(['"', '\'']).trim();
    let (scheme, rest, default_port) = match text.split_once("://") {
        None if text == "ollama.com" => ("https", "ollama.com:443", LISTEN_PORT),
        None => ("http", text, LISTEN_PORT),
        Some(("http", rest)) => ("http", rest, 80),
        Some(("https", rest)) => ("https", rest, 443),
        Some((other, rest)) => (other, rest, LISTEN_PORT),
    };
    let (host_port, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (host, port) = match split_port(host_port) {
        Some((host, port)) => (host, Some(port)),
        None => (host_port.trim_matches(['[', ']']), None),
    };
    let parsed = port.map(str::parse::<u16>);
    Parts {
        scheme: scheme.to_owned(),
        host: connectable(host),
        port: match parsed {
            Some(Ok(port)) => port,
            _ => default_port,
        },
        port_is_odd: matches!(parsed, Some(Err(_))),
        path: path.to_owned(),
    }
}

/// `host:port`, where a host with colons stands in brackets: Go's `net.SplitHostPort`.
fn split_port(text: &str) -> Option<(&str, &str)> {
    let (host, port) = text.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => Some((inner.strip_suffix(']')?, port)),
        None if host.contains([':', ']']) => None,
        None => Some((host, port)),
    }
}

/// A host to connect to. An empty one is this machine, as for Go's dialler.
fn connectable(host: &str) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
        Ok(IpAddr::V6(ip)) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
        Ok(IpAddr::V6(ip)) => format!("[{ip}]"),
        Ok(IpAddr::V4(ip)) => ip.to_string(),
        Err(_) if host.is_empty() => Ipv4Addr::LOCALHOST.to_string(),
        Err(_) => host.to_owned(),
    }
}

impl Parts {
    fn into_uri(self) -> Option<Uri> {
        let path = self.path.trim_end_matches('/');
        format!("{}://{}:{}/{path}", self.scheme, self.host, self.port).parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ollama_host_is_read_as_ollama_reads_it() {
        // The cases of TestHost and TestConnectableHost in Ollama's envconfig/config_test.go.
        for (text, expected) in [
            ("", "http://127.0.0.1:11434/"),
            ("1.2.3.4", "http://1.2.3.4:11434/"),
            (":1234", "http://127.0.0.1:1234/"),
            ("1.2.3.4:1234", "http://1.2.3.4:1234/"),
            ("example.com", "http://example.com:11434/"),
            ("example.com:1234", "http://example.com:1234/"),
            (":66000", "http://127.0.0.1:11434/"),
            (":-1", "http://127.0.0.1:11434/"),
            ("[::1]", "http://[::1]:11434/"),
            ("[::]", "http://[::1]:11434/"),
            ("[::]:1234", "http://[::1]:1234/"),
            ("::1", "http://[::1]:11434/"),
            ("[::1]:1337", "http://[::1]:1337/"),
            (" 1.2.3.4 ", "http://1.2.3.4:11434/"),
            ("\"1.2.3.4\"", "http://1.2.3.4:11434/"),
            (" \" 1.2.3.4 \" ", "http://1.2.3.4:11434/"),
            ("'1.2.3.4'", "http://1.2.3.4:11434/"),
            ("http://1.2.3.4", "http://1.2.3.4:80/"),
            ("http://1.2.3.4:4321", "http://1.2.3.4:4321/"),
            ("https://1.2.3.4", "https://1.2.3.4:443/"),
            ("https://1.2.3.4:4321", "https://1.2.3.4:4321/"),
            ("https://example.com/ollama", "https://example.com:443/ollama"),
            ("ollama.com", "https://ollama.com:443/"),
            ("0.0.0.0", "http://127.0.0.1:11434/"),
            ("0.0.0.0:1234", "http://127.0.0.1:1234/"),
            ("https://0.0.0.0:4321", "https://127.0.0.1:4321/"),
            ("127.0.0.1:11434/@gpu1", "http://127.0.0.1:11434/@gpu1"),
            ("no host \u{7}", "http://127.0.0.1:11434/"),
        ] {
            assert_eq!(lenient(text).to_string(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_path_of_an_api_is_left_out() {
        for (url, base, api) in [
            ("http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/", Some("/v1")),
            ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/", Some("/v1")),
            ("http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/", Some("/v1/chat/completions")),
            ("http://127.0.0.1:11434/api", "http://127.0.0.1:11434/", Some("/api")),
            ("http://127.0.0.1:12434/engines/v1", "http://127.0.0.1:12434/engines", Some("/v1")),
            ("http://127.0.0.1:8000/api/v1", "http://127.0.0.1:8000/api", Some("/v1")),
            ("http://127.0.0.1:12434/engines", "http://127.0.0.1:12434/engines", None),
            ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/", None),
            ("http://127.0.0.1:8000/apiv1", "http://127.0.0.1:8000/apiv1", None),
        ] {
            let (found, cut) = without_api(url.parse().unwrap());
            assert_eq!((found.to_string().as_str(), cut), (base, api), "{url}");
        }
    }

    #[test]
    fn a_slip_in_the_flag_is_an_error() {
        assert_eq!(strict("http://gpu:11500/ollama/").unwrap().to_string(), "http://gpu:11500/ollama");
        for text in ["https://gpu", "gpu:99999", "ftp://gpu", "a b"] {
            assert!(strict(text).is_err(), "{text:?}");
        }
    }
}
