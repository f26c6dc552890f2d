//! A client that gives up ends the work at the Ollama.

use std::time::{Duration, Instant};

use super::mesh::{MODEL, Mesh};
use super::script::{ALL, Client};
use super::{Test, each};

/// How soon the work for a client that went away ends.
const WITHIN: Duration = Duration::from_secs(1);

/// The npm client can give up a stream only.
const PYTHONS: &[Client] = &[Client::OllamaPython, Client::OpenAi, Client::Anthropic];

pub fn tests() -> Vec<Test> {
    [
        each(ALL, "giving_up_in_mid_answer_ends_the_work_within_a_second", gives_up),
        each(PYTHONS, "giving_up_while_a_model_loads_ends_the_wait_within_a_second", gives_up_waiting),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn gives_up(client: Client) {
    let kinds: &[_] = if client == Client::OllamaNode { &["async"] } else { &["sync", "async"] };
    let mesh = Mesh::start();
    mesh.set(|settings| (settings.pace, settings.tokens) = (Duration::from_millis(20), 100_000));
    for kind in kinds {
        let (before, words) = (aborted(&mesh), said(&mesh));
        let mut script = client.start(&format!("cancel-{kind}"), &mesh.url(), MODEL, &[]);
        script.until("begun");
        until("words are said", Duration::from_secs(30), || said(&mesh) > words + 3);
        script.go_on();
        assert_ended(client, &mesh, before);
        script.until("given up");
    }
}

fn gives_up_waiting(client: Client) {
    let mesh = Mesh::start();
    mesh.set(|settings| settings.load = Duration::from_secs(600));
    let mut script = client.start("cancel-async", &mesh.url(), MODEL, &[]);
    until("it waits for the load", Duration::from_secs(30), || waiting(&mesh) == 1);
    script.go_on();
    assert_ended(client, &mesh, 0);
    script.until("given up");
}

fn assert_ended(client: Client, mesh: &Mesh, before: u64) {
    let begun = Instant::now();
    until("the Ollama stops", Duration::from_secs(30), || aborted(mesh) == before + 1);
    // What the client itself took to hear of it is in there.
    assert!(begun.elapsed() < WITHIN, "{client}: the Ollama worked on for {:?}", begun.elapsed());
}

fn aborted(mesh: &Mesh) -> u64 {
    mesh.ollamas.iter().map(|ollama| ollama.counts().aborted).sum()
}

fn said(mesh: &Mesh) -> u64 {
    mesh.ollamas.iter().map(|ollama| ollama.counts().tokens).sum()
}

fn waiting(mesh: &Mesh) -> usize {
    mesh.ollamas.iter().map(|ollama| ollama.counts().waiting).sum()
}

/// Looks until it is so.
fn until(what: &str, limit: Duration, there: impl Fn() -> bool) {
    let begun = Instant::now();
    while !there() {
        assert!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
