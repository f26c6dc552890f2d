//! Who may do what: the trust book, its store and a watch of snapshots.

use crate::id::{Scope, Use};
use serde::{Deserialize, Serialize};

/// How a key came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// Pinned by the program when it was met.
    FirstUse,
    /// Pinned by a person.
    Trusted,
    /// Used because someone trusted says so.
    Vouched,
    /// Refused for good, until a person trusts it again.
    Revoked,
    /// Not pinned.
    #[default]
    None,
}

/// What the book says of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Standing {
    /// How the key came to be known.
    pub trust: Trust,
    /// Whether we send it prompts.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do at our gate.
    pub scope: Scope,
}

/// What is believed of a key that was not met before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// It is pinned.
    #[default]
    FirstUse,
    /// Nothing without `ollana trust`.
    Paired,
}

/// The policies of both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Who may use our Ollama.
    pub inbound: Policy,
    /// Whose Ollama gets our prompts.
    pub outbound: Policy,
    /// How long providers are used as they are met.
    pub first_use_window: std::time::Duration,
}

impl Default for TrustPolicy {
    fn default() -> Self {
        Self {
            inbound: Policy::FirstUse,
            outbound: Policy::FirstUse,
            first_use_window: std::time::Duration::from_secs(86_400),
        }
    }
}

// ---- stub until branch `trust` is merged: only the surface that the socket and the command line use ----

/// A pin.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pin {
    /// Whose.
    pub id: crate::id::Id,
    /// Its name.
    pub name: crate::id::NodeName,
    /// Where.
    pub address: Option<String>,
    /// How.
    pub trust: Trust,
    /// Use.
    pub use_: Use,
    /// Scope.
    pub scope: Scope,
}

/// All pins.
#[derive(Debug, Clone, Default)]
pub struct Snapshot(Vec<Pin>);

impl Snapshot {
    /// The pins.
    pub fn pins(&self) -> impl Iterator<Item = &Pin> {
        self.0.iter()
    }
}

/// Stub.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TrustError(String);

/// Stub.
#[derive(Debug, Clone)]
pub struct Book {
    path: std::path::PathBuf,
    pins: std::sync::Arc<tokio::sync::watch::Sender<std::sync::Arc<Snapshot>>>,
}

#[derive(Default, Serialize, Deserialize)]
struct Stored {
    #[serde(default)]
    pin: Vec<Pin>,
}

impl Book {
    /// Stub.
    pub fn open(path: &std::path::Path, _policy: TrustPolicy) -> Result<Self, TrustError> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let stored: Stored = toml::from_str(&text).map_err(|e| TrustError(e.to_string()))?;
        let pins = tokio::sync::watch::Sender::new(std::sync::Arc::new(Snapshot(stored.pin)));
        Ok(Self { path: path.to_owned(), pins: std::sync::Arc::new(pins) })
    }

    /// Stub.
    pub fn watch(&self) -> tokio::sync::watch::Receiver<std::sync::Arc<Snapshot>> {
        self.pins.subscribe()
    }

    /// Stub.
    pub async fn trust(
        &self,
        id: crate::id::Id,
        name: &crate::id::NodeName,
        address: Option<String>,
        scope: Scope,
        use_: bool,
    ) -> Result<(), TrustError> {
        let use_ = if use_ { Use::Yes } else { Use::No };
        self.put(Pin { id, name: name.clone(), address, trust: Trust::Trusted, use_, scope })
    }

    /// Stub.
    pub async fn revoke(&self, id: crate::id::Id) -> Result<(), TrustError> {
        let name = crate::id::NodeName::lossy("");
        let old = self.pins.borrow().0.iter().find(|p| p.id == id).cloned();
        let old = old.unwrap_or(Pin { id, name, address: None, trust: Trust::None, use_: Use::No, scope: Scope::None });
        self.put(Pin { trust: Trust::Revoked, use_: Use::No, scope: Scope::None, ..old })
    }

    fn put(&self, pin: Pin) -> Result<(), TrustError> {
        let mut pins = self.pins.borrow().0.clone();
        pins.retain(|p| p.id != pin.id);
        pins.push(pin);
        let text = toml::to_string(&Stored { pin: pins.clone() }).map_err(|e| TrustError(e.to_string()))?;
        std::fs::write(&self.path, text).map_err(|e| TrustError(e.to_string()))?;
        self.pins.send_replace(std::sync::Arc::new(Snapshot(pins)));
        Ok(())
    }
}
