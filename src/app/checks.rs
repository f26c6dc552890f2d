//! The checks of everything that a node needs to start: one list, which `serve` goes through before it takes anything
//! and `doctor` reports. Nothing here changes anything.

use std::fs;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::lending::Lending;
use super::roles::{self, Bound};
use super::{AppError, guest, ports};
use crate::config::{Config, Mode, Status};
use crate::control::{self, StateDir};
use crate::discovery::{Discovery, GROUP_PORT};
use crate::identity::{Identity, KEY_FILE};
use crate::pairing::Invitation;
use crate::trust::{Book, TRUST_FILE};
use crate::web;

/// The permissions of group and others on a directory.
const FOREIGN_BITS: u32 = 0o077;

/// One thing that was looked at.
#[derive(Debug)]
pub struct Check {
    /// The thing that was looked at, in a word.
    pub name: &'static str,
    /// How it is.
    pub result: CheckResult,
}

/// How a thing is.
#[derive(Debug)]
pub enum CheckResult {
    /// As it should be; with the finding.
    Fine(String),
    /// The node starts with it; a person should know.
    Warning {
        /// The finding.
        found: String,
        /// The command or action that corrects it.
        advice: String,
        /// Whether something is not safe or will not work.
        serious: bool,
    },
    /// The node does not start. The error says what to do.
    Fatal(AppError),
}

impl Check {
    fn new(name: &'static str, result: CheckResult) -> Self {
        Self { name, result }
    }

    /// Fine with these words, or fatal.
    fn of<E: Into<AppError>>(name: &'static str, result: Result<String, E>) -> Self {
        Self::new(name, result.map_or_else(|error| CheckResult::Fatal(error.into()), CheckResult::Fine))
    }
}

/// The files that a node needs, and what else is known before any port is bound.
pub fn files(config: &Config) -> Vec<Check> {
    let dir = &config.state_dir;
    let state = |()| match dir.exists() {
        true => format!("{} can be read and written", dir.display()),
        false => format!("{} is made at the first start", dir.display()),
    };
    let mut checks = vec![match (StateDir::check(dir), access(dir)) {
        (Ok(()), Some(open)) => open,
        (checked, _) => Check::of("state", checked.map(state)),
    }];
    checks
        .extend(control::Server::check(dir).err().map(|error| Check::new("socket", CheckResult::Fatal(error.into()))));
    let key = Identity::load(dir).map(|identity| match identity {
        Some(identity) => format!("{KEY_FILE} is good: this node is {}", identity.id().short()),
        None => format!("{KEY_FILE} is made at the first start"),
    });
    checks.push(Check::of("key", key));
    let path = dir.join(TRUST_FILE);
    let trust = Book::open(&path, config.trust).map(|book| match path.exists() {
        true => format!("{TRUST_FILE} is good; peers in it: {}", book.snapshot().pins().count()),
        false => format!("{TRUST_FILE} is made when the first peer is met"),
    });
    checks.push(Check::of("trust", trust));
    if let Err(error) = Lending::new(&config.lend, false) {
        checks.push(Check::new("hours", CheckResult::Fatal(error.into())));
    }
    checks
}

/// Whether other users can look into the state directory, or write there.
fn access(dir: &Path) -> Option<Check> {
    let found = fs::metadata(dir).ok()?;
    let (mode, uid, own) = (found.permissions().mode() & 0o777, found.uid(), rustix::process::geteuid().as_raw());
    let warning = |found, advice| Some(Check::new("state", CheckResult::Warning { found, advice, serious: true }));
    if uid != own && own != 0 {
        return warning(
            format!("{} belongs to another user (uid {uid})", dir.display()),
            "choose another with --state-dir, or run the node as that user".to_owned(),
        );
    }
    if mode & FOREIGN_BITS != 0 {
        return warning(
            format!("{} is open to other users (mode {mode:o})", dir.display()),
            format!("chmod 700 {}", dir.display()),
        );
    }
    None
}

/// The invitation that is to be redeemed.
///
/// # Errors
/// If it cannot be read, or others could have read it.
pub(super) fn invitation(config: &Config) -> Result<Option<Invitation>, AppError> {
    let read = |path: &PathBuf| guest::read(path, config.credentials.as_deref());
    Ok(config.invitation_file.as_ref().map(read).transpose()?)
}

