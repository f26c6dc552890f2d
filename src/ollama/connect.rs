//! Connections to the Ollama.
//!
//! An Ollama may answer before it has read the request (a blob that is there already) and close: what is still being
//! written then fails, with the answer unread in the socket. hyper ends a connection at a failed write, and the answer
//! would be lost. [`Forgiving`] keeps a failed write from hyper: it waits, as if the buffer were full, while the answer
//! is read to its end, where the connection ends anyway.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use super::direct::{Ours, Port};

/// Longest wait for a TCP handshake. The Ollama is on this machine, or on a LAN if its owner says so; a SYN that is
/// lost is sent again after 1 s and 3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// Opens TCP connections, which are known as ours while they are open.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    ours: Ours,
    forgives: bool,
}

/// A connection whose failed writes wait for what there is to read.
#[derive(Debug)]
pub(super) struct Forgiving {
    io: TokioIo<TcpStream>,
    forgives: bool,
    deaf: bool,
    _port: Option<Port>,
}

// === impl Connector ===

impl Connector {
    /// Opens connections that forgive failed writes.
    pub(super) fn new(ours: Ours) -> Self {
        let mut tcp = HttpConnector::new();
        // Tokens are small and each is waited for.
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        Self { tcp, ours, forgives: true }
    }

    /// Opens connections as they are: for HTTP/2, where an early answer closes a stream and not the connection.
    pub(super) fn unforgiving(self) -> Self {
        Self { forgives: false, ..self }
    }
}

impl Service<Uri> for Connector {
    type Response = Forgiving;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Forgiving, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.tcp.call(uri);
        let (ours, forgives) = (self.ours.clone(), self.forgives);
        Box::pin(async move {
            let io = connecting.await?;
            let port = io.inner().local_addr().ok().map(|addr| ours.add(addr.port()));
            Ok(Forgiving { io, forgives, deaf: false, _port: port })
        })
    }
}

// === impl Forgiving ===

impl Forgiving {
    fn forgive<T>(&mut self, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Err(error)) if self.forgives && is_closed(&error) => {
                self.deaf = true;
                Poll::Pending
            }
            written => written,
        }
    }
}

/// The errors of writing to somebody who has closed. After any of them reading comes to an end at once, so that nobody
/// waits for ever.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

impl Read for Forgiving {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Forgiving {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.forgive(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.deaf {
            return Poll::Pending;
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.forgive(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl Connection for Forgiving {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}
