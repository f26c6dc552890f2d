//! The one writer: ledger, file and watch, kept in step.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;

use super::ledger::{Change, Ledger, Outcome, Rules};
use super::origins::Origins;
use super::window::{Clocks, Watch};
use super::{
    Direction, Encounter, MAX_FIRST_USE, Met, News, Policy, Presence, Snapshot, Standing, Trust, TrustError,
    TrustPolicy, file, told,
};
use crate::id::Id;
use crate::private_file::{self, FileError};

/// New keys cost their maker nothing, and us a write and a place in the book. So this many may come at once, a /24
/// network that is switched on together, and then one every `PIN_EVERY`: under attack 2 GB of writes a day, not
/// as many as the disk can take, and nobody's pin is pushed out within the hour.
pub(super) const PIN_BURST: u32 = 256;
/// See `PIN_BURST`.
const PIN_EVERY: Duration = Duration::from_secs(10);

/// Names, addresses and the time of the last meeting grant nothing. They are written with the next change that does, or
/// this long after they were last written: a laptop's disk may sleep.
const COSMETIC_EVERY: Duration = Duration::from_secs(60);

/// Lines in the log that strangers can cause without being pinned: so many at once, then one every `LOUD_EVERY`; the
/// rest at `debug`.
const LOUD_BURST: u32 = 32;
/// See `LOUD_BURST`.
const LOUD_EVERY: Duration = Duration::from_secs(60);

/// Ledger, file and watch, kept in step.
pub(super) struct Writer {
    path: PathBuf,
    pub(super) policy: TrustPolicy,
    pub(super) ledger: Ledger,
    /// What the file held when it was last read or written by this writer.
    on_disk: Option<Vec<u8>>,
    /// How the file is replaced; a test puts a full disk here.
    pub(super) replace: fn(&Path, &[u8]) -> Result<(), FileError>,
    /// Revocations that could not be written: whatever is read from the disk later, they stand.
    revoked_for_now: BTreeSet<Id>,
    pins_left: Bucket,
    origins: Origins,
    loud_left: Bucket,
    /// The last news of each key that was logged, so that it is logged once. As many as there may be pins of first use.
    told: HashMap<Id, News>,
    warnings: told::Warnings,
    /// The clocks; a test puts others here.
    pub(super) clocks: Box<dyn FnMut() -> Clocks + Send>,
    pub(super) time: Watch,
    pub(super) present: HashMap<Id, Weak<()>>,
    /// When the file was last written, or a write that only looks was last tried.
    written: Option<Instant>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

// === impl Writer ===

impl Writer {
    /// See [`super::Book::open`].
    pub(super) fn open(path: &Path, policy: TrustPolicy) -> Result<(Self, watch::Receiver<Arc<Snapshot>>), TrustError> {
        let on_disk = private_file::read(path, file::LIMIT)?;
        let ledger = match &on_disk {
            Some(content) => file::parse(path, content)?,
            None => Ledger::default(),
        };
        let (snapshots, receiver) = watch::channel(Arc::new(ledger.snapshot(&policy, unix_now())));
        let writer = Self {
            path: path.to_owned(),
            policy,
            ledger,
            on_disk,
            replace: private_file::replace,
            revoked_for_now: BTreeSet::new(),
            pins_left: Bucket::new(PIN_BURST, PIN_EVERY),
            origins: Origins::default(),
            loud_left: Bucket::new(LOUD_BURST, LOUD_EVERY),
            told: HashMap::new(),
            warnings: told::Warnings::default(),
            clocks: Box::new(Clocks::read),
            time: Watch::new(Clocks::read()),
            present: HashMap::new(),
            written: None,
            snapshots,
        };
        Ok((writer, receiver))
    }

    pub(super) fn meet(&mut self, met: &Met) -> Result<Encounter, TrustError> {
        let clock = Instant::now();
        self.keep_time();
        let (mut next, mut outcome) = self.judge(met, clock);
        // Only what is going to be written needs to know what stands there: most meetings change nothing.
        if outcome.change == Change::Matters && self.refresh()? {
            (next, outcome) = self.judge(met, clock);
        }
        match outcome.change {
            Change::None => {}
            Change::Cosmetic => self.adopt_cosmetic(next, clock),
            Change::Matters => {
                let opened = self.ledger.first_provider_met.is_none() && next.first_provider_met.is_some();
                self.adopt(next)?;
                self.time.opened_here |= opened;
            }
        }
        let waits = outcome.standing.trust == Trust::None && matches!(outcome.news, Some(News::NameTaken { .. }));
        if waits && self.snapshot().name_conflict(&met.id, &met.name).is_none() {
            // A vouch for it has just expired. Until the book says so, whoever waits for the name would meet it again and again.
            self.publish(self.ledger.clone());
        }
        if outcome.pinned {
            self.pins_left.take(clock);
            self.origins.pinned(met.address.as_deref(), clock);
        }
        self.tell(met, outcome.standing, outcome.news.as_ref(), clock);
        let presence = self.presence(met.id);
        Ok(Encounter { standing: outcome.standing, news: outcome.news, presence })
    }

