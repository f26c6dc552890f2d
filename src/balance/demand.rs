//! How the servers of a model were used in the recent past, as far as this node has seen it: how long requests have waited for
//! the model, and for how long a server has had nothing to do.
//!
//! **Sustained queueing justifies a load.** No request may be worth a load by itself, where answers are shorter than that, and
//! yet one always waits. So the time that requests have waited at the servers that have the model in memory is added up. Once
//! it is more than what a load costs at a server that has the model on disk, the next request that would wait is reason enough
//! (rent or buy: at most twice what the best choice in hindsight would have cost). The waiting is that of all nodes, since each
//! may see only a little of it; providers count it ([`waited`](crate::exchange::ModelLoad::waited)).
//!
//! **No stampede.** All nodes see the same, and find a load justified at the same time. They choose the same server for it (the
//! cheapest, the first of equals), whose queue admits no more than it has slots; a load that is under way or done anywhere
//! spends what was waited. **No thrash.** Where another model has to go for it, waiting only counts while that server has
//! nothing to do, and for no less than [`REST`]. In the simulation of eight unlike servers and six models (eight seeds) loads
//! an hour at 85 % rise from 11 to 14, without these two to 26, and p99 of the time to the first token goes from 29.0 to 28.4 s.
//!
//! **No server idles for what is held against it.** One that has had nothing to do for a while, since it seems slow by its own
//! word or by a measurement, is measured again ([`Noted::idle`]).
//!
//! No clock: all times are the servers', and the moment is an argument.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::exchange::{ModelLoad, Residence};
use crate::id::Id;
use crate::route::ModelName;

/// How long it takes until half of what was waited is forgotten; longer where a load costs more, or a large model would never
/// be loaded.
const HALF_LIFE: Duration = Duration::from_secs(60);
/// For how long the requests of a server's other models must have been over before one of them is put out of memory because
/// others wait. One that comes every few seconds is in use.
const REST: Duration = Duration::from_secs(30);
/// A load that is under way for longer is no help to be waited for: a server may say so for ever, or again and again. For as
/// long again it is not believed.
const LONGEST_LOAD: Duration = Duration::from_secs(300);
/// Requests that are believed to wait at one server at a time.
const MOST_WAITING: f64 = 256.0;
/// Models of which something is remembered.
const MAX_MODELS: usize = 128;

/// The records of each model and server.
#[derive(Debug, Default)]
pub(super) struct Demand(HashMap<ModelName, Record>);

/// One server that has a model, as it is now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sight {
    pub(super) id: Id,
    /// Its report of the model, with [`waited`](ModelLoad::waited) in the servers' time.
    pub(super) load: ModelLoad,
    /// Seconds that loading the model there costs.
    pub(super) cost: f64,
    /// Whether another model has to go for that.
    pub(super) evicts: bool,
    /// Whether it works on something else.
    pub(super) busy: bool,
}

/// The conclusion for one server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Noted {
    /// Whether what was waited for the model is reason enough to load it there.
    pub(super) due: bool,
    /// For how long it has had nothing to do, as far as this node knows.
    pub(super) idle: Duration,
}

#[derive(Debug)]
struct Record {
    looked: Instant,
    servers: HashMap<Id, Server>,
}

#[derive(Debug, Clone, Copy)]
struct Server {
    /// As it was at the last look at it, which was then.
    sight: Sight,
    looked: Instant,
    /// All waiting time there, as far as it is known by now.
    waited: f64,
    /// Waiting time elsewhere while the model could have been loaded here.
    credit: f64,
    /// Since when nothing kept it from that.
    free: Instant,
    /// Since when it has nothing to do.
    idle: Instant,
    /// When it began to load the model, which helps those who wait.
    helped: Option<Instant>,
}

// === impl Demand ===

impl Demand {
    /// Takes a look at servers that have the model; what follows for each of them, in their order.
    pub(super) fn look(&mut self, model: &ModelName, sights: &[Sight], now: Instant) -> Vec<Noted> {
        if self.0.len() >= MAX_MODELS && !self.0.contains_key(model) {
            let oldest = self.0.iter().min_by_key(|(_, record)| record.looked).map(|(model, _)| model.clone());
            oldest.map(|oldest| self.0.remove(&oldest));
        }
        let new = || Record { looked: now, servers: HashMap::new() };
        let record = self.0.entry(model.clone()).or_insert_with(new);
        record.look(sights, now);
        sights.iter().map(|sight| record.noted(sight, now)).collect()
    }

    /// A load is about to begin: what was waited has paid for it.
    pub(super) fn spend(&mut self, model: &ModelName) {
        for server in self.0.get_mut(model).into_iter().flat_map(|record| record.servers.values_mut()) {
            server.credit = 0.0;
        }
    }
}

// === impl Record ===

