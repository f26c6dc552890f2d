//! The command line from the outside: the real binary, each test with a home directory of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_ollama.rs"]
mod fake_ollama;

mod choice;
mod clock;
mod config;
mod daemon;
mod doctor;
mod explain;
mod forget;
mod home;
mod invite;
mod lab;
mod many;
mod owner;
mod pairing;
mod peers;
mod socket;
mod store;
mod usage;
mod users;
mod vouch;
