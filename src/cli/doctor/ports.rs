//! Whether the ports of a node that does not run yet are free, and who holds them if not.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use super::{Config, Finding};
use crate::config::{FALLBACK_LISTEN_PORT, Mode, Status};

/// Tries each port for a moment.
pub(super) async fn look(config: &Config, findings: &mut Vec<Finding>) {
    let listen = config.listen;
    if config.mode != Mode::Server {
        let fallback = SocketAddr::new(listen.addr.ip(), FALLBACK_LISTEN_PORT);
        findings.push(match (tcp(listen.addr), listen.explicit) {
            (None, _) => Finding::ok("listen", format!("TCP {} is free", listen.addr)),
            (Some(taken), false) if tcp(fallback).is_none() => {
                Finding::hint("listen", taken, format!("applications will find the mesh at {fallback} instead"))
            }
            (Some(taken), _) => Finding::problem("listen", taken, "choose another address with --listen"),
        });
    }
    findings.push(match (udp(config.mesh.addr), config.mesh.explicit) {
        (None, _) => Finding::ok("mesh", format!("UDP {} is free", config.mesh.addr)),
        (Some(taken), false) => {
            Finding::hint("mesh", taken, "another port is taken, and announced; or choose with --mesh")
        }
        (Some(taken), true) => Finding::problem("mesh", taken, "choose another address with --mesh"),
    });
    if let Status::At { addr, explicit } = config.status {
        findings.push(match (tcp(addr), explicit) {
            (None, _) => Finding::ok("status", format!("TCP {addr} is free")),
            (Some(taken), false) => {
                Finding::hint("status", taken, "the status page is left out; or choose another address with --status")
            }
            (Some(taken), true) => Finding::problem("status", taken, "choose another address with --status"),
        });
    }
}

fn tcp(addr: SocketAddr) -> Option<String> {
    let error = TcpListener::bind(addr).err()?;
    Some(taken("TCP", addr, &error, &["/proc/net/tcp", "/proc/net/tcp6"]))
}

fn udp(addr: SocketAddr) -> Option<String> {
    let error = UdpSocket::bind(addr).err()?;
    Some(taken("UDP", addr, &error, &["/proc/net/udp", "/proc/net/udp6"]))
}

fn taken(protocol: &str, addr: SocketAddr, error: &std::io::Error, tables: &[&str]) -> String {
    if error.kind() != ErrorKind::AddrInUse {
        return format!("{protocol} {addr} cannot be had: {error}");
    }
    let holder = tables.iter().find_map(|table| holder(&fs::read_to_string(table).ok()?, addr.port()));
    format!("{protocol} {addr} is taken by {}", holder.as_deref().unwrap_or("another program"))
}

/// The program that holds a port, where Linux shows it: another user's only to root.
fn holder(table: &str, port: u16) -> Option<String> {
    let inode = inodes(table, port).next()?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    // `/proc/self` is this command, under another name.
    let numbered =
        |process: &Path| process.file_name().is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
    let process = processes.filter(|process| numbered(process)).find(|process| {
        let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target == Path::new(&wanted))
    })?;
    let name = fs::read_to_string(process.join("comm")).ok()?;
    Some(format!("{} (process {})", name.trim(), process.file_name()?.to_string_lossy()))
}

/// The inodes of the sockets bound to a port and not connected, in a table of `/proc/net` (proc_net_tcp in the kernel's
/// documentation): `sl local rem st …`, with the inode in the tenth column.
fn inodes(table: &str, port: u16) -> impl Iterator<Item = &str> {
    let local = format!(":{port:04X}");
    table.lines().filter_map(move |line| {
        let mut columns = line.split_whitespace();
        let bound = columns.nth(1)?.ends_with(&local);
        let alone = columns.next()?.ends_with(":0000");
        columns.nth(6).filter(|_| bound && alone)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = tcp(listener.local_addr().unwrap()).unwrap();
        assert!(
            found.contains("is taken by") && found.contains(&format!("(process {})", std::process::id())),
            "{found}"
        );
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = udp(socket.local_addr().unwrap()).unwrap();
        assert!(found.contains(&format!("(process {})", std::process::id())), "{found}");
        let free = socket.local_addr().unwrap();
        drop(socket);
        assert_eq!(udp(free), None);
    }
}
