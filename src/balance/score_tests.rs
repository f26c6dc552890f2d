use super::*;
use proptest::prelude::*;

/// Warm and idle, three slots: a server of the simulation's H1 at a tidy speed.
pub(in crate::balance) fn server() -> Server {
    Server {
        residence: Residence::Memory,
        running: 0.0,
        queued: 0.0,
        unreported: 0.0,
        own: 0.0,
        ahead: None,
        direct: 0.0,
        slots: 3.0,
        prefill: 1000.0,
        decode: 50.0,
        load_time: 6.0,
        only: true,
        busy_others: 0.0,
        others_running: 0.0,
        loads_before: 0.0,
        eviction: None,
        slowness: 1.0,
        caution: 1.0,
        newcomer: 1.0,
        preference: 1.0,
    }
}

/// 1 s of reading and 5 s of writing there; a usual one half of it.
pub(in crate::balance) fn request() -> Request {
    Request { prompt: 1000.0, cached: 0.0, output: 250.0, usual_prompt: 500.0, usual_output: 125.0 }
}

/// wait, load, service, externality, price, total.
fn parts(score: Score) -> [f64; 6] {
    [score.wait, score.load, score.service, score.externality, score.price, score.total]
}

#[track_caller]
fn assert_near(actual: [f64; 6], expected: [f64; 6]) {
    for (actual, wanted) in actual.iter().zip(&expected) {
        assert!((actual - wanted).abs() < 1e-9, "{actual} is not {wanted} in {expected:?}");
    }
}

// === Examples, computed by hand from the formula ===

#[test]
fn an_idle_warm_server_costs_the_work_alone() {
    // 1000/1000 + 250/50 = 6
    assert_near(parts(score(&server(), &request())), [0.0, 0.0, 6.0, 0.0, 0.0, 6.0]);
}

#[test]
fn a_cached_prompt_is_not_read_again() {
    // 200/1000 + 5 = 5.2
    let cached = Request { cached: 800.0, ..request() };
    assert_near(parts(score(&server(), &cached)), [0.0, 0.0, 5.2, 0.0, 0.0, 5.2]);
    // A last token has to be read whatever is cached.
    let all = Request { cached: 5000.0, ..request() };
    assert_near(parts(score(&server(), &all)), [0.0, 0.0, 5.001, 0.0, 0.0, 5.001]);
}

#[test]
fn in_a_batch_it_is_slower_and_slows_the_others() {
    let busy = Server { running: 1.0, ..server() };
    // b(2) = 1/1.2: service 6 · 1.2 = 7.2; externality 1 · (1 − (1/1.2)/1) · 7.2 = 1.2
    assert_near(parts(score(&busy, &request())), [0.0, 0.0, 7.2, 1.2, 0.0, 8.4]);
    let busier = Server { running: 2.0, ..server() };
    // b(3) = 1/1.4: service 8.4; externality 2 · (1 − 1.2/1.4) · 8.4 = 2.4
    assert_near(parts(score(&busier, &request())), [0.0, 0.0, 8.4, 2.4, 0.0, 10.8]);
}

#[test]
fn a_full_server_is_waited_for_and_has_its_price() {
    let full = Server { running: 3.0, queued: 1.5, unreported: 0.5, ..server() };
    // k = 5, k − c + 1 = 3; W̄ = 3: wait 3 · 3 / (3 · 1/1.4) = 4.2; service 8.4; price 0.5 · 3/3 · 8.4 = 4.2
    assert_near(parts(score(&full, &request())), [4.2, 0.0, 8.4, 0.0, 4.2, 16.8]);
    // With a ticket there only what stands before it counts: k = 4, and k − c + 1 = 2.
    let held = Server { ahead: Some(1.0), ..full };
    assert_near(parts(score(&held, &request())), [2.8, 0.0, 8.4, 0.0, 2.8, 14.0]);
}

