//! A real Ollama with a small real model, asked directly and through two nodes; and the models of two of them, changed
//! through the mesh by the real `ollama` command.
//!
//! Where there is no Ollama or no model ([`tools`]) the tests are reported as ignored, with the reason; so is the one that
//! reads an Ollama's source ([`source`]).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod manage;
mod registry;
mod source;
#[path = "../support/tools.rs"]
mod tools;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use libtest_mimic::{Arguments, Trial};
use serde_json::Value;
use tempfile::TempDir;

/// One test.
type Test = fn();

fn main() {
    let arguments = Arguments::from_args();
    let lacking = needs().err();
    let tests: [(&str, Test); 5] = [
        ("the_ollama_command_lists_runs_and_shows_what_runs_elsewhere", || the_command(lab())),
        ("a_streamed_chat_through_the_mesh_is_the_chat_asked_directly", || streamed_chat(lab())),
        ("embeddings_and_an_openai_chat_are_the_same_as_asked_directly", || embeddings_and_openai(lab())),
        ("an_unknown_model_is_refused_in_the_same_words", || unknown_model(lab())),
        ("the_ollama_command_changes_models_where_it_may_and_says_why_where_not", changed_models),
    ];
    let trials = tests.into_iter().map(|(name, test)| {
        // libtest prints no reason of its own, so it stands in the name's kind.
        let kind = lacking.clone().unwrap_or_default();
        Trial::test(name, move || {
            test();
            Ok(())
        })
        .with_kind(kind)
        .with_ignored_flag(lacking.is_some())
    });
    let source = source::checkout().err();
    let name = "the_table_of_options_has_what_this_source_has";
    let compared = Trial::test(name, || {
        source::the_table_of_options_has_what_this_source_has();
        Ok(())
    })
    .with_ignored_flag(source.is_some())
    .with_kind(source.unwrap_or_default());
    let conclusion = libtest_mimic::run(&arguments, trials.chain([compared]).collect());
    if let Some(lab) = LAB.get() {
        lab.stop();
    }
    conclusion.exit();
}

fn changed_models() {
    manage::manage(&Lab::start(needs().unwrap(), 2));
}

// === what it takes ===

#[derive(Clone)]
struct Needs {
    ollama: PathBuf,
    model: PathBuf,
}

fn needs() -> Result<Needs, String> {
    Ok(Needs { ollama: tools::ollama()?, model: tools::model()? })
}

/// One Ollama with the model and perhaps others without, a node for each that lends it, and a node that uses them.
struct Lab {
    needs: Needs,
    home: TempDir,
    /// The first Ollama itself.
    direct: SocketAddr,
    /// The listener of the node without one.
    mesh: SocketAddr,
    children: std::sync::Mutex<Vec<Child>>,
}

static LAB: OnceLock<Arc<Lab>> = OnceLock::new();

fn lab() -> &'static Lab {
    LAB.get_or_init(|| Arc::new(Lab::start(needs().unwrap(), 1)))
}

fn free_tcp() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn free_udp() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Lab {
    fn start(needs: Needs, providers: usize) -> Self {
        let home = TempDir::new().unwrap();
        let (direct, mesh) = (free_tcp(), free_tcp());
        let lab = Self { needs, home, direct, mesh, children: std::sync::Mutex::default() };
        std::fs::write(lab.home.path().join("config.toml"), "discovery = false\n").unwrap();
        let mut user: Vec<String> = ["--mode", "client", "--listen"].map(str::to_owned).to_vec();
        user.extend([mesh.to_string(), "--mesh".to_owned(), free_udp().to_string()]);
        for n in 1..=providers {
            let (at, peer) = (if n == 1 { direct } else { free_tcp() }, free_udp().to_string());
            lab.spawn(lab.ollama(at, &["serve"]).env("OLLAMA_MODELS", lab.models(n)));
            eventually("the Ollama answers", Duration::from_secs(30), || TcpStream::connect(at).ok());
            lab.node(&format!("gpu{n}"), &["--mode", "server", "--ollama", &format!("http://{at}"), "--mesh", &peer]);
            user.extend(["--peer".to_owned(), peer]);
        }
        let created = lab.ollama(direct, &["create", "smollm2", "-f", &lab.modelfile()]).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));
        lab.node("laptop", &user.iter().map(String::as_str).collect::<Vec<_>>());
        eventually("the mesh has the model", Duration::from_secs(20), || {
            TcpStream::connect(mesh).ok()?;
            get(mesh, "/api/tags").contains("smollm2").then_some(())
        });
        lab
    }

    /// Where the models of the `n`th Ollama are, counted from 1.
    fn models(&self, n: usize) -> PathBuf {
        self.home.path().join(format!("models{n}"))
    }

    /// The path of a Modelfile for the model.
    fn modelfile(&self) -> String {
        let path = self.home.path().join("Modelfile");
        std::fs::write(&path, format!("FROM {}\n", self.needs.model.display())).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The command of Ollama, against the server there: an address, perhaps with a path behind.
    fn ollama(&self, at: impl std::fmt::Display, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.needs.ollama);
        command.args(arguments).env("OLLAMA_HOST", at.to_string()).env("HOME", self.home.path());
        command
    }

    fn node(&self, name: &str, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ollana"));
        command.args(["serve", "--name", name, "--status", "off"]).args(arguments);
        command.arg("--state-dir").arg(self.home.path().join(name));
        command.arg("--config").arg(self.home.path().join("config.toml"));
        self.spawn(command.env("HOME", self.home.path()).env_remove("OLLAMA_HOST"));
    }

    fn spawn(&self, command: &mut Command) {
        let log = |path: &Path| std::fs::File::options().create(true).append(true).open(path).unwrap();
        let log = log(&self.home.path().join("log"));
        // A group of its own, so that the runners that an Ollama starts end with it.
        let child =
            command.process_group(0).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        self.children.lock().unwrap().push(child);
    }

    fn stop(&self) {
        for child in self.children.lock().unwrap().iter_mut().rev() {
            if let Some(group) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            }
            let _ = child.wait();
        }
    }
}

