//! The forgetting of peers that are gone, and of names that others may have.
//!
//! Forgetting gives a key nothing: it is as new as any when it is met again. A decision against a key stays, and so
//! does the time at which the first-use window opened.

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::{Book, Pin, Trust, TrustError};
use crate::id::{Id, NodeName};

/// The peers and names that were forgotten.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Forgotten {
    /// Keys that are not in the book any more.
    pub forgotten: Vec<Pin>,
    /// Keys that stay revoked, and whose name others may have now.
    pub freed: Vec<Pin>,
    /// Keys that keep the name, since they are connected.
    pub kept: Vec<Pin>,
}

// === impl Book ===

impl Book {
    /// A person has a key forgotten that is not connected.
    ///
    /// # Errors
    /// If it is not in the book, is revoked, or is connected; or if that cannot be written. Then all is as it was.
    pub async fn forget(&self, id: Id) -> Result<Forgotten, TrustError> {
        self.write(move |writer| {
            writer.refresh()?;
            let pin = writer.ledger.pins.get(&id).cloned().ok_or(TrustError::NotKnown(id.to_string()))?;
            if pin.trust == Trust::Revoked {
                return Err(TrustError::StaysRevoked { id, name: pin.name });
            }
            if writer.is_present(&id) {
                return Err(TrustError::StillConnected { id, name: pin.name });
            }
            writer.decide(|ledger, _| ledger.forget(&id))?;
            tracing::info!(%id, "forgotten by hand: {}", pin.name);
            Ok(Forgotten { forgotten: vec![pin], ..Forgotten::default() })
        })
        .await
    }

    /// A person lets other keys have a name: who is known by it and not connected is forgotten, and who was revoked by it
    /// stays revoked, but under another.
    ///
    /// # Errors
    /// If nobody is known by it, or only who is connected; or if that cannot be written. Then all is as it was.
    pub async fn forget_name(&self, name: NodeName) -> Result<Forgotten, TrustError> {
        self.write(move |writer| {
            writer.refresh()?;
            let known = writer.ledger.pins.values().filter(|pin| pin.name.is(name.as_str())).cloned();
            let mut gone = Forgotten::default();
            for pin in known {
                match pin.trust {
                    Trust::Revoked => gone.freed.push(pin),
                    _ if writer.is_present(&pin.id) => gone.kept.push(pin),
                    _ => gone.forgotten.push(pin),
                }
            }
            if gone.freed.is_empty() && gone.forgotten.is_empty() {
                return Err(match gone.kept.pop() {
                    Some(Pin { id, name, .. }) => TrustError::StillConnected { id, name },
                    None => TrustError::NotKnown(name.to_string()),
                });
            }
            writer.decide(|ledger, _| {
                for pin in &gone.forgotten {
                    ledger.forget(&pin.id);
                }
                for pin in &gone.freed {
                    ledger.free_name_of(&pin.id);
                }
            })?;
            for pin in &mut gone.freed {
                pin.name = writer.ledger.pins.get(&pin.id).map_or_else(|| pin.name.clone(), |pin| pin.name.clone());
            }
            tracing::info!(%name, forgotten = gone.forgotten.len(), revoked = gone.freed.len(), "name freed by hand");
            Ok(gone)
        })
        .await
    }
}

// === impl Ledger ===

impl Ledger {
    /// As if it had never been met. The words of its vouchers stand: they are theirs to withdraw.
    pub(super) fn forget(&mut self, id: &Id) {
        if self.pins.get(id).is_some_and(|pin| pin.trust != Trust::Revoked) {
            self.pins.remove(id);
            self.tidy();
        }
    }

    /// A revoked key is remembered by its name and the beginning of its ID from now on, which is nobody's name.
    fn free_name_of(&mut self, id: &Id) {
        if let Some(pin) = self.pins.get_mut(id) {
            pin.name = pin.name.plain(id).with_suffix(&id.short());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{Scope, Use};
    use crate::trust::{Direction, Met, News, Standing, TrustPolicy};

    fn id(n: u8) -> Id {
        Id::from_bytes([n; 32])
    }

    fn met(n: u8, name: &str) -> Met {
        let direction = Direction::Outbound { provider: true };
        Met { id: id(n), name: NodeName::lossy(name), address: None, direction }
    }

    fn open(home: &tempfile::TempDir) -> Book {
        Book::open(&home.path().join("trust.toml"), TrustPolicy::default()).unwrap()
    }

    #[tokio::test]
    async fn a_freed_name_is_free_and_the_revoked_key_stays_out() {
        let home = tempfile::tempdir().unwrap();
        let book = open(&home);
        drop(book.meet(met(1, "ben")).await.unwrap());
        book.revoke(id(1)).await.unwrap();
        let waits = book.meet(met(2, "BEN")).await.unwrap();
        assert_eq!(waits.news, Some(News::NameTaken { by: id(1) }));
        assert_eq!(waits.standing, Standing { use_: Use::Pending, ..Standing::default() });
        assert!(matches!(book.forget(id(1)).await, Err(TrustError::StaysRevoked { .. })));
        let freed = book.forget_name(NodeName::lossy("Ben")).await.unwrap();
        assert_eq!((freed.freed.len(), freed.forgotten.len()), (1, 0));
        for book in [book, open(&home)] {
            assert!(book.snapshot().standing(&id(1)).is_revoked());
            assert!(book.meet(met(1, "ben")).await.unwrap().standing.is_revoked());
            assert_eq!(book.meet(met(2, "ben")).await.unwrap().standing.use_, Use::Yes);
        }
    }

    #[tokio::test]
    async fn who_is_connected_is_not_forgotten_and_the_window_stays_as_it_was() {
        let home = tempfile::tempdir().unwrap();
        let book = open(&home);
        let here = book.meet(met(1, "gpu")).await.unwrap();
        book.trust(id(2), NodeName::lossy("gpu"), None, Scope::Manage, true).await.unwrap();
        let opening = book.writer.lock().await.ledger.first_provider_met;
        assert!(matches!(book.forget(id(1)).await, Err(TrustError::StillConnected { .. })));
        let freed = book.forget_name(NodeName::lossy("gpu")).await.unwrap();
        assert_eq!((freed.kept.len(), freed.forgotten.len()), (1, 1));
        assert!(matches!(book.forget_name(NodeName::lossy("gpu")).await, Err(TrustError::StillConnected { .. })));
        drop(here);
        book.forget(id(1)).await.unwrap();
        assert!(matches!(book.forget(id(1)).await, Err(TrustError::NotKnown(_))));
        assert_eq!(book.writer.lock().await.ledger.first_provider_met, opening);
        assert_eq!(open(&home).snapshot().pins().count(), 0);
    }
}