#[test]
fn another_busy_runner_halves_the_speed_and_is_slowed_itself() {
    let shared = Server { only: false, busy_others: 1.0, others_running: 2.0, ..server() };
    // share 1/2: service 12; externality 2/2 · 12 = 12
    assert_near(parts(score(&shared, &request())), [0.0, 0.0, 12.0, 12.0, 0.0, 24.0]);
    // What runs at the gate's back is in one of the two, or in ours if there is no other.
    let direct = Server { direct: 1.0, ..shared };
    assert_near(parts(score(&direct, &request())), [0.0, 0.0, 12.0, 18.0, 0.0, 30.0]);
    let ours = Server { direct: 1.0, ..server() };
    assert_eq!(score(&ours, &request()), score(&Server { running: 1.0, ..server() }, &request()));
}

#[test]
fn a_cold_server_loads_first_and_counts_one_and_a_half_times() {
    let cold = Server { residence: Residence::Disk, ..server() };
    // 6 + 6, times 1.5. Nothing is cached where the model is not.
    let cached = Request { cached: 900.0, ..request() };
    assert_near(parts(score(&cold, &cached)), [0.0, 6.0, 6.0, 0.0, 0.0, 18.0]);
    let loading = Server { residence: Residence::Loading, ..server() };
    assert_near(parts(score(&loading, &request())), [0.0, 3.6, 6.0, 0.0, 0.0, 14.4]);
    // 6 + 2 before it + 10 until one is idle + 3 · 4 for what goes = 30
    let crowded = Server { loads_before: 2.0, eviction: Some(Eviction { drain: 10.0, victim: 4.0 }), ..cold };
    assert_near(parts(score(&crowded, &request())), [0.0, 30.0, 6.0, 0.0, 0.0, 54.0]);
}

#[test]
fn what_was_measured_outweighs_what_is_said() {
    let boaster = Server { slowness: 10.0, running: 3.0, ..server() };
    let honest = Server { prefill: 100.0, decode: 5.0, running: 3.0, ..server() };
    let (boast, truth) = (score(&boaster, &request()), score(&honest, &request()));
    assert_near(parts(boast), parts(truth));
    assert!((boast.promised - 8.4).abs() < 1e-9 && (truth.promised - 84.0).abs() < 1e-9);
    // It says that nothing runs, and we know of four.
    let silent = Server { own: 4.0, ..server() };
    assert!(!silent.has_free_slot() && score(&silent, &request()).wait > 0.0);
}

#[test]
fn caution_and_preference_are_factors() {
    let of = |server: Server| score(&server, &request());
    let failed = of(Server { caution: 3.0, newcomer: 2.0, preference: 0.5, ..server() });
    assert_eq!((failed.factor, failed.total), (1.5, 9.0));
    let newcomer = of(Server { newcomer: 2.0, ..server() });
    assert_eq!((newcomer.factor, newcomer.total), (2.0, 12.0));
    // That it has just come is no reason to wait elsewhere.
    assert_eq!((failed.alone(), newcomer.alone(), newcomer.finish()), (9.0, 6.0, 6.0));
}

#[test]
fn a_score_explains_itself() {
    let full = Server { running: 3.0, queued: 2.0, ..server() };
    assert_eq!(
        score(&full, &request()).to_string(),
        "16.80 s (warm) = (wait 4.20 + load 0.00 + service 8.40 of which 8.40 promised + externality 0.00 + price 4.20) × 1.00"
    );
}

// === Properties ===

pub(in crate::balance) fn servers() -> impl Strategy<Value = Server> {
    let residence = prop_oneof![Just(Residence::Memory), Just(Residence::Loading), Just(Residence::Disk)];
    let requests = || prop_oneof![Just(0.0), (0u32..40).prop_map(|half| f64::from(half) / 2.0)];
    let eviction = prop::option::of((0.0..600.0, 0.0..60.0).prop_map(|(drain, victim)| Eviction { drain, victim }));
    (
        (residence, 0u32..12, requests(), requests(), prop::option::of(requests()), 1u32..9),
        (1.0..1e5, 1.0..1e4, 0.0..300.0, any::<bool>(), 0u32..4, 0u32..9, 0u32..3),
        (0.0..100.0, eviction, 1.0..50.0, 1.0..10.0, 0.1..10.0),
    )
        .prop_map(|((residence, running, queued, unreported, ahead, slots), speeds, rest)| {
            let (prefill, decode, load_time, only, busy_others, others_running, direct) = speeds;
            let (loads_before, eviction, slowness, caution, preference) = rest;
            Server {
                residence,
                running: running.into(),
                queued,
                unreported,
                own: 0.0,
                ahead,
                direct: direct.into(),
                slots: slots.into(),
                prefill,
                decode,
                load_time,
                only,
                busy_others: if only { 0.0 } else { busy_others.into() },
                others_running: if only { 0.0 } else { others_running.into() },
                loads_before,
                eviction,
                slowness,
                caution,
                newcomer: 1.0,
                preference,
            }
        })
}