impl Record {
    /// A request may be for some of the servers only: what waits at those counts for all.
    fn look(&mut self, sights: &[Sight], now: Instant) {
        // Of what was not looked at for longer nobody knows what was in between.
        self.servers.retain(|_, server| now.saturating_duration_since(server.looked) <= HALF_LIFE);
        let (mut waited, mut helped) = (0.0, false);
        for sight in sights {
            let server = self.servers.entry(sight.id).or_insert_with(|| Server::new(*sight, now));
            let (more, helps) = server.look(sight, now);
            waited += more;
            helped |= helps;
        }
        let past = now.saturating_duration_since(self.looked).as_secs_f64();
        self.looked = now;
        for server in self.servers.values_mut() {
            if helped || (server.sight.evicts && server.sight.busy) {
                (server.credit, server.free) = (0.0, now);
            } else {
                let half_life = HALF_LIFE.as_secs_f64().max(server.sight.cost);
                server.credit = server.credit * (-past / half_life).exp2() + waited;
            }
        }
    }

    fn noted(&self, sight: &Sight, now: Instant) -> Noted {
        let Some(server) = self.servers.get(&sight.id) else { return Noted { due: false, idle: Duration::ZERO } };
        let rested = !sight.evicts || now.saturating_duration_since(server.free) >= REST;
        let due = sight.load.residence == Residence::Disk && server.credit > sight.cost && rested;
        Noted { due, idle: now.saturating_duration_since(server.idle) }
    }
}

// === impl Server ===

impl Server {
    fn new(sight: Sight, now: Instant) -> Self {
        Self { sight, looked: now, waited: sight.load.waited, credit: 0.0, free: now, idle: now, helped: None }
    }

