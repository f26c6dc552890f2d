//! When somebody used this machine last, as far as a program without rights can tell (Linux).
//!
//! A terminal's device notes when it was read last, which is how `w` knows who is idle. What is done with mouse and
//! keyboard on a desktop only the desktop knows; most tell logind when their session is idle. One that does not counts as
//! used while it is in front and not locked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::process::Command;
use tokio::time::timeout;

/// For all calls of `loginctl` at one look; each takes some milliseconds.
const LOGIND: Duration = Duration::from_secs(2);
/// A session that ends between the two calls makes the second one fail; those of `cron` end all the time.
const LOOKS: usize = 3;
/// Sessions that are asked for; more have no room in a command line of sane length.
const SESSIONS: usize = 256;

/// Where it can be seen.
#[derive(Debug, Clone)]
pub(super) struct Usage {
    /// Where the devices are.
    dev: PathBuf,
    /// Where logind notes who is logged in.
    logins: PathBuf,
    /// What asks it.
    loginctl: PathBuf,
}

impl Default for Usage {
    fn default() -> Self {
        let (dev, logins) = ("/dev".into(), "/run/systemd/sessions".into());
        Self { dev, logins, loginctl: "loginctl".into() }
    }
}

// === impl Usage ===

impl Usage {
    /// For how long nobody has used the machine, in terminals and desktops; for ever if there is no trace of anybody.
    pub(super) async fn unused_for(&self) -> Duration {
        let dev = self.dev.clone();
        let terminals = tokio::task::spawn_blocking(move || terminals(&dev));
        let (terminals, desktops) = tokio::join!(terminals, self.desktops());
        // A look that failed is taken for a use: rather the owner first than a peer by mistake.
        terminals.unwrap_or(Duration::ZERO).min(desktops)
    }

    async fn desktops(&self) -> Duration {
        // The directory alone says nothing: it is there, empty, where systemd is installed and does not run.
        if !fs::read_dir(&self.logins).is_ok_and(|mut logins| logins.next().is_some()) {
            return Duration::MAX;
        }
        let look = async {
            for _ in 0..LOOKS {
                if let Some(sessions) = self.sessions().await {
                    return Some(sessions);
                }
            }
            None
        };
        match timeout(LOGIND, look).await {
            Ok(Some(sessions)) => desktops(&sessions, SystemTime::now()),
            Ok(None) | Err(_) => {
                tracing::debug!("logind does not say whether somebody uses this machine");
                Duration::ZERO
            }
        }
    }

    /// What logind says of every session, one after the other with an empty line between.
    async fn sessions(&self) -> Option<String> {
        let list = self.ask(&["list-sessions", "--no-legend"]).await?;
        let ids = list.lines().filter_map(|line| line.split_whitespace().next()).take(SESSIONS);
        let ids: Vec<&str> = ids.collect();
        if ids.is_empty() {
            return Some(String::new());
        }
        let properties = "--property=Class,Type,State,LockedHint,IdleHint,IdleSinceHint";
        self.ask(&[&["show-session", properties, "--"], ids.as_slice()].concat()).await
    }

    async fn ask(&self, args: &[&str]) -> Option<String> {
        let mut loginctl = Command::new(&self.loginctl);
        loginctl.args(args).env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null());
        let output = loginctl.kill_on_drop(true).output().await.ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// For how long nobody has typed at a console or a pseudo-terminal. Serial lines are left out: what is read there is a
/// device's more often than a person's.
fn terminals(dev: &Path) -> Duration {
    let console = |name: &str| name.strip_prefix("tty").is_some_and(is_number);
    let used = latest(dev, console).max(latest(&dev.join("pts"), is_number));
    used.map_or(Duration::MAX, |used| since(used, SystemTime::now()))
}

/// When one of these devices was read last.
fn latest(dir: &Path, wanted: impl Fn(&str) -> bool) -> Option<SystemTime> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let wanted = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
    // One that was just closed is gone.
    wanted.filter_map(|entry| entry.metadata().ok()?.accessed().ok()).max()
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// For how long no desktop of a person was used.
fn desktops(sessions: &str, now: SystemTime) -> Duration {
    sessions.split("\n\n").filter_map(|session| desktop(session, now)).min().unwrap_or(Duration::MAX)
}

/// For how long this one was not, if it is one and can tell.
fn desktop(session: &str, now: SystemTime) -> Option<Duration> {
    let value = |name: &str| {
        session
            .lines()
            .filter_map(|line| line.split_once('='))
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value)
    };
    // The screen on which one logs in is nobody's; a session in a terminal was seen by its device.
    if !value("Class").starts_with("user") || !matches!(value("Type"), "x11" | "wayland" | "mir") {
        return None;
    }
    match (value("IdleHint"), value("LockedHint"), value("State")) {
        ("yes", _, _) => {
            let micros = value("IdleSinceHint").parse().ok().filter(|micros| *micros > 0)?;
            Some(since(UNIX_EPOCH.checked_add(Duration::from_micros(micros))?, now))
        }
        // Nobody sees what it shows; when that began is not said.
        (_, "yes", _) => None,
        (_, _, "active") => Some(Duration::ZERO),
        _ => None,
    }
}

/// A time that has not come yet, by a clock that was set back, is now.
fn since(used: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(used).unwrap_or_default()
}

#[cfg(test)]
pub(super) mod tests;
