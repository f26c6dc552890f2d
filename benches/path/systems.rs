//! The ways from an application to the Ollama on the other host, each a pair of processes, and what they use.

use std::collections::HashMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::hosts::{Hosts, answers, begin, listens};
use super::load;
use super::netns::{Host, Running};
use super::others::{self, Side};

/// What the provider's node is called.
pub const USED_PROVIDER: &str = "provider";
const LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 11434);
const PATIENCE: Duration = Duration::from_secs(20);
const MB: f64 = 1024.0 * 1024.0;

/// A kind of way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Direct,
    Nginx,
    Haproxy,
    Trial,
    Ollana,
}

/// What is needed to start them.
pub struct Programs {
    pub ollana: PathBuf,
    pub trial: Option<PathBuf>,
}

/// A way that is there.
pub struct System {
    pub kind: Kind,
    /// Where requests go, on the user's host.
    pub address: SocketAddr,
    /// Milliseconds from the start of the user's side to the first answer, the provider's side being there.
    pub start: Option<f64>,
    /// Milliseconds from the start of a node to the first answer of the Ollama on its own host.
    pub start_alone: Option<f64>,
    /// All processes of the user's and of the provider's side.
    pids: [Vec<u32>; 2],
    /// Those that were started here.
    running: Vec<Running>,
}

/// Resident memory in MB.
#[derive(Clone, Copy)]
pub struct Memory {
    /// That of the side which has more.
    pub node: f64,
    pub both: f64,
}

// === impl Kind ===

impl Kind {
    pub const ALL: [Self; 5] = [Self::Direct, Self::Nginx, Self::Haproxy, Self::Trial, Self::Ollana];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::Trial => "trial",
            Self::Ollana => "ollana",
        }
    }

    /// Why it cannot be measured here.
    pub fn missing(self, programs: &Programs) -> Option<String> {
        match self {
            Self::Direct => None,
            Self::Nginx => others::installed("nginx").err(),
            Self::Haproxy => others::installed("haproxy").err(),
            Self::Trial => match &programs.trial {
                None => Some("no bare proxy given (--trial PATH)".to_owned()),
                Some(path) => (!path.exists()).then(|| format!("{} is not there", path.display())),
            },
            Self::Ollana => (!programs.ollana.exists()).then(|| format!("{} is not there", programs.ollana.display())),
        }
    }

    pub fn start(self, hosts: &Hosts, programs: &Programs, directory: &Path) -> Result<System, String> {
        let started = match self {
            Self::Direct => Ok(System::new(self, Hosts::ollama_straight(), Vec::new(), Vec::new())),
            Self::Nginx => pair(self, hosts, 1, |side, listen, to| others::nginx(directory, side, listen, to)),
            Self::Haproxy => pair(self, hosts, 2, |side, listen, to| others::haproxy(directory, side, listen, to)),
            Self::Trial => {
                let program = programs.trial.as_ref().ok_or("no bare proxy given")?;
                pair(self, hosts, 3, |side, listen, to| {
                    let mut command = Command::new(program);
                    command.arg(if side == Side::User { "user" } else { "server" });
                    command.args([listen.to_string(), to.to_string()]).env("THREADS", "0");
                    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    Ok(command)
                })
            }
            Self::Ollana => ollana(hosts, programs, directory),
        };
        let system = started.map_err(|error| format!("{}: {error}", self.name()))?;
        system.until_all_models_answer(&hosts.user)?;
        Ok(system)
    }
}

/// Two processes that need no more than where to listen and where to go on.
fn pair(
    kind: Kind,
    hosts: &Hosts,
    number: u16,
    command: impl Fn(Side, SocketAddr, SocketAddr) -> Result<Command, String>,
) -> Result<System, String> {
    let [here, there] = [Side::User, Side::Provider].map(|side| others::listen(side, number));
    // The bare proxy listens at a UDP port, and its user's side tries until somebody does.
    let ready = || kind == Kind::Trial || listens(there);
    let (provider, _) = begin(&hosts.provider, &mut command(Side::Provider, there, Hosts::ollama())?, ready)
        .map_err(|error| format!("the provider's side: {error}"))?;
    std::thread::sleep(Duration::from_millis(100));
    let (user, start) = begin(&hosts.user, &mut command(Side::User, here, there)?, || answers(here))
        .map_err(|error| format!("the user's side: {error}"))?;
    let mut system = System::new(kind, here, vec![user], vec![provider]);
    system.start = Some(start);
    Ok(system)
}

