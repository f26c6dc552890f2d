//! Peers that somebody typed: `--peer HOST[:PORT]`, for where multicast does not reach.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use super::{Sighting, SightingKind};

/// Where a node takes QUIC connections if nothing else was said.
pub const DEFAULT_PORT: u16 = 11435;
/// Longest host name (RFC 1035 §2.3.4).
const MAX_HOST: usize = 253;
/// How often a name is looked up again, and an address passed on again, when nobody asks. Home routers hand out other
/// addresses over night; a minute is below what a person waits before looking for the reason.
const AGAIN: Duration = Duration::from_secs(60);
/// First and longest wait after a look-up that failed.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);
/// Look-ups that somebody asked for follow each other no faster.
const ASKED_AGAIN: Duration = Duration::from_secs(2);
/// A look-up that takes longer has failed: the resolver's own limit can be much longer.
const LOOK_UP: Duration = Duration::from_secs(10);
/// Most addresses of one name that are used.
const MAX_ADDRESSES: usize = 8;

/// Where a peer is, as somebody typed it: a host name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PeerAddress {
    /// A DNS name, an IPv4 address, or an IPv6 address without brackets (perhaps with a scope: `fe80::1%eth0`).
    pub host: String,
    /// The UDP port of its QUIC endpoint.
    pub port: u16,
}

/// The result of the last look-up of a fixed peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookUp {
    /// None has come to its end yet.
    Pending,
    /// Its addresses.
    Found(BTreeSet<SocketAddr>),
    /// Why it has none.
    Failed(String),
}

/// Each fixed peer, as it was typed, with what came of its last look-up.
pub type LookUps = Arc<Vec<(PeerAddress, LookUp)>>;

/// Tells of fixed peers for as long as it lives.
#[derive(Debug)]
pub struct FixedPeers {
    ask: Arc<Notify>,
    look_ups: watch::Receiver<LookUps>,
    _tasks: JoinSet<()>,
}

// === impl FixedPeers ===

impl FixedPeers {
    /// Looks up `peers` now and every minute, and sends what is found: [`SightingKind::Present`] for each address, and
    /// [`SightingKind::Expired`] for one that a name no longer has. Must be called within a Tokio runtime.
    pub fn spawn(peers: Vec<PeerAddress>, sightings: mpsc::Sender<Sighting>) -> Self {
        let ask = Arc::new(Notify::new());
        let mut tasks = JoinSet::new();
        let pending = peers.iter().map(|peer| (peer.clone(), LookUp::Pending)).collect();
        let (tell, look_ups) = watch::channel(Arc::new(pending));
        for (index, peer) in peers.into_iter().enumerate() {
            let tell = tell.clone();
            let tell = move |look_up| {
                tell.send_modify(|all: &mut LookUps| {
                    if let Some((_, known)) = Arc::make_mut(all).get_mut(index) {
                        *known = look_up;
                    }
                });
            };
            tasks.spawn(follow(peer, sightings.clone(), ask.clone(), tell));
        }
        Self { ask, look_ups, _tasks: tasks }
    }

    /// The results of the latest look-ups.
    pub fn look_ups(&self) -> watch::Receiver<LookUps> {
        self.look_ups.clone()
    }

    /// Looks all of them up again, now: a dial failed, or the network changed. Calls in quick succession count as one.
    pub fn ask(&self) {
        self.ask.notify_waiters();
    }
}

async fn follow(peer: PeerAddress, sightings: mpsc::Sender<Sighting>, ask: Arc<Notify>, tell: impl Fn(LookUp)) {
    let mut known = BTreeSet::new();
    let mut failures = 0u32;
    loop {
        // Before the look-up: what is asked for while it runs is not lost.
        let asked = ask.notified();
        let wait = match look_up(&peer).await {
            Ok(found) => {
                if failures > 0 || known != found {
                    debug!(%peer, addresses = ?found, "looked up a fixed peer");
                }
                let gone = known.difference(&found).map(|address| (*address, SightingKind::Expired));
                let there = found.iter().map(|address| (*address, SightingKind::Present));
                let news: Vec<_> = gone.chain(there).collect();
                for (address, kind) in news {
                    if sightings.send(Sighting { kind, address, claim: None }).await.is_err() {
                        return;
                    }
                }
                if known != found || failures > 0 {
                    tell(LookUp::Found(found.clone()));
                }
                failures = 0;
                known = found;
                AGAIN
            }
            Err(error) => {
                if failures == 0 {
                    warn!(%peer, %error, "cannot look up a fixed peer, will try again");
                }
                failures = failures.saturating_add(1);
                tell(LookUp::Failed(error.to_string()));
                RETRY_FIRST.saturating_mul(1 << failures.min(10).saturating_sub(1)).min(RETRY_LONGEST)
            }
        };
        let pause = wait.min(ASKED_AGAIN);
        sleep(pause).await;
        tokio::select! {
            () = sleep(wait - pause) => {}
            () = asked => {}
            () = sightings.closed() => return,
        }
    }
}

