//! Vouching: a new server is used by everybody who once said `ollana trust gpu1 --voucher`, after one person typed
//! `ollana vouch` on gpu1.
//!
//! A [`Vouch`] is what an administrator said on this node. A [`Statement`] is what a voucher said to this node, over a
//! connection on which it had proved its key. Statements stand beside the pins and change none: what they give is worked
//! out whenever the book is looked at, so nothing has to be taken back when they end.
//!
//! - They are about use only. A scope at our gate is what it would be without them.
//! - They count for keys that nobody here has decided on. What a person said, a tombstone above all, stands.
//! - They go one hop. A node vouches only for whom a person trusts there, and nobody is trusted by a statement.
//! - They end: with their date, a week after they were last heard, and at once when the voucher withdraws them, is revoked,
//!   or is no voucher any more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ledger::{Ledger, clean};
use super::writer::{Writer, unix_now};
use super::{Book, Pin, Snapshot, Standing, Trust, TrustError};
use crate::id::{Id, NodeName, Scope, Use};

/// Servers that one node vouches for, and that one voucher is believed for: five times the fifty of a large lab. With some
/// 400 bytes each they are a tenth of a megabyte of `trust.toml`.
pub const MAX_VOUCHES: usize = 256;

/// How long a vouch lasts where nobody says otherwise: a quarter, after which somebody should look again.
pub const VOUCH_SPAN: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How long a statement counts that is not heard again. A voucher that is off over a week of holidays costs nothing; one
/// that was stolen, or kept from us so that we do not hear it withdraw, is good for a week and not for a year.
const STALE: u64 = 7 * 24 * 60 * 60;

/// The time of the last hearing is kept to this: it only has to be small beside `STALE`, and a laptop's disk may sleep.
const HEARD_STEP: u64 = 6 * 60 * 60;

/// The latest date that is kept. It is in 2106, and fits into TOML's integers, which what a voucher says need not.
const LATEST: u64 = u32::MAX as u64;

/// Names in one log line.
const NAMES: usize = 8;

/// Whom this node vouches for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vouch {
    /// The key.
    pub id: Id,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

/// What a voucher said, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Statement {
    /// Who said it.
    pub by: Id,
    /// Of whom.
    pub id: Id,
    /// What the voucher calls it: a label.
    pub name: NodeName,
    /// Where the voucher reaches it: a hint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Until when it holds, in seconds since 1970.
    pub until: u64,
    /// When it was last heard, in seconds since 1970.
    pub heard: u64,
}

/// One server that a node vouches for, as it is said from node to node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The key.
    pub id: Id,
    /// What its node is called.
    pub name: NodeName,
    /// Where it is reached.
    pub address: Option<String>,
    /// Until when, in seconds since 1970.
    pub until: u64,
}

/// Who vouches for a peer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Voucher {
    /// Its name in the book.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
}

// === impl Book ===

impl Book {
    /// As [`trust`](Self::trust), and whether the servers that it vouches for are used too; `None` leaves that as it is.
    ///
    /// # Errors
    /// If it cannot be written. Then all is as it was.
    pub async fn trust_voucher(
        &self,
        id: Id,
        name: NodeName,
        address: Option<String>,
        scope: Scope,
        use_: bool,
        voucher: Option<bool>,
    ) -> Result<Standing, TrustError> {
        self.write(move |writer| {
            let former = writer.decide(|ledger, now| {
                let former = ledger.trust(id, name, address, scope, use_, now);
                if let Some(voucher) = voucher {
                    ledger.set_voucher(&id, voucher);
                }
                former
            })?;
            let voucher = writer.ledger.is_voucher(&id);
            tracing::info!(%id, %scope, use_, voucher, "trusted by hand");
            Ok(former)
        })
        .await
    }

