//! Peers that come, wait, run, change their minds and die, and words of theirs that come late and in any order; held
//! against a book kept beside.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

const STEPS: usize = 100_000;
const MODELS: [&str; 4] = ["a", "b", "c", "d"];
const PEERS: u8 = 12;

/// What a peer has said and the gate has not heard yet.
#[derive(Debug, Clone, Copy)]
enum Word {
    Sent(EntryId),
    Answered(EntryId, bool),
    End(EntryId),
}

/// One entry, as the book has it.
#[derive(Debug, Clone)]
struct Known {
    flow: Flow,
    model: Model,
    counts: f64,
    runs: bool,
    /// Grants to peers that it may see before its own.
    patience: f64,
}

/// Each fourth of them is trusted by a person.
fn flow(n: u8) -> Flow {
    if n.is_multiple_of(4) { Flow::Trusted(Id::from_bytes([n; 32])) } else { peer(n) }
}

/// As many as may be found out.
fn slots(rng: &mut StdRng) -> Slots {
    Slots { at_once: rng.random_range(1..5), probe: rng.random_bool(0.3) }
}

struct World {
    rng: StdRng,
    now: Instant,
    queue: Queue,
    limits: Limits,
    weights: BTreeMap<Flow, f64>,
    known: BTreeMap<EntryId, Known>,
    slots: BTreeMap<Model, Slots>,
    /// On their way, in no order.
    words: Vec<Word>,
    granted: usize,
    refused: usize,
    seen: usize,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let weights = (0..PEERS).step_by(3).map(|n| (flow(n), rng.random_range(0.3..4.0))).collect();
        let limits = Limits {
            waiting: 60,
            waiting_each: 16,
            waiting_strangers: 40,
            reserve: rng.random_range(0..2),
            tell: TELL,
        };
        let slots = MODELS.iter().map(|model| (Model::from(*model), slots(&mut rng))).collect();
        let queue = Queue::new(limits.clone());
        let (now, known, words) = (Instant::now(), BTreeMap::new(), Vec::new());
        Self { rng, now, queue, limits, weights, known, slots, words, granted: 0, refused: 0, seen: 0 }
    }

    /// How many slots of a model are not the owner's alone.
    fn for_others(&self, model: &str) -> usize {
        let slots = self.slots[&Model::from(model)];
        let others = match self.limits.reserve {
            0 => slots.tried(),
            reserve => slots.at_once.saturating_sub(reserve),
        };
        others.max(1) as usize
    }

    fn weight(&self, flow: Flow) -> f64 {
        self.weights.get(&flow).copied().unwrap_or(1.0)
    }

    fn any_flow(&mut self) -> Flow {
        match self.rng.random_range(0..PEERS + 3) {
            0 | 1 => Flow::Owner,
            2 => Flow::Guest,
            n => flow(n - 3),
        }
    }

    fn of(&self, model: &str, runs: bool) -> impl Iterator<Item = (&EntryId, &Known)> {
        self.known.iter().filter(move |(_, known)| &*known.model == model && known.runs == runs)
    }

    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.random_range(0..40));
        match self.rng.random_range(0..100) {
            0..38 => self.arrive(),
            38..90 => self.hear(),
            90..93 => self.withdraw(),
            93 => self.crash(),
            94 => self.look(),
            95 if self.rng.random_bool(0.05) => self.queue.handle_closed(self.now, RefusalCode::NotLent),
            _ => self.queue.handle_timeout(self.now),
        }
        self.events();
        self.check();
    }

    fn arrive(&mut self) {
        let flow = self.any_flow();
        let model = Model::from(MODELS[self.rng.random_range(0..MODELS.len())]);
        let slots = self.slots[&model];
        let copies = self.rng.random_bool(0.6).then(|| self.rng.random_range(0..4));
        let before = self.of(&model, false).filter(|(_, known)| known.flow == flow).count() as f64;
        let weight = self.weight(flow);
        let all = || (0..PEERS).map(self::flow).chain([Flow::Guest]);
        // In the time of k turns of its own each other of its class has its share of turns, and its lead and one more at
        // either end.
        let alike = all().filter(|other| *other != flow && other.is_stranger() == flow.is_stranger());
        let turns = alike.map(|other| self.weight(other) * (before + 1.0) / weight + 2.0 * f64::from(LEAD + 1));
        let turns = turns.sum::<f64>() + before;
        // Strangers have every other turn at most. The others have one for each of theirs or, if that is more, their share,
        // and what they may be behind by.
        let known: f64 = all().filter(|flow| !flow.is_stranger()).map(|flow| self.weight(flow)).sum();
        let patience = match flow.is_stranger() {
            true => turns + (turns + 1.0) * (known / weight).max(1.0) + f64::from(LEAD) * known,
            false => 2.0 * (turns + 1.0),
        };
        match self.queue.handle_arrival(self.now, Arrival { flow, weight, model: model.clone(), slots, copies }) {
            Ok(id) => {
                let counts = 1.0 / f64::from(copies.unwrap_or(1).max(1));
                let known = Known { flow, model, counts, runs: false, patience };
                assert!(self.known.insert(id, known).is_none(), "an ID was used twice");
            }
            Err(refusal) if refusal.code == RefusalCode::Busy => self.refused += 1,
            Err(refusal) => panic!("{refusal:?}"),
        }
    }

    /// One of the words arrives, perhaps not the oldest; now and then twice.
    fn hear(&mut self) {
        if self.words.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.words.len());
        let word = if self.rng.random_bool(0.05) { self.words[at] } else { self.words.swap_remove(at) };
        match word {
            Word::Sent(id) => self.queue.handle_sent(self.now, id),
            Word::Answered(id, ran) => self.queue.handle_answer(self.now, id, ran),
            Word::End(id) => self.end(id),
        }
    }

    fn end(&mut self, id: EntryId) {
        self.known.remove(&id);
        self.queue.handle_end(self.now, id);
    }

    /// Somebody's twin was granted elsewhere, whether this one waits or is granted already.
    fn withdraw(&mut self) {
        if self.known.is_empty() {
            return;
        }
        let at = self.rng.random_range(0..self.known.len());
        let id = *self.known.keys().nth(at).unwrap();
        self.end(id);
    }

    fn crash(&mut self) {
        let flow = self.any_flow();
        let its: Vec<_> = self.known.iter().filter(|(_, known)| known.flow == flow).map(|(id, _)| *id).collect();
        for id in its {
            self.end(id);
            self.events();
        }
    }

    fn look(&mut self) {
        let found = MODELS.map(|model| {
            let slots = slots(&mut self.rng);
            (model, Found { loaded: Some(self.rng.random_bool(0.5)), slots, load_time: LOAD_TIME })
        });
        self.slots = found.iter().map(|(model, found)| (Model::from(*model), found.slots)).collect();
        self.queue.handle_look(self.now, self.now, &found.into());
    }

    fn events(&mut self) {
        while let Some(event) = self.queue.poll_event() {
            match event {
                Event::Granted(id) => self.grant(id),
                Event::Refused(id, _) => {
                    let known = self.known.remove(&id).expect("refused is who is there");
                    assert!(!known.runs && known.flow != Flow::Owner);
                    self.refused += 1;
                }
                Event::Moved(id, place) => {
                    if let Some(known) = self.known.get(&id).filter(|known| !known.runs) {
                        let all: f64 = self.of(&known.model, false).map(|(_, known)| known.counts).sum();
                        assert!((0.0..=all + 0.01).contains(&f64::from(place.ahead)));
                    }
                    self.seen += 1;
                }
            }
        }
    }

    fn grant(&mut self, id: EntryId) {
        self.granted += 1;
        let Known { model, flow, runs, .. } = self.known.get(&id).expect("granted is who is there").clone();
        assert!(!runs, "granted twice");
        let (slots, running) = (self.slots[&model].tried() as usize, self.of(&model, true).count());
        assert!(running < slots, "{running} run on {slots} slots, and one more");
        if flow != Flow::Owner {
            let lent = self.of(&model, true).filter(|(_, known)| known.flow != Flow::Owner).count();
            assert!(lent < self.for_others(&model), "lent {lent} of {slots}");
            for (_, known) in self.known.iter_mut().filter(|(_, known)| known.model == model && !known.runs) {
                known.patience -= 1.0;
            }
        }
        let known = self.known.get_mut(&id).unwrap();
        known.runs = true;
        assert!(flow == Flow::Owner || known.patience >= -1.0, "{known:?} has waited too long");
        // What it will say. Some tickets are left, some requests fail.
        let ran = self.rng.random_bool(0.9);
        match self.rng.random_range(0..10) {
            0 => self.words.push(Word::End(id)),
            1 => self.words.extend([Word::Sent(id), Word::End(id)]),
            _ => self.words.extend([Word::Sent(id), Word::Answered(id, ran), Word::End(id)]),
        }
    }

    /// The queue says what the book says, and lets nobody wait for what is free.
    fn check(&mut self) {
        for model in MODELS {
            let load = self.queue.load(model).unwrap_or_default();
            assert_eq!(load.running as usize, self.of(model, true).count());
            let queued: f64 = self.of(model, false).map(|(_, known)| known.counts).sum();
            assert!((f64::from(load.queued) - queued).abs() < 0.01);
            let slots = self.slots[&Model::from(model)].tried() as usize;
            let lent = self.of(model, true).filter(|(_, known)| known.flow != Flow::Owner).count();
            if (load.running as usize) < slots {
                let may = lent < self.for_others(model);
                let idle = self.of(model, false).find(|(_, known)| known.flow == Flow::Owner || may);
                assert!(idle.is_none(), "{idle:?} waits for one of {slots} slots");
            }
        }
        let waiting = |who: fn(&Flow) -> bool| self.known.values().filter(|k| !k.runs && who(&k.flow)).count();
        assert!(waiting(|flow| *flow != Flow::Owner) <= self.limits.waiting);
        assert!(waiting(|flow| *flow == Flow::Owner) <= self.limits.waiting);
        assert!(waiting(|flow| *flow == peer(0)) <= self.limits.waiting_each);
    }

    /// Nobody new comes, and all that waits gets on.
    fn finish(&mut self) {
        while let Some(id) = self.known.iter().find(|(_, known)| known.runs).map(|(id, _)| *id) {
            self.end(id);
            self.events();
            self.check();
        }
        assert!(self.known.is_empty(), "somebody waits for ever: {:?}", self.known);
        self.queue.handle_look(self.now, self.now, &BTreeMap::new());
        assert!(self.queue.entries.is_empty() && self.queue.waiting.is_empty() && self.queue.lines.is_empty());
    }
}

#[test]
fn no_slot_leaks_and_nobody_waits_in_vain() {
    for seed in 0..4 {
        let mut world = World::new(seed);
        for _ in 0..STEPS {
            world.step();
        }
        assert!(world.granted > STEPS / 10 && world.refused > 100 && world.seen > 1000, "it did something");
        world.finish();
    }
}
