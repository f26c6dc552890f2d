//! The command line: what may be typed, one file a command.
//!
//! Commands other than `serve` speak to a running node over its [control socket](crate::control), or read and change
//! files where no node runs. For people they print a table; a script may rely on the output of `--json`.

mod config;
mod daemon;
mod doctor;
mod explain;
mod forget;
mod id;
mod invite;
mod log;
mod models;
mod output;
mod peers;
mod revoke;
mod serve;
mod status;
mod stop;
mod trust;
mod vouch;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Parser, Subcommand};

use crate::app::AppError;
use crate::config::{
    Config, ConfigError, Environment, File, Key, Layer, SYSTEM_STATE_DIR, Settings, Source, state_dir,
};
use crate::control::{Client, ClientError, StateError};

const EXAMPLES: &str = "\
Examples:
  ollana serve                     run a node in the foreground
  ollana serve -d                  run it in the background; `ollana stop` stops it
  ollana peers                     list the other nodes
  ollana trust gpu1                use that node, and let it use this one
  OLLAMA_HOST=127.0.0.1:11434/@gpu1 ollama pull qwen3
                                   send a request to one node by its name";

/// Makes every Ollama on the network usable from this machine, as if it ran here.
#[derive(Debug, Parser)]
#[command(name = "ollana", version, after_help = EXAMPLES, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Directory with key, trust book, socket and log [env: OLLANA_STATE_DIR] [default: ~/.local/share/ollana]
    #[arg(long, global = true, value_name = "DIR")]
    state_dir: Option<String>,

    /// Configuration file [env: OLLANA_CONFIG] [default: ~/.config/ollana/config.toml, else /etc/ollana/config.toml]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node
    Serve(serve::Args),
    /// Stop the running node; requests in progress may finish
    Stop,
    /// Show the status of the running node
    Status(Json),
    /// List known peers and their state
    Peers(Json),
    /// List available models and the nodes that have them
    #[command(visible_alias = "list", aliases = ["ls", "ps"])]
    Models(models::Args),
    /// Show how a request was routed; without an ID, list recent requests
    Explain(explain::Args),
    /// Print this node's ID
    Id(Json),
    /// Trust a peer: send requests to it and accept requests from it
    Trust(trust::Args),
    /// Create an invitation file for unattended setup (mutual trust)
    Invite(invite::Args),
    /// Vouch for a provider: nodes that accept this node's vouching use it without a prompt
    Vouch(vouch::Args),
    /// Revoke a peer's key and cancel its running requests
    Revoke(revoke::Args),
    /// Forget a peer that is gone, or free a name for another key
    Forget(forget::Args),
    /// Show and change the configuration file
    Config(config::Args),
    /// Check this machine and the running node for problems
    Doctor(Json),
    /// Print the version, as --version does
    Version,
}

#[derive(Debug, clap::Args)]
struct Json {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// A command that does not exist here but that people type, since Ollama or a service manager has it: what to type instead.
fn instead_of(command: &str) -> Option<String> {
    let instead = match command {
        "restart" | "reload" => {
            "type `ollana stop`, then `ollana serve -d`; for a service: `sudo systemctl restart ollana`".to_owned()
        }
        "start" | "up" => "`ollana serve -d` starts a node in the background".to_owned(),
        "down" | "quit" | "kill" => "`ollana stop` stops the node".to_owned(),
        "log" | "logs" => {
            "the log of `ollana serve -d` is ollana.log in the state directory that `ollana status` shows; \
                           for a service: `journalctl -u ollana`"
                .to_owned()
        }
        "run" | "show" | "pull" | "push" | "create" | "cp" | "rm" | "signin" | "signout" | "launch" => {
            format!("type `ollama {command}`: at the address that `ollana status` shows it works on the shared models")
        }
        _ => return None,
    };
    Some(format!("there is no command `{command}`; {instead}"))
}

impl Cli {
    /// Parses the command line. Help and bad usage end the process here, with 0 and 2.
    ///
    /// # Errors
    /// If the command is one of another program that has a counterpart here.
    pub fn from_command_line() -> Result<Self, Failure> {
        Self::try_parse().or_else(|error| {
            let typed = match (error.kind(), error.get(ContextKind::InvalidSubcommand)) {
                (ErrorKind::InvalidSubcommand, Some(ContextValue::String(typed))) => instead_of(typed),
                _ => None,
            };
            typed.map_or_else(|| error.exit(), |line| Err(Failure::usage(line)))
        })
    }

    /// Runs the command.
    ///
    /// # Errors
    /// With the line to show and the code to exit with.
    pub fn run(self) -> Result<(), Failure> {
        let place =
            Place { flag: self.state_dir, config: self.config, named_by: None, environment: Environment::of_process() };
        match self.command {
            Command::Serve(args) => serve::run(args, &place),
            Command::Stop => stop::run(&place),
            Command::Status(args) => status::run(args.json, &place),
            Command::Peers(args) => peers::run(args.json, &place),
            Command::Models(args) => models::run(&args, &place),
            Command::Explain(args) => explain::run(&args, &place),
            Command::Id(args) => id::run(args.json, &place),
            Command::Trust(args) => trust::run(args, &place),
            Command::Invite(args) => invite::run(args, &place),
            Command::Vouch(args) => vouch::run(&args, &place),
            Command::Revoke(args) => revoke::run(&args, &place),
            Command::Forget(args) => forget::run(args, &place),
            Command::Config(args) => config::run(args, &place),
            Command::Doctor(args) => doctor::run(args.json, &place),
            Command::Version => output::print(&format!("ollana {}\n", env!("CARGO_PKG_VERSION"))),
        }
    }
}

/// Where to find configuration, state and socket.
struct Place {
    flag: Option<String>,
    config: Option<PathBuf>,
    /// Who names the configuration file, if it is the node of another user: `config` shall then not lead root astray.
    named_by: Option<u32>,
    environment: Environment,
}

impl Place {
    /// The configuration file, and whether it must be there.
    fn config_path(&self) -> Result<(PathBuf, bool), Failure> {
        match &self.config {
            Some(path) => {
                let path = std::path::absolute(path)
                    .map_err(|error| Failure::usage(format!("--config {}: {error}", path.display())))?;
                Ok((path, true))
            }
            None => Ok(self.environment.config()?),
        }
    }

