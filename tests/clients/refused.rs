//! The mesh's own refusals, as the clients raise them.

use std::time::Duration;

use serde_json::Value;

use super::mesh::{MODEL, Mesh, url};
use super::processes::Node;
use super::script::{ALL, Client, OLLAMAS, Step};
use super::{Test, each};

pub fn tests() -> Vec<Test> {
    let retrying = &[Client::OpenAi];
    [
        each(ALL, "that_there_is_no_server_is_a_503_with_the_reason", nobody),
        each(OLLAMAS, "changing_models_without_the_scope_is_a_403_that_says_what_to_type", without_scope),
        each(OLLAMAS, "changing_models_where_several_could_be_meant_is_a_409_with_the_choices", choose),
        each(OLLAMAS, "a_node_that_nobody_knows_is_a_404_with_those_that_are_known", unknown_node),
        each(retrying, "a_client_that_tries_again_waits_as_long_as_it_is_told_to", retries),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn nobody(client: Client) {
    let alone = Node::start("laptop", None, &[]);
    for step in client.run("ask", &url(alone.listen), MODEL, &[]) {
        let error = match client {
            Client::OllamaPython => "ollama.ResponseError",
            Client::OllamaNode => "ResponseError",
            Client::OpenAi => "openai.InternalServerError",
            Client::Anthropic => "anthropic.ServiceUnavailableError",
        };
        assert_raised(&step, error, 503, &["no Ollama server is known", "ollana doctor"]);
        match client {
            Client::OpenAi => {
                // As the client hands it to a program: the error object's own fields.
                let body = &step.result["body"];
                assert!(body["message"].as_str().is_some_and(|text| text.starts_with("no Ollama server")), "{step:?}");
                assert!(body["type"].is_string() && body["code"] != Value::Bool(true), "{step:?}");
                assert_eq!(step.result["retry_after"], "5");
            }
            Client::Anthropic => {
                let body = &step.result["body"];
                assert_eq!(body["type"], "error", "{step:?}");
                assert!(
                    body["error"]["message"].as_str().is_some_and(|text| text.starts_with("no Ollama")),
                    "{step:?}"
                );
                assert!(body["error"]["type"].is_string(), "{step:?}");
            }
            _ => {}
        }
    }
}

fn without_scope(client: Client) {
    let mesh = Mesh::start();
    for environment in [&[][..], &[("PEER", "gpu1")]] {
        for step in client.run("change", &mesh.url(), MODEL, environment) {
            assert_raised(&step, error(client), 403, &["ollana trust laptop --scope manage"]);
        }
    }
    let changed = |path: &str| mesh.ollamas.iter().map(|ollama| ollama.counts().of(path)).sum::<u64>();
    assert_eq!(["/api/copy", "/api/pull", "/api/delete"].map(changed), [0, 0, 0], "nothing got there");
}

fn choose(client: Client) {
    let mesh = Mesh::managed();
    for step in client.run("change", &mesh.url(), MODEL, &[]) {
        assert_raised(&step, error(client), 409, &["ollana-peer", "gpu1", "gpu2"]);
    }
}

fn unknown_node(client: Client) {
    let mesh = Mesh::start();
    for step in client.run("ask", &mesh.url(), MODEL, &[("PEER", "gpu7")]) {
        assert_raised(&step, error(client), 404, &["gpu7", "gpu1", "gpu2"]);
    }
}

fn retries(client: Client) {
    let alone = Node::start("laptop", None, &[]);
    let steps = client.run("retry", &url(alone.listen), MODEL, &[]);
    for pair in steps.chunks(2) {
        let told: u64 = pair[0].result["retry_after"].as_str().unwrap().parse().unwrap();
        let waited = Duration::from_secs_f64(pair[1].result.as_f64().unwrap());
        // By itself it would wait for half a second.
        assert!(waited >= Duration::from_secs(told), "told {told} s, waited {waited:?}");
    }
}

fn error(client: Client) -> &'static str {
    if client == Client::OllamaPython { "ollama.ResponseError" } else { "ResponseError" }
}

fn assert_raised(step: &Step, error: &str, status: u16, said: &[&str]) {
    let Step { name, result } = step;
    assert_eq!((&result["raised"], &result["status"]), (&Value::from(error), &Value::from(status)), "{name}: {result}");
    let message = result["message"].as_str().unwrap();
    for words in said {
        assert!(message.contains(words), "{name}: no '{words}' in: {message}");
    }
}
