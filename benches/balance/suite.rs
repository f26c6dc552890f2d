//! What is run, and what is wanted of it.

use std::sync::Arc;

use futures_util::future::join_all;

use super::clients::{Seen, Way, replay};
use super::clock::Clock;
use super::figures::{Run, Time, mean};
use super::fleet::Fleet;
use super::ideal;
use super::mesh::{Holds, Mesh, Tuning};
use super::meters::{Meters, Strain};
use super::rivals::Rival;
use super::workload::{Scenario, ServerSpec, Span, sessions};

/// How everything is run.
#[derive(Debug, Clone, Copy)]
pub struct Manner {
    pub tempo: f64,
    pub span: Span,
    /// Nodes of users.
    pub users: usize,
}

/// A scenario at a load.
#[derive(Debug, Clone)]
pub struct Case {
    pub scenario: Scenario,
    /// Of what the ideal can keep up with.
    pub load: f64,
    /// Who else is put through it.
    pub rivals: Vec<Rival>,
}

/// What came of a case, a run of each for a seed.
#[derive(Default)]
pub struct Results {
    pub ideal: Vec<Run>,
    pub mesh: Vec<Run>,
    pub rivals: Vec<Vec<Run>>,
    pub strains: Vec<Strain>,
    /// Why requests through the mesh failed.
    pub failures: Vec<String>,
}

/// One figure that is wanted, and what was found.
pub struct Verdict {
    pub wanted: String,
    pub found: String,
    /// `None` where it was not measured.
    pub holds: Option<bool>,
}

// === impl Case ===

impl Case {
    pub fn new(scenario: Scenario, load: f64, rivals: &[Rival]) -> Self {
        Self { scenario, load, rivals: rivals.to_vec() }
    }

    pub fn title(&self) -> String {
        format!("{} at {:.0} %", self.scenario.name, self.load * 100.0)
    }

    /// Runs it once: the mesh and the rivals at the same time, each with servers of its own, and the ideal on paper.
    ///
    /// Others may run at the same time, so long as the machine keeps up with all of them.
    pub async fn run(&self, manner: Manner, seed: u64, results: &mut Results) {
        let Manner { tempo, span, users } = manner;
        let sessions = sessions(&self.scenario, self.load, seed, span.end);
        results.ideal.push(ideal::run(&self.scenario, &sessions, span));

        let clock = Clock::new(tempo);
        let fleet = Fleet::start(&self.scenario, span, &clock).await;
        let tuning = Tuning { tempo, report_delay: clock.real(self.scenario.report_delay) };
        let holds = |server: &ServerSpec| Holds { slots: server.slots, most_loaded: server.most_loaded };
        let servers: Vec<_> = fleet.addresses.iter().copied().zip(self.scenario.servers.iter().map(holds)).collect();
        let mesh = Arc::new(Mesh::start(&servers, users, tuning).await);
        let mut ways: Vec<Arc<dyn Way>> = vec![mesh.clone()];
        let mut fleets = vec![fleet];
        for rival in &self.rivals {
            let fleet = Fleet::start(&self.scenario, span, &clock).await;
            ways.push(rival.way(&fleet.addresses, users, &clock, seed));
            fleets.push(fleet);
        }

        let meters = Meters::start();
        clock.start();
        fleets.iter().for_each(Fleet::begin);
        let replays = ways.into_iter().map(|way| replay(&sessions, span, &clock, way));
        let seen = join_all(replays.map(Box::pin)).await;
        results.strains.push(meters.read());

        Arc::into_inner(mesh).expect("nobody asks it any more").stop().await;
        results.rivals.resize_with(self.rivals.len(), Vec::new);
        let runs = results.rivals.iter_mut();
        for (index, ((Seen { outcomes, failures }, fleet), runs)) in
            seen.into_iter().zip(fleets).zip(std::iter::once(&mut results.mesh).chain(runs)).enumerate()
        {
            let servers = fleet.end();
            let loads = servers.iter().flat_map(|server| server.loads.iter().copied()).collect();
            let prompt_tokens: f64 = servers.iter().map(|server| server.prompt_tokens).sum();
            let cached_tokens: f64 = servers.iter().map(|server| server.cached_tokens).sum();
            runs.push(Run::new(span, outcomes, loads, cached_tokens / prompt_tokens.max(1.0)));
            if index == 0 {
                results.failures.extend(failures);
            }
        }
    }
}

