//! An Ollama, and a mesh of two nodes in front of the same Ollama: one lends it, the other has none and is what the
//! application asks.

use std::net::SocketAddr;

use http::Uri;
use ollana::internals::id::Scope;
use tokio::runtime::Runtime;

use super::fake_ollama::{FakeOllama, Settings};
use super::node::{self, Node, within};
use super::real_ollama::RealOllama;
use super::wire::Script;

/// Runs until it is dropped.
pub struct Lab {
    /// The Ollama itself.
    pub direct: SocketAddr,
    /// The mesh in front of it.
    pub mesh: SocketAddr,
    /// The simulated one, if it is one.
    pub fake: Option<FakeOllama>,
    _real: Option<RealOllama>,
    _nodes: [Node; 2],
    _runtime: Runtime,
}

// === impl Lab ===

impl Lab {
    /// A simulated Ollama with the model `smollm2`; its user may do there what `scope` says.
    pub fn simulated(scope: Scope, settings: Settings) -> Self {
        let runtime = Runtime::new().unwrap();
        let fake = runtime.block_on(FakeOllama::start_with(&["smollm2"], settings));
        Self::over(runtime, fake.addr(), scope, Some(fake), None)
    }

    pub fn real(scope: Scope) -> Self {
        let real = RealOllama::start("");
        Self::over(Runtime::new().unwrap(), real.addr(), scope, None, Some(real))
    }

    fn over(
        runtime: Runtime,
        direct: SocketAddr,
        scope: Scope,
        fake: Option<FakeOllama>,
        real: Option<RealOllama>,
    ) -> Self {
        let nodes = runtime.block_on(within(async {
            let url: Uri = format!("http://{direct}").parse().unwrap();
            let gpu1 = node::node("gpu1").lends_at(url).start().await;
            let laptop = node::node("laptop").dials(gpu1.mesh).start().await;
            laptop.until_lent(gpu1.id(), "smollm2").await;
            if scope > Scope::Infer {
                gpu1.trust(laptop.id(), scope).await;
            }
            [gpu1, laptop]
        }));
        let mesh = nodes[1].listen;
        if scope > Scope::Infer {
            // The other node's word comes with its next report.
            let probe = Script::one("HEAD /api/blobs/sha256:0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n");
            let may = || (!probe.play(mesh).answers[0].status.contains(" 403 ")).then_some(());
            runtime.block_on(node::until("the scope to be known", may));
        }
        // In memory from here on: what lists that shall not depend on who was asked first.
        let load = r#"{"model":"smollm2"}"#;
        let load =
            format!("POST /api/generate HTTP/1.1\r\nHost: x.local\r\nContent-Length: {}\r\n\r\n{load}", load.len());
        assert!(Script::one(load).play(direct).answers[0].status.contains(" 200 "));
        Self { direct, mesh, fake, _real: real, _nodes: nodes, _runtime: runtime }
    }
}
