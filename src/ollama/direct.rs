//! Requests that the owner's own applications send straight to the server, counted where they can be seen.
//!
//! On Linux the kernel says of each connection to the server's port when data last passed in each direction. On the
//! server's side of it, a request that is newer than the last of the answers is waited for; an answer of which something
//! went out a moment ago, some time after its request, is being generated. A connection that is kept open and says nothing
//! is neither, and nor is a question that is answered at once (`/api/tags` of a program that shows models). Ours are known
//! by their ports ([`Ours`]).
//!
//! Only of a server on this machine; elsewhere, and where the kernel does not tell, the answer is that there are none.

#[cfg(target_os = "linux")]
pub(super) mod diag;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::Uri;
use tokio::sync::watch;

use super::State;
use super::here::is_own;
use super::speeds::Speeds;

/// Between two looks; a fraction of what a request to a model takes.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks where one of them takes longer than this part of it: then the machine has very many sockets.
const AT_MOST: u32 = 200;
/// An answer is still being generated if something of it went out so lately: a slow model says a word a second.
const LATELY: u32 = 1500;
/// An answer that begins and ends within this time after its request took no model.
const AT_ONCE: u32 = 50;

/// The ports of our own connections to the server. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Ours(Arc<Mutex<BTreeSet<u16>>>);

/// Keeps a port among ours.
#[derive(Debug)]
pub(super) struct Port {
    ours: Ours,
    port: u16,
}

/// The port of a server on this machine; nothing of one elsewhere.
pub(super) fn local_port(target: &Uri) -> Option<u16> {
    let host = target.host()?.trim_start_matches('[').trim_end_matches(']');
    let local = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(is_own);
    local.then(|| target.port_u16().unwrap_or(80))
}

/// Looks now and then while the server is there and somebody wants to know.
pub(super) async fn watch(
    target: Uri,
    ours: Ours,
    mut state: watch::Receiver<Arc<State>>,
    speeds: Speeds,
    publish: watch::Sender<u32>,
) {
    let tell = |count: u32| {
        speeds.direct(count);
        publish.send_if_modified(|known| std::mem::replace(known, count) != count);
    };
    loop {
        if state.wait_for(|state| state.healthy).await.is_err() {
            return std::future::pending().await;
        }
        // Each time that it comes: its address may be of this machine by now, or no longer.
        let Some(port) = local_port(&target) else {
            let _ = state.wait_for(|state| !state.healthy).await;
            continue;
        };
        let since = Instant::now();
        if publish.receiver_count() > 0 || !speeds.is_idle() {
            let ours = ours.clone();
            let found = tokio::task::spawn_blocking(move || busy(port, &ours)).await;
            match found.map_err(io::Error::other).and_then(|found| found) {
                Ok(count) => tell(count),
                Err(error) => {
                    tracing::debug!(%error, "requests sent straight to the local server cannot be seen");
                    tell(0);
                    return std::future::pending().await;
                }
            }
        }
        let pause = LOOK.max(since.elapsed() * AT_MOST);
        if tokio::time::timeout(pause, state.wait_for(|state| !state.healthy)).await.is_ok() {
            tell(0);
        }
    }
}

#[cfg(target_os = "linux")]
fn busy(port: u16, ours: &Ours) -> io::Result<u32> {
    let sockets = diag::sockets(port, diag::ESTABLISHED)?;
    let ours = ours.0.lock().unwrap_or_else(PoisonError::into_inner);
    let others = sockets.iter().filter(|socket| !ours.contains(&socket.peer_port));
    Ok(u32::try_from(others.filter(|socket| socket.passed.is_some_and(is_busy)).count()).unwrap_or(u32::MAX))
}

#[cfg(not(target_os = "linux"))]
fn busy(_: u16, _: &Ours) -> io::Result<u32> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn is_busy(passed: diag::Passed) -> bool {
    let diag::Passed { sent_ago, received_ago, received } = passed;
    let waits = received_ago < sent_ago;
    let answers = sent_ago <= LATELY && received_ago >= sent_ago.saturating_add(AT_ONCE);
    received > 0 && (waits || answers)
}

// === impl Ours ===

impl Ours {
    /// Counts a port as ours until what is returned is dropped.
    pub(super) fn add(&self, port: u16) -> Port {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(port);
        Port { ours: self.clone(), port }
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ours.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.port);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::thread::sleep;

    use super::*;

    /// Both ends of a connection to this listener.
    fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    fn ask(client: &mut TcpStream, server: &mut TcpStream) {
        client.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        server.read_exact(&mut [0; 18]).unwrap();
    }

    fn answer(client: &mut TcpStream, server: &mut TcpStream) {
        server.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    }

    #[test]
    fn connections_count_while_they_are_waited_on_and_not_while_they_are_kept() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let ours = Ours::default();
        let count = || busy(port, &ours).unwrap();
        let (mut client, mut server) = connection(&listener);
        let (_idle, _kept) = connection(&listener);
        assert_eq!(count(), 0, "nothing was asked");

        // Sleeps stand for what a server does; the kernel counts in milliseconds.
        sleep(Duration::from_millis(20));
        ask(&mut client, &mut server);
        sleep(Duration::from_millis(20));
        assert_eq!(count(), 1, "it waits for its answer");
        sleep(Duration::from_millis(100));
        answer(&mut client, &mut server);
        assert_eq!(count(), 1, "it has begun");
        let port_of_client = client.local_addr().unwrap().port();
        let kept = ours.add(port_of_client);
        assert_eq!(count(), 0, "it is ours");
        drop(kept);
        assert_eq!(count(), 1);
        sleep(Duration::from_millis(u64::from(LATELY) + 100));
        assert_eq!(count(), 0, "nothing has come for a while: the answer is over");

        ask(&mut client, &mut server);
        answer(&mut client, &mut server);
        assert_eq!(count(), 0, "answered at once");
        sleep(Duration::from_millis(20));
        ask(&mut client, &mut server);
        sleep(Duration::from_millis(20));
        assert_eq!(count(), 1);
        drop(client);
        assert_eq!(count(), 0, "it went away");
    }

    #[test]
    fn a_look_costs_little() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let _open: Vec<_> = (0..50).map(|_| connection(&listener)).collect();
        let since = Instant::now();
        for _ in 0..10 {
            busy(listener.local_addr().unwrap().port(), &Ours::default()).unwrap();
        }
        let one = since.elapsed() / 10;
        eprintln!("one look: {one:?}");
        assert!(one < Duration::from_millis(100), "{one:?}");
    }

    #[test]
    fn only_a_server_on_this_machine_is_looked_at() {
        for (url, port) in [
            ("http://127.0.0.1:11434", Some(11434)),
            ("http://localhost:5/prefix", Some(5)),
            ("http://[::1]:7", Some(7)),
            ("http://192.168.1.2:11434", None),
            ("http://ollama.example", None),
        ] {
            assert_eq!(local_port(&url.parse().unwrap()), port, "{url}");
        }
    }
}
