//! The machine: its network interfaces and the kernel's buffers.

use std::collections::BTreeSet;
use std::fs;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use rustix::process::{Resource, getrlimit};

use super::{Config, Finding};
use crate::control::Info;

/// What the transport asks the kernel for.
const WANTED_BUFFER: u64 = 4 * 1024 * 1024;

/// The listener has 4,096 connections, one more each to an Ollama, and some for all else. macOS gives no more.
const WANTED_FILES: u64 = 10_240;

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

/// How many files and sockets the node may have open: `status` says it if one runs, else this command's hard limit, to
/// which a node raises its own.
pub(super) fn files(node: Option<&Info>, findings: &mut Vec<Finding>) {
    let most = match node {
        Some(node) => node.open_files,
        None => getrlimit(Resource::Nofile).maximum,
    };
    let Some(most) = most else { return findings.push(Finding::ok("files", "no bound on open files and sockets")) };
    let found = format!("the node may have {most} files and sockets open");
    findings.push(if most >= WANTED_FILES {
        Finding::ok("files", found)
    } else {
        Finding::hint(
            "files",
            format!("{found}: applications get {} connections at once, and more wait", most / 2),
            format!(
                "for a service, LimitNOFILE={WANTED_FILES} in the [Service] section of its unit; else a higher hard limit \
                 (nofile in /etc/security/limits.conf), a new login, and start the node again"
            ),
        )
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
