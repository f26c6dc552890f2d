//! The cost of the path from an application to an Ollama on another host: straight, through a pair of nginx, a pair of
//! HAProxies (HTTP/2 between them), both with mutual TLS 1.3, and through two nodes; all in one run, by turns.
//!
//! ```text
//! cargo bench --bench path                                   all rows, five rounds, a quarter of an hour
//! cargo bench --bench path -- --quick                        all rows once and short, one or two minutes
//! cargo bench --bench path -- --rounds 9 --rows one,many     some rows
//! cargo bench --bench path -- --small-buffers                with socket buffers of at most 212,992 bytes
//! ```
//! It makes two hosts in network namespaces with one cable between them (as root on Linux), a simulated Ollama on one of
//! them and a load generator on the other. The processor time and memory of proxies are those of all their processes. In
//! each round each row is measured for all of them, one after the other, in another order each round; the table has the
//! medians. Ratios mean more than the figures themselves, which depend on the machine and on what else it does.
//!
//! Downloads are long answers to `/api/show` and uploads blobs, since both cross the mesh and take no slot; the user's node
//! is trusted with `manage` for the latter.
//!
//! Reading order: `rows` (what is measured), `load`, `server` (the simulated Ollama), `systems` and `others` (what is
//! measured beside), `hosts`, `report`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a bench may stop where it stands"
)]

mod hosts;
mod http1;
mod load;
#[path = "../../tests/support/netns.rs"]
mod netns;
mod others;
mod report;
mod rows;
mod server;
mod systems;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
pub use hosts::is_server;
use hosts::{Hosts, SocketBuffers};
use report::{Results, Setting};
use rows::{Load, ROWS, Row, Scale};
use systems::{Kind, Programs, System};

const LARGE_BUFFERS: u32 = 4 * 1024 * 1024;
/// Linux's default bound for a socket's buffer, in bytes.
const SMALL_BUFFERS: u32 = 212_992;
/// Bounds a row of one system, whatever hangs.
const PATIENCE: Duration = Duration::from_secs(200);

/// What the path to an Ollama on another host costs.
#[derive(Parser)]
pub struct Arguments {
    /// What cargo says.
    #[arg(long, hide = true)]
    bench: bool,
    /// Everything once and short: whether it works, not what it costs.
    #[arg(long)]
    quick: bool,
    /// How often each row is measured; 5 by default.
    #[arg(long)]
    rounds: Option<usize>,
    /// Only these rows.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// How long each load takes; 2 by default.
    #[arg(long)]
    seconds: Option<f64>,
    /// How much is downloaded and uploaded, in MB; 1000 by default.
    #[arg(long)]
    megabytes: Option<u64>,
    /// Lets sockets buffer no more than Linux does by itself. It changes the machine's setting while proxies start.
    #[arg(long)]
    small_buffers: bool,
    /// A bare proxy to measure beside: `PATH user LISTEN REMOTE` and `PATH server LISTEN UPSTREAM`.
    #[arg(long, env = "OLLANA_BENCH_TRIAL")]
    trial: Option<PathBuf>,
    /// Another build of ollana than the one that belongs to this bench.
    #[arg(long, env = "OLLANA_BENCH_OLLANA", default_value = env!("CARGO_BIN_EXE_ollana"))]
    ollana: PathBuf,
    /// Only these: direct, nginx, haproxy, trial, ollana.
    #[arg(long, value_delimiter = ',')]
    systems: Vec<String>,
    /// Where to write all values of all rounds.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where to draw them.
    #[arg(long, default_value = "target/path.svg")]
    svg: PathBuf,
}

