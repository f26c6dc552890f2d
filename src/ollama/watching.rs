//! Following a server as it comes, goes and changes.
//!
//! Ollama writes a line in its log for every request, so this asks rarely. That it stops is seen at once and without a
//! request, by a connection that says nothing (the **canary**): the kernel closes it with the process. That it starts is
//! seen by trying to connect. Only its models are asked for, now and again and when something gives a reason to. One
//! that hangs is seen by those questions; one that loads a model answers them as ever.
//!
//! Other servers than Ollama have a thread for each connection (llama-server some eight of them, which close after 5 s),
//! or one thread in all, and a canary would sit on it. There a **knock**, a connection that is closed as soon as it is
//! open, says that the server is still there.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Uri;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::memory::Fits;
use super::speeds::Speeds;
use super::{Memory, Resident, State, listing, meet};
use crate::exchange::{ExchangeError, ServerKind};

/// Between two attempts to connect while there is none: well below the 3 s in which a start must show.
const WHILE_DOWN: Duration = Duration::from_millis(500);
/// Between two attempts where something answers that is no healthy Ollama: each of them is in somebody's log.
const WHILE_ODD: Duration = Duration::from_secs(2);
/// How long a question may take. Twice this after [`Cadence::look`] a hanging Ollama is withdrawn: long enough for one whose
/// machine reads a model of many GB from the same disk, short enough that nobody waits for it all day.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How long a handshake may take before nobody counts as being there.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// A canary that a server closed sooner than this is closed by its time-outs: no use in opening one after the other.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Between two knocks: within this a server that is gone is withdrawn.
const KNOCK: Duration = Duration::from_millis(500);

/// The rhythm in which a server is looked at. The default is that for a real one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    /// Between two looks at the models: 5 s. Whoever pulls one by another way than ours waits so long until the mesh
    /// sees it.
    pub look: Duration,
    /// Between a reason for a look and that look, however many there are: 300 ms.
    pub soonest: Duration,
    /// Between two looks at the answers that run: 1 s. What is shorter than a tenth of it counts as nothing when it is
    /// learned how many run at once.
    pub beat: Duration,
}

/// What is followed, and who is told.
pub(super) struct Watch {
    pub(super) client: Client,
    /// Whether somebody named the server, and not only the place where an Ollama would be.
    pub(super) named: bool,
    pub(super) cadence: Cadence,
    pub(super) publish: watch::Sender<Arc<State>>,
    pub(super) memory: watch::Sender<Arc<Memory>>,
    pub(super) looks: watch::Sender<Instant>,
    pub(super) fits: Fits,
    pub(super) speeds: Speeds,
    pub(super) nudge: Arc<Notify>,
}

/// What a look has seen.
struct Seen {
    /// When it began to look at the models, if it did.
    began: Option<Instant>,
    state: State,
    /// What an Ollama says of its memory; nothing if it was not asked.
    memory: Option<BTreeMap<String, Resident>>,
}

