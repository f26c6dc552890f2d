//! The official clients, run for real: Ollama's from PyPI and npm, OpenAI's and Anthropic's from PyPI.
//!
//! Each has a script beside this file that prints a line of JSON for each thing it does. It is run twice, against an
//! Ollama and through a mesh (a node without an Ollama, two nodes that lend one), and the two transcripts must be equal
//! but for what differs between two runs against one Ollama ([`transcript::timeless`]). What only a mesh can answer, its
//! own refusals, is looked at as the client raises it.
//!
//! `.ci/clients` installs the clients. Without them, or without a real Ollama for the last group, the tests are reported
//! as ignored, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
#[path = "../support/processes.rs"]
mod processes;
#[path = "../support/real_ollama.rs"]
mod real_ollama;
#[path = "../support/tools.rs"]
mod tools;

mod cancelled;
mod many;
mod mesh;
mod real;
mod refused;
mod same;
mod script;
mod transcript;

use libtest_mimic::{Arguments, Failed, Trial};
use script::Client;

/// A test, and what it cannot do without.
struct Test {
    name: String,
    needs: Result<(), String>,
    run: Box<dyn FnOnce() + Send>,
}

/// A test of each of these clients, named after it.
fn each(clients: &[Client], name: &str, run: fn(Client)) -> Vec<Test> {
    let test = |client: &Client| {
        let client = *client;
        Test { name: format!("{client}::{name}"), needs: client.needs(), run: Box::new(move || run(client)) }
    };
    clients.iter().map(test).collect()
}

fn main() {
    let arguments = Arguments::from_args();
    let tests = [same::tests(), many::tests(), cancelled::tests(), refused::tests(), real::tests()];
    let trials = tests.into_iter().flatten().map(|Test { name, needs, run }| {
        // The harness prints no reason of its own, so it stands in the name's kind.
        let kind = needs.as_ref().err().cloned().unwrap_or_default();
        let body = move || {
            run();
            Ok::<_, Failed>(())
        };
        Trial::test(name, body).with_kind(kind).with_ignored_flag(needs.is_err())
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    real::stop();
    conclusion.exit();
}
