//! Someone with a key of their own and no manners.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use ollana::internals::exchange::{Body, Endpoint as _, ExchangeError, ModelInfo, Place, Report, Slot, Ticket, Turn};
use ollana::internals::id::{Id, Instance, NodeName, Scope, Use};
use ollana::internals::identity::Identity;
use ollana::internals::transport::connection::Control;
use ollana::internals::transport::incoming::Opening;
use ollana::internals::transport::remote::Face;
use ollana::internals::transport::{self, Connection, Remote, Transport};
use ollana::internals::wire::control::{Hello, Message};
use tokio::sync::{oneshot, watch};
use tokio_util::task::AbortOnDropHandle;

use super::fake_ollama::Model;

pub struct Stranger {
    pub transport: Transport,
    pub address: SocketAddr,
    pub id: Id,
    pub name: NodeName,
}

/// A connection on which both have said hello.
pub struct Met {
    pub connection: Connection,
    pub control: Control,
}

impl Stranger {
    pub fn new(name: &str) -> Self {
        Self::with(name, &Identity::ephemeral().unwrap())
    }

    pub fn with(name: &str, identity: &Identity) -> Self {
        let socket = transport::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let transport = Transport::new(identity, socket).unwrap();
        let address = transport.local_addr().unwrap();
        Self { transport, address, id: identity.id(), name: NodeName::lossy(name) }
    }

    pub fn hello(&self) -> Hello {
        Hello::of(self.name.clone(), Instance::random())
    }

    /// Dials a node and says hello as it should.
    pub async fn dial(&self, node: SocketAddr) -> Met {
        let connection = self.transport.dial(node).await.unwrap();
        let mut control = connection.open_control().await.unwrap();
        control.send(&Message::Hello(self.hello())).await.unwrap();
        match control.receive().await.unwrap() {
            Message::Hello(_) => Met { connection, control },
            other => panic!("{other:?}"),
        }
    }

    /// Takes the next connection.
    pub async fn accept(&self) -> Connection {
        loop {
            if let Ok(connection) = self.transport.accept().await.unwrap().shake_hands().await {
                return connection;
            }
        }
    }

    /// Takes the next connection and says hello as it should.
    pub async fn accept_politely(&self) -> Met {
        let connection = self.accept().await;
        let mut control = connection.accept_control().await.unwrap();
        assert!(matches!(control.receive().await.unwrap(), Message::Hello(_)));
        control.send(&Message::Hello(self.hello())).await.unwrap();
        connection.admit(true);
        Met { connection, control }
    }
}

/// A request that a stranger has, and answers or not.
pub struct Taken {
    pub _request: Request<Body>,
    pub answer: oneshot::Sender<Response<Body>>,
    /// Over with the answer, or once nobody waits for it; whether it got across.
    pub over: AbortOnDropHandle<bool>,
}

impl Met {
    /// The next request. Whoever asks for a slot first has one at once, as at a gate where nobody waits.
    pub async fn take(&self, stranger: &Stranger) -> Taken {
        let incoming = self.connection.accept_exchange().await.unwrap();
        let (answer, answered) = oneshot::channel();
        let answering = async { Ok(answered.await.unwrap_or_else(|_| panic!("it answers nothing"))) };
        let name = stranger.name.clone();
        match incoming.open(&name).await.unwrap() {
            Opening::Request(request, responder) => {
                let over = AbortOnDropHandle::new(tokio::spawn(async { responder.answer(answering).await.is_ok() }));
                Taken { _request: request, answer, over }
            }
            Opening::Ticket(_, waiting) => {
                let (asks, asked) = oneshot::channel();
                let slot = Slot::new(move |request| {
                    let _ = asks.send(request);
                    Box::pin(answering)
                });
                let turn = Box::pin(std::future::ready(Ok(Turn::Slot(slot))));
                let ticket = Ticket { place: watch::channel(Place::default()).1, turn };
                let over = tokio::spawn(async move { waiting.queue(ticket, &name).await.is_ok() });
                Taken { _request: asked.await.unwrap(), answer, over: AbortOnDropHandle::new(over) }
            }
        }
    }

    /// The next report.
    pub async fn report(&mut self) -> Report {
        loop {
            match self.control.receive().await.unwrap() {
                Message::Report(report) => return report,
                Message::Load(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// One exchange as the node's peer.
    pub async fn exchange(&self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let face = watch::channel(Face { label: NodeName::lossy("node"), use_: Use::Yes, trusted: false }).1;
        let remote = Remote::new(
            self.connection.clone(),
            face,
            watch::channel(Arc::default()).1,
            watch::channel(Arc::default()).1,
            Arc::default(),
        );
        remote.exchange(request).await
    }
}

/// What a provider with this one model says of itself.
pub fn lends(model: &str) -> Message {
    // The digest that a simulated Ollama gives it: else it would not be the same model.
    let model = Model::new(model);
    let models = [(model.name, ModelInfo { digest: model.digest, ..ModelInfo::default() })].into();
    Message::Report(Report { provider: true, scope: Scope::Infer, models, ..Report::default() })
}
