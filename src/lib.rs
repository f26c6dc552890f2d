//! Ollana makes every Ollama server on a network usable from every machine on it.
//!
//! A request walks `listener → route → balance → transport ⇒ (other node) inbound → gate → ollama`; a node's own gate is
//! one more endpoint of `balance`. Control walks `discovery + trust → peers (dial, hello, health) → directory → balance`
//! and `gate → report → inbound ⇒ peers`.
//!
//! The modules in reading order:
//!
//! - vocabulary: [`id`], [`wire`], [`exchange`], [`route`]
//! - who is who: [`identity`], [`tls`], [`trust`], [`pairing`], and [`private_file`], where they keep what must not leak or get lost
//! - the mesh: [`discovery`], [`transport`], [`peers`], [`inbound`]
//! - the user's side: [`listener`], [`catalog`], [`balance`], and [`digests`], which weights a model's name stands for
//! - the provider's side: [`gate`], [`ollama`]
//! - the whole: [`config`], [`app`], [`control`], [`web`], [`cli`]

pub mod app;
pub mod balance;
pub mod catalog;
pub mod cli;
pub mod config;
pub mod control;
pub mod digests;
pub mod discovery;
pub mod exchange;
pub mod gate;
pub mod id;
pub mod identity;
pub mod inbound;
pub mod listener;
pub mod ollama;
pub mod pairing;
pub mod peers;
pub mod private_file;
pub mod route;
pub mod tls;
pub mod transport;
pub mod trust;
pub mod web;
pub mod wire;
