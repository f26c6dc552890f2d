//! Nodes as people run them, in front of simulated Ollamas.

use std::net::SocketAddr;
use std::sync::OnceLock;

use tokio::runtime::Runtime;

use super::fake_ollama::{Counts, FakeOllama, Settings};
use super::processes::Node;

/// The model that every Ollama here has.
pub const MODEL: &str = "m";

/// A node without an Ollama, and two that lend one each.
pub struct Mesh {
    pub laptop: Node,
    pub gpus: [Node; 2],
    pub ollamas: [Simulated; 2],
}

/// A simulated Ollama.
pub struct Simulated(FakeOllama);

/// What the simulated Ollamas run on.
fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().unwrap())
}

pub fn url(address: SocketAddr) -> String {
    format!("http://{address}")
}

// === impl Mesh ===

impl Mesh {
    pub fn start() -> Self {
        let ollamas = [Simulated::start(), Simulated::start()];
        let gpu = |name, ollama: &Simulated| Node::start(name, Some(ollama.address()), &[]);
        let gpus = [gpu("gpu1", &ollamas[0]), gpu("gpu2", &ollamas[1])];
        let laptop = Node::start("laptop", None, &[gpus[0].mesh, gpus[1].mesh]);
        laptop.waits_for_providers(2);
        Self { laptop, gpus, ollamas }
    }

    /// The same where the laptop may change models on both.
    pub fn managed() -> Self {
        let mesh = Self::start();
        for gpu in &mesh.gpus {
            gpu.waits_for_peers(1);
            gpu.lets_manage(&mesh.laptop);
        }
        mesh
    }

    pub fn url(&self) -> String {
        url(self.laptop.listen)
    }

    pub fn set(&self, change: impl Fn(&mut Settings)) {
        self.ollamas.iter().for_each(|ollama| ollama.set(&change));
    }
}

// === impl Simulated ===

impl Simulated {
    pub fn start() -> Self {
        Self(runtime().block_on(FakeOllama::start(&[MODEL])))
    }

    pub fn address(&self) -> SocketAddr {
        self.0.addr()
    }

    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        self.0.set(change);
    }

    pub fn counts(&self) -> Counts {
        self.0.counts()
    }
}
