//! `serve -d`: a classic daemon without `fork`, which a program with threads and without `unsafe` cannot have.
//!
//! The command starts its own binary anew with the same arguments and waits on a pipe, the child's stdout, for one line:
//! `ready …` or `failed CODE …`. The child leaves session, terminal and directory behind, points stderr at the log file,
//! and once it serves says so and closes the pipe.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Failure, log, output};
use crate::config::Config;
use crate::control::{StateDir, StateError};

const READY: &str = "ready ";
const FAILED: &str = "failed ";

/// Starts the daemon and waits until it serves or cannot.
pub(super) fn start(config: &Config) -> Result<(), Failure> {
    let error = |error: io::Error| Failure::new(format!("cannot start the daemon: {error}"));
    let from_stdin = config.invitation_file.as_deref() == Some(Path::new("-"));
    // Whoever holds a lock or a pipe and starts us must not lose it to a process that lives for months.
    close_fds::set_fds_cloexec(3, &[]);
    let mut child = Command::new(std::env::current_exe().map_err(error)?)
        .args(std::env::args_os().skip(1))
        .arg("--in-background")
        .stdin(if from_stdin { Stdio::inherit() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .spawn()
        .map_err(error)?;
    let mut told = String::new();
    if let Some(mut pipe) = child.stdout.take() {
        pipe.read_to_string(&mut told).map_err(error)?;
    }
    let log = StateDir::log_file(&config.state_dir);
    let line = told.trim_end();
    if let Some(serves) = line.strip_prefix(READY) {
        return output::print(&format!(
            "{serves}\nprocess {}, log {}; `ollana stop` stops it\n",
            child.id(),
            log.display()
        ));
    }
    // What cannot serve ends by itself.
    let status = child.wait().map_err(error)?;
    match line.strip_prefix(FAILED).and_then(|failed| failed.split_once(' ')) {
        Some((code, line)) => Err(Failure { code: code.parse().unwrap_or(1), line: line.to_owned() }),
        None => Err(Failure::new(format!("the daemon ended before it was ready ({status}); see {}", log.display()))),
    }
}

/// The daemon's side. `serve` is given the configuration, the log file, and what to call once it serves.
pub(super) fn go_on(
    config: impl FnOnce() -> Result<Config, Failure>,
    serve: impl FnOnce(Config, PathBuf, fn(&str) -> io::Result<()>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let served = config().and_then(|config| {
        let log = detach(&config)?;
        serve(Config { daemon: true, ..config }, log, say_ready)
    });
    if let Err(failure) = &served {
        // The starter reads this; after `ready` it goes to /dev/null, and the log has it.
        let _ = writeln!(io::stdout(), "{FAILED}{} {}", failure.code, failure.line.replace('\n', " "));
        tracing::error!("{}", failure.line);
        return Err(Failure { code: failure.code, line: String::new() });
    }
    Ok(())
}

/// Leaves everything behind that belongs to whoever typed the command. The configuration holds absolute paths by now.
fn detach(config: &Config) -> Result<PathBuf, Failure> {
    StateDir::make(&config.state_dir)?;
    let path = StateDir::log_file(&config.state_dir);
    let error = |source: io::Error| Failure::from(StateError::Write { path: config.state_dir.clone(), source });
    let file = log::open(&path).map_err(error)?;
    // Fails only for the leader of a process group, which a new child is not.
    let _ = rustix::process::setsid();
    rustix::process::chdir("/").map_err(|errno| error(errno.into()))?;
    rustix::stdio::dup2_stderr(&file).map_err(|errno| error(errno.into()))?;
    Ok(path)
}

fn say_ready(line: &str) -> io::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "{READY}{line}")?;
    out.flush()?;
    rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
    Ok(())
}
