//! The network between two nodes, as far as a test wants to cut it, or to put another node at the same address.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// Passes datagrams on to a node and back, a socket a sender. Who dials [`address`](Relay::address) reaches the target.
pub struct Relay {
    pub address: SocketAddr,
    way: Arc<Mutex<Way>>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone, Copy)]
struct Way {
    target: SocketAddr,
    cut: bool,
    passed: u64,
}

// === impl Relay ===

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let way = Arc::new(Mutex::new(Way { target, cut: false, passed: 0 }));
        let address = socket.local_addr().unwrap();
        let task = AbortOnDropHandle::new(tokio::spawn(pass(socket, Arc::clone(&way))));
        Self { address, way, _task: task }
    }

    /// Nothing passes any more, in either direction, until it is mended.
    pub fn cut(&self, cut: bool) {
        self.way.lock().unwrap().cut = cut;
    }

    /// From here on another node stands at the address.
    pub fn lead_to(&self, target: SocketAddr) {
        self.way.lock().unwrap().target = target;
    }
}

async fn pass(socket: Arc<UdpSocket>, way: Arc<Mutex<Way>>) {
    let mut senders: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut back = JoinSet::new();
    let mut datagram = vec![0; 65_536];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut datagram).await else { continue };
        if !senders.contains_key(&from) {
            let own = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
            senders.insert(from, Arc::clone(&own));
            let (socket, way) = (Arc::clone(&socket), Arc::clone(&way));
            back.spawn(async move {
                let mut datagram = vec![0; 65_536];
                loop {
                    let Ok((length, _)) = own.recv_from(&mut datagram).await else { continue };
                    if !way.lock().unwrap().cut {
                        let _ = socket.send_to(&datagram[..length], from).await;
                    }
                }
            });
        }
        let now = {
            let mut way = way.lock().unwrap();
            way.passed += 1;
            *way
        };
        if !now.cut {
            let _ = senders[&from].send_to(&datagram[..length], now.target).await;
        }
    }
}
