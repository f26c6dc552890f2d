//! The plain-HTTP listener that local applications use: HTTP/1.1, and HTTP/2 with prior knowledge, on one port.
//!
//! A connection ([`connection`]) is served by hyper; what stands around it makes a node as forgiving as the server it
//! stands for ([`upload`], [`socket`], [`words`]). A request walks [`answer`]: guard (Host, Origin, CORS) → who is chosen → headers
//! that end here → what kind of request is it → the listener itself, the catalog or the balancer.

mod allow;
mod answer;
mod connection;
pub(crate) mod connections;
mod guard;
mod guests;
mod socket;
mod upload;
mod words;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use self::answer::Answerer;
use self::connection::Protocols;
use self::connections::{Admission, Connections};
use self::guard::Guard;
use self::guests::Guests;
use crate::balance::Router;
use crate::catalog::Catalog;
use crate::id::NodeName;

/// Connections served at once; more wait in the kernel's backlog. Enough for every load test a person types, and
/// a bound on memory: an idle connection costs some 20 KB.
const MAX_CONNECTIONS: usize = 4096;

/// What the listener has to know.
#[derive(Debug, Clone)]
pub struct ListenerSettings {
    /// The node's own name, for [`PEER_HEADER`](crate::exchange::PEER_HEADER) on what the listener answers by itself.
    pub name: NodeName,
    /// Origins allowed beside Ollama's own: the parts of `OLLAMA_ORIGINS`.
    pub origins: Vec<String>,
    /// Whether others than this machine may connect (`--listen-open`): then it carries no `manage`.
    pub open: bool,
    /// How long running answers may take to finish once it shuts down.
    pub drain: Duration,
}

/// The listener, before it has a socket.
#[derive(Debug)]
pub struct Listener {
    settings: ListenerSettings,
    router: Router,
    catalog: Catalog,
}

// === impl Listener ===

impl Listener {
    /// Routes requests by `router`, lists by `catalog`.
    pub fn new(settings: ListenerSettings, router: Router, catalog: Catalog) -> Self {
        Self { settings, router, catalog }
    }

    /// Serves what comes to any of `tcp` until `shutdown`; then accepts nothing more and resolves once all running answers
    /// are finished, or broken off when the time for that is over. Dropping the future ends everything at once.
    pub async fn serve(self, tcp: Vec<TcpListener>, shutdown: CancellationToken) {
        let Self { settings, router, catalog } = self;
        let beyond_loopback = |tcp: &TcpListener| tcp.local_addr().is_ok_and(|address| !address.ip().is_loopback());
        let guard = Guard::new(&settings.origins, tcp.iter().any(beyond_loopback));
        let answerer = Arc::new(Answerer::new(settings.name, settings.open, guard, router, catalog));
        let protocols = Arc::new(Protocols::new(settings.open));
        let mut connections = Connections::new(MAX_CONNECTIONS);
        let guests = settings.open.then(|| Guests::new(connections.most() / 2));
        let admit = |from: SocketAddr| match guests.as_ref().map(|guests| guests.seat(from.ip())) {
            Some(Ok(Some(seat))) => Admission::Guest(seat),
            Some(Err(crowded)) => {
                tracing::debug!(%from, "{crowded}");
                Admission::Refused
            }
            Some(Ok(None)) | None => Admission::Local,
        };
        loop {
            let (stream, from, seat) = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = connections.accept(&tcp, admit) => accepted,
            };
            prepare(&stream, from);
            let (protocols, answerer, shutdown) = (protocols.clone(), answerer.clone(), shutdown.clone());
            connections.serve(seat.is_some(), |activity| {
                connection::serve(stream, seat, activity, protocols, answerer, shutdown)
            });
        }
        drop(tcp);
        if tokio::time::timeout(settings.drain, connections.finish()).await.is_err() {
            let left = connections.shutdown().await;
            tracing::warn!(connections = left, "answers that still ran were broken off");
        }
    }
}

fn prepare(stream: &TcpStream, from: SocketAddr) {
    // A token is a small packet that must not wait for the next one.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%from, %error, "TCP_NODELAY");
    }
}
