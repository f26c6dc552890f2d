//! The sockets of discovery: one a link, joined to the group there, and the check of how a datagram came.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, SockAddr, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, trace, warn};

use super::bucket::Bucket;
use super::interfaces::{Family, Link, Segment};
use crate::wire::beacon::MAX_LEN;

/// The IPv4 group. 224.0.0.0/24 stays on the link: no router forwards it, no switch filters it (RFC 5771 §4, RFC 4541).
pub(super) const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 254);
/// The IPv6 group: transient (`1`), link-local (`2`), and "olla".
pub(super) const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff12, 0, 0, 0, 0, 0, 0x6f6c, 0x6c61);
/// The highest TTL there is: a datagram that arrives with it passed no router (RFC 5082).
const TTL: u32 = 255;
/// Datagrams read a second from one link, beyond a first burst; the kernel drops what is more. A network of 500 nodes
/// restarted at once sends 2000 in its first 300 ms. Reading one costs some 5 µs: a flood takes 1 % of a core.
const READ_RATE: f64 = 2000.0;
const READ_BURST: u32 = 4000;

/// All open sockets.
#[derive(Debug)]
pub(super) struct Sockets {
    port: u16,
    open: BTreeMap<Link, Open>,
    /// Links that could not be joined, already reported; each [`Sockets::sync`] tries them again.
    troubled: BTreeSet<Link>,
    received: mpsc::Sender<Datagram>,
}

#[derive(Debug)]
struct Open {
    socket: Arc<UdpSocket>,
    segment: Segment,
    _reader: AbortOnDropHandle<()>,
}

/// A datagram as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Datagram {
    /// The link whose socket it came to.
    pub(super) link: Link,
    pub(super) source: SocketAddr,
    /// TTL or hop limit, where the kernel tells.
    ttl: Option<u32>,
    /// Where it was sent to and the interface it came by, where the kernel tells.
    destination: Option<(IpAddr, u32)>,
    pub(super) payload: Vec<u8>,
}

/// What [`Sockets::sync`] changed.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Joined, or with other addresses than before.
    pub(super) up: Vec<Link>,
    /// Left.
    pub(super) down: Vec<Link>,
    /// The port is held by another program that does not share it.
    pub(super) port_taken: Option<io::Error>,
}

/// Why a datagram is dropped unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotFromTheLink {
    #[error("its TTL is {0}, so it may have passed a router")]
    Ttl(u32),
    #[error("it was sent to {0} and not to the group")]
    Unicast(IpAddr),
    #[error("it came by interface {0}")]
    Interface(u32),
    #[error("its source is no address of this link")]
    Source,
    #[error("the kernel does not say how it came")]
    Unknown,
}

// === impl Sockets ===

impl Sockets {
    /// No sockets yet. What they receive goes to `received`.
    pub(super) fn new(port: u16, received: mpsc::Sender<Datagram>) -> Self {
        Self { port, open: BTreeMap::new(), troubled: BTreeSet::new(), received }
    }

    /// The interfaces that are listened on.
    pub(super) fn interfaces(&self) -> BTreeSet<&str> {
        self.open.values().map(|open| open.segment.name.as_str()).collect()
    }

    /// Opens and closes sockets until there is one for each of `links` that lets itself be joined.
    pub(super) fn sync(&mut self, links: BTreeMap<Link, Segment>) -> Changes {
        let mut changes = Changes::default();
        self.troubled.retain(|link| links.contains_key(link));
        self.open.retain(|link, open| {
            let keep = links.contains_key(link);
            if !keep {
                debug!(interface = open.segment.name, family = %link.family, "left the discovery group");
                changes.down.push(*link);
            }
            keep
        });
        for (link, segment) in links {
            if let Some(open) = self.open.get_mut(&link) {
                if open.segment != segment {
                    debug!(interface = segment.name, family = %link.family, addresses = ?segment.sources(), "addresses changed");
                    open.segment = segment;
                    changes.up.push(link);
                }
                continue;
            }
            match open(link, self.port) {
                Ok(socket) => {
                    debug!(interface = segment.name, family = %link.family, addresses = ?segment.sources(), "joined the discovery group");
                    let socket = Arc::new(socket);
                    let reader =
                        AbortOnDropHandle::new(tokio::spawn(read(link, socket.clone(), self.received.clone())));
                    self.troubled.remove(&link);
                    self.open.insert(link, Open { socket, segment, _reader: reader });
                    changes.up.push(link);
                }
                Err(error) => {
                    let taken = error.kind() == io::ErrorKind::AddrInUse;
                    if self.troubled.insert(link) {
                        warn!(interface = segment.name, family = %link.family, %error, "cannot join the discovery group, will try again");
                    }
                    if taken {
                        changes.port_taken = Some(error);
                    }
                }
            }
        }
        changes
    }

