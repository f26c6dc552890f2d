//! The rules of first use: what a meeting changes, without I/O and without a clock.

use std::collections::BTreeMap;

use super::vouching::vouched;
use super::window::{Opening, Window};
use super::{Direction, Invited, Met, News, Pin, Policy, Snapshot, Standing, Statement, Trust, TrustPolicy, Vouch};
use crate::id::{Id, NodeName, Scope, Use};

/// The time of the last meeting is kept to the hour: it only orders idle pins by days.
const LAST_MET_STEP: u64 = 60 * 60;

/// A DNS name has at most 253 characters; brackets, a zone and a port come on top.
const MAX_ADDRESS: usize = 300;

/// What is in the book.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ledger {
    pub(super) pins: BTreeMap<Id, Pin>,
    /// When the first provider was pinned and the first-use window opened, in seconds since 1970.
    pub(super) first_provider_met: Option<u64>,
    /// Seconds that the node has run since, as far as they were recorded: see [`Opening`].
    pub(super) first_use_spent: u64,
    /// What was given out and may be redeemed.
    pub(super) invitations: Vec<Invited>,
    /// Whom this node vouches for.
    pub(super) vouches: Vec<Vouch>,
    /// What vouchers have said.
    pub(super) statements: Vec<Statement>,
}

/// What a meeting is judged by.
pub(super) struct Rules<'a> {
    pub(super) policy: &'a TrustPolicy,
    /// Seconds since 1970.
    pub(super) now: u64,
    /// Whether one more key may be pinned now.
    pub(super) may_pin: bool,
    pub(super) max_first_use: usize,
    /// Who is connected.
    pub(super) present: &'a dyn Fn(&Id) -> bool,
}

/// What came of a meeting.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) standing: Standing,
    pub(super) news: Option<News>,
    pub(super) change: Change,
    /// Whether it made a pin.
    pub(super) pinned: bool,
}

/// How much a meeting changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    None,
    /// A name, an address, a time: nothing depends on its being written.
    Cosmetic,
    /// What someone may do, or which keys are known.
    Matters,
}

// === impl Ledger ===

impl Ledger {
    /// A proved key was met.
    pub(super) fn meet(&mut self, met: &Met, rules: &Rules<'_>) -> Outcome {
        let outcome = self.meet_by_itself(met, rules);
        if self.vouchers_of(&met.id, rules.now).next().is_none() {
            return outcome;
        }
        // Who vouches for it has said all that a person would be asked.
        let news = match outcome.news {
            Some(News::Waiting) => outcome.pinned.then_some(News::FirstMet),
            news => news,
        };
        let standing = vouched(outcome.standing);
        let opened = self.open_window(met, standing, rules.now);
        let change = if opened { Change::Matters } else { outcome.change };
        Outcome { standing, news, change, ..outcome }
    }

    /// What comes of a meeting where nobody vouches.
    fn meet_by_itself(&mut self, met: &Met, rules: &Rules<'_>) -> Outcome {
        let holder = super::holder_of(self.pins.values(), &met.name, &met.id).map(|pin| pin.id);
        match self.pins.get(&met.id) {
            // A tombstone beats first use, and nothing that a refused peer does is worth a write.
            Some(pin) if pin.trust == Trust::Revoked => {
                Outcome { standing: pin.standing(), news: None, change: Change::None, pinned: false }
            }
            Some(pin) => {
                let pin = pin.clone();
                self.meet_known(pin, met, holder, rules)
            }
            None => self.meet_stranger(met, holder, rules),
        }
    }

    /// A person's word: it stands until the next.
    pub(super) fn trust(
        &mut self,
        id: Id,
        name: NodeName,
        address: Option<String>,
        scope: Scope,
        use_: bool,
        now: u64,
    ) -> Standing {
        let use_ = if use_ { Use::Yes } else { Use::No };
        let former = self.pins.get(&id);
        let standing = former.map(Pin::standing).unwrap_or_default();
        let first_met = former.map_or(now, |pin| pin.first_met);
        let address = address.as_deref().and_then(clean).or_else(|| former.and_then(|pin| pin.address.clone()));
        // Said apart, and so kept: a new scope is no word on whom it vouches for.
        let voucher = former.is_some_and(Pin::is_voucher);
        let pin = Pin { id, name, address, trust: Trust::Trusted, use_, scope, voucher, first_met, last_met: now };
        self.pins.insert(id, pin);
        standing
    }

