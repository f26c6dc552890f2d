//! A user with an empty home directory and nothing in the environment.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// What every node of these tests is told: ports that are free, nobody to look for, no Ollama.
const ALONE: [(&str, &str); 5] = [
    ("OLLANA_LISTEN", "127.0.0.1:0"),
    ("OLLANA_MESH", "127.0.0.1:0"),
    ("OLLANA_STATUS", "127.0.0.1:0"),
    ("OLLANA_DISCOVERY", "false"),
    ("OLLANA_OLLAMA", "http://127.0.0.1:1"),
];

pub struct Home {
    dir: tempfile::TempDir,
    variables: Vec<(String, String)>,
}

impl Home {
    pub fn new() -> Self {
        let mut home = Self { dir: tempfile::tempdir().unwrap(), variables: Vec::new() };
        for (name, value) in ALONE {
            home.set(name, value);
        }
        home
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.variables.push((name.to_owned(), value.to_owned()));
    }

    pub fn unset(&mut self, name: &str) {
        self.variables.retain(|(other, _)| other != name);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn state(&self) -> PathBuf {
        self.path().join(".local/share/ollana")
    }

    pub fn config(&self) -> PathBuf {
        self.path().join(".config/ollana/config.toml")
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        command.args(args).env_clear().env("HOME", self.path()).current_dir(self.path()).stdin(Stdio::null());
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// Runs a command that has to succeed, and gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
        ran.out
    }

    /// Runs a command that has to fail with this code and one line on stderr, and gives the line.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(code), "{args:?}: {} {}", ran.out, ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{args:?}: {}", ran.err);
        assert_eq!(ran.out, "", "{args:?}");
        ran.err
    }

    pub fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Starts a node in the foreground and returns once it serves.
    pub fn foreground(&self, args: &[&str]) -> Foreground {
        let mut child = self.command(args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        while !first.lines().last().is_some_and(|line| line.contains(" is ready. ")) {
            assert!(log.read_line(&mut first).unwrap() > 0, "the node ended: {first}");
        }
        Foreground { child, log, first }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What a failed test has left running.
        for state in [self.state(), self.path().join("flag")] {
            if let Ok(pid) = std::fs::read_to_string(state.join("ollana.pid")) {
                signal(pid.trim().parse().unwrap(), Signal::KILL);
            }
        }
    }
}

pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

pub struct Foreground {
    child: Child,
    log: BufReader<ChildStderr>,
    /// The log up to the line that says it serves.
    pub first: String,
}

impl Foreground {
    pub fn signal(&self, what: Signal) {
        signal(self.child.id(), what);
    }

    /// Waits for the end; gives the exit code and the rest of the log.
    pub fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.log, &mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

pub fn signal(pid: u32, what: Signal) {
    let _ = kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), what);
}

pub fn mode(path: &Path) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions()) & 0o777
}

/// Whether the tests run as root, who may write everywhere and become somebody else.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The same command, run by a user without rights. Root only.
pub fn as_nobody(command: &Command) -> Command {
    let mut nobody = Command::new("setpriv");
    nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(command.get_program())
        .args(command.get_args());
    nobody.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    nobody.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    nobody.current_dir("/");
    nobody
}
