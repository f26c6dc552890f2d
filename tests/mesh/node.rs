//! A node as `ollana serve` runs it, and an application that asks it.
#![allow(dead_code)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use ollana::Policy;
use ollana::internals::control::{Changed, Client, ClientError, KeepRequest, Keeping, Mesh, PeerRequest, TrustRequest};
use ollana::internals::id::{Id, NodeName, Scope};
use ollana::internals::peers::{PeerState, PeerView};
use ollana::{App, AppError};
use ollana::{Config, MeshAddr};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::fake_ollama::FakeOllama;

/// Bounds every wait for an event, so that a test that fails does not hang.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How a node is set up.
pub struct Setup {
    config: Config,
    dir: Option<TempDir>,
}

/// A node that runs. Dropping it ends it without a goodbye.
pub struct Node {
    pub listen: SocketAddr,
    pub mesh: SocketAddr,
    pub shutdown: CancellationToken,
    pub running: AbortOnDropHandle<Result<(), AppError>>,
    view: Arc<dyn Mesh>,
    dir: Option<TempDir>,
    config: Config,
}

/// A node of this name with a state directory of its own.
pub fn node(name: &str) -> Setup {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let mut config = Config::for_test(state_dir);
    config.name = NodeName::lossy(name);
    Setup { config, dir: Some(dir) }
}

// === impl Setup ===

impl Setup {
    pub fn lends(self, ollama: &FakeOllama) -> Self {
        self.lends_at(ollama.url())
    }

    /// Lends whatever is there.
    pub fn lends_at(mut self, url: Uri) -> Self {
        self.config.ollama.url = url;
        self
    }

    pub fn dials(mut self, address: SocketAddr) -> Self {
        self.config.peers.push(address.to_string().parse().unwrap());
        self
    }

    /// Started with this invitation.
    pub fn invited(mut self, invitation: &str) -> Self {
        let file = self.config.state_dir.with_file_name("invitation");
        std::fs::write(&file, invitation).unwrap();
        set_mode(&file, 0o600);
        self.config.invitation_file = Some(file);
        self
    }

    /// Its Ollama runs so many requests of a model at a time.
    pub fn runs(mut self, slots: u32) -> Self {
        self.config.lend.parallel = Some(slots);
        self
    }

    /// What it does every so often, it does so many times as often.
    pub fn at_tempo(mut self, tempo: f64) -> Self {
        self.config.tempo = tempo;
        self
    }

    /// At any port, also when it is started again.
    pub fn anywhere(mut self) -> Self {
        self.config.mesh.addr.set_port(0);
        self
    }

    /// Lends only then.
    pub fn lends_at_hours(mut self, hours: &str) -> Self {
        self.config.lend.hours = Some(hours.parse().unwrap());
        self
    }

    /// Lets in and uses nobody whom no person trusts.
    pub fn paired(mut self) -> Self {
        (self.config.trust.inbound, self.config.trust.outbound) = (Policy::Paired, Policy::Paired);
        self
    }

    /// The state directory of another node: the key of another node.
    pub fn with_key_of(self, other: &Path) -> Self {
        let dir = &self.config.state_dir;
        std::fs::create_dir_all(dir).unwrap();
        set_mode(dir, 0o700);
        std::fs::copy(other.join("identity.key"), dir.join("identity.key")).unwrap();
        set_mode(&dir.join("identity.key"), 0o600);
        self
    }

