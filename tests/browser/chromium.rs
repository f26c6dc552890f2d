//! A browser that looks at one page.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::site::Site;
use super::tools;

/// A Chromium without a window. Killed when dropped, with all its processes.
pub struct Browser {
    child: Child,
    _profile: TempDir,
}

// === impl Browser ===

impl Browser {
    /// Opens `http://name:port/page?…`, where a name that is not this machine's own stands for the site's address.
    pub fn open(name: &str, site: &Site, does: &str, target: Option<SocketAddr>) -> Self {
        let profile = TempDir::new().unwrap();
        let target = target.map(|target| format!("&target=http://{target}")).unwrap_or_default();
        let mut command = Command::new(tools::chromium().unwrap());
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        // Nothing of its own to the network, which may not be there.
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-sync"]);
        let (address, reports) = (site.address, site.reports.port());
        command.arg(format!("--host-resolver-rules=MAP {name} {}", address.ip()));
        command.arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("http://{name}:{}/page?does={does}&report={reports}{target}", address.port()));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", profile.path());
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
