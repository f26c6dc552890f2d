//! A simulated Ollama as a process of its own, for tests that kill processes and for load tests without a model.
//!
//! ```sh
//! cargo run --example fake_ollama -- 127.0.0.1:11500 --model smollm2 --model qwen3:4b --pace-ms 20 --tokens 100
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

#[path = "../tests/support/fake_ollama.rs"]
mod fake_ollama;

use std::net::SocketAddr;
use std::time::Duration;

use clap::Parser;
use fake_ollama::{FakeOllama, Settings};

/// A simulated Ollama.
#[derive(Parser)]
struct Args {
    /// Where it listens.
    #[arg(default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A model on its disk; may be given many times.
    #[arg(long = "model", default_value = "smollm2")]
    models: Vec<String>,
    /// Words in an answer that asks for no number.
    #[arg(long, default_value_t = 8)]
    tokens: usize,
    /// Milliseconds from one token to the next.
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
    /// Milliseconds to read a prompt.
    #[arg(long, default_value_t = 0)]
    prompt_ms: u64,
    /// Milliseconds to load a model.
    #[arg(long, default_value_t = 0)]
    load_ms: u64,
    /// Requests that a model runs at a time.
    #[arg(long, default_value_t = 4)]
    parallel: usize,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let settings = Settings {
        tokens: args.tokens,
        pace: Duration::from_millis(args.pace_ms),
        prompt: Duration::from_millis(args.prompt_ms),
        load: Duration::from_millis(args.load_ms),
        parallel: args.parallel,
        record: false,
        ..Settings::default()
    };
    let models: Vec<&str> = args.models.iter().map(String::as_str).collect();
    let fake = FakeOllama::start_at(args.listen, &models, settings).await;
    // One line, for whoever started it at port 0.
    println!("{}", fake.url());
    tokio::signal::ctrl_c().await.expect("signals can be waited for");
}
