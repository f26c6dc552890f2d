//! An endpoint whose answers the test gives by hand, at the moment it wants: every exchange comes out of [`Calls`].

use std::sync::{Arc, Mutex};

use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use ollana::internals::exchange::{
    self, Answer, Ask, Body, Endpoint, ExchangeError, Health, Load, ModelInfo, ModelLoad, Place, Report, Residence,
    Slot, Ticket, Turn,
};
use ollana::internals::id::{Id, NodeName, Scope, Use};
use tokio::sync::{mpsc, oneshot, watch};

/// A scripted endpoint.
#[derive(Debug)]
pub struct FakeEndpoint {
    id: Id,
    name: NodeName,
    local: bool,
    use_: Mutex<Use>,
    report: watch::Sender<Arc<Report>>,
    load: watch::Sender<Arc<Load>>,
    health: watch::Sender<Health>,
    calls: mpsc::UnboundedSender<Call>,
    /// Where tickets go, if a slot is not always free.
    tickets: Mutex<Option<mpsc::UnboundedSender<oneshot::Sender<Turn>>>>,
}

/// The tickets that reach an endpoint, in their order.
#[derive(Debug)]
pub struct Tickets(mpsc::UnboundedReceiver<oneshot::Sender<Turn>>);

/// The exchanges that reach an endpoint, in their order.
#[derive(Debug)]
pub struct Calls(mpsc::UnboundedReceiver<Call>);

/// One exchange, to be answered by the test.
#[derive(Debug)]
pub struct Call {
    /// What came.
    pub request: Request<Body>,
    reply: oneshot::Sender<Result<Response<Body>, ExchangeError>>,
}

// === impl FakeEndpoint ===

impl FakeEndpoint {
    /// A healthy provider with these models, used and lending (`infer`).
    pub fn new(name: &str, models: &[&str]) -> (Arc<Self>, Calls) {
        Self::build(name, name, models, false)
    }

    /// As [`new`](Self::new), with a key of its own, so that two can bear one name.
    pub fn with_key(name: &str, key: &str, models: &[&str]) -> (Arc<Self>, Calls) {
        Self::build(name, key, models, false)
    }

    /// This node's own gate.
    pub fn local(name: &str, models: &[&str]) -> (Arc<Self>, Calls) {
        Self::build(name, name, models, true)
    }

    fn build(name: &str, key: &str, models: &[&str], local: bool) -> (Arc<Self>, Calls) {
        let info = |digest: &str| ModelInfo { digest: digest.to_owned(), ..ModelInfo::default() };
        let models = models.iter().map(|model| match model.split_once('@') {
            Some((model, digest)) => (model.to_owned(), info(digest)),
            None => ((*model).to_owned(), info("d1")),
        });
        let report = Report {
            provider: true,
            scope: if local { Scope::None } else { Scope::Infer },
            models: models.collect(),
            ..Report::default()
        };
        // All of it is in memory.
        let in_memory = ModelLoad { residence: Residence::Memory, ..ModelLoad::default() };
        let models = report.models.keys().map(|name| (name.clone(), in_memory)).collect();
        let load = Load { models, ..Load::default() };
        let (calls, receiver) = mpsc::unbounded_channel();
        let endpoint = Self {
            id: Id::of_spki(key.as_bytes()),
            name: name.parse().unwrap(),
            local,
            use_: Mutex::new(Use::Yes),
            report: watch::Sender::new(Arc::new(report)),
            load: watch::Sender::new(Arc::new(load)),
            health: watch::Sender::new(Health::Healthy),
            calls,
            tickets: Mutex::default(),
        };
        (Arc::new(endpoint), Calls(receiver))
    }

    /// Changes what it reports.
    pub fn reports(&self, change: impl FnOnce(&mut Report)) {
        self.report.send_modify(|report| change(Arc::make_mut(report)));
    }

    /// So many requests run there, it says, for each of its models.
    pub fn runs(&self, requests: u32) {
        self.load.send_modify(|load| {
            let load = Arc::make_mut(load);
            load.inflight = requests;
            load.models.values_mut().for_each(|model| model.running = requests);
        });
    }

