use super::*;
use crate::balance::score::score;
use crate::exchange::Pace;
use proptest::prelude::*;

const GB: u64 = 1_000 * 1_048_576;

fn model(size: u64, prefill: f32, decode: f32, load: f32) -> ModelInfo {
    let pace =
        Pace { slots: Some(2), prefill: Some(prefill), decode: Some(decode), load: Some(load), ..Pace::default() };
    ModelInfo { size, pace, ..ModelInfo::default() }
}

fn unmeasured(size: u64) -> ModelInfo {
    ModelInfo { size, ..ModelInfo::default() }
}

#[test]
fn what_was_measured_stands() {
    let known = model(5 * GB, 900.0, 30.0, 7.5);
    let assumed = Machine::default().assume(1.0, &known, []);
    assert_eq!(assumed, Assumed { slots: 2, prefill: 900.0, decode: 30.0, load_time: 7.5 });
}

#[test]
fn a_model_that_has_not_run_there_is_as_fast_as_what_has_by_its_size() {
    let machine = Machine::of(&[model(4 * GB, 1000.0, 60.0, 3.5)]);
    let assumed = machine.assume(1.0, &unmeasured(8 * GB), &[model(8 * GB, 9e3, 9e3, 1.0)]);
    // Twice the bytes: half the speed, and the two seconds of reading become four.
    assert_eq!(assumed, Assumed { slots: 1, prefill: 500.0, decode: 30.0, load_time: 5.5 });
}

#[test]
fn a_server_that_nobody_knows_is_like_the_middle_of_the_others() {
    let others = [model(5 * GB, 100.0, 10.0, 1.0), model(5 * GB, 900.0, 40.0, 1.0), model(5 * GB, 300.0, 90.0, 1.0)];
    let assumed = Machine::default().assume(1.0, &unmeasured(5 * GB), &others);
    assert_eq!((assumed.prefill, assumed.decode, assumed.slots), (300.0, 40.0, 1));
    // How fast a disk is, and how many slots are set, says nothing of another machine.
    assert!((assumed.load_time - (1.5 + 5.0 * 1.048_576)).abs() < 1e-9);
}

#[test]
fn where_nothing_is_known_at_all_the_simulation_was_tuned_with_something() {
    let assumed = Machine::default().assume(1.0, &unmeasured(0), []);
    assert_eq!(assumed, Assumed { slots: 1, prefill: 1000.0, decode: 50.0, load_time: 6.5 });
    assert_eq!(Usual::of([]), Usual { prompt: 420.0, output: 262.0 });
}

#[test]
fn one_server_has_no_more_to_say_about_answers_than_another() {
    let of = |output| ModelInfo { pace: Pace { output: Some(output), ..Pace::default() }, ..ModelInfo::default() };
    let usual = Usual::of(&[of(200.0), of(300.0), of(1.0), of(250.0), of(1e7)]);
    assert_eq!(usual, Usual { prompt: 420.0, output: 250.0 });
}

fn server(load: &Load, name: &str, models: &BTreeMap<String, ModelInfo>) -> Server {
    let machine = Machine::of(models.values());
    let assumed = machine.assume(1.0, &models[name], []);
    Server::of(name, load, models, &machine, assumed, Usual { prompt: 500.0, output: 100.0 }, 1.0)
}

fn busy(residence: Residence, running: u32, queued: f32) -> ModelLoad {
    ModelLoad { residence, running, queued, ..ModelLoad::default() }
}

