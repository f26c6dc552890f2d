//! Following a server as it comes, goes and changes.
//!
//! Ollama writes a line in its log for every request, so this asks rarely. That it stops is seen at once and without a
//! request, by a connection that says nothing (the **canary**): the kernel closes it with the process. That it starts is
//! seen by trying to connect. Only its models are asked for, now and again and when something gives a reason to. One
//! that hangs is seen by those questions; one that loads a model answers them as ever. A list that takes its time is
//! waited for as long as the server answers something easier, and what was known before holds meanwhile.
//!
//! Other servers than Ollama have a thread for each connection (llama-server some eight of them, which close after 5 s),
//! or one thread in all, and a canary would sit on it. There a **knock**, a connection that is closed as soon as it is
//! open, says that the server is still there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::Uri;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};

use super::client::Client;
use super::here::{Follow, Whereabouts};
use super::listing::{self, NoList};
use super::meet::{self, Met};
use super::memory::Fits;
use super::speeds::Speeds;
use super::trouble::Trouble;
use super::{Memory, Resident, State};
use crate::exchange::{ExchangeError, ServerKind};

/// Between two attempts to connect while there is none: well below the 3 s in which a start must show.
const WHILE_DOWN: Duration = Duration::from_millis(500);
/// Between two attempts where something answers that is no healthy Ollama: each of them is in somebody's log.
const WHILE_ODD: Duration = Duration::from_secs(2);
/// How long a question may take. Twice this after [`Cadence::look`] a hanging Ollama is withdrawn: long enough for one whose
/// machine reads a model of many GB from the same disk, short enough that nobody waits for it all day.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// How long a list may take in all, while the server answers what is easier.
const LONGEST: Duration = Duration::from_secs(60);
/// A list that takes longer is worth a word to the owner.
const SLOW: Duration = Duration::from_secs(2);
/// The flaw of such a list.
const IS_SLOW: &str = "takes more than 2 s to answer: what it said last is used meanwhile";
/// The flaw where the latest answer is of no use.
const IS_OLD: &str = "gives no list at the moment: what it said last is used";
/// Most flaws of one server that the log has; a list that changes may have others each time.
const MAX_TOLD: usize = 64;
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
    /// Where its address is, if it is asked only while that is this machine.
    pub(super) here: Option<Follow>,
    pub(super) cadence: Cadence,
    pub(super) publish: watch::Sender<Arc<State>>,
    pub(super) memory: watch::Sender<Arc<Memory>>,
    pub(super) looks: watch::Sender<Instant>,
    pub(super) fits: Fits,
    pub(super) speeds: Speeds,
    pub(super) nudge: Arc<Notify>,
    /// See [`Met::greeting`].
    pub(super) greeting: Option<String>,
    /// See [`Met::has_aliases`].
    pub(super) has_aliases: bool,
    /// The flaws of this server that are in the log.
    pub(super) told: BTreeSet<String>,
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
        if self.client.authority().is_err() {
            self.gone(Trouble::Address(self.client.target().clone()));
            // It will not change.
            return self.publish.closed().await;
        }
        loop {
            self.until_it_is_there().await;
            let problem = self.while_it_is_there().await;
            self.gone(problem);
        }
    }

    /// Waits until a server answers, and publishes it.
    async fn until_it_is_there(&mut self) {
        loop {
            if let Some(here) = &mut self.here
                && let Some(problem) = here.look().await.trouble(self.client.target())
            {
                let pause = here.pause();
                self.gone(problem);
                sleep(pause).await;
                continue;
            }
            // Closed at once: a server with one thread would wait on it for a request.
            let pause = match connect(self.client.target()).await.map(drop) {
                Err(_) => {
                    self.gone(Trouble::Nothing(self.client.target().clone()));
                    WHILE_DOWN
                }
                Ok(()) => match self.meet_with_patience().await {
                    Ok(seen) => {
                        let state = &seen.state;
                        tracing::info!(
                            url = %self.client.target(), api = %state.kind, version = %state.version,
                            server = state.server, models = state.models.len(), "the local server is there"
                        );
                        return self.publish(seen);
                    }
                    Err(problem) => {
                        self.gone(problem);
                        WHILE_ODD
                    }
                },
            };
            sleep(pause).await;
        }
    }

    /// Keeps what is published true, until the server is gone; then why.
    async fn while_it_is_there(&mut self) -> Trouble {
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
            if let Some(gone) = self.moved().await {
                return gone;
            }
            let kind = self.publish.borrow().kind;
            match self.look().await {
                Ok(seen) => self.publish(seen),
                // It was asked something easier already.
                Err(problem @ Trouble::Silent(_)) => return problem,
                // Once more before it is withdrawn from everybody.
                Err(problem) => {
                    tracing::debug!(%problem, "the local server did not list its models");
                    match self.still_there().await {
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

    /// Why it must not be asked any more: its address is another machine's by now. A name that is not resolved for a
    /// moment still stands for the server that answers.
    async fn moved(&mut self) -> Option<Trouble> {
        let found = self.here.as_mut()?.look().await;
        if found == Whereabouts::Elsewhere { found.trouble(self.client.target()) } else { None }
    }

    /// Something that ends with the server that is there now.
    async fn canary(&self) -> Result<Canary, Trouble> {
        let target = self.client.target();
        let connection = match self.publish.borrow().kind {
            ServerKind::Ollama => true,
            ServerKind::OpenAi | ServerKind::Grpc => false,
        };
        let connection = match connection {
            true => Some(Arc::new(connect(target).await.map_err(|_| Trouble::Nothing(target.clone()))?)),
            false => None,
        };
        Ok(Canary { connection, target: target.clone(), since: Instant::now() })
    }

    /// The canary's connection was closed: by the end of the process, or only by a server that tidies up?
    async fn check(&mut self, canary: Canary) -> Result<Canary, Trouble> {
        if let Some(gone) = self.moved().await {
            return Err(gone);
        }
        // Opened before it is asked who is there, so that it is the same process, or an older one and closed again.
        let next = self.canary().await?;
        // A new process may have taken the port already: what it is and what it has is asked afresh.
        let seen = self.meet().await?;
        let another = seen.state.kind != self.publish.borrow().kind;
        self.publish(seen);
        if another { self.canary().await } else { Ok(next.after(&canary)) }
    }

    /// All there is to know, of one that nobody uses yet: it has its time, and who looks is told meanwhile that it takes it.
    async fn meet_with_patience(&mut self) -> Result<Seen, Trouble> {
        let (client, named) = (self.client.clone(), self.named);
        let mut meeting = std::pin::pin!(meet::meet(&client, named));
        let met = match timeout(ANSWER, &mut meeting).await {
            Ok(met) => met,
            Err(_) => {
                self.gone(Trouble::Silent(client.target().clone()));
                meeting.await
            }
        };
        self.met(met?).await
    }

    /// The same of one that others use: it has to answer something in time.
    async fn meet(&mut self) -> Result<Seen, Trouble> {
        let (client, named) = (self.client.clone(), self.named);
        match self.patiently(meet::meet(&client, named)).await? {
            Some(met) => self.met(met?).await,
            None => Err(Trouble::Silent(client.target().clone())),
        }
    }

    async fn met(&mut self, met: Met) -> Result<Seen, Trouble> {
        let Met { state, greeting, has_aliases } = met;
        (self.greeting, self.has_aliases) = (greeting, has_aliases);
        let began = Some(Instant::now());
        match state.kind {
            ServerKind::Ollama => self.memory(began, state).await,
            ServerKind::OpenAi | ServerKind::Grpc => Ok(Seen { began, state, memory: None }),
        }
    }

    /// What may have changed. Without a canary, a server may have become another since the last look; and an Ollama has
    /// what the others are asked for.
    async fn look(&mut self) -> Result<Seen, Trouble> {
        let mut state = State::clone(&self.publish.borrow());
        let began = Some(Instant::now());
        match state.kind {
            ServerKind::Grpc => self.meet().await,
            ServerKind::OpenAi => {
                let greeted = self.patiently(meet::greet(&self.client, LONGEST)).await?;
                if greeted.and_then(Result::ok).and_then(|(_, said)| meet::ollama_version(&said)) != self.greeting {
                    return self.meet().await;
                }
                match self.patiently(listing::openai(&self.client, &mut state)).await?.unwrap_or(Err(NoList::Late)) {
                    Ok(()) => {
                        self.note_time(&mut state, listing::MODELS, began);
                        Ok(Seen { began, state, memory: None })
                    }
                    Err(none) => self.old_list(listing::MODELS, none).await,
                }
            }
            ServerKind::Ollama => {
                if self.has_aliases
                    && let Ok(Err(error)) = timeout(ANSWER, listing::aliases(&self.client, &mut state)).await
                {
                    return Err(self.trouble(&error));
                }
                let listed = self.patiently(listing::tags(&self.client, &mut state)).await?;
                if let Err(none) = listed.unwrap_or(Err(NoList::Late)) {
                    return self.old_list(listing::TAGS, none).await;
                }
                self.note_time(&mut state, listing::TAGS, began);
                self.memory(began, state).await
            }
        }
    }

    /// Asks which models are in memory. An Ollama that takes too long to say has those that it had.
    async fn memory(&self, began: Option<Instant>, mut state: State) -> Result<Seen, Trouble> {
        let never = !self.publish.borrow().healthy;
        let memory = match timeout(ANSWER, listing::loaded(&self.client, &mut state)).await {
            Ok(Ok(memory)) => memory,
            Ok(Err(error)) => return Err(self.trouble(&error)),
            Err(_) => {
                state.loaded_unknown |= never;
                state.flaws.add(listing::PS, IS_SLOW);
                None
            }
        };
        Ok(Seen { began, state, memory })
    }

    /// Takes note of how long a list took.
    fn note_time(&self, state: &mut State, path: &'static str, began: Option<Instant>) {
        state.flaws.take(path, IS_OLD);
        match began.is_some_and(|began| began.elapsed() > SLOW) {
            true => state.flaws.add(path, IS_SLOW),
            false => state.flaws.take(path, IS_SLOW),
        }
    }

    /// The last list holds, if the server has answered and that was of no use; one that says that there is no such
    /// list, or none for us, is met anew.
    async fn old_list(&mut self, path: &'static str, none: NoList) -> Result<Seen, Trouble> {
        match none {
            NoList::Unanswered(error) => Err(self.trouble(&error)),
            none if none.is_another() => self.meet().await,
            none => {
                tracing::debug!(path, %none, "the local server gives no list");
                let mut state = State::clone(&self.publish.borrow());
                state.flaws.add(path, IS_OLD);
                Ok(Seen { began: None, state, memory: None })
            }
        }
    }

    /// The state as it is known, if the server answers a question that needs no disk; one that answers another way is
    /// met anew.
    async fn still_there(&mut self) -> Result<Seen, Trouble> {
        let state = State::clone(&self.publish.borrow());
        let same = state.kind == ServerKind::Ollama && self.greeting().await? == self.greeting;
        match same {
            true => Ok(Seen { began: None, state, memory: None }),
            false => self.meet().await,
        }
    }

    /// How it answers the question for its version now.
    async fn greeting(&self) -> Result<Option<String>, Trouble> {
        match timeout(ANSWER, meet::greet(&self.client, ANSWER)).await {
            Ok(Ok((_, said))) => Ok(meet::ollama_version(&said)),
            Ok(Err(error)) => Err(self.trouble(&error)),
            Err(_) => Err(Trouble::Silent(self.client.target().clone())),
        }
    }

    /// Waits for an answer for as long as the server answers something that is easier, and not longer than [`LONGEST`].
    ///
    /// # Errors
    /// [`Trouble::Silent`] if it does not answer that either.
    async fn patiently<T>(&self, question: impl Future<Output = T>) -> Result<Option<T>, Trouble> {
        let mut question = std::pin::pin!(question);
        let until = Instant::now() + LONGEST;
        while Instant::now() < until {
            if let Ok(answer) = timeout(ANSWER, &mut question).await {
                return Ok(Some(answer));
            }
            tokio::select! {
                answer = &mut question => return Ok(Some(answer)),
                greeting = self.greeting() => drop(greeting?),
            }
        }
        Ok(None)
    }

    fn trouble(&self, error: &ExchangeError) -> Trouble {
        Trouble::of(self.client.target(), error)
    }

    fn publish(&mut self, seen: Seen) {
        if let Some(models) = seen.memory {
            let fit = self.fits.look(&models, SystemTime::now());
            self.remember(|memory| Memory { models, seen: fit, told: memory.told });
        }
        let state = State { healthy: true, problem: None, ..seen.state };
        for flaw in state.flaws.iter() {
            if self.told.len() < MAX_TOLD && self.told.insert(flaw.to_owned()) {
                tracing::info!(url = %self.client.target(), "the local server has a flaw: {flaw}");
            }
        }
        let before = self.publish.borrow().clone();
        self.speeds.loaded(state.loaded_since(&before));
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

    fn gone(&mut self, problem: Trouble) {
        self.fits = Fits::default();
        self.told.clear();
        self.client.life().follow(None);
        self.remember(|_| Memory::default());
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