    pub async fn start(self) -> Node {
        let Self { mut config, dir } = self;
        let app = App::build(config.clone()).await.unwrap();
        let (info, view) = (app.ready(), app.mesh());
        let shutdown = CancellationToken::new();
        let running = AbortOnDropHandle::new(tokio::spawn(app.run(shutdown.clone())));
        let listen = info.listen.expect("a listener");
        config.mesh = MeshAddr { addr: info.mesh, explicit: true };
        Node { listen, mesh: info.mesh, shutdown, running, view, dir, config }
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

// === impl Node ===

impl Node {
    pub fn id(&self) -> Id {
        self.view.info().id
    }

    pub fn state_dir(&self) -> &Path {
        &self.config.state_dir
    }

    pub fn view(&self) -> &dyn Mesh {
        &*self.view
    }

    pub fn peer(&self, id: Id) -> Option<PeerView> {
        self.view.peers().into_iter().find(|peer| peer.id == id)
    }

    /// Waits until this is true of the peer with this key.
    pub async fn until_peer(&self, id: Id, wanted: impl Fn(&PeerView) -> bool) -> PeerView {
        until("a peer", || self.peer(id).filter(|peer| wanted(peer))).await
    }

    /// Waits until the peer is connected and lends this model.
    pub async fn until_lent(&self, id: Id, model: &str) -> PeerView {
        let has = |peer: &PeerView| peer.models.iter().any(|name| name.starts_with(model));
        self.until_peer(id, |peer| peer.state == PeerState::Connected && has(peer)).await
    }

    /// Ends it and waits; it can be started again at the same address.
    pub async fn stop(self) -> Setup {
        self.shutdown.cancel();
        within(self.running).await.unwrap().unwrap();
        // Tasks that were told to end may hold its socket for a moment more.
        until("its port to be free", || std::net::UdpSocket::bind(self.mesh).ok()).await;
        Setup { config: self.config, dir: self.dir }
    }

    pub async fn get(&self, path: &str) -> Response<Incoming> {
        self.ask(Request::get(self.at(path)).body(Full::default()).unwrap()).await
    }

    pub async fn post(&self, path: &str, json: &serde_json::Value) -> Response<Incoming> {
        self.ask(Request::post(self.at(path)).body(Full::from(json.to_string())).unwrap()).await
    }

    /// Sends any bytes by any method.
    pub async fn send(&self, method: Method, path: &str, body: impl Into<Bytes>) -> Response<Incoming> {
        self.ask(Request::builder().method(method).uri(self.at(path)).body(Full::from(body.into())).unwrap()).await
    }

    /// The same where the answer may break off before its head.
    pub async fn try_post(&self, path: &str, json: &serde_json::Value) -> Result<Response<Incoming>, legacy::Error> {
        self.try_ask(Request::post(self.at(path)).body(Full::from(json.to_string())).unwrap()).await
    }

    /// Asks as an application does; without a limit of time.
    pub async fn ask(&self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.try_ask(request).await.unwrap()
    }

    async fn try_ask(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, legacy::Error> {
        let client: legacy::Client<HttpConnector, Full<Bytes>> =
            legacy::Client::builder(TokioExecutor::new()).build_http();
        client.request(request).await
    }

    fn at(&self, path: &str) -> String {
        format!("http://{}{path}", self.listen)
    }

    pub async fn trust(&self, id: Id, scope: Scope) -> Changed {
        self.control()
            .await
            .post("/trust", &TrustRequest { peer: id.to_string(), scope, use_: true, voucher: None })
            .await
            .unwrap()
    }

    /// `ollana models --keep MODEL@PEER`
    pub async fn keep(&self, model: &str, peer: &str) -> Result<Keeping, ClientError> {
        let wanted = KeepRequest { model: model.to_owned(), peer: peer.to_owned() };
        self.control().await.post("/keep", &wanted).await
    }

    pub async fn revoke(&self, id: Id) -> Changed {
        self.control().await.post("/revoke", &PeerRequest { peer: id.to_string() }).await.unwrap()
    }

    /// What `ollana` uses against this node.
    pub async fn control(&self) -> Client {
        Client::find(std::slice::from_ref(&self.config.state_dir)).await.unwrap()
    }
}

/// Looks again and again until there is something; what is looked at are snapshots that have no event.
pub async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            match look() {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    // Boxed: a test's future is as large as all that it waits for.
    tokio::time::timeout(PATIENCE, Box::pin(future)).await.expect("it takes too long")
}

/// Status and whole body.
pub async fn read(response: Response<Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = within(response.into_body().collect()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}

pub fn prompt(model: &str, words: usize) -> serde_json::Value {
    serde_json::json!({"model": model, "prompt": "why", "options": {"num_predict": words}})
}
