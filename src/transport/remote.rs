//! The user's side of exchanges: a connected peer as an [`Endpoint`].

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::stream::{PumpError, Reader, RecvBody, StreamError, Writer, has_body};
use super::{Closed, Connection, Pulse};
use crate::exchange::{Answer, Body, Endpoint, ExchangeError, Health, Report};
use crate::id::{Id, NodeName, Use};
use crate::wire::frame::{Event, FrameError, Kind};
use crate::wire::head;

/// What others decided about a peer: the name to show for it, and whether it gets prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Face {
    /// The name to show, made unique.
    pub label: NodeName,
    /// Whether it gets prompts.
    pub use_: Use,
}

/// The task that sends what is left of a request's body.
type Upload = Option<AbortOnDropHandle<()>>;

/// A connected peer.
pub struct Remote {
    connection: Connection,
    face: watch::Receiver<Face>,
    report: watch::Receiver<Arc<Report>>,
    pulse: Arc<Pulse>,
}

impl Remote {
    /// The peer at the other end of `connection`. Whoever reads the control stream feeds the channels and the pulse.
    pub fn new(
        connection: Connection,
        face: watch::Receiver<Face>,
        report: watch::Receiver<Arc<Report>>,
        pulse: Arc<Pulse>,
    ) -> Self {
        Self { connection, face, report, pulse }
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

    fn report(&self) -> watch::Receiver<Arc<Report>> {
        self.report.clone()
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.pulse.watch()
    }

    fn exchange(&self, request: Request<Body>) -> Answer {
        Box::pin(exchange(self.connection.clone(), self.label(), Arc::clone(&self.pulse), request))
    }
}

async fn exchange(
    connection: Connection,
    peer: NodeName,
    pulse: Arc<Pulse>,
    request: Request<Body>,
) -> Result<Response<Body>, ExchangeError> {
    let counted = connection.exchange();
    let taken = unless_gone(&pulse, async {
        let (send, recv) = connection.quic.open_bi().await.map_err(|error| StreamError::Lost(error.into()))?;
        let mut reader = Reader::new(recv);
        let upload = pulse.acknowledges(send_acknowledged(Writer::new(send), &mut reader, request)).await?;
        Ok((reader, upload))
    });
    let (mut reader, upload) = taken.await.map_err(|error| match error {
        StreamError::Lost(_) => ExchangeError::Unreachable(peer.clone()),
        other => other.into_exchange(&peer),
    })?;
    let head = unless_gone(&pulse, read_head(&mut reader)).await;
    let (head, has_body) = head.map_err(|error| error.into_exchange(&peer))?;
    let body = if has_body {
        RecvBody::new(reader, peer, head.headers()).keeping((upload, counted)).boxed_unsync()
    } else {
        // Nothing more comes. What is still being sent, nobody waits for.
        crate::exchange::empty()
    };
    Ok(head.map(|()| body))
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
async fn read_head(reader: &mut Reader) -> Result<(Response<()>, bool), StreamError> {
    match reader.next().await? {
        Some(Event::Frame(Kind::Response, payload)) => Ok(head::decode_response(payload)?),
        Some(Event::Frame(Kind::Broken, payload)) => Err(StreamError::broken(&payload)),
        other => Err(unexpected(other)),
    }
}

fn unexpected(event: Option<Event>) -> StreamError {
    match event {
        Some(Event::Frame(kind, _)) => StreamError::Unexpected(kind),
        Some(Event::Data(_)) => StreamError::Unexpected(Kind::Data),
        None => FrameError::Truncated.into(),
    }
}
