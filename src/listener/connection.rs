//! One connection of an application: hyper, and the few things it leaves to us.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::answer::Answerer;
use super::connections::Activity;
use super::guests::Seat;
use super::socket::Socket;
use super::upload::Rests;
use super::words::Answering;

/// Largest head of a request, and hyper's read buffer. Clients send less than 1 KB; a browser's cookies for `localhost`
/// can make it tens. Beyond it the answer is 431.
const MAX_HEAD: usize = 256 * 1024;
/// Most header fields of a request. Ollama knows no such bound; hyper's default is 100.
const MAX_FIELDS: usize = 512;
/// HTTP/2: what one stream, and one connection, may have under way to us. A few round trips of loopback at full speed,
/// and a bound on what is kept for servers that are slower than the application.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
/// HTTP/2: requests at once on one connection.
const MAX_STREAMS: u32 = 256;
/// Beyond this machine: how long a connection may be without a request. On loopback there is no limit, as with Ollama.
const IDLE_BEYOND_LOOPBACK: Duration = Duration::from_secs(60);

/// How connections are spoken to.
#[derive(Debug)]
pub(super) struct Protocols(auto::Builder<TokioExecutor>);

/// What a connection's requests tell its task.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    pub(super) rests: Rests,
    /// An answer broke off whose end only the close can show (HTTP/1.0): the close has to be a reset.
    pub(super) broke: Arc<AtomicBool>,
    pub(super) answering: Answering,
    pub(super) activity: Activity,
    /// Where the application is on another machine.
    pub(super) seat: Option<Arc<Seat>>,
}

// === impl Protocols ===

impl Protocols {
    pub(super) fn new(open: bool) -> Self {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            // As Go writes them, and as scripts that grep for them expect.
            .title_case_headers(true)
            // Whether a half-closed application is gone is decided in `Socket::gone`.
            .half_close(true)
            .max_headers(MAX_FIELDS)
            .max_buf_size(MAX_HEAD);
        if open {
            builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE_BEYOND_LOOPBACK);
        }
        builder
            .http2()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(MAX_STREAMS)
            .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
        Self(builder)
    }
}

/// Serves one connection until it ends, or until `shutdown` and the answers that then run are over.
pub(super) async fn serve(
    stream: TcpStream,
    seat: Option<Seat>,
    activity: Activity,
    protocols: Arc<Protocols>,
    answerer: Arc<Answerer>,
    shutdown: CancellationToken,
) {
    let signals = Signals {
        rests: Rests::default(),
        broke: Arc::default(),
        answering: Answering::default(),
        activity,
        seat: seat.map(Arc::new),
    };
    let socket = Socket::new(stream, signals.answering.clone());
    let service = {
        let signals = signals.clone();
        service_fn(move |request| {
            let (answerer, signals) = (answerer.clone(), signals.clone());
            async move { Ok::<_, Infallible>(answerer.answer(request, &signals).await) }
        })
    };
    let mut http = Box::pin(protocols.0.serve_connection(TokioIo::new(socket.clone()), service));
    let mut gone = Box::pin(socket.gone());
    let mut unwanted_now = None;
    let mut stopping = false;
    let result = loop {
        tokio::select! {
            // hyper first: what it has read needs no second look at the socket.
            biased;
            result = http.as_mut() => break result,
            rest = signals.rests.next() => unwanted_now = Some(rest),
            () = drain(&mut unwanted_now), if unwanted_now.is_some() => unwanted_now = None,
            () = shutdown.cancelled(), if !stopping => {
                stopping = true;
                http.as_mut().graceful_shutdown();
            }
            // Whatever runs for it is dropped with `http`, which cancels it all the way to the Ollama.
            () = gone.as_mut() => {
                tracing::debug!("the application went away");
                return;
            }
        }
    };
    drop(http);
    if signals.broke.load(Ordering::Relaxed) {
        socket.close_with_reset();
        return;
    }
    let unread = result.is_err() || unwanted_now.is_some() || signals.rests.were_left();
    if let Err(error) = result {
        tracing::debug!(%error, "the connection ended early");
    }
    drop(gone);
    if unread {
        socket.linger().await;
    }
}

/// Reads the rest of a body and drops it.
async fn drain(body: &mut Option<Incoming>) {
    if let Some(body) = body {
        while let Some(Ok(_)) = body.frame().await {}
    }
}