#[test]
fn a_load_becomes_what_a_score_is_made_of() {
    // 500 tokens in half a second and 100 in one: 1.5 s of work; b(2) = 1/1.2.
    let models = BTreeMap::from(["a", "b", "c", "d"].map(|name| (name.to_owned(), model(5 * GB, 1000.0, 100.0, 8.0))));
    let load = Load {
        direct: 1,
        most_loaded: Some(2),
        models: BTreeMap::from([
            ("a".to_owned(), busy(Residence::Memory, 2, 1.5)),
            ("b".to_owned(), busy(Residence::Memory, 1, 0.0)),
            ("c".to_owned(), busy(Residence::Loading, 0, 1.0)),
        ]),
        ..Load::default()
    };
    let a = server(&load, "a", &models);
    assert_eq!((a.residence, a.running, a.queued, a.slots), (Residence::Memory, 2.0, 1.5, 2.0));
    assert_eq!((a.only, a.busy_others, a.others_running, a.direct), (false, 1.0, 1.0, 1.0));

    let d = server(&load, "d", &models);
    assert_eq!((d.residence, d.running, d.busy_others, d.others_running), (Residence::Disk, 0.0, 2.0, 3.0));
    assert_eq!(d.loads_before, 4.0, "half of the load that is under way");
    // The first to be idle is b: 1 · 1.5 / (2 · 1/1.2 · 1/3) = 2.7
    let Eviction { drain, victim } = d.eviction.unwrap();
    assert!((drain - 2.7).abs() < 1e-6 && victim == 8.0, "{drain}");
}

#[test]
fn nothing_is_thrown_out_where_there_is_room_and_nothing_waited_for_where_one_is_idle() {
    let models = BTreeMap::from(["a", "b"].map(|name| (name.to_owned(), model(5 * GB, 1000.0, 100.0, 8.0))));
    let with = |most_loaded, direct, running| {
        let models_now = BTreeMap::from([("a".to_owned(), busy(Residence::Memory, running, 0.0))]);
        server(&Load { most_loaded, direct, models: models_now, ..Load::default() }, "b", &models).eviction
    };
    assert_eq!(with(None, 0, 0), None);
    assert_eq!(with(Some(2), 0, 0), None);
    assert_eq!(with(Some(1), 0, 0).unwrap().drain, 0.0);
    assert!(with(Some(1), 0, 1).unwrap().drain > 0.0);
    assert!(with(Some(1), 1, 0).unwrap().drain > 0.0, "what is at the gate's back may run in it");
    assert_eq!(with(Some(0), 0, 0).unwrap().victim, 8.0);
}

proptest! {
    /// Anything that can stand in a report gives inputs that give a number.
    #[test]
    fn whatever_a_peer_says_becomes_a_score(
        numbers in prop::collection::vec((any::<u32>(), any::<f32>(), any::<u64>(), any::<f32>(), 0u8..3), 1..9),
        most_loaded: Option<u32>,
        direct: u32,
    ) {
        let mut models = BTreeMap::new();
        let mut load = Load { most_loaded, direct, ..Load::default() };
        for (index, (running, float, size, other, residence)) in numbers.into_iter().enumerate() {
            let pace = Pace {
                slots: Some(running), prefill: Some(float), decode: Some(other), load: Some(float),
                prompt: Some(other), output: Some(float),
            };
            models.insert(index.to_string(), ModelInfo { size, pace, ..ModelInfo::default() });
            let residence = [Residence::Memory, Residence::Loading, Residence::Disk][usize::from(residence)];
            load.models.insert(index.to_string(), ModelLoad { residence, running, queued: float, begun: running, waited: float.into() });
        }
        let server = server(&load, "0", &models);
        let score = score(&server, &Usual::of(models.values()).request(1000.0, 0.0));
        prop_assert!(score.total.is_finite() && score.total >= 0.0, "{server:?} {score:?}");
    }
}

#[test]
fn a_size_that_no_model_has_is_not_known() {
    let unknown = Machine::default().assume(1.0, &unmeasured(0), []);
    for size in [1, 999_999, 3_000_000_000_000, u64::MAX] {
        assert_eq!(Machine::default().assume(1.0, &unmeasured(size), []), unknown, "{size}");
        // Then it is what others say of the same model.
        let like = Machine::default().assume(1.0, &unmeasured(size), &[unmeasured(GB)]);
        assert_eq!(like, Machine::default().assume(1.0, &unmeasured(GB), []));
    }
    assert_ne!(Machine::default().assume(1.0, &unmeasured(50_000_000), []), unknown);
}
