//! The user's side of exchanges: a connected peer as an [`Endpoint`].

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::stream::{PumpError, Reader, RecvBody, StreamError, Writer, has_body};
use super::{Closed, Connection, Pulse};
use crate::exchange::{
    Answer, Ask, Body, Endpoint, ExchangeError, Health, Load, Place, Progress, Report, Slot, Ticket, Turn,
};
use crate::id::{Id, NodeName, Use};
use crate::wire::frame::{self, Event, FrameError, Kind};
use crate::wire::head;

/// What others decided about a peer: the name to show for it, and whether it gets prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Face {
    /// The name to show, made unique.
    pub label: NodeName,
    /// Whether it gets prompts.
    pub use_: Use,
    /// Whether a person trusts it.
    pub trusted: bool,
}

/// The task that sends what is left of a request's body.
type Upload = Option<AbortOnDropHandle<()>>;

/// A connected peer.
pub struct Remote {
    connection: Connection,
    face: watch::Receiver<Face>,
    report: watch::Receiver<Arc<Report>>,
    load: watch::Receiver<Arc<Load>>,
    pulse: Arc<Pulse>,
    opened: Arc<AtomicU64>,
}

impl Remote {
    /// The peer at the other end of `connection`. Whoever reads the control stream feeds the channels and the pulse.
    pub fn new(
        connection: Connection,
        face: watch::Receiver<Face>,
        report: watch::Receiver<Arc<Report>>,
        load: watch::Receiver<Arc<Load>>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self { connection, face, report, load, pulse, opened: Arc::default() }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.label(), self.id())
    }
}

impl Endpoint for Remote {
    fn id(&self) -> Id {
        self.connection.id()
    }

    fn label(&self) -> NodeName {
        self.face.borrow().label.clone()
    }

    fn use_(&self) -> Use {
        self.face.borrow().use_
    }

    fn is_trusted(&self) -> bool {
        self.face.borrow().trusted
    }

    fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    fn load(&self) -> watch::Receiver<Arc<Load>> {
        self.load.clone()
    }

    fn opened(&self) -> Option<u64> {
        Some(self.opened.load(Ordering::Relaxed))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.pulse.watch()
    }

    fn exchange(&self, request: Request<Body>) -> Answer {
        let opening = self.open();
        Box::pin(async move { opening.await?.exchange(request).await })
    }

    fn queue(&self, ask: Ask) -> Ticket {
        let opening = self.open();
        let (places, place) = watch::channel(Place::default());
        Ticket { place, turn: Box::pin(async move { opening.await?.queue(&ask, places).await }) }
    }
}

impl Remote {
    /// A stream for one exchange.
    fn open(&self) -> impl Future<Output = Result<Opened, ExchangeError>> + Send + use<> {
        let (connection, peer, pulse) = (self.connection.clone(), self.label(), Arc::clone(&self.pulse));
        let numbered = Numbered::new(&self.opened);
        async move {
            let counted = connection.exchange();
            let opening = async { connection.quic.open_bi().await.map_err(|error| StreamError::Lost(error.into())) };
            match unless_gone(&pulse, opening).await {
                Ok((send, recv)) => {
                    numbered.keep();
                    Ok(Opened { writer: Writer::new(send), reader: Reader::new(recv), counted, peer, pulse })
                }
                Err(error) => Err(not_sent(error, &peer)),
            }
        }
    }
}

/// A stream that is counted before it is there: at once, since whoever asked for it looks at the number. One that nobody
/// waits for any more before it was opened counts no longer, or the other side would be one behind for good.
struct Numbered(Option<Arc<AtomicU64>>);

impl Numbered {
    fn new(opened: &Arc<AtomicU64>) -> Self {
        opened.fetch_add(1, Ordering::Relaxed);
        Self(Some(opened.clone()))
    }

