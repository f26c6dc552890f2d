//! Which peer a text means: a name, an ID, the beginning of an ID, or an address.
//!
//! A name is a label that anyone may bear, so whatever fits more than one key is an error that lists them; only a whole
//! ID settles it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::id::{Id, MAX_NAME, MIN_PREFIX, NodeName, ParseIdError, Scope, Use, means};
use crate::peers::{PeerState, PeerView};
use crate::trust::{Pin, Snapshot, Trust, Voucher};

/// A peer that a text may mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// The name it is shown under: with the beginning of its ID behind it where several bear the same.
    pub name: NodeName,
    /// Its key's ID.
    pub id: Id,
    /// Where it was last seen.
    pub address: Option<String>,
    /// Whether it is connected.
    #[serde(default)]
    pub connected: bool,
    /// How its key came to be known.
    pub trust: Trust,
    /// Whether prompts are sent there.
    #[serde(rename = "use")]
    pub use_: Use,
    /// What it may do here.
    pub scope: Scope,
    /// Whether the servers that it vouches for are used too.
    #[serde(default)]
    pub voucher: bool,
    /// Who vouches for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vouched_by: Vec<Voucher>,
}

impl Candidate {
    /// A key that was never met, and that somebody gives whole.
    pub fn stranger(id: Id) -> Self {
        Self {
            name: NodeName::lossy("unknown"),
            id,
            address: None,
            connected: false,
            trust: Trust::None,
            use_: Use::No,
            scope: Scope::None,
            voucher: false,
            vouched_by: Vec::new(),
        }
    }

    /// Takes over what the book says of it.
    pub fn stands_in(&mut self, book: &Snapshot) {
        let standing = book.standing(&self.id);
        (self.trust, self.use_, self.scope) = (standing.trust, standing.use_, standing.scope);
        (self.voucher, self.vouched_by) = (book.is_voucher(&self.id), book.vouchers_of(&self.id));
    }

    /// As the book would have it.
    pub(super) fn pin(&self) -> Pin {
        Pin {
            id: self.id,
            name: self.plain_name(),
            address: self.address.clone(),
            trust: self.trust,
            use_: self.use_,
            scope: self.scope,
            voucher: self.voucher,
            first_met: 0,
            last_met: 0,
        }
    }

    /// The name that its node gives itself, which several may bear.
    pub fn plain_name(&self) -> NodeName {
        self.name.plain(&self.id)
    }
}

/// Everyone known: the pins of the book, and over them what is seen now.
pub fn candidates<'a>(views: &[PeerView], pins: impl Iterator<Item = &'a Pin>) -> Vec<Candidate> {
    let mut known: BTreeMap<Id, Candidate> = pins
        .map(|pin| {
            let candidate = Candidate {
                name: pin.name.clone(),
                id: pin.id,
                address: pin.address.clone(),
                connected: false,
                trust: pin.trust,
                use_: pin.use_,
                scope: pin.scope,
                voucher: pin.voucher,
                vouched_by: Vec::new(),
            };
            (pin.id, candidate)
        })
        .collect();
    for view in views {
        let candidate = Candidate {
            name: view.name.clone(),
            id: view.id,
            // A host name that somebody typed is no address to a view.
            address: view
                .address
                .map(|address| address.to_string())
                .or_else(|| known.get(&view.id).and_then(|pin| pin.address.clone())),
            connected: view.state == PeerState::Connected,
            trust: view.trust,
            use_: view.use_,
            scope: view.scope,
            voucher: view.voucher,
            vouched_by: view.vouched_by.clone(),
        };
        known.insert(view.id, candidate);
    }
    known.into_values().collect()
}

