//! Which part this node plays: who holds port 11434, where peers come in, and whether there is an Ollama to share.
//!
//! Port 11434 is Ollama's before it is ours. A node takes it only at its start and only if nothing holds it; where an
//! Ollama is set to start with the machine, the node waits for it first. `localhost` is 127.0.0.1 to one program and ::1 to
//! another, and so both are ours or neither is: else some would find this node and some the Ollama, under one name.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use socket2::{Domain, Protocol, Socket, Type};

use super::ports;
use crate::config::{Config, FALLBACK_LISTEN_PORT, MeshAddr, Mode};
use crate::ollama::{Found, probe};
use crate::transport;

/// Where `localhost` may lead.
const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// Connections that the kernel may keep until they are accepted; it gives what it may (`net.core.somaxconn`). Where they
/// are too many, the next ones wait for a second.
const BACKLOG: i32 = 4096;
/// How long to wait for an Ollama that the service manager is set to start.
const BOOT_WAIT: Duration = Duration::from_secs(10);

/// Why a port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RoleError {
    /// The listener's address, which somebody chose.
    #[error(
        "cannot listen for applications on {addr}: {reason}; choose another address with --listen, or stop that program"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What is there, or what the system says.
        reason: String,
    },
    /// The default port and the one beside it.
    #[error(
        "cannot listen for applications: {first} is taken ({reason}) and so is {second}; choose an address with --listen, \
         or run with --mode server if this machine only shares its Ollama"
    )]
    BothTaken {
        /// Port 11434.
        first: SocketAddr,
        /// Port 11433.
        second: SocketAddr,
        /// What holds the first.
        reason: String,
    },
    /// The UDP port of the mesh.
    #[error("cannot use UDP {addr} for other nodes: {source}; choose another address with --mesh")]
    Mesh {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
}

/// An address that cannot be had.
struct Held {
    addr: SocketAddr,
    error: io::Error,
}

/// The listener for applications.
#[derive(Default)]
pub(super) struct Bound {
    /// At one address, or at both of loopback.
    pub(super) sockets: Vec<TcpListener>,
    /// The address that was wanted and taken, if the sockets are at another port for it, and what is there.
    pub(super) taken: Option<(SocketAddr, String)>,
}

/// Binds the listener for applications, if this node has one: where somebody said, and nowhere else; else at both
/// addresses of loopback.
pub(super) async fn bind_listener(config: &Config) -> Result<Bound, RoleError> {
    if config.mode == Mode::Server {
        return Ok(Bound::default());
    }
    if !config.listen.explicit && ollama_starts_at_boot() {
        wait_for_ollama(config.listen.addr.port()).await;
    }
    bind_listener_now(config).await
}

/// The same without waiting for an Ollama that is about to start.
pub(super) async fn bind_listener_now(config: &Config) -> Result<Bound, RoleError> {
    let addr = config.listen.addr;
    if config.listen.explicit {
        return match bind(addr) {
            Ok(listener) => Ok(Bound { sockets: vec![listener], taken: None }),
            Err(error) => Err(RoleError::Listen { addr, reason: who_holds(addr, &error).await.0 }),
        };
    }
    let Held { addr: first, error } = match bind_loopback(addr.port()) {
        Ok(sockets) => return Ok(Bound { sockets, taken: None }),
        Err(held) => held,
    };
    let (reason, is_server) = who_holds(first, &error).await;
    if error.kind() != ErrorKind::AddrInUse {
        return Err(RoleError::Listen { addr: first, reason });
    }
    match bind_loopback(FALLBACK_LISTEN_PORT) {
        Ok(sockets) => {
            let second = SocketAddr::new(addr.ip(), FALLBACK_LISTEN_PORT);
            let shares_other =
                config.mode == Mode::Client || config.ollama.explicit || is_at(&config.ollama.url, &[first]);
            let share = match is_server && !shares_other {
                true => format!("; to share what is at {first}: --ollama http://{first}"),
                false => String::new(),
            };
            tracing::info!(
                "{first} is taken: {reason}. The API for applications is at http://{second} instead \
                 (OLLAMA_HOST={second}){share}"
            );
            Ok(Bound { sockets, taken: Some((first, reason)) })
        }
        Err(held) => Err(RoleError::BothTaken { first, second: held.addr, reason }),
    }
}

/// Binds a port of both addresses of loopback, or of neither. Without IPv6 on the machine there is one.
fn bind_loopback(port: u16) -> Result<Vec<TcpListener>, Held> {
    let mut listeners = Vec::new();
    for ip in LOOPBACK {
        let addr = SocketAddr::new(ip, port);
        match bind(addr) {
            Ok(listener) => listeners.push(listener),
            Err(error) if ip.is_ipv6() && error.kind() != ErrorKind::AddrInUse => {
                tracing::debug!(%error, "no IPv6 for applications");
            }
            Err(error) => return Err(Held { addr, error }),
        }
    }
    Ok(listeners)
}

/// Binds the UDP socket of the mesh. Without IPv6 on the machine it does with IPv4; where nobody chose the port and it is
/// taken, with another one, which the beacons announce.
pub(super) fn bind_mesh(mesh: &MeshAddr) -> Result<UdpSocket, RoleError> {
    let any_family = |addr: SocketAddr| match transport::bind(addr) {
        Err(error) if !mesh.explicit && addr.is_ipv6() && error.kind() != ErrorKind::AddrInUse => {
            tracing::debug!(%error, "no IPv6 for other nodes");
            transport::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port())))
        }
        bound => bound,
    };
    match any_family(mesh.addr) {
        Err(error) if !mesh.explicit && error.kind() == ErrorKind::AddrInUse => {
            let socket = any_family(SocketAddr::new(mesh.addr.ip(), 0))
                .map_err(|source| RoleError::Mesh { addr: mesh.addr, source })?;
            let port = socket.local_addr().map_or(0, |addr| addr.port());
            tracing::warn!(
                "UDP {} is taken (by another ollana on this machine?): other nodes connect to UDP {port} instead. Multicast \
                 announces it; with --peer add :{port} to the address, and no firewall rule for {} fits",
                mesh.addr,
                mesh.addr.port()
            );
            Ok(socket)
        }
        bound => bound.map_err(|source| RoleError::Mesh { addr: mesh.addr, source }),
    }
}

