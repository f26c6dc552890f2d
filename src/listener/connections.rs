//! The connections that are served at once: how many, and who gives way where there are too many.
//!
//! A connection costs a file descriptor and some memory whether anything is asked on it or not, and it costs nothing to
//! open. So where all places are taken, the one that has been without a request for the longest time is closed: it may have
//! begun a head and never end it. One whose request is being answered keeps its place; if all have one, the next waits.
//!
//! Another machine's connection (a guest's) closes none of this machine's applications': it takes the place of an idle
//! guest, or is refused. One that is refused for any reason closes nothing.

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
    open: HashMap<Id, Open>,
    most: usize,
    /// The instant that the times of [`Activity`] count from.
    began: Instant,
    /// The listener that is asked first.
    first: usize,
    /// Whether `accept` failed the last time.
    failing: bool,
}

/// A connection that is served.
#[derive(Debug)]
struct Open {
    guest: bool,
    activity: Activity,
    task: AbortHandle,
}

/// Whether a connection is served, and for whom.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission<S> {
    /// It is closed at once.
    Refused,
    /// For a program on this machine.
    Local,
    /// For another machine, on this seat.
    Guest(S),
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

    /// The next connection that `admit` admits, once there is a place for it; the seat of a guest's.
    pub(crate) async fn accept<S>(
        &mut self,
        listeners: &[TcpListener],
        admit: impl Fn(SocketAddr) -> Admission<S>,
    ) -> (TcpStream, SocketAddr, Option<S>) {
        loop {
            let (stream, from) = self.next(listeners).await;
            match admit(from) {
                Admission::Refused => {}
                Admission::Local => {
                    while self.tasks.len() >= self.most {
                        self.close_idlest(false);
                        self.one_ends().await;
                    }
                    return (stream, from, None);
                }
                Admission::Guest(seat) => {
                    // Nobody else waits for a guest, so it is refused where no other guest's place becomes free at once.
                    if self.tasks.len() >= self.most && self.close_idlest(true) {
                        self.one_ends().await;
                    }
                    if self.tasks.len() < self.most {
                        return (stream, from, Some(seat));
                    }
                    tracing::debug!(%from, "all connections are taken");
                }
            }
        }
    }

    async fn next(&mut self, listeners: &[TcpListener]) -> (TcpStream, SocketAddr) {
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
        accepted
    }

    /// Waits a little for a connection to end.
    async fn one_ends(&mut self) {
        if let Ok(Some(ended)) = timeout(PAUSE, self.tasks.join_next_with_id()).await {
            self.ended(ended);
        }
    }

    /// Serves one more, of a guest or of a program on this machine.
    pub(crate) fn serve<F>(&mut self, guest: bool, connection: impl FnOnce(Activity) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let activity = Activity::new(self.began);
        let task = self.tasks.spawn(connection(activity.clone()));
        self.open.insert(task.id(), Open { guest, activity, task });
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
            // It is not known for whom. Where there are guests, one of them gives way.
            if !self.close_idlest(true) {
                self.close_idlest(false);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }

    /// Closes the connection that has been idle for the longest time, `of_guests` or of all; whether there was one.
    fn close_idlest(&self, of_guests: bool) -> bool {
        let open = self.open.values().filter(|open| !open.task.is_finished() && (open.guest || !of_guests));
        let idle = open.filter_map(|open| Some((open.activity.idle_since()?, &open.task)));
        let idlest = idle.min_by_key(|(since, _)| *since);
        if let Some((_, task)) = idlest {
            tracing::debug!(open = self.tasks.len(), "the connection that was idle for the longest time gives way");
            task.abort();
        }
        idlest.is_some()
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

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read as _};
    use std::net::TcpStream as Client;

    use super::*;

    /// Connections that rest, with what stands for the class of each: what its `admit` says.
    struct Rig {
        connections: Connections,
        listener: [TcpListener; 1],
    }

    impl Rig {
        async fn new(most: usize) -> Self {
            let listener = [TcpListener::bind("127.0.0.1:0").await.unwrap()];
            Self { connections: Connections::new(most), listener }
        }

        fn connect(&self) -> Client {
            let client = Client::connect(self.listener[0].local_addr().unwrap()).unwrap();
            client.set_nonblocking(true).unwrap();
            client
        }

        /// One more that is admitted so and then asks nothing.
        async fn comes(&mut self, admission: impl Fn() -> Admission<()>) -> Client {
            let client = self.connect();
            let accepted = self.connections.accept(&self.listener, |_| admission());
            if let Ok((stream, _, seat)) = timeout(Duration::from_millis(300), accepted).await {
                self.connections.serve(seat.is_some(), |_| async move {
                    let _stream = stream;
                    std::future::pending().await
                });
            }
            // In other milliseconds than the next.
            tokio::time::sleep(Duration::from_millis(2)).await;
            client
        }
    }

    fn is_open(mut client: &Client) -> bool {
        matches!(client.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    #[tokio::test]
    async fn a_refused_connection_closes_no_other() {
        let mut rig = Rig::new(3).await;
        let mut open = Vec::new();
        for _ in 0..3 {
            open.push(rig.comes(|| Admission::Local).await);
        }
        for _ in 0..5 {
            assert!(!is_open(&rig.comes(|| Admission::Refused).await));
        }
        assert!(open.iter().all(is_open));
        open.push(rig.comes(|| Admission::Local).await);
        assert_eq!(open.iter().map(is_open).collect::<Vec<_>>(), [false, true, true, true], "the idlest gives way");
    }

    #[tokio::test]
    async fn a_guest_takes_no_place_of_this_machines_programs() {
        let mut rig = Rig::new(3).await;
        let own = [rig.comes(|| Admission::Local).await, rig.comes(|| Admission::Local).await];
        let first = rig.comes(|| Admission::Guest(())).await;
        let second = rig.comes(|| Admission::Guest(())).await;
        assert!(own.iter().all(is_open));
        assert!(!is_open(&first) && is_open(&second), "one guest gives way to another");
        let last = rig.comes(|| Admission::Local).await;
        assert!(is_open(&last) && !is_open(&own[0]), "the idlest of all");
        let third = rig.comes(|| Admission::Guest(())).await;
        assert!(is_open(&third) && !is_open(&second));
        let mut own = Vec::new();
        for _ in 0..3 {
            own.push(rig.comes(|| Admission::Local).await);
        }
        assert!(!is_open(&rig.comes(|| Admission::Guest(())).await), "no guest is there that could give way");
        assert!(own.iter().all(is_open));
    }
}
