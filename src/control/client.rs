//! The command line's end of the socket.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::{ErrorView, SOCKET, StateDir};

/// How long a node may take to say how things are. It has the answer in memory.
const SNAPSHOT_WITHIN: Duration = Duration::from_secs(15);
/// Most bytes of an answer: some hundred nodes with some hundred models each are a few MB. Root may be talking to the node of a
/// user who means no good.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// Most bytes of a line of an answer that goes on.
const MAX_LINE: usize = 1024 * 1024;
/// How long it may take to do something: it waits for a disk, or for whoever else edits its files.
const DONE_WITHIN: Duration = Duration::from_secs(120);

/// A node that answers.
#[derive(Debug, Clone)]
pub struct Client {
    state_dir: PathBuf,
    user: u32,
    pid: Option<u32>,
}

impl Client {
    /// The first of these state directories whose node answers.
    ///
    /// # Errors
    /// If none does, or one may not be opened.
    pub async fn find(state_dirs: &[PathBuf]) -> Result<Self, ClientError> {
        let mut denied = None;
        for dir in state_dirs {
            let socket = dir.join(SOCKET);
            match UnixStream::connect(&socket).await {
                Ok(stream) => {
                    let peer = stream.peer_cred().ok();
                    let pid =
                        peer.and_then(|peer| peer.pid()).and_then(|pid| pid.try_into().ok()).filter(|pid| *pid != 0);
                    let user = peer.map_or(u32::MAX, |peer| peer.uid());
                    return Ok(Self { state_dir: dir.clone(), user, pid });
                }
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = denied.or(Some(socket)),
                // Not there, a dead node's, or a path that no socket can have: nobody serves here.
                Err(_) => {}
            }
        }
        Err(match denied {
            Some(socket) => ClientError::Denied(socket),
            None => ClientError::NotRunning(Searched { dirs: state_dirs.to_vec(), others: super::others() }),
        })
    }

    /// The state directory of the node.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// The user whom the node runs as, if that is another than this process's: root may open everybody's socket. Where the
    /// system does not say, it is another: `(uid_t) -1`, which nobody is.
    pub fn other_user(&self) -> Option<u32> {
        Some(self.user).filter(|user| *user != rustix::process::geteuid().as_raw())
    }

    /// The node's process, where the kernel says it. What a node says itself may be any number, and people type `kill` with
    /// it.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Asks for a snapshot.
    ///
    /// # Errors
    /// If the node does not answer or refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.request(Method::GET, path, Bytes::new()).await
    }

    /// Asks for something to be done.
    ///
    /// # Errors
    /// If the node does not answer or refuses.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unclear(error.to_string()))?;
        self.request(Method::POST, path, body.into()).await
    }

    /// Asks to be told what happens, a line each, until what is given back is dropped.
    ///
    /// # Errors
    /// If the node does not answer or refuses.
    pub async fn follow(&self, path: &str, body: &impl Serialize) -> Result<Lines, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Unclear(error.to_string()))?;
        let (body, driver) = self.open(Method::POST, path, body.into()).await?;
        Ok(Lines { body, read: Vec::new(), _driver: driver })
    }

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let patience = if method == Method::GET { SNAPSHOT_WITHIN } else { DONE_WITHIN };
        let answer = async {
            let (body, _driver) = self.open(method, path, body).await?;
            collect(body).await
        };
        let bytes = match tokio::time::timeout(patience, answer).await {
            Ok(answered) => answered?,
            Err(_) => return Err(self.silent(patience)),
        };
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Unclear(error.to_string()))
    }

    fn silent(&self, waited: Duration) -> ClientError {
        let noted = || StateDir::noted_pid(&self.state_dir).filter(|_| self.other_user().is_none());
        ClientError::Silent { waited, pid: self.pid.or_else(noted) }
    }

    /// The body of an answer that is none of an error, and what has to be kept while it is read.
    async fn open(&self, method: Method, path: &str, body: Bytes) -> Result<(Incoming, JoinSet<()>), ClientError> {
        let stream = UnixStream::connect(self.state_dir.join(SOCKET)).await.map_err(ClientError::Broken)?;
        let broken = |error: hyper::Error| ClientError::Broken(io::Error::other(error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with this call, answered or not.
        let mut driver = JoinSet::new();
        driver.spawn(async move {
            let _ = connection.await;
        });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ollana")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Unclear(error.to_string()))?;
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        if head.status != StatusCode::OK {
            let bytes = collect(body).await?;
            return Err(ClientError::Refused {
                status: head.status,
                view: serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorView {
                    error: format!("the node answers {}", head.status),
                    candidates: Vec::new(),
                }),
            });
        }
        Ok((body, driver))
    }
}

