//! Nodes as processes, and applications that ask them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
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
    home: TempDir,
    log: Arc<Mutex<Vec<String>>>,
    pub listen: SocketAddr,
    pub mesh: SocketAddr,
}

/// An application's answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    /// `ollana-peer`.
    pub peer: String,
}

// === impl Node ===

impl Node {
    /// One that shares the server at this address, as `--ollama` takes it.
    pub fn sharing(name: &str, server: impl ToString) -> Self {
        Self::start(name, &["--ollama", &server.to_string()], "")
    }

    /// One that uses what these share.
    pub fn using(name: &str, peers: &[&Self]) -> Self {
        let mut flags = vec!["--mode".to_owned(), "client".to_owned()];
        flags.extend(peers.iter().flat_map(|peer| ["--peer".to_owned(), peer.mesh.to_string()]));
        Self::start(name, &flags.iter().map(String::as_str).collect::<Vec<_>>(), "")
    }

    /// One with these flags and more in its file than what every node of these tests has.
    pub fn start(name: &str, flags: &[&str], config: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("config.toml"), format!("discovery = false\n{config}")).unwrap();
        let mut command = ollana(&home);
        command.args(["serve", "--name", name, "--listen", "127.0.0.1:0", "--mesh", "127.0.0.1:0", "--status", "off"]);
        let mut child = command.args(flags).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        while let Some(Ok(line)) = lines.next() {
            let is_ready = line.contains(" is ready. ");
            log.lock().unwrap().push(line);
            if is_ready {
                break;
            }
        }
        // Ends with the process.
        let keep = Arc::clone(&log);
        std::thread::spawn(move || {
            while let Some(Ok(line)) = lines.next() {
                keep.lock().unwrap().push(line);
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let mut node = Self { child, home, log, listen: nowhere, mesh: nowhere };
        let status = node.json(&["status", "--json"]);
        node.listen = status["listen"].as_str().unwrap().parse().unwrap();
        node.mesh = status["mesh"].as_str().unwrap().parse().unwrap();
        node
    }

    /// Its log, so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    /// Runs the command line against it; what it prints, whether it succeeds or not.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = ollana(&self.home).args(arguments).stdin(Stdio::null()).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = self.run(arguments);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}\n{}", self.log()))
    }

    /// Its server, as `status` shows it.
    pub fn server(&self) -> Value {
        let server = self.json(&["status", "--json"])["ollama"].clone();
        assert!(server["healthy"] == true || server["lent"] == false, "it contradicts itself: {server}");
        server
    }

    /// Waits until its server is shown so; then how.
    pub fn until_server(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        until(|| Some(self.server()).filter(&is), || format!("{what}: {}\n{}", self.server(), self.log()))
    }

    /// Waits until it lists another node's model under this name.
    pub fn until_model(&self, model: &str) {
        let listed = || self.models().contains(&model.to_owned());
        until(|| listed().then_some(()), || format!("no {model}: {:?}\n{}", self.models(), self.log()));
    }

    /// The names of all models that it can use.
    pub fn models(&self) -> Vec<String> {
        let models = self.json(&["models", "--json"]);
        models.as_array().unwrap().iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect()
    }

    pub fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, "")
    }

    /// A chat by the API that the path belongs to.
    pub fn chat(&self, path: &str, model: &str) -> Reply {
        let body = serde_json::json!({
            "model": model, "stream": false, "messages": [{"role": "user", "content": "Hi"}],
        });
        self.ask("POST", path, &body.to_string())
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let mut stream = TcpStream::connect(self.listen).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = self.listen;
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.0\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all((head + body).as_bytes()).unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let peer = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("ollana-peer").then(|| value.trim().to_owned())
        });
        Reply {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            body: body.to_owned(),
            peer: peer.unwrap_or_default(),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until there is something, and fails with `what` if there never is.
pub fn until<T>(mut look: impl FnMut() -> Option<T>, what: impl FnOnce() -> String) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        if Instant::now() > end {
            panic!("{}", what());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The program with this state directory and without the settings of whoever runs the test.
fn ollana(home: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
    command.env_clear().env("HOME", home.path());
    for kept in ["PATH", "RUST_LOG"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command.arg("--state-dir").arg(home.path()).arg("--config").arg(home.path().join("config.toml"));
    command
}