/// Two nodes that find each other by themselves. All settings are the defaults, but that the owner says how many requests
/// the server runs at a time, as an owner of such a server would.
fn ollana(hosts: &Hosts, programs: &Programs, directory: &Path) -> Result<System, String> {
    let homes = [Side::User, Side::Provider].map(|side| directory.join(format!("ollana-{}", side.name())));
    let command = |home: &Path, name: &str| {
        let mut command = Command::new(&programs.ollana);
        command.env_clear().env("HOME", home).env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.args(["serve", "--name", name]).stdin(Stdio::null());
        command
    };
    for home in &homes {
        // From nothing, as on the first day.
        let _ = fs::remove_dir_all(home);
        fs::create_dir_all(home).map_err(|error| error.to_string())?;
    }
    let log = |home: &Path| File::create(home.join("log")).map_err(|error| error.to_string());
    let with_log = |error: String, home: &Path| {
        let log = fs::read_to_string(home.join("log")).unwrap_or_default();
        format!("{error}\n{log}")
    };

    let mut provider = command(&homes[1], USED_PROVIDER);
    provider.args(["--ollama", &format!("http://{}", Hosts::ollama())]).env("OLLANA_LEND_PARALLEL", "256");
    provider.stdout(Stdio::null()).stderr(log(&homes[1])?);
    let (provider, start_alone) = begin(&hosts.provider, &mut provider, || answers(LISTEN))
        .map_err(|error| with_log(format!("the provider's node: {error}"), &homes[1]))?;

    let mut user = command(&homes[0], "user");
    user.stdout(Stdio::null()).stderr(log(&homes[0])?);
    let (user, start) = begin(&hosts.user, &mut user, || answers(LISTEN))
        .map_err(|error| with_log(format!("the user's node: {error}"), &homes[0]))?;

    // Uploads are for those who may change models. A script needs the whole ID.
    let run = |home: &Path, arguments: &[&str]| {
        let mut command = Command::new(&programs.ollana);
        command.env_clear().env("HOME", home).args(arguments).stdin(Stdio::null());
        let output = command.output().map_err(|error| error.to_string())?;
        match output.status.success() {
            true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
            false => Err(format!("ollana {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())),
        }
    };
    let id = run(&homes[0], &["status", "--json"])?;
    let id: Value = serde_json::from_str(&id).map_err(|error| error.to_string())?;
    run(&homes[1], &["trust", id["id"].as_str().unwrap_or_default(), "--scope", "manage", "--yes"])?;
    let mut system = System::new(Kind::Ollana, LISTEN, vec![user], vec![provider]);
    (system.start, system.start_alone) = (Some(start), Some(start_alone));
    Ok(system)
}

// === impl System ===

impl System {
    fn new(kind: Kind, address: SocketAddr, user: Vec<Running>, provider: Vec<Running>) -> Self {
        let pids = [&user, &provider].map(|running| with_children(running.iter().map(|process| process.id())));
        let running = user.into_iter().chain(provider).collect();
        Self { kind, address, start: None, start_alone: None, pids, running }
    }

    fn until_all_models_answer(&self, host: &Host) -> Result<(), String> {
        host.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let start = Instant::now();
            loop {
                let asked =
                    runtime.block_on(async { tokio::time::timeout(PATIENCE, load::all_models(self.address)).await });
                match asked {
                    Ok(Ok(())) => return Ok(()),
                    _ if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(20)),
                    Ok(Err(error)) => return Err(format!("{}: {error}", self.kind.name())),
                    Err(_) => return Err(format!("{}: no answer", self.kind.name())),
                }
            }
        })
    }

    /// Whether there are processes between the application and the server.
    pub fn is_proxied(&self) -> bool {
        self.kind != Kind::Direct
    }

    /// Seconds of the processor that all its processes have used, in user and kernel mode.
    pub fn cpu(&self) -> f64 {
        self.pids.iter().flatten().map(|pid| cpu(*pid)).sum()
    }

    /// The peaks of its memory since the last [`forget_peaks`](Self::forget_peaks).
    pub fn peaks(&self) -> Memory {
        self.memory("VmHWM:")
    }

    pub fn resident(&self) -> Memory {
        self.memory("VmRSS:")
    }

    /// Counts the peaks from now on (proc(5), `clear_refs`).
    pub fn forget_peaks(&self) {
        for pid in self.pids.iter().flatten() {
            let _ = fs::write(format!("/proc/{pid}/clear_refs"), "5");
        }
    }

    fn memory(&self, key: &str) -> Memory {
        let sides = self.pids.each_ref().map(|pids| pids.iter().map(|pid| memory(*pid, key)).sum::<f64>());
        Memory { node: sides[0].max(sides[1]), both: sides[0] + sides[1] }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        let signal = |pid: &u32, signal| {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, signal);
            }
        };
        // In order, since a master that is killed leaves its workers behind.
        for running in &self.running {
            signal(&running.id(), Signal::TERM);
        }
        for running in &mut self.running {
            if running.wait_for_end(Duration::from_secs(3)).is_none() {
                let family = with_children(std::iter::once(running.id()));
                family.iter().for_each(|pid| signal(pid, Signal::KILL));
                running.kill();
            }
        }
    }
}

/// These processes and all that they have started.
fn with_children(pids: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut parents = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) {
            parents.insert(pid, field(pid, 4).unwrap_or(0));
        }
    }
    let mut family: Vec<u32> = pids.collect();
    let mut at = 0;
    while let Some(parent) = family.get(at).copied() {
        family.extend(parents.iter().filter(|(_, of)| **of == u64::from(parent)).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

/// A numeric field of `/proc/PID/stat`, counted as in proc(5).
fn field(pid: u32, number: usize) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything; field 3 comes behind it.
    stat.rsplit_once(')')?.1.split_whitespace().nth(number - 3)?.parse().ok()
}

fn cpu(pid: u32) -> f64 {
    // A tick is 10 ms for every program, whatever the kernel itself counts in.
    let ticks = field(pid, 14).zip(field(pid, 15)).map_or(0, |(user, system)| user + system);
    ticks as f64 / 100.0
}

fn memory(pid: u32, key: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<f64>().map_or(0.0, |kilobytes| kilobytes * 1024.0 / MB)
}
