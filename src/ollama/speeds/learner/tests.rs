use proptest::prelude::*;

use super::*;

/// A runner that decodes and evaluates at known speeds, in milliseconds, with answers one after the other.
struct Simulated {
    learner: Learner,
    start: Instant,
    now: u64,
    prefill: f64,
    decode: f64,
    /// Tokens in a frame; 0: not streamed.
    a_frame: u64,
    next_beat: u64,
}

/// One of its answers.
#[derive(Clone, Copy)]
struct Request {
    prompt: f64,
    cached: f64,
    output: u64,
    says: bool,
}

const USUAL: Request = Request { prompt: 400.0, cached: 0.0, output: 100, says: true };

impl Simulated {
    fn new(prefill: f64, decode: f64) -> Self {
        let learner = Learner::new(Duration::from_secs(1));
        Self { learner, start: Instant::now(), now: 0, prefill, decode, a_frame: 1, next_beat: 1000 }
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn pass(&mut self, until: u64) {
        while self.next_beat <= until {
            self.now = self.next_beat;
            self.learner.beat();
            self.next_beat += 1000;
        }
        self.now = self.now.max(until);
    }

    /// Several at once in one batch, all alike. `b`: how much slower each of them is for it.
    fn run(&mut self, model: &str, request: Request, count: usize) {
        self.run_until(model, request, count, |_, _| ());
    }

    fn run_until(&mut self, model: &str, request: Request, count: usize, mut each: impl FnMut(&mut Self, u64)) {
        let b = super::super::crowd::batch(u32::try_from(count).unwrap());
        self.learner.told(Some(8), &BTreeMap::new());
        let began = self.now;
        let runs: Vec<_> =
            (0..count).map(|_| self.learner.begin(model, Work::Generate, true, self.at(began))).collect();
        let prompt_time = (request.prompt - request.cached) / (self.prefill * b);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let first = began + (prompt_time * 1e3) as u64;
        let mut at = first as f64;
        for token in 0..request.output {
            if token > 0 {
                at += 1e3 / (self.decode * b);
            }
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            self.pass(at as u64);
            if self.a_frame > 0 && token % self.a_frame == 0 {
                for (id, meter) in &runs {
                    if meter.frame((self.now - began) * 1000, true) {
                        self.learner.first(*id, self.at(self.now));
                    }
                }
            }
            each(self, token);
        }
        let output_time = (self.now - first) as f64 / 1e3;
        for (id, meter) in &runs {
            meter.frame((self.now - began) * 1000, true);
            let said = match request.says {
                true => Said {
                    total: Some(prompt_time + output_time),
                    load: Some(0.03),
                    prompt: Some(request.prompt),
                    prompt_time: Some(prompt_time),
                    output: Some(request.output as f64),
                    output_time: Some(output_time),
                    only_loads: false,
                },
                false => Said { prompt: Some(request.prompt), output: Some(request.output as f64), ..Said::default() },
            };
            self.learner.over(*id, said, true, self.at(self.now));
        }
    }

    fn pace(&self, model: &str) -> Pace {
        self.learner.paces().find(|(name, _)| *name == model).map(|(_, pace)| pace).unwrap_or_default()
    }
}

fn near(value: Option<f32>, truth: f64, by: f64) -> bool {
    value.is_some_and(|value| (f64::from(value) / truth - 1.0).abs() <= by)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_speeds_of_a_request_alone_are_found_however_many_run_and_whether_they_stream(
        prefill in 100.0..3000.0_f64,
        decode in 5.0..150.0_f64,
        a_frame in 0..3_u64,
        requests in prop::collection::vec((64.0..2000.0_f64, 20..200_u64, 1..5_usize), 6..12),
    ) {
        let mut simulated = Simulated::new(prefill, decode);
        simulated.a_frame = a_frame;
        let mut outputs = 0.0;
        let count = requests.len() as f64;
        for (prompt, output, at_once) in requests {
            outputs += output as f64 / count;
            simulated.run("m", Request { prompt, output, ..USUAL }, at_once);
        }
        let pace = simulated.pace("m");
        prop_assert!(near(pace.prefill, prefill, 0.1), "{pace:?}, not {prefill}");
        prop_assert!(near(pace.decode, decode, 0.15), "{pace:?}, not {decode}");
        prop_assert!(near(pace.output, outputs, 0.6), "{pace:?}, not {outputs}");
        prop_assert!(simulated.learner.is_idle());
    }

    #[test]
    fn a_long_conversation_does_not_make_the_server_look_fast(
        prefill in 100.0..3000.0_f64,
        turns in prop::collection::vec(100.0..600.0_f64, 8..14),
    ) {
        let mut simulated = Simulated::new(prefill, 40.0);
        for _ in 0..4 {
            let mut prompt = 800.0;
            simulated.run("m", Request { prompt, ..USUAL }, 1);
            for turn in &turns {
                let cached = prompt + 100.0;
                prompt = cached + turn;
                simulated.run("m", Request { prompt, cached, ..USUAL }, 1);
            }
        }
        let pace = simulated.pace("m");
        prop_assert!(near(pace.prefill, prefill, 0.2), "{pace:?}, not {prefill}");
        let evaluated = turns.iter().sum::<f64>() / turns.len() as f64;
        prop_assert!(near(pace.prompt, evaluated, 0.5), "{pace:?}, not {evaluated}");
    }

    #[test]
    fn memory_is_bounded_and_nothing_absurd_is_learned_whatever_is_said(
        events in prop::collection::vec((any::<u16>(), prop::array::uniform6(-1e12..1e12_f64), any::<bool>()), 1..60),
    ) {
        let mut simulated = Simulated::new(1.0, 1.0);
        for (model, said, whole) in events {
            let (id, meter) = simulated.learner.begin(&model.to_string(), Work::Generate, false, simulated.at(simulated.now));
            meter.frame(1000, true);
            let [total, load, prompt, prompt_time, output, output_time] = said.map(Some);
            let said = Said { total, load, prompt, prompt_time, output, output_time, only_loads: whole };
            simulated.now += 50;
            simulated.learner.over(id, said, whole, simulated.at(simulated.now));
        }
        for (_, pace) in simulated.learner.paces() {
            prop_assert_eq!(pace, pace.plausible());
            prop_assert!(pace.decode.is_none() && pace.prefill.is_none(), "{:?}", pace);
        }
    }
}

#[test]
fn a_server_that_becomes_four_times_slower_is_noticed_within_five_seconds_of_a_running_answer() {
    for at_once in [1, 3] {
        let mut simulated = Simulated::new(1000.0, 30.0);
        (0..5).for_each(|_| simulated.run("m", USUAL, at_once));
        assert!(near(simulated.pace("m").decode, 30.0, 0.1));
        let (mut slow_since, mut noticed) = (None, None);
        simulated.run_until("m", Request { output: 1000, ..USUAL }, at_once, |simulated, token| {
            if token == 300 {
                simulated.decode /= 4.0;
                slow_since = Some(simulated.now);
            }
            if near(simulated.pace("m").decode, 7.5, 0.2) {
                noticed = noticed.or(Some(simulated.now));
            }
        });
        let after = noticed.unwrap() - slow_since.unwrap();
        assert!(after <= 5000, "{at_once} at once: after {after} ms");
        simulated.decode *= 4.0;
        (0..2).for_each(|_| simulated.run("m", USUAL, at_once));
        assert!(near(simulated.pace("m").decode, 30.0, 0.15), "and back: {:?}", simulated.pace("m"));
    }
}

#[test]
fn a_silence_before_the_call_of_a_tool_and_a_slow_reader_are_no_slow_server() {
    let mut simulated = Simulated::new(1000.0, 30.0);
    (0..5).for_each(|_| simulated.run("m", USUAL, 1));
    let (id, meter) = simulated.learner.begin("m", Work::Generate, true, simulated.at(simulated.now));
    let began = simulated.now;
    let frame = |simulated: &mut Simulated, after: u64| {
        simulated.pass(simulated.now + after);
        if meter.frame((simulated.now - began) * 1000, true) {
            simulated.learner.first(id, simulated.at(simulated.now));
        }
    };
    (0..60).for_each(|_| frame(&mut simulated, 33));
    for _ in 0..6 {
        frame(&mut simulated, 4000);
        (0..5).for_each(|_| frame(&mut simulated, 33));
    }
    assert!(near(simulated.pace("m").decode, 30.0, 0.1), "{:?}", simulated.pace("m"));
    for _ in 0..40 {
        let from = (simulated.now - began) * 1000;
        frame(&mut simulated, 300);
        meter.left_unread(from, (simulated.now - began) * 1000);
    }
    assert!(near(simulated.pace("m").decode, 30.0, 0.1), "{:?}", simulated.pace("m"));
}

#[test]
fn only_the_request_that_loaded_the_model_tells_how_long_that_takes() {
    let mut simulated = Simulated::new(1000.0, 30.0);
    let load = |simulated: &mut Simulated, resident: bool, seconds: f64| {
        let learner = &mut simulated.learner;
        let start = simulated.start + Duration::from_millis(simulated.now);
        let (one, _) = learner.begin("m", Work::Generate, resident, start);
        let (other, _) = learner.begin("m", Work::Generate, resident, start + Duration::from_secs(1));
        simulated.now += 10_000;
        let now = simulated.at(simulated.now);
        let said = |load: f64| Said { total: Some(load + 0.1), load: Some(load), ..Said::default() };
        simulated.learner.over(one, said(seconds), true, now);
        simulated.learner.over(other, said(seconds - 1.0), true, now);
    };
    load(&mut simulated, true, 9.0);
    assert_eq!(simulated.pace("m").load, None, "it waited for another model's load");
    load(&mut simulated, false, 8.0);
    assert!(near(simulated.pace("m").load, 8.0, 0.01));
    (0..6).for_each(|_| load(&mut simulated, false, 4.0));
    assert!(near(simulated.pace("m").load, 4.0, 0.15), "{:?}", simulated.pace("m"));
    let (id, _) = simulated.learner.begin("n", Work::Generate, false, simulated.at(simulated.now));
    simulated.now += 3000;
    let only_loads = Said { only_loads: true, ..Said::default() };
    simulated.learner.over(id, only_loads, true, simulated.at(simulated.now));
    assert!(near(simulated.pace("n").load, 3.0, 0.01));
}

#[test]
fn where_nobody_says_how_long_it_took_the_frames_do() {
    let mut simulated = Simulated::new(1000.0, 30.0);
    (0..5).for_each(|_| simulated.run("m", Request { says: false, prompt: 1000.0, ..USUAL }, 1));
    let pace = simulated.pace("m");
    assert!(near(pace.decode, 30.0, 0.05) && near(pace.prefill, 1000.0, 0.05), "{pace:?}");
    assert!(near(pace.output, 100.0, 0.05) && near(pace.prompt, 1000.0, 0.05), "{pace:?}");
}

#[test]
fn durations_of_an_embedding_are_a_speed_of_its_prompt() {
    let mut simulated = Simulated::new(1.0, 1.0);
    for _ in 0..3 {
        let (id, _) = simulated.learner.begin("e", Work::Embed, true, simulated.at(simulated.now));
        simulated.now += 540;
        let said = Said { total: Some(0.53), load: Some(0.03), prompt: Some(500.0), ..Said::default() };
        simulated.learner.over(id, said, true, simulated.at(simulated.now));
    }
    let pace = simulated.pace("e");
    assert!(near(pace.prefill, 1000.0, 0.01) && pace.decode.is_none() && pace.slots == Some(1), "{pace:?}");
    assert!(near(pace.prompt, 500.0, 0.01) && pace.output.is_none(), "{pace:?}");
}

#[test]
fn the_models_that_were_not_used_for_longest_are_forgotten() {
    let mut simulated = Simulated::new(1.0, 1.0);
    for i in 0..2 * MOST_MODELS {
        for name in [i.to_string(), "always".to_owned()] {
            let (id, _) = simulated.learner.begin(&name, Work::Generate, true, simulated.at(simulated.now));
            simulated.learner.over(id, Said::default(), true, simulated.at(simulated.now));
        }
    }
    assert_eq!(simulated.learner.models.len(), MOST_MODELS);
    assert!(simulated.learner.models.contains_key("always") && !simulated.learner.models.contains_key("0"));
}

#[test]
fn frames_tell_no_speed_before_an_answer_has_shown_how_many_tokens_are_in_one() {
    let mut server = Simulated::new(1000.0, 40.0);
    server.a_frame = 32;
    let long = Request { output: 2000, ..USUAL };
    server.run_until("m", long, 1, |server, token| {
        assert!(token > 1990 || server.pace("m").decode.is_none(), "{:?}", server.pace("m"));
    });
    assert!(near(server.pace("m").decode, 40.0, 0.05), "{:?}", server.pace("m"));
    // From then on they do, while it runs.
    server.decode = 10.0;
    server.run_until("m", long, 1, |server, token| {
        assert!(token < 500 || near(server.pace("m").decode, 10.0, 0.1), "{token} {:?}", server.pace("m"));
    });
}

#[test]
fn who_waits_for_its_model_to_be_loaded_slows_nobody_down() {
    let mut server = Simulated::new(1000.0, 40.0);
    // Two of another model wait for all that time.
    let waiting = [(); 2].map(|()| server.learner.begin("big", Work::Generate, false, server.at(0)).0);
    server.run("m", USUAL, 1);
    server.run("m", USUAL, 1);
    let pace = server.pace("m");
    assert!(near(pace.decode, 40.0, 0.05) && near(pace.prefill, 1000.0, 0.05), "{pace:?}");
    // It is there, and from then on each model has half.
    server.learner.first(waiting[0], server.at(server.now));
    (server.prefill, server.decode) = (500.0, 20.0);
    server.run("m", USUAL, 1);
    let pace = server.pace("m");
    assert!(near(pace.decode, 40.0, 0.05) && near(pace.prefill, 1000.0, 0.05), "{pace:?}");
    for id in waiting {
        server.learner.over(id, Said::default(), true, server.at(server.now));
    }
    (server.prefill, server.decode) = (1000.0, 40.0);
    server.run("m", USUAL, 1);
    assert!(near(server.pace("m").decode, 40.0, 0.05), "nobody is left in the crowd");
}
