//! Two hosts in network namespaces with one cable between them, and the simulated Ollama on one of them.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::netns::{Host, Net, Running};

/// Where the simulated Ollama listens.
const OLLAMA_PORT: u16 = 11500;
const USER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const PROVIDER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Says to a copy of this program that it is to be the simulated Ollama, and where.
const ROLE: &str = "OLLANA_BENCH_PATH_SERVER";
/// A start that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(1);
const BUFFERS: [&str; 2] = ["/proc/sys/net/core/rmem_max", "/proc/sys/net/core/wmem_max"];

/// The two, and what runs there all the time.
pub struct Hosts {
    // Ends before the namespaces do.
    _ollama: Running,
    pub user: Host,
    pub provider: Host,
    _net: Net,
}

/// The most that sockets may buffer, until this is dropped. It is the machine's, not the namespace's, and counts when a
/// socket asks for its size: so it is other than it was only while proxies start.
pub struct SocketBuffers {
    before: Vec<String>,
}

/// Runs the simulated Ollama if this process was started as one, and says so at its end. `main` calls it first.
pub fn is_server() -> bool {
    let Ok(listen) = std::env::var(ROLE) else { return false };
    super::server::run(listen.parse().expect("an address")).expect("the simulated Ollama");
    true
}

// === impl Hosts ===

impl Hosts {
    pub fn start() -> Result<Self, String> {
        let net = Net::empty();
        let (user, provider) = (net.bare_host("user"), net.bare_host("provider"));
        user.cable(&provider, "eth0");
        user.ip(&["addr", "add", &format!("{USER}/24"), "brd", "+", "dev", "eth0"]);
        provider.ip(&["addr", "add", &format!("{PROVIDER}/24"), "brd", "+", "dev", "eth0"]);
        for host in [&user, &provider] {
            // New connections, many a second, all from one address.
            host.sysctl("net.ipv4.ip_local_port_range", "20000 65535");
            host.sysctl("net.ipv4.tcp_tw_reuse", "1");
            host.sysctl("net.core.somaxconn", "4096");
        }
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.env(ROLE, format!("0.0.0.0:{OLLAMA_PORT}")).stdin(Stdio::null());
        let (ollama, _) = begin(&provider, &mut command, || answers(Self::ollama()))
            .map_err(|error| format!("the simulated Ollama: {error}"))?;
        Ok(Self { _ollama: ollama, user, provider, _net: net })
    }

    /// The simulated Ollama, from the provider's host.
    pub fn ollama() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], OLLAMA_PORT))
    }

    /// The same from the user's host.
    pub fn ollama_straight() -> SocketAddr {
        Self::provider(OLLAMA_PORT)
    }

    /// An address of the provider's host.
    pub fn provider(port: u16) -> SocketAddr {
        (PROVIDER, port).into()
    }
}

/// Starts a process on a host and waits until it is ready; how many milliseconds that took.
pub fn begin(host: &Host, command: &mut Command, ready: impl Fn() -> bool + Send) -> Result<(Running, f64), String> {
    host.inside(move || {
        let start = Instant::now();
        // A child is on the host of the thread that starts it.
        let mut running = Running::spawn(command);
        while !ready() {
            if let Some(status) = running.try_wait().map_err(|error| error.to_string())? {
                return Err(format!("it ended with {status}"));
            }
            if start.elapsed() > PATIENCE {
                return Err(format!("it is not ready after {PATIENCE:?}"));
            }
            std::thread::sleep(LOOK);
        }
        Ok((running, start.elapsed().as_secs_f64() * 1e3))
    })
}

/// Whether the simulated Ollama answers behind this address; from the host of this thread.
pub fn answers(at: SocketAddr) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let asked = super::load::once(at);
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(1), asked).await }).is_ok_and(|ok| ok.is_ok())
}

/// Whether somebody listens there.
pub fn listens(at: SocketAddr) -> bool {
    std::net::TcpStream::connect_timeout(&at, Duration::from_secs(1)).is_ok()
}

// === impl SocketBuffers ===

impl SocketBuffers {
    /// Sets the bound, where this process may.
    pub fn set(bytes: u32) -> Self {
        let before = BUFFERS.map(|file| fs::read_to_string(file).unwrap_or_default()).to_vec();
        for file in BUFFERS {
            let _ = fs::write(file, bytes.to_string());
        }
        Self { before }
    }

    /// The current bound.
    pub fn now() -> String {
        fs::read_to_string(BUFFERS[0]).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for SocketBuffers {
    fn drop(&mut self) {
        for (file, before) in BUFFERS.iter().zip(&self.before) {
            let _ = fs::write(file, before.trim());
        }
    }
}
