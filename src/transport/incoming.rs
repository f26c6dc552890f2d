//! The provider's side of one exchange.

use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;

use super::stream::{PumpError, Reader, RecvBody, StreamError, Writer, has_body};
use crate::exchange::{self, Body, ExchangeError, ResetCode};
use crate::id::NodeName;
use crate::wire::frame::{self, Event, FrameError, Kind};
use crate::wire::head;

/// How long a peer may take to send a head. It sends it in one go; a lossy network needs some retransmissions.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// An exchange that a peer has opened.
#[derive(Debug)]
pub struct Incoming {
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

    /// Reads the request's head and acknowledges it. The body comes as it is read; `peer` names its errors.
    ///
    /// # Errors
    /// [`StreamError`]; the stream is reset with it.
    pub async fn request(mut self, peer: &NodeName) -> Result<(Request<Body>, Responder), StreamError> {
        match self.read_head().await {
            Ok((head, has_body)) => {
                self.writer.frame(frame::encode(Kind::Ack, &[])?).await?;
                let body = if has_body {
                    RecvBody::new(self.reader, peer.clone(), head.headers()).boxed_unsync()
                } else {
                    exchange::empty()
                };
                Ok((head.map(|()| body), Responder { writer: self.writer }))
            }
            Err(error) => {
                self.refuse(ResetCode::Protocol);
                Err(error)
            }
        }
    }

    async fn read_head(&mut self) -> Result<(Request<()>, bool), StreamError> {
        let slow = |_| StreamError::Slow(HEAD_TIMEOUT.as_secs());
        match tokio::time::timeout(HEAD_TIMEOUT, self.reader.next()).await.map_err(slow)?? {
            Some(Event::Frame(Kind::Request, payload)) => Ok(head::decode_request(payload)?),
            Some(Event::Frame(kind, _)) => Err(StreamError::Unexpected(kind)),
            Some(Event::Data(_)) => Err(StreamError::Unexpected(Kind::Data)),
            None => Err(FrameError::Truncated.into()),
        }
    }
}

/// Where the answer goes.
#[derive(Debug)]
pub struct Responder {
    writer: Writer,
}

impl Responder {
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
            let sent = send(&mut self.writer, answer).await;
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
    answer: impl Future<Output = Result<Response<Body>, ExchangeError>>,
) -> Result<(), PumpError> {
    let (head, body) = answer.await.map_err(PumpError::Body)?.into_parts();
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
        ExchangeError::Body(_) => ResetCode::Cancelled,
        ExchangeError::Protocol(..) => ResetCode::Protocol,
        ExchangeError::Reset(_, code) => *code,
    }
}
