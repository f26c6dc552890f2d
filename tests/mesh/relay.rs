//! The network between two nodes, as far as a test wants to cut it, or to put another node at the same address.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// Passes datagrams on to a node and back, a socket a sender. Who dials [`address`](Relay::address) reaches the target.
pub struct Relay {
    pub address: SocketAddr,
    way: Arc<Mutex<Way>>,
    _task: AbortOnDropHandle<()>,
}

struct Way {
    target: SocketAddr,
    there: bool,
    back: bool,
    /// The connections that packets came back on, by the ID at the start of each; those of old ones do not pass.
    seen: HashSet<[u8; 8]>,
    old: bool,
}

// === impl Relay ===

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let way = Arc::new(Mutex::new(Way { target, there: true, back: true, seen: HashSet::new(), old: true }));
        let address = socket.local_addr().unwrap();
        let task = AbortOnDropHandle::new(tokio::spawn(pass(socket, Arc::clone(&way))));
        Self { address, way, _task: task }
    }

    /// Nothing passes any more, in either direction, until it is mended.
    pub fn cut(&self, cut: bool) {
        let mut way = self.way();
        (way.there, way.back) = (!cut, !cut);
    }

    /// Nothing comes back any more.
    pub fn cut_back(&self, cut: bool) {
        self.way().back = !cut;
    }

    /// Nothing comes back any more on the connections that there are; on new ones it does.
    pub fn cut_old(&self, cut: bool) {
        self.way().old = !cut;
    }

    /// From here on another node stands at the address.
    pub fn lead_to(&self, target: SocketAddr) {
        self.way().target = target;
    }

    fn way(&self) -> MutexGuard<'_, Way> {
        self.way.lock().unwrap()
    }
}

impl Way {
    fn lets_back(&mut self, datagram: &[u8]) -> bool {
        // A short header, and behind it the connection's ID (RFC 9000 §17.3).
        let id = datagram.get(1..9).filter(|_| datagram[0] & 0x80 == 0).map(|id| <[u8; 8]>::try_from(id).unwrap());
        let known = id.is_some_and(|id| self.seen.contains(&id));
        if self.old {
            self.seen.extend(id);
        }
        self.back && (self.old || !known)
    }
}

async fn pass(socket: Arc<UdpSocket>, way: Arc<Mutex<Way>>) {
    let mut senders: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
        if let Entry::Vacant(new) = senders.entry(from) {
            let own = Arc::clone(new.insert(Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap())));
            let (socket, way) = (Arc::clone(&socket), Arc::clone(&way));
            back.spawn(async move {
                let mut datagram = vec![0; 65_536];
                loop {
                    let Ok((length, _)) = own.recv_from(&mut datagram).await else { continue };
                    let passes = way.lock().unwrap().lets_back(&datagram[..length]);
                    if passes {
                        let _ = socket.send_to(&datagram[..length], from).await;
                    }
                }
            });
        }
        let target = {
            let way = way.lock().unwrap();
            way.there.then_some(way.target)
        };
        if let Some(target) = target {
            let _ = senders[&from].send_to(&datagram[..length], target).await;
        }
    }
}
