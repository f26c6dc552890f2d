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

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::{State, listing, meet};
use crate::exchange::{ExchangeError, ServerKind};

/// Between two attempts to connect while there is none: well below the 3 s in which a start must show.
const WHILE_DOWN: Duration = Duration::from_millis(500);
/// Between two attempts where something answers that is no healthy Ollama: each of them is in somebody's log.
const WHILE_ODD: Duration = Duration::from_secs(2);
/// Between two looks at the models. Whoever pulls one by another way than ours waits so long until the mesh sees it.
const LOOK: Duration = Duration::from_secs(5);
/// Between two looks however many reasons there are.
const SOONEST: Duration = Duration::from_millis(300);
/// How long a question may take. Twice this after [`LOOK`] a hanging Ollama is withdrawn: long enough for one whose
/// machine reads a model of many GB from the same disk, short enough that nobody waits for it all day.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a handshake may take before nobody counts as being there.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// A canary that a server closed sooner than this is closed by its time-outs: no use in opening one after the other.
const SHORT_LIFE: Duration = Duration::from_secs(2);
/// Between two knocks: within this a server that is gone is withdrawn.
const KNOCK: Duration = Duration::from_millis(500);

/// Follows the server until the task is dropped.
pub(super) async fn watch(client: Client, named: bool, publish: watch::Sender<Arc<State>>, nudge: Arc<Notify>) {
    let mut watch = Watch { client, named, publish, nudge };
    if let Err(error) = watch.client.authority() {
        watch.gone(&Gone::Odd(error));
        // It will not change.
        return watch.publish.closed().await;
    }
    loop {
        watch.until_it_is_there().await;
        let problem = watch.while_it_is_there().await;
        watch.gone(&problem);
    }
}

/// A connection to the server at `url`, which says nothing.
pub(super) async fn connect(url: &Uri) -> io::Result<TcpStream> {
    let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let port = url.port_u16().unwrap_or(80);
    timeout(HANDSHAKE, TcpStream::connect((host, port))).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

struct Watch {
    client: Client,
    /// Whether somebody named the server, and not only the place where an Ollama would be.
    named: bool,
    publish: watch::Sender<Arc<State>>,
    nudge: Arc<Notify>,
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

// === impl Watch ===

impl Watch {
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
                    Ok(state) => {
                        tracing::info!(
                            url = %self.client.target(), api = %state.kind, version = %state.version,
                            server = state.server, models = state.models.len(), "the local server is there"
                        );
                        return self.publish(state);
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
            let looked = Instant::now();
            tokio::select! {
                () = canary.sings_no_more() => match self.check(canary).await {
                    Ok(next) => {
                        canary = next;
                        continue;
                    }
                    Err(gone) => return gone,
                },
                () = sleep(LOOK) => {}
                () = self.nudge.notified() => sleep(SOONEST.saturating_sub(looked.elapsed())).await,
            }
            let kind = self.publish.borrow().kind;
            match self.ask(self.look()).await {
                Ok(state) => self.publish(state),
                // Once more before it is withdrawn from everybody.
                Err(problem) => {
                    tracing::debug!(%problem, "the local server did not list its models");
                    match self.ask(self.still_there()).await {
                        Ok(state) => self.publish(state),
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
            true => Some(connect(target).await.map_err(|_| Gone::Nothing(target.clone()))?),
            false => None,
        };
        Ok(Canary { connection, target: target.clone(), since: Instant::now() })
    }

    /// The canary's connection was closed: by the end of the process, or only by a server that tidies up?
    async fn check(&mut self, canary: Canary) -> Result<Canary, Gone> {
        // Opened before it is asked who is there, so that it is the same process, or an older one and closed again.
        let next = self.canary().await?;
        // A new process may have taken the port already: what it is and what it has is asked afresh.
        let state = self.ask(self.meet()).await?;
        let another = state.kind != self.publish.borrow().kind;
        self.publish(state);
        if another { self.canary().await } else { Ok(next.after(&canary)) }
    }

    /// All there is to know.
    async fn meet(&self) -> Result<State, ExchangeError> {
        let mut state = meet::meet(&self.client, self.named).await?;
        if state.kind == ServerKind::Ollama {
            listing::refresh(&self.client, &mut state).await?;
        }
        Ok(state)
    }

    /// What may have changed. Without a canary, a server may have become another since the last look; and an Ollama has
    /// what the others are asked for.
    async fn look(&self) -> Result<State, ExchangeError> {
        let mut state = State::clone(&self.publish.borrow());
        if state.kind != ServerKind::Ollama {
            return self.meet().await;
        }
        listing::refresh(&self.client, &mut state).await?;
        Ok(state)
    }

    /// What is known of it already, if it answers a question that needs no disk; another server is met anew.
    async fn still_there(&self) -> Result<State, ExchangeError> {
        let known = State::clone(&self.publish.borrow());
        match known.kind {
            ServerKind::Ollama => match meet::ollama_version(&meet::greet(&self.client).await?.1) {
                Some(_) => Ok(known),
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

    fn publish(&self, state: State) {
        let state = State { healthy: true, problem: None, ..state };
        self.publish.send_if_modified(|known| {
            let changed = **known != state;
            if changed {
                *known = Arc::new(state);
            }
            changed
        });
    }

    fn gone(&self, problem: &Gone) {
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
    connection: Option<TcpStream>,
    target: Uri,
    since: Instant,
}

// === impl Canary ===

impl Canary {
    /// Comes back when the connection has ended, or nobody opens.
    async fn sings_no_more(&mut self) {
        match &mut self.connection {
            // Nothing was asked, so nothing comes; if something does, it is an odd server's farewell.
            Some(connection) => drop(connection.read(&mut [0; 64]).await),
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
