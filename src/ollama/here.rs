//! Whether a server's address is one of this machine: asked again and again, since addresses come and go (DHCP, VPNs,
//! the bridges of containers), and one that went may come back at another machine.

use std::net::IpAddr;
use std::time::Duration;

use http::Uri;
use tokio::net::lookup_host;
use tokio::time::{Instant, timeout};

use super::trouble::Trouble;

/// How long an answer about an address holds. The list of the interfaces' addresses costs one question to the kernel.
const ADDRESS: Duration = Duration::from_secs(2);
/// How long an answer about a name holds: each is a question to the resolver, and perhaps to a server on the network.
const NAME: Duration = Duration::from_secs(30);
/// How long the resolver may take.
const RESOLVES: Duration = Duration::from_secs(2);

/// Where a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whereabouts {
    /// An address of an interface of this machine, or a name that stands for nothing else.
    Here,
    /// An address that this machine does not have, or a name of one.
    Elsewhere,
    /// A name that is not resolved at the moment.
    Unknown,
}

/// Follows where a host is.
#[derive(Debug)]
pub(super) struct Follow {
    url: Uri,
    known: Option<(Instant, Whereabouts)>,
}

/// Why a server that nobody named to Ollana is not asked now.
pub async fn hindrance(url: &Uri) -> Option<Trouble> {
    match url.scheme_str() {
        Some("http") => whereabouts(url).await.trouble(url),
        _ => Some(Trouble::Address(url.clone())),
    }
}

/// Where the host of a URL is now.
async fn whereabouts(url: &Uri) -> Whereabouts {
    let host = host(url);
    if host.eq_ignore_ascii_case("localhost") {
        return Whereabouts::Here;
    }
    if let Ok(ip) = host.parse() {
        return of(&[ip]);
    }
    match timeout(RESOLVES, lookup_host((host, 0))).await {
        Ok(Ok(found)) => of(&found.map(|found| found.ip()).collect::<Vec<_>>()),
        Ok(Err(_)) | Err(_) => Whereabouts::Unknown,
    }
}

/// Whether this is an address of this machine now.
pub(super) fn is_own(ip: IpAddr) -> bool {
    of(&[ip]) == Whereabouts::Here
}

fn of(ips: &[IpAddr]) -> Whereabouts {
    let mut others = ips.iter().map(IpAddr::to_canonical).filter(|ip| !ip.is_loopback()).peekable();
    if ips.is_empty() {
        return Whereabouts::Unknown;
    }
    if others.peek().is_none() {
        return Whereabouts::Here;
    }
    let own: Vec<IpAddr> = if_addrs::get_if_addrs().unwrap_or_default().iter().map(if_addrs::Interface::ip).collect();
    if others.all(|ip| own.contains(&ip)) { Whereabouts::Here } else { Whereabouts::Elsewhere }
}

fn host(url: &Uri) -> &str {
    url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']')
}

// === impl Whereabouts ===

impl Whereabouts {
    /// Why a server there is not asked.
    pub(super) fn trouble(self, url: &Uri) -> Option<Trouble> {
        match self {
            Self::Here => None,
            Self::Elsewhere => Some(Trouble::Elsewhere(url.clone())),
            Self::Unknown => Some(Trouble::Unresolved(url.clone())),
        }
    }
}

// === impl Follow ===

impl Follow {
    pub(super) fn new(url: Uri) -> Self {
        Self { url, known: None }
    }

    /// Where it is, as of a moment ago.
    pub(super) async fn look(&mut self) -> Whereabouts {
        if let Some((at, known)) = self.known
            && at.elapsed() < self.pause()
        {
            return known;
        }
        let found = whereabouts(&self.url).await;
        self.known = Some((Instant::now(), found));
        found
    }

    /// How long it takes until a look can find something new.
    pub(super) fn pause(&self) -> Duration {
        if host(&self.url).parse::<IpAddr>().is_ok() { ADDRESS } else { NAME }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_of_any_interface_is_this_machine() {
        let at = async |host: &str| whereabouts(&format!("http://{host}:11434/").parse().unwrap()).await;
        for own in ["127.0.0.1", "127.0.0.9", "[::1]", "[::ffff:127.0.0.1]", "localhost", "LOCALHOST"] {
            assert_eq!(at(own).await, Whereabouts::Here, "{own}");
        }
        for interface in if_addrs::get_if_addrs().unwrap() {
            let ip = interface.ip();
            let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
            assert_eq!(at(&host).await, Whereabouts::Here, "{ip}");
        }
        for other in ["192.0.2.1", "[2001:db8::1]"] {
            assert_eq!(at(other).await, Whereabouts::Elsewhere, "{other}");
        }
        assert_eq!(at("no-such-name.invalid").await, Whereabouts::Unknown);
    }

    #[tokio::test]
    async fn only_a_server_of_this_machine_without_tls_is_asked() {
        let code = async |url: &str| hindrance(&url.parse().unwrap()).await.map(|trouble| trouble.code());
        for own in ["http://127.0.0.1:5/", "http://localhost:11434/", "http://[::1]:1/x"] {
            assert_eq!(code(own).await, None, "{own}");
        }
        assert_eq!(code("http://192.0.2.1:11434/").await, Some("elsewhere"));
        assert_eq!(code("https://ollama.com:443/").await, Some("address"));
    }
}
