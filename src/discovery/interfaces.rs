//! The links of this machine: its interfaces, each address family apart, and which addresses are theirs.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Once;

use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::{InterfaceFlags, if_nametoindex};
use nix::sys::socket::SockaddrStorage;
use tracing::warn;

/// Most links used, each a socket and a small task; those with the lowest interface numbers, the oldest. Far above what a
/// person plugs into a machine, and below what makes a process run out of file descriptors (often 1024).
const MAX_LINKS: usize = 128;
/// Most source addresses of one IPv4 link that beacons are sent from: one for each subnet on that wire.
const MAX_SOURCES: usize = 4;

/// One interface and one address family: what a socket of ours stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Link {
    /// The interface's index in the kernel.
    pub(super) interface: u32,
    pub(super) family: Family,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Family {
    V4,
    V6,
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// The addresses that this machine has on a link.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Segment {
    /// The interface's name, for the log.
    pub(super) name: String,
    /// In the order of the kernel: the primary address of a subnet first.
    subnets: Vec<Subnet>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subnet {
    address: IpAddr,
    mask: u128,
    /// The other end of a point-to-point interface.
    remote: Option<IpAddr>,
}

/// The links that can carry multicast now: up, with a carrier, and with an address of the family.
///
/// Linux does not set the flag `MULTICAST` on the loopback interface. It carries IPv4 multicast nevertheless; for IPv6
/// it has no route (`ENETUNREACH`). Nodes that share a machine without a network find each other by the former.
pub(super) fn links() -> io::Result<BTreeMap<Link, Segment>> {
    let mut indices = BTreeMap::new();
    let mut links = BTreeMap::<Link, Segment>::new();
    for entry in getifaddrs()? {
        let flags = entry.flags;
        let Some(subnet) = Subnet::of(&entry) else { continue };
        let loopback = flags.contains(InterfaceFlags::IFF_LOOPBACK) && subnet.address.is_ipv4();
        let carries = loopback || flags.contains(InterfaceFlags::IFF_MULTICAST);
        if !carries || !flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING) {
            continue;
        }
        let name = entry.interface_name;
        if is_bridge_port(&name) {
            continue;
        }
        // An interface that goes away while the list is read has no index any more.
        let index = *indices.entry(name.clone()).or_insert_with(|| if_nametoindex(name.as_str()).unwrap_or(0));
        if index != 0 {
            let segment = links.entry(Link { interface: index, family: Family::of(subnet.address) }).or_default();
            segment.name = name;
            segment.subnets.push(subnet);
        }
    }
    if links.len() > MAX_LINKS {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| warn!(links = links.len(), used = MAX_LINKS, "too many network interfaces to use all"));
    }
    while links.len() > MAX_LINKS {
        links.pop_last();
    }
    Ok(links)
}

/// What arrives at a port of a bridge belongs to the bridge, which is an interface of its own. A machine with containers
/// has a port for each of them.
fn is_bridge_port(name: &str) -> bool {
    cfg!(target_os = "linux") && Path::new("/sys/class/net").join(name).join("brport").exists()
}

// === impl Family ===

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

// === impl Segment ===

impl Segment {
    /// Whether `source` can be the address of a machine on this link. A router or a forger may put any source into a
    /// datagram; what is believed here is dialled, and nobody shall make us dial half the internet.
    pub(super) fn is_on_link(&self, source: IpAddr) -> bool {
        if source.is_unspecified() || source.is_multicast() {
            return false;
        }
        match source {
            IpAddr::V6(ip) if ip.is_unicast_link_local() => true,
            _ => self.subnets.iter().any(|subnet| subnet.contains(source)),
        }
    }

    /// The addresses to send from: the first of each subnet, since a machine that has only one of the subnets can
    /// dial only there.
    pub(super) fn sources(&self) -> Vec<IpAddr> {
        let mut chosen: Vec<Subnet> = Vec::new();
        for subnet in &self.subnets {
            if chosen.len() < MAX_SOURCES && !chosen.iter().any(|other| other.contains(subnet.address)) {
                chosen.push(*subnet);
            }
        }
        chosen.into_iter().map(|subnet| subnet.address).collect()
    }
}

// === impl Subnet ===

impl Subnet {
    fn of(entry: &InterfaceAddress) -> Option<Self> {
        let address = ip(entry.address.as_ref()?)?;
        // Without a mask only the address itself is on the link.
        let mask = entry.netmask.as_ref().and_then(ip).map_or(u128::MAX, bits);
        Some(Self { address, mask, remote: entry.destination.as_ref().and_then(ip) })
    }

    fn contains(&self, other: IpAddr) -> bool {
        self.remote == Some(other)
            || (self.address.is_ipv4() == other.is_ipv4() && (bits(self.address) ^ bits(other)) & self.mask == 0)
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => Ipv4Addr::to_bits(v4).into(),
        IpAddr::V6(v6) => Ipv6Addr::to_bits(v6),
    }
}

#[cfg(test)]
impl Segment {
    pub(super) fn for_test(name: &str, subnets: &[(&str, &str)]) -> Self {
        let subnets = subnets
            .iter()
            .map(|(address, mask)| Subnet {
                address: address.parse().unwrap(),
                mask: bits(mask.parse().unwrap()),
                remote: None,
            })
            .collect();
        Self { name: name.to_owned(), subnets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_links_own_subnets_are_on_it() {
        let v4 = Segment::for_test("eth0", &[("10.1.2.3", "255.255.255.0"), ("192.168.9.1", "255.255.0.0")]);
        for (source, on) in [
            ("10.1.2.200", true),
            ("192.168.200.1", true),
            ("10.1.3.1", false),
            ("8.8.8.8", false),
            ("0.0.0.0", false),
            ("224.0.0.254", false),
            ("fd00::1", false),
        ] {
            assert_eq!(v4.is_on_link(source.parse().unwrap()), on, "{source}");
        }
        let v6 = Segment::for_test("eth0", &[("fd00::1", "ffff:ffff:ffff:ffff::")]);
        for (source, on) in
            [("fe80::9", true), ("fd00::9", true), ("fd01::9", false), ("::", false), ("10.0.0.1", false)]
        {
            assert_eq!(v6.is_on_link(source.parse().unwrap()), on, "{source}");
        }
    }

    #[test]
    fn one_source_is_used_for_each_subnet() {
        let subnets = [("10.1.2.3", "255.255.255.0"), ("10.1.2.4", "255.255.255.0"), ("10.9.0.1", "255.255.255.0")];
        let sources = Segment::for_test("eth0", &subnets).sources();
        assert_eq!(sources, ["10.1.2.3".parse::<IpAddr>().unwrap(), "10.9.0.1".parse().unwrap()]);
    }

    #[test]
    fn this_machines_own_links_can_be_listed() {
        for (link, segment) in links().unwrap() {
            assert!(link.interface > 0 && !segment.name.is_empty() && !segment.sources().is_empty());
            assert!(segment.sources().into_iter().all(|source| segment.is_on_link(source)), "{segment:?}");
        }
    }

    /// What the poll once a second costs: `cargo test --release --lib price_of_listing -- --ignored --nocapture`.
    #[test]
    #[ignore = "a measurement, not a check"]
    fn price_of_listing_the_links() {
        let start = std::time::Instant::now();
        for _ in 0..1000 {
            let _ = std::hint::black_box(links());
        }
        println!("{} links, {:?} a listing", links().unwrap().len(), start.elapsed() / 1000);
    }
}
