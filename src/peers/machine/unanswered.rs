//! Addresses where somebody is said to be and nobody answers, for people: what beacons claim is bounded and in an order that
//! whoever sends more of them cannot change.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::net::SocketAddr;

use super::{Candidate, Machine};
use crate::discovery::Claim;
use crate::id::Id;

/// Rows of addresses that no person has named. A person does not read more, and one who needs the next mends these first.
const SHOWN: usize = 16;

/// An address where nobody answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unanswered {
    /// Where.
    pub address: SocketAddr,
    /// The node that is said to be there: no proof, unless `called`.
    pub claim: Option<Claim>,
    /// Whether a person has named it.
    pub fixed: bool,
    /// Whether who is said to be there has called from there and proved that key.
    pub called: bool,
    /// Why not, without a name.
    pub reason: String,
    /// The command or action that a person can take.
    pub advice: Option<String>,
}

/// The addresses where nobody answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unanswering {
    /// Those that are shown.
    pub shown: Vec<Unanswered>,
    /// How many more there are.
    pub more: usize,
}

impl Machine {
    /// Where nobody answers, though somebody says to be there or a person named it: at most [`SHOWN`] that no person named,
    /// one for each key and each IP address. Keys that are `known` come first, then who was there first: a flood of
    /// beacons takes nobody's place.
    pub fn unanswering(&self, known: impl Fn(&Id) -> bool) -> Unanswering {
        let here = self.peers.iter().filter(|(_, peer)| peer.link.is_some() || peer.refused);
        let here: HashSet<Id> = here.map(|(id, _)| *id).chain([self.me]).collect();
        let linked = self.peers.values().filter(|peer| peer.link.is_some());
        let linked: HashSet<SocketAddr> = linked.map(|peer| peer.address).collect();
        let is_here = |address: &SocketAddr, candidate: &Candidate| {
            linked.contains(address) || candidate.claim.as_ref().is_some_and(|claim| here.contains(&claim.id))
        };
        let missed = self.candidates.iter().filter(|(address, c)| c.is_missed() && !is_here(address, c));
        let mut found: Vec<_> = missed.collect();
        found.sort_by_cached_key(|(address, candidate)| {
            let is_known = candidate.claim.as_ref().is_some_and(|claim| known(&claim.id));
            (Reverse(candidate.fixed), Reverse(is_known), address.is_ipv6(), candidate.known_since, **address)
        });
        let (mut keys, mut hosts, mut room) = (HashSet::new(), HashSet::new(), SHOWN);
        let (mut shown, mut more) = (Vec::new(), 0);
        for (address, candidate) in found {
            let new_key = candidate.claim.as_ref().is_none_or(|claim| keys.insert(claim.id));
            if !candidate.fixed {
                if !new_key {
                    continue;
                }
                if room == 0 || !hosts.insert(address.ip()) {
                    more += 1;
                    continue;
                }
                room -= 1;
            }
            shown.extend(candidate.unanswered(*address));
        }
        Unanswering { shown, more }
    }
}

impl Candidate {
    /// Whether nobody answers there, though somebody should.
    fn is_missed(&self) -> bool {
        let Some(in_the_way) = &self.in_the_way else { return false };
        // A node that was reached there may just be switched off: only a beacon since then says that it is not.
        self.fixed || !self.proved || self.heard > Some(in_the_way.since)
    }

    fn unanswered(&self, address: SocketAddr) -> Option<Unanswered> {
        let in_the_way = self.in_the_way.as_ref()?;
        let called = self.claim.as_ref().is_some_and(|claim| self.called == Some(claim.id));
        Some(Unanswered {
            address,
            claim: self.claim.clone(),
            fixed: self.fixed,
            called,
            reason: in_the_way.reason.clone(),
            advice: in_the_way.advice.clone(),
        })
    }
}
