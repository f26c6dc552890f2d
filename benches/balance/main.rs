//! How near the mesh comes to one queue that sees everything: real nodes in this process, over simulated Ollamas in real
//! time that runs `--tempo` times faster, with the scenarios and the workload of a simulation in virtual
//! time, beside other policies on the same sessions and the central ideal computed from them. What is wanted is in
//! [`suite::verdicts`].
//!
//! ```text
//! cargo bench --bench balance                     as many seeds as fit into half an hour
//! cargo bench --bench balance -- --quick          one minute, for every day
//! cargo bench --bench balance -- --full           everything at length, for hours
//! cargo bench --bench balance -- --million [N]    nothing is left of a million requests
//! ```
//! Exits with 1 if a figure that is wanted does not hold. Look at the strain first: where the machine did not keep up, the
//! figures are about the machine.
//!
//! Reading order: `workload` (who asks what), `server` (the model of an Ollama), `ideal`; `clock`, `fleet` and `ollama`
//! make the model a server in real time; `mesh` and `rivals` are ways to the servers, `clients` go them; `suite` says what
//! is run and wanted, `figures`, `meters` and `plot` show it; `million` is for itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a bench may stop where it stands"
)]

mod clients;
mod clock;
mod figures;
mod fleet;
mod ideal;
mod mesh;
mod meters;
mod million;
mod ollama;
mod plot;
mod rivals;
mod server;
mod suite;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use figures::{Run, Time, mean};
use futures_util::future::join_all;
use plot::Curve;
use rivals::Rival;
use suite::{Case, Manner, Results, quantile};
use tracing_subscriber::EnvFilter;
use workload::{Scenario, Span};

/// What the bench may take by default.
const BUDGET: Duration = Duration::from_secs(30 * 60);

/// Simulated seconds by which timers may be late, of a hundred the second worst, in a run that says something: some
/// hundredths of the times to the first token that are compared.
const TOO_LATE: f64 = 0.2;

