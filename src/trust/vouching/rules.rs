//! What statements and vouches change and what they do not, without I/O and without a clock.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ledger::{Ledger, clean};
use super::super::{Pin, Snapshot, Standing, Trust, TrustError};
use super::{MAX_VOUCH_SPAN, MAX_VOUCHES, Said, Statement, Vouch};
use crate::id::{Id, Scope, Use};

/// How long a statement counts that is not heard again. A voucher that is off over a week of holidays costs nothing; one
/// that was stolen, or kept from us so that we do not hear it withdraw, is good for a week and not for a year.
pub(super) const STALE: u64 = 7 * 24 * 60 * 60;

/// The time of the last hearing is kept to this: it only has to be small beside `STALE`, and a laptop's disk may sleep.
const HEARD_STEP: u64 = 6 * 60 * 60;

/// The latest date that is kept. It is in 2106, and fits into TOML's integers, which what a voucher says need not.
pub(super) const LATEST: u64 = u32::MAX as u64;

// === impl Statement ===

impl Statement {
    /// In both directions: what was heard while the clock was years ahead must not count for years.
    fn holds(&self, now: u64) -> bool {
        now < self.until && now.abs_diff(self.heard) < STALE
    }

    fn ends(&self) -> u64 {
        self.until.min(self.heard.saturating_add(STALE))
    }
}

// === impl Ledger ===

impl Ledger {
    pub(in crate::trust) fn is_voucher(&self, id: &Id) -> bool {
        self.pins.get(id).is_some_and(Pin::is_voucher)
    }

    /// Of whom nobody trusts, this can be said and means nothing.
    pub(in crate::trust) fn set_voucher(&mut self, id: &Id, voucher: bool) {
        if let Some(pin) = self.pins.get_mut(id) {
            pin.voucher = voucher && pin.trust == Trust::Trusted;
        }
        self.tidy();
    }

    pub(super) fn vouch(&mut self, vouch: Vouch, now: u64) -> Result<u64, TrustError> {
        let trust = match self.vouchers_of(&vouch.id, now).next() {
            Some(_) => Trust::Vouched,
            None => self.pins.get(&vouch.id).map_or(Trust::None, |pin| pin.trust),
        };
        if trust != Trust::Trusted {
            return Err(TrustError::NotTrusted { id: vouch.id, trust });
        }
        self.vouches.retain(|kept| now < kept.until && kept.id != vouch.id);
        if self.vouches.len() >= MAX_VOUCHES {
            return Err(TrustError::TooManyVouches);
        }
        let until = vouch.until.min(now.saturating_add(MAX_VOUCH_SPAN.as_secs())).min(LATEST);
        self.vouches.push(Vouch { until, ..vouch });
        self.vouches.sort_by_key(|kept| kept.id);
        Ok(until)
    }

    pub(super) fn unvouch(&mut self, id: &Id) -> bool {
        let before = self.vouches.len();
        self.vouches.retain(|kept| kept.id != *id);
        self.vouches.len() < before
    }

    /// All that a voucher says now takes the place of all that it said before.
    pub(super) fn hear(&mut self, by: Id, said: &[Said], me: Id, now: u64) {
        if !self.is_voucher(&by) {
            return;
        }
        let mut before = BTreeMap::new();
        for statement in std::mem::take(&mut self.statements) {
            if statement.by == by {
                before.insert(statement.id, statement);
            } else {
                self.statements.push(statement);
            }
        }
        let mut of = BTreeSet::new();
        for Said { id, name, address, until } in said {
            // Nobody vouches for themselves, or tells us of ourselves.
            if *id == by || *id == me || *until <= now || of.len() >= MAX_VOUCHES || !of.insert(*id) {
                continue;
            }
            let (name, address, until) = (name.clone(), address.as_deref().and_then(clean), (*until).min(LATEST));
            let lately = before.get(id).map(|before| before.heard).filter(|heard| now.abs_diff(*heard) < HEARD_STEP);
            self.statements.push(Statement { by, id: *id, name, address, until, heard: lately.unwrap_or(now) });
        }
        self.statements.sort_by_key(|statement| (statement.by, statement.id));
    }

