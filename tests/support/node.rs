//! The program itself, running on a [`Host`]: started as people start it, and looked at as people look at it.

#![allow(dead_code)]

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;

use crate::netns::{Host, Running};

/// The program.
pub const OLLANA: &str = env!("CARGO_BIN_EXE_ollana");
/// Longer than a node takes to start on a machine with much else to do.
const START: Duration = Duration::from_secs(10);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// What a simulated Ollama runs at a time, if nothing is said: no test that is not about slots shall wait for one.
const SLOTS: u32 = 256;
/// Lines of a log that are shown when a test fails. All of it is shown if `OLLANA_TEST_LOG` says what to log.
const TAIL: usize = 80;

/// A machine's disk: its home directory, with the state directory at its usual place. Outlives the node's runs.
#[derive(Debug)]
pub struct Home {
    name: String,
    dir: TempDir,
    slots: u32,
}

/// A running node. Killed when dropped; if its test fails it says what it has logged.
#[derive(Debug)]
pub struct Node {
    name: String,
    state_dir: PathBuf,
    log: PathBuf,
    running: Running,
}

/// A peer as `ollana peers --json` shows it.
#[derive(Debug, Clone, Deserialize)]
pub struct Peer {
    pub name: String,
    pub id: String,
    pub address: Option<String>,
    pub state: String,
    pub trust: String,
    #[serde(rename = "use")]
    pub use_: String,
    pub scope: String,
    #[serde(default)]
    pub remote_scope: Option<String>,
    #[serde(default)]
    pub denial: Option<String>,
    pub provider: bool,
    pub models: Vec<String>,
    pub inflight: u32,
    #[serde(default)]
    pub problem: Option<String>,
}

/// Waits until something is there; panics with `what` if it is not within `limit`.
pub fn until<T>(limit: Duration, what: impl std::fmt::Display, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

// === impl Home ===

impl Home {
    /// An empty one, on a machine of this name.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: tempfile::Builder::new().prefix(&format!("ollana-{name}-")).tempdir().unwrap(),
            slots: SLOTS,
        }
    }

    /// Its Ollama runs so many requests of a model at a time, and its owner says so.
    pub fn with_slots(self, slots: u32) -> Self {
        Self { slots, ..self }
    }

    /// A machine of another name with a copy of all that this one's node keeps: a cloned disk.
    pub fn clone_to(&self, name: &str) -> Self {
        let copy = Self::new(name);
        std::fs::create_dir_all(copy.state_dir().parent().unwrap()).unwrap();
        // With permissions, as a disk is cloned; sockets are left out, as `cp` cannot copy them.
        for entry in std::fs::read_dir(self.state_dir()).unwrap().map(Result::unwrap) {
            std::fs::create_dir_all(copy.state_dir()).unwrap();
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), copy.state_dir().join(entry.file_name())).unwrap();
            }
        }
        copy
    }

    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the node keeps what it knows.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join(".local/share/ollana")
    }

    /// Writes the configuration file.
    pub fn configure(&self, toml: &str) {
        let dir = self.dir.path().join(".config/ollana");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("config.toml"), toml).unwrap();
    }

    /// The node gets a new key at its next start.
    pub fn forget_key(&self) {
        std::fs::remove_file(self.state_dir().join("identity.key")).unwrap();
    }

    /// `ollana serve` on a machine that must not come to serve: its exit code and what it complains of.
    pub fn fails(&self, host: &Host, flags: &[&str]) -> (Option<i32>, String) {
        let mut command = host.command(OLLANA);
        self.belongs_to(&mut command);
        let output = command.arg("serve").args(flags).env("RUST_LOG", "off").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// Runs a command of `ollana` on a machine, as its user types it: its exit code and all that it says.
    pub fn ollana(&self, host: &Host, args: &[&str]) -> (Option<i32>, String) {
        let mut command = host.command(OLLANA);
        self.belongs_to(&mut command);
        let output = command.args(args).stdin(Stdio::null()).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(text).unwrap())
    }

    /// Makes this the home of a process, and nothing else of the environment its business.
    fn belongs_to(&self, command: &mut Command) {
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command.env("HOME", self.dir.path());
    }
}

// === impl Node ===

impl Node {
    /// `ollana serve` on a machine, with these flags beside; returns once it serves.
    pub fn start(host: &Host, home: &Home, flags: &[&str]) -> Self {
        let mut node = Self::spawn(host, home, flags);
        node.is_ready();
        node
    }

    /// The same with this in its environment.
    pub fn start_with(host: &Host, home: &Home, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut node = Self::spawn_with(host, home, flags, variables);
        node.is_ready();
        node
    }

    /// The same, without waiting for anything.
    pub fn spawn(host: &Host, home: &Home, flags: &[&str]) -> Self {
        Self::spawn_with(host, home, flags, &[])
    }

