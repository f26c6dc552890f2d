//! Attacks on running nodes, one test an attack: somebody with quinn, rustls and sockets of their own, who sends what a
//! node never would, against nodes as `ollana serve` runs them and with an Ollama behind them that counts what reaches it.
//!
//! What needs a network of its own (beacons) or another user of the machine is in `link.rs`, a program of its own. Where a
//! test elsewhere runs the attack from outside already, SECURITY.md names that one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod evil;
#[path = "../support/fake_ollama.rs"]
mod fake_ollama;
#[path = "../mesh/node.rs"]
mod node;
#[allow(dead_code)]
#[path = "../tls/peers.rs"]
mod shown;
#[allow(dead_code)]
#[path = "../mesh/stranger.rs"]
mod stranger;
#[path = "../support/victim.rs"]
mod victim;

mod floods;
mod gate;
mod handshake;
#[allow(dead_code)]
#[path = "../cli/home.rs"]
mod home;
mod pairing;
mod revoked;
mod routes;
mod secrets;
mod slots;
mod web;
