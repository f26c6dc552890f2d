//! A gate of the simulation: a line before each model with so many slots, tickets in it, and an Ollama that takes its time,
//! fails or dies. It keeps to the protocol as `transport::incoming` and `gate` do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use ollana::internals::exchange::{Load, ModelLoad, Residence};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::hall::{Entry, Hall, Line, Seat};
use crate::ledger::{Ledger, Run, Send};
use crate::network::{Broken, In, Link, Out, Side};
use crate::random::Random;

/// The models, of which the second is thrown out of memory now and then.
pub const MODELS: [&str; 2] = ["hot:latest", "cold:latest"];
/// Of each model.
pub const SLOTS: usize = 2;
/// How long a slot is kept for a request whose turn it is.
const TURN_TIMEOUT: Duration = Duration::from_secs(2);

/// What a user's node says on a stream.
pub enum ToGate {
    Ticket {
        request: String,
        model: String,
        copies: u8,
    },
    /// The number of the try goes with it.
    Request {
        send: Arc<Send>,
        number: usize,
        model: Option<String>,
    },
}

/// What a gate says.
pub enum ToUser {
    Ack,
    Place(f32),
    Turn,
    Refused(&'static str),
    Head { status: u16, run: usize },
    Word,
    End,
    Broken,
}

/// The gate's end of a stream.
pub struct Stream {
    pub out: Out<ToUser>,
    pub input: In<ToGate>,
}

/// A gate from its start to its end.
pub struct Life {
    pub ledger: Ledger,
    random: Random,
    hall: Mutex<Hall>,
    /// Something is not as it was.
    pub changed: watch::Sender<u64>,
    tasks: Mutex<JoinSet<()>>,
    pub seats: AtomicU64,
}

// === impl Life ===

impl Life {
    pub fn new(ledger: &Ledger, random: &Random) -> Arc<Self> {
        let memory = || Line { residence: Residence::Memory, ..Line::default() };
        let lines = MODELS.iter().map(|model| (*model, memory())).collect();
        Arc::new(Self {
            ledger: ledger.clone(),
            random: random.clone(),
            hall: Mutex::new(Hall { lines, ..Hall::default() }),
            changed: watch::Sender::new(0),
            tasks: Mutex::default(),
            seats: AtomicU64::new(0),
        })
    }

    pub fn hall(&self) -> MutexGuard<'_, Hall> {
        self.hall.lock().unwrap()
    }

    /// A task of this life.
    pub fn spawn(&self, task: impl Future<Output = ()> + std::marker::Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap();
        while let Some(done) = tasks.try_join_next() {
            assert!(done.is_ok_and(|()| true), "a task of a gate panicked");
        }
        if !self.hall().dead {
            tasks.spawn(task);
        }
    }

    /// It dies, with all that is in it.
    pub fn dies(&self) {
        self.hall().dead = true;
        self.tasks.lock().unwrap().abort_all();
    }

    /// It takes nothing new; who waits is told so.
    pub fn drains(&self) {
        let mut hall = self.hall();
        hall.draining = true;
        let told: Vec<Entry> = hall.lines.values_mut().flat_map(|line| line.waiting.drain(..)).collect();
        drop(hall);
        for entry in told {
            let _ = entry.turn.send(Err("draining"));
        }
        self.touch();
    }

