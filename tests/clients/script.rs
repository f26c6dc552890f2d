//! A script beside this file, and the process that runs it.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use serde_json::Value;

use super::tools;

/// Bounds every wait for a line. A real model on a busy machine takes its time.
const PATIENCE: Duration = Duration::from_secs(180);

/// A client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    OllamaPython,
    OllamaNode,
    OpenAi,
    Anthropic,
}

pub const ALL: &[Client] = &[Client::OllamaPython, Client::OllamaNode, Client::OpenAi, Client::Anthropic];
/// Those that can change models.
pub const OLLAMAS: &[Client] = &[Client::OllamaPython, Client::OllamaNode];

/// A script that runs. Killed when dropped.
pub struct Script {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    what: String,
}

/// A thing that a script did, and what came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    pub name: String,
    pub result: Value,
}

// === impl Client ===

impl Client {
    /// What is missing, if anything.
    pub fn needs(self) -> Result<(), String> {
        match self {
            Self::OllamaNode => tools::node().and(tools::node_dir()).map(drop),
            _ => tools::python().map(drop),
        }
    }

    /// Does `what` at `url` with this model.
    pub fn start(self, what: &str, url: &str, model: &str, environment: &[(&str, &str)]) -> Script {
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
        let mut command = match self {
            Self::OllamaNode => {
                let mut command = Command::new(tools::node().unwrap());
                // Read from its standard input a module finds packages where the process runs; as a file, beside itself.
                let script = std::fs::read_to_string(here.join("ollama_js.mjs")).unwrap();
                command.current_dir(tools::node_dir().unwrap());
                command.args(["--input-type=module", "--eval", &script, "--"]);
                command
            }
            _ => {
                let mut command = Command::new(tools::python().unwrap());
                command.arg("-B").arg(here.join(format!("{self}.py")));
                command
            }
        };
        command.args([what, url, model]).env_clear().envs(environment.iter().copied());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", std::env::temp_dir());
        Script::start(command, format!("{self} {what} {url}"))
    }

    /// Does it to the end.
    pub fn run(self, what: &str, url: &str, model: &str, environment: &[(&str, &str)]) -> Vec<Step> {
        let mut script = self.start(what, url, model, environment);
        let mut steps = Vec::new();
        while let Some(step) = script.step() {
            steps.push(step);
        }
        assert!(!steps.is_empty(), "{} says nothing", script.what);
        steps
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OllamaPython => "ollama_py",
            Self::OllamaNode => "ollama_js",
            Self::OpenAi => "openai_py",
            Self::Anthropic => "anthropic_py",
        })
    }
}

// === impl Script ===

impl Script {
    fn start(mut command: Command, what: String) -> Self {
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, lines) = channel();
        // Ends with the process.
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, stdin, lines, what }
    }

    /// The next thing it did; nothing if it ended well.
    pub fn step(&mut self) -> Option<Step> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => {
                let mut step: Value =
                    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{}: {error}: {line}", self.what));
                Some(Step { name: step["step"].as_str().unwrap().to_owned(), result: step["result"].take() })
            }
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().unwrap();
                let mut said = String::new();
                let _ = self.child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut said));
                assert!(status.success(), "{}: {status}\n{said}", self.what);
                None
            }
            Err(RecvTimeoutError::Timeout) => panic!("{} says nothing more", self.what),
        }
    }

    /// Waits for this step.
    pub fn until(&mut self, name: &str) -> Step {
        loop {
            let step = self.step().unwrap_or_else(|| panic!("{} ended before '{name}'", self.what));
            if step.name == name {
                return step;
            }
        }
    }

    /// Tells it to go on.
    pub fn go_on(&mut self) {
        self.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