    /// Sends to the group on `link`.
    ///
    /// # Errors
    /// The kernel's, if it could be sent from none of the link's addresses: no route yet, the interface going down, an
    /// address that is still being checked for duplicates, a firewall.
    pub(super) fn send(&self, link: Link, payload: &[u8]) -> io::Result<()> {
        let open = self.open.get(&link).ok_or(io::ErrorKind::NotConnected)?;
        // Straight to the kernel: Tokio would first wait to be told that the socket is writable, and a datagram that
        // finds the buffer full is better sent anew later than waited for.
        match link.family {
            // The kernel chooses the source, the link-local address: every IPv6 machine on the link can dial that.
            Family::V6 => {
                let group = SocketAddrV6::new(GROUP_V6, self.port, 0, link.interface);
                SockRef::from(&*open.socket).send_to(payload, &group.into()).map(drop)
            }
            Family::V4 => {
                let group = SocketAddrV4::new(GROUP_V4, self.port);
                let mut outcome = Err(io::ErrorKind::AddrNotAvailable.into());
                for source in open.segment.sources() {
                    if let IpAddr::V4(source) = source {
                        let sent = send_from(&open.socket, source, link.interface, group, payload);
                        outcome = if outcome.is_ok() { outcome } else { sent };
                    }
                }
                outcome
            }
        }
    }

    /// Whether `datagram` was sent to the group, on this link, by a machine on this link.
    pub(super) fn admit(&self, datagram: &Datagram) -> Result<(), NotFromTheLink> {
        let open = self.open.get(&datagram.link).ok_or(NotFromTheLink::Interface(datagram.link.interface))?;
        datagram.check(&open.segment)
    }
}

// === impl Datagram ===

impl Datagram {
    fn check(&self, segment: &Segment) -> Result<(), NotFromTheLink> {
        match self.ttl {
            Some(TTL) => {}
            Some(ttl) => return Err(NotFromTheLink::Ttl(ttl)),
            None if cfg!(target_os = "linux") => return Err(NotFromTheLink::Unknown),
            // nix does not pass on the TTL of Apple's systems. That no router forwards these groups, and that the
            // source must be on the link, is the whole check there.
            None => {}
        }
        let (destination, interface) = self.destination.ok_or(NotFromTheLink::Unknown)?;
        if destination != IpAddr::V4(GROUP_V4) && destination != IpAddr::V6(GROUP_V6) {
            return Err(NotFromTheLink::Unicast(destination));
        }
        if interface != self.link.interface {
            return Err(NotFromTheLink::Interface(interface));
        }
        if segment.is_on_link(self.source.ip()) { Ok(()) } else { Err(NotFromTheLink::Source) }
    }
}

