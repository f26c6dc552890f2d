//! The simulated Ollama held against what a real one answered (Ollama 0.24.0, `tests/data/ollama-0.24.0.jsonl`, a
//! selection of recorded exchanges with long answers cut): status, headers that matter, framing, shape of the JSON, and
//! errors word by word. And this crate's own client and watch of an Ollama, against the simulated one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;

mod client;
mod learned;
mod recorded;
mod watch;