    /// A person's word against: a tombstone, for keys never met too.
    pub(super) fn revoke(&mut self, id: Id, now: u64) -> Standing {
        let said = self.statements.iter().find(|statement| statement.id == id);
        let name = said.map_or_else(|| NodeName::lossy(&id.short()), |statement| statement.name.clone());
        let pin = self.pins.entry(id).or_insert_with(|| Pin {
            id,
            name,
            address: None,
            trust: Trust::None,
            use_: Use::No,
            scope: Scope::None,
            voucher: false,
            first_met: now,
            last_met: now,
        });
        let former = pin.standing();
        bury(pin);
        self.tidy();
        former
    }

    /// The book as it is in effect at `now`: under `paired` what first use pinned at other times does not count, and what
    /// vouchers say does.
    pub(super) fn snapshot(&self, policy: &TrustPolicy, now: u64) -> Snapshot {
        let in_effect = |pin: &Pin| {
            let Standing { trust, use_, scope } = in_effect(pin.standing(), policy);
            Pin { trust, use_, scope, ..pin.clone() }
        };
        let pins = self.pins.iter().map(|(id, pin)| (*id, in_effect(pin))).collect();
        let opening = match policy.outbound {
            Policy::FirstUse => self.opening(policy),
            // There is no window: new providers always wait for a person.
            Policy::Paired => Opening::default(),
        };
        let mut snapshot = Snapshot { pins, opening, ..Snapshot::default() };
        self.lay_over(&mut snapshot, now);
        snapshot
    }

    fn meet_known(&mut self, mut pin: Pin, met: &Met, holder: Option<Id>, rules: &Rules<'_>) -> Outcome {
        let former = pin.clone();
        // A pin that takes the name of another keeps what it has, gains nothing, and keeps its own name in the book:
        // else a key that is good for little could walk into a better one's place.
        let usurped = holder.filter(|_| !pin.name.is(met.name.as_str()));
        let mut news = usurped.map(|by| News::NameTaken { by });
        // While it is here under one name, another name is that of a copy: names would jump to and fro between the two,
        // and the copy's would be taken once it has a key of its own.
        if usurped.is_none() && pin.name != met.name && !(rules.present)(&met.id) {
            news = Some(News::Renamed { from: pin.name.clone() });
            pin.name = met.name.clone();
        }
        // Where a peer comes from is a worse hint than where it was reached.
        if pin.address.is_none() || met.direction != Direction::Inbound {
            pin.address = met.address.as_deref().and_then(clean).or(pin.address);
        }
        if rules.now.abs_diff(pin.last_met) >= LAST_MET_STEP {
            pin.last_met = rules.now;
        }
        // Only what first use left open; what a person decided stays.
        if pin.trust == Trust::FirstUse {
            match met.direction {
                Direction::Inbound => {
                    if pin.scope == Scope::None && usurped.is_none() && rules.policy.inbound == Policy::FirstUse {
                        pin.scope = Scope::Infer;
                    }
                }
                Direction::Outbound { provider: true } if pin.use_ == Use::No => {
                    pin.use_ = if usurped.is_none() { self.first_use_of_provider(rules) } else { Use::Pending };
                    if pin.use_ == Use::Pending {
                        news = news.filter(|news| matches!(news, News::NameTaken { .. })).or(Some(News::Waiting));
                    }
                }
                Direction::Outbound { .. } => {}
            }
        }
        let standing = in_effect(pin.standing(), rules.policy);
        let opened = self.open_window(met, standing, rules.now);
        let change = match () {
            () if opened || pin.standing() != former.standing() => Change::Matters,
            () if pin != former => Change::Cosmetic,
            () => Change::None,
        };
        self.pins.insert(pin.id, pin);
        Outcome { standing, news, change, pinned: false }
    }