    fn file(&self) -> Result<Option<File>, Failure> {
        Ok(match self.config_path()? {
            (path, true) => Some(
                match self.named_by {
                    Some(user) => File::read_of(&path, user),
                    None => File::read(&path),
                }
                .map_err(ConfigError::from)?,
            ),
            (path, false) => File::read_if_there(&path).map_err(ConfigError::from)?,
        })
    }

    /// The same place with this file, if it is there; `named_by` the node of another user or by nobody.
    fn reading(&self, path: PathBuf, named_by: Option<u32>) -> Self {
        let config = if path.exists() { Some(path) } else { self.config.clone() };
        Self { flag: self.flag.clone(), config, named_by, environment: self.environment.clone() }
    }

    /// All settings, with a command's own flags.
    fn settings(&self, mut flags: Layer) -> Result<Settings, Failure> {
        flags.set(Key::StateDir, self.flag.clone());
        Ok(Settings::gather(&flags, &self.environment, self.file()?.as_ref())?)
    }

    fn load(&self, flags: Layer) -> Result<Config, Failure> {
        let config = Config::from_settings(&self.settings(flags)?, &self.environment)?;
        Ok(Config { file: Some(self.config_path()?.0), ..config })
    }

    /// The state directories where a node may run, the likeliest first: only the one that somebody names, else the
    /// user's and the system service's.
    fn state_dirs(&self) -> Result<Vec<PathBuf>, Failure> {
        // A configuration file with a slip in it must not keep one from stopping a node that a flag or variable names.
        let named = self.flag.is_some() || self.environment.text(&Key::StateDir.variable())?.is_some();
        let file = if named { None } else { self.file()? };
        self.state_dirs_with(file.as_ref())
    }

    /// The same where a configuration file that cannot be read counts as none: for what helps to mend it.
    fn state_dirs_leniently(&self) -> Result<Vec<PathBuf>, Failure> {
        self.state_dirs().or_else(|_| self.state_dirs_with(None))
    }

    fn state_dirs_with(&self, file: Option<&File>) -> Result<Vec<PathBuf>, Failure> {
        let mut flags = Layer::default();
        flags.set(Key::StateDir, self.flag.clone());
        let settings = Settings::gather(&flags, &self.environment, file)?;
        if settings.raw(Key::StateDir).is_some() {
            return Ok(vec![state_dir(&settings, &self.environment)?]);
        }
        let system = PathBuf::from(SYSTEM_STATE_DIR);
        let mut dirs: Vec<PathBuf> = self.environment.state_dir().into_iter().collect();
        if !dirs.contains(&system) {
            dirs.push(system);
        }
        Ok(dirs)
    }

    /// The directory that a command works on when no node runs.
    fn own_state_dir(&self) -> Result<PathBuf, Failure> {
        self.state_dirs()?.into_iter().next().ok_or_else(|| ConfigError::NoHome.into())
    }

    async fn client(&self) -> Result<Client, Failure> {
        Ok(Client::find(&self.state_dirs()?).await?)
    }
}

/// Runs a command that waits for answers. One thread is enough for one question.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(format!("cannot start the runtime: {error}")))?;
    let done = runtime.block_on(work);
    // A look-up of a name may still block a thread; nothing waits for its answer.
    runtime.shutdown_background();
    done
}

/// Why a command failed: one line on stderr, and the exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    line: String,
}

impl Failure {
    /// It was tried and did not work: 1.
    fn new(line: impl Into<String>) -> Self {
        Self { code: 1, line: line.into() }
    }

    /// It makes no sense to try: 2, as for flags that do not exist.
    fn usage(line: impl Into<String>) -> Self {
        Self { code: 2, line: line.into() }
    }

    /// Says so.
    pub fn report(self) -> ExitCode {
        if !self.line.is_empty() {
            use std::io::Write as _;
            // One line whatever an operating system's message holds; and where stderr is gone there is nobody to tell.
            let line = output::shown(&self.line.replace('\n', " "));
            let _ = writeln!(std::io::stderr(), "ollana: {line}");
        }
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        if error.is_usage() { Self::usage(error.to_string()) } else { Self::new(error.to_string()) }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<AppError> for Failure {
    fn from(error: AppError) -> Self {
        Self::new(error.to_string())
    }
}

/// Where a setting comes from, for people.
fn source_text(source: &Source) -> String {
    match source {
        Source::Flag => "flag".to_owned(),
        Source::Variable(name) => name.clone(),
        Source::File { path, line } => format!("{}:{line}", path.display()),
    }
}