/// A socket that is joined to the group on `link` and hears nothing else.
///
/// On Linux it is bound to the group's own address, so unicast does not even reach it, and with `IP_MULTICAST_ALL` off
/// (IPv6: bound with the scope of the interface) neither does what other sockets of the machine joined elsewhere.
/// Other systems send from the address that a socket is bound to, so there it is bound to the unspecified one, and
/// [`Datagram::check`] sorts out.
///
/// Several nodes on one machine share the port, and each gets every datagram. On Linux `SO_REUSEADDR` does that, and
/// `SO_REUSEPORT` must be off: it makes of all these sockets one group in which each datagram goes to one member, chosen
/// by hash (seen with Linux 6.18: a datagram that came by one interface was given to the socket of another).
fn open(link: Link, port: u16) -> io::Result<UdpSocket> {
    let domain = match link.family {
        Family::V4 => Domain::IPV4,
        Family::V6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    #[cfg(not(target_os = "linux"))]
    socket.set_reuse_port(true)?;
    let to_group = cfg!(target_os = "linux");
    match link.family {
        Family::V4 => {
            socket.set_multicast_ttl_v4(TTL)?;
            socket.set_multicast_loop_v4(true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            #[cfg(target_os = "linux")]
            {
                setsockopt(&socket, sockopt::Ipv4RecvTtl, &true)?;
                socket.set_multicast_all_v4(false)?;
            }
            let address = if to_group { GROUP_V4 } else { Ipv4Addr::UNSPECIFIED };
            socket.bind(&SocketAddrV4::new(address, port).into())?;
            socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(link.interface))?;
        }
        Family::V6 => {
            socket.set_only_v6(true)?;
            socket.set_multicast_hops_v6(TTL)?;
            socket.set_multicast_loop_v6(true)?;
            socket.set_multicast_if_v6(link.interface)?;
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
            #[cfg(target_os = "linux")]
            {
                setsockopt(&socket, sockopt::Ipv6RecvHopLimit, &true)?;
                // Absent before Linux 4.20; the scope of the bound address does the same.
                let _ = socket.set_multicast_all_v6(false);
            }
            let (address, scope) = if to_group { (GROUP_V6, link.interface) } else { (Ipv6Addr::UNSPECIFIED, 0) };
            socket.bind(&SockAddr::from(SocketAddrV6::new(address, port, 0, scope)))?;
            socket.join_multicast_v6(&GROUP_V6, link.interface)?;
        }
    }
    UdpSocket::from_std(socket.into())
}

/// Hands on what arrives on one link until the receiver is gone.
async fn read(link: Link, socket: Arc<UdpSocket>, received: mpsc::Sender<Datagram>) {
    // Bytes, `struct cmsghdr` included, for both control messages.
    let mut control = nix::cmsg_space!(libc::in6_pktinfo, libc::in_pktinfo, libc::c_int);
    let mut budget = Bucket::new(READ_BURST, READ_RATE);
    loop {
        match socket.async_io(Interest::READABLE, || receive(link, &socket, &mut control)).await {
            Ok(Some(datagram)) => {
                if received.send(datagram).await.is_err() {
                    return;
                }
            }
            Ok(None) => trace!(?link, "dropped a datagram longer than a beacon"),
            Err(error) => {
                // The interface went down, mostly; the watch of interfaces will close this socket.
                trace!(?link, %error, "cannot receive");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        if !budget.take(Instant::now().into_std()) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// One datagram; `None` if it is longer than a beacon.
fn receive(link: Link, socket: &UdpSocket, control: &mut [u8]) -> io::Result<Option<Datagram>> {
    let mut buffer = [0; MAX_LEN];
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), MsgFlags::empty())?;
    #[cfg_attr(not(target_os = "linux"), allow(unused_mut, reason = "only Linux tells it"))]
    let mut ttl = None;
    let mut destination = None;
    for control in message.cmsgs()? {
        match control {
            #[cfg(target_os = "linux")]
            ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) => {
                ttl = u32::try_from(value).ok();
            }
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let address = Ipv4Addr::from_bits(u32::from_be(info.ipi_addr.s_addr));
                destination = u32::try_from(info.ipi_ifindex).ok().map(|interface| (address.into(), interface));
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                let address = Ipv6Addr::from(info.ipi6_addr.s6_addr);
                destination = Some((address.into(), info.ipi6_ifindex));
            }
            _ => {}
        }
    }
    let whole = !message.flags.contains(MsgFlags::MSG_TRUNC);
    let (length, address) = (message.bytes, message.address);
    let source = address.and_then(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
    });
    let payload = buffer.get(..length).map(<[u8]>::to_vec);
    Ok(payload.zip(source).filter(|_| whole).map(|(payload, source)| Datagram {
        link,
        source,
        ttl,
        destination,
        payload,
    }))
}

/// Sends from a chosen address by a chosen interface. Left to itself the kernel would never use 127.0.0.1 (its scope is
/// too narrow for a group), and always the first address of an interface.
fn send_from(
    socket: &UdpSocket,
    source: Ipv4Addr,
    interface: u32,
    group: SocketAddrV4,
    payload: &[u8],
) -> io::Result<()> {
    let info = libc::in_pktinfo {
        ipi_ifindex: interface.try_into().map_err(io::Error::other)?,
        ipi_spec_dst: libc::in_addr { s_addr: source.to_bits().to_be() },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let control = [ControlMessage::Ipv4PacketInfo(&info)];
    let group = SockaddrIn::from(group);
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(payload)], &control, MsgFlags::empty(), Some(&group))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram() -> Datagram {
        Datagram {
            link: Link { interface: 2, family: Family::V4 },
            source: "10.1.2.9:11436".parse().unwrap(),
            ttl: Some(255),
            destination: Some((GROUP_V4.into(), 2)),
            payload: Vec::new(),
        }
    }

    #[test]
    fn only_what_a_machine_on_the_link_sent_to_the_group_is_admitted() {
        let segment = Segment::for_test("eth0", &[("10.1.2.3", "255.255.255.0")]);
        assert_eq!(datagram().check(&segment), Ok(()));
        let us = "10.1.2.3".parse().unwrap();
        for (refused, why) in [
            (Datagram { ttl: Some(254), ..datagram() }, NotFromTheLink::Ttl(254)),
            (Datagram { ttl: Some(1), ..datagram() }, NotFromTheLink::Ttl(1)),
            (Datagram { destination: Some((us, 2)), ..datagram() }, NotFromTheLink::Unicast(us)),
            (Datagram { destination: Some((GROUP_V4.into(), 3)), ..datagram() }, NotFromTheLink::Interface(3)),
            (Datagram { destination: None, ..datagram() }, NotFromTheLink::Unknown),
            (Datagram { source: "10.1.3.9:11436".parse().unwrap(), ..datagram() }, NotFromTheLink::Source),
        ] {
            assert_eq!(refused.check(&segment), Err(why));
        }
    }
}
