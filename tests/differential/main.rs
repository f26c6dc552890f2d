//! Nobody can tell the difference: each request is sent, as raw bytes, to an Ollama and to a mesh of two nodes in front of
//! the same Ollama, and the two exchanges are compared byte for byte: status line, fields, framing, body, chunks and their
//! order, interim answers, and what becomes of the connection. What may differ stands in [`allowed`] and nowhere else.
//!
//! The Ollama is the simulated one, and, where the machine has one, a real one too ([`real_ollama`]).
//! Generated requests ([`grammar`]) come from a fixed seed; `OLLANA_DIFFERENTIAL_SEED` is another, and
//! `OLLANA_DIFFERENTIAL_CASES` how many there are. `OLLANA_DIFFERENTIAL_ALLOWED=1` prints what may differ.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod allowed;
mod cases;
#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
mod forbidden;
mod grammar;
mod lab;
#[path = "../mesh/node.rs"]
mod node;
#[path = "../support/real_ollama.rs"]
mod real_ollama;
#[path = "../support/tools.rs"]
mod tools;
mod wire;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libtest_mimic::{Arguments, Failed, Trial};
use ollana::internals::id::Scope;
use proptest::test_runner::{Config as ProptestConfig, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use self::cases::{Case, Group, Kind, Side};
use self::lab::Lab;
use self::wire::Transcript;

fn main() {
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for group in cases::groups().into_iter().filter(|group| group.of.contains(&Kind::Simulated)) {
        let name = format!("simulated::{}", group.name);
        trials.push(Trial::test(name, move || simulated().as_ref().map_or(Ok(()), |lab| compare(lab, &group))));
    }
    trials.push(Trial::test("simulated::what_is_generated_is_answered_as_asked_directly", || {
        simulated().as_ref().map_or(Ok(()), |lab| generate(lab, CASES))
    }));
    for (name, scope) in [
        ("simulated::what_needs_manage_is_refused_to_infer_in_its_callers_shape", Scope::Infer),
        ("simulated::what_is_the_owners_alone_is_refused_to_manage_in_its_callers_shape", Scope::Manage),
    ] {
        trials.push(Trial::test(name, move || {
            forbidden::all_is_refused(&Lab::simulated(scope, fake_ollama::Settings::default()), scope)
        }));
    }
    let needs = real_ollama::needs();
    for group in cases::groups().into_iter().filter(|group| group.of.contains(&Kind::Real)) {
        // libtest prints no reason of its own, so it stands in the name's kind.
        let kind = needs.as_ref().err().cloned().unwrap_or_default();
        let name = format!("real::{}", group.name);
        let trial = Trial::test(name, move || real().as_ref().map_or(Ok(()), |lab| compare(lab, &group)));
        trials.push(trial.with_kind(kind).with_ignored_flag(needs.is_err()));
    }
    let kind = needs.as_ref().err().cloned().unwrap_or_default();
    let generated = || real().as_ref().map_or(Ok(()), |lab| generate(lab, REAL_CASES));
    let trial = Trial::test("real::what_is_generated_is_answered_as_asked_directly", generated);
    trials.push(trial.with_kind(kind).with_ignored_flag(needs.is_err()));
    if std::env::var_os("OLLANA_DIFFERENTIAL_ALLOWED").is_some() {
        print!("{}", allowed::listed());
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Statics are not dropped, and a real Ollama would stay.
    drop(REAL.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit();
}

/// Generated conversations if nobody says how many: some seconds' worth.
const CASES: u32 = 400;
/// The same with a real Ollama, which takes its time for each answer.
const REAL_CASES: u32 = 100;
/// The seed if nobody says another one: every run tells the same.
const SEED: u64 = 11434;

static SIMULATED: Mutex<Option<Lab>> = Mutex::new(None);
static REAL: Mutex<Option<Lab>> = Mutex::new(None);

fn simulated() -> MutexGuard<'static, Option<Lab>> {
    let mut lab = SIMULATED.lock().unwrap_or_else(PoisonError::into_inner);
    lab.get_or_insert_with(|| Lab::simulated(Scope::Manage, fake_ollama::Settings::default()));
    lab
}

fn real() -> MutexGuard<'static, Option<Lab>> {
    let mut lab = REAL.lock().unwrap_or_else(PoisonError::into_inner);
    lab.get_or_insert_with(|| Lab::real(Scope::Manage));
    lab
}

/// Plays all cases of a group on both sides, and tells of all that differ.
fn compare(lab: &Lab, group: &Group) -> Result<(), Failed> {
    let mut report = String::new();
    let mut wrong = 0;
    for case in &group.cases {
        if let Err(difference) = one(lab, case) {
            wrong += 1;
            let _ = write!(report, "\n{wrong}. {}\n{difference}", case.name);
        }
    }
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} of {} differ\n{report}", group.cases.len()).into()) }
}

