//! The node's end of the socket.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    Candidate, Changed, ErrorView, Handles, IdView, KeepRequest, Keeping, PeerRequest, StateDir, StatusView, Stopping,
    TrustRequest, Unresolved, candidates, models, resolve, revoke_advice,
};
use crate::digests::Holder;
use crate::route::ModelName;
use crate::trust::TrustError;

/// `sun_path` of Linux holds 108 bytes with the zero at its end.
const MAX_PATH: usize = 107;
/// Connections at once. The command line opens one; the bound keeps a runaway script from eating memory.
const MAX_CONNECTIONS: usize = 64;
/// A request is a few hundred bytes.
const MAX_BODY: usize = 64 * 1024;
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
        let path = state.socket();
        let length = path.as_os_str().as_bytes().len();
        if length > MAX_PATH {
            return Err(ControlError::PathTooLong { path, length });
        }
        let bind = || {
            // No longer than the name it will have.
            let fresh = state.path().join("ollana.new");
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

// === the requests ===

async fn answer(handles: &Handles, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let answer = match (&head.method, head.uri.path()) {
        (&Method::GET, "/status") => json(&StatusView::of(handles.mesh.as_ref())),
        (&Method::GET, "/peers") => json(&handles.mesh.peers()),
        (&Method::GET, "/models") => json(&models(handles.mesh.as_ref())),
        (&Method::GET, "/id") => {
            let info = handles.mesh.info();
            json(&IdView { id: info.id, name: info.name })
        }
        (&Method::POST, "/resolve") => match read::<PeerRequest>(body).await {
            Ok(wanted) => find(handles, &wanted.peer).and_then(|peer| json(&peer)),
            Err(failure) => Err(failure),
        },
        (&Method::POST, "/keep") => match read(body).await {
            Ok(wanted) => keep(handles, wanted).await,
            Err(failure) => Err(failure),
        },
        (&Method::POST, "/trust") => match read(body).await {
            Ok(wanted) => trust(handles, wanted).await,
            Err(failure) => Err(failure),
        },
        (&Method::POST, "/revoke") => match read(body).await {
            Ok(wanted) => revoke(handles, wanted).await,
            Err(failure) => Err(failure),
        },
        (&Method::POST, "/stop") => {
            handles.stop.cancel();
            json(&Stopping { pid: std::process::id(), drain_s: handles.drain.as_secs() })
        }
        (_, "/status" | "/peers" | "/models" | "/id" | "/resolve" | "/keep" | "/trust" | "/revoke" | "/stop") => Err(
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {}", head.uri.path(), head.method)),
        ),
        (_, path) => Err(Failure::new(
            StatusCode::NOT_FOUND,
            format!(
                "this node (version {}) has no {path}; is the command line of another version?",
                env!("CARGO_PKG_VERSION")
            ),
        )),
    };
    answer.unwrap_or_else(Failure::into_response)
}

async fn trust(handles: &Handles, wanted: TrustRequest) -> Result<Response<Full<Bytes>>, Failure> {
    let peer = match find(handles, &wanted.peer) {
        // A key may be trusted before it was ever met, if it is given whole.
        Err(Failure { unknown: Some(id), .. }) => Candidate::stranger(id),
        found => found?,
    };
    handles.book.trust(peer.id, peer.plain_name(), peer.address.clone(), wanted.scope, wanted.use_).await?;
    json(&Changed { peer: refreshed(handles, peer), advice: None })
}

/// A model's name stands for what this node has, from now on.
async fn keep(handles: &Handles, wanted: KeepRequest) -> Result<Response<Full<Bytes>>, Failure> {
    let info = handles.mesh.info();
    let own = info.name.is(&wanted.peer) || wanted.peer.parse() == Ok(info.id);
    let (id, peer) = match own {
        true => (info.id, info.name),
        false => find(handles, &wanted.peer).map(|peer| (peer.id, peer.name))?,
    };
    let model = ModelName::new(&wanted.model);
    let catalogs = handles.mesh.catalogs().into_iter().filter(|catalog| catalog.id == id);
    let mut listed = catalogs.flat_map(|catalog| catalog.models);
    let Some((name, info)) = listed.find(|(name, info)| ModelName::new(name) == model && !info.digest.is_empty())
    else {
        let error = format!("{peer} does not lend a model {:?} now; `ollana models` shows who does", wanted.model);
        return Err(Failure::new(StatusCode::NOT_FOUND, error));
    };
    handles.digests.keep(&model, &info.digest, Holder { id, name: peer.clone() });
    handles.digests.save().await;
    json(&Keeping { model: name, digest: info.digest, peer })
}

async fn revoke(handles: &Handles, wanted: PeerRequest) -> Result<Response<Full<Bytes>>, Failure> {
    let peer = match find(handles, &wanted.peer) {
        Err(Failure { unknown: Some(id), .. }) => Candidate::stranger(id),
        found => found?,
    };
    handles.book.revoke(peer.id).await?;
    handles.digests.forget(&peer.id);
    json(&Changed { peer: refreshed(handles, peer), advice: revoke_advice(&handles.policy) })
}

/// The peer with what the book says of it now.
fn refreshed(handles: &Handles, mut peer: Candidate) -> Candidate {
    if let Some(pin) = handles.book.snapshot().pin(&peer.id) {
        (peer.trust, peer.use_, peer.scope) = (pin.trust, pin.use_, pin.scope);
    }
    peer
}

fn find(handles: &Handles, text: &str) -> Result<Candidate, Failure> {
    if text.parse() == Ok(handles.mesh.info().id) {
        return Err(Failure::new(StatusCode::BAD_REQUEST, "that is the ID of this node itself".to_owned()));
    }
    let known = candidates(&handles.mesh.peers(), handles.book.snapshot().pins());
    Ok(resolve(text, &known)?)
}

async fn read<T: DeserializeOwned>(body: Incoming) -> Result<T, Failure> {
    let bytes = Limited::new(body, MAX_BODY)
        .collect()
        .await
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the request cannot be read: {error}")))?
        .to_bytes();
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the request is not understood: {error}")))
}

fn json<T: Serialize>(value: &T) -> Result<Response<Full<Bytes>>, Failure> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(with_body(StatusCode::OK, bytes))
}

fn with_body(status: StatusCode, bytes: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(bytes.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// A request that was not granted.
struct Failure {
    status: StatusCode,
    view: ErrorView,
    /// Whom it meant, if that is settled although nobody knows them.
    unknown: Option<crate::id::Id>,
}

impl Failure {
    fn new(status: StatusCode, error: String) -> Self {
        Self { status, view: ErrorView { error, candidates: Vec::new() }, unknown: None }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        with_body(self.status, serde_json::to_vec(&self.view).unwrap_or_default())
    }
}

impl From<Unresolved> for Failure {
    fn from(error: Unresolved) -> Self {
        let text = error.to_string();
        match error {
            Unresolved::Ambiguous { candidates, .. } => {
                Self { view: ErrorView { error: text, candidates }, ..Self::new(StatusCode::CONFLICT, String::new()) }
            }
            Unresolved::UnknownId(id) => Self { unknown: Some(id), ..Self::new(StatusCode::NOT_FOUND, text) },
            Unresolved::Unknown(_) => Self::new(StatusCode::NOT_FOUND, text),
            Unresolved::Slip(_) | Unresolved::ShortPrefix(_) => Self::new(StatusCode::BAD_REQUEST, text),
        }
    }
}

impl From<TrustError> for Failure {
    fn from(error: TrustError) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
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
