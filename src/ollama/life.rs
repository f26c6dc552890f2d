//! Whether the server still is the process that it was.
//!
//! A request whose connection breaks off may have ended the server, and would end the next one too. So the server is asked
//! whether it lives before anything else is sent there. One that a supervisor started again at once answers as well; the
//! idle connection by which the server is followed ([`watching`](super::watching)) has ended with the old process.

use std::io;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use socket2::SockRef;
use tokio::net::TcpStream;

/// The state of the server's process, as far as it is known. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Life(Arc<Inner>);

/// An idle connection to the process that is there now.
#[derive(Debug)]
pub(super) struct Witness(Arc<TcpStream>);

#[derive(Debug, Default)]
struct Inner {
    witness: Mutex<Option<Arc<TcpStream>>>,
    /// Whether a connection broke off since it last answered.
    doubted: AtomicBool,
    asking: tokio::sync::Mutex<()>,
    /// How often it was asked.
    asked: AtomicU64,
}

// === impl Life ===

impl Life {
    /// This idle connection ends with the process that is there now.
    pub(super) fn follow(&self, connection: Option<Arc<TcpStream>>) {
        *self.0.witness.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    /// A witness that tells later whether the process that is there now has ended.
    pub(super) fn witness(&self) -> Option<Witness> {
        self.0.witness.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Witness)
    }

    /// A connection broke off.
    pub(super) fn doubt(&self) {
        self.0.doubted.store(true, Ordering::Release);
    }

    /// Whether one did since the server last answered.
    pub(super) fn is_doubted(&self) -> bool {
        self.0.doubted.load(Ordering::Acquire)
    }

    /// Whether the server lives, by `ask`ing it if that is in doubt. All that wait here share one answer.
    pub(super) async fn is_there(&self, ask: impl Future<Output = bool>) -> bool {
        let asked = self.0.asked.load(Ordering::Acquire);
        let _asking = self.0.asking.lock().await;
        if !self.is_doubted() {
            return true;
        }
        if self.0.asked.load(Ordering::Acquire) != asked {
            return false;
        }
        let lives = ask.await;
        if lives {
            self.0.doubted.store(false, Ordering::Release);
        }
        self.0.asked.fetch_add(1, Ordering::Release);
        lives
    }
}

// === impl Witness ===

impl Witness {
    /// Whether the process has ended. Asked of the kernel, since the runtime may not have heard of it yet.
    pub(super) fn has_ended(&self) -> bool {
        match SockRef::from(&*self.0).peek(&mut [MaybeUninit::uninit(); 1]) {
            Ok(read) => read == 0,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_process_has_ended_when_its_connections_have() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let life = Life::default();
        assert!(life.witness().is_none());
        life.follow(Some(Arc::new(client)));
        let witness = life.witness().unwrap();
        assert!(!witness.has_ended());
        drop(server);
        assert!(witness.has_ended());
    }

    #[tokio::test]
    async fn while_it_is_in_doubt_it_is_asked_once_for_all_that_wait() {
        let life = Life::default();
        assert!(life.is_there(async { panic!("nothing is in doubt") }).await);
        life.doubt();
        let asks = AtomicU64::new(0);
        let ask = |lives: bool| {
            let asks = &asks;
            async move {
                asks.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                lives
            }
        };
        let (one, two) = tokio::join!(life.is_there(ask(false)), life.is_there(ask(false)));
        assert!(!one && !two && life.is_doubted());
        let (one, two) = tokio::join!(life.is_there(ask(true)), life.is_there(ask(true)));
        assert!(one && two && !life.is_doubted());
        assert_eq!(asks.load(Ordering::Relaxed), 2);
    }
}