/// How near the mesh comes to one queue that sees everything.
#[derive(Parser)]
struct Arguments {
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
    /// One minute of H1 and A, one seed.
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// With eight seeds, and as long as figures need that differ by few percent.
    #[arg(long)]
    full: bool,
    /// Only this scenario.
    #[arg(long)]
    scenario: Option<Named>,
    /// Only at this share of what the ideal can keep up with, 0.85 for example.
    #[arg(long)]
    load: Option<f64>,
    /// How many seeds, however long it takes.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// How much faster than real time.
    #[arg(long, default_value_t = 20.0)]
    tempo: f64,
    /// Simulated seconds that count.
    #[arg(long)]
    seconds: Option<f64>,
    /// Simulated seconds before them.
    #[arg(long)]
    warm_up: Option<f64>,
    /// Nodes of users; the fifty clients share them.
    #[arg(long, default_value_t = 10)]
    users: usize,
    /// Scenarios that run at the same time. Three, which two processors keep up with: more, and the mesh hears late.
    #[arg(long, default_value_t = 3)]
    at_once: usize,
    /// Leaves out the other policies.
    #[arg(long)]
    alone: bool,
    /// Instead of all that: so many requests, a million by default, and then a look at what is left of them.
    #[arg(long, num_args = 0..=1, default_missing_value = "1000000")]
    million: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Named {
    H1,
    A,
    Delayed,
    Brownout,
}

fn main() -> ExitCode {
    if !std::env::args().any(|argument| argument == "--bench") {
        // `cargo test --benches` only wants to know that it builds.
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    if std::env::var_os("RUST_LOG").is_some() {
        // Why requests went where they went. It costs more than all the rest.
        tracing_subscriber::fmt().with_env_filter(EnvFilter::from_default_env()).with_writer(std::io::stderr).init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let good = match arguments.million {
        Some(requests) => runtime.block_on(million::run(requests)),
        None => runtime.block_on(balance(&arguments)),
    };
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn balance(arguments: &Arguments) -> bool {
    ideal::check();
    let (warm_up, seconds) = match (arguments.quick, arguments.full) {
        (true, _) => (120.0, 840.0),
        (_, true) => (1200.0, 7800.0),
        _ => (300.0, 1800.0),
    };
    let warm_up = arguments.warm_up.unwrap_or(warm_up);
    let span = Span { warm_up, end: warm_up + arguments.seconds.unwrap_or(seconds) };
    let manner = Manner { tempo: arguments.tempo, span, users: arguments.users };
    let mut cases: Vec<(Case, Results)> =
        chosen(arguments).into_iter().map(|case| (case, Results::default())).collect();
    let seeds = arguments.seeds.or(arguments.quick.then_some(1)).or(arguments.full.then_some(8));
    println!(
        "{} simulated seconds after {warm_up} of warm-up, {} times as fast as they are; {} nodes of users",
        span.end - warm_up,
        arguments.tempo,
        arguments.users
    );

    let began = Instant::now();
    let mut done = 0;
    while seeds.map_or(done == 0 || began.elapsed() / done as u32 + began.elapsed() < BUDGET, |seeds| done < seeds) {
        let seed = arguments.first_seed + done;
        for together in cases.chunks_mut(arguments.at_once.max(1)) {
            let runs = together.iter_mut().map(|(case, results)| Box::pin(case.run(manner, seed, results)));
            join_all(runs).await;
            for (case, results) in together {
                let p99 = |runs: &[Run]| runs.last().map_or(f64::NAN, |run| run.quantile(Time::First, 0.99));
                let (title, mesh, ideal) = (case.title(), p99(&results.mesh), p99(&results.ideal));
                let elapsed = began.elapsed().as_secs_f64();
                eprintln!("{elapsed:>6.0} s  seed {seed}  {title}: p99 {mesh:.2} s, ideal {ideal:.2} s");
            }
        }
        done += 1;
    }
    println!("{done} seeds; quantiles are those of each seed on average\n");
    for (case, results) in &cases {
        table(case, results, arguments.tempo);
        draw(case, results);
    }
    let verdicts = suite::verdicts(&cases);
    for verdict in &verdicts {
        let word = match verdict.holds {
            Some(true) => "holds",
            Some(false) => "DOES NOT HOLD",
            None => "",
        };
        println!("{:<70} {:>12}  {word}", verdict.wanted, verdict.found);
    }
    verdicts.iter().all(|verdict| verdict.holds != Some(false))
}

fn chosen(arguments: &Arguments) -> Vec<Case> {
    let rivals: &[Rival] = if arguments.alone { &[] } else { &Rival::ALL };
    let all = [
        (Named::H1, Scenario::h1 as fn() -> Scenario, 0.85, rivals),
        (Named::A, Scenario::a, 0.85, &[]),
        (Named::A, Scenario::a, 0.95, &[]),
        (Named::Delayed, Scenario::delayed, 0.85, &[]),
        (Named::Brownout, Scenario::brownout, 0.85, &[]),
    ];
    let mut cases = Vec::new();
    for (nth, (named, scenario, load, rivals)) in all.into_iter().enumerate() {
        let left_out = arguments.quick && arguments.scenario.is_none() && nth > 1;
        // With a load that is given, the second case of A would be its first once more.
        let again = arguments.load.is_some() && nth == 2;
        if !left_out && !again && arguments.scenario.is_none_or(|only| only == named) {
            cases.push(Case::new(scenario(), arguments.load.unwrap_or(load), rivals));
        }
    }
    cases
}

fn table(case: &Case, results: &Results, tempo: f64) {
    println!(
        "{:<22} {:>8} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>7} {:>7} {:>7}",
        case.title(),
        "first50",
        "first95",
        "first99",
        "ratio",
        "whole50",
        "whole99",
        "loads/h",
        "cached",
        "failed",
        "n"
    );
    let ideal = quantile(&results.ideal, Time::First, 0.99);
    for (name, runs) in results.rows(case) {
        let p99 = quantile(runs, Time::First, 0.99);
        let of = |figure: fn(&Run) -> f64| mean(runs.iter().map(figure));
        println!(
            "{name:<22} {:>8.2} {:>8.2} {p99:>8.2} {:>7.2} {:>8.2} {:>8.2} {:>8.1} {:>6.0}% {:>7} {:>7.0}",
            quantile(runs, Time::First, 0.5),
            quantile(runs, Time::First, 0.95),
            p99 / ideal,
            quantile(runs, Time::Whole, 0.5),
            quantile(runs, Time::Whole, 0.99),
            of(|run| run.loads),
            of(|run| run.hits) * 100.0,
            runs.iter().map(|run| run.failed).sum::<usize>(),
            of(|run| run.whole.len() as f64),
        );
    }
    let strains = &results.strains;
    let late = mean(strains.iter().map(|strain| strain.late));
    println!(
        "strain: {:.2} processors here, {:.0} % of the machine busy, timers late by {:.1} ms (p99), {:.2} s simulated{}",
        mean(strains.iter().map(|strain| strain.own)),
        mean(strains.iter().map(|strain| strain.machine.unwrap_or(f64::NAN))) * 100.0,
        late * 1e3,
        late * tempo,
        if late * tempo > TOO_LATE { "\nTHE MACHINE DID NOT KEEP UP: these figures are about the machine" } else { "" },
    );
    let mut failures: Vec<&String> = results.failures.iter().collect();
    failures.sort();
    failures.dedup();
    for failure in failures.iter().take(5) {
        println!("failed: {failure}");
    }
    println!();
}

/// All seeds together, into `target/balance`.
fn draw(case: &Case, results: &Results) {
    let curves: Vec<Curve> = results
        .rows(case)
        .into_iter()
        .map(|(name, runs)| {
            let mut seconds: Vec<f64> = runs.iter().flat_map(|run| run.first.iter().copied()).collect();
            seconds.sort_by(f64::total_cmp);
            Curve { name: name.to_owned(), seconds }
        })
        .collect();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let file: String =
        case.title().chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let path = target.join("balance").join(file.trim_end_matches('-')).with_extension("svg");
    if let Err(error) = plot::draw(&path, &case.title(), &curves) {
        eprintln!("{}: {error}", path.display());
    }
}
