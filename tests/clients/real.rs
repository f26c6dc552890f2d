//! The same scripts against a real Ollama with a small real model, and through two nodes that lend it.

use std::net::SocketAddr;
use std::sync::{Mutex, OnceLock};

use super::mesh::url;
use super::processes::Node;
use super::real_ollama::{self, RealOllama};
use super::script::{ALL, Client, OLLAMAS};
use super::transcript::assert_same;
use super::{Test, each, tools};

const MODEL: &str = "smollm2";

/// Mentions tools, or the Ollama would refuse them in the model's name. One thread: several wait for each other by
/// spinning, which on a busy machine takes ten times as long.
const MODELFILE: &str = r#"PARAMETER num_thread 1
PARAMETER num_ctx 2048
TEMPLATE """{{ range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}{{ range .ToolCalls }}{{ .Function.Name }} {{ .Function.Arguments }}{{ end }}<|im_end|>
{{ end }}{{ range .Tools }}<|im_start|>system
You may call {{ .Function.Name }}.<|im_end|>
{{ end }}<|im_start|>assistant
"""
"#;

pub fn tests() -> Vec<Test> {
    let needs = real_ollama::needs();
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
    running: Mutex<Option<(RealOllama, Vec<Node>)>>,
    direct: SocketAddr,
    mesh: SocketAddr,
}

static LAB: OnceLock<Lab> = OnceLock::new();
/// One script at a time: another would change what is loaded and what the model has in its cache.
static ALONE: Mutex<()> = Mutex::new(());

fn asks(client: Client) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = LAB.get_or_init(Lab::start);
    let asked = |address| client.run("transcript", &url(address), MODEL, &[]);
    // Once before, so that both find the model loaded and its cache as warm.
    client.run("transcript-sync", &url(lab.direct), MODEL, &[]);
    assert_same(client, asked(lab.direct), asked(lab.mesh));
}

fn manages(client: Client) {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let lab = LAB.get_or_init(Lab::start);
    let model = tools::model().unwrap();
    let environment = [("PEER", "gpu1"), ("GGUF", model.to_str().unwrap())];
    let changed = |address| client.run("manage", &url(address), MODEL, &environment);
    assert_same(client, changed(lab.direct), changed(lab.mesh));
}

/// Ends what was started. The harness leaves by `exit`, which drops nothing.
pub fn stop() {
    if let Some(lab) = LAB.get() {
        lab.running.lock().unwrap().take();
    }
}

// === impl Lab ===

impl Lab {
    fn start() -> Self {
        let ollama = RealOllama::start(MODELFILE);
        let direct = ollama.addr();
        let gpus = ["gpu1", "gpu2"].map(|name| Node::start(name, Some(direct), &[]));
        let laptop = Node::start("laptop", None, &[gpus[0].mesh, gpus[1].mesh]);
        laptop.waits_for_providers(2);
        for gpu in &gpus {
            gpu.waits_for_peers(1);
            gpu.lets_manage(&laptop);
        }
        let mesh = laptop.listen;
        let nodes = gpus.into_iter().chain([laptop]).collect();
        Self { running: Mutex::new(Some((ollama, nodes))), direct, mesh }
    }
}