    fn judge(&mut self, met: &Met, clock: Instant) -> (Ledger, Outcome) {
        let rules = Rules {
            policy: &self.policy,
            now: (self.clocks)().system,
            may_pin: self.pins_left.holds(clock) && self.origins.may_pin(met.address.as_deref(), clock),
            max_first_use: MAX_FIRST_USE,
            present: &|id| self.is_present(id),
        };
        let mut next = self.ledger.clone();
        let outcome = next.meet(met, &rules);
        (next, outcome)
    }

    /// Changes the ledger by a person's word, on top of what stands on the disk.
    pub(super) fn decide<T>(&mut self, change: impl FnOnce(&mut Ledger, u64) -> T) -> Result<T, TrustError> {
        self.refresh()?;
        let mut next = self.ledger.clone();
        let told = change(&mut next, unix_now());
        if next != self.ledger {
            self.adopt(next)?;
        }
        Ok(told)
    }

    pub(super) fn revoke(&mut self, id: Id) -> Result<Standing, TrustError> {
        match self.decide(|ledger, now| ledger.revoke(id, now)) {
            Ok(former) => {
                tracing::info!(%id, "revoked by hand");
                Ok(former)
            }
            Err(source) => {
                // The one change that memory takes although the disk does not: it takes away, and must at once.
                let mut next = self.ledger.clone();
                next.revoke(id, unix_now());
                self.revoked_for_now.insert(id);
                self.publish(next);
                Err(TrustError::RevokedForNow { id, source: Box::new(source) })
            }
        }
    }

    /// Takes in what someone else has written. Says whether there was something.
    ///
    /// # Errors
    /// If it is not what a book should be. What was in force stays in force, and nothing is written over it.
    pub(super) fn refresh(&mut self) -> Result<bool, TrustError> {
        let content = private_file::read(&self.path, file::LIMIT)?;
        if content == self.on_disk {
            return Ok(false);
        }
        // A book that is gone is not an empty one: the tombstones were in it.
        let Some(content) = content else { return Err(TrustError::Gone(self.path.clone())) };
        let mut next = file::parse(&self.path, &content)?;
        for id in &self.revoked_for_now {
            next.revoke(*id, unix_now());
        }
        self.on_disk = Some(content);
        if next.first_provider_met != self.ledger.first_provider_met {
            self.time.opened_here = false;
        }
        tracing::info!("{} was changed by someone else, and is in force as it is now", self.path.display());
        self.publish(next);
        Ok(true)
    }

    /// Writes `next`, then lets it count.
    pub(super) fn adopt(&mut self, next: Ledger) -> Result<(), TrustError> {
        let content = file::write(&self.path, &next)?.into_bytes();
        (self.replace)(&self.path, &content)?;
        self.on_disk = Some(content);
        self.written = Some(Instant::now());
        // Unless a person has just taken it back, `next` holds them.
        self.revoked_for_now.clear();
        self.publish(next);
        Ok(())
    }

    /// Lets `next` count, and writes it if that was not done lately. What cannot be written here grants nothing.
    fn adopt_cosmetic(&mut self, next: Ledger, clock: Instant) {
        if self.written.is_none_or(|at| clock.duration_since(at) >= COSMETIC_EVERY) {
            self.written = Some(clock);
            // Not over what someone else wrote: that is taken in within a second, and says more.
            let same = private_file::read(&self.path, file::LIMIT).is_ok_and(|content| content == self.on_disk);
            let written = if same { self.adopt(next.clone()) } else { Ok(()) };
            if let Err(error) = written {
                tracing::warn!("names and addresses of peers were not written: {error}");
            }
        }
        self.publish(next);
    }

    pub(super) fn publish(&mut self, next: Ledger) {
        let snapshot = Arc::new(next.snapshot(&self.policy, unix_now()));
        self.ledger = next;
        self.snapshots.send_if_modified(|current| {
            let changed = *current != snapshot;
            told::say_changes(current, &snapshot);
            *current = snapshot;
            changed
        });
    }

    /// The book as it is in effect.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshots.borrow().clone()
    }

    /// Whether one more line that others can cause is for people to see.
    pub(super) fn may_be_loud(&mut self) -> bool {
        self.loud_left.take(Instant::now())
    }

