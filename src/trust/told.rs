//! The log's lines on what a key may do and is used for, one for each change.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{Direction, Met, Snapshot, Standing, Trust};
use crate::id::{Id, Scope, Use};

/// An invitation is redeemed within milliseconds of the meeting, and a person is not needed then.
const SETTLED_WITHIN: Duration = Duration::from_secs(2);

/// Says what has changed for keys that were known before. A person's change is said where it was made, and of a new key
/// it is said that it was met.
pub(super) fn say_changes(before: &Snapshot, after: &Snapshot) {
    for pin in after.pins().filter(|pin| matches!(pin.trust, Trust::FirstUse | Trust::Vouched)) {
        let Some(former) = before.pin(&pin.id).filter(|former| former.trust == pin.trust) else { continue };
        let (id, name) = (pin.id, &pin.name);
        if former.scope != pin.scope {
            tracing::info!(%id, "{name} {}", may(pin.scope));
        }
        if former.use_ != pin.use_ {
            tracing::info!(%id, "{name} {}", used(pin.use_));
        }
    }
}

/// The permission of a key here, for people.
pub(super) fn may(scope: Scope) -> &'static str {
    match scope {
        Scope::None => "may do nothing here",
        Scope::Infer => "may run models here",
        Scope::Manage => "may run and change models here",
    }
}

/// Whether requests go there, for people.
pub(super) fn used(use_: Use) -> &'static str {
    match use_ {
        Use::Yes => "is used as a provider",
        Use::Pending => "is not used as a provider until a person trusts it",
        Use::No => "is not used as a provider",
    }
}

/// Warnings that are due in a moment. Dropping it drops those that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Warnings(JoinSet<()>);

impl Warnings {
    /// Warns of a key that waits for a person, unless that is over in a moment.
    pub(super) fn warn_unless_settled(&mut self, book: watch::Receiver<Arc<Snapshot>>, met: &Met, warning: String) {
        let (id, direction) = (met.id, met.direction);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return tracing::warn!(%id, "{warning}") };
        while self.0.try_join_next().is_some() {}
        let warns = async move {
            if !is_settled_soon(book, id, direction).await {
                tracing::warn!(%id, "{warning}");
            }
        };
        self.0.spawn_on(warns, &runtime);
    }
}

async fn is_settled_soon(mut book: watch::Receiver<Arc<Snapshot>>, id: Id, direction: Direction) -> bool {
    let settled = |standing: Standing| match direction {
        // A person, or an invitation, has decided.
        _ if matches!(standing.trust, Trust::Trusted | Trust::Revoked) => true,
        Direction::Inbound => standing.scope > Scope::None,
        Direction::Outbound { .. } => standing.use_ == Use::Yes,
    };
    let settles = book.wait_for(|book| settled(book.standing(&id)));
    matches!(tokio::time::timeout(SETTLED_WITHIN, settles).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeName;
    use crate::trust::Pin;

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_trusted_in_a_moment_is_no_warning() {
        let id = Id::of_spki(b"desktop");
        let (tell, book) = watch::channel(Arc::new(Snapshot::default()));
        let waits = is_settled_soon(book.clone(), id, Direction::Outbound { provider: true });
        let trusted = async {
            tokio::time::sleep(Duration::from_millis(26)).await;
            let pin = Pin {
                id,
                name: NodeName::lossy("desktop"),
                address: None,
                trust: Trust::Trusted,
                use_: Use::Yes,
                scope: Scope::Infer,
                voucher: false,
                first_met: 0,
                last_met: 0,
            };
            tell.send_modify(|book| drop(Arc::make_mut(book).pins.insert(id, pin)));
        };
        assert!(tokio::join!(waits, trusted).0);
        let other = Id::of_spki(b"other");
        assert!(!is_settled_soon(book, other, Direction::Inbound).await);
    }
}
