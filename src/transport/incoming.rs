//! The provider's side of one exchange.

use std::future::ready;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;

use super::stream::{PumpError, Reader, RecvBody, StreamError, Writer, has_body};
use crate::exchange::{self, Ask, Body, ExchangeError, Place, Progress, ResetCode, Ticket, Turn};
use crate::id::NodeName;
use crate::wire::frame::{self, Event, FrameError, Kind};
use crate::wire::head;

/// How long a peer may take to send a head and to hear that it is here. It sends it in one go; a lossy network needs some
/// retransmissions.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a slot is kept for a request whose turn it is, until that is acknowledged. It is on its way at once, and others
/// wait for the slot; a lossy network needs a retransmission or two.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer that comes within this time of its request says by itself that the server had it: the word for that would be a
/// packet more.
const AT_ONCE: Duration = Duration::from_millis(1);

/// An exchange that a peer has opened.
#[derive(Debug)]
pub struct Incoming {
    writer: Writer,
    reader: Reader,
}

/// What an exchange begins with.
#[derive(Debug)]
pub enum Opening {
    /// The request, and where its answer goes.
    Request(Request<Body>, Responder),
    /// A place in the queue is asked for, before the request is sent.
    Ticket(Ask, Waiting),
}

/// The stream of a ticket whose turn it is not yet.
#[derive(Debug)]
pub struct Waiting {
    writer: Writer,
    reader: Reader,
}

impl Incoming {
    pub(super) fn new(writer: Writer, reader: Reader) -> Self {
        Self { writer, reader }
    }

    /// Ends it unheard.
    pub fn refuse(mut self, code: ResetCode) {
        self.writer.reset(code);
        self.reader.stop(code);
    }

    /// Reads the head of the request, or its ticket, and acknowledges it. The body comes as it is read; `peer` names its
    /// errors.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is reset with it.
    pub async fn open(self, peer: &NodeName) -> Result<Opening, StreamError> {
        self.read(HEAD_TIMEOUT, peer).await
    }

    async fn read(mut self, within: Duration, peer: &NodeName) -> Result<Opening, StreamError> {
        let slow = |_| StreamError::Slow(within.as_secs());
        match tokio::time::timeout(within, self.hear()).await.map_err(slow).flatten() {
            Ok(First::Request(mut head, has_body)) => {
                let progress = Progress::default();
                head.extensions_mut().insert(progress.clone());
                let body = if has_body {
                    RecvBody::new(self.reader, peer.clone(), head.headers()).boxed_unsync()
                } else {
                    exchange::empty()
                };
                Ok(Opening::Request(head.map(|()| body), Responder { writer: self.writer, progress }))
            }
            Ok(First::Ticket(ask)) => Ok(Opening::Ticket(ask, Waiting { writer: self.writer, reader: self.reader })),
            Err(error) => {
                self.refuse(if let StreamError::Slow(_) = error { ResetCode::Late } else { ResetCode::Protocol });
                Err(error)
            }
        }
    }

    /// Reads what comes first and acknowledges it. Both may take as long as the peer likes: one that reads nothing has no
    /// room for the acknowledgement, and a slot may be kept meanwhile.
    async fn hear(&mut self) -> Result<First, StreamError> {
        let first = self.read_first().await?;
        self.writer.frame(frame::encode(Kind::Ack, &[])?).await?;
        Ok(first)
    }

    async fn read_first(&mut self) -> Result<First, StreamError> {
        match self.reader.next().await? {
            Some(Event::Frame(Kind::Request, payload)) => {
                let (head, has_body) = head::decode_request(payload)?;
                Ok(First::Request(head, has_body))
            }
            Some(Event::Frame(Kind::Ticket, payload)) => {
                serde_json::from_slice(&payload).map(First::Ticket).map_err(|_| StreamError::Unexpected(Kind::Ticket))
            }
            Some(Event::Frame(kind, _)) => Err(StreamError::Unexpected(kind)),
            Some(Event::Data(_)) => Err(StreamError::Unexpected(Kind::Data)),
            None => Err(FrameError::Truncated.into()),
        }
    }
}

/// The first frame of a peer's side.
enum First {
    Request(Request<()>, bool),
    Ticket(Ask),
}

// === impl Opening ===

impl Opening {
    /// The request, where nothing else may come.
    ///
    /// # Errors
    /// [`StreamError::Unexpected`] if it is a ticket.
    pub fn request(self) -> Result<(Request<Body>, Responder), StreamError> {
        match self {
            Self::Request(request, responder) => Ok((request, responder)),
            Self::Ticket(..) => Err(StreamError::Unexpected(Kind::Ticket)),
        }
    }
}

// === impl Waiting ===