async fn look_up(peer: &PeerAddress) -> std::io::Result<BTreeSet<SocketAddr>> {
    let looked_up = timeout(LOOK_UP, tokio::net::lookup_host((peer.host.as_str(), peer.port))).await;
    let silent = |_| std::io::Error::other(format!("no answer to its look-up within {} s", LOOK_UP.as_secs()));
    let found = looked_up.map_err(silent)??;
    let found: BTreeSet<_> = found.take(MAX_ADDRESSES).collect();
    if found.is_empty() { Err(std::io::Error::other("the name has no address")) } else { Ok(found) }
}

// === impl PeerAddress ===

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl From<PeerAddress> for String {
    fn from(address: PeerAddress) -> Self {
        address.to_string()
    }
}

impl TryFrom<String> for PeerAddress {
    type Error = ParsePeerAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for PeerAddress {
    type Err = ParsePeerAddressError;

    /// Reads `HOST`, `HOST:PORT`, `ADDR`, `ADDR:PORT`, `V6`, `[V6]` and `[V6]:PORT`, where a V6 may have a `%scope`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        use ParsePeerAddressError as E;
        let text = text.trim();
        if text.is_empty() {
            return Err(E::Empty);
        }
        if text.contains('/') {
            return Err(E::Url);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or(E::Bracket)?;
            if !is_v6(host) {
                return Err(E::Bracket);
            }
            return match rest.strip_prefix(':') {
                Some(port) => Ok(Self { host: host.to_owned(), port: parse_port(port)? }),
                None if rest.is_empty() => Ok(Self { host: host.to_owned(), port: DEFAULT_PORT }),
                None => Err(E::Bracket),
            };
        }
        if is_v6(text) {
            return Ok(Self { host: text.to_owned(), port: DEFAULT_PORT });
        }
        let (host, port) = match text.split_once(':') {
            Some((_, rest)) if rest.contains(':') => return Err(E::V6(text.to_owned())),
            Some((host, port)) => (host, parse_port(port)?),
            None => (text, DEFAULT_PORT),
        };
        if is_host(host) { Ok(Self { host: host.to_owned(), port }) } else { Err(E::Host(host.to_owned())) }
    }
}

/// Why a text does not say where a peer is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePeerAddressError {
    /// Nothing at all.
    #[error("a peer's address is HOST or HOST:PORT, this is empty")]
    Empty,
    /// A URL.
    #[error("a peer's address is HOST or HOST:PORT, without http:// and without a path")]
    Url,
    /// Brackets that hold no IPv6 address, or are not closed, or are followed by something other than a port.
    #[error("brackets go around an IPv6 address and may be followed by a port, as in [fd00::1]:{DEFAULT_PORT}")]
    Bracket,
    /// Several colons, yet not an IPv6 address.
    #[error("{0:?} is not an IPv6 address; with a port, one is written [fd00::1]:{DEFAULT_PORT}")]
    V6(String),
    /// Not a port.
    #[error("{0:?} is not a port: a number from 1 to 65535")]
    Port(String),
    /// Not a host name.
    #[error("{0:?} is neither an address nor a host name")]
    Host(String),
}

fn parse_port(text: &str) -> Result<u16, ParsePeerAddressError> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| ParsePeerAddressError::Port(text.to_owned()))
}

/// An IPv6 address, perhaps with a scope of the characters that interface names are made of.
fn is_v6(text: &str) -> bool {
    let (address, scope) = text.split_once('%').map_or((text, None), |(address, scope)| (address, Some(scope)));
    // A bracket in it could not be told from the one that ends the address.
    let fits = |b: u8| b.is_ascii_graphic() && !matches!(b, b'[' | b']');
    let scope_fits = scope.is_none_or(|scope| !scope.is_empty() && scope.bytes().all(fits));
    address.parse::<Ipv6Addr>().is_ok() && scope_fits
}

