//! What a node is told to do: flags, environment and `config.toml`, parsed once into types that hold only what is valid.
//!
//! Each setting is one [`Key`]. Its value is the flag's, else the environment variable's, else the file's, else the
//! default; [`Settings`] keeps where it came from, so that an error can name the place to mend and `ollana config show`
//! can say it. [`Config`] is the outcome; nothing below it reads the environment again.
//!
//! The file is the first of these that is there: what `--config` or `$OLLANA_CONFIG` names (then it has to be there),
//! `$XDG_CONFIG_HOME/ollana/config.toml` or `~/.config/ollana/config.toml`, and `/etc/ollana/config.toml`, which is where
//! a system service keeps it.

mod environment;
mod file;
mod hours;
mod key;
mod layers;
mod ollama_host;
mod owner;
mod value;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;

pub use environment::{ETC_CONFIG, Environment, SYSTEM_STATE_DIR};
pub use file::{File, FileError};
pub use hours::{Hours, moment};
pub use key::Key;
pub use layers::{Layer, Raw, Settings, Source};
pub use owner::{Balance, Lend};

use crate::discovery::PeerAddress;
use crate::id::NodeName;
use crate::trust::TrustPolicy;

/// Ollama's own port, and so the listener's where no Ollama holds it.
pub const LISTEN_PORT: u16 = 11434;
/// Where the listener goes when an Ollama holds [`LISTEN_PORT`].
pub const FALLBACK_LISTEN_PORT: u16 = 11433;
/// QUIC between nodes.
pub const MESH_PORT: u16 = 11435;
/// The status page.
pub const STATUS_PORT: u16 = 11437;
/// How long running answers may take to end after SIGTERM: longer than most answers, shorter than the 90 s after which
/// systemd kills.
pub const DRAIN: Duration = Duration::from_secs(30);

/// All that a node is told.
#[derive(Debug, Clone)]
pub struct Config {
    /// What people call this node.
    pub name: NodeName,
    /// Which roles it may take.
    pub mode: Mode,
    /// Where applications find it.
    pub listen: Listen,
    /// Where the local Ollama is.
    pub ollama: OllamaTarget,
    /// Where other nodes find it.
    pub mesh: MeshAddr,
    /// Whether it looks for others by multicast.
    pub discovery: bool,
    /// Addresses to dial where multicast does not reach.
    pub peers: Vec<PeerAddress>,
    /// Where the status page is.
    pub status: Status,
    /// Where key, trust book, socket, pid and log file are; absolute.
    pub state_dir: PathBuf,
    /// What `OLLAMA_ORIGINS` lists, in addition to Ollama's default origins.
    pub origins: Vec<String>,
    /// Whether peers with scope `manage` may push models too, which is signed with the key of this machine's owner.
    pub lend_push: bool,
    /// The longest context in tokens that peers below scope `manage` may ask for; with 0 theirs does not count.
    pub lend_max_context: Option<u64>,
    /// What peers get of this node's Ollama, and when.
    pub lend: Lend,
    /// How this node's own requests are spread.
    pub balance: Balance,
    /// How many times faster than real ones the servers are. 1; nothing that a person can set changes it, but a benchmark
    /// with simulated servers does.
    pub tempo: f64,
    /// How late what this node reports of its load reaches its peers. Nothing; a benchmark makes a slow network of it.
    pub report_delay: Duration,
    /// What is believed of a key that was not met before.
    pub trust: TrustPolicy,
    /// How long running answers may take to end at shutdown.
    pub drain: Duration,
    /// An invitation to redeem; `-` is standard input.
    pub invitation_file: Option<PathBuf>,
    /// Where systemd puts the credentials of a service.
    pub credentials: Option<PathBuf>,
    /// What the log looks like.
    pub log_format: LogFormat,
    /// Whether to go on in the background, as `serve -d` does.
    pub daemon: bool,
    /// The configuration file that was read, or that would have been if it was there.
    pub file: Option<PathBuf>,
}

/// Which roles a node may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Whatever fits what runs on the machine.
    Auto,
    /// Uses other nodes and shares nothing.
    Client,
    /// Shares its Ollama and has no listener for applications.
    Server,
}

/// Where applications find the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// The address to bind.
    pub addr: SocketAddr,
    /// Whether somebody chose it: then a taken port is an error, and no other is tried.
    pub explicit: bool,
    /// Whether it is open to others than this machine, which somebody has confirmed; it carries no `manage` then.
    pub open: bool,
}

/// Where the local Ollama is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OllamaTarget {
    /// Scheme, authority and perhaps a path before Ollama's own.
    pub url: Uri,
    /// Whether it was named to Ollana, and not only to Ollama's client by `OLLAMA_HOST`: that may be another machine's,
    /// which is not this one's to share.
    pub explicit: bool,
    /// The path of an API that was named with it and is left out, since Ollana adds it by itself.
    pub left_out: Option<&'static str>,
}

