//! Sources of sightings: multicast beacons ([`Discovery`]) and fixed peers ([`FixedPeers`]).
//!
//! A sighting is a hint where to dial and never evidence of who is there: beacons are not signed, and whoever is on the
//! link may send any. So they can add a candidate and take nothing away, and everything they cause here is bounded.
//!
//! - `interfaces`: which links there are, looked at once a second
//! - `sockets`: one socket a link, and the check that a datagram comes from that link
//! - `machine`: what is sent when, and what an arriving beacon means; no I/O, no clock
//! - `known`: who was heard, what of it is news, and when it is gone
//! - `fixed`: addresses that somebody typed

mod bucket;
mod fixed;
mod interfaces;
mod known;
mod machine;
mod sockets;

pub use fixed::{FixedPeers, LookUp, LookUps, PeerAddress};

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, trace, warn};

use crate::id::{Id, Instance, NodeName};
use machine::{Heard, Machine, Me};
use sockets::{Changes, Datagram, Sockets};

/// The UDP port of the discovery groups.
pub const GROUP_PORT: u16 = 11436;
/// How often the interfaces are looked at. A poll, because what would tell of changes differs between systems (netlink,
/// routing sockets). A poll costs 80 µs with three links and 2.5 ms with a hundred (debug build, the test
/// `price_of_listing_the_links`), so 0.01 % to 0.25 % of a core, for a delay that nobody notices beside that of plugging
/// in a cable.
const WATCH: Duration = Duration::from_secs(1);
/// Datagrams between the sockets and the task that reads them, beyond what the kernel buffers.
const RECEIVED: usize = 64;

/// A hint where to dial, never evidence of who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// What was seen.
    pub kind: SightingKind,
    /// Where its QUIC port is: the datagram's source address (with scope ID for link-local IPv6) and the beacon's port.
    pub address: SocketAddr,
    /// What the beacon claims; nothing for a fixed peer.
    pub claim: Option<Claim>,
}

/// What kind of sighting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SightingKind {
    /// Somebody is (still) there.
    Present,
    /// Somebody says it leaves: a reason to check, nothing more.
    Goodbye,
    /// No beacon for so long that it counts as gone.
    Expired,
}

/// Who a beacon claims to come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The claimed ID.
    pub id: Id,
    /// The claimed instance.
    pub instance: Instance,
    /// The claimed name.
    pub name: NodeName,
}

/// What a node says about itself on the network.
#[derive(Debug, Clone)]
pub struct DiscoverySettings {
    /// Our ID. Beacons with it and our instance are our own and dropped.
    pub id: Id,
    /// This run of the program.
    pub instance: Instance,
    /// What people call this node.
    pub name: NodeName,
    /// The UDP port where we take QUIC connections, on every address of this machine.
    pub quic_port: u16,
    /// The port of the groups, [`GROUP_PORT`] but for tests.
    pub group_port: u16,
}

/// Multicast discovery: announces this node and hears the others for as long as it lives. Dropping it ends it without
/// a goodbye.
#[derive(Debug)]
pub struct Discovery {
    stop: oneshot::Sender<()>,
    task: AbortOnDropHandle<()>,
}

/// Opens a socket on each link that there is.
fn join(sockets: &mut Sockets, group_port: u16) -> Result<Changes, DiscoveryError> {
    let changes = sockets.sync(interfaces::links().map_err(DiscoveryError::Interfaces)?);
    match changes.port_taken {
        Some(source) => Err(DiscoveryError::PortTaken { port: group_port, source }),
        None => Ok(changes),
    }
}

/// Why discovery cannot start. It may be switched off, so each says how.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Another program holds the port and does not share it, as every multicast program should.
    #[error(
        "UDP port {port}, on which nodes find each other, is used by another program that does not share it; stop \
         that program, or `ollana config set discovery false` and name the other nodes with --peer"
    )]
    PortTaken {
        /// The port.
        port: u16,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The system does not tell which interfaces there are.
    #[error(
        "cannot list the network interfaces; `discovery = false` in config.toml does without, with --peer for the others"
    )]
    Interfaces(#[source] io::Error),
}

/// The task behind a [`Discovery`].
struct Task {
    machine: Machine,
    sockets: Sockets,
    received: mpsc::Receiver<Datagram>,
    watch: Interval,
}

// === impl Discovery ===

impl Discovery {
    /// Whether it could start: opens its sockets for a moment and sends nothing. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// As [`Discovery::spawn`].
    pub fn check(group_port: u16) -> Result<(), DiscoveryError> {
        let (sender, _received) = mpsc::channel(RECEIVED);
        join(&mut Sockets::new(group_port, sender), group_port).map(drop)
    }

