//! Users' nodes with the router that is tested, gates, and all that may happen to them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::stream;
use http::Request;
use http_body_util::BodyExt as _;
use ollana::Id;
use ollana::internals::balance::{Preferences, Router, RouterSettings};
use ollana::internals::digests::Digests;
use ollana::internals::exchange::{self, Endpoint, Residence};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tower::discover::Change;
use tower::{Service as _, ServiceExt as _};

use crate::gate::{Life, MODELS};
use crate::ledger::{Job, Ledger};
use crate::network::{Link, Side};
use crate::peer::{JOB, Peer, RUN};
use crate::random::Random;

pub const USERS: usize = 2;
pub const GATES: usize = 4;
/// A message that is late is there after this time at most, if its connection lives and nothing is frozen.
const LATEST: Duration = Duration::from_millis(3001);

type Discovered = Change<Id, Arc<dyn Endpoint>>;

pub struct World {
    pub ledger: Ledger,
    random: Random,
    routers: Vec<Router>,
    discover: Vec<mpsc::UnboundedSender<Discovered>>,
    gates: Mutex<Vec<Option<Arc<Life>>>>,
    /// By user and gate.
    peers: Mutex<Vec<Vec<Option<Arc<Peer>>>>>,
    /// What takes its time.
    tasks: Mutex<JoinSet<()>>,
    clients: Mutex<Vec<(Job, JoinHandle<()>)>>,
}

impl World {
    pub fn new(seed: u64) -> Arc<Self> {
        let (ledger, random) = (Ledger::default(), Random::new(seed));
        let (mut routers, mut discover) = (Vec::new(), Vec::new());
        for user in 0..USERS {
            let (sender, receiver) = mpsc::unbounded_channel::<Discovered>();
            let changes = stream::unfold(receiver, |mut receiver| async {
                receiver.recv().await.map(|change| (Ok(change), receiver))
            });
            let name = format!("user{user}");
            let settings = RouterSettings {
                id: Id::of_spki(name.as_bytes()),
                name: name.parse().unwrap(),
                listen: None,
                open: false,
                digests: Digests::default(),
                preferences: Preferences { waiting: 24, ..Preferences::default() },
                grace: ollana::internals::balance::GRACE,
            };
            routers.push(Router::spawn(settings, changes, Vec::new));
            discover.push(sender);
        }
        let gates = (0..GATES).map(|_| Some(Life::new(&ledger, &random))).collect();
        let world = Arc::new(Self {
            ledger,
            random,
            routers,
            discover,
            gates: Mutex::new(gates),
            peers: Mutex::new(vec![vec![None; GATES]; USERS]),
            tasks: Mutex::default(),
            clients: Mutex::default(),
        });
        (0..GATES).for_each(|gate| world.connect_all(gate));
        world
    }

    /// One random thing happens, or time passes.
    pub async fn step(self: &Arc<Self>) {
        let ms = Duration::from_millis;
        let random = &self.random;
        match random.unit() {
            pause if pause < 0.70 => sleep(random.about(ms(22))).await,
            ask if ask < 0.85 => self.ask(),
            gone if gone < 0.86 => self.abandon().await,
            burst if burst < 0.8602 => (0..60).for_each(|_| self.ask()),
            unload if unload < 0.867 => self.unload(),
            cut if cut < 0.869 => self.cut(random.below(USERS), random.below(GATES)),
            replace if replace < 0.8705 => self.replace(random.below(USERS), random.below(GATES)),
            freeze if freeze < 0.8735 => self.freeze(),
            fail if fail < 0.8745 => self.fail(),
            crash if crash < 0.8749 => self.crash(random.below(GATES)),
            drain if drain < 0.8754 => self.drain(random.below(GATES)),
            _ => tokio::task::yield_now().await,
        }
    }