fn requests() -> impl Strategy<Value = Request> {
    (0.0..1e5, 0.0..1e5, 0.0..1e4, 0.0..1e4, 0.0..1e4).prop_map(
        |(prompt, cached, output, usual_prompt, usual_output)| Request {
            prompt,
            cached,
            output,
            usual_prompt,
            usual_output,
        },
    )
}

fn anything() -> impl Strategy<Value = f64> {
    prop_oneof![
        any::<f64>(),
        Just(0.0),
        Just(f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        Just(f64::MIN_POSITIVE),
        Just(-1.0)
    ]
}

proptest! {
    #[test]
    fn more_that_waits_never_attracts(server in servers(), request in requests(), more in 0.0..20.0) {
        let before = score(&server, &request).total;
        for heavier in [
            Server { queued: server.queued + more, ..server.clone() },
            Server { unreported: server.unreported + more, ..server.clone() },
            Server { own: more, ..server.clone() },
            Server { ahead: server.ahead.map(|ahead| ahead + more), ..server.clone() },
            Server { loads_before: server.loads_before + more, ..server.clone() },
        ] {
            prop_assert!(score(&heavier, &request).total >= before);
        }
    }

    /// Beyond the full batch; within it, an externality ends (see the module).
    #[test]
    fn more_that_runs_never_attracts_once_the_batch_is_full(server in servers(), request in requests()) {
        prop_assume!(server.running >= server.slots);
        let heavier = Server { running: server.running + 1.0, ..server.clone() };
        prop_assert!(score(&heavier, &request).total >= score(&server, &request).total);
    }

    #[test]
    fn a_slower_server_never_attracts(server in servers(), request in requests(), times in 1.0..20.0) {
        let before = score(&server, &request).total;
        for slower in [
            Server { prefill: server.prefill / times, ..server.clone() },
            Server { decode: server.decode / times, ..server.clone() },
            Server { load_time: server.load_time * times, ..server.clone() },
            Server { slowness: server.slowness * times, ..server.clone() },
            Server { caution: server.caution * times, ..server.clone() },
        ] {
            prop_assert!(score(&slower, &request).total >= before);
        }
    }

    #[test]
    fn more_in_the_cache_never_repels(server in servers(), request in requests(), more in 0.0..1e5) {
        let warmer = Request { cached: request.cached + more, ..request };
        prop_assert!(score(&server, &warmer).total <= score(&server, &request).total);
    }

    #[test]
    fn what_is_warm_beats_what_is_not(server in servers(), request in requests()) {
        let at = |residence| score(&Server { residence, only: false, ..server.clone() }, &request).total;
        prop_assert!(at(Residence::Memory) <= at(Residence::Loading));
        prop_assert!(at(Residence::Loading) <= at(Residence::Disk));
    }

    #[test]
    fn whatever_is_said_the_score_is_a_number(
        residence in prop_oneof![Just(Residence::Memory), Just(Residence::Loading), Just(Residence::Disk)],
        only: bool,
        v in prop::collection::vec(anything(), 23),
    ) {
        let server = Server {
            residence, only,
            running: v[0], queued: v[1], unreported: v[2], own: v[3], ahead: Some(v[4]), direct: v[5], slots: v[6],
            prefill: v[7], decode: v[8], load_time: v[9], busy_others: v[10], others_running: v[11],
            loads_before: v[12], eviction: Some(Eviction { drain: v[13], victim: v[14] }), slowness: v[15],
            caution: v[16], newcomer: v[17], preference: v[17],
        };
        let request =
            Request { prompt: v[18], cached: v[19], output: v[20], usual_prompt: v[21], usual_output: v[22] };
        let score = score(&server, &request);
        for part in parts(score) {
            prop_assert!(part.is_finite() && part >= 0.0, "{score:?}");
        }
        prop_assert!(score.factor.is_finite() && score.promised.is_finite());
    }
}