/// An IPv4 address or a host name. What looks like a number but is no address (`10.0.0`, `300.1.1.1`) is a slip: the
/// resolver would read `10.0.0` as 10.0.0.0 after the manner of `inet_aton`.
fn is_host(text: &str) -> bool {
    if text.parse::<IpAddr>().is_ok() {
        return true;
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    let numeric = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= MAX_HOST && name.split('.').all(label) && !numeric
}

#[cfg(test)]
mod tests {
    use super::*;
    use ParsePeerAddressError as E;
    use proptest::prelude::*;

    fn at(host: &str, port: u16) -> Result<PeerAddress, E> {
        Ok(PeerAddress { host: host.to_owned(), port })
    }

    #[test]
    fn every_usual_way_to_write_an_address_is_understood() {
        for (text, expected) in [
            ("gpu1", at("gpu1", 11435)),
            (" gpu1.lan:9 ", at("gpu1.lan", 9)),
            ("gpu1.lan.", at("gpu1.lan.", 11435)),
            ("my_box-2", at("my_box-2", 11435)),
            ("10.0.0.1", at("10.0.0.1", 11435)),
            ("10.0.0.1:1", at("10.0.0.1", 1)),
            ("::1", at("::1", 11435)),
            ("[::1]", at("::1", 11435)),
            ("[fd00::1]:65535", at("fd00::1", 65535)),
            ("fe80::1%eth0", at("fe80::1%eth0", 11435)),
            ("[fe80::1%eth0]:7", at("fe80::1%eth0", 7)),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }

    #[test]
    fn every_usual_slip_gets_a_reason_of_its_own() {
        for (text, expected) in [
            ("", E::Empty),
            ("http://gpu1:11434", E::Url),
            ("gpu1/x", E::Url),
            ("[::1", E::Bracket),
            ("[gpu1]:1", E::Bracket),
            ("[::1]x", E::Bracket),
            ("fd00::1::2", E::V6("fd00::1::2".to_owned())),
            ("gpu1:0", E::Port("0".to_owned())),
            ("gpu1:", E::Port(String::new())),
            ("gpu1:+80", E::Port("+80".to_owned())),
            ("gpu1:65536", E::Port("65536".to_owned())),
            ("gpu 1", E::Host("gpu 1".to_owned())),
            (":11435", E::Host(String::new())),
            ("a..b", E::Host("a..b".to_owned())),
            ("300.1.1.1", E::Host("300.1.1.1".to_owned())),
            ("10.0.0", E::Host("10.0.0".to_owned())),
            ("-x", E::Host("-x".to_owned())),
            ("::%]", E::V6("::%]".to_owned())),
        ] {
            assert_eq!(text.parse::<PeerAddress>(), Err(expected), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_again(text in r"[a-z0-9:.%_\[\]-]{0,30}") {
            if let Ok(address) = text.parse::<PeerAddress>() {
                prop_assert_eq!(address.to_string().parse::<PeerAddress>(), Ok(address));
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_fixed_peer_is_told_at_once_every_minute_and_when_asked() {
        let (sender, mut receiver) = mpsc::channel(8);
        let peers = FixedPeers::spawn(vec!["127.0.0.1:9".parse().unwrap(), "[::1]:8".parse().unwrap()], sender);
        let mut seen = BTreeSet::new();
        for _ in 0..2 {
            let sighting = receiver.recv().await.unwrap();
            assert_eq!((sighting.kind, sighting.claim), (SightingKind::Present, None));
            seen.insert(sighting.address.to_string());
        }
        assert_eq!(seen, BTreeSet::from(["127.0.0.1:9".to_owned(), "[::1]:8".to_owned()]));
        let start = tokio::time::Instant::now();
        receiver.recv().await.unwrap();
        receiver.recv().await.unwrap();
        assert_eq!(start.elapsed().as_secs(), AGAIN.as_secs());
        let start = tokio::time::Instant::now();
        sleep(ASKED_AGAIN / 2).await;
        peers.ask();
        receiver.recv().await.unwrap();
        receiver.recv().await.unwrap();
        assert_eq!(start.elapsed().as_secs(), ASKED_AGAIN.as_secs(), "asked, and yet not too soon");
        drop(peers);
        assert_eq!(receiver.recv().await, None);
    }

    #[tokio::test]
    async fn a_name_is_looked_up() {
        let (sender, mut receiver) = mpsc::channel(8);
        let _peers = FixedPeers::spawn(vec!["localhost:7".parse().unwrap()], sender);
        let sighting = receiver.recv().await.unwrap();
        assert!(sighting.address.ip().is_loopback() && sighting.address.port() == 7);
    }
}
