//! Servers that are not as Ollama is: shared all the same, with what can be understood of them, and what cannot is said.
//!
//! Nodes are processes, and the servers are tables of answers ([`shaped`]). One node sees one server after the other at the
//! same address, as its owner tries them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod fields;
mod known;
mod node;
#[path = "../support/shaped.rs"]
mod shaped;
mod slow;
mod strange;