    fn spawn_with(host: &Host, home: &Home, flags: &[&str], variables: &[(&str, &str)]) -> Self {
        let dir = home.dir.path();
        let log = dir.join("log");
        let out = File::options().create(true).append(true).open(&log).unwrap();
        let mut command = host.command("unshare");
        // A machine has a name of its own, which is what its node is called.
        let named = "hostname \"$0\" 2>/dev/null || export OLLANA_NAME=\"$0\"; exec \"$@\"";
        command.args(["--uts", "sh", "-c", named, &home.name]);
        command.arg(OLLANA).arg("serve").args(flags);
        for (name, _) in std::env::vars_os().filter(|(name, _)| is_ours(&name.to_string_lossy())) {
            command.env_remove(name);
        }
        command
            .env("HOME", dir)
            .env("OLLANA_LEND_PARALLEL", home.slots.to_string())
            .envs(variables.iter().copied())
            .env("RUST_LOG", std::env::var("OLLANA_TEST_LOG").unwrap_or_else(|_| "debug".to_owned()));
        command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out);
        let running = Running::spawn(&mut command);
        Self { name: home.name.clone(), state_dir: home.state_dir(), log, running }
    }

    /// Waits until it serves.
    pub fn is_ready(&mut self) {
        let name = self.name.clone();
        until(START, format!("{name} serves"), || {
            if let Some(status) = self.running.try_wait().unwrap() {
                panic!("{name} ended with {status}: {}", self.log());
            }
            self.ask::<Value>("/status").is_ok().then_some(())
        });
    }

    /// Its whole ID.
    pub fn id(&self) -> String {
        self.status()["id"].as_str().unwrap().to_owned()
    }

    /// What `ollana status --json` shows.
    pub fn status(&self) -> Value {
        self.ask("/status").unwrap()
    }

    /// What `ollana peers --json` shows.
    pub fn peers(&self) -> Vec<Peer> {
        self.ask("/peers").unwrap()
    }

    /// A peer that is shown by this name.
    pub fn peer(&self, name: &str) -> Option<Peer> {
        self.peers().into_iter().find(|peer| peer.name == name)
    }

    /// Waits until the peer of this name is shown like this.
    pub fn until_peer(&self, name: &str, limit: Duration, wanted: impl Fn(&Peer) -> bool) -> Peer {
        let end = Instant::now() + limit;
        loop {
            let peers = self.peers();
            match peers.iter().find(|peer| peer.name == name && wanted(peer)) {
                Some(peer) => return peer.clone(),
                None => {
                    assert!(Instant::now() < end, "{} does not see {name} so within {limit:?}: {peers:#?}", self.name)
                }
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until the peer of this name lends and is used.
    pub fn until_used(&self, name: &str, limit: Duration) -> Peer {
        self.until_peer(name, limit, |peer| peer.state == "connected" && peer.provider && peer.use_ == "yes")
    }

    /// Waits until its own status is like this.
    pub fn until_status(&self, limit: Duration, wanted: impl Fn(&Value) -> bool) {
        let end = Instant::now() + limit;
        loop {
            let status = self.status();
            if wanted(&status) {
                return;
            }
            assert!(Instant::now() < end, "{} is not so within {limit:?}: {status:#}", self.name);
            std::thread::sleep(LOOK);
        }
    }

    /// All that it has logged, in all its runs.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap()).into_owned()
    }

    /// Waits until it has logged a line with all of these.
    pub fn logs(&self, parts: &[&str], limit: Duration) -> String {
        until(limit, format!("{} logs {parts:?}", self.name), || {
            self.log().lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned)
        })
    }

    /// Runs a command of `ollana` for this node; what it prints, or what it complains of.
    pub fn ollana(&self, args: &[&str]) -> Result<String, String> {
        ollana(&self.state_dir, args)
    }

    /// A power cut.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Asks it to stop, by SIGTERM.
    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.running.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Waits until it has ended by itself.
    pub fn ends(&mut self, limit: Duration) -> ExitStatus {
        let name = &self.name;
        self.running.wait_for_end(limit).unwrap_or_else(|| panic!("{name} has not ended within {limit:?}"))
    }

    /// Stops it and waits until it is gone.
    pub fn stop(mut self) {
        self.terminate();
        let status = self.ends(Duration::from_secs(10));
        assert!(status.success(), "{} ended with {status}", self.name);
    }

    fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T, String> {
        let mut answer = String::new();
        let asked = UnixStream::connect(self.state_dir.join("ollana.sock")).and_then(|mut socket| {
            socket.write_all(format!("GET {path} HTTP/1.1\r\nHost: ollana\r\nConnection: close\r\n\r\n").as_bytes())?;
            socket.read_to_string(&mut answer)
        });
        asked.map_err(|error| error.to_string())?;
        let (_, body) = answer.split_once("\r\n\r\n").ok_or("an answer without a body")?;
        serde_json::from_str(body).map_err(|error| format!("{error}: {body}"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.kill();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<_> = log.lines().collect();
            let tail = if std::env::var_os("OLLANA_TEST_LOG").is_some() { lines.len() } else { TAIL };
            let tail = lines[lines.len().saturating_sub(tail)..].join("\n");
            eprintln!("--- the last of {} lines that {} logged:\n{tail}\n---", lines.len(), self.name);
        }
    }
}

/// Whether a variable of the environment would change what a node does.
fn is_ours(variable: &str) -> bool {
    ["OLLANA_", "OLLAMA_", "XDG_", "STATE_DIRECTORY", "RUST_LOG"].iter().any(|prefix| variable.starts_with(prefix))
}

/// Commands find the node by its socket, which is a file: no matter on which host they run.
fn ollana(state_dir: &Path, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(OLLANA);
    command.args(args).arg("--state-dir").arg(state_dir).env("HOME", state_dir).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}
