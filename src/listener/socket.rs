//! The application's socket, shared between hyper, who reads and writes it, and the connection's task, who has to know
//! when the application goes away while hyper has no reason to read, and who closes it gently.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::words::Answering;

/// An application that has closed its writing side may only have half-closed (`printf … | nc`), which TCP cannot tell
/// from one that is gone. A quick answer is still given; work is ended within a second, since a model that computes for
/// nobody keeps others waiting.
const HALF_CLOSED: Duration = Duration::from_millis(500);
/// While unread data hides the end of the stream, it is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// How long a closed connection is read on, so that the application reads the answer before it sees a reset: what it
/// sends is mostly under way already.
const LINGER: Duration = Duration::from_secs(2);

/// One of the two hands on the socket. Both belong to one task, so neither ever waits for the other.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    stream: Arc<Mutex<TcpStream>>,
    answering: Answering,
    /// How much of the words that stand for hyper's own is written.
    said: usize,
}

// === impl Socket ===

impl Socket {
    pub(super) fn new(stream: TcpStream, answering: Answering) -> Self {
        Self { stream: Arc::new(Mutex::new(stream)), answering, said: 0 }
    }

    /// Resolves when the application has gone away: at once after a reset, a moment after it closed its side and
    /// everything before that was read.
    pub(super) async fn gone(&self) {
        loop {
            match self.peek().await {
                Err(_) => return,
                Ok(false) => {
                    tokio::time::sleep(HALF_CLOSED).await;
                    // What was read meanwhile was before the end.
                    return;
                }
                // A reset stands behind unread data too, but the system tells of it.
                Ok(true) if matches!(self.lock().take_error(), Ok(Some(_)) | Err(_)) => return,
                Ok(true) => tokio::time::sleep(LOOK_AGAIN).await,
            }
        }
    }

    /// Closes our side and reads what still comes for a moment. A socket that is closed with unread data sends a reset,
    /// which can overtake the answer at the application.
    pub(super) async fn linger(self) {
        use tokio::io::AsyncWriteExt as _;
        let mut socket = self;
        let read = async {
            socket.shutdown().await?;
            let mut sink = vec![0; 16 * 1024];
            while socket.read(&mut sink).await? > 0 {}
            io::Result::Ok(())
        };
        let _ = tokio::time::timeout(LINGER, read).await;
    }

    /// Makes the close a reset, for an answer whose only mark of its end would be the close.
    pub(super) fn close_with_reset(&self) {
        let stream = self.lock();
        let _ = socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO));
    }

    /// Whether there is unread data; not, if all was read and the application closed its side.
    async fn peek(&self) -> io::Result<bool> {
        let mut byte = [0];
        std::future::poll_fn(|cx| {
            let mut buf = ReadBuf::new(&mut byte);
            // Shares the waker's slot with hyper's reading, which is the same task.
            let read = ready!(self.lock().poll_peek(cx, &mut buf))?;
            Poll::Ready(Ok(read > 0))
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, TcpStream> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.answering.instead_of(buf) {
            None => Pin::new(&mut *self.lock()).poll_write(cx, buf),
            Some((0, words)) => {
                while let Some(rest) = words.get(self.said..).filter(|rest| !rest.is_empty()) {
                    let written = ready!(Pin::new(&mut *self.lock()).poll_write(cx, rest))?;
                    self.said += written;
                }
                self.said = 0;
                Poll::Ready(Ok(buf.len()))
            }
            Some((before, _)) => Pin::new(&mut *self.lock()).poll_write(cx, buf.get(..before).unwrap_or_default()),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // hyper's own words are one slice, and the last.
        if bufs.last().is_some_and(|last| self.answering.instead_of(last).is_some()) {
            let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| buf);
            return self.poll_write(cx, first);
        }
        Pin::new(&mut *self.lock()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}