    /// A person on this node vouches for a peer, until then (seconds since 1970). Once more is a new date.
    ///
    /// # Errors
    /// If no person on this node trusts it, if there are too many, or if it cannot be written.
    pub async fn vouch(&self, vouch: Vouch) -> Result<(), TrustError> {
        self.write(move |writer| {
            writer.decide(|ledger, now| ledger.vouch(vouch, now))??;
            tracing::info!(id = %vouch.id, "this node vouches for it");
            Ok(())
        })
        .await
    }

    /// A person on this node vouches for it no longer. Says whether it did.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn unvouch(&self, id: Id) -> Result<bool, TrustError> {
        self.write(move |writer| {
            let withdrawn = writer.decide(|ledger, _| ledger.unvouch(&id))?;
            if withdrawn {
                tracing::info!(%id, "this node no longer vouches for it");
            }
            Ok(withdrawn)
        })
        .await
    }

    /// A peer has said for whom it vouches, over a connection on which it proved its key; `me` is us. What it does not say
    /// any more is withdrawn. Of a peer that is no voucher here it means nothing.
    ///
    /// # Errors
    /// If it cannot be written. Then nothing new counts, but what was withdrawn counts no longer.
    pub async fn hear(&self, by: Id, said: Vec<Said>, me: Id) -> Result<(), TrustError> {
        self.write(move |writer| writer.hear(by, &said, me)).await
    }

    /// Takes out what has had its time. [`keep_up`](Self::keep_up) does it within a second.
    pub(super) async fn expire(&self) {
        if self.snapshot().expires.is_some_and(|at| at <= unix_now()) {
            // Fails only while the runtime ends.
            let _ = self
                .write(|writer| {
                    writer.expire();
                    Ok(())
                })
                .await;
        }
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// Whether a person said that the servers it vouches for are used.
    pub fn is_voucher(&self, id: &Id) -> bool {
        self.pins.get(id).is_some_and(Pin::is_voucher)
    }

    /// By whose word a peer is used; nobody if it is not by anybody's.
    pub fn vouchers_of(&self, id: &Id) -> Vec<Voucher> {
        let by = self.vouched_by.get(id).into_iter().flatten();
        by.filter_map(|by| Some(Voucher { name: self.pins.get(by)?.name.clone(), id: *by })).collect()
    }

    /// Whom this node vouches for, in the order of the IDs.
    pub fn vouches(&self) -> &[Said] {
        &self.vouches
    }

    /// Those who are used because somebody vouches for them.
    pub fn vouched(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values().filter(|pin| pin.trust == Trust::Vouched)
    }
}

