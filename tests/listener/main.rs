//! The user's side of a node, from an application's bytes to the endpoints and back, over endpoints whose answers each
//! test gives by hand.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../support/fake_endpoint.rs"]
mod fake_endpoint;

mod cancel;
mod http1;
mod http2;
mod lists;
mod node;
mod retry;
mod routing;
mod tickets;
mod web;

use fake_endpoint::{Call, FakeEndpoint};
use node::{Node, Setup, request, soon};