/// Why there cannot be an Ollama to share as long as this node runs, for people; nothing if there can. `listen` is where
/// applications find this node.
pub(super) fn why_not_lent(config: &Config, listen: &[SocketAddr]) -> Option<String> {
    if config.mode == Mode::Client {
        return Some("--mode client".to_owned());
    }
    if is_at(&config.ollama.url, listen) {
        return Some(format!(
            "this node itself listens on {}; to share an Ollama of this machine, start Ollama on another port and name it \
             with --ollama, or use --mode server",
            config.ollama.url.authority().map_or_else(String::new, ToString::to_string)
        ));
    }
    None
}

/// Whether `url` leads to one of these addresses, such as our own listener.
fn is_at(url: &Uri, listen: &[SocketAddr]) -> bool {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(80);
    let leads_to = |listen: &SocketAddr| match host.parse::<IpAddr>() {
        Ok(ip) => ip == listen.ip() || listen.ip().is_unspecified() || ip.is_unspecified(),
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    };
    listen.iter().any(|listen| listen.port() == port && leads_to(listen))
}

/// How many files and sockets this process may have open; nothing if there is no bound.
pub(super) fn open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Closed connections of an earlier process, in TIME_WAIT, do not keep this one from the port.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Why an address cannot be had, for people, and whether a server is there that could be shared.
async fn who_holds(addr: SocketAddr, error: &io::Error) -> (String, bool) {
    if error.kind() != ErrorKind::AddrInUse {
        return (error.to_string(), false);
    }
    let process = ports::holder("TCP", addr.port());
    let found = match format!("http://{addr}").parse::<Uri>() {
        Ok(url) => probe(&url).await,
        Err(_) => Found::Nothing,
    };
    let is_server = matches!(found, Found::Ollama { .. } | Found::OpenAi { .. });
    let what = match found {
        Found::Ollama { version } => format!("Ollama {version}"),
        Found::OpenAi { server } => server.unwrap_or("a server".to_owned()) + " with the OpenAI API",
        Found::Ollana => "another ollana".to_owned(),
        Found::Grpc | Found::Other(_) | Found::Nothing => match process {
            Some(process) => return (format!("it is used by {process}, which is no Ollama"), false),
            None => "another program, which is no Ollama".to_owned(),
        },
    };
    (format!("it is used by {what}{}", process.map(|process| format!(", {process}")).unwrap_or_default()), is_server)
}

async fn wait_for_ollama(port: u16) {
    tracing::info!("an Ollama is set to start on this machine: waiting up to {} s for it", BOOT_WAIT.as_secs());
    let is_there = async |ip| tokio::net::TcpStream::connect((ip, port)).await.is_ok();
    let there = async {
        let [v4, v6] = LOOPBACK;
        while !(is_there(v4).await || is_there(v6).await) {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    if tokio::time::timeout(BOOT_WAIT, there).await.is_err() {
        tracing::warn!(
            "no Ollama started on port {port}; this node takes the port, so an Ollama that starts later cannot have it"
        );
    }
}

/// Whether systemd or launchd is set to start an Ollama: what `systemctl enable` and the macOS application leave behind.
fn ollama_starts_at_boot() -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let booted_by_systemd = PathBuf::from("/run/systemd/system").exists();
    let systemd = [
        PathBuf::from("/etc/systemd/system/default.target.wants/ollama.service"),
        PathBuf::from("/etc/systemd/system/multi-user.target.wants/ollama.service"),
        home.join(".config/systemd/user/default.target.wants/ollama.service"),
    ];
    let launchd = [
        home.join("Library/LaunchAgents/com.ollama.ollama.plist"),
        home.join("Library/LaunchAgents/homebrew.mxcl.ollama.plist"),
    ];
    (booted_by_systemd && systemd.iter().any(|unit| unit.is_symlink())) || launchd.iter().any(|job| job.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_listener_is_never_our_ollama() {
        let listen = LOOPBACK.map(|ip| SocketAddr::new(ip, 11434));
        for own in ["http://127.0.0.1:11434", "http://localhost:11434", "http://0.0.0.0:11434/x", "http://[::1]:11434"]
        {
            assert!(is_at(&own.parse().unwrap(), &listen), "{own}");
        }
        for other in ["http://127.0.0.1:11435", "http://10.0.0.1:11434", "http://127.0.0.2:11434"] {
            assert!(!is_at(&other.parse().unwrap(), &listen), "{other}");
        }
        assert!(!is_at(&"http://[::1]:11434".parse().unwrap(), &listen[..1]), "there is another");
    }

    #[test]
    fn a_taken_default_mesh_port_is_replaced_and_a_chosen_one_is_an_error() {
        let holder = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let addr = holder.local_addr().unwrap();
        let other = bind_mesh(&MeshAddr { addr, explicit: false }).unwrap().local_addr().unwrap();
        assert_ne!(other.port(), addr.port());
        let error = bind_mesh(&MeshAddr { addr, explicit: true }).unwrap_err();
        assert!(error.to_string().contains("--mesh"), "{error}");
    }
}