async fn collect(body: Incoming) -> Result<Bytes, ClientError> {
    match Limited::new(body, MAX_ANSWER).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => Err(ClientError::Broken(io::Error::other(error))),
    }
}

/// An answer that goes on, line by line.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    read: Vec<u8>,
    /// Ends the connection when this is dropped, and so what was asked for.
    _driver: JoinSet<()>,
}

impl Lines {
    /// The next line, or `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// If the node breaks off, or says what is not understood.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let value = serde_json::from_slice(&line).map_err(|error| ClientError::Unclear(error.to_string()))?;
                return Ok(Some(value));
            }
            if self.read.len() > MAX_LINE {
                return Err(ClientError::Unclear("a line of it has no end".to_owned()));
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.read.extend_from_slice(&frame.into_data().unwrap_or_default()),
                Some(Err(error)) => return Err(ClientError::Broken(io::Error::other(error))),
                None => return Ok(None),
            }
        }
    }
}

/// Why a running node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// None answers.
    #[error("{0}")]
    NotRunning(Searched),
    /// It belongs to another user.
    #[error("may not open {}, which belongs to another user; use `sudo`", .0.display())]
    Denied(PathBuf),
    /// It broke off.
    #[error("the connection to the node was lost: {0}; its log may say why")]
    Broken(#[source] io::Error),
    /// It does not answer in time.
    #[error("{}", silence(*.waited, *.pid))]
    Silent {
        /// How long it was waited for.
        waited: Duration,
        /// The node's process.
        pid: Option<u32>,
    },
    /// It says no.
    #[error("{}", view.error)]
    Refused {
        /// The status of its answer.
        status: StatusCode,
        /// What it says.
        view: ErrorView,
    },
    /// It says something else.
    #[error("the node's answer is not understood: {0}; restart it if it is of another version")]
    Unclear(String),
}

/// Where a node was looked for in vain.
#[derive(Debug, Clone)]
pub struct Searched {
    /// The state directories that were looked at.
    pub dirs: Vec<PathBuf>,
    /// Those of other users' nodes on this machine.
    pub others: Vec<PathBuf>,
}

impl fmt::Display for Searched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dirs = shown(&self.dirs);
        let Some(other) = self.others.first() else {
            return write!(f, "no node runs here (looked for {SOCKET} in {dirs}); start one with `ollana serve -d`");
        };
        write!(
            f,
            "no node of yours runs here (looked for {SOCKET} in {dirs}), but a node of another user does, in {}; \
             applications of all users may use it, and its owner or root controls it: `sudo ollana status --state-dir {}`",
            shown(&self.others),
            super::quoted(other)
        )
    }
}

fn silence(waited: Duration, pid: Option<u32>) -> String {
    let waited = waited.as_secs();
    match pid {
        Some(pid) => format!(
            "the node (process {pid}) does not answer within {waited} s; its log may say why, and `kill -9 {pid}` stops it"
        ),
        None => format!("the node does not answer within {waited} s; its log may say why"),
    }
}

fn shown(dirs: &[PathBuf]) -> String {
    let shown: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    shown.join(" and ")
}
