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

mod rules;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::ledger::Ledger;
use super::writer::{Writer, unix_now};
use super::{Book, Pin, Snapshot, Standing, Trust, TrustError, told};
use crate::id::{Id, NodeName, Scope, Use};
pub(super) use rules::vouched;

/// Servers that one node vouches for, and that one voucher is believed for: five times the fifty of a large lab. With some
/// 400 bytes each they are a tenth of a megabyte of `trust.toml`.
pub const MAX_VOUCHES: usize = 256;

/// How long a vouch lasts where nobody says otherwise: a quarter, after which somebody should look again.
pub const VOUCH_SPAN: Duration = Duration::from_secs(90 * 24 * 60 * 60);

/// How long it may last: a year, as an invitation.
pub const MAX_VOUCH_SPAN: Duration = Duration::from_secs(366 * 24 * 60 * 60);

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
        let called = name.clone();
        self.write(move |writer| {
            let former = writer.decide(|ledger, now| {
                let former = ledger.trust(id, name, address, scope, use_, now);
                if let Some(voucher) = voucher {
                    ledger.set_voucher(&id, voucher);
                }
                former
            })?;
            let voucher = writer.ledger.is_voucher(&id);
            let (may, used) = (told::may(scope), told::used(if use_ { Use::Yes } else { Use::No }));
            let voucher = if voucher { ", and the providers that it vouches for are used" } else { "" };
            tracing::info!(%id, "{called} is trusted: it {may}, and {used}{voucher}");
            Ok(former)
        })
        .await
    }

    /// A person on this node vouches for a peer, until then (seconds since 1970). Once more is a new date. Says until when it
    /// holds: at most [`MAX_VOUCH_SPAN`].
    ///
    /// # Errors
    /// If no person on this node trusts it, if there are too many, or if it cannot be written.
    pub async fn vouch(&self, vouch: Vouch) -> Result<u64, TrustError> {
        self.write(move |writer| {
            let until = writer.decide(|ledger, now| ledger.vouch(vouch, now))??;
            tracing::info!(id = %vouch.id, until, "this node vouches for it");
            Ok(until)
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