/// Plays generated conversations on both sides; one that differs is made as small as it can be.
fn generate(lab: &Lab, cases: u32) -> Result<(), Failed> {
    let number = |variable| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("OLLANA_DIFFERENTIAL_CASES").and_then(|cases| cases.try_into().ok()).unwrap_or(cases);
    let seed = number("OLLANA_DIFFERENTIAL_SEED").unwrap_or(SEED);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config =
        ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let found = runner
        .run(&grammar::conversation(), |script| one(lab, &Case::new("generated", script)).map_err(TestCaseError::fail));
    match found {
        Ok(()) => Ok(()),
        Err(TestError::Fail(difference, _)) => {
            Err(format!("seed {seed}: the smallest that differs is\n{difference}").into())
        }
        Err(error) => Err(error.to_string().into()),
    }
}

fn one(lab: &Lab, case: &Case) -> Result<(), String> {
    let direct = match case.said {
        Some(said) if lab.fake.is_some() => case.script(Side::Direct).hears(said),
        _ => play(lab, case, Side::Direct, lab.direct),
    };
    let mesh = play(lab, case, Side::Mesh, lab.mesh);
    let (left, right) = (allowed::comparable(&direct), allowed::comparable(&mesh));
    let same = left == right && (!case.in_time || allowed::in_time(&direct, &mesh));
    match (same, allowed::known(&case.name, lab.fake.is_none())) {
        (true, None) | (false, Some(_)) => Ok(()),
        (true, Some(why)) => Err(format!("  does not differ any more; it did because {why}\n")),
        (false, None) => Err(format!(
            "{}{}",
            case.script(Side::Mesh),
            only(&left, '-', &right) + &only(&right, '+', &left) + &parting(&left, &right)
        )),
    }
}

/// The lines of one that the other has not.
fn only(one: &Transcript, mark: char, other: &Transcript) -> String {
    let (one, other) = (one.to_string(), other.to_string());
    let lines = one.lines().filter(|line| !other.lines().any(|other| other == *line));
    lines.map(|line| format!("  {mark} {}\n", line.trim_start())).collect()
}

/// Where two bodies part that look the same as far as they are shown.
fn parting(one: &Transcript, other: &Transcript) -> String {
    let bodies = one.answers.iter().zip(&other.answers).map(|(one, other)| (one.body(), other.body()));
    let mut report = String::new();
    for (one, other) in bodies.filter(|(one, other)| one != other) {
        let at = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
        let around = |body: &[u8]| wire::lossy(&body[at.saturating_sub(40)..body.len().min(at + 40)]);
        let _ = writeln!(report, "  from byte {at}: {:?} and {:?}", around(&one), around(&other));
    }
    report
}

fn play(lab: &Lab, case: &Case, side: Side, at: SocketAddr) -> Transcript {
    if let Some(fake) = &lab.fake {
        (case.set)(fake);
    }
    case.script(side).play(at)
}
