//! STUB, to be replaced by the lead: binds socket and status page over an empty mesh, so that the command line can be
//! run and tested.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{Config, Status};
use crate::control::{self, Catalog, ControlError, Handles, Info, Mesh, OllamaView, Server, StateDir, StateError};
use crate::identity::{Identity, IdentityError};
use crate::peers::PeerView;
use crate::trust::{Book, TrustError};
use crate::web::{self, WebError};

/// A node that has all it needs and does not run yet.
pub struct App {
    // Held for as long as the app lives.
    state: StateDir,
    server: Server,
    page: Option<std::net::TcpListener>,
    listener: Option<std::net::TcpListener>,
    mesh: Arc<Empty>,
    book: Book,
    config: Config,
}

struct Empty {
    info: Info,
    url: String,
    started: Instant,
}

impl Mesh for Empty {
    fn info(&self) -> Info {
        Info { uptime_s: self.started.elapsed().as_secs(), ..self.info.clone() }
    }

    fn ollama(&self) -> OllamaView {
        OllamaView { url: self.url.clone(), healthy: false, version: None, lent: false, problem: None }
    }

    fn peers(&self) -> Vec<PeerView> {
        Vec::new()
    }

    fn catalogs(&self) -> Vec<Catalog> {
        Vec::new()
    }
}

impl App {
    /// Takes the state directory and every port.
    ///
    /// # Errors
    /// If something that the node cannot do without is not to be had.
    pub async fn build(config: Config) -> Result<Self, AppError> {
        let state = StateDir::take(&config.state_dir)?;
        let server = Server::bind(&state)?;
        let identity = Identity::load_or_create(state.path())?;
        let book = Book::open(&state.trust(), config.trust.clone())?;
        let page = match config.status {
            Status::Off => None,
            Status::At { addr, explicit } => web::bind(addr, explicit)?,
        };
        let listen = std::net::TcpListener::bind(config.listen.addr);
        let listener = match listen {
            Ok(listener) => Some(listener),
            Err(source) if config.listen.explicit => {
                return Err(AppError::Listen { addr: config.listen.addr, source });
            }
            Err(_) => None,
        };
        let info = Info {
            name: config.name.clone(),
            id: identity.id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mode: config.mode.as_str().to_owned(),
            listen: listener.as_ref().and_then(|listener| listener.local_addr().ok()),
            mesh: config.mesh.addr,
            status_page: page.as_ref().and_then(|page| page.local_addr().ok()),
            state_dir: config.state_dir.clone(),
            uptime_s: 0,
        };
        let mesh = Arc::new(Empty { info, url: config.ollama.url.to_string(), started: Instant::now() });
        Ok(Self { state, server, page, listener, mesh, book, config })
    }

    /// What is worth saying once the node serves.
    pub fn ready(&self) -> Info {
        self.mesh.info()
    }

    /// Serves until `shutdown`, then drains.
    ///
    /// # Errors
    /// If something breaks that the node cannot do without.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), AppError> {
        let handles = Handles {
            mesh: self.mesh.clone(),
            book: self.book.clone(),
            policy: self.config.trust.clone(),
            stop: shutdown.clone(),
            drain: self.config.drain,
        };
        let ended = CancellationToken::new();
        let control = self.server.serve(handles, ended.clone());
        let mesh: Arc<dyn Mesh> = self.mesh.clone();
        let page = async {
            match self.page {
                Some(page) => web::serve(page, mesh, ended.clone()).await,
                None => Ok(()),
            }
        };
        let wait = async {
            shutdown.cancelled().await;
            info!("draining");
            ended.cancel();
        };
        let (control, page, ()) = tokio::join!(control, page, wait);
        drop((self.listener, self.state));
        control?;
        page?;
        Ok(())
    }
}

/// Why a node cannot start or go on.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum AppError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{0}")]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Web(#[from] WebError),
    #[error("cannot listen at {addr} for applications: {source}; choose another address with --listen")]
    Listen { addr: SocketAddr, source: std::io::Error },
}

// Kept for the lead: `control` has all the types that the socket needs.
const _: &str = control::SOCKET;
