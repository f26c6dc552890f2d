//! What a client does with an Ollama it does with the mesh, and sees the same.

use super::mesh::{MODEL, Mesh, Simulated, url};
use super::script::{ALL, Client, OLLAMAS};
use super::transcript::assert_same;
use super::{Test, each};

pub fn tests() -> Vec<Test> {
    [
        each(ALL, "what_it_asks_of_the_mesh_is_answered_as_an_ollama_answers_it", asks),
        each(ALL, "an_error_in_mid_answer_reaches_it_as_it_was_said", error_in_mid_answer),
        each(ALL, "an_answer_that_breaks_off_breaks_off_for_it", break_in_mid_answer),
        each(OLLAMAS, "it_changes_the_models_of_the_node_that_it_chose_as_those_of_an_ollama", manages),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn asks(client: Client) {
    let (direct, mesh) = (Simulated::start(), Mesh::start());
    let asked = |url: &str| client.run("transcript", url, MODEL, &[]);
    assert_same(client, asked(&url(direct.address())), asked(&mesh.url()));
}

fn error_in_mid_answer(client: Client) {
    let (direct, mesh) = (Simulated::start(), Mesh::start());
    direct.set(|settings| settings.error_after = Some(3));
    mesh.set(|settings| settings.error_after = Some(3));
    let asked = |url: &str| client.run("ask", url, MODEL, &[]);
    assert_same(client, asked(&url(direct.address())), asked(&mesh.url()));
}

fn break_in_mid_answer(client: Client) {
    let (direct, mesh) = (Simulated::start(), Mesh::start());
    direct.set(|settings| settings.break_after = Some(3));
    mesh.set(|settings| settings.break_after = Some(3));
    let asked = |url: &str| client.run("ask", url, MODEL, &[]);
    let direct = asked(&url(direct.address()));
    assert!(direct.iter().any(|step| step.result.get("raised").is_some()), "it sees a break: {direct:?}");
    assert_same(client, direct, asked(&mesh.url()));
}

fn manages(client: Client) {
    let (direct, mesh) = (Simulated::start(), Mesh::managed());
    let changed = |url: &str| client.run("manage", url, MODEL, &[("PEER", "gpu1"), ("PULL", "1")]);
    assert_same(client, changed(&url(direct.address())), changed(&mesh.url()));
    let of = |i: usize| mesh.ollamas[i].counts().of("/api/delete");
    assert_eq!((of(0) > 0, of(1)), (true, 0), "only the one that was chosen");
}
