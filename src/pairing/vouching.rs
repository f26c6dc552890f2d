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
    use crate::id::{Id, Use};
    use crate::trust::{Standing, Trust, TrustPolicy, Vouch};

    const GPU1: Id = Id::from_bytes([1; 32]);
    const LAPTOP: Id = Id::from_bytes([2; 32]);
    const SERVER: Id = Id::from_bytes([3; 32]);

    fn book(home: &tempfile::TempDir) -> Book {
        Book::open(&home.path().join("trust.toml"), TrustPolicy::default()).unwrap()
    }

    fn part(book: &Book, me: Id, peer: Id, dialled: bool) -> Part {
        Part::new(&Session { me, peer, dialled, secret: [0; 32] }, book, "10.0.0.1:11435".parse().unwrap())
    }

    fn name() -> NodeName {
        NodeName::lossy("n")
    }

    fn vouched(id: Id) -> Vouched {
        Vouched { id, name: name(), address: None, until: u64::MAX }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_asked_is_told_at_once_on_each_change_and_every_hour() {
        let home = tempfile::tempdir().unwrap();
        let book = book(&home);
        for id in [LAPTOP, SERVER] {
            book.trust(id, name(), None, Scope::Infer, true).await.unwrap();
        }
        let mut part = part(&book, GPU1, LAPTOP, false);
        assert!(part.due().is_none(), "nobody has asked");
        part.heard(Vouching::Ask).unwrap();
        assert_eq!(part.due(), Some(Message::Vouching(Vouching::Vouched(Vec::new()))));
        assert!(part.due().is_none());
        for id in [SERVER, LAPTOP] {
            book.vouch(Vouch { id, until: u64::MAX }).await.unwrap();
        }
        part.changed().await;
        let told = part.due();
        let Some(Message::Vouching(Vouching::Vouched(all))) = &told else { panic!("{told:?}") };
        assert_eq!(all.iter().map(|server| server.id).collect::<Vec<_>>(), [SERVER], "nobody is told of itself");
        let before = Instant::now();
        part.changed().await;
        assert_eq!((before.elapsed().as_secs(), part.due()), (AGAIN.as_secs(), told));
    }

    #[tokio::test(start_paused = true)]
    async fn the_book_is_told_at_once_and_then_of_the_latest_once_a_second() {
        let home = tempfile::tempdir().unwrap();
        let book = book(&home);
        let mut part = part(&book, LAPTOP, GPU1, true);
        assert!(part.due().is_none(), "it is no voucher");
        book.trust_voucher(GPU1, name(), None, Scope::None, false, Some(true)).await.unwrap();
        assert_eq!(part.due(), Some(Message::Vouching(Vouching::Ask)));
        assert!(part.due().is_none(), "it is asked once");
        let used = || {
            let snapshot = book.snapshot();
            let vouched = Standing { trust: Trust::Vouched, use_: Use::Yes, scope: Scope::None };
            (3..9).filter(|n| snapshot.standing(&Id::from_bytes([*n; 32])) == vouched).collect::<Vec<u8>>()
        };
        part.heard(Vouching::Vouched(vec![vouched(SERVER)])).unwrap();
        part.tell(&book, &name()).await;
        assert_eq!(used(), [3]);
        part.due();
        for n in 4..9 {
            part.heard(Vouching::Vouched(vec![vouched(Id::from_bytes([n; 32]))])).unwrap();
            part.tell(&book, &name()).await;
        }
        assert_eq!(used(), [3]);
        let before = Instant::now();
        part.changed().await;
        part.tell(&book, &name()).await;
        assert_eq!((used(), before.elapsed() <= HEAR_EVERY + Duration::from_millis(1)), (vec![8], true));
    }

    #[tokio::test]
    async fn neither_end_says_what_is_for_the_other_to_say() {
        let home = tempfile::tempdir().unwrap();
        let book = book(&home);
        assert!(part(&book, GPU1, LAPTOP, false).heard(Vouching::Vouched(Vec::new())).is_err());
        assert!(part(&book, LAPTOP, GPU1, true).heard(Vouching::Ask).is_err());
    }

    #[test]
    fn an_address_that_is_good_on_one_machine_or_link_only_is_not_passed_on() {
        let leads = |ip: &str, to: &str| leads_to_the_same(ip.parse().unwrap(), to.parse().unwrap());
        assert!(leads("10.0.0.3", "10.0.0.9") && leads("2001:db8::1", "10.0.0.9") && leads("127.0.0.1", "127.0.0.1"));
        for ip in ["127.0.0.1", "::1", "169.254.1.1", "fe80::1", "0.0.0.0", "::", "224.0.0.254"] {
            assert!(!leads(ip, "10.0.0.9"), "{ip}");
        }
    }
}