impl Pin {
    pub(super) fn is_voucher(&self) -> bool {
        self.voucher && self.trust == Trust::Trusted
    }
}

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
    pub(super) fn is_voucher(&self, id: &Id) -> bool {
        self.pins.get(id).is_some_and(Pin::is_voucher)
    }

    /// Of whom nobody trusts, this can be said and means nothing.
    pub(super) fn set_voucher(&mut self, id: &Id, voucher: bool) {
        if let Some(pin) = self.pins.get_mut(id) {
            pin.voucher = voucher && pin.trust == Trust::Trusted;
        }
        self.tidy();
    }

    fn vouch(&mut self, vouch: Vouch, now: u64) -> Result<(), TrustError> {
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
        self.vouches.push(Vouch { until: vouch.until.min(LATEST), ..vouch });
        self.vouches.sort_by_key(|kept| kept.id);
        Ok(())
    }

    fn unvouch(&mut self, id: &Id) -> bool {
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
    fn take_back(&mut self, by: Id, said: &[Said]) {
        let until: BTreeMap<Id, u64> = said.iter().map(|said| (said.id, said.until)).collect();
        self.statements.retain_mut(|statement| {
            if statement.by == by {
                statement.until = statement.until.min(until.get(&statement.id).copied().unwrap_or(0));
            }
            statement.until > 0
        });
    }

    /// Forgets what hangs on pins that are not what they were: so that nothing comes to life again when they are.
    pub(super) fn tidy(&mut self) {
        let Self { pins, statements, vouches, .. } = self;
        statements.retain(|statement| pins.get(&statement.by).is_some_and(Pin::is_voucher));
        vouches.retain(|vouch| pins.get(&vouch.id).is_some_and(|pin| pin.trust == Trust::Trusted));
    }

    fn forget_expired(&mut self, now: u64) {
        self.statements.retain(|statement| statement.holds(now));
        self.vouches.retain(|vouch| now < vouch.until);
    }

    /// What counts of all that was said, whatever it counts against.
    fn statements(&self, now: u64) -> impl Iterator<Item = &Statement> {
        self.statements.iter().filter(move |statement| statement.holds(now) && self.is_voucher(&statement.by))
    }

    /// Who vouches for this key, if that counts: a person's word on it, either way, says more.
    pub(super) fn vouchers_of(&self, id: &Id, now: u64) -> impl Iterator<Item = &Statement> {
        let open = self.pins.get(id).is_none_or(|pin| pin.trust == Trust::FirstUse);
        self.statements(now).filter(move |statement| open && statement.id == *id)
    }

    /// Lays over a snapshot of the pins what vouchers say, and puts beside it what this node says.
    pub(super) fn lay_over(&self, snapshot: &mut Snapshot, now: u64) {
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
pub(super) fn vouched(standing: Standing) -> Standing {
    Standing { trust: Trust::Vouched, use_: Use::Yes, ..standing }
}

// === impl Writer ===

impl Writer {
    fn hear(&mut self, by: Id, said: &[Said], me: Id) -> Result<(), TrustError> {
        if !self.ledger.is_voucher(&by) {
            return Ok(());
        }
        let before = self.snapshot();
        let heard = self.decide(|ledger, now| ledger.hear(by, said, me, now));
        if heard.is_err() {
            // As with a revocation: what takes away counts although the disk does not take it.
            let mut next = self.ledger.clone();
            next.take_back(by, said);
            self.publish(next);
        }
        self.tell_of_vouching(&by, &before);
        heard
    }

    fn expire(&mut self) {
        let before = self.snapshot();
        if let Err(error) = self.decide(Ledger::forget_expired) {
            tracing::warn!("that somebody's word has had its time was not written: {error}");
        }
        // Also where the disk does not take it.
        let mut next = self.ledger.clone();
        next.forget_expired(unix_now());
        self.publish(next);
        let ended = names(before.vouched().filter(|pin| !self.snapshot().vouched_by.contains_key(&pin.id)));
        if !ended.is_empty() {
            tracing::warn!("nobody vouches any more for {ended}: what was said of them has had its time");
        }
    }

    fn tell_of_vouching(&mut self, by: &Id, before: &Snapshot) {
        let now = self.snapshot();
        let says = |snapshot: &Snapshot, of: &Id| snapshot.vouched_by.get(of).is_some_and(|all| all.contains(by));
        let came = names(now.vouched().filter(|pin| says(&now, &pin.id) && !says(before, &pin.id)));
        let gone = names(before.vouched().filter(|pin| says(before, &pin.id) && !says(&now, &pin.id)));
        if came.is_empty() && gone.is_empty() {
            return;
        }
        let voucher = now.pin(by).map_or_else(|| by.to_string(), |pin| pin.name.to_string());
        if !self.may_be_loud() {
            return tracing::debug!(%by, came, gone, "{voucher} vouches for others than before");
        }
        if !came.is_empty() {
            tracing::info!(%by, "{voucher} vouches for {came}: used from now on");
        }
        if !gone.is_empty() {
            tracing::info!(%by, "{voucher} no longer vouches for {gone}");
        }
    }
}

fn names<'a>(pins: impl Iterator<Item = &'a Pin>) -> String {
    let names: Vec<&str> = pins.map(|pin| pin.name.as_str()).collect();
    match names.split_at_checked(NAMES) {
        Some((first, rest)) if !rest.is_empty() => format!("{} and {} more", first.join(", "), rest.len()),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests;
