//! A node's user side on a real socket, over fake endpoints, and a client that writes and reads bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, stream};
use ollana::Id;
use ollana::internals::balance::{Preferences, Router, RouterSettings};
use ollana::internals::catalog::Catalog;
use ollana::internals::digests::Digests;
use ollana::internals::exchange::Endpoint;
use ollana::internals::listener::{Listener, ListenerSettings};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::discover::Change;

use super::FakeEndpoint;

/// Bounds every wait for an event, so that a test that fails does not hang.
const PATIENCE: Duration = Duration::from_secs(20);

/// The user side of a node named `me`.
pub struct Node {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    pub serving: JoinHandle<()>,
    changes: mpsc::UnboundedSender<Change<Id, Arc<dyn Endpoint>>>,
}

/// How a node is set up.
pub struct Setup {
    pub open: bool,
    pub grace: Duration,
    pub drain: Duration,
    pub digests: Digests,
    pub tempo: f64,
}

impl Default for Setup {
    fn default() -> Self {
        Self { open: false, grace: Duration::ZERO, drain: PATIENCE, digests: Digests::default(), tempo: 1.0 }
    }
}

impl Node {
    pub async fn over(endpoints: &[&Arc<FakeEndpoint>]) -> Self {
        Self::set_up(Setup::default(), endpoints).await
    }

    pub async fn set_up(setup: Setup, endpoints: &[&Arc<FakeEndpoint>]) -> Self {
        let (changes, receiver) = mpsc::unbounded_channel();
        for endpoint in endpoints {
            changes.send(insert(endpoint)).unwrap();
        }
        let discover = stream::unfold(receiver, |mut receiver: mpsc::UnboundedReceiver<_>| async {
            receiver.recv().await.map(|change| (Ok(change), receiver))
        });
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let settings = RouterSettings {
            preferences: Preferences { tempo: setup.tempo, ..Preferences::default() },
            name: "me".parse().unwrap(),
            id: Id::of_spki(b"me"),
            listen: Some(address),
            open: setup.open,
            digests: setup.digests,
            grace: setup.grace,
        };
        let router = Router::spawn(settings, discover.boxed(), Vec::new);
        let settings =
            ListenerSettings { name: "me".parse().unwrap(), origins: Vec::new(), open: setup.open, drain: setup.drain };
        let shutdown = CancellationToken::new();
        let listener = Listener::new(settings, router.clone(), Catalog::new(router));
        let serving = tokio::spawn(listener.serve(vec![tcp], shutdown.clone()));
        Self { address, shutdown, serving, changes }
    }

    pub fn joins(&self, endpoint: &Arc<FakeEndpoint>) {
        self.changes.send(insert(endpoint)).unwrap();
    }

    pub fn leaves(&self, endpoint: &Arc<FakeEndpoint>) {
        self.changes.send(Change::Remove(endpoint.id())).unwrap();
    }

    /// Whether a connection that the kernel still accepted is closed without an answer.
    pub async fn refuses(&self) -> bool {
        let mut client = self.client().await;
        let _ = client.stream.write_all(request("GET /", "").as_bytes()).await;
        client.is_closed().await
    }

    pub async fn client(&self) -> Client {
        Client { stream: TcpStream::connect(self.address).await.unwrap(), read: Vec::new() }
    }

    /// One request on a connection of its own, and its whole answer.
    pub async fn ask(&self, head: &str, body: &str) -> Reply {
        let mut client = self.client().await;
        client.send(&request(head, body)).await;
        client.reply_to(head.split(' ').next().unwrap_or_default()).await
    }
}

fn insert(endpoint: &Arc<FakeEndpoint>) -> Change<Id, Arc<dyn Endpoint>> {
    let endpoint: Arc<dyn Endpoint> = endpoint.clone();
    Change::Insert(endpoint.id(), endpoint)
}

/// A request with these lines (the first is the method and target), a `Host` if they have none, and the body's length.
pub fn request(head: &str, body: &str) -> String {
    let mut lines = head.split('\n').map(str::trim);
    let first = lines.next().unwrap_or_default();
    let rest: Vec<_> = lines.collect();
    let version = if first.contains("HTTP/") { "" } else { " HTTP/1.1" };
    let host = if rest.iter().any(|line| line.starts_with("Host:")) { "" } else { "Host: 127.0.0.1:11434\r\n" };
    let fields: String = rest.iter().map(|line| format!("{line}\r\n")).collect();
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    format!("{first}{version}\r\n{host}{fields}{length}\r\n{body}")
}

/// Runs `future`, but not for ever.
pub async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("it never happened")
}

/// A raw connection.
pub struct Client {
    pub stream: TcpStream,
    read: Vec<u8>,
}

/// An answer as it stood on the wire.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Client {
    pub async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The next answer's head, with its lines ended by `\n`.
    pub async fn head(&mut self) -> String {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            assert!(self.more().await > 0, "closed within a head: {:?}", String::from_utf8_lossy(&self.read));
        };
        let rest = self.read.split_off(end + 4);
        let head = String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
        head.replace("\r\n", "\n")
    }

    /// The next chunk's bytes; `None` at the last chunk; a break is an error.
    pub async fn chunk(&mut self) -> Result<Option<String>, ()> {
        let line = loop {
            if let Some(end) = self.read.windows(2).position(|window| window == b"\r\n") {
                break end;
            }
            if self.more().await == 0 {
                return Err(());
            }
        };
        let size = usize::from_str_radix(std::str::from_utf8(&self.read[..line]).unwrap().trim(), 16).unwrap();
        while self.read.len() < line + 2 + size + 2 {
            if self.more().await == 0 {
                return Err(());
            }
        }
        let chunk = String::from_utf8(self.read[line + 2..line + 2 + size].to_vec()).unwrap();
        self.read.drain(..line + 2 + size + 2);
        Ok((size > 0).then_some(chunk))
    }

    pub async fn reply(&mut self) -> Reply {
        self.reply_to("GET").await
    }

    pub async fn reply_to(&mut self, method: &str) -> Reply {
        let head = soon(self.head()).await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = String::new();
        if method == "HEAD" || status == 204 {
        } else if head.contains("\nTransfer-Encoding: chunked") {
            while let Some(chunk) = soon(self.chunk()).await.expect("a whole answer") {
                body += &chunk;
            }
        } else if let Some(length) = field(&head, "Content-Length") {
            let length: usize = length.parse().unwrap();
            while self.read.len() < length {
                assert!(soon(self.more()).await > 0, "a whole answer");
            }
            let rest = self.read.split_off(length.min(self.read.len()));
            body = String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
        } else {
            while soon(self.more()).await > 0 {}
            body = String::from_utf8(std::mem::take(&mut self.read)).unwrap();
        }
        Reply { status, head, body }
    }

    /// Whether the server closed the connection, with nothing more in it.
    pub async fn is_closed(&mut self) -> bool {
        self.read.is_empty() && soon(self.more()).await == 0
    }

    /// Reads on; 0 at the end, a reset counts as one.
    async fn more(&mut self) -> usize {
        self.stream.read_buf(&mut self.read).await.unwrap_or(0)
    }
}

impl Reply {
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}
