//! A key that was proved, and the connections that are said to be its.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Action, Dropped, LinkId};
use crate::exchange::Denial;
use crate::id::{Instance, NodeName};
use crate::wire::control::Hello;

/// A key that was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The name it gave last.
    pub name: NodeName,
    /// Its program's version, for people.
    pub version: String,
    /// Where it was last proved.
    pub address: SocketAddr,
    /// The connection that stands for it.
    pub link: Option<LinkId>,
    /// Whether that connection has fallen silent.
    pub silent: bool,
    /// Whether the last dial was refused.
    pub refused: bool,
    /// The code that it gave for that.
    pub denial: Option<Denial>,
    /// The last thing that went wrong.
    pub problem: Option<String>,
    /// When two live nodes were last seen to have proved this key.
    pub cloned: Option<Instant>,
    pub(super) instance: Instance,
    /// When the connection came to stand for it.
    pub(super) since: Instant,
    pub(super) rival: Option<Rival>,
}

/// A second live connection to the same key, in another run: a restart, unless the first one goes on speaking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rival {
    pub(super) link: LinkId,
    pub(super) hello: Hello,
    pub(super) address: SocketAddr,
    pub(super) since: Instant,
}

// === impl Peer ===

impl Peer {
    pub(super) fn new(now: Instant, hello: &Hello, address: SocketAddr, link: Option<LinkId>) -> Self {
        Self {
            name: hello.name.clone(),
            version: hello.version.clone(),
            address,
            link,
            silent: false,
            refused: false,
            denial: None,
            problem: None,
            cloned: None,
            instance: hello.instance,
            since: now,
            rival: None,
        }
    }

    /// The newer connection stands for the peer from here on.
    pub(super) fn adopt(&mut self, now: Instant, newer: Rival) -> impl Iterator<Item = Action> + use<> {
        let why = if self.instance == newer.hello.instance { Dropped::Duplicate } else { Dropped::Restarted };
        let older = self.link.map(|older| Action::Drop(older, why));
        *self = Self { cloned: self.cloned, ..Self::new(now, &newer.hello, newer.address, Some(newer.link)) };
        older.into_iter().chain([Action::Adopt(newer.link)])
    }

    pub(super) fn has(&self, link: LinkId) -> bool {
        self.link == Some(link) || self.rival.as_ref().is_some_and(|rival| rival.link == link)
    }
}
