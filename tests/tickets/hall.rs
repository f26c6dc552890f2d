//! What is at a gate: the lines before its models, who waits in them, and slots.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ollana::internals::exchange::Residence;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::gate::{Life, SLOTS};
use crate::network::Link;

/// Requests that wait for one model.
const PLACES: usize = 10;

/// What is at a gate.
#[derive(Default)]
pub struct Hall {
    pub lines: BTreeMap<&'static str, Line>,
    pub draining: bool,
    /// Its Ollama fails most of the time.
    pub failing: bool,
    /// It never fails by chance.
    pub calm: bool,
    pub dead: bool,
}

#[derive(Default)]
pub struct Line {
    pub residence: Residence,
    pub waiting: VecDeque<Entry>,
    /// Slots that are kept or used.
    pub taken: usize,
    pub running: usize,
}

pub struct Entry {
    seat: u64,
    pub request: String,
    pub counts: f32,
    /// Set if it is a ticket: when its withdrawal arrives.
    pub withdrawn: Option<watch::Receiver<Option<Instant>>>,
    pub link: Arc<Link>,
    pub turn: oneshot::Sender<Result<(), &'static str>>,
}

/// A place in a line, or a slot.
pub struct Seat {
    life: Arc<Life>,
    model: &'static str,
    number: u64,
    turn: Option<oneshot::Receiver<Result<(), &'static str>>>,
    /// Whether it has a slot.
    has: bool,
    runs: bool,
}

// === impl Life ===

impl Life {
    pub fn enter(
        self: &Arc<Self>,
        model: &str,
        request: &str,
        link: &Arc<Link>,
        ticket: Option<(u8, watch::Receiver<Option<Instant>>)>,
    ) -> Result<Seat, &'static str> {
        let number = self.seats.fetch_add(1, Ordering::Relaxed);
        let (turn, resolves) = oneshot::channel();
        let mut hall = self.hall();
        if hall.draining {
            return Err("draining");
        }
        let (name, line) = hall
            .lines
            .iter_mut()
            .find(|(name, _)| name.split(':').next() == model.split(':').next())
            .ok_or("unknown")?;
        if line.waiting.len() >= PLACES {
            return Err("busy");
        }
        let copies = ticket.as_ref().map_or(1, |(copies, _)| (*copies).max(1));
        line.waiting.push_back(Entry {
            seat: number,
            request: request.to_owned(),
            counts: 1.0 / f32::from(copies),
            withdrawn: ticket.map(|(_, withdrawn)| withdrawn),
            link: link.clone(),
            turn,
        });
        line.grant();
        let seat = Seat { life: self.clone(), model: name, number, turn: Some(resolves), has: false, runs: false };
        drop(hall);
        self.touch();
        Ok(seat)
    }
}

// === impl Line ===

impl Line {
    fn grant(&mut self) {
        while self.taken < SLOTS
            && let Some(next) = self.waiting.pop_front()
        {
            self.taken += 1;
            let _ = next.turn.send(Ok(()));
        }
    }
}

// === impl Seat ===

impl Seat {
    pub async fn turn(&mut self) -> Result<(), &'static str> {
        let Some(turn) = self.turn.as_mut() else { return Ok(()) };
        let turned = turn.await.unwrap_or(Err("draining"));
        (self.turn, self.has) = (None, turned.is_ok());
        turned
    }

    pub fn ahead(&self) -> f32 {
        let hall = self.life.hall();
        let before = hall.lines[self.model].waiting.iter().take_while(|entry| entry.seat != self.number);
        before.map(|entry| entry.counts).sum()
    }

    /// It runs from here on. Says whether the model has to be loaded first.
    pub fn starts(&mut self) -> bool {
        self.runs = true;
        let mut hall = self.life.hall();
        let Some(line) = hall.lines.get_mut(self.model) else { return false };
        line.running += 1;
        if line.running > SLOTS {
            self.life.ledger.violated(format!("{} run of {}", line.running, self.model));
        }
        let cold = line.residence != Residence::Memory;
        if cold {
            line.residence = Residence::Loading;
            drop(hall);
            self.life.touch();
            self.life.ledger.saw("a model is loaded");
        }
        cold
    }

    pub fn loaded(&self) {
        if let Some(line) = self.life.hall().lines.get_mut(self.model) {
            line.residence = Residence::Memory;
        }
        self.life.touch();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut hall = self.life.hall();
        let Some(line) = hall.lines.get_mut(self.model) else { return };
        let before = line.waiting.len();
        line.waiting.retain(|entry| entry.seat != self.number);
        line.running -= usize::from(self.runs);
        // The turn may have come unheard.
        let granted = self.has || self.turn.as_mut().is_some_and(|turn| turn.try_recv() == Ok(Ok(())));
        if before == line.waiting.len() && granted {
            line.taken -= 1;
            line.grant();
        }
        drop(hall);
        self.life.touch();
    }
}