    pub fn touch(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// How busy it is, to a reader of whom so much is counted.
    pub fn load(&self, counted: u64) -> Load {
        let hall = self.hall();
        let of = |line: &Line| ModelLoad {
            residence: line.residence,
            running: line.taken as u32,
            queued: line.waiting.iter().map(|entry| entry.counts).sum(),
            ..ModelLoad::default()
        };
        let models = hall.lines.iter().map(|(name, line)| ((*name).to_owned(), of(line))).collect();
        Load { counted, models, ..Load::default() }
    }

    /// Serves one stream.
    pub async fn serve(self: Arc<Self>, link: Arc<Link>, counted: Arc<AtomicU64>, mut stream: Stream) {
        let Ok(first) = stream.input.recv().await else { return };
        counted.fetch_add(1, Ordering::Relaxed);
        self.touch();
        stream.out.send(ToUser::Ack);
        match first {
            ToGate::Ticket { request, model, copies } => {
                let ticket = Some((copies, stream.input.resets()));
                let mut seat = match self.enter(&model, &request, &link, ticket) {
                    Ok(seat) => seat,
                    Err(why) => return self.refuses(stream, why),
                };
                let turn = loop {
                    tokio::select! {
                        biased;
                        _ = stream.input.recv() => return self.ledger.saw("ticket withdrawn"),
                        turn = seat.turn() => break turn,
                        () = sleep(Duration::from_millis(200)) => {
                            let ahead = seat.ahead();
                            stream.out.send(ToUser::Place(ahead));
                        }
                    }
                };
                if let Err(why) = turn {
                    return self.refuses(stream, why);
                }
                if stream.input.reset().is_some() {
                    self.ledger.saw("turn crosses a withdrawal");
                }
                stream.out.send(ToUser::Turn);
                match timeout(TURN_TIMEOUT, stream.input.recv()).await {
                    Ok(Ok(ToGate::Request { send, number, .. })) => {
                        stream.out.send(ToUser::Ack);
                        self.runs(stream, &send, number, Some(seat)).await;
                    }
                    Ok(Err(Broken::Lost)) => self.ledger.saw("turn of a user that is lost"),
                    Ok(_) => self.ledger.saw("turn of no use"),
                    Err(_) => self.ledger.saw("turn whose request does not come"),
                }
            }
            ToGate::Request { send, number, model: None } => {
                if self.hall().draining {
                    return self.refuses(stream, "draining");
                }
                self.runs(stream, &send, number, None).await;
            }
            ToGate::Request { send, number, model: Some(model) } => {
                let mut seat = match self.enter(&model, &send.request, &link, None) {
                    Ok(seat) => seat,
                    Err(why) => return self.refuses(stream, why),
                };
                let turn = tokio::select! {
                    biased;
                    _ = stream.input.recv() => return,
                    turn = seat.turn() => turn,
                };
                match turn {
                    Ok(()) => self.runs(stream, &send, number, Some(seat)).await,
                    Err(why) => self.refuses(stream, why),
                }
            }
        }
    }

    fn refuses(&self, mut stream: Stream, why: &'static str) {
        self.ledger.saw(why);
        stream.out.send(ToUser::Refused(why));
        stream.out.finish();
    }

    /// The Ollama behind the gate.
    async fn runs(&self, mut stream: Stream, send: &Arc<Send>, number: usize, mut seat: Option<Seat>) {
        let ms = Duration::from_millis;
        let random = &self.random;
        let mut running = self.ledger.begins(send);
        let cold = seat.as_mut().is_some_and(Seat::starts);
        let fails = self.hall().failing && random.chance(0.8);
        let breaks = random.chance(0.003) && !self.hall().calm;
        let load = if cold { ms(600) } else { Duration::ZERO };
        let work = if fails { ms(1) } else { random.about(ms(250)).min(ms(4000)) };
        tokio::select! {
            biased;
            _ = stream.input.recv() => return,
            () = sleep(load + work) => {}
        }
        if let Some(seat) = &seat {
            seat.loaded();
        }
        if fails || (breaks && random.chance(0.5)) {
            running.comes_to(Run::Failed);
            match fails && random.chance(0.5) {
                true => stream.out.send(ToUser::Head { status: 500, run: number }),
                false => stream.out.send(ToUser::Broken),
            }
            return stream.out.finish();
        }
        stream.out.send(ToUser::Head { status: 200, run: number });
        for _ in 0..1 + random.below(3) {
            stream.out.send(ToUser::Word);
            tokio::select! {
                biased;
                _ = stream.input.recv() => return,
                () = sleep(random.about(ms(20))) => {}
            }
        }
        if breaks {
            running.comes_to(Run::Failed);
            stream.out.send(ToUser::Broken);
        } else {
            running.comes_to(Run::Done);
            stream.out.send(ToUser::End);
        }
        stream.out.finish();
    }

    /// Tells a peer how busy it is, and that it drains, for as long as this lives.
    pub async fn reports(self: Arc<Self>, link: Arc<Link>, counted: Arc<AtomicU64>, mut out: Out<(bool, Load)>) {
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let draining = self.hall().draining;
            out.send((draining, self.load(counted.load(Ordering::Relaxed))));
            sleep(Duration::from_millis(10)).await;
            tokio::select! {
                _ = changed.changed() => {}
                () = link.lost(Side::Gate) => return,
            }
        }
    }
}
