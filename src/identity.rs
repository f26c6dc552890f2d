//! Stub until branch `trust` is merged.

use crate::id::Id;

/// Stub.
#[derive(Debug)]
pub struct Identity(Id);

/// Stub.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct IdentityError(String);

impl Identity {
    /// Stub.
    pub fn load_or_create(dir: &std::path::Path) -> Result<Self, IdentityError> {
        let path = dir.join("identity.key");
        let key = match std::fs::read(&path) {
            Ok(key) => key,
            Err(_) => {
                let key = rand::random::<[u8; 32]>().to_vec();
                std::fs::write(&path, &key).map_err(|e| IdentityError(e.to_string()))?;
                key
            }
        };
        Ok(Self(Id::of_spki(&key)))
    }

    /// Stub.
    pub fn id(&self) -> Id {
        self.0
    }
}
