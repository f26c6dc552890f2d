//! Following an Ollama as it comes, goes and changes.
//!
//! Ollama writes a line in its log for every request, so this asks rarely. That it stops is seen at once and without a
//! request, by a connection that says nothing (the **canary**): the kernel closes it with the process. That it starts is
//! seen by trying to connect. Only its models are asked for, now and again and when something gives a reason to. One
//! that hangs is seen by those questions; one that loads a model answers them as ever.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::{State, listing};
use crate::exchange::ExchangeError;

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

/// Follows the server until the task is dropped.
pub(super) async fn watch(client: Client, publish: watch::Sender<Arc<State>>, nudge: Arc<Notify>) {
    let mut watch = Watch { client, publish, nudge };
    if let Err(error) = watch.client.authority() {
        watch.gone(&Gone::Odd(error));
        // It will not change.
        return watch.publish.closed().await;
    }
    loop {
        let canary = watch.until_it_is_there().await;
        let problem = watch.while_it_is_there(canary).await;
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
    /// Waits until an Ollama answers, and publishes it.
    async fn until_it_is_there(&mut self) -> TcpStream {
        loop {
            let pause = match connect(self.client.target()).await {
                Err(_) => {
                    self.gone(&Gone::Nothing(self.client.target().clone()));
                    WHILE_DOWN
                }
                Ok(canary) => match self.ask(self.meet()).await {
                    Ok(state) => {
                        tracing::info!(
                            url = %self.client.target(), version = %state.version, models = state.models.len(),
                            "the local Ollama is there"
                        );
                        self.publish(state);
                        return canary;
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
    async fn while_it_is_there(&mut self, canary: TcpStream) -> Gone {
        let mut canary = Canary::new(canary);
        loop {
            let looked = Instant::now();
            tokio::select! {
                () = canary.sings_no_more() => match self.check(&mut canary).await {
                    Ok(()) => continue,
                    Err(gone) => return gone,
                },
                () = sleep(LOOK) => {}
                () = self.nudge.notified() => sleep(SOONEST.saturating_sub(looked.elapsed())).await,
            }
            match self.ask(self.look()).await {
                Ok(state) => self.publish(state),
                // Once more, with a question that needs no disk, before it is withdrawn from everybody.
                Err(problem) => {
                    tracing::debug!(%problem, "the local Ollama did not list its models");
                    if let Err(problem) = self.ask(listing::version(&self.client)).await {
                        return problem;
                    }
                }
            }
        }
    }

    /// The canary's connection was closed: by the end of the process, or only by a server that tidies up?
    async fn check(&mut self, canary: &mut Canary) -> Result<(), Gone> {
        let target = self.client.target();
        let next = connect(target).await.map_err(|_| Gone::Nothing(target.clone()))?;
        // A new process may have taken the port already: what it is and what it has is asked afresh.
        let state = self.ask(self.meet()).await?;
        self.publish(state);
        canary.replace(next);
        Ok(())
    }

    /// All there is to know.
    async fn meet(&self) -> Result<State, ExchangeError> {
        let mut state = State { version: listing::version(&self.client).await?, ..State::default() };
        self.list(&mut state).await?;
        Ok(state)
    }

    /// What may have changed.
    async fn look(&self) -> Result<State, ExchangeError> {
        let mut state = State::clone(&self.publish.borrow());
        self.list(&mut state).await?;
        Ok(state)
    }

    async fn list(&self, state: &mut State) -> Result<(), ExchangeError> {
        listing::tags(&self.client, state).await?;
        listing::loaded(&self.client, state).await
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
                tracing::info!(%problem, "the local Ollama is gone");
            } else {
                tracing::debug!(%problem, "no local Ollama");
            }
            *known = Arc::new(State { problem: Some(problem), ..State::default() });
            true
        });
    }
}

/// An idle connection whose end is the end of the server.
struct Canary {
    connection: Option<TcpStream>,
    since: Instant,
}

// === impl Canary ===

impl Canary {
    fn new(connection: TcpStream) -> Self {
        Self { connection: Some(connection), since: Instant::now() }
    }

    /// Comes back when the connection has ended.
    async fn sings_no_more(&mut self) {
        match &mut self.connection {
            // Nothing was asked, so nothing comes; if something does, it is an odd server's farewell.
            Some(connection) => drop(connection.read(&mut [0; 64]).await),
            None => std::future::pending().await,
        }
    }

    fn replace(&mut self, next: TcpStream) {
        self.connection = (self.since.elapsed() > SHORT_LIFE).then_some(next);
        self.since = Instant::now();
    }
}