    /// Says what is wrong, if anything is.
    pub fn check(&self) {
        while let Some(done) = self.tasks.lock().unwrap().try_join_next() {
            done.unwrap();
        }
        let mut clients = self.clients.lock().unwrap();
        clients.retain(|(_, client)| !client.is_finished());
        drop(clients);
        for life in self.gates.lock().unwrap().iter().flatten() {
            self.audit(life);
        }
        self.ledger.check();
    }

    /// A ticket is no longer at a gate than its withdrawal takes, and is withdrawn if nobody holds it.
    fn audit(&self, life: &Life) {
        for entry in life.hall().lines.values().flat_map(|line| &line.waiting) {
            let Some(withdrawn) = &entry.withdrawn else { continue };
            let at = *withdrawn.borrow();
            let late = at.is_some_and(|at| Instant::now() > at + Duration::from_millis(2));
            let forgotten = at.is_none() && self.ledger.holds_none(&entry.request);
            if (late || forgotten) && !entry.link.is_cut() {
                self.ledger.violated(format!("{} has a ticket at a gate, withdrawn at {at:?}", entry.request));
            }
        }
    }

    // === what happens ===

    fn spawn(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap().spawn(task);
    }

    fn life(&self, gate: usize) -> Option<Arc<Life>> {
        self.gates.lock().unwrap()[gate].clone()
    }

    fn peer(&self, user: usize, gate: usize) -> Option<Arc<Peer>> {
        self.peers.lock().unwrap()[user][gate].clone()
    }

    /// The first user's node is the first gate's: what is at the own gate needs no network.
    fn is_own(user: usize, gate: usize) -> bool {
        (user, gate) == (0, 0)
    }

    fn connect_all(self: &Arc<Self>, gate: usize) {
        (0..USERS).for_each(|user| self.connect(user, gate));
    }

    fn connect(self: &Arc<Self>, user: usize, gate: usize) {
        let Some(life) = self.life(gate) else { return };
        let local = Self::is_own(user, gate);
        let peer = Peer::connect(&format!("gate{gate}"), Link::new(&self.random, local), &life, local);
        self.peers.lock().unwrap()[user][gate] = Some(peer.clone());
        let _ = self.discover[user].send(Change::Insert(peer.id(), peer));
    }

