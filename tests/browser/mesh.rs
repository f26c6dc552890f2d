//! A node that lends a simulated Ollama, and one that uses it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ollana::Config;
use ollana::NodeName;
use ollana::internals::control::Mesh as View;
use ollana::{App, AppError};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::fake_ollama::FakeOllama;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct Mesh {
    pub ollama: FakeOllama,
    /// Where applications find the node that uses it.
    pub listen: SocketAddr,
    /// Its status page.
    pub status: SocketAddr,
    _nodes: [Node; 2],
    _runtime: Runtime,
}

struct Node {
    view: Arc<dyn View>,
    _running: AbortOnDropHandle<Result<(), AppError>>,
    _dir: TempDir,
}

// === impl Mesh ===

impl Mesh {
    /// One whose listener allows these origins beside Ollama's own.
    pub fn start(origins: &[String]) -> Self {
        let runtime = Runtime::new().unwrap();
        let (ollama, gpu, laptop) = runtime.block_on(async {
            let ollama = FakeOllama::start(&["m"]).await;
            let url = ollama.url();
            let gpu = Node::start("gpu1", |config| config.ollama.url = url).await;
            let dialled = gpu.view.info().mesh.to_string().parse().unwrap();
            let laptop = Node::start("laptop", |config| {
                config.peers.push(dialled);
                config.origins = origins.to_vec();
            })
            .await;
            (ollama, gpu, laptop)
        });
        let lent = || laptop.view.peers().iter().any(|peer| !peer.models.is_empty());
        until("the model is lent", lent);
        let info = laptop.view.info();
        let (listen, status) = (info.listen.unwrap(), info.status_page.unwrap());
        Self { ollama, listen, status, _nodes: [gpu, laptop], _runtime: runtime }
    }

    /// What has reached the Ollama of a browser's.
    pub fn reached(&self) -> Vec<String> {
        let of_a_browser = |agent: &http::HeaderValue| agent.to_str().is_ok_and(|agent| agent.contains("Mozilla"));
        let counts = self.ollama.counts();
        let seen = counts.seen.iter().filter(|seen| seen.headers.get("user-agent").is_some_and(of_a_browser));
        seen.map(|seen| format!("{} {}", seen.method, seen.target)).collect()
    }
}

/// Looks until it is so.
pub fn until(what: &str, there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

// === impl Node ===

impl Node {
    async fn start(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let dir = TempDir::new().unwrap();
        let mut config = Config::for_test(dir.path().join("state"));
        config.name = NodeName::lossy(name);
        change(&mut config);
        let app = App::build(config).await.unwrap();
        let view = app.mesh();
        let running = AbortOnDropHandle::new(tokio::spawn(app.run(CancellationToken::new())));
        Self { view, _running: running, _dir: dir }
    }
}
