//! Real nodes in one process, on loopback and with simulated Ollamas: requests from an application's socket through two
//! nodes to an Ollama, and what happens to them when nodes stop, fall silent, lie, or are not wanted.
//!
//! Someone who does not keep to the rules is a [`Stranger`](stranger::Stranger): the transport, used by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
mod node;
mod relay;
mod stranger;
#[path = "../support/victim.rs"]
mod victim;

mod cancel;
mod drain;
mod hostile;
mod identity;
mod invitation;
mod manage;
mod owner;
mod pairing;
mod poison;
mod queue;
mod silence;
mod together;
mod vouching;
mod weights;