/// Where other nodes find this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MeshAddr {
    /// The address to bind; `[::]` is IPv4 and IPv6.
    pub addr: SocketAddr,
    /// Whether somebody chose it.
    pub explicit: bool,
}

/// Where the status page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// There is none.
    Off,
    /// On a loopback address.
    At {
        /// The address to bind.
        addr: SocketAddr,
        /// Whether somebody chose it: then a taken port is an error; else the page is left out with a warning.
        explicit: bool,
    },
}

/// What the log looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// An object a line.
    Json,
}

// === impl Config ===

impl Config {
    /// Puts the three layers together: flag over variable over file over default.
    ///
    /// # Errors
    /// If a value is not valid; the error names the place it came from.
    pub fn load(flags: &Layer, environment: &Environment, file: Option<&File>) -> Result<Self, ConfigError> {
        Self::from_settings(&Settings::gather(flags, environment, file)?, environment)
    }

    /// Parses what was gathered.
    ///
    /// # Errors
    /// If a value is not valid, or two do not go together.
    pub fn from_settings(settings: &Settings, environment: &Environment) -> Result<Self, ConfigError> {
        let name = settings.parse(Key::Name, value::name)?.unwrap_or_else(host_name);
        let (status, status_explicit) = match settings.parse(Key::Status, value::status)? {
            Some(status) => (status, true),
            None => (Some(SocketAddr::from((Ipv4Addr::LOCALHOST, STATUS_PORT))), false),
        };
        Ok(Self {
            name,
            mode: settings.parse(Key::Mode, value::mode)?.unwrap_or(Mode::Auto),
            listen: listen(settings)?,
            ollama: ollama(settings, environment)?,
            mesh: match settings
                .parse(Key::Mesh, |text| value::address(text, Ipv6Addr::UNSPECIFIED.into(), MESH_PORT))?
            {
                Some(addr) => MeshAddr { addr, explicit: true },
                None => MeshAddr { addr: (Ipv6Addr::UNSPECIFIED, MESH_PORT).into(), explicit: false },
            },
            discovery: settings.parse(Key::Discovery, value::boolean)?.unwrap_or(true),
            peers: settings.parse_list(Key::Peer, value::peer)?,
            status: status.map_or(Status::Off, |addr| Status::At { addr, explicit: status_explicit }),
            state_dir: state_dir(settings, environment)?,
            origins: settings.parse_list(Key::Origins, |text| Ok(text.to_owned()))?,
            lend_push: settings.parse(Key::LendPush, value::boolean)?.unwrap_or(false),
            lend_max_context: settings.parse(Key::LendMaxContext, value::tokens)?,
            lend: Lend::from_settings(settings)?,
            balance: Balance::from_settings(settings)?,
            tempo: 1.0,
            report_delay: Duration::ZERO,
            trust: trust(settings)?,
            drain: settings.parse(Key::Drain, value::duration)?.unwrap_or(DRAIN),
            invitation_file: invitation_file(settings, environment)?,
            credentials: environment.credentials(),
            log_format: settings.parse(Key::LogFormat, value::log_format)?.unwrap_or(LogFormat::Text),
            daemon: settings.parse(Key::Daemon, value::boolean)?.unwrap_or(false),
            file: None,
        })
    }

    /// A node for a test or an example: every port is one that is free, on loopback only, nobody is looked for, and the
    /// environment has no say.
    pub fn for_test(state_dir: impl Into<PathBuf>) -> Self {
        let any: SocketAddr = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            name: NodeName::lossy("test"),
            mode: Mode::Auto,
            listen: Listen { addr: any, explicit: true, open: false },
            ollama: OllamaTarget::new(Uri::from_static("http://127.0.0.1:1"), true),
            mesh: MeshAddr { addr: any, explicit: true },
            discovery: false,
            peers: Vec::new(),
            status: Status::At { addr: any, explicit: true },
            state_dir: state_dir.into(),
            origins: Vec::new(),
            lend_push: false,
            lend_max_context: None,
            // What a simulated server runs at a time is known: a test that is not about slots shall not wait for one.
            lend: Lend { parallel: Some(256), ..Lend::default() },
            balance: Balance::default(),
            tempo: 1.0,
            report_delay: Duration::ZERO,
            trust: TrustPolicy::default(),
            drain: Duration::from_secs(5),
            invitation_file: None,
            credentials: None,
            log_format: LogFormat::Text,
            daemon: false,
            file: None,
        }
    }
}

