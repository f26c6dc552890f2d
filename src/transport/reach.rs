//! Why a node that was dialled did not answer, as far as this machine can tell.
//!
//! quinn takes an error of `sendmsg` for a lost datagram, and an address where nothing answers looks the same whatever is
//! in the way. So after a dial in vain one datagram is sent there from a socket of its own, and the kernel is asked.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;

/// A host on the LAN says within a round trip that nothing listens there.
const ICMP_WITHIN: Duration = Duration::from_millis(200);
/// A datagram of QUIC has at least 1,200 bytes (RFC 9000, 14) and must not be fragmented; 20 more are IPv4's and 8 UDP's.
pub const MIN_MTU: u32 = 1228;

/// Why a dial got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreached {
    /// This machine does not let the datagram out: a packet filter.
    FilteredHere,
    /// The interface here takes no datagram of QUIC's size.
    Mtu(u32),
    /// No way leads there from here.
    NoRoute,
    /// The machine says that nothing listens at the port, or its firewall does.
    Closed,
    /// Nothing came back. With the MTU on the way, if it is known.
    Silent(Option<u32>),
}

impl Unreached {
    /// Looks for what is in the way to this address.
    pub async fn diagnose(address: SocketAddr) -> Self {
        probe(address).await.unwrap_or_else(|error| Self::of(&error).unwrap_or(Self::Silent(None)))
    }

    fn of(error: &io::Error) -> Option<Self> {
        match error.kind() {
            ErrorKind::PermissionDenied => Some(Self::FilteredHere),
            ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable | ErrorKind::AddrNotAvailable => {
                Some(Self::NoRoute)
            }
            ErrorKind::ConnectionRefused => Some(Self::Closed),
            _ => None,
        }
    }

    /// The obstacle, without the node's name.
    pub fn reason(self, address: SocketAddr) -> String {
        let (ip, port) = (address.ip(), address.port());
        match self {
            Self::FilteredHere => {
                format!("cannot be reached at {ip}: this machine's firewall does not let UDP {port} out")
            }
            Self::Mtu(mtu) => {
                format!("cannot be reached at {ip}: the MTU of the interface here is {mtu}, and QUIC needs {MIN_MTU}")
            }
            Self::NoRoute => format!("cannot be reached at {ip}: no route leads there, or no machine has that address"),
            Self::Closed => {
                format!("does not answer on UDP {port} at {ip}: ollana is not running there, or a firewall rejects it")
            }
            Self::Silent(Some(mtu)) if address.is_ipv4() => format!(
                "does not answer on UDP {port} at {ip}: a firewall there, or an MTU below {MIN_MTU} on the way (this \
                 interface: {mtu})"
            ),
            Self::Silent(_) => format!("does not answer on UDP {port} at {ip}: a firewall there or on the way"),
        }
    }

    /// The command or action that removes the obstacle.
    pub fn advice(self, address: SocketAddr) -> Option<String> {
        let port = address.port();
        match self {
            Self::FilteredHere => Some(format!("let UDP {port} out through this machine's firewall")),
            Self::Mtu(_) => Some(format!("raise the interface's MTU to {MIN_MTU} or more")),
            Self::Closed | Self::Silent(_) => Some(format!("let UDP {port} in through the firewall of that machine")),
            Self::NoRoute => None,
        }
    }
}

async fn probe(address: SocketAddr) -> io::Result<Unreached> {
    let any: IpAddr = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(address).await?;
    let mtu = mtu(&socket).filter(|_| address.is_ipv4());
    if let Some(mtu) = mtu.filter(|mtu| *mtu < MIN_MTU) {
        return Ok(Unreached::Mtu(mtu));
    }
    // A datagram that is no packet of QUIC is dropped unread there.
    socket.send(&[0]).await?;
    match tokio::time::timeout(ICMP_WITHIN, socket.recv(&mut [0])).await {
        Ok(Err(error)) => Err(error),
        Ok(Ok(_)) | Err(_) => Ok(Unreached::Silent(mtu)),
    }
}

/// The MTU of the way to where the socket is connected, as far as the kernel knows it.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn mtu(socket: &UdpSocket) -> Option<u32> {
    use nix::sys::socket::{getsockopt, sockopt};
    getsockopt(socket, sockopt::IpMtu).ok().and_then(|mtu| u32::try_from(mtu).ok())
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn mtu(_: &UdpSocket) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_closed_port_is_told_from_a_silent_one() {
        let free = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        assert!(matches!(Unreached::diagnose(address).await, Unreached::Silent(_)));
        drop(free);
        if cfg!(target_os = "linux") {
            assert_eq!(Unreached::diagnose(address).await, Unreached::Closed);
        }
    }

    #[test]
    fn the_mtu_is_told_where_it_can_be_the_reason() {
        let v4 = "10.88.0.1:11435".parse().unwrap();
        let silent = Unreached::Silent(Some(1500)).reason(v4);
        assert!(silent.contains("UDP 11435 at 10.88.0.1") && silent.contains("this interface: 1500"), "{silent}");
        assert!(Unreached::Mtu(1220).reason(v4).contains("1220"));
        assert!(!Unreached::Silent(Some(1500)).reason("[fd00::1]:11435".parse().unwrap()).contains("MTU"));
    }
}