/// Finds the one that a text means.
///
/// # Errors
/// If it is none of them, or more than one.
pub fn resolve(text: &str, candidates: &[Candidate]) -> Result<Candidate, Unresolved> {
    match text.parse::<Id>() {
        Ok(id) => {
            return candidates.iter().find(|peer| peer.id == id).cloned().ok_or(Unresolved::UnknownId(id));
        }
        // As long as an ID, and yet none: nobody has a name that happens to look so.
        Err(slip @ (ParseIdError::Check(_) | ParseIdError::Alphabet)) => return Err(Unresolved::Slip(slip)),
        Err(ParseIdError::Length(_)) => {}
    }
    let mut fitting: Vec<&Candidate> = candidates.iter().filter(|peer| fits(text, peer)).collect();
    match (fitting.pop(), fitting.is_empty()) {
        (Some(peer), true) => Ok(peer.clone()),
        (Some(last), false) => {
            fitting.push(last);
            if let Some(peer) = connected_by_name(text, &fitting) {
                return Ok(peer.clone());
            }
            let candidates = fitting.into_iter().cloned().collect();
            Err(Unresolved::Ambiguous { text: text.to_owned(), candidates })
        }
        (None, _) if candidates.iter().any(|peer| starts_with(peer.id, text)) => {
            Err(Unresolved::ShortPrefix(text.to_owned()))
        }
        (None, _) => {
            let nearest = candidates.iter().map(|peer| (distance(text, peer.name.as_str()), &peer.name)).min();
            // One character in three may be wrong, one at least.
            let nearest = nearest.filter(|(distance, name)| *distance <= (name.as_str().len() / 3).max(1));
            Err(Unresolved::Unknown { text: text.to_owned(), nearest: nearest.map(|(_, name)| name.clone()) })
        }
    }
}

/// Of several keys with one name the one that is connected: a machine that was set up anew has left its old key behind.
/// Only where a person, or first use, has decided on all of them: a stranger must not be taken for who is known, nor come
/// between.
fn connected_by_name<'a>(text: &str, fitting: &[&'a Candidate]) -> Option<&'a Candidate> {
    let by_name = |peer: &Candidate| peer.plain_name().is(text) && !peer.id.matches_prefix(text);
    if !fitting.iter().all(|peer| by_name(peer) && peer.trust != Trust::None) {
        return None;
    }
    let mut connected = fitting.iter().filter(|peer| peer.connected && peer.trust != Trust::Revoked);
    let only = connected.next()?;
    connected.next().is_none().then_some(*only)
}

/// Levenshtein's distance without case, in characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().map(|c| c.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().take(MAX_NAME).enumerate() {
        let (mut corner, mut left) = (i, i + 1);
        for (y, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let best = (corner + usize::from(x.to_ascii_lowercase() != *y)).min(left + 1).min(*cell + 1);
            (corner, left) = (*cell, best);
            *cell = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(usize::MAX)
}

fn fits(text: &str, peer: &Candidate) -> bool {
    // A revoked key that is shown with its ID has lost its name to another, or it was freed.
    let lost = peer.trust == Trust::Revoked && !peer.name.is(text) && peer.plain_name().is(text);
    (means(text, &peer.name, &peer.id) && !lost) || peer.address.as_deref().is_some_and(|at| is_at(text, at))
}

/// Whether `text` is the address, or its host without the port.
fn is_at(text: &str, address: &str) -> bool {
    if text == address {
        return true;
    }
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    match (address.parse::<SocketAddr>(), text.parse::<SocketAddr>(), bare.parse::<IpAddr>()) {
        (Ok(at), Ok(wanted), _) => at == wanted,
        (Ok(at), _, Ok(wanted)) => at.ip() == wanted,
        (Err(_), _, _) => address.rsplit_once(':').is_some_and(|(host, _)| host.eq_ignore_ascii_case(text)),
        _ => false,
    }
}

fn starts_with(id: Id, text: &str) -> bool {
    let plain = |text: &str| text.replace('-', "").to_ascii_uppercase();
    let wanted = plain(text);
    !wanted.is_empty() && wanted.len() < MIN_PREFIX && plain(&id.to_string()).starts_with(&wanted)
}