/// The state directory alone: all that a command needs which speaks to a daemon.
///
/// # Errors
/// If it is not valid, or there is no home directory to put it in.
pub fn state_dir(settings: &Settings, environment: &Environment) -> Result<PathBuf, ConfigError> {
    match settings.raw(Key::StateDir) {
        Some(raw) => {
            let base = match &raw.source {
                Source::File { path, .. } => path.parent().unwrap_or(Path::new("/")).to_owned(),
                _ => PathBuf::new(),
            };
            let path = base.join(environment.expand(raw.text()));
            std::path::absolute(&path).map_err(|error| raw.error(Key::StateDir, error.to_string()))
        }
        None => environment.state_dir().ok_or(ConfigError::NoHome),
    }
}

/// A path is taken from where it was written: a daemon has left that directory.
fn invitation_file(settings: &Settings, environment: &Environment) -> Result<Option<PathBuf>, ConfigError> {
    let Some(raw) = settings.raw(Key::InvitationFile).filter(|raw| !raw.text().is_empty()) else { return Ok(None) };
    if raw.text() == "-" {
        return Ok(Some(PathBuf::from("-")));
    }
    let base = match &raw.source {
        Source::File { path, .. } => path.parent().unwrap_or(Path::new("/")).to_owned(),
        _ => PathBuf::new(),
    };
    let path = std::path::absolute(base.join(environment.expand(raw.text())));
    path.map(Some).map_err(|error| raw.error(Key::InvitationFile, error.to_string()))
}

fn listen(settings: &Settings) -> Result<Listen, ConfigError> {
    let open = settings.parse(Key::ListenOpen, value::boolean)?.unwrap_or(false);
    let Some(addr) = settings.parse(Key::Listen, |text| {
        let addr = value::address(text, Ipv4Addr::LOCALHOST.into(), LISTEN_PORT)?;
        if addr.ip().is_loopback() || open {
            return Ok(addr);
        }
        // Where it is written, the permission is missing.
        let how = match settings.raw(Key::Listen).map(|raw| &raw.source) {
            Some(Source::Variable(_)) => "set OLLANA_LISTEN_OPEN=true as well",
            Some(Source::File { .. }) => "type `ollana config set listen_open true` first",
            Some(Source::Flag) | None => "add --listen-open",
        };
        Err(format!(
            "anyone on the network could use it there without proving who they are; if that is what you want, {how}"
        ))
    })?
    else {
        return Ok(Listen { addr: (Ipv4Addr::LOCALHOST, LISTEN_PORT).into(), explicit: false, open: false });
    };
    Ok(Listen { addr, explicit: true, open: !addr.ip().is_loopback() })
}

fn ollama(settings: &Settings, environment: &Environment) -> Result<OllamaTarget, ConfigError> {
    if let Some(url) = settings.parse(Key::Ollama, ollama_host::strict)? {
        return Ok(OllamaTarget::new(url, true));
    }
    let host = environment.text("OLLAMA_HOST")?.unwrap_or_default();
    Ok(OllamaTarget::new(ollama_host::lenient(&host), false))
}

fn trust(settings: &Settings) -> Result<TrustPolicy, ConfigError> {
    let default = TrustPolicy::default();
    Ok(TrustPolicy {
        inbound: settings.parse(Key::TrustInbound, value::policy)?.unwrap_or(default.inbound),
        outbound: settings.parse(Key::TrustOutbound, value::policy)?.unwrap_or(default.outbound),
        first_use_window: settings
            .parse(Key::TrustFirstUseWindow, value::duration)?
            .unwrap_or(default.first_use_window),
    })
}

/// The first label of the host name: `gpu1` of `gpu1.example.org`, as a prompt shows it.
fn host_name() -> NodeName {
    let uname = rustix::system::uname();
    let name = uname.nodename().to_string_lossy();
    NodeName::lossy(name.split('.').next().unwrap_or_default())
}

// === impl OllamaTarget ===

impl OllamaTarget {
    fn new(url: Uri, explicit: bool) -> Self {
        let (url, left_out) = ollama_host::without_api(url);
        Self { url, explicit, left_out }
    }
}

impl Mode {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

/// Why a configuration is not valid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value is not what the key takes.
    #[error("{place}: {problem}")]
    Value {
        /// Which setting.
        key: Key,
        /// Whether a flag gave it, which makes it bad usage.
        flag: bool,
        /// Where it was given, with what was given.
        place: String,
        /// What is wrong.
        problem: String,
    },
    /// The file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A variable holds bytes that are not text.
    #[error("the environment variable {0} is not UTF-8; set it anew or unset it")]
    NotText(String),
    /// Nowhere to put the state.
    #[error("there is no home directory to keep state in ($HOME is not set); name one with --state-dir")]
    NoHome,
}

impl ConfigError {
    /// Whether the command line itself is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Value { flag: true, .. })
    }
}

#[cfg(test)]
mod tests;
