//! The machine: its network interfaces and the kernel's buffers.

use std::collections::BTreeSet;
use std::fs;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::{Config, Finding};

/// What the transport asks the kernel for.
const WANTED_BUFFER: u64 = 4 * 1024 * 1024;

/// Whether discovery has an interface to work on.
pub(super) fn multicast(config: &Config, findings: &mut Vec<Finding>) {
    if !config.discovery {
        findings.push(Finding::hint("multicast", "discovery is off", "this node finds others by --peer only"));
        return;
    }
    let wanted = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING | InterfaceFlags::IFF_MULTICAST;
    let names: BTreeSet<String> = getifaddrs()
        .into_iter()
        .flatten()
        .filter(|entry| entry.flags.contains(wanted) && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter(|entry| entry.address.is_some_and(|at| at.as_sockaddr_in().is_some() || at.as_sockaddr_in6().is_some()))
        .map(|entry| entry.interface_name)
        .collect();
    findings.push(if names.is_empty() {
        Finding::problem(
            "multicast",
            "no network interface that is up supports multicast, so no other machine is found",
            "connect one, or name the other nodes with --peer",
        )
    } else {
        Finding::ok("multicast", format!("on {}", names.into_iter().collect::<Vec<_>>().join(", ")))
    });
}

/// Whether the kernel grants the socket buffers that many answers at once need.
pub(super) fn buffers(findings: &mut Vec<Finding>) {
    let limit = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
    };
    let (Some(receive), Some(send)) = (limit("rmem_max"), limit("wmem_max")) else { return };
    let found = format!("the kernel grants sockets {} KiB to receive and {} KiB to send", receive / 1024, send / 1024);
    findings.push(if receive >= WANTED_BUFFER && send >= WANTED_BUFFER {
        Finding::ok("buffers", found)
    } else {
        Finding::hint(
            "buffers",
            found,
            format!(
                "for full speed with many answers at once: sysctl -w net.core.rmem_max={WANTED_BUFFER} \
                 net.core.wmem_max={WANTED_BUFFER}, and in /etc/sysctl.d to keep it"
            ),
        )
    });
}
