//! The command line's end of the socket.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::{ErrorView, SOCKET};

/// A node that answers.
#[derive(Debug, Clone)]
pub struct Client {
    state_dir: PathBuf,
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
                Ok(_) => return Ok(Self { state_dir: dir.clone() }),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => denied = denied.or(Some(socket)),
                // Not there, a dead node's, or a path that no socket can have: nobody serves here.
                Err(_) => {}
            }
        }
        Err(match denied {
            Some(socket) => ClientError::Denied(socket),
            None => ClientError::NotRunning(state_dirs.to_vec()),
        })
    }

    /// The state directory of the node.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
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

    async fn request<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T, ClientError> {
        let stream = UnixStream::connect(self.state_dir.join(SOCKET)).await.map_err(ClientError::Broken)?;
        let broken = |error: hyper::Error| ClientError::Broken(io::Error::other(error));
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with this call, answered or not.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ollana")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| ClientError::Unclear(error.to_string()))?;
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let bytes = body.collect().await.map_err(broken)?.to_bytes();
        if head.status != StatusCode::OK {
            return Err(ClientError::Refused {
                status: head.status,
                view: serde_json::from_slice(&bytes).unwrap_or_else(|_| ErrorView {
                    error: format!("the node answers {}", head.status),
                    candidates: Vec::new(),
                }),
            });
        }
        serde_json::from_slice(&bytes).map_err(|error| ClientError::Unclear(error.to_string()))
    }
}

/// Why a running node could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// None answers.
    #[error("no node runs here (looked for {SOCKET} in {}); start one with `ollana serve -d`", shown(.0))]
    NotRunning(Vec<PathBuf>),
    /// It belongs to another user.
    #[error("may not open {}, which belongs to another user; use `sudo`", .0.display())]
    Denied(PathBuf),
    /// It broke off.
    #[error("the node broke off: {0}; its log may say why")]
    Broken(#[source] io::Error),
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

fn shown(dirs: &[PathBuf]) -> String {
    let shown: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    shown.join(" and ")
}