fn main() -> ExitCode {
    if is_server() || !std::env::args().any(|argument| argument == "--bench") {
        // The simulated Ollama that a bench has started. And `cargo test --benches` only wants to know that it builds.
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::parse();
    if let Err(reason) = netns::permitted() {
        println!("ignored: {reason}. The two hosts of this bench are network namespaces.");
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("path: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all of it can be measured here, and if not, why.
pub fn permitted() -> Result<(), String> {
    netns::permitted()?;
    others::installed("nginx")?;
    others::installed("haproxy")
}

/// Measures and shows; whether every row was valid.
pub fn run(arguments: &Arguments) -> Result<bool, String> {
    let rows = chosen_rows(&arguments.rows)?;
    let programs = Programs { ollana: arguments.ollana.clone(), trial: arguments.trial.clone() };
    let (kinds, mut lines) = chosen_systems(&arguments.systems, &programs)?;
    let seconds = arguments.seconds.unwrap_or(if arguments.quick { 0.3 } else { 2.0 });
    if !(0.05..=600.0).contains(&seconds) {
        return Err(format!("--seconds {seconds}: from 0.05 to 600"));
    }
    let megabytes = arguments.megabytes.unwrap_or(if arguments.quick { 50 } else { 1000 }).max(1);
    let scale = Scale {
        span: Duration::from_secs_f64(seconds),
        bytes: megabytes * 1_000_000,
        tokens: (500.0 * seconds) as u64 + 1,
    };
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 1 } else { 5 }).max(1);
    let buffers = if arguments.small_buffers { SMALL_BUFFERS } else { LARGE_BUFFERS };

    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    others::make_certificates(directory.path())?;
    let hosts = Hosts::start()?;
    let load_before = machine_load();
    let mut results = Results::new(rows.clone(), kinds.clone());
    let mut buffered = String::new();
    for round in 0..rounds {
        let mut systems = Vec::new();
        {
            let _set = SocketBuffers::set(buffers);
            buffered = SocketBuffers::now();
            for kind in &kinds {
                systems.push(kind.start(&hosts, &programs, directory.path())?);
            }
        }
        // Whatever comes first or last in a round does so once in as many rounds as there are systems.
        systems.rotate_left(round % kinds.len());
        for (number, row) in rows.iter().enumerate() {
            eprintln!("round {} of {rounds}: {}", round + 1, row.name);
            measure_row(&hosts, &systems, number, row, scale, &mut results);
        }
    }
    lines.push(format!(
        "medians of {rounds} rounds of {seconds} s; sockets may buffer {buffered} bytes; load of the machine {load_before} \
         before and {} after",
        machine_load()
    ));
    if arguments.quick {
        lines.push("quick: whether it works, not what it costs".to_owned());
    }
    let setting = Setting::here(lines);
    print!("{}", results.table(&setting));
    write(&arguments.svg, &results.svg(&setting))?;
    if let Some(file) = &arguments.json {
        write(file, &format!("{:#}\n", results.json(&setting)))?;
    }
    Ok(results.is_valid())
}

fn measure_row(hosts: &Hosts, systems: &[System], number: usize, row: &Row, scale: Scale, results: &mut Results) {
    if row.load == Load::Idle {
        // Long enough for ticks of 10 ms to be thousandths.
        let span = scale.span * 5;
        for (system, figures) in systems.iter().zip(rows::idle(systems, span)) {
            results.note(number, system.kind, Ok(figures));
        }
        return;
    }
    for system in systems {
        let measured = hosts.user.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let measured = tokio::time::timeout(PATIENCE, rows::measure(row.load, system, scale)).await;
                measured.unwrap_or_else(|_| Err(format!("not done after {PATIENCE:?}")))
            })
        });
        if let Err(error) = &measured {
            eprintln!("  {} is invalid for {}: {error}", row.name, system.kind.name());
        }
        results.note(number, system.kind, measured);
    }
}

fn chosen_rows(names: &[String]) -> Result<Vec<&'static Row>, String> {
    for name in names {
        if !ROWS.iter().any(|row| row.name == name) {
            let all: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
            return Err(format!("there is no row {name}; there are {}", all.join(", ")));
        }
    }
    Ok(ROWS.iter().filter(|row| names.is_empty() || names.iter().any(|name| name == row.name)).collect())
}

/// Those that can be measured here, and a line for each that cannot.
fn chosen_systems(names: &[String], programs: &Programs) -> Result<(Vec<Kind>, Vec<String>), String> {
    let is = |kind: Kind, name: &String| kind.name().eq_ignore_ascii_case(name);
    if let Some(name) = names.iter().find(|name| !Kind::ALL.iter().any(|kind| is(*kind, name))) {
        return Err(format!("there is no system {name}; there are {}", Kind::ALL.map(Kind::name).join(", ")));
    }
    let (mut kinds, mut lines) = (Vec::new(), Vec::new());
    for kind in Kind::ALL {
        if names.is_empty() || names.iter().any(|name| is(kind, name)) {
            match kind.missing(programs) {
                None => kinds.push(kind),
                Some(reason) => lines.push(format!("without {}: {reason}", kind.name())),
            }
        }
    }
    for line in &lines {
        eprintln!("{line}");
    }
    if kinds.is_empty() { Err("there is nothing to measure".to_owned()) } else { Ok((kinds, lines)) }
}

/// How many processes wanted a processor during the last minute.
fn machine_load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or_default().to_owned()
}

fn write(file: &std::path::Path, text: &str) -> Result<(), String> {
    if let Some(directory) = file.parent() {
        fs::create_dir_all(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    }
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}
