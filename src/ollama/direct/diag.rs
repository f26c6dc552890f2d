//! The kernel's list of TCP sockets of a port, with what it knows of each: `sock_diag` over netlink (sock_diag(7)).
//!
//! `/proc/net/tcp` would do for who is connected, but does not say when data last passed. The messages are fixed parts of
//! the kernel's interface (`linux/inet_diag.h`, `linux/tcp.h`), and fields that an older kernel does not have are at the
//! end; so they are read here, by offset. Anyone may ask for the sockets of the network namespace it is in.

use std::io;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};

/// `TCP_ESTABLISHED` and `TCP_LISTEN` of the kernel's states.
pub(in crate::ollama) const ESTABLISHED: u8 = 1;
pub(in crate::ollama) const LISTEN: u8 = 10;

/// `SOCK_DIAG_BY_FAMILY`, `NLMSG_ERROR`, `NLMSG_DONE`; `NLM_F_REQUEST | NLM_F_DUMP`.
const BY_FAMILY: u16 = 20;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const REQUEST_DUMP: u16 = 0x301;
/// `IPPROTO_TCP`, `INET_DIAG_INFO` and the bit that asks for it.
const TCP: u8 = 6;
const INFO: u16 = 2;
const ASK_INFO: u8 = 1 << (INFO - 1);

const HEADER: usize = 16;
const REQUEST: usize = HEADER + 56;
/// `struct inet_diag_msg`.
const MESSAGE: usize = 72;
/// The kernel fills no more than 32 KiB at a time.
const BUFFER: usize = 64 * 1024;
/// Sockets of one port that are looked at; a server with more has other problems.
const MOST: usize = 4096;

/// One socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::ollama) struct Socket {
    /// The port of the other side.
    pub(in crate::ollama) peer_port: u16,
    /// What its file descriptors are known by.
    pub(in crate::ollama) inode: u32,
    /// What `tcp_info` says, if the kernel gave it.
    pub(in crate::ollama) passed: Option<Passed>,
}

/// When data passed, in milliseconds ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::ollama) struct Passed {
    pub(in crate::ollama) sent_ago: u32,
    pub(in crate::ollama) received_ago: u32,
    /// Bytes received in all.
    pub(in crate::ollama) received: u64,
}

/// The sockets in this state whose own port is this one, of both families. Does not wait for anybody but the kernel.
pub(in crate::ollama) fn sockets(port: u16, state: u8) -> io::Result<Vec<Socket>> {
    let kernel =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
    set_socket_timeout(&kernel, Timeout::Recv, Some(Duration::from_secs(1)))?;
    let mut found = Vec::new();
    let mut buffer = vec![0; BUFFER];
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        let family = u8::try_from(family.as_raw()).unwrap_or_default();
        send(&kernel, &request(family, state, port), SendFlags::empty())?;
        loop {
            let (length, _) = recv(&kernel, buffer.as_mut_slice(), RecvFlags::empty())?;
            if read(buffer.get(..length).unwrap_or_default(), port, &mut found)? || length == 0 {
                break;
            }
        }
    }
    Ok(found)
}

fn request(family: u8, state: u8, port: u16) -> [u8; REQUEST] {
    let mut request = [0; REQUEST];
    let mut put = |at: usize, bytes: &[u8]| {
        if let Some(place) = request.get_mut(at..at + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(0, &u32::try_from(REQUEST).unwrap_or_default().to_ne_bytes());
    put(4, &BY_FAMILY.to_ne_bytes());
    put(6, &REQUEST_DUMP.to_ne_bytes());
    put(HEADER, &[family, TCP, ASK_INFO, 0]);
    put(HEADER + 4, &(1_u32 << state).to_ne_bytes());
    put(HEADER + 8, &port.to_be_bytes());
    request
}

/// Reads one datagram of answers; whether it was the last.
fn read(mut datagram: &[u8], port: u16, found: &mut Vec<Socket>) -> io::Result<bool> {
    while let (Some(length), Some(kind)) = (u32_at(datagram, 0), u16_at(datagram, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(message) = datagram.get(HEADER..length) else { break };
        match kind {
            DONE => return Ok(true),
            ERROR => {
                let number = u32_at(message, 0).map(u32::cast_signed).unwrap_or_default();
                return Err(io::Error::from_raw_os_error(number.saturating_neg()));
            }
            BY_FAMILY if found.len() < MOST => found.extend(socket(message, port)),
            _ => {}
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

fn socket(message: &[u8], port: u16) -> Option<Socket> {
    if be16_at(message, 4)? != port {
        return None;
    }
    let mut socket = Socket { peer_port: be16_at(message, 6)?, inode: u32_at(message, MESSAGE - 4)?, passed: None };
    let mut attributes = message.get(MESSAGE..)?;
    while let (Some(length), Some(kind)) = (u16_at(attributes, 0), u16_at(attributes, 2)) {
        let Some(value) = attributes.get(4..usize::from(length)) else { break };
        if kind == INFO {
            socket.passed = passed(value);
        }
        attributes = attributes.get(usize::from(length).next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

/// `tcpi_last_data_sent`, `tcpi_last_data_recv`, `tcpi_bytes_received` (since Linux 4.1) of `struct tcp_info`.
fn passed(info: &[u8]) -> Option<Passed> {
    Some(Passed { sent_ago: u32_at(info, 44)?, received_ago: u32_at(info, 52)?, received: u64_at(info, 128)? })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn be16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_listener_and_its_connection_are_found_with_what_has_passed() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).unwrap();
            let port = listener.local_addr().unwrap().port();
            assert_eq!(sockets(port, LISTEN).unwrap().len(), 1);
            assert_eq!(sockets(port, ESTABLISHED).unwrap(), []);
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            client.write_all(b"hello").unwrap();
            server.read_exact(&mut [0; 5]).unwrap();
            let found = sockets(port, ESTABLISHED).unwrap();
            let [socket] = found[..] else { panic!("one connection, not {found:?}") };
            assert_eq!(socket.peer_port, client.local_addr().unwrap().port());
            assert_ne!(socket.inode, 0);
            assert_eq!(socket.passed.unwrap().received, 5);
        }
    }

    #[test]
    fn what_is_no_answer_is_read_without_a_panic() {
        let mut found = Vec::new();
        for datagram in [&[][..], &[0; 16], &[255; 64], &[8, 0, 0, 0, 20, 0, 0, 0], &[20, 0, 0, 0, 20, 0, 0, 0, 1]] {
            let _ = read(datagram, 1, &mut found);
        }
        assert!(found.is_empty());
        assert!(socket(&[0; 80], 0).is_some_and(|socket| socket.passed.is_none()));
    }
}
