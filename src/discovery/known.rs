//! Who was heard, and what of it is news: a bounded table without I/O or clock.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::bucket::Bucket;
use super::interfaces::Link;
use super::{Claim, Sighting, SightingKind};
use crate::id::{Id, Instance, NodeName};
use crate::wire::beacon::{Beacon, BeaconKind};

/// Most (ID, address) pairs remembered. Five hundred machines with two addresses each; an entry is some 200 bytes.
pub(super) const CAPACITY: usize = 1024;
/// Silence after which an address counts as gone: two heartbeats in a row may be lost, and the third be late.
pub(super) const EXPIRY: Duration = Duration::from_secs(35);
/// Silence after which the next beacon is news again: a heartbeat was missed, so the network may have been cut.
pub(super) const GAP: Duration = Duration::from_secs(15);
/// How often an unchanged node is passed on, so that whoever dials can start anew if it has given up.
pub(super) const REFRESH: Duration = Duration::from_secs(30);
/// News passed on a second, all nodes together, beyond a first burst. What does not fit is forgotten and is news again
/// at the next beacon. Also the reason why a flood of forged beacons does not push the real ones out of the table: in
/// the 11 s between two heartbeats it adds at most `BURST + 11 * RATE` = 678 entries, and the oldest of 1024 go first.
const RATE: f64 = 50.0;
const BURST: u32 = 128;
/// Changes of one entry passed on: a node that restarts, renames itself or says goodbye does not do so for ever.
const CHANGE_BURST: u32 = 3;
const CHANGE_RATE: f64 = 1.0;
/// Sightings waiting to be fetched above which nothing new is taken in.
const MAX_WAITING: usize = 256;

#[derive(Debug)]
pub(super) struct Known {
    entries: HashMap<(Id, SocketAddr), Entry>,
    news: Bucket,
    /// No entry expires before this.
    sweep_at: Option<Instant>,
    waiting: VecDeque<Sighting>,
}

#[derive(Debug)]
struct Entry {
    instance: Instance,
    name: NodeName,
    link: Link,
    heard: Instant,
    /// When it was passed on last; `None` makes the next beacon news.
    passed: Option<Instant>,
    /// It said goodbye.
    left: bool,
    changes: Bucket,
}

// === impl Known ===

impl Known {
    pub(super) fn new() -> Self {
        Self { entries: HashMap::new(), news: Bucket::new(BURST, RATE), sweep_at: None, waiting: VecDeque::new() }
    }

    /// Takes in a beacon that came over `link` from the node at `address`.
    pub(super) fn hear(&mut self, now: Instant, link: Link, address: SocketAddr, beacon: &Beacon) {
        let key = (beacon.id, address);
        let room = self.waiting.len() < MAX_WAITING;
        let Some(entry) = self.entries.get_mut(&key) else {
            // A stranger's goodbye says nothing that anybody could act on.
            if beacon.kind != BeaconKind::Goodbye && room && self.news.take(now) {
                self.insert(now, link, address, beacon);
            }
            return;
        };
        let kind = if beacon.kind == BeaconKind::Goodbye {
            // The goodbye of an earlier run may arrive after the new run's first beacon.
            if entry.left || entry.instance != beacon.instance {
                return;
            }
            SightingKind::Goodbye
        } else {
            SightingKind::Present
        };
        let same = entry.instance == beacon.instance && entry.name == beacon.name && !entry.left;
        let changed = kind == SightingKind::Goodbye || !same;
        let returned = now.saturating_duration_since(entry.heard) >= GAP;
        let due = entry.passed.is_none_or(|passed| now.saturating_duration_since(passed) >= REFRESH);
        if kind == SightingKind::Present {
            entry.heard = now;
            entry.link = link;
        }
        let allowed = room && (!changed || (entry.changes.take(now) && self.news.take(now)));
        if allowed && (changed || returned || due) {
            entry.instance = beacon.instance;
            entry.name = beacon.name.clone();
            entry.left = kind == SightingKind::Goodbye;
            entry.passed = Some(now);
            let claim = Some(entry.claim(beacon.id));
            self.waiting.push_back(Sighting { kind, address, claim });
        }
    }

    /// Makes whoever was heard over `link` news again at the next beacon: dials that failed while the interface was
    /// away or had another address are worth another try.
    pub(super) fn renew(&mut self, link: Link) {
        self.entries.values_mut().filter(|entry| entry.link == link).for_each(|entry| entry.passed = None);
    }

    /// Drops those not heard for [`EXPIRY`].
    pub(super) fn expire(&mut self, now: Instant) {
        if self.sweep_at.is_none_or(|at| now < at) {
            return;
        }
        let waiting = &mut self.waiting;
        self.entries.retain(|(id, address), entry| {
            let keep = now.saturating_duration_since(entry.heard) < EXPIRY;
            if !keep {
                waiting.push_back(Sighting {
                    kind: SightingKind::Expired,
                    address: *address,
                    claim: Some(entry.claim(*id)),
                });
            }
            keep
        });
        self.sweep_at = self.entries.values().map(|entry| entry.heard + EXPIRY).min();
    }

    /// When [`Known::expire`] has something to do at the earliest.
    pub(super) fn sweep_at(&self) -> Option<Instant> {
        self.sweep_at
    }

    pub(super) fn has_sighting(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn poll_sighting(&mut self) -> Option<Sighting> {
        self.waiting.pop_front()
    }

    fn insert(&mut self, now: Instant, link: Link, address: SocketAddr, beacon: &Beacon) {
        if self.entries.len() >= CAPACITY {
            self.forget_oldest();
        }
        let entry = Entry {
            instance: beacon.instance,
            name: beacon.name.clone(),
            link,
            heard: now,
            passed: Some(now),
            left: false,
            changes: Bucket::new(CHANGE_BURST, CHANGE_RATE),
        };
        self.waiting.push_back(Sighting { kind: SightingKind::Present, address, claim: Some(entry.claim(beacon.id)) });
        self.entries.insert((beacon.id, address), entry);
        self.sweep_at.get_or_insert(now + EXPIRY);
    }

    /// Whoever is forgotten is reported as gone: others must not remember what this table no longer watches.
    fn forget_oldest(&mut self) {
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.heard).map(|(key, _)| *key);
        if let Some((id, address)) = oldest
            && let Some(entry) = self.entries.remove(&(id, address))
        {
            self.waiting.push_back(Sighting { kind: SightingKind::Expired, address, claim: Some(entry.claim(id)) });
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

impl Entry {
    fn claim(&self, id: Id) -> Claim {
        Claim { id, instance: self.instance, name: self.name.clone() }
    }
}
