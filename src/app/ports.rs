//! The program that uses a port, where Linux shows it.

use std::fs;
use std::path::Path;

/// The name and number of the process that listens on a port of this machine. Another user's is shown to root only.
pub fn holder(protocol: &str, port: u16) -> Option<String> {
    let tables = match protocol {
        "TCP" => ["/proc/net/tcp", "/proc/net/tcp6"],
        _ => ["/proc/net/udp", "/proc/net/udp6"],
    };
    tables.iter().find_map(|table| process(&fs::read_to_string(table).ok()?, port))
}

fn process(table: &str, port: u16) -> Option<String> {
    let inode = inodes(table, port).next()?;
    let wanted = format!("socket:[{inode}]");
    let processes = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path());
    // `/proc/self` is this process, under another name.
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
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn the_process_that_uses_a_port_is_named() {
        let own = format!("(process {})", std::process::id());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let found = holder("TCP", listener.local_addr().unwrap().port()).unwrap();
        assert!(found.contains(&own), "{found}");
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let found = holder("UDP", socket.local_addr().unwrap().port()).unwrap();
        assert!(found.contains(&own), "{found}");
    }
}
