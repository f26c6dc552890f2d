//! `ollana serve`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{Failure, Place, daemon, log};
use crate::app::App;
use crate::config::{Config, Key, Layer, Status};
use crate::control::Info;

/// Files and sockets that are asked for, as far as the hard limit goes: several times what the listener's 4,096 connections
/// take with one more each to an Ollama. macOS gives no more than the second, whatever it says of its hard limit.
const FILES: [u64; 2] = [65_536, 10_240];

const EXAMPLES: &str = "\
Every flag has an environment variable and a key in config.toml (`ollana
config show`); a flag overrides a variable, a variable overrides the file.
RUST_LOG is error, warn, info, debug or trace (default info), or tracing's
directives.

Where a local Ollama uses port 11434, this node listens for applications on
127.0.0.1:11433. To give the node port 11434, move Ollama to another port and
set OLLAMA_HOST=127.0.0.1:11500 for both `ollama serve` and `ollana serve`.
If the default port of the status page is taken, there is no page; a port that
a flag names must be free.

Examples:
  ollana serve                  use other nodes and share the local Ollama
  ollana serve -d               the same in the background
  ollana serve --mode client    use other nodes and share nothing
  ollana serve --peer gpu1.example.org
                                connect to a node that multicast does not reach
  ollana serve --state-dir /tmp/two --name two --listen 127.0.0.1:21434 \\
      --mesh 0.0.0.0:21435 --status off
                                a second node on one machine";

/// Flags of `serve`. All of them are texts here; `Config` parses what flags, variables and file say in one place.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Run in the background; returns when the node is ready. The state directory holds ollana.log and ollana.pid
    /// [env: OLLANA_DAEMON]
    #[arg(short = 'd', long)]
    daemon: bool,

    /// Role: auto (detect), client (use remote models only), server (share only) [env: OLLANA_MODE] [default: auto]
    #[arg(long, value_name = "MODE")]
    mode: Option<String>,

    /// HTTP address for applications [env: OLLANA_LISTEN] [default: port 11434 of 127.0.0.1 and ::1, or 11433 if an Ollama
    /// uses that]
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,

    /// Allow --listen beyond loopback: anyone who can connect uses the models without a key [env: OLLANA_LISTEN_OPEN]
    #[arg(long)]
    listen_open: bool,

    /// The Ollama to share [env: OLLANA_OLLAMA] [default: OLLAMA_HOST if that is on this machine, else
    /// http://127.0.0.1:11434]
    #[arg(long, value_name = "URL")]
    ollama: Option<String>,

    /// UDP address for other nodes [env: OLLANA_MESH] [default: port 11435, IPv4 and IPv6]
    #[arg(long, value_name = "ADDR")]
    mesh: Option<String>,

    /// Node to connect to where multicast does not reach; it gets no trust by this. May be repeated
    /// [env: OLLANA_PEER, with commas]
    #[arg(long, value_name = "HOST[:PORT]")]
    peer: Vec<String>,

    /// File with an invitation, as `ollana invite` prints it on another node; - for standard input
    /// [env: OLLANA_INVITATION_FILE]
    #[arg(long, value_name = "FILE")]
    invitation_file: Option<String>,

    /// Name of this node [env: OLLANA_NAME] [default: the host name]
    #[arg(long)]
    name: Option<String>,

    /// Address of the read-only status page, on loopback [env: OLLANA_STATUS] [default: 127.0.0.1:11437]
    #[arg(long, value_name = "ADDR|off")]
    status: Option<String>,

    /// Log format: text or json [env: OLLANA_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,

    /// Set by `serve -d` for the process that goes on.
    #[arg(long, hide = true)]
    in_background: bool,
}

impl Args {
    fn layer(&self) -> Layer {
        let mut layer = Layer::default();
        layer.switch(Key::Daemon, self.daemon);
        layer.set(Key::Mode, self.mode.clone());
        layer.set(Key::Listen, self.listen.clone());
        layer.switch(Key::ListenOpen, self.listen_open);
        layer.set(Key::Ollama, self.ollama.clone());
        layer.set(Key::Mesh, self.mesh.clone());
        layer.list(Key::Peer, self.peer.clone());
        layer.set(Key::Name, self.name.clone());
        layer.set(Key::InvitationFile, self.invitation_file.clone());
        layer.set(Key::Status, self.status.clone());
        layer.set(Key::LogFormat, self.log_format.clone());
        layer
    }
}

/// Runs a node, here or in the background.
pub(super) fn run(args: Args, place: &Place) -> Result<(), Failure> {
    let config = || place.load(args.layer());
    if args.in_background {
        return daemon::go_on(config, |config, log, ready| {
            log::start(config.log_format, &place.environment, Some(log));
            node(config, ready)
        });
    }
    let config = config()?;
    if config.daemon {
        return daemon::start(&config);
    }
    log::start(config.log_format, &place.environment, None);
    node(config, |_| Ok(()))
}

/// A node from start to end. `ready` is called once it is ready.
fn node(config: Config, ready: impl FnOnce(&str) -> io::Result<()>) -> Result<(), Failure> {
    raise_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start the runtime: {error}")))?;
    let ended = runtime.block_on(live(config, ready));
    // A look-up of a name may still block a thread; nothing waits for its answer.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Lets the process hold as many files and sockets as it may. Most systems let programs that do not ask have 1,024, for
/// the sake of those that use `select`, and each application that waits for an answer takes two.
fn raise_limit() {
    let Rlimit { current: Some(before), maximum } = getrlimit(Resource::Nofile) else { return };
    for most in FILES {
        let now = maximum.map_or(most, |maximum| maximum.min(most));
        if now <= before {
            return;
        }
        match setrlimit(Resource::Nofile, Rlimit { current: Some(now), maximum }) {
            Ok(()) => return debug!(before, now, "files and sockets that may be open"),
            Err(error) => debug!(before, now, %error, "may not open more files and sockets"),
        }
    }
}

async fn live(config: Config, ready: impl FnOnce(&str) -> io::Result<()>) -> Result<(), Failure> {
    let in_background = config.daemon;
    let page = config.status;
    let mut signals =
        Signals::new(in_background).map_err(|error| Failure::new(format!("cannot wait for signals: {error}")))?;
    let app = tokio::select! {
        app = App::build(config) => app?,
        name = signals.next() => {
            info!("{name} before the node was ready");
            return Ok(());
        }
    };
    let node = app.ready();
    let line = ready_line(&node, page);
    let config = node.config.as_deref().filter(|path| path.exists()).map(|path| path.display().to_string());
    info!(id = %node.id.short(), version = %node.version, config, "{line}");
    let sharing = app.sharing();
    info!("{sharing}");
    let mut lines = vec![line, sharing];
    for warning in app.warnings() {
        warn!("{warning}");
        lines.push(format!("Warning: {warning}"));
    }
    ready(&lines.join("\n"))
        .map_err(|_| Failure::new("the process that started the node ended before the node was ready"))?;

    let shutdown = CancellationToken::new();
    let running = app.run(shutdown.clone());
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => {
            // Told so on the socket, or something broke.
            return Ok(ended?);
        }
        name = signals.next() => {
            // `ollana stop` may have come before it.
            if shutdown.is_cancelled() {
                return at_once(name);
            }
            info!("{name}: waiting for running answers; a second signal stops at once");
        }
    }
    shutdown.cancel();
    tokio::select! {
        ended = running => Ok(ended?),
        name = signals.next() => at_once(name),
    }
}

fn at_once(signal: &str) -> Result<(), Failure> {
    warn!("{signal} while running answers finish: stopping at once");
    Err(Failure::new("stopped at once; running answers were cut off"))
}

/// The line that says that the node is ready, with any fallback that was taken: in the background nobody sees the log.
fn ready_line(info: &Info, wanted: Status) -> String {
    let instead = |taken: Option<u16>| taken.map(|port| format!(" (port {port} is taken)")).unwrap_or_default();
    let listen = match info.applications() {
        Some(all) => format!("{all}{}", instead(info.taken.listen)),
        None => "none (mode server)".to_owned(),
    };
    let peers = format!("{}{}", udp(info.mesh), instead(info.taken.mesh));
    let page = match (wanted, info.status_page) {
        (Status::At { addr, .. }, None) => format!(" · no status page ({addr} is taken)"),
        _ => String::new(),
    };
    format!("{} is ready. API for applications: {listen} · peers: {peers}{page}", info.name)
}

/// The UDP address that peers connect to, without an address that only says "all of them".
pub(super) fn udp(addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() { format!("UDP {}", addr.port()) } else { format!("UDP {addr}") }
}

/// The signals that end a node.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// A daemon has no terminal that could hang up; what sends it this means something that it does not know.
    ignore_hang_up: bool,
}

impl Signals {
    fn new(ignore_hang_up: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            ignore_hang_up,
        })
    }

    async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hang_up.recv() => if !self.ignore_hang_up { return "SIGHUP" },
            }
        }
    }
}