/// The same for whoever only wants to know: what can be read once, a pipe or standard input, is left to the node.
pub fn invitation_file(config: &Config) -> Option<Check> {
    let path = config.invitation_file.as_ref().filter(|path| path.to_str() != Some("-"))?;
    let once = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let read = || invitation(config).map(|_| format!("the invitation {} can be used", path.display()));
    (!once).then(|| Check::of("invitation", read()))
}

/// Nodes of other users on this machine: a second one is a machine of its own to all other nodes.
pub fn others(config: &Config) -> Option<Check> {
    let others = control::others();
    let other = others.first()?;
    Some(Check::new(
        "others",
        CheckResult::Warning {
            found: format!(
                "a node of another user runs on this machine (its state is in {}): its API serves all users here, and this \
                 would be a second node",
                other.display()
            ),
            advice: format!(
                "use that one, or give this one another name than {}: ollana config set name {}-2",
                config.name, config.name
            ),
            serious: false,
        },
    ))
}

/// The ports that a node would take now, all at once. Each is given back.
pub async fn free_ports(config: &Config) -> Vec<Check> {
    let instead = |name, found, advice: &str| {
        Check::new(name, CheckResult::Warning { found, advice: advice.to_owned(), serious: false })
    };
    let holder =
        |protocol, addr: SocketAddr| ports::holder(protocol, addr.port()).unwrap_or("another program".to_owned());
    let mut checks = Vec::new();
    // Held until all are tried, so that two settings which name one port are found as well.
    let mut listeners = Vec::new();
    if config.mode != Mode::Server {
        let addresses = |sockets: &[TcpListener]| -> Vec<String> {
            sockets.iter().filter_map(|socket| socket.local_addr().ok()).map(|addr| addr.to_string()).collect()
        };
        checks.push(match roles::bind_listener_now(config).await {
            Ok(Bound { sockets, taken }) => {
                let got = addresses(&sockets);
                listeners = sockets;
                match taken {
                    Some((wanted, reason)) => instead(
                        "listen",
                        format!(
                            "TCP {wanted} {}, so applications will find the API at {}",
                            reason.strip_prefix("it ").unwrap_or(&reason),
                            got.iter().map(|addr| format!("http://{addr}")).collect::<Vec<_>>().join(" and ")
                        ),
                        "no action needed; or choose an address with --listen",
                    ),
                    None => Check::new("listen", CheckResult::Fine(format!("TCP {} can be used", got.join(" and ")))),
                }
            }
            Err(error) => Check::new("listen", CheckResult::Fatal(error.into())),
        });
    }
    let wanted = config.mesh.addr;
    let mesh = roles::bind_mesh(&config.mesh);
    let port = |socket: &UdpSocket| socket.local_addr().map_or(0, |got| got.port());
    checks.push(match mesh {
        Ok(socket) if wanted.port() != 0 && port(&socket) != wanted.port() => instead(
            "ports",
            format!(
                "UDP {wanted} is used by {}, so peers will connect to another port, for which no firewall rule fits",
                holder("UDP", wanted)
            ),
            "stop that program, or choose a port: ollana config set mesh 11445",
        ),
        Ok(_) => Check::new("ports", CheckResult::Fine(format!("UDP {wanted} is free"))),
        Err(error) => Check::new("ports", CheckResult::Fatal(error.into())),
    });
    if config.discovery {
        let shared = Discovery::check(GROUP_PORT).map(|()| format!("UDP {GROUP_PORT} can be used for discovery"));
        checks.push(Check::of("discovery", shared));
    }
    if let Status::At { addr, explicit } = config.status {
        checks.push(match web::bind(addr, explicit) {
            Ok(Some(_)) => Check::new("status", CheckResult::Fine(format!("TCP {addr} is free"))),
            Ok(None) => instead(
                "status",
                format!("TCP {addr} is used by {}, so there will be no status page", holder("TCP", addr)),
                "choose another address with --status",
            ),
            Err(error) => Check::new("status", CheckResult::Fatal(error.into())),
        });
    }
    drop(listeners);
    checks
}