    /// The other side will hear of it, whatever becomes of it.
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        if let Some(opened) = &self.0 {
            opened.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A stream on which nothing was said yet, or that has a slot at the other end.
struct Opened {
    writer: Writer,
    reader: Reader,
    /// Counts as an exchange of the connection's.
    counted: TaskTrackerToken,
    peer: NodeName,
    pulse: Arc<Pulse>,
}

// === impl Opened ===

impl Opened {
    async fn exchange(self, request: Request<Body>) -> Result<Response<Body>, ExchangeError> {
        let Self { writer, mut reader, counted, peer, pulse } = self;
        let progress = request.extensions().get::<Progress>().cloned().unwrap_or_default();
        let sending = pulse.acknowledges(send_acknowledged(writer, &mut reader, request));
        let upload = unless_gone(&pulse, sending).await.map_err(|error| error.into_exchange(&peer))?;
        let head = unless_gone(&pulse, read_head(&mut reader, &progress)).await;
        let (head, has_body) = head.map_err(|error| error.into_exchange(&peer))?;
        Ok(answer(head, has_body, reader, peer, (upload, counted)))
    }

    /// Waits for a slot. All that may fail here leaves nothing done at the other side.
    async fn queue(mut self, ask: &Ask, places: watch::Sender<Place>) -> Result<Turn, ExchangeError> {
        let pulse = Arc::clone(&self.pulse);
        let turn = async {
            pulse.acknowledges(self.send_ticket(ask)).await?;
            loop {
                match self.reader.next().await? {
                    Some(Event::Frame(Kind::Place, payload)) => {
                        let place: Place =
                            serde_json::from_slice(&payload).map_err(|_| StreamError::Unexpected(Kind::Place))?;
                        places.send_replace(place);
                    }
                    Some(Event::Frame(Kind::Turn, _)) => return Ok(None),
                    Some(Event::Frame(Kind::Response, payload)) => return Ok(Some(head::decode_response(payload)?)),
                    Some(Event::Frame(Kind::Broken, payload)) => return Err(StreamError::broken(&payload)),
                    other => return Err(unexpected(other)),
                }
            }
        };
        match unless_gone(&pulse, turn).await {
            Ok(None) => Ok(Turn::Slot(Slot::new(move |request| Box::pin(self.exchange(request))))),
            Ok(Some((head, has_body))) => {
                Ok(Turn::Refused(answer(head, has_body, self.reader, self.peer, (None, self.counted))))
            }
            Err(error) => Err(not_sent(error, &self.peer)),
        }
    }

    async fn send_ticket(&mut self, ask: &Ask) -> Result<(), StreamError> {
        let json = serde_json::to_vec(ask).map_err(|_| StreamError::Unexpected(Kind::Ticket))?;
        self.writer.frame(frame::encode(Kind::Ticket, &json)?).await?;
        match self.reader.next().await? {
            Some(Event::Frame(Kind::Ack, _)) => Ok(()),
            other => Err(unexpected(other)),
        }
    }
}

/// What the error of a request is of which nothing was sent.
fn not_sent(error: StreamError, peer: &NodeName) -> ExchangeError {
    match error {
        StreamError::Lost(_) => ExchangeError::Unreachable(peer.clone()),
        other => other.into_exchange(peer),
    }
}

/// The answer behind its head, with what has to last as long as its body.
fn answer(
    head: Response<()>,
    has_body: bool,
    reader: Reader,
    peer: NodeName,
    kept: (Upload, TaskTrackerToken),
) -> Response<Body> {
    let body = if has_body {
        RecvBody::new(reader, peer, head.headers()).keeping(kept).boxed_unsync()
    } else {
        // Nothing more comes. What is still being sent, nobody waits for.
        crate::exchange::empty()
    };
    head.map(|()| body)
}

/// Runs `future` unless the peer counts as gone first: the QUIC connection itself is given up much later, for the sake
/// of answers that run, but what has no byte yet can go elsewhere.
async fn unless_gone<T>(pulse: &Pulse, future: impl Future<Output = Result<T, StreamError>>) -> Result<T, StreamError> {
    tokio::select! {
        biased;
        done = future => done,
        () = pulse.until_gone() => Err(StreamError::Lost(Closed::Silent)),
    }
}

/// Sends the request until the gate acknowledges its head; what is still to be sent then goes on in the task.
async fn send_acknowledged(writer: Writer, reader: &mut Reader, request: Request<Body>) -> Result<Upload, StreamError> {
    let upload = send_request(writer, request).await?;
    match reader.next().await? {
        Some(Event::Frame(Kind::Ack, _)) => Ok(upload),
        other => Err(unexpected(other)),
    }
}

/// Sends the head, and as much of the body as is there already. What is not goes on in a task, since the answer may come
/// first: from an Ollama that has read enough, or from a service that speaks in both directions at once.
async fn send_request(mut writer: Writer, request: Request<Body>) -> Result<Upload, StreamError> {
    let (head, body) = request.into_parts();
    if !has_body(&body) {
        writer.frame(head::encode_request(&head, false)?).await?;
        writer.finish();
        return Ok(None);
    }
    writer.hold(&head::encode_request(&head, true)?);
    let mut upload: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(async move {
        match writer.pump(body).await {
            // Stopped: the answer came without the rest.
            Ok(()) | Err(PumpError::Stream(StreamError::Stopped(_))) => {}
            // The writer is dropped with this task, which resets the stream.
            Err(error) => tracing::debug!(%error, "a request's body did not get across"),
        }
    });
    match poll_fn(|cx| Poll::Ready(upload.as_mut().poll(cx))).await {
        Poll::Ready(()) => Ok(None),
        Poll::Pending => Ok(Some(AbortOnDropHandle::new(tokio::spawn(upload)))),
    }
}

/// Waits for the response's head, as long as it takes.
async fn read_head(reader: &mut Reader, progress: &Progress) -> Result<(Response<()>, bool), StreamError> {
    loop {
        match reader.next().await? {
            Some(Event::Frame(Kind::Started, _)) if !progress.has_started() => progress.start(),
            Some(Event::Frame(Kind::Response, payload)) => return Ok(head::decode_response(payload)?),
            Some(Event::Frame(Kind::Broken, payload)) => return Err(StreamError::broken(&payload)),
            other => return Err(unexpected(other)),
        }
    }
}

fn unexpected(event: Option<Event>) -> StreamError {
    match event {
        Some(Event::Frame(kind, _)) => StreamError::Unexpected(kind),
        Some(Event::Data(_)) => StreamError::Unexpected(Kind::Data),
        None => FrameError::Truncated.into(),
    }
}
