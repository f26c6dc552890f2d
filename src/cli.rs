//! The command line: what may be typed, one file a command.
//!
//! Commands other than `serve` speak to a running node over its [control socket](crate::control), or read and change
//! files where no node runs. What they print for people is a table; with `--json` it is what a script may rely on
//! (DESIGN.md §2).

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

use clap::{Parser, Subcommand};

use crate::app::AppError;
use crate::config::{
    Config, ConfigError, Environment, File, Key, Layer, SYSTEM_STATE_DIR, Settings, Source, state_dir,
};
use crate::control::{Client, ClientError, StateError};

const EXAMPLES: &str = "\
Examples:
  ollana serve                     run a node in the foreground
  ollana serve -d                  run it in the background; `ollana stop` ends it
  ollana peers                     who else is there
  ollana trust gpu1                use that node, and let it use this one
  OLLAMA_HOST=127.0.0.1:11434/@gpu1 ollama pull qwen3
                                   speak to one node by its name";

/// Makes every Ollama on the network usable from this machine, as if it ran here.
#[derive(Debug, Parser)]
#[command(name = "ollana", version, after_help = EXAMPLES, disable_help_subcommand = true, max_term_width = 100)]
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
    /// End the running node, letting running answers finish
    Stop,
    /// What the running node is and does
    Status(Json),
    /// The other nodes it knows
    Peers(Json),
    /// The models of the mesh, and where they are
    Models(models::Args),
    /// Why a request went where it went, or the latest requests
    Explain(explain::Args),
    /// This node's ID
    Id(Json),
    /// Use a peer and let it use this node's Ollama
    Trust(trust::Args),
    /// Make an invitation, with which a node nobody sits at trusts this one and is trusted
    Invite(invite::Args),
    /// Let the users of this node who said `--voucher` use a peer, without asking each of them
    Vouch(vouch::Args),
    /// Refuse a peer's key from now on, running answers included
    Revoke(revoke::Args),
    /// Forget a peer that is gone, or free a name for another key
    Forget(forget::Args),
    /// Show and change the configuration file
    Config(config::Args),
    /// Look for what could be wrong, and say what to do
    Doctor(Json),
}

#[derive(Debug, clap::Args)]
struct Json {
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

impl Cli {
    /// Does what was typed.
    ///
    /// # Errors
    /// With the line to show and the code to exit with.
    pub fn run(self) -> Result<(), Failure> {
        let place = Place { flag: self.state_dir, config: self.config, environment: Environment::of_process() };
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
        }
    }
}

/// Where to find configuration, state and socket.
struct Place {
    flag: Option<String>,
    config: Option<PathBuf>,
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
            (path, true) => Some(File::read(&path).map_err(ConfigError::from)?),
            (path, false) => File::read_if_there(&path).map_err(ConfigError::from)?,
        })
    }

    /// All settings, with a command's own flags.
    fn settings(&self, mut flags: Layer) -> Result<Settings, Failure> {
        flags.set(Key::StateDir, self.flag.clone());
        Ok(Settings::gather(&flags, &self.environment, self.file()?.as_ref())?)
    }

    fn load(&self, flags: Layer) -> Result<Config, Failure> {
        Ok(Config::from_settings(&self.settings(flags)?, &self.environment)?)
    }

    /// The state directories where a node may run, the likeliest first: only the one that somebody names, else the
    /// user's and the system service's.
    fn state_dirs(&self) -> Result<Vec<PathBuf>, Failure> {
        // A configuration file with a slip in it must not keep one from stopping a node that a flag or variable names.
        let named = self.flag.is_some() || self.environment.text(&Key::StateDir.variable())?.is_some();
        let mut flags = Layer::default();
        flags.set(Key::StateDir, self.flag.clone());
        let file = if named { None } else { self.file()? };
        let settings = Settings::gather(&flags, &self.environment, file.as_ref())?;
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
    runtime.block_on(work)
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