impl Waiting {
    /// Waits with `ticket` for its turn and tells the peer where it stands, takes the request then, and answers it. If the
    /// peer gives up, all of it is dropped at once, and so the ticket withdrawn.
    ///
    /// # Errors
    /// Why it did not come to an answer, or why that did not get across.
    pub async fn queue(mut self, mut ticket: Ticket, peer: &NodeName) -> Result<(), PumpError> {
        let withdrawn = self.writer.stopped();
        let turn = async {
            loop {
                tokio::select! {
                    biased;
                    turn = &mut ticket.turn => return turn.map_err(PumpError::Body),
                    Ok(()) = ticket.place.changed() => {
                        let place: Place = *ticket.place.borrow_and_update();
                        // Numbers always serialize.
                        let json = serde_json::to_vec(&place).unwrap_or_default();
                        let telling = self.writer.frame(frame::encode(Kind::Place, &json).map_err(StreamError::from)?);
                        let mut telling = pin!(telling);
                        // A peer that reads nothing holds this up for as long as it likes, but no slot.
                        let turn = tokio::select! {
                            biased;
                            told = &mut telling => { told?; continue }
                            turn = &mut ticket.turn => turn,
                        };
                        in_turn(telling).await?;
                        return turn.map_err(PumpError::Body);
                    }
                }
            }
        };
        let turn = tokio::select! {
            turn = turn => turn,
            () = withdrawn => return Err(StreamError::Stopped(ResetCode::Cancelled).into()),
        };
        let slot = match turn {
            Ok(Turn::Slot(slot)) => slot,
            Ok(Turn::Refused(answer)) => return Responder::new(self.writer).answer(ready(Ok(answer))).await,
            Err(PumpError::Body(error)) => return Responder::new(self.writer).answer(ready(Err(error))).await,
            Err(error) => return Err(error),
        };
        in_turn(self.writer.frame(frame::encode(Kind::Turn, &[]).map_err(StreamError::from)?)).await?;
        let incoming = Incoming { writer: self.writer, reader: self.reader };
        let (request, responder) = incoming.read(TURN_TIMEOUT, peer).await?.request()?;
        responder.answer(slot.exchange(request)).await
    }
}

/// What is said while a slot is kept for who hears it, or it is somebody else's turn.
async fn in_turn(saying: impl Future<Output = Result<(), StreamError>>) -> Result<(), StreamError> {
    tokio::time::timeout(TURN_TIMEOUT, saying).await.map_err(|_| StreamError::Slow(TURN_TIMEOUT.as_secs()))?
}

/// Where the answer goes.
#[derive(Debug)]
pub struct Responder {
    writer: Writer,
    /// How far the request came at the server.
    progress: Progress,
}

impl Responder {
    /// Where the answer to no request goes.
    fn new(writer: Writer) -> Self {
        Self { writer, progress: Progress::default() }
    }

    /// Waits for the answer and sends it, head, body and trailers, and until the peer has all of it: a node that stops
    /// must not close the connection before. If the peer gives up first, `answer` or the body it gave is dropped at once,
    /// which ends the work behind it.
    ///
    /// # Errors
    /// Why it did not get across. The peer is told by a frame and not by a reset of the stream: quinn keeps an entry for
    /// each stream that [`Writer::stopped`] waits for until the peer stops the stream or has all of it, and for one that
    /// we reset that is as long as the connection lasts (`tests/endurance`).
    pub async fn answer(
        mut self,
        answer: impl Future<Output = Result<Response<Body>, ExchangeError>>,
    ) -> Result<(), PumpError> {
        let mut given_up = pin!(self.writer.stopped());
        let sending = async {
            let sent = send(&mut self.writer, &self.progress, answer).await;
            match &sent {
                Ok(()) => {}
                Err(PumpError::Body(error)) => self.writer.broken(code_of(error)).await?,
                Err(PumpError::Stream(StreamError::Stopped(_) | StreamError::Lost(_))) => {}
                // A head or trailers that are too long: the peer is told that it was the Ollama.
                Err(PumpError::Stream(_)) => self.writer.broken(ResetCode::Upstream).await?,
            }
            Ok::<_, StreamError>(sent)
        };
        let sent = tokio::select! {
            sent = sending => sent?,
            () = &mut given_up => return Err(StreamError::Stopped(ResetCode::Cancelled).into()),
        };
        // What was said and not heard yet would be lost if the connection were closed now.
        given_up.await;
        sent
    }
}

/// Waits for the answer and writes it, up to where it breaks off.
async fn send(
    writer: &mut Writer,
    progress: &Progress,
    answer: impl Future<Output = Result<Response<Body>, ExchangeError>>,
) -> Result<(), PumpError> {
    let mut answer = pin!(answer);
    let slow = async {
        progress.started().await;
        tokio::time::sleep(AT_ONCE).await;
    };
    let answered = tokio::select! {
        biased;
        answered = &mut answer => answered,
        () = slow => {
            let started = frame::encode(Kind::Started, &[]).map_err(StreamError::from)?;
            let mut telling = pin!(writer.frame(started));
            // A peer that reads nothing holds this up for as long as it likes, but not what the answer waits for.
            let early = tokio::select! {
                biased;
                told = &mut telling => told.map(|()| None)?,
                answered = &mut answer => Some(answered),
            };
            match early {
                Some(answered) => {
                    telling.await?;
                    answered
                }
                None => answer.await,
            }
        }
    };
    let (head, body) = answered.map_err(PumpError::Body)?.into_parts();
    let has_body = has_body(&body);
    writer.hold(&head::encode_response(&head, has_body).map_err(StreamError::from)?);
    if has_body {
        return writer.pump(body).await;
    }
    writer.flush().await?;
    writer.finish();
    Ok(())
}

fn code_of(error: &ExchangeError) -> ResetCode {
    match error {
        ExchangeError::Ollama(..) | ExchangeError::Unreachable(_) | ExchangeError::Lost(_) => ResetCode::Upstream,
        ExchangeError::NotRun(..) => ResetCode::NotRun,
        ExchangeError::Ended(..) => ResetCode::Ended,
        ExchangeError::Body(_) => ResetCode::Cancelled,
        ExchangeError::Protocol(..) => ResetCode::Protocol,
        ExchangeError::Reset(_, code) => *code,
    }
}
