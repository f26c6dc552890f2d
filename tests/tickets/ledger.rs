//! What became of every request, seen from outside: what must never happen is noticed here, the moment it happens.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ollana::internals::exchange::Health;

use crate::network::Link;

/// A request of an application.
pub type Job = usize;

/// Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Book>>);

#[derive(Debug, Default)]
pub struct Book {
    jobs: Vec<Record>,
    /// Tickets that a user's node holds, by the request they stand for.
    tickets: HashMap<String, usize>,
    /// Requests whose tickets were lost with a connection, and at which gates.
    lost: HashSet<(String, String)>,
    /// What must not happen, and did.
    violations: Vec<String>,
    /// How often things happened that the test is about.
    pub seen: BTreeMap<&'static str, u64>,
}

#[derive(Debug)]
struct Record {
    /// Whether it may be done twice.
    repeatable: bool,
    sends: Vec<Arc<Send>>,
    /// A byte of this run's answer is with the application.
    reached: Option<usize>,
    over: bool,
}

/// One time that a request was sent to a gate.
pub struct Send {
    pub job: Job,
    /// By the router's own ID.
    pub request: String,
    pub link: Arc<Link>,
    state: Mutex<SendState>,
}

#[derive(Debug, Default)]
struct SendState {
    /// How the peer was when the user's node let go of it.
    released: Option<Health>,
    /// The head that came.
    status: Option<u16>,
    run: Option<Run>,
}

/// How far a gate has come with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    Active,
    Done,
    /// The Ollama failed.
    Failed,
    /// The user's node gave it up, or the gate died.
    GivenUp,
}

/// The user's side of a send, until it is let go.
pub struct Sending {
    pub send: Arc<Send>,
    health: tokio::sync::watch::Receiver<Health>,
}

/// A gate's side of a send: an Ollama that works.
pub struct Running {
    ledger: Ledger,
    send: Arc<Send>,
    came_to: Run,
}

/// A ticket that a user's node holds.
pub struct Holding {
    ledger: Ledger,
    request: String,
}

// === impl Ledger ===

impl Ledger {
    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something happened.
    pub fn saw(&self, what: &'static str) {
        *self.book().seen.entry(what).or_default() += 1;
    }

    pub fn violated(&self, what: String) {
        self.book().violations.push(what);
    }

    /// Panics if anything happened that must not.
    pub fn check(&self) {
        let violations = std::mem::take(&mut self.book().violations);
        assert!(violations.is_empty(), "{violations:#?}");
    }

    /// An application asks.
    pub fn asks(&self, repeatable: bool) -> Job {
        let mut book = self.book();
        book.jobs.push(Record { repeatable, sends: Vec::new(), reached: None, over: false });
        book.jobs.len() - 1
    }

    /// A byte of an answer is with the application: of this run. The error of an Ollama may be that of an earlier one, if no
    /// other did better.
    pub fn reaches(&self, job: Job, run: usize, status: u16) {
        let mut book = self.book();
        let of = &mut book.jobs[job];
        of.reached = Some(run);
        if status == 200 && run + 1 != of.sends.len() {
            let text = format!("{job}: the answer is that of try {run} and not of the last: {of:#?}");
            book.violations.push(text);
        }
    }

    /// The application has its answer, a refusal, or went away.
    pub fn over(&self, job: Job, how: &'static str) {
        self.book().jobs[job].over = true;
        self.saw(how);
    }

    /// An answer broke off after its first byte.
    pub fn breaks(&self, job: Job, run: usize) {
        let broke = {
            let book = self.book();
            let send = &book.jobs[job].sends[run];
            let run = send.state.lock().unwrap().run;
            send.link.is_cut() || matches!(run, Some(Run::Failed | Run::GivenUp))
        };
        if !broke {
            self.violated(format!("{job}: an answer broke off for no reason"));
        }
    }

    /// A ticket was lost with its connection.
    pub fn loses(&self, request: &str, gate: &str) {
        self.book().lost.insert((request.to_owned(), gate.to_owned()));
    }

    /// A user's node places a ticket.
    pub fn holds(&self, request: &str, gate: &str) -> Holding {
        let mut book = self.book();
        if book.lost.remove(&(request.to_owned(), gate.to_owned())) {
            *book.seen.entry("queues again where its ticket was lost").or_default() += 1;
        }
        let count = book.tickets.entry(request.to_owned()).or_default();
        *count += 1;
        let count = *count;
        match count {
            1 => {}
            2 => *book.seen.entry("two tickets").or_default() += 1,
            _ => book.violations.push(format!("{request} holds {count} tickets")),
        }
        Holding { ledger: self.clone(), request: request.to_owned() }
    }

