//! The same scripts against a real Ollama with a small real model, and through two nodes that lend it.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::mesh::url;
use super::processes::Node;
use super::script::{ALL, Client, OLLAMAS};
use super::transcript::assert_same;
use super::{Test, each, tools};

const MODEL: &str = "smollm2";

pub fn tests() -> Vec<Test> {
    let needs = tools::ollama().and(tools::model()).map(drop);
    [
        each(ALL, "what_it_asks_of_the_mesh_is_answered_as_the_real_ollama_answers_it", asks),
        each(OLLAMAS, "it_changes_the_models_of_a_real_ollama_as_if_it_asked_it", manages),
    ]
    .into_iter()
    .flatten()
    .map(|test| Test { needs: test.needs.and(needs.clone()), ..test })
    .collect()
}

/// One Ollama, lent by two nodes, and a node that uses them.
struct Lab {
    ollama: Mutex<Child>,
    direct: SocketAddr,
    nodes: Mutex<Vec<Node>>,
    mesh: SocketAddr,
    _home: TempDir,
}

static LAB: OnceLock<Lab> = OnceLock::new();
/// One script at a time: another would change what is loaded and what the model has in its cache.
static ALONE: Mutex<()> = Mutex::new(());

fn asks(client: Client) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = LAB.get_or_init(Lab::start);
    let asked = |address| client.run("transcript", &url(address), MODEL, &[]);
    // Once before, so that both find the model loaded and its cache as warm.
    asked(lab.direct);
    assert_same(client, asked(lab.direct), asked(lab.mesh));
}

fn manages(client: Client) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = LAB.get_or_init(Lab::start);
    let model = tools::model().unwrap();
    let environment = [("PEER", "gpu1"), ("GGUF", model.to_str().unwrap())];
    let changed = |address| client.run("manage", &url(address), MODEL, &environment);
    changed(lab.direct);
    assert_same(client, changed(lab.direct), changed(lab.mesh));
}

/// Ends what was started. The harness leaves by `exit`, which drops nothing.
pub fn stop() {
    if let Some(lab) = LAB.get() {
        lab.nodes.lock().unwrap().clear();
        let mut ollama = lab.ollama.lock().unwrap();
        // With the runners that it started.
        if let Some(group) = rustix::process::Pid::from_raw(ollama.id().cast_signed()) {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = ollama.wait();
    }
}

// === impl Lab ===

impl Lab {
    fn start() -> Self {
        let home = TempDir::new().unwrap();
        let direct = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let ollama = || {
            let mut command = Command::new(tools::ollama().unwrap());
            command.env("OLLAMA_HOST", direct.to_string()).env("HOME", home.path());
            command.env("OLLAMA_MODELS", home.path().join("models")).stdin(Stdio::null());
            command
        };
        let mut serve = ollama();
        let serve = serve.arg("serve").process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let begun = Instant::now();
        while TcpStream::connect(direct).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the Ollama does not answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        let modelfile = home.path().join("Modelfile");
        std::fs::write(&modelfile, format!("FROM {}\n", tools::model().unwrap().display())).unwrap();
        let created = ollama().args(["create", MODEL, "-f"]).arg(modelfile).output().unwrap();
        assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stderr));

        let gpus = ["gpu1", "gpu2"].map(|name| Node::start(name, Some(direct), &[]));
        let laptop = Node::start("laptop", None, &[gpus[0].mesh, gpus[1].mesh]);
        laptop.waits_for_providers(2);
        for gpu in &gpus {
            gpu.waits_for_peers(1);
            gpu.lets_manage(&laptop);
        }
        let mesh = laptop.listen;
        let nodes = Mutex::new(gpus.into_iter().chain([laptop]).collect());
        Self { ollama: Mutex::new(serve), direct, nodes, mesh, _home: home }
    }
}