/// The lab of all tests lives as long as the process, which stops it by hand.
impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
    }
}

// === a plain HTTP client ===

fn request(at: SocketAddr, method: &str, path: &str, body: &str) -> (u16, Vec<String>, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .unwrap();
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    let mut chunked = false;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        chunked |= line.to_ascii_lowercase().starts_with("transfer-encoding: chunked");
        if line == "\r\n" {
            break;
        }
    }
    let mut pieces = Vec::new();
    if chunked {
        loop {
            line.clear();
            reader.read_line(&mut line).unwrap();
            let size = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut piece = vec![0; size + 2];
            reader.read_exact(&mut piece).unwrap();
            if size == 0 {
                break;
            }
            piece.truncate(size);
            pieces.push(String::from_utf8(piece).unwrap());
        }
    }
    let mut whole = pieces.concat();
    if !chunked {
        reader.read_to_string(&mut whole).unwrap();
    }
    (status, pieces, whole)
}

fn get(at: SocketAddr, path: &str) -> String {
    request(at, "GET", path, "").2
}

/// Takes out what differs between two runs of the same request: times, durations and made-up IDs.
fn timeless(text: &str) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, _| {
                    !key.ends_with("_duration")
                        && !["created_at", "created", "id", "expires_at"].contains(&key.as_str())
                });
                map.values_mut().for_each(strip);
            }
            Value::Array(list) => list.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    strip(&mut value);
    value
}

// === the tests ===

fn the_command(lab: &Lab) {
    let run = |arguments: &[&str]| {
        let ran = lab.ollama(lab.mesh, arguments).stdin(Stdio::null()).output().unwrap();
        assert!(ran.status.success(), "ollama {arguments:?}: {}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    };
    assert!(run(&["list"]).contains("smollm2:latest"));
    assert!(!run(&["run", "smollm2", "Say hello in one word."]).trim().is_empty());
    assert!(run(&["ps"]).contains("smollm2:latest"));
    assert!(run(&["show", "smollm2"]).contains("llama"));
}

const CHAT: &str = r#"{"model": "smollm2", "messages": [{"role": "user", "content": "Count to five."}],
    "options": {"num_predict": 24, "seed": 1, "temperature": 0}}"#;

fn streamed_chat(lab: &Lab) {
    // Once before, so that neither has to load the model or evaluates a colder cache than the other.
    request(lab.direct, "POST", "/api/chat", CHAT);
    let (direct_status, direct, _) = request(lab.direct, "POST", "/api/chat", CHAT);
    let (mesh_status, mesh, _) = request(lab.mesh, "POST", "/api/chat", CHAT);
    assert_eq!((direct_status, mesh_status), (200, 200));
    assert!(direct.len() > 5, "it streams: {direct:?}");
    let timeless = |pieces: Vec<String>| pieces.iter().map(|piece| timeless(piece)).collect::<Vec<_>>();
    assert_eq!(timeless(mesh), timeless(direct), "chunk by chunk");
}

fn embeddings_and_openai(lab: &Lab) {
    let chat = r#"{"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 1, "temperature": 0}"#;
    let embed = r#"{"model": "smollm2", "input": ["one", "two"]}"#;
    for (path, body) in [("/api/embed", embed), ("/v1/chat/completions", chat)] {
        request(lab.direct, "POST", path, body);
        let (direct, mesh) = (request(lab.direct, "POST", path, body), request(lab.mesh, "POST", path, body));
        assert_eq!(mesh.0, direct.0);
        assert_eq!(timeless(&mesh.2), timeless(&direct.2), "{path}");
    }
}

fn unknown_model(lab: &Lab) {
    for (path, body) in [
        ("/api/chat", r#"{"model": "nope", "messages": []}"#),
        ("/api/generate", r#"{"model": "nope"}"#),
        ("/v1/chat/completions", r#"{"model": "nope", "messages": [{"role": "user", "content": "x"}]}"#),
    ] {
        let (direct, mesh) = (request(lab.direct, "POST", path, body), request(lab.mesh, "POST", path, body));
        assert_eq!((mesh.0, mesh.2), (direct.0, direct.2), "{path}");
    }
}
