//! Nodes as processes of their own, as people run them, and what the kernel says that they use.
#![allow(dead_code, reason = "each test takes what it needs of it")]

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

/// Bounds every wait, so that what fails does not hang. Others may be building on the same machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A running `ollana serve` on loopback that finds nobody by itself. Killed when dropped.
pub struct Node {
    child: Child,
    directory: TempDir,
    log: Arc<Mutex<VecDeque<String>>>,
    pub listen: SocketAddr,
    pub mesh: SocketAddr,
    pub id: String,
}

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory {
    pub now: u64,
    /// The most since the start, or since [`Node::forget_peak`].
    pub peak: u64,
}

// === impl Node ===

impl Node {
    /// Starts a node and waits until it serves. Without an Ollama it only uses the mesh.
    pub fn start(name: &str, ollama: Option<SocketAddr>, peers: &[SocketAddr]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let config = directory.path().join("config.toml");
        // The loads are to run at once, and not to wait until a node has learned that they can.
        fs::write(&config, "discovery = false\n[lend]\nparallel = 256\n[balance]\nwaiting = 256\n").unwrap();
        let mut command = ollana(&directory);
        command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--status", "off"]);
        match ollama {
            Some(ollama) => command.args(["--ollama", &format!("http://{ollama}")]),
            None => command.args(["--mode", "client"]),
        };
        for peer in peers {
            command.args(["--peer", &peer.to_string()]);
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        while let Some(Ok(line)) = lines.next() {
            let ready = line.contains(" is ready. ");
            said.push(line);
            if ready {
                break;
            }
        }
        let log = Arc::new(Mutex::new(VecDeque::from(said)));
        // Ends with the process.
        let keep = Arc::clone(&log);
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                let mut log = keep.lock().unwrap();
                if log.len() == 200 {
                    log.pop_front();
                }
                log.push_back(line);
            }
        });
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut node = Self { child, directory, log, listen: unspecified, mesh: unspecified, id: String::new() };
        let status = node.json(&["status", "--json"]);
        let text = |key: &str| status[key].as_str().unwrap().to_owned();
        (node.listen, node.mesh, node.id) =
            (text("listen").parse().unwrap(), text("mesh").parse().unwrap(), text("id"));
        node
    }

    /// Waits until this many providers are connected.
    pub fn waits_for_providers(&self, count: usize) {
        self.waits("providers", |node| {
            let peers = node.json(&["peers", "--json"]);
            let ready = |peer: &&Value| peer["state"] == "connected" && peer["provider"] == true;
            peers.as_array().unwrap().iter().filter(ready).count() >= count
        });
    }

    /// Waits until this many others know it as a peer.
    pub fn waits_for_peers(&self, count: usize) {
        self.waits("peers", |node| node.json(&["peers", "--json"]).as_array().unwrap().len() >= count);
    }

    /// Lets a peer change models here.
    pub fn lets_manage(&self, peer: &Self) {
        self.run(&["trust", &peer.id, "--scope", "manage", "--yes"]);
    }

    fn waits(&self, what: &str, there: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !there(self) {
            assert!(start.elapsed() < PATIENCE, "no {what} came:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Runs the command line against it.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = ollana(&self.directory).args(arguments).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ollana {arguments:?}: {error}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }

    /// What it has logged of late.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().iter().map(|line| format!("    {line}\n")).collect()
    }

    /// Processor time used so far, in user and kernel mode.
    pub fn cpu(&self) -> Duration {
        let stat = self.proc("stat");
        // The name in brackets may hold anything; behind it come fields 3 and following (proc(5)).
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let ticks = |field: usize| fields[field - 3].parse::<u64>().unwrap();
        // A tick is 10 ms for every program, whatever the kernel itself counts in.
        Duration::from_millis((ticks(14) + ticks(15)) * 10)
    }

    pub fn memory(&self) -> Memory {
        let status = self.proc("status");
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
        };
        Memory { now: bytes("VmRSS"), peak: bytes("VmHWM") }
    }

    /// Counts the peak of its memory from now on (proc(5), `clear_refs`).
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap().count()
    }

    /// Times its threads gave the processor up, which is about how often they were woken.
    pub fn wakeups(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        let switches = |status: String| {
            let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.unwrap().trim().parse::<u64>().unwrap()
        };
        tasks.map(|task| switches(fs::read_to_string(task.unwrap().path().join("status")).unwrap())).sum()
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id())).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with this state directory and without the settings of whoever runs the test. `OLLANA_UNDER` may name
/// another build of it, to compare two in the same minute.
fn ollana(directory: &TempDir) -> Command {
    let program = std::env::var_os("OLLANA_UNDER").unwrap_or_else(|| env!("CARGO_BIN_EXE_ollana").into());
    let mut command = Command::new(program);
    command.env_clear().env("HOME", directory.path());
    for kept in ["PATH", "RUST_LOG", "MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "TOKIO_WORKER_THREADS"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.arg("--state-dir").arg(directory.path()).arg("--config").arg(directory.path().join("config.toml"));
    command
}