    /// A user's node sends a request; the number of the try goes with it.
    pub fn sends(
        &self,
        job: Job,
        request: &str,
        link: &Arc<Link>,
        health: tokio::sync::watch::Receiver<Health>,
    ) -> (usize, Sending) {
        let mut book = self.book();
        let tickets = book.tickets.get(request).copied().unwrap_or_default();
        let of = &book.jobs[job];
        let try_ = of.sends.len();
        let mut wrong = Vec::new();
        if tickets > 0 {
            wrong.push(format!("{job}: sent while {tickets} tickets are held for it"));
        }
        if of.reached.is_some() {
            wrong.push(format!("{job}: sent again after its answer had begun"));
        }
        if let Some(live) = of.sends.iter().find(|send| send.is_live()) {
            wrong.push(format!("{job}: sent twice at once, {live:?}"));
        }
        book.violations.append(&mut wrong);
        let send = Arc::new(Send { job, request: request.to_owned(), link: link.clone(), state: Mutex::default() });
        book.jobs[job].sends.push(send.clone());
        (try_, Sending { send, health })
    }

    /// A gate's Ollama begins to work. Of all sends that were run, each but the last has to be one that may be repeated:
    /// also if it begins after it, since it was on its way for longer.
    pub fn begins(&self, send: &Arc<Send>) -> Running {
        let mut book = self.book();
        let mut wrong = Vec::new();
        if send.has_run() {
            wrong.push(format!("{}: one send is run twice", send.job));
        }
        send.state.lock().unwrap().run = Some(Run::Active);
        let of = &book.jobs[send.job];
        let ran: Vec<_> = of.sends.iter().filter(|send| send.has_run()).collect();
        if let Some((_, before)) = ran.split_last() {
            let never = before.iter().filter(|send| !send.may_be_repeated(of.repeatable));
            wrong.extend(never.map(|send| format!("{}: run again, after {send:?}", send.job)));
        }
        let again = ran.len() > 1;
        book.violations.append(&mut wrong);
        if again {
            *book.seen.entry("run again elsewhere").or_default() += 1;
        }
        drop(book);
        Running { ledger: self.clone(), send: send.clone(), came_to: Run::GivenUp }
    }

    /// Whether a ticket for this request, at a gate by a connection that is well, must be known to be withdrawn by now.
    pub fn holds_none(&self, request: &str) -> bool {
        !self.book().tickets.contains_key(request)
    }

    /// What is open, which at rest is nothing: applications that wait, tickets, sends that are not let go.
    pub fn open(&self) -> (usize, usize, usize) {
        let book = self.book();
        let waiting = book.jobs.iter().filter(|job| !job.over).count();
        let sends = book.jobs.iter().flat_map(|job| &job.sends);
        let live = sends.filter(|send| send.state.lock().unwrap().released.is_none()).count();
        (waiting, book.tickets.len(), live)
    }
}

// === impl Send ===

impl Send {
    /// Whether the user's node still counts on it.
    fn is_live(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.released.is_none() && state.status.is_none_or(|status| status < 400)
    }

    fn has_run(&self) -> bool {
        self.state.lock().unwrap().run.is_some()
    }

    /// Whether the request may run once more after this.
    fn may_be_repeated(&self, repeatable: bool) -> bool {
        let state = self.state.lock().unwrap();
        let Some(run) = state.run else { return true };
        let lost = self.link.is_cut() || state.released.is_some_and(|health| health != Health::Healthy);
        // Or its Ollama failed, before any byte.
        repeatable && (lost || run == Run::Failed)
    }

    pub fn answered(&self, status: u16) {
        self.state.lock().unwrap().status = Some(status);
    }
}

impl fmt::Debug for Send {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = self.link.is_cut();
        write!(f, "a send by {:?} (cut: {cut}), {:?}", self.request, self.state.lock().unwrap())
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.send.state.lock().unwrap().released = Some(*self.health.borrow());
    }
}

// === impl Running ===

impl Running {
    pub fn comes_to(&mut self, run: Run) {
        self.came_to = run;
        self.send.state.lock().unwrap().run = Some(run);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.send.state.lock().unwrap().run = Some(self.came_to);
        if self.came_to == Run::GivenUp {
            self.ledger.saw("given up while it ran");
        }
    }
}

// === impl Holding ===

impl Drop for Holding {
    fn drop(&mut self) {
        let mut book = self.ledger.book();
        if let Some(count) = book.tickets.get_mut(&self.request) {
            *count -= 1;
            if *count == 0 {
                book.tickets.remove(&self.request);
            }
        }
    }
}