    /// Whether it is connected, whoever opened the connection.
    pub(super) fn is_present(&self, id: &Id) -> bool {
        self.present.get(id).is_some_and(|presence| presence.strong_count() > 0)
    }

    fn presence(&mut self, id: Id) -> Presence {
        if let Some(presence) = self.present.get(&id).and_then(Weak::upgrade) {
            return Presence(presence);
        }
        // Amortised: each sweep is paid for by the entries that came since the last.
        if self.present.len() == self.present.capacity() {
            self.present.retain(|_, presence| presence.strong_count() > 0);
        }
        let presence = Arc::new(());
        self.present.insert(id, Arc::downgrade(&presence));
        Presence(presence)
    }

    fn tell(&mut self, met: &Met, standing: Standing, news: Option<&News>, clock: Instant) {
        let Met { id, name, .. } = met;
        let Standing { use_, scope, .. } = &standing;
        let Some(news) = news else { return };
        if self.told.len() >= MAX_FIRST_USE {
            self.told.clear();
        }
        let again = self.told.insert(*id, news.clone()).as_ref() == Some(news);
        if *news == News::FirstMet {
            return tracing::info!(%id, "met {name} for the first time: it {}, and {}", told::may(*scope), told::used(*use_));
        }
        if again || !self.loud_left.take(clock) {
            return tracing::debug!(%id, %name, ?news, "more of the same");
        }
        match news {
            News::FirstMet => {}
            News::Waiting => {
                let why = self.why_it_waits(met).map(|why| format!(", since {why}")).unwrap_or_default();
                let warning = format!("{name} waits to be trusted{why}. Compare its ID, then: ollana trust {name}");
                self.warnings.warn_unless_settled(self.snapshots.subscribe(), met, warning);
            }
            News::NameTaken { by } => tracing::warn!(%id, known = %by, "{}", self.name_taken(met, standing, by)),
            News::Renamed { from } => tracing::info!(%id, "{from} is now called {name}"),
            News::Crowded => tracing::warn!(%id, "{name} is not pinned, too many keys are new: will try again later"),
        }
    }

    /// Why first use did not decide.
    fn why_it_waits(&mut self, met: &Met) -> Option<String> {
        let now = (self.clocks)().system;
        match met.direction {
            Direction::Inbound => (self.policy.inbound == Policy::Paired).then(|| "trust.inbound is paired".to_owned()),
            Direction::Outbound { .. } if self.policy.outbound == Policy::Paired => {
                Some("trust.outbound is paired".to_owned())
            }
            Direction::Outbound { .. } => self.ledger.opening(&self.policy).at(now).reason(),
        }
    }

    /// The advice about a name that is known with another key.
    fn name_taken(&self, Met { id, name, .. }: &Met, standing: Standing, by: &Id) -> String {
        let revoked = self.ledger.pins.get(by).is_some_and(|pin| pin.trust == Trust::Revoked);
        match standing.trust {
            Trust::Vouched => {
                format!(
                    "{name} is known with a different key. It is used all the same, since somebody vouches for its key"
                )
            }
            Trust::FirstUse | Trust::Trusted => {
                let known = self.ledger.pins.get(id).map_or(name, |pin| &pin.name);
                format!("{known} calls itself {name} now, which is known with a different key: it stays {known} here")
            }
            _ if revoked => format!(
                "{name} is the name of a revoked key. This peer, with a new key, is blocked. To let it in: ollana trust {id}. \
                 To let any new key have the name: ollana forget --name {name}"
            ),
            _ if self.is_present(by) => format!(
                "{name} is known with a different key, and that node is connected too. This peer is blocked. If both are \
                 yours, rename one of them: ollana config set name NAME there, and restart it"
            ),
            _ => format!(
                "{name} is known with a different key. This peer is blocked. If that machine was set up anew: ollana trust \
                 {id}"
            ),
        }
    }
}

/// A number of things at once, and then one every so often.
pub(super) struct Bucket {
    left: u32,
    burst: u32,
    every: Duration,
    pub(super) filled: Instant,
}

// === impl Bucket ===

impl Bucket {
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        Self { left: burst, burst, every, filled: Instant::now() }
    }

    /// Whether there is one. Takes nothing.
    pub(super) fn holds(&mut self, now: Instant) -> bool {
        while self.left < self.burst && now.duration_since(self.filled) >= self.every {
            self.left += 1;
            self.filled += self.every;
        }
        if self.left == self.burst {
            self.filled = now;
        }
        self.left > 0
    }

    /// Whether all are there.
    pub(super) fn is_full(&mut self, now: Instant) -> bool {
        self.holds(now) && self.left == self.burst
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let holds = self.holds(now);
        self.left -= u32::from(holds);
        holds
    }
}

/// A clock before 1970 counts as 1970.
pub(super) fn unix_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
