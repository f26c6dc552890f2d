//! A real Ollama with a small real model, where the machine has them ([`tools`]).
#![allow(dead_code)]

use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::tools;

/// One that serves the model `smollm2`. Killed, with the runners it started, when it is dropped.
#[derive(Debug)]
pub struct RealOllama {
    addr: SocketAddr,
    child: Child,
    home: TempDir,
}

/// Why it cannot be had, if it cannot.
pub fn needs() -> Result<(), String> {
    tools::ollama().and(tools::model()).map(drop)
}

// === impl RealOllama ===

impl RealOllama {
    /// Starts it and gives it the model. A Modelfile may say more than where the model is.
    pub fn start(modelfile: &str) -> Self {
        let (program, model) = (tools::ollama().unwrap(), tools::model().unwrap());
        let home = TempDir::new().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = File::create(home.path().join("log")).unwrap();
        let mut serve = Command::new(&program);
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
        let path = started.home.path().join("Modelfile");
        std::fs::write(&path, format!("FROM {}\n{modelfile}", model.display())).unwrap();
        let mut create = Command::new(&program);
        create.args(["create", "smollm2", "-f"]).arg(&path).env("HOME", started.home.path());
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