    /// None of its models is in memory any more.
    pub fn unloads(&self) {
        self.load.send_modify(|load| {
            Arc::make_mut(load).models.values_mut().for_each(|model| model.residence = Residence::Disk);
        });
    }

    /// Changes whether it can be reached.
    pub fn becomes(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// From now on the test says when it is a ticket's turn.
    pub fn queues(&self) -> Tickets {
        let (sender, tickets) = mpsc::unbounded_channel();
        *self.tickets.lock().unwrap() = Some(sender);
        Tickets(tickets)
    }

    /// A slot for a ticket.
    pub fn slot(&self) -> Turn {
        let (calls, name) = (self.calls.clone(), self.name.clone());
        Turn::Slot(Slot::new(move |request| call(&calls, name, request)))
    }

    /// Changes whether it is used.
    pub fn use_becomes(&self, use_: Use) {
        *self.use_.lock().unwrap() = use_;
    }
}

impl Endpoint for FakeEndpoint {
    fn id(&self) -> Id {
        self.id
    }

    fn label(&self) -> NodeName {
        self.name.clone()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    fn use_(&self) -> Use {
        *self.use_.lock().unwrap()
    }

    fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.subscribe()
    }

    fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.load.subscribe()
    }

    fn opened(&self) -> Option<u64> {
        None
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    fn exchange(&self, request: Request<Body>) -> Answer {
        call(&self.calls, self.name.clone(), request)
    }

    /// A slot is always free, unless the test says when.
    fn queue(&self, _: Ask) -> Ticket {
        let (turn, comes) = oneshot::channel();
        let turn = match &*self.tickets.lock().unwrap() {
            Some(tickets) => tickets.send(turn).map_err(drop),
            None => turn.send(self.slot()).map_err(drop),
        };
        turn.unwrap();
        let (name, (_, place)) = (self.name.clone(), watch::channel(Place::default()));
        Ticket { place, turn: Box::pin(async move { comes.await.map_err(|_| ExchangeError::Unreachable(name)) }) }
    }
}

fn call(calls: &mpsc::UnboundedSender<Call>, name: NodeName, request: Request<Body>) -> Answer {
    let (reply, answer) = oneshot::channel();
    let unreachable = ExchangeError::Unreachable(name);
    match calls.send(Call { request, reply }) {
        Ok(()) => Box::pin(async move { answer.await.unwrap_or(Err(unreachable)) }),
        Err(_) => Box::pin(async move { Err(unreachable) }),
    }
}

// === impl Tickets ===

impl Tickets {
    /// The next ticket, once it is placed.
    pub async fn next(&mut self) -> oneshot::Sender<Turn> {
        self.0.recv().await.expect("the endpoint is still there")
    }
}

// === impl Calls ===

impl Calls {
    /// The next exchange, once it comes.
    pub async fn next(&mut self) -> Call {
        self.0.recv().await.expect("the endpoint is still there")
    }

    /// Whether none has come.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Answers everything with this text, from a task of its own.
    pub fn always(mut self, status: StatusCode, text: &'static str) {
        tokio::spawn(async move {
            while let Some(call) = self.0.recv().await {
                call.answer(status, text);
            }
        });
    }
}

// === impl Call ===

impl Call {
    /// A whole answer.
    pub fn answer(self, status: StatusCode, text: &'static str) {
        let mut response = Response::new(exchange::full(text));
        *response.status_mut() = status;
        self.reply(Ok(response));
    }

    /// Any answer, or none.
    pub fn reply(self, answer: Result<Response<Body>, ExchangeError>) {
        let _ = self.reply.send(answer);
    }

    /// An answer whose body's frames the test sends.
    pub fn stream(self) -> mpsc::Sender<Result<http_body::Frame<bytes::Bytes>, ExchangeError>> {
        let (sender, receiver) = mpsc::channel(1);
        let body = http_body_util::StreamBody::new(futures_util::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.map(|frame| (frame, receiver))
        }));
        self.reply(Ok(Response::new(body.boxed_unsync())));
        sender
    }

    /// The request's body, read to its end.
    pub async fn body(&mut self) -> String {
        let body = std::mem::replace(self.request.body_mut(), exchange::empty());
        String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    /// Resolves once nobody waits for the answer any more.
    pub async fn cancelled(&mut self) {
        self.reply.closed().await;
    }
}
