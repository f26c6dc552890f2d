//! Hundreds of requests of one application at once.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;

use super::mesh::{MODEL, Mesh};
use super::script::Client;
use super::{Test, each};

/// At once, by one process.
const MANY: u32 = 500;

/// Those without a limit of their own on what they do at once, or with one above a hundred.
const CLIENTS: &[Client] = &[Client::OllamaPython, Client::OllamaNode, Client::OpenAi];

pub fn tests() -> Vec<Test> {
    each(CLIENTS, "five_hundred_requests_at_once_are_all_answered", five_hundred)
}

fn five_hundred(client: Client) {
    // Two of them at once would be about the machine's processors.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mesh = Mesh::start();
    mesh.set(|settings| (settings.pace, settings.tokens) = (Duration::from_millis(1), 3));
    let steps = client.run("many-async", &mesh.url(), MODEL, &[("MANY", &MANY.to_string())]);
    assert_eq!(steps[0].result, json!({"answered": MANY, "failed": []}));
    // One whose peer seemed to be lost for a moment may run twice; none is left out.
    let ran = |path| mesh.ollamas.iter().map(|ollama| ollama.counts().of(path)).sum::<u64>();
    assert!(ran("/api/chat") + ran("/v1/chat/completions") >= u64::from(MANY));
}
