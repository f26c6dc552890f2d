//! The command line from the outside: the real binary, each test with a home directory of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;

mod choice;
mod config;
mod daemon;
mod explain;
mod home;
mod invite;
mod lab;
mod many;
mod owner;
mod pairing;
mod socket;
mod store;
mod usage;
mod vouch;