    /// Starts to announce and to listen on every link that there is, and on those that come later. What is heard goes
    /// to `sightings`; while nobody takes it, it waits and then is dropped, to be heard again later. Having no network
    /// at all is not an error. Must be called within a Tokio runtime.
    ///
    /// # Errors
    /// [`DiscoveryError`], each with what to do about it.
    pub fn spawn(settings: DiscoverySettings, sightings: mpsc::Sender<Sighting>) -> Result<Self, DiscoveryError> {
        let DiscoverySettings { id, instance, name, quic_port, group_port } = settings;
        let (sender, received) = mpsc::channel(RECEIVED);
        let mut sockets = Sockets::new(group_port, sender);
        let changes = join(&mut sockets, group_port)?;
        let interfaces = sockets.interfaces().into_iter().collect::<Vec<_>>().join(", ");
        info!(port = group_port, "looking for other nodes by multicast on {interfaces}");
        let mut watch = interval_at(Instant::now() + WATCH, WATCH);
        watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let machine = Machine::new(Me { id, instance, name, quic_port }, rand::random());
        let mut task = Task { machine, sockets, received, watch };
        task.follow(changes);
        let (stop, stopped) = oneshot::channel();
        Ok(Self { stop, task: AbortOnDropHandle::new(tokio::spawn(task.run(sightings, stopped))) })
    }

    /// Resolves if it hears and announces no more, which is a bug: it does as long as this lives.
    pub async fn ended(&mut self) {
        let _ = (&mut self.task).await;
    }

    /// Says goodbye on every link and ends.
    pub async fn goodbye(self) {
        let _ = self.stop.send(());
        // An error is the task's own panic, which the runtime has reported.
        let _ = self.task.await;
    }
}

// === impl Task ===

impl Task {
    async fn run(mut self, sightings: mpsc::Sender<Sighting>, mut stop: oneshot::Receiver<()>) {
        loop {
            self.transmit();
            let timeout = self.machine.poll_timeout().map(Instant::from_std);
            tokio::select! {
                stopped = &mut stop => {
                    // An error means that the `Discovery` was dropped, which is without a goodbye.
                    if stopped.is_ok() {
                        debug!("saying goodbye");
                        self.machine.handle_shutdown();
                        self.transmit();
                    }
                    return;
                }
                permit = sightings.reserve(), if self.machine.has_sighting() => {
                    let Ok(permit) = permit else { return };
                    if let Some(sighting) = self.machine.poll_sighting() {
                        debug!(kind = ?sighting.kind, address = %sighting.address, claim = ?sighting.claim, "sighting");
                        permit.send(sighting);
                    }
                }
                // The sender's other half is in `sockets`, so this never ends.
                Some(datagram) = self.received.recv() => self.receive(&datagram),
                () = sleep_until(timeout.unwrap_or_else(Instant::now)), if timeout.is_some() => {
                    self.machine.handle_timeout(now());
                }
                _ = self.watch.tick() => match interfaces::links() {
                    Ok(links) => {
                        let changes = self.sockets.sync(links);
                        self.follow(changes);
                    }
                    Err(error) => warn!(%error, "cannot list the network interfaces"),
                },
            }
        }
    }

    fn follow(&mut self, changes: Changes) {
        changes.down.into_iter().for_each(|link| self.machine.handle_link_down(link));
        changes.up.into_iter().for_each(|link| self.machine.handle_link_up(now(), link));
    }

    fn transmit(&mut self) {
        while let Some(transmit) = self.machine.poll_transmit() {
            match self.sockets.send(transmit.link, &transmit.payload) {
                Ok(()) => {
                    trace!(link = ?transmit.link, bytes = transmit.payload.len(), "sent a beacon");
                    self.machine.handle_sent(transmit.link);
                }
                Err(error) => {
                    if self.machine.handle_send_failed(now(), transmit.link) == 0 {
                        debug!(link = ?transmit.link, %error, "cannot send a beacon, will try again");
                    }
                }
            }
        }
    }

    fn receive(&mut self, datagram: &Datagram) {
        let (link, source) = (datagram.link, datagram.source);
        if let Err(reason) = self.sockets.admit(datagram) {
            trace!(?link, %source, %reason, "dropped a datagram");
            return;
        }
        match self.machine.handle_datagram(now(), link, source.ip(), &datagram.payload) {
            Ok(Heard::Own) => {}
            Ok(Heard::Beacon(beacon)) => trace!(?link, %source, ?beacon, "heard a beacon"),
            Err(reason) => trace!(?link, %source, %reason, "dropped a datagram"),
        }
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}
