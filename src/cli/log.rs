//! Where log lines go and which there are.
//!
//! They go to stderr, which a daemon has pointed at `ollana.log`. That file is kept below [`MAX_LOG`]: a line that would
//! pass it first moves the file to `ollana.log.1` and begins a new one, so that a log nobody looks at takes at most twice
//! that.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Environment, LogFormat};

/// Weeks of `info`, an hour or so of `debug` on a busy node.
const MAX_LOG: u64 = 16 * 1024 * 1024;

/// Starts logging: to stderr, with what `RUST_LOG` asks for. `file` is what stderr has been pointed at, if anything.
pub(super) fn start(format: LogFormat, environment: &Environment, file: Option<PathBuf>) {
    let wanted = environment.text("RUST_LOG").ok().flatten();
    let (filter, slip) = filter(wanted.as_deref());
    let colour = file.is_none() && io::stderr().is_terminal() && !matches!(environment.text("NO_COLOR"), Ok(Some(_)));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(Stderr::new(file));
    // Fails only where a test harness has set a subscriber of its own.
    let _ = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    if let Some(slip) = slip {
        tracing::warn!("RUST_LOG is not understood ({slip}); the level is info");
    }
}

/// A level alone is Ollana's own; the libraries below it stay at their warnings, or nobody could read `debug`. Anything
/// else is taken as `tracing` takes it. That a datagram could not be sent the peers say in words, and `quinn_udp` as a type.
fn filter(wanted: Option<&str>) -> (EnvFilter, Option<String>) {
    let level = |level: &str| EnvFilter::new(format!("warn,quinn_udp=error,ollana={level}"));
    match wanted.map(str::to_ascii_lowercase).as_deref() {
        None => (level("info"), None),
        Some(word @ ("off" | "error")) => (EnvFilter::new(word), None),
        Some(word @ ("warn" | "info" | "debug" | "trace")) => (level(word), None),
        Some(_) => match EnvFilter::try_new(wanted.unwrap_or_default()) {
            Ok(filter) => (filter, None),
            Err(slip) => (level("info"), Some(slip.to_string())),
        },
    }
}

/// Opens a log file, for this user only: it names peers and addresses.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// Stderr, and the file behind it.
struct Stderr {
    file: Option<PathBuf>,
    written: AtomicU64,
}

impl Stderr {
    fn new(file: Option<PathBuf>) -> Self {
        let written = file.as_deref().and_then(|file| fs::metadata(file).ok()).map_or(0, |file| file.len());
        Self { file, written: AtomicU64::new(written) }
    }

    /// Begins a new file if the old one is full.
    fn make_room(&self, length: u64) {
        let Some(path) = &self.file else { return };
        let before = self.written.fetch_add(length, Ordering::Relaxed);
        // Exactly one line is the first to pass the limit.
        if before <= MAX_LOG && before + length > MAX_LOG {
            let renewed = fs::rename(path, path.with_extension("log.1"))
                .and_then(|()| open(path))
                .and_then(|new| Ok(rustix::stdio::dup2_stderr(&new)?));
            // Where that fails, a disk that is full perhaps, the old file goes on until the next time.
            self.written.store(if renewed.is_ok() { length } else { 0 }, Ordering::Relaxed);
        }
    }
}

struct Line<'a>(&'a Stderr);

impl io::Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.make_room(bytes.len() as u64);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_ollanas_own() {
        assert_eq!(filter(None).0.to_string(), "quinn_udp=error,ollana=info,warn");
        assert_eq!(filter(Some("TRACE")).0.to_string(), "quinn_udp=error,ollana=trace,warn");
        assert_eq!(filter(Some("error")).0.to_string(), "error");
        assert_eq!(filter(Some("ollana::peers=debug")).0.to_string(), "ollana::peers=debug");
        assert!(filter(Some("ollana=loud")).1.is_some());
    }
}
