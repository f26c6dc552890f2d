//! What each server would cost a request.

use std::sync::Arc;
use std::time::Duration;

use http::Response;

use super::Known;
use super::choose;
use super::errand::Errand;
use super::members::{Member, Members};
use crate::exchange::{Body, Decision, Look, Refusal};
use crate::id::Id;

pub(super) struct Scales<'a> {
    pub(super) known: &'a Known,
    pub(super) errand: &'a Errand,
    pub(super) members: &'a Members,
    pub(super) held: &'a [(Id, f32)],
}

pub(super) struct Weighing {
    pub(super) decision: Decision,
    pub(super) look_again: Duration,
    member: Option<Arc<Member>>,
}

impl Scales<'_> {
    pub(super) fn weigh(&self, candidates: &[Arc<Member>]) -> Weighing {
        let _ = (self.known, self.errand, self.members, self.held);
        Weighing {
            decision: Decision::Send,
            look_again: Duration::from_secs(1),
            member: choose::least_busy(candidates),
        }
    }
}

impl Weighing {
    pub(super) fn look(&self) -> Look {
        Look { after_ms: 0, decision: self.decision, servers: Vec::new() }
    }
    pub(super) fn chosen(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.member.iter()
    }
    pub(super) fn prompt_tokens(&self) -> u32 {
        0
    }
    pub(super) fn refusal(&self) -> Refusal {
        super::refuse::room_is_full()
    }
}

pub(super) fn turned_away(_: &Member, _: &Errand, _: &Response<Body>) {}