    /// The waiting time there for a model in memory since the last look, and whether it has begun to help.
    fn look(&mut self, sight: &Sight, now: Instant) -> (f64, bool) {
        let past = now.saturating_duration_since(std::mem::replace(&mut self.looked, now)).as_secs_f64();
        let (before, load) = (std::mem::replace(&mut self.sight, *sight).load, sight.load);
        if load.running > 0 || load.begun != before.begun || sight.busy {
            self.idle = now;
        }
        let in_memory = |load: &ModelLoad| load.residence == Residence::Memory;
        let loads = load.residence == Residence::Loading || (in_memory(&load) && !in_memory(&before));
        if loads && self.helped.is_none_or(|at| now.saturating_duration_since(at) > 2 * LONGEST_LOAD) {
            self.helped = Some(now);
        }
        let helps = loads && self.helped.is_some_and(|at| now.saturating_duration_since(at) <= LONGEST_LOAD);
        // It counts when one comes or goes. While those wait who waited then, they wait on.
        let queued = f64::from(load.queued).clamp(0.0, MOST_WAITING);
        let waited = if load.waited == before.waited { self.waited + queued * past } else { load.waited };
        let more = (waited - self.waited).clamp(0.0, MOST_WAITING * past);
        self.waited = waited;
        let counts = in_memory(&before) && in_memory(&load) && more.is_finite();
        (if counts { more } else { 0.0 }, helps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Two servers: one has the model in memory, where so many wait, and loading it at the other costs 5 s.
    struct Pair {
        demand: Demand,
        model: ModelName,
        now: Instant,
        warm: Sight,
        cold: Sight,
    }

    impl Pair {
        fn new(queued: f32) -> Self {
            let sight =
                |name: &[u8], load| Sight { id: Id::of_spki(name), load, cost: 5.0, evicts: false, busy: false };
            let load = ModelLoad { residence: Residence::Memory, running: 1, queued, ..ModelLoad::default() };
            let (warm, cold) = (sight(b"warm", load), sight(b"cold", ModelLoad::default()));
            Self { demand: Demand::default(), model: ModelName::new("m"), now: Instant::now(), warm, cold }
        }

        /// Looks every second for so long; when the load was justified first.
        fn due_within(&mut self, seconds: u32) -> Option<u32> {
            (0..=seconds).find(|_| {
                let due = self.look().due;
                self.now += SECOND;
                due
            })
        }

        fn look(&mut self) -> Noted {
            let noted = self.demand.look(&self.model, &[self.warm, self.cold], self.now);
            assert!(!noted[0].due, "it is in memory there");
            noted[1]
        }
    }

    #[test]
    fn waiting_that_costs_more_than_the_load_justifies_it() {
        assert_eq!(Pair::new(1.0).due_within(60), Some(6));
        assert_eq!(Pair::new(10.0).due_within(60), Some(1));
        assert_eq!(Pair::new(0.0).due_within(600), None);
        // One that takes long to load needs one that always waits, and a few minutes.
        let mut large = Pair::new(1.0);
        large.cold.cost = 100.0;
        let due = large.due_within(1000).unwrap();
        assert!((100..200).contains(&due), "{due}");
    }

    #[test]
    fn many_short_waits_count_as_the_provider_has_counted_them() {
        // The queue is empty whenever this node looks.
        let mut pair = Pair::new(0.0);
        for second in 0..20 {
            pair.warm.load.waited = f64::from(second) * 0.5;
            assert_eq!(pair.look().due, second > 10, "{second}");
            pair.now += SECOND;
        }
    }

    #[test]
    fn waiting_that_is_long_ago_or_seldom_does_not() {
        let mut pair = Pair::new(4.0);
        pair.look();
        pair.now += SECOND;
        pair.look();
        // Four seconds of a minute ago, and two of now.
        pair.warm.load.queued = 0.0;
        for _ in 0..60 {
            pair.now += SECOND;
            pair.look();
        }
        pair.warm.load.queued = 2.0;
        pair.now += SECOND;
        assert!(!pair.look().due);
        let mut rare = Pair::new(0.0);
        for _ in 0..100 {
            rare.warm.load.waited += 1.0;
            rare.now += 61 * SECOND;
            assert!(!rare.look().due);
        }
    }

    #[test]
    fn a_load_that_begins_or_is_done_spends_what_was_waited() {
        let mut pair = Pair::new(1.0);
        assert!(pair.due_within(10).is_some());
        pair.demand.spend(&pair.model);
        assert!(!pair.look().due, "by this node");
        assert!(pair.due_within(10).is_some_and(|second| second >= 4));
        for residence in [Residence::Loading, Residence::Memory] {
            let mut pair = Pair::new(1.0);
            assert!(pair.due_within(10).is_some());
            let third = Sight { id: Id::of_spki(b"third"), ..pair.cold };
            let mut look = |residence| {
                let third = Sight { load: ModelLoad { residence, ..third.load }, ..third };
                pair.demand.look(&pair.model, &[pair.warm, pair.cold, third], pair.now)[1].due
            };
            assert!(look(Residence::Disk));
            assert!(!look(residence), "at another server");
        }
    }

    #[test]
    fn a_server_that_loads_for_ever_holds_nothing_up() {
        let mut pair = Pair::new(1.0);
        let stuck = ModelLoad { residence: Residence::Loading, ..ModelLoad::default() };
        let stuck = Sight { id: Id::of_spki(b"stuck"), load: stuck, ..pair.cold };
        let mut due = None;
        for second in 0..400 {
            let noted = pair.demand.look(&pair.model, &[pair.warm, pair.cold, stuck], pair.now + second * SECOND);
            due = due.or(noted[1].due.then_some(second));
        }
        assert!(due.is_some_and(|second| (300..320).contains(&second)), "{due:?}");
        // Nor one that always begins anew.
        let mut pair = Pair::new(1.0);
        let mut due = 0;
        for second in 0..1200 {
            let residence = if second % 2 == 0 { Residence::Loading } else { Residence::Disk };
            let stuck = Sight { load: ModelLoad { residence, ..stuck.load }, ..stuck };
            due += u32::from(
                pair.demand.look(&pair.model, &[pair.warm, pair.cold, stuck], pair.now + second * SECOND)[1].due,
            );
        }
        assert!(due > 500, "{due}");
    }

    #[test]
    fn a_model_that_is_in_use_is_not_put_out_for_one_that_is_waited_for() {
        let mut pair = Pair::new(4.0);
        (pair.cold.evicts, pair.cold.busy) = (true, true);
        assert_eq!(pair.due_within(100), None);
        // A request every ten seconds.
        for second in 0..300 {
            pair.cold.busy = second % 10 == 0;
            assert!(!pair.look().due);
            pair.now += SECOND;
        }
        pair.cold.busy = false;
        assert!(pair.due_within(60).is_some_and(|second| second >= 20), "it is used no more");
        // Where there is room for both, both may be busy.
        (pair.cold.evicts, pair.cold.busy) = (false, true);
        pair.demand.spend(&pair.model);
        assert!(pair.due_within(10).is_some());
    }

    #[test]
    fn a_request_for_one_server_only_loses_nothing_of_what_waits() {
        let mut pair = Pair::new(1.0);
        for second in 0..20 {
            let sights = [pair.warm, pair.cold];
            let sights = if second % 4 == 0 { &sights[..] } else { &sights[..1] };
            let noted = pair.demand.look(&pair.model, sights, pair.now + second * SECOND);
            if let [_, cold] = noted[..] {
                assert_eq!(cold.due, second > 5, "{second}");
            }
        }
    }

    #[test]
    fn idle_is_what_runs_nothing_and_has_begun_nothing() {
        let mut pair = Pair::new(0.0);
        pair.cold.load.residence = Residence::Memory;
        let idle = |pair: &mut Pair| {
            pair.now += 5 * SECOND;
            pair.look().idle
        };
        assert_eq!(pair.look().idle, Duration::ZERO);
        assert_eq!((idle(&mut pair), idle(&mut pair)), (5 * SECOND, 10 * SECOND));
        pair.cold.load.begun += 1;
        assert_eq!(idle(&mut pair), Duration::ZERO, "one between two looks");
        assert_eq!(idle(&mut pair), 5 * SECOND);
        pair.cold.busy = true;
        assert_eq!(idle(&mut pair), Duration::ZERO);
    }

    #[test]
    fn whatever_a_provider_counts_a_second_is_bounded() {
        for absurd in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let mut pair = Pair::new(0.0);
            pair.look();
            pair.cold.cost = MOST_WAITING * 1.5;
            pair.warm.load.waited = absurd;
            pair.now += SECOND;
            assert!(!pair.look().due);
            pair.warm.load.waited = 0.0;
            pair.now += SECOND;
            assert!(!pair.look().due);
        }
    }
}
