//! The connections that are served at once: how many, and who gives way where there are too many.
//!
//! A connection costs a file descriptor and some memory whether anything is asked on it or not, and it costs nothing to
//! open. So where all places are taken, the one that has been without a request for the longest time is closed: it may have
//! begun a head and never end it. One whose request is being answered keeps its place; if all have one, the next waits.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout};

/// After `accept` failed, for want of file descriptors mostly, or while all have a request: until it is looked again.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections that are served. Dropping it ends them.
#[derive(Debug)]
pub(crate) struct Connections {
    tasks: JoinSet<()>,
    open: HashMap<Id, (Activity, AbortHandle)>,
    most: usize,
    /// The instant that the times of [`Activity`] count from.
    began: Instant,
    /// The listener that is asked first.
    first: usize,
    /// Whether `accept` failed the last time.
    failing: bool,
}

/// The activity of a connection. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Activity(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    began: Instant,
    /// Requests that are being answered.
    requests: AtomicUsize,
    /// Since when there is none, in milliseconds.
    idle_since: AtomicU64,
}

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy(Arc<Inner>);

// === impl Connections ===

impl Connections {
    /// None yet, and never more than `most`, or than half of the files that the process may have open: a request takes
    /// another one where its server is.
    pub(crate) fn new(most: usize) -> Self {
        let files = getrlimit(Resource::Nofile)
            .current
            .map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
        Self {
            tasks: JoinSet::new(),
            open: HashMap::new(),
            most: most.min(files / 2).max(1),
            began: Instant::now(),
            first: 0,
            failing: false,
        }
    }

    /// How many there may be.
    pub(crate) const fn most(&self) -> usize {
        self.most
    }

    /// The next connection, once there is a place for it.
    pub(crate) async fn accept(&mut self, listeners: &[TcpListener]) -> (TcpStream, SocketAddr) {
        let accepted = loop {
            tokio::select! {
                Some(ended) = self.tasks.join_next_with_id(), if !self.tasks.is_empty() => self.ended(ended),
                accepted = any(listeners, self.first) => match accepted {
                    Ok(accepted) => break accepted,
                    Err(error) => self.failed(&error).await,
                }
            }
        };
        self.first = self.first.wrapping_add(1);
        self.failing = false;
        while self.tasks.len() >= self.most {
            self.close_idlest();
            if let Ok(Some(ended)) = timeout(PAUSE, self.tasks.join_next_with_id()).await {
                self.ended(ended);
            }
        }
        accepted
    }

    /// Serves one more.
    pub(crate) fn serve<F>(&mut self, connection: impl FnOnce(Activity) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let activity = Activity::new(self.began);
        let task = self.tasks.spawn(connection(activity.clone()));
        self.open.insert(task.id(), (activity, task));
    }

    /// Waits until all are over.
    pub(crate) async fn finish(&mut self) {
        while let Some(ended) = self.tasks.join_next_with_id().await {
            self.ended(ended);
        }
    }

    /// Ends those that are not over, and says how many there were.
    pub(crate) async fn shutdown(&mut self) -> usize {
        let left = self.tasks.len();
        self.tasks.shutdown().await;
        left
    }

    fn ended(&mut self, ended: Result<(Id, ()), JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!(%error, "a connection's task panicked; this is a bug");
                }
                error.id()
            }
        };
        self.open.remove(&id);
    }

    /// Says so once, and makes room if files are what is missing.
    async fn failed(&mut self, error: &io::Error) {
        let starved =
            [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        if !std::mem::replace(&mut self.failing, true) {
            let advice = if starved { "; `ollana doctor` says how many files may be open" } else { "" };
            tracing::warn!(%error, open = self.tasks.len(), "connections cannot be accepted at the moment{advice}");
        }
        if starved {
            self.close_idlest();
        }
        tokio::time::sleep(PAUSE).await;
    }

    fn close_idlest(&self) {
        let idle = self.open.values().filter(|(_, task)| !task.is_finished());
        let idlest =
            idle.filter_map(|(activity, task)| Some((activity.idle_since()?, task))).min_by_key(|(since, _)| *since);
        if let Some((_, task)) = idlest {
            tracing::debug!(open = self.tasks.len(), "the connection that was idle for the longest time gives way");
            task.abort();
        }
    }
}

/// The next connection at any of them. They are asked in turn, so that none keeps another from being heard.
async fn any(listeners: &[TcpListener], first: usize) -> io::Result<(TcpStream, SocketAddr)> {
    std::future::poll_fn(|cx| {
        let (behind, before) = listeners.split_at(first.checked_rem(listeners.len()).unwrap_or_default());
        for listener in before.iter().chain(behind) {
            if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

// === impl Activity ===

impl Activity {
    fn new(began: Instant) -> Self {
        let activity = Inner { began, requests: AtomicUsize::new(0), idle_since: AtomicU64::new(0) };
        activity.rests();
        Self(Arc::new(activity))
    }

    /// A request begins to be answered.
    pub(crate) fn begin(&self) -> Busy {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        Busy(self.0.clone())
    }

    fn idle_since(&self) -> Option<u64> {
        let idle = self.0.requests.load(Ordering::Relaxed) == 0;
        idle.then(|| self.0.idle_since.load(Ordering::Relaxed))
    }
}

impl Inner {
    fn rests(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.idle_since.store(now, Ordering::Relaxed);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.rests();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}