/// Why a text means nobody in particular.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// Nobody known fits.
    #[error(
        "no peer {text:?} is known{}; `ollana peers` lists those that are, and one that was never met needs its whole ID",
        nearest.as_ref().map(|name| format!(", did you mean {name}?")).unwrap_or_default()
    )]
    Unknown {
        /// The text that was typed.
        text: String,
        /// A known name that looks like it.
        nearest: Option<NodeName>,
    },
    /// An ID that nobody known has.
    #[error("no peer with the ID {0} is known; `ollana peers` lists those that are")]
    UnknownId(Id),
    /// An ID with a slip in it.
    #[error("that is not an ID: {0}")]
    Slip(ParseIdError),
    /// The beginning of an ID, but too little of it.
    #[error("{0:?} is too short for an ID; give at least {MIN_PREFIX} of its characters")]
    ShortPrefix(String),
    /// Several fit.
    #[error("{text:?} could be {}; give the ID", list(candidates))]
    Ambiguous {
        /// The text that was typed.
        text: String,
        /// Whom it fits.
        candidates: Vec<Candidate>,
    },
}

fn list(candidates: &[Candidate]) -> String {
    let shown: Vec<String> = candidates
        .iter()
        .map(|peer| {
            let at = peer.address.as_deref().map(|address| format!(" at {address}")).unwrap_or_default();
            let trust = if peer.trust == Trust::None { "not trusted".to_owned() } else { peer.trust.to_string() };
            let here = if peer.connected { ", connected" } else { "" };
            format!("{} ({}{at}, {trust}{here})", peer.name, peer.id)
        })
        .collect();
    shown.join(" or ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(key: &str, name: &str, address: Option<&str>) -> Candidate {
        Candidate {
            name: NodeName::lossy(name),
            id: Id::of_spki(key.as_bytes()),
            address: address.map(str::to_owned),
            connected: false,
            trust: Trust::FirstUse,
            use_: Use::Yes,
            scope: Scope::Infer,
            voucher: false,
            vouched_by: Vec::new(),
        }
    }

    fn known() -> Vec<Candidate> {
        vec![
            peer("1", "gpu1", Some("192.168.1.5:11435")),
            peer("2", "gpu2", Some("[fe80::1%2]:11435")),
            peer("3", "GPU2", Some("192.168.1.6:11435")),
            peer("4", "attic", Some("attic.lan:11435")),
            peer("5", "away", None),
        ]
    }

    #[test]
    fn a_peer_is_found_by_name_id_prefix_and_address() {
        let known = known();
        let first = known[0].id.to_string();
        for text in ["gpu1", "GPU1", &first, &first.to_lowercase(), &first[..9], "192.168.1.5", "192.168.1.5:11435"] {
            assert_eq!(resolve(text, &known).unwrap().id, known[0].id, "{text}");
        }
        for text in ["attic", "attic.lan", "attic.lan:11435"] {
            assert_eq!(resolve(text, &known).unwrap().id, known[3].id, "{text}");
        }
        assert_eq!(resolve("[fe80::1%2]:11435", &known).unwrap().id, known[1].id);
    }

    #[test]
    fn a_name_that_two_bear_is_an_error_that_lists_both_in_full() {
        let known = known();
        let error = resolve("gpu2", &known).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&known[1].id.to_string()) && text.contains(&known[2].id.to_string()), "{text}");
        assert!(matches!(error, Unresolved::Ambiguous { candidates, .. } if candidates.len() == 2));
    }

    #[test]
    fn a_node_shown_with_its_id_is_still_called_by_its_name() {
        let mut known = known();
        let first = known[1].name.with_suffix(&known[1].id.short());
        known[1].name = first.clone();
        known[2].name = known[2].name.with_suffix(&known[2].id.short());
        assert!(matches!(resolve("gpu2", &known), Err(Unresolved::Ambiguous { .. })));
        let found = resolve(first.as_str(), &known).unwrap();
        assert_eq!((found.id, found.plain_name()), (known[1].id, NodeName::lossy("gpu2")));
    }

    #[test]
    fn a_name_means_the_key_that_is_connected_unless_a_stranger_has_it_too() {
        let (mut old, mut new) = (peer("1", "anna", None), peer("2", "anna", None));
        (old.trust, new.trust, new.connected) = (Trust::Trusted, Trust::Trusted, true);
        let ambiguous = |all: &[Candidate]| matches!(resolve("anna", all), Err(Unresolved::Ambiguous { .. }));
        for trust in [Trust::Trusted, Trust::FirstUse, Trust::Revoked] {
            old.trust = trust;
            assert_eq!(resolve("Anna", &[old.clone(), new.clone()]).unwrap().id, new.id);
        }
        // Freed, or lost to the other: it is no longer called so.
        let freed = Candidate { trust: Trust::Revoked, name: old.name.with_suffix(&old.id.short()), ..old.clone() };
        assert_eq!(
            resolve("anna", &[freed.clone(), Candidate { connected: false, ..new.clone() }]).unwrap().id,
            new.id
        );
        assert_eq!(resolve(freed.name.as_str(), &[freed.clone(), new.clone()]).unwrap().id, old.id);
        let stranger = peer("3", "anna", None);
        assert!(ambiguous(&[old.clone(), new.clone(), Candidate { trust: Trust::None, ..stranger }]));
        old.trust = Trust::Trusted;
        assert!(ambiguous(&[Candidate { connected: true, ..old.clone() }, new.clone()]), "both are connected");
        assert!(ambiguous(&[old.clone(), Candidate { connected: false, ..new.clone() }]), "neither is");
        assert!(ambiguous(&[old, Candidate { trust: Trust::None, ..new }]), "it waits for a person");
    }

    #[test]
    fn a_mistyped_name_is_an_error_with_the_nearest() {
        let known = known();
        for (typed, meant) in [("atic", "attic"), ("gpu11", "gpu1"), ("AWAX", "away")] {
            let error = resolve(typed, &known).unwrap_err().to_string();
            assert!(error.contains(&format!("did you mean {meant}?")), "{error}");
        }
        assert!(!resolve("workstation", &known).unwrap_err().to_string().contains("did you mean"));
    }

    #[test]
    fn a_peer_cannot_catch_anothers_id_by_its_name() {
        let mut known = known();
        let target = known[0].id;
        let digits = target.to_string().replace('-', "");
        known.push(peer("evil", &digits[..12], None));
        known.push(peer("worse", &digits, None));
        assert!(matches!(resolve(&digits[..12], &known), Err(Unresolved::Ambiguous { .. })));
        assert_eq!(resolve(&digits, &known).unwrap().id, target);
        assert_eq!(resolve(&target.to_string(), &known).unwrap().id, target);
    }

    #[test]
    fn what_fits_nobody_says_why() {
        let known = known();
        let id = known[0].id.to_string();
        assert!(matches!(resolve("nobody", &known), Err(Unresolved::Unknown { nearest: None, .. })));
        assert!(matches!(resolve("192.168.1.5:1", &known), Err(Unresolved::Unknown { .. })));
        assert!(matches!(resolve(&id[..5], &known), Err(Unresolved::ShortPrefix(_))));
        assert!(matches!(resolve("", &known), Err(Unresolved::Unknown { .. })));
        let last = if id.ends_with('A') { "B" } else { "A" };
        let slip = format!("{}{last}", &id[..id.len() - 1]);
        assert!(matches!(resolve(&slip, &known), Err(Unresolved::Slip(_))));
        let stranger = Id::of_spki(b"stranger");
        assert_eq!(resolve(&stranger.to_string(), &known), Err(Unresolved::UnknownId(stranger)));
    }

    #[test]
    fn what_is_seen_goes_over_what_was_written() {
        let id = Id::of_spki(b"1");
        let views = [PeerView {
            name: NodeName::lossy("new"),
            id,
            address: Some("10.0.0.1:5".parse().unwrap()),
            state: PeerState::Connected,
            trust: Trust::Trusted,
            use_: Use::Yes,
            scope: Scope::Manage,
            remote_scope: None,
            denial: None,
            voucher: false,
            vouched_by: Vec::new(),
            provider: true,
            api: Default::default(),
            models: Vec::new(),
            loaded: Vec::new(),
            inflight: 0,
            direct: 0,
            most_loaded: None,
            draining: false,
            numbers: Default::default(),
            rtt_us: 0,
            problem: None,
            version: String::new(),
            digests: BTreeMap::new(),
        }];
        let none: [Pin; 0] = [];
        let found = candidates(&views, none.iter());
        assert_eq!(found.len(), 1);
        assert_eq!(resolve("10.0.0.1", &found).unwrap().name.as_str(), "new");
    }
}
