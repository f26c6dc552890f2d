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
//!
//! # Embedding a node
//!
//! The command `ollana` is [`Cli`]. A program that wants a node of its own builds an [`App`] from a [`Config`]:
//!
//! ```no_run
//! use ollana::{App, Config, Environment, Layer};
//! use tokio_util::sync::CancellationToken;
//!
//! # async fn node() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::load(&Layer::default(), &Environment::of_process(), None)?;
//! let app = App::build(config).await?;
//! println!("other nodes reach this one at {}", app.ready().mesh);
//! let shutdown = CancellationToken::new();
//! app.run(shutdown).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The modules are private, so that the compiler finds what is dead; what this page lists is the public interface. The
//! feature `internals`, which is unstable, shows the modules to the tests, benches and fuzz targets of this repository.

mod app;
mod balance;
mod catalog;
mod cli;
mod config;
mod control;
mod digests;
mod discovery;
mod exchange;
mod gate;
mod id;
mod identity;
mod inbound;
mod listener;
mod ollama;
mod pairing;
mod peers;
mod private_file;
mod route;
mod tls;
mod transport;
mod trust;
mod web;
mod wire;

pub use app::{App, AppError};
pub use cli::{Cli, Failure};
pub use config::{
    Balance, Config, ConfigError, Environment, File, FileError, Hours, Key, Layer, Lend, Listen, LogFormat, MeshAddr,
    Mode, OllamaTarget, Status,
};
pub use control::{Info, Taken};
pub use discovery::PeerAddress;
pub use gate::Weights;
pub use id::{Id, NodeName};
pub use trust::{Policy, TrustPolicy};

/// **Unstable.** The modules of the library, for the tests, benches and fuzz targets of this repository. Any of it may
/// change or go without notice.
#[cfg(feature = "internals")]
pub mod internals {
    macro_rules! expose {
        ($($module:ident)*) => {
            $(
                #[doc = concat!("What the module `", stringify!($module), "` shows to the others.")]
                pub mod $module {
                    pub use crate::$module::*;
                }
            )*
        };
    }

    expose! {
        balance catalog control digests discovery exchange gate id identity listener ollama pairing peers route tls transport
        trust wire
    }
}
