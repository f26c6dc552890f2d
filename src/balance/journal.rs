//! The latest requests and how they went, so that each can be explained after the fact.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use http::request::Parts;
use tokio::time::Instant;

use super::members::Member;
use crate::exchange::{Account, CutOff, Look, RequestId, Try};

/// Requests that are kept: at a few an hour and person some days of a lab, and with [`MAX_LOOKS`] a megabyte or two.
const KEPT: usize = 512;
/// Decisions that are kept of one request: the first ones, and the last.
const MAX_LOOKS: usize = 4;
/// Longest path that is kept.
const MAX_PATH: usize = 120;

/// The latest requests of a node. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal(Arc<Mutex<VecDeque<Entry>>>);

/// One request's account, which its own task writes.
#[derive(Clone)]
pub(super) struct Entry {
    account: Arc<Mutex<Account>>,
    since: Instant,
}

// === impl Journal ===

impl Journal {
    /// Begins an account. The oldest makes room for it.
    pub(super) fn begin(&self, parts: &Parts) -> Entry {
        let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let account = Account {
            id: RequestId::random(),
            at_ms: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            method: parts.method.as_str().chars().take(MAX_PATH).collect(),
            path: parts.uri.path().chars().take(MAX_PATH).collect(),
            model: None,
            prompt_tokens: None,
            looks: Vec::new(),
            tries: Vec::new(),
            status: None,
            refusal: None,
            sent_ms: None,
            head_ms: None,
            end_ms: None,
            cut_off: None,
        };
        let entry = Entry { account: Arc::new(Mutex::new(account)), since: Instant::now() };
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= KEPT {
            entries.pop_front();
        }
        entries.push_back(entry.clone());
        entry
    }

    /// All that is kept, the latest first.
    pub(super) fn accounts(&self) -> Vec<Account> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        entries.iter().rev().map(|entry| entry.lock().clone()).collect()
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn id(&self) -> RequestId {
        self.lock().id
    }

    /// What the look into the body found.
    pub(super) fn asks(&self, model: Option<String>, prompt_tokens: Option<u32>) {
        let mut account = self.lock();
        (account.model, account.prompt_tokens) = (model, prompt_tokens);
    }

    /// A decision, made just now.
    pub(super) fn looked(&self, look: Look) {
        let look = Look { after_ms: self.elapsed(), ..look };
        let mut account = self.lock();
        if account.looks.len() >= MAX_LOOKS {
            account.looks.pop();
        }
        account.looks.push(look);
    }

    /// It is sent there.
    pub(super) fn tries(&self, member: &Member, slot: bool) {
        let after_ms = self.elapsed();
        let mut account = self.lock();
        account.sent_ms = Some(after_ms);
        account.tries.push(Try { peer: member.label(), id: member.id(), after_ms, slot, outcome: None });
    }

    /// What came of the last try.
    pub(super) fn came(&self, outcome: String) {
        if let Some(last) = self.lock().tries.last_mut() {
            last.outcome = Some(outcome);
        }
    }

    /// The head of what the application gets. The log has a line for each failure, without what was asked.
    pub(super) fn answered(&self, status: u16, refusal: Option<String>) {
        let head_ms = self.elapsed();
        let mut account = self.lock();
        (account.status, account.refusal, account.head_ms) = (Some(status), refusal, Some(head_ms));
        let Account { id, method, model, refusal, .. } = &*account;
        let (path, model, peer) = (one_line(&account.path), model.as_deref().unwrap_or("-"), provider(&account));
        match refusal.as_deref().map(one_line) {
            Some(why) if status >= 500 => {
                tracing::warn!(request = %id, model, "{method} {path} failed with {status}: {why}");
            }
            Some(why) => tracing::info!(request = %id, model, "{method} {path} was refused with {status}: {why}"),
            None if status >= 500 => {
                tracing::warn!(request = %id, model, peer, "{method} {path} failed: the provider answered {status}");
            }
            None => {}
        }
    }

    /// The answer came to its end.
    pub(super) fn ended(&self) {
        self.over(None);
    }

    /// The answer will not come to its end, unless it has already.
    pub(super) fn cut_off(&self, why: CutOff) {
        // Nothing follows the head that was asked for.
        let why = Some(why).filter(|why| *why != CutOff::Cancelled || self.lock().method != "HEAD");
        self.over(why);
    }

    fn over(&self, cut_off: Option<CutOff>) {
        let end_ms = self.elapsed();
        let mut account = self.lock();
        // An answer that the application did not get is a try that was given up, of which there may be several.
        if account.status.is_none() || account.end_ms.is_some() {
            return;
        }
        let Account { id, method, model, .. } = &*account;
        let (path, model, peer) = (one_line(&account.path), model.as_deref().unwrap_or("-"), provider(&account));
        match &cut_off {
            None => {}
            Some(CutOff::Cancelled) => tracing::debug!(request = %id, model, peer, "{method} {path} was cancelled"),
            Some(CutOff::Failed(why)) => {
                tracing::warn!(request = %id, model, peer, "{method} {path} was cut off: {why}")
            }
        }
        (account.end_ms, account.cut_off) = (Some(end_ms), cut_off);
    }

    /// To be held until there is an answer: an application that goes away before has cancelled its request.
    pub(super) fn watch(&self) -> Unanswered {
        Unanswered(self.clone())
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Entry::watch`].
pub(super) struct Unanswered(Entry);

impl Drop for Unanswered {
    fn drop(&mut self) {
        let end_ms = self.0.elapsed();
        let mut account = self.0.lock();
        if account.status.is_none() {
            (account.end_ms, account.cut_off) = (Some(end_ms), Some(CutOff::Cancelled));
        }
    }
}

/// A text that an application may have chosen, without what could forge a line of the log.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// The node that the answer is from.
fn provider(account: &Account) -> &str {
    account.tries.last().map_or("-", |last| last.peer.as_str())
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Entry({})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exchange::Decision;

    fn parts() -> Parts {
        http::Request::get("/api/chat?token=secret").body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_latest_are_kept_with_their_first_decisions_and_the_last() {
        let journal = Journal::default();
        let first = journal.begin(&parts()).id();
        let look = |decision| Look { after_ms: 0, decision, servers: Vec::new() };
        for n in 0..KEPT {
            let entry = journal.begin(&parts());
            entry.looked(look(Decision::Queue));
            (0..10).for_each(|_| entry.looked(look(Decision::Stay)));
            entry.looked(look(Decision::Send));
            entry.answered(200, None);
            entry.ended();
            assert_eq!(journal.accounts()[0].id, entry.id(), "{n}");
        }
        let accounts = journal.accounts();
        assert_eq!(accounts.len(), KEPT);
        assert!(accounts.iter().all(|account| account.id != first && account.end_ms.is_some()));
        assert_eq!(accounts[0].path, "/api/chat", "what a query holds may be secret");
        let decisions: Vec<_> = accounts[0].looks.iter().map(|look| look.decision).collect();
        assert_eq!(decisions, [Decision::Queue, Decision::Stay, Decision::Stay, Decision::Send]);
    }
}