    fn ask(&self) {
        let random = &self.random;
        let model = if random.chance(0.75) { MODELS[0] } else { MODELS[1] };
        let (path, body) = match random.unit() {
            own if own < 0.04 => ("/api/copy", r#"{"source":"a","destination":"b"}"#.to_owned()),
            chat if chat < 0.5 => ("/api/chat", format!(r#"{{"model":"{model}","messages":[]}}"#)),
            _ => ("/api/generate", format!(r#"{{"model":"{model}","prompt":"why"}}"#)),
        };
        let chosen = path == "/api/copy" || (path == "/api/chat" && random.chance(0.03));
        let choice = chosen.then(|| format!("gate{}", random.below(GATES)));
        // Some go away in the middle of their answer.
        self.ask_for(path, body, choice, random.chance(0.02));
    }

    fn ask_for(&self, path: &str, body: String, choice: Option<String>, leaves: bool) {
        let job = self.ledger.asks(path != "/api/copy");
        let request = Request::post(path).header(JOB, job);
        let request = choice.into_iter().fold(request, |request, choice| request.header("ollana-peer", choice));
        let request = request.body(exchange::full(body)).unwrap();
        let mut router = self.routers[self.random.below(USERS)].clone();
        let ledger = self.ledger.clone();
        let client = tokio::spawn(async move {
            let answer = router.ready().await.unwrap().call(request).await.unwrap();
            let status = answer.status();
            let run = answer.headers().get(RUN).map(|run| run.to_str().unwrap().parse::<usize>().unwrap());
            if let Some(run) = run {
                ledger.reaches(job, run, status.as_u16());
            }
            let mut body = answer.into_body();
            if leaves {
                let _ = body.frame().await;
                return ledger.over(job, "left in mid-answer");
            }
            let mut text = Vec::new();
            while let Some(frame) = body.frame().await {
                match (frame, run) {
                    (Ok(frame), _) => text.extend(frame.into_data().unwrap_or_default()),
                    (Err(_), Some(run)) => {
                        ledger.breaks(job, run);
                        return ledger.over(job, "broke off in mid-answer");
                    }
                    (Err(error), None) => ledger.violated(format!("{job}: a refusal broke off: {error}")),
                }
            }
            match run {
                Some(_) if status == 200 && text.starts_with(b"word ") => ledger.over(job, "answered"),
                Some(_) if status == 500 => ledger.over(job, "answered with an error"),
                None if status.as_u16() >= 500 && reason(&text) => ledger.over(job, "refused"),
                _ => ledger.violated(format!("{job}: {status} {}", String::from_utf8_lossy(&text))),
            }
        });
        self.clients.lock().unwrap().push((job, client));
    }

    async fn abandon(&self) {
        let (job, client) = {
            let mut clients = self.clients.lock().unwrap();
            if clients.is_empty() {
                return;
            }
            let any = self.random.below(clients.len());
            clients.swap_remove(any)
        };
        client.abort();
        if client.await.is_err_and(|error| error.is_cancelled()) {
            self.ledger.over(job, "abandoned");
        }
    }

    fn unload(&self) {
        let Some(life) = self.life(self.random.below(GATES)) else { return };
        if let Some(line) = life.hall().lines.get_mut(MODELS[1])
            && line.taken == 0
        {
            line.residence = Residence::Disk;
        }
        life.touch();
    }

    /// Its Ollama fails most of the time, for a while.
    fn fail(self: &Arc<Self>) {
        let Some(life) = self.life(self.random.below(GATES)) else { return };
        life.hall().failing = true;
        let lasts = self.random.between(Duration::from_millis(100), Duration::from_secs(4));
        self.spawn(async move {
            sleep(lasts).await;
            life.hall().failing = false;
        });
    }

    fn freeze(self: &Arc<Self>) {
        let (user, gate) = (self.random.below(USERS), self.random.below(GATES));
        let Some(peer) = self.peer(user, gate).filter(|_| !Self::is_own(user, gate)) else { return };
        let lasts = self.random.between(Duration::from_millis(100), Duration::from_millis(6000));
        self.spawn(peer.freezes(lasts));
    }

    /// A connection is lost. Both sides find out by themselves, each in its time, and the user's dials again.
    fn cut(self: &Arc<Self>, user: usize, gate: usize) {
        let Some(peer) = self.peer(user, gate).filter(|_| !Self::is_own(user, gate)) else { return };
        self.peers.lock().unwrap()[user][gate] = None;
        peer.link.cut();
        self.loses(user, gate, peer, Duration::from_secs(3));
    }

    /// A newer connection takes the place of one, which is over with all that it carried.
    fn replace(self: &Arc<Self>, user: usize, gate: usize) {
        let Some(peer) = self.peer(user, gate).filter(|_| !Self::is_own(user, gate)) else { return };
        self.connect(user, gate);
        peer.link.cut();
        let (after, streams_first) =
            (self.random.between(Duration::ZERO, Duration::from_millis(5)), self.random.chance(0.5));
        self.spawn(async move {
            peer.link.lose(Side::Gate);
            peer.gone(after, streams_first).await;
        });
    }

    fn loses(self: &Arc<Self>, user: usize, gate: usize, peer: Arc<Peer>, within: Duration) {
        let (ms, world) = (Duration::from_millis, self.clone());
        let link = peer.link.clone();
        let silent = self.random.between(ms(0), ms(15_000));
        self.spawn(async move {
            sleep(silent).await;
            link.lose(Side::Gate);
        });
        self.spawn(async move {
            let random = world.random.clone();
            sleep(random.between(ms(0), within)).await;
            peer.gone(random.between(ms(0), ms(5)), random.chance(0.5)).await;
            let id = peer.id();
            drop(peer);
            // Sometimes the next connection is there before the last is taken away.
            if random.chance(0.7) {
                let _ = world.discover[user].send(Change::Remove(id));
            }
            sleep(random.between(ms(0), ms(2000))).await;
            if world.peer(user, gate).is_none() {
                world.connect(user, gate);
            }
        });
    }

    /// Its machine loses its power, and is there again after a while. (The first is a user's own: it stays.)
    fn crash(self: &Arc<Self>, gate: usize) {
        let Some(life) = self.life(gate).filter(|_| gate > 0) else { return };
        self.gates.lock().unwrap()[gate] = None;
        life.dies();
        self.ledger.saw("a gate died");
        self.ends(gate, Duration::from_secs(3));
    }

    /// It finishes what runs, takes nothing new, goes, and is there again after a while.
    fn drain(self: &Arc<Self>, gate: usize) {
        let Some(life) = self.life(gate).filter(|life| gate > 0 && !life.hall().draining) else { return };
        life.drains();
        self.ledger.saw("a gate drained");
        let world = self.clone();
        self.spawn(async move {
            while life.hall().lines.values().any(|line| line.taken > 0) {
                sleep(Duration::from_millis(50)).await;
            }
            // What was said has to get there.
            sleep(2 * LATEST).await;
            if world.life(gate).is_some_and(|now| Arc::ptr_eq(&now, &life)) {
                world.gates.lock().unwrap()[gate] = None;
                life.dies();
                world.ends(gate, Duration::ZERO);
            }
        });
    }

    fn ends(self: &Arc<Self>, gate: usize, noticed: Duration) {
        for user in 0..USERS {
            if let Some(peer) = self.peers.lock().unwrap()[user][gate].take() {
                peer.link.cut();
                self.loses(user, gate, peer, noticed);
            }
        }
        let (world, down) = (self.clone(), self.random.between(Duration::ZERO, Duration::from_secs(8)));
        self.spawn(async move {
            sleep(down).await;
            world.gates.lock().unwrap()[gate] = Some(Life::new(&world.ledger, &world.random));
            world.connect_missing(gate);
        });
    }

    fn connect_missing(self: &Arc<Self>, gate: usize) {
        for user in 0..USERS {
            if self.peer(user, gate).is_none() {
                self.connect(user, gate);
            }
        }
    }

    // === the end ===

    /// Nothing happens any more, and what was broken is mended in time: then all comes to its end, and nothing is left of it.
    pub async fn rests(self: &Arc<Self>) {
        let since = Instant::now();
        while self.ledger.open() != (0, 0, 0) || since.elapsed() < Duration::from_secs(60) {
            sleep(Duration::from_secs(1)).await;
            self.check();
            assert!(since.elapsed() < Duration::from_secs(400), "left: {:?}", self.ledger.open());
        }
        let lives: Vec<_> = self.gates.lock().unwrap().iter().flatten().cloned().collect();
        assert_eq!(lives.len(), GATES);
        for life in lives {
            for (model, line) in &life.hall().lines {
                let left = (line.waiting.len(), line.taken, line.running);
                assert_eq!(left, (0, 0, 0), "{model}: who waits, slots that are kept, requests that run");
            }
        }
        // And it works as before.
        self.gates.lock().unwrap().iter().flatten().for_each(|life| life.hall().calm = true);
        for (n, model) in MODELS.iter().cycle().take(50).enumerate() {
            let before = self.answered();
            self.ask_for("/api/generate", format!(r#"{{"model":"{model}","prompt":"why"}}"#), None, false);
            let (_, client) = self.clients.lock().unwrap().pop().unwrap();
            client.await.unwrap();
            self.check();
            assert_eq!(self.answered(), before + 1, "number {n} of those who ask when all is well");
        }
    }

    fn answered(&self) -> u64 {
        self.ledger.book().seen["answered"]
    }
}

/// Whether a refusal says why: all have met the gates, and know of them when they are away.
fn reason(body: &[u8]) -> bool {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    json["error"].as_str().is_some_and(|why| !why.is_empty() && !why.contains("no Ollama server is known"))
}