    fn meet_stranger(&mut self, met: &Met, holder: Option<Id>, rules: &Rules<'_>) -> Outcome {
        let waiting = Standing { trust: Trust::None, use_: Use::Pending, scope: Scope::None };
        let refused = |news| Outcome { standing: waiting, news: Some(news), change: Change::None, pinned: false };
        if let Some(by) = holder {
            return refused(News::NameTaken { by });
        }
        let (policy, use_, scope) = match met.direction {
            Direction::Inbound => (rules.policy.inbound, Use::No, Scope::Infer),
            Direction::Outbound { provider: false } => (rules.policy.outbound, Use::No, Scope::None),
            Direction::Outbound { provider: true } => {
                (rules.policy.outbound, self.first_use_of_provider(rules), Scope::None)
            }
        };
        if policy == Policy::Paired {
            return refused(News::Waiting);
        }
        if !rules.may_pin || !self.make_room(use_, rules) {
            return refused(News::Crowded);
        }
        let pin = Pin {
            id: met.id,
            name: met.name.clone(),
            address: met.address.as_deref().and_then(clean),
            trust: Trust::FirstUse,
            use_,
            scope,
            voucher: false,
            first_met: rules.now,
            last_met: rules.now,
        };
        let standing = in_effect(pin.standing(), rules.policy);
        self.pins.insert(met.id, pin);
        self.open_window(met, standing, rules.now);
        let news = if use_ == Use::Pending { News::Waiting } else { News::FirstMet };
        Outcome { standing, news: Some(news), change: Change::Matters, pinned: true }
    }

    /// Whether first use lets a provider that is new have our prompts.
    fn first_use_of_provider(&self, rules: &Rules<'_>) -> Use {
        let open = matches!(self.opening(rules.policy).at(rules.now), Window::NotBegun | Window::Open { .. });
        if rules.policy.outbound == Policy::FirstUse && open { Use::Yes } else { Use::Pending }
    }

    /// The window begins with the first provider that is used, whoever decided that it is. Says whether it was now.
    fn open_window(&mut self, met: &Met, standing: Standing, now: u64) -> bool {
        let first = self.first_provider_met.is_none()
            && met.direction == (Direction::Outbound { provider: true })
            && standing.use_ == Use::Yes;
        if first {
            self.first_provider_met = Some(now);
        }
        first
    }

    /// The record of the first-use window.
    pub(super) fn opening(&self, policy: &TrustPolicy) -> Opening {
        let (opened, spent) = (self.first_provider_met, self.first_use_spent);
        Opening { opened, spent, span: policy.first_use_window.as_secs() }
    }

    /// Gives up the idlest pin that first use made, if the book is full of them. A provider that we use is only given
    /// up for another one: else strangers' keys could push it out, and once the window is over it would have to wait for
    /// a person.
    fn make_room(&mut self, newcomer: Use, rules: &Rules<'_>) -> bool {
        let by_first_use = || self.pins.values().filter(|pin| pin.trust == Trust::FirstUse);
        if by_first_use().count() < rules.max_first_use {
            return true;
        }
        let victim = by_first_use()
            .filter(|pin| newcomer == Use::Yes || pin.use_ != Use::Yes)
            .filter(|pin| !(rules.present)(&pin.id))
            .min_by_key(|pin| (pin.use_ == Use::Yes, pin.last_met, pin.first_met, pin.id))
            .map(|pin| pin.id);
        victim.and_then(|id| self.pins.remove(&id)).is_some()
    }
}

/// A tombstone.
pub(super) fn bury(pin: &mut Pin) {
    pin.trust = Trust::Revoked;
    pin.use_ = Use::No;
    pin.scope = Scope::None;
    pin.voucher = false;
}

fn in_effect(mut standing: Standing, policy: &TrustPolicy) -> Standing {
    if standing.trust == Trust::FirstUse {
        if policy.outbound == Policy::Paired && standing.use_ == Use::Yes {
            standing.use_ = Use::Pending;
        }
        if policy.inbound == Policy::Paired {
            standing.scope = Scope::None;
        }
    }
    standing
}

/// Addresses are shown to people and stand in a file: printable ASCII without a blank, or nothing.
pub(super) fn clean(address: &str) -> Option<String> {
    let fits = !address.is_empty() && address.len() <= MAX_ADDRESS && address.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| address.to_owned())
}

#[cfg(test)]
mod tests;
