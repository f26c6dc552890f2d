//! Vouching on one connection: the node that was dialled tells for whom it vouches, if it is asked; the one that dialled
//! asks, if a person there said `--voucher`. What it hears goes to the trust book, which knows what it is worth.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::Session;
use super::dealer::OutOfPlace;
use crate::id::{NodeName, Scope};
use crate::trust::{Book, Said, Snapshot};
use crate::wire::control::Message;
use crate::wire::vouching::{Vouched, Vouching};

/// All is said again this often, since what is not heard again for a week counts no longer.
const AGAIN: Duration = Duration::from_secs(60 * 60);
/// What is heard goes to the trust book, and so to the disk, once in this time; the latest counts. Administrators type
/// slower, and a voucher that was broken into must not wear out the disks of all who hear it.
const HEAR_EVERY: Duration = Duration::from_secs(1);

/// One end's part.
#[derive(Debug)]
pub(super) struct Part {
    role: Role,
    session: Session,
    trust: watch::Receiver<Arc<Snapshot>>,
}

#[derive(Debug)]
enum Role {
    Teller {
        /// Where the one who asks comes from.
        address: SocketAddr,
        asked: bool,
        told: Option<(Vec<Vouched>, Instant)>,
    },
    Hearer {
        asked: bool,
        /// Heard, and not in the book yet.
        heard: Option<Vec<Said>>,
        /// When the book may be told of it.
        free: Instant,
    },
}

// === impl Part ===

impl Part {
    pub(super) fn new(session: &Session, book: &Book, address: SocketAddr) -> Self {
        let role = match session.dialled {
            true => Role::Hearer { asked: false, heard: None, free: Instant::now() },
            false => Role::Teller { address, asked: false, told: None },
        };
        Self { role, session: session.clone(), trust: book.watch() }
    }

    /// What is to be said now, if anything is.
    pub(super) fn due(&mut self) -> Option<Message> {
        let trust = self.trust.borrow_and_update().clone();
        let message = match &mut self.role {
            Role::Teller { address, asked: true, told } => {
                let all = told_to(&trust, &self.session, *address);
                if told.as_ref().is_some_and(|(before, at)| *before == all && at.elapsed() < AGAIN) {
                    return None;
                }
                *told = Some((all.clone(), Instant::now()));
                Vouching::Vouched(all)
            }
            Role::Hearer { asked, heard, .. } if !trust.is_voucher(&self.session.peer) => {
                // Should it be one again, all that it said before is forgotten, and it has to be asked anew.
                (*asked, *heard) = (false, None);
                return None;
            }
            Role::Hearer { asked: asked @ false, .. } => {
                *asked = true;
                Vouching::Ask
            }
            _ => return None,
        };
        Some(Message::Vouching(message))
    }

    /// Resolves when something may be due or was heard that the book can be told of. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        let at = match &self.role {
            Role::Teller { told, .. } => told.as_ref().map(|(_, at)| *at + AGAIN),
            Role::Hearer { heard, free, .. } => heard.as_ref().map(|_| *free),
        };
        let time = async {
            match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.trust.changed() => if changed.is_err() {
                // The book is gone: the node stops, and this connection with it.
                std::future::pending().await
            },
            () = time => {}
        }
    }

    /// The other end has said something.
    ///
    /// # Errors
    /// [`OutOfPlace`] if it was not for that end to say.
    pub(super) fn heard(&mut self, message: Vouching) -> Result<(), OutOfPlace> {
        match (&mut self.role, message) {
            (Role::Teller { asked, told, .. }, Vouching::Ask) => {
                (*asked, *told) = (true, None);
                Ok(())
            }
            (Role::Hearer { heard, .. }, Vouching::Vouched(all)) => {
                let said = |Vouched { id, name, address, until }| {
                    let address = address.map(|address| address.to_string());
                    Said { id, name, address, until }
                };
                // Asked for or not: the book takes it only of a voucher.
                *heard = Some(all.into_iter().map(said).collect());
                Ok(())
            }
            _ => Err(OutOfPlace),
        }
    }

    /// Tells the book what was heard, if it is time. Cancel-safe: it is told again then.
    pub(super) async fn tell(&mut self, book: &Book, peer: &NodeName) {
        let Role::Hearer { heard, free, .. } = &mut self.role else { return };
        let Some(said) = heard.clone().filter(|_| Instant::now() >= *free) else { return };
        if let Err(error) = book.hear(self.session.peer, said, self.session.me).await {
            tracing::error!(%peer, %error, "whom it vouches for is not used");
        }
        (*heard, *free) = (None, Instant::now() + HEAR_EVERY);
    }
}

/// Whom nothing is lent learns of no server; that nobody is vouched for takes back what it was told before.
fn told_to(trust: &Snapshot, session: &Session, to: SocketAddr) -> Vec<Vouched> {
    if trust.standing(&session.peer).scope < Scope::Infer {
        return Vec::new();
    }
    let leads = |address: &SocketAddr| leads_to_the_same(address.ip(), to.ip());
    let vouched = |said: &Said| Vouched {
        id: said.id,
        name: said.name.clone(),
        address: said.address.as_deref().and_then(|address| address.parse().ok()).filter(leads),
        until: said.until,
    };
    trust.vouches().iter().filter(|said| said.id != session.peer).map(vouched).collect()
}

/// Whether an address means over there what it means here.
fn leads_to_the_same(ip: IpAddr, to: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !link_local && !ip.is_unspecified() && !ip.is_multicast() && (!ip.is_loopback() || to.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_good_on_one_machine_or_link_only_is_not_passed_on() {
        let leads = |ip: &str, to: &str| leads_to_the_same(ip.parse().unwrap(), to.parse().unwrap());
        assert!(leads("10.0.0.3", "10.0.0.9") && leads("2001:db8::1", "10.0.0.9") && leads("127.0.0.1", "127.0.0.1"));
        for ip in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "0.0.0.0", "::", "224.0.0.254"] {
            assert!(!leads(ip, "10.0.0.9"), "{ip}");
        }
    }
}