    /// Of all that a voucher has said before, only what it says still stands; nothing new does.
    pub(super) fn take_back(&mut self, by: Id, said: &[Said]) {
        let until: BTreeMap<Id, u64> = said.iter().map(|said| (said.id, said.until)).collect();
        self.statements.retain_mut(|statement| {
            if statement.by == by {
                statement.until = statement.until.min(until.get(&statement.id).copied().unwrap_or(0));
            }
            statement.until > 0
        });
    }

    /// Forgets what hangs on pins that are not what they were: so that nothing comes to life again when they are.
    pub(in crate::trust) fn tidy(&mut self) {
        let Self { pins, statements, vouches, .. } = self;
        statements.retain(|statement| pins.get(&statement.by).is_some_and(Pin::is_voucher));
        vouches.retain(|vouch| pins.get(&vouch.id).is_some_and(|pin| pin.trust == Trust::Trusted));
    }

    pub(super) fn forget_expired(&mut self, now: u64) {
        self.statements.retain(|statement| statement.holds(now));
        self.vouches.retain(|vouch| now < vouch.until);
    }

    /// What counts of all that was said, whatever it counts against.
    fn statements(&self, now: u64) -> impl Iterator<Item = &Statement> {
        self.statements.iter().filter(move |statement| statement.holds(now) && self.is_voucher(&statement.by))
    }

    /// Who vouches for this key, if that counts: a person's word on it, either way, says more.
    pub(in crate::trust) fn vouchers_of(&self, id: &Id, now: u64) -> impl Iterator<Item = &Statement> {
        let open = self.pins.get(id).is_none_or(|pin| pin.trust == Trust::FirstUse);
        self.statements(now).filter(move |statement| open && statement.id == *id)
    }

    /// Lays over a snapshot of the pins what vouchers say, and puts beside it what this node says.
    pub(in crate::trust) fn lay_over(&self, snapshot: &mut Snapshot, now: u64) {
        for statement in self.statements(now) {
            let open = self.pins.get(&statement.id).is_none_or(|pin| pin.trust == Trust::FirstUse);
            if !open {
                continue;
            }
            snapshot.vouched_by.entry(statement.id).or_default().push(statement.by);
            if !snapshot.pins.contains_key(&statement.id) {
                // A voucher's label takes no name from anybody.
                let taken = |pin: &Pin| pin.trust != Trust::Revoked && pin.name.is(statement.name.as_str());
                let name = match snapshot.pins.values().any(taken) {
                    true => statement.name.with_suffix(&statement.id.short()),
                    false => statement.name.clone(),
                };
                let pin = Pin {
                    id: statement.id,
                    name,
                    address: statement.address.clone(),
                    trust: Trust::None,
                    use_: Use::No,
                    scope: Scope::None,
                    voucher: false,
                    first_met: statement.heard,
                    last_met: statement.heard,
                };
                snapshot.pins.insert(statement.id, pin);
            }
            if let Some(pin) = snapshot.pins.get_mut(&statement.id) {
                Standing { trust: pin.trust, use_: pin.use_, .. } = vouched(pin.standing());
                if pin.address.is_none() {
                    pin.address = statement.address.clone();
                }
            }
        }
        let vouches = self.vouches.iter().filter(|vouch| now < vouch.until);
        snapshot.vouches = vouches
            .filter_map(|vouch| {
                let pin = self.pins.get(&vouch.id).filter(|pin| pin.trust == Trust::Trusted)?;
                let (name, address) = (pin.name.clone(), pin.address.clone());
                Some(Said { id: vouch.id, name, address, until: vouch.until })
            })
            .collect();
        let ends = self.statements(now).map(Statement::ends);
        snapshot.expires = ends.chain(snapshot.vouches.iter().map(|said| said.until)).min();
    }
}

/// Used, and at our gate what it was.
pub(in crate::trust) fn vouched(standing: Standing) -> Standing {
    Standing { trust: Trust::Vouched, use_: Use::Yes, ..standing }
}
