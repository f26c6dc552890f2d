//! The protocol of tickets: the user's half as it is (the [`Router`](ollana::internals::balance::Router)), against gates and a network
//! that are simulated, in virtual time, with all that may go wrong: messages that are late and overtake each other, silence,
//! connections that are lost, gates that crash, drain, fail and are full, applications that go away at any moment.
//!
//! Whatever happens: no request is at two servers at once, and none runs again once a byte of its answer was with the
//! application, or where it may have been acted on and must not be twice; none is lost, each is answered or refused with a
//! reason; a ticket goes with what it stands for; and at rest no slot is kept and no ticket left.
//!
//! `OLLANA_TEST_SEEDS` says how many seeds are run, `OLLANA_TEST_SEED` which one alone. The seed decides what happens to the
//! world; the router throws dice of its own where servers are equal, so a run cannot be repeated to the letter.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]

mod gate;
mod hall;
mod ledger;
mod network;
mod peer;
mod pulse;
mod random;
mod world;

use std::collections::BTreeSet;
use std::sync::Mutex;

use world::World;

const STEPS: usize = 100_000;
/// Between two looks at the whole world; what goes wrong in a request is noticed at once.
const AUDIT: usize = 16;

/// What has to happen, or the simulation shows nothing.
const WANTED: [&str; 16] = [
    "answered",
    "refused",
    "abandoned",
    "left in mid-answer",
    "broke off in mid-answer",
    "two tickets",
    "ticket withdrawn",
    "turn crosses a withdrawal",
    "turn whose request does not come",
    "too late for its slot",
    "queues again where its ticket was lost",
    "busy",
    "draining",
    "run again elsewhere",
    "given up while it ran",
    "a model is loaded",
];

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// What was seen on the way.
fn simulate(seed: u64) -> BTreeSet<&'static str> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = World::new(seed);
        for step in 0..STEPS {
            world.step().await;
            if step % AUDIT == 0 {
                world.check();
            }
        }
        world.rests().await;
        let seen = world.ledger.book().seen.clone();
        println!("seed {seed}: {seen:?}");
        seen.into_keys().collect()
    })
}

#[test]
fn whatever_happens_no_request_is_run_twice_or_lost_and_no_slot_or_ticket_leaks() {
    let seeds = match number("OLLANA_TEST_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("OLLANA_TEST_SEEDS").unwrap_or(2),
    };
    let next = Mutex::new(seeds);
    let seen = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(seed) = next.lock().unwrap().next() else { return };
                    let of_seed = simulate(seed);
                    seen.lock().unwrap().extend(of_seed);
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap();
    for wanted in WANTED {
        assert!(seen.contains(wanted), "never {wanted}: a simulation without it shows nothing of it");
    }
}
