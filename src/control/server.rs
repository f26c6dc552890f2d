//! The node's end of the socket.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::answers::answer;
use super::{Handles, StateDir};

/// `sun_path` of Linux holds 108 bytes with the zero at its end.
const MAX_PATH: usize = 107;
/// The socket's name until it may be opened; no longer than [`SOCKET`](super::SOCKET), so that it fits where that does.
pub(super) const FRESH_SOCKET: &str = "ollana.new";
/// Connections at once. The command line opens one; the bound keeps a runaway script from eating memory.
const MAX_CONNECTIONS: usize = 64;
/// How long an answer on its way out may take once the server is to end: everything is on this machine.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// The bound socket.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    path: PathBuf,
}

impl Server {
    /// Binds the socket in a state directory that this process holds, which is why one that is there already is a dead
    /// node's and may go. It gets its name only when its mode is 0600, so that nobody can slip in before.
    ///
    /// # Errors
    /// If the path is too long for a Unix socket, or the directory cannot be written.
    pub fn bind(state: &StateDir) -> Result<Self, ControlError> {
        let path = Self::check(state.path())?;
        let bind = || {
            let fresh = state.path().join(FRESH_SOCKET);
            remove(&fresh)?;
            let listener = StdListener::bind(&fresh)?;
            fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            fs::rename(&fresh, &path)?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => Ok(Self { listener, path }),
            Err(source) => Err(ControlError::Bind { path, source }),
        }
    }

    /// The path of the socket in a state directory, if it has a length that a Unix socket can have.
    ///
    /// # Errors
    /// If it is too long.
    pub fn check(state_dir: &Path) -> Result<PathBuf, ControlError> {
        let path = state_dir.join(super::SOCKET);
        let length = path.as_os_str().as_bytes().len();
        if length > MAX_PATH { Err(ControlError::PathTooLong { path, length }) } else { Ok(path) }
    }

    /// Answers until `shutdown`, then takes the socket away.
    ///
    /// # Errors
    /// If the socket cannot be handed to the runtime.
    pub async fn serve(self, handles: Handles, shutdown: CancellationToken) -> Result<(), ControlError> {
        let _remove = RemoveOnDrop(self.path.clone());
        let path = self.path;
        let listener = UnixListener::from_std(self.listener).map_err(|source| ControlError::Bind { path, source })?;
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => continue,
                accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            };
            match accepted {
                Ok((stream, _)) if is_owner(&stream) => {
                    connections.spawn(connection(stream, handles.clone(), shutdown.clone()));
                }
                Ok(_) => warn!("refused a connection to the control socket: it came from another user"),
                Err(error) => {
                    // Out of descriptors, as a rule: without a pause this would spin.
                    warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let last_words = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, last_words).await;
        Ok(())
    }
}

/// A socket file without a listener only misleads whoever looks for a node.
struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the kernel says that the other end is this user, or root.
fn is_owner(stream: &UnixStream) -> bool {
    let own = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == own || peer.uid() == 0)
}

async fn connection(stream: UnixStream, handles: Handles, shutdown: CancellationToken) {
    let service = service_fn(move |request| {
        let handles = handles.clone();
        async move { Ok::<_, Infallible>(answer(&handles, request).await) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10));
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "a connection to the control socket broke");
    }
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The path does not fit.
    #[error(
        "the path of the control socket, {}, has {length} bytes, and a Unix socket takes {MAX_PATH}; choose a shorter directory with --state-dir",
        path.display()
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// It cannot be made.
    #[error("cannot make the control socket {}: {source}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