/// A connection to the server at `url`, which says nothing.
pub(super) async fn connect(url: &Uri) -> io::Result<TcpStream> {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(80);
    timeout(HANDSHAKE, TcpStream::connect((host, port))).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Why a server that was there no longer is.
#[derive(Debug, thiserror::Error)]
enum Gone {
    #[error("nothing answers at {0}")]
    Nothing(Uri),
    #[error("what is at {0} takes connections but does not answer")]
    Hangs(Uri),
    #[error(transparent)]
    Odd(#[from] ExchangeError),
}

// === impl Cadence ===

impl Cadence {
    /// That for a server whose time goes so many times faster.
    #[must_use]
    pub fn faster(self, times: f64) -> Self {
        let faster = |time: Duration| time.div_f64(times.max(1.0));
        Self { look: faster(self.look), soonest: faster(self.soonest), beat: faster(self.beat) }
    }
}

impl Default for Cadence {
    fn default() -> Self {
        Self { look: Duration::from_secs(5), soonest: Duration::from_millis(300), beat: Duration::from_secs(1) }
    }
}

// === impl Watch ===

impl Watch {
    /// Follows the server until the task is dropped.
    pub(super) async fn run(mut self) {
        if let Err(error) = self.client.authority() {
            self.gone(&Gone::Odd(error));
            // It will not change.
            return self.publish.closed().await;
        }
        loop {
            self.until_it_is_there().await;
            let problem = self.while_it_is_there().await;
            self.gone(&problem);
        }
    }

    /// Waits until a server answers, and publishes it.
    async fn until_it_is_there(&mut self) {
        loop {
            // Closed at once: a server with one thread would wait on it for a request.
            let pause = match connect(self.client.target()).await.map(drop) {
                Err(_) => {
                    self.gone(&Gone::Nothing(self.client.target().clone()));
                    WHILE_DOWN
                }
                Ok(()) => match self.ask(self.meet()).await {
                    Ok(seen) => {
                        let state = &seen.state;
                        tracing::info!(
                            url = %self.client.target(), api = %state.kind, version = %state.version,
                            server = state.server, models = state.models.len(), "the local server is there"
                        );
                        return self.publish(seen);
                    }
                    Err(problem) => {
                        self.gone(&problem);
                        WHILE_ODD
                    }
                },
            };
            sleep(pause).await;
        }
    }

    /// Keeps what is published true, until the server is gone; then why.
    async fn while_it_is_there(&mut self) -> Gone {
        let mut canary = match self.canary().await {
            Ok(canary) => canary,
            Err(gone) => return gone,
        };
        loop {
            self.client.life().follow(canary.connection.clone());
            tokio::select! {
                () = canary.sings_no_more() => match self.check(canary).await {
                    Ok(next) => {
                        canary = next;
                        continue;
                    }
                    Err(gone) => return gone,
                },
                () = sleep(self.cadence.look) => {}
                // What gives a reason takes a moment to show.
                () = self.nudge.notified() => sleep(self.cadence.soonest).await,
            }
            let kind = self.publish.borrow().kind;
            match self.ask(self.look()).await {
                Ok(seen) => self.publish(seen),
                // Once more before it is withdrawn from everybody.
                Err(problem) => {
                    tracing::debug!(%problem, "the local server did not list its models");
                    match self.ask(self.still_there()).await {
                        Ok(seen) => self.publish(seen),
                        Err(problem) => return problem,
                    }
                }
            }
            if self.publish.borrow().kind != kind {
                canary = match self.canary().await {
                    Ok(canary) => canary,
                    Err(gone) => return gone,
                };
            }
        }
    }

    /// Something that ends with the server that is there now.
    async fn canary(&self) -> Result<Canary, Gone> {
        let target = self.client.target();
        let connection = match self.publish.borrow().kind {
            ServerKind::Ollama => true,
            ServerKind::OpenAi | ServerKind::Grpc => false,
        };
        let connection = match connection {
            true => Some(Arc::new(connect(target).await.map_err(|_| Gone::Nothing(target.clone()))?)),
            false => None,
        };
        Ok(Canary { connection, target: target.clone(), since: Instant::now() })
    }

    /// The canary's connection was closed: by the end of the process, or only by a server that tidies up?
    async fn check(&mut self, canary: Canary) -> Result<Canary, Gone> {
        // Opened before it is asked who is there, so that it is the same process, or an older one and closed again.
        let next = self.canary().await?;
        // A new process may have taken the port already: what it is and what it has is asked afresh.
        let seen = self.ask(self.meet()).await?;
        let another = seen.state.kind != self.publish.borrow().kind;
        self.publish(seen);
        if another { self.canary().await } else { Ok(next.after(&canary)) }
    }

    /// All there is to know.
    async fn meet(&self) -> Result<Seen, ExchangeError> {
        let began = Some(Instant::now());
        let state = meet::meet(&self.client, self.named).await?;
        if state.kind != ServerKind::Ollama {
            return Ok(Seen { began, state, memory: None });
        }
        self.list(state).await
    }

    /// What may have changed. Without a canary, a server may have become another since the last look; and an Ollama has
    /// what the others are asked for.
    async fn look(&self) -> Result<Seen, ExchangeError> {
        let state = State::clone(&self.publish.borrow());
        if state.kind != ServerKind::Ollama {
            return self.meet().await;
        }
        self.list(state).await
    }

    async fn list(&self, mut state: State) -> Result<Seen, ExchangeError> {
        let began = Some(Instant::now());
        let memory = listing::refresh(&self.client, &mut state).await?;
        Ok(Seen { began, state, memory: Some(memory) })
    }

    /// What is known of it already, if it answers a question that needs no disk; another server is met anew.
    async fn still_there(&self) -> Result<Seen, ExchangeError> {
        let state = State::clone(&self.publish.borrow());
        match state.kind {
            ServerKind::Ollama => match meet::ollama_version(&meet::greet(&self.client).await?.1) {
                Some(_) => Ok(Seen { began: None, state, memory: None }),
                None => self.meet().await,
            },
            ServerKind::OpenAi | ServerKind::Grpc => self.meet().await,
        }
    }

    async fn ask<T>(&self, question: impl Future<Output = Result<T, ExchangeError>>) -> Result<T, Gone> {
        match timeout(ANSWER, question).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Gone::Hangs(self.client.target().clone())),
        }
    }

    fn publish(&mut self, seen: Seen) {
        if let Some(models) = seen.memory {
            let fit = self.fits.look(&models, SystemTime::now());
            self.remember(|memory| Memory { models, seen: fit, told: memory.told });
        }
        let state = State { healthy: true, problem: None, ..seen.state };
        self.speeds.loaded(state.loaded_since(&self.publish.borrow()));
        self.publish.send_if_modified(|known| {
            let changed = **known != state;
            if changed {
                *known = Arc::new(state);
            }
            changed
        });
        if let Some(began) = seen.began {
            self.looks.send_replace(began);
        }
    }

    fn remember(&self, change: impl FnOnce(&Memory) -> Memory) {
        self.memory.send_if_modified(|known| {
            let memory = change(known);
            let changed = memory != **known;
            if changed {
                *known = Arc::new(memory);
            }
            changed
        });
    }

    fn gone(&mut self, problem: &Gone) {
        self.fits = Fits::default();
        self.client.life().follow(None);
        self.remember(|_| Memory::default());
        let problem = problem.to_string();
        self.publish.send_if_modified(|known| {
            if !known.healthy && known.problem.as_ref() == Some(&problem) {
                return false;
            }
            if known.healthy {
                tracing::info!(%problem, "the local server is gone");
            } else {
                tracing::debug!(%problem, "no local server");
            }
            // Its kind stays: whoever asks for what it had is told in the words of its API.
            *known = Arc::new(State { problem: Some(problem), kind: known.kind, ..State::default() });
            true
        });
    }
}

/// An idle connection whose end is the end of the server; without one, knocks.
struct Canary {
    connection: Option<Arc<TcpStream>>,
    target: Uri,
    since: Instant,
}

// === impl Canary ===

impl Canary {
    /// Comes back when the connection has ended, or nobody opens.
    async fn sings_no_more(&mut self) {
        match &mut self.connection {
            // Nothing was asked, so nothing comes; if something does, it is an odd server's farewell.
            Some(connection) => loop {
                let _ = connection.readable().await;
                match connection.try_read(&mut [0; 64]) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    _ => return,
                }
            },
            None => loop {
                sleep(KNOCK).await;
                if connect(&self.target).await.is_err() {
                    return;
                }
            },
        }
    }

    /// This one, in place of one that has ended.
    fn after(self, last: &Self) -> Self {
        let short = last.connection.is_some() && last.since.elapsed() <= SHORT_LIFE;
        Self { connection: self.connection.filter(|_| !short), ..self }
    }
}