// === impl Results ===

impl Results {
    /// Name and runs of all that took part.
    pub fn rows<'a>(&'a self, case: &'a Case) -> Vec<(&'static str, &'a [Run])> {
        let mut rows: Vec<(&str, &[Run])> = vec![("central ideal", &self.ideal), ("ollana", &self.mesh)];
        rows.extend(case.rivals.iter().zip(&self.rivals).map(|(rival, runs)| (rival.name(), runs.as_slice())));
        rows
    }
}

/// A quantile of each seed, on average.
pub fn quantile(runs: &[Run], time: Time, quantile: f64) -> f64 {
    mean(runs.iter().map(|run| run.quantile(time, quantile)))
}

fn p99(runs: &[Run]) -> f64 {
    quantile(runs, Time::First, 0.99)
}

/// The bounds for the time to the first token, as far as it was run.
pub fn verdicts(cases: &[(Case, Results)]) -> Vec<Verdict> {
    let find = |name: &str, load: f64| {
        let is_it = |case: &Case| case.scenario.name == name && (case.load - load).abs() < 1e-9;
        cases.iter().find(|(case, results)| is_it(case) && !results.mesh.is_empty()).map(|(_, results)| results)
    };
    let mut verdicts = Vec::new();
    let mut say = |wanted: &str, value: Option<(f64, bool)>| {
        let found = value.map_or("not measured".to_owned(), |(value, _)| format!("{value:.2}"));
        verdicts.push(Verdict { wanted: wanted.to_owned(), found, holds: value.map(|(_, holds)| holds) });
    };
    let ratio = |results: &Results| p99(&results.mesh) / p99(&results.ideal);
    let at_most = |bound: f64| move |value: f64| (value, value <= bound);
    let (h1, a85, a95) = (find("H1", 0.85), find("A", 0.85), find("A", 0.95));

    say("H1 at 85 %: p99 at most 1.25 times the ideal's", h1.map(ratio).map(at_most(1.25)));
    let round_robin = h1.and_then(|h1| Some(p99(h1.rivals.first()?) / p99(&h1.mesh)));
    say("H1 at 85 %: round robin's p99 at least 5 times ours", round_robin.map(|times| (times, times >= 5.0)));
    say("A at 85 %: p99 at most 1.4 times the ideal's", a85.map(ratio).map(at_most(1.4)));
    let loads = a85.map(|a85| mean(a85.mesh.iter().map(|run| run.loads)));
    say("A at 85 %: at most 30 loads of models an hour", loads.map(at_most(30.0)));
    say("A at 95 %: p99 at most 1.6 times the ideal's", a95.map(ratio).map(at_most(1.6)));
    let throughput = |runs: &[Run]| mean(runs.iter().map(|run| run.throughput));
    let stable = a95.map(|a95| throughput(&a95.mesh) / throughput(&a95.ideal));
    say("A at 95 %: stable, as many answers as the ideal within 3 %", stable.map(|part| (part, part >= 0.97)));
    let late = find("A, reports 1 s late", 0.85).zip(a85).map(|(late, a85)| p99(&late.mesh) / p99(&a85.mesh));
    say("A at 85 %, reports 1 s late: p99 at most 1.15 times that without", late.map(at_most(1.15)));
    let brown = find("A, brownouts", 0.85).map(ratio);
    say("A at 85 %, brownouts: p99 at most 1.4 times the ideal's", brown.map(at_most(1.4)));
    let failed: usize = cases.iter().flat_map(|(_, results)| &results.mesh).map(|run| run.failed).sum();
    say("no request refused, none failed", Some((failed as f64, failed == 0)));
    verdicts
}
