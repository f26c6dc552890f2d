//! Which server has how much of a conversation in its cache, as far as this node's own requests tell.
//!
//! A runner keeps the prompts it has seen lately, and evaluates of a new one only what comes after the longest beginning it
//! knows. So a conversation is best continued where it was. What crosses here are bodies in several dialects, and a server
//! has rendered them by templates that we do not know; but a body that continues a conversation begins like the one before
//! (its messages), and then goes on differently (the answer, the new message, brackets, options). So bodies are compared by
//! the blocks they begin with, each block's hash covering all before it.
//!
//! A chat's next body holds the answer to the last one as well, which the server has cached as much as what it was sent.
//! Where messages begin is told by their `"role"`: a body that goes on where one of so many messages ended has the answer
//! to it between that and the message behind it. In other dialects the answer does not count.
//!
//! What is kept is what was *sent*, for as many conversations as a runner holds, and in bounded memory. Others send there
//! too: a server says how many requests it has begun, and those that were not ours have taken their room in the cache. A hash
//! has a key that is made at start and never leaves, so that no application can make its prompt look like another's.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher as _, DefaultHasher, Hasher as _};
use std::sync::Arc;

use memchr::memmem;

use crate::id::Id;

/// Bytes of a block: what may be missed of what is cached, some 60 tokens.
const BLOCK: usize = 256;
/// Bytes of a body that are looked at: 16 thousand tokens. Whatever else of a conversation is cached comes on top, and is
/// not needed to know where.
pub(crate) const READ: usize = 64 * 1024;
/// Hashes that are kept in all: 1 MiB of them.
const KEPT: usize = 128 * 1024;
/// What a conversation counts beside its blocks, in hashes: allocation, names, the map.
const OVERHEAD: usize = 32;
/// Conversations that a runner keeps beside those in its slots: its cache in the host's memory, 8 GiB by default.
const BESIDE_SLOTS: usize = 8;
/// How many of others' requests bring a conversation into a cache that was not in it: most follow-ups find their own there.
/// In the workload of `benches/balance` (H1) one of three requests does.
const OTHERS: f64 = 0.65;
/// Conversations of a runner at most, whatever slots it says it has.
const MOST: usize = 64;
/// A body that has at least three quarters of an older one continues it, and stands for both: what differs is its tail.
const CONTINUES: (usize, usize) = (3, 4);
/// What stands before the messages of a chat, in every dialect that knows them.
const ROLE: &[u8; 6] = b"\"role\"";
/// Messages of a body whose beginnings are kept. A longer conversation's latest answer does not count.
const MESSAGES: usize = 256;
/// Bytes of a body to a token of the prompt: English in JSON, somewhat more than it is in other languages.
const BYTES_A_TOKEN: f64 = 4.0;

/// What was sent where.
#[derive(Debug)]
pub(crate) struct Prefixes {
    keys: RandomState,
    servers: BTreeMap<Id, BTreeMap<String, Runner>>,
    /// Hashes in `servers`, overhead included.
    kept: usize,
    most: usize,
    /// Counts what was recorded: the age of conversations.
    clock: u64,
}

/// How a body begins. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// The n-th is a hash of the first n + 1 blocks, so that where two are equal, all before are.
    blocks: Arc<[u64]>,
    /// Where its messages begin: the bytes before each [`ROLE`], in the part that is read.
    messages: Arc<[u32]>,
}

/// A fingerprint in the making.
pub(crate) struct Reading {
    hasher: DefaultHasher,
    blocks: Vec<u64>,
    /// The beginning of the next block: what of `part` is filled.
    part: [u8; BLOCK],
    filled: usize,
    messages: Vec<u32>,
    /// Bytes that were read, and the last few of them, of which a word may have begun.
    read: usize,
    tail: [u8; ROLE.len() - 1],
}

/// The conversations of one model on one server, the latest last.
#[derive(Debug, Default)]
struct Runner {
    conversations: VecDeque<Conversation>,
    /// How many it holds.
    most: usize,
    /// Requests that we have sent there.
    sent: u32,
}

#[derive(Debug)]
struct Conversation {
    fingerprint: Fingerprint,
    recorded: u64,
    /// What we had sent there and what it had begun by then.
    sent: u32,
    begun: u32,
}

/// The tokens of so many bytes of a body, about.
pub(crate) fn tokens(bytes: usize) -> f64 {
    // Nothing here is near 2^53.
    #[expect(clippy::cast_precision_loss)]
    let bytes = bytes as f64;
    bytes / BYTES_A_TOKEN
}

// === impl Prefixes ===

impl Prefixes {
    pub(crate) fn new() -> Self {
        Self::within(KEPT)
    }

    /// The same within so many hashes.
    fn within(most: usize) -> Self {
        Self { keys: RandomState::new(), servers: BTreeMap::new(), kept: 0, most, clock: 0 }
    }

    /// Begins to read a body.
    pub(crate) fn read(&self) -> Reading {
        Reading {
            hasher: self.keys.build_hasher(),
            blocks: Vec::new(),
            part: [0; BLOCK],
            filled: 0,
            messages: Vec::new(),
            read: 0,
            tail: [0; ROLE.len() - 1],
        }
    }

    /// Bytes of the body that a server has seen before, for this model: the longest beginning that it shares with one that
    /// was sent there. The server has begun so many requests for the model, everyone's.
    pub(crate) fn matched(&self, server: &Id, model: &str, body: &Fingerprint, begun: u32) -> usize {
        let runner = self.servers.get(server).and_then(|models| models.get(model));
        let cached = runner.map(|runner| runner.held(begun).map(|known| known.fingerprint.cached(body)).max());
        cached.flatten().unwrap_or(0)
    }

    /// A body was sent there; the model's runner has so many slots, and had begun so many requests.
    pub(crate) fn record(&mut self, server: &Id, model: &str, body: &Fingerprint, slots: u32, begun: u32) {
        if body.blocks.is_empty() {
            return;
        }
        self.clock += 1;
        let models = self.servers.entry(*server).or_default();
        let runner = match models.get_mut(model) {
            Some(runner) => runner,
            None => models.entry(model.to_owned()).or_default(),
        };
        runner.most = usize::try_from(slots).unwrap_or(MOST).saturating_add(BESIDE_SLOTS).min(MOST);
        self.kept -= runner.size();
        runner.record(body.clone(), self.clock, begun);
        self.kept += runner.size();
        while self.kept > self.most && self.forget_oldest() {}
    }

    /// The model is not in that server's memory any more, and its cache went with it.
    pub(crate) fn forget_model(&mut self, server: &Id, model: &str) {
        let Some(models) = self.servers.get_mut(server) else { return };
        self.kept -= models.remove(model).map_or(0, |runner| runner.size());
        if models.is_empty() {
            self.servers.remove(server);
        }
    }

    /// Forgets the conversation that has rested for longest, wherever it is.
    fn forget_oldest(&mut self) -> bool {
        let runners = self.servers.iter().flat_map(|(server, models)| models.iter().map(move |of| (server, of)));
        let oldest = runners
            .filter_map(|(server, (model, runner))| Some((runner.conversations.front()?.recorded, server, model)))
            .min_by_key(|(recorded, ..)| *recorded)
            .map(|(_, server, model)| (*server, model.clone()));
        let Some((server, model)) = oldest else { return false };
        let Some(runner) = self.servers.get_mut(&server).and_then(|models| models.get_mut(&model)) else {
            return false;
        };
        self.kept -= runner.conversations.pop_front().map_or(0, |conversation| conversation.size());
        if runner.conversations.is_empty() {
            self.forget_model(&server, &model);
        }
        true
    }
}

// === impl Reading ===

impl Reading {
    /// Reads on. What comes after the first 64 KiB is not looked at.
    pub(crate) fn feed(&mut self, mut piece: &[u8]) {
        self.find_messages(piece);
        if self.filled > 0 {
            let (head, rest) = piece.split_at(piece.len().min(BLOCK - self.filled));
            for (to, from) in self.part.iter_mut().skip(self.filled).zip(head) {
                *to = *from;
            }
            self.filled += head.len();
            piece = rest;
            if self.filled < BLOCK {
                return;
            }
            let part = self.part;
            self.block(&part);
            self.filled = 0;
        }
        let mut blocks = piece.chunks_exact(BLOCK);
        for block in blocks.by_ref() {
            if self.is_full() {
                return;
            }
            self.block(block);
        }
        for (to, from) in self.part.iter_mut().zip(blocks.remainder()) {
            *to = *from;
        }
        self.filled = blocks.remainder().len();
    }

    /// Whether nothing more is looked at.
    pub(crate) fn is_full(&self) -> bool {
        self.blocks.len() * BLOCK >= READ
    }

    /// What was read so far. A rest that fills no block does not count: that is where bodies begin to differ.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        Fingerprint { blocks: self.blocks.as_slice().into(), messages: self.messages.as_slice().into() }
    }

    fn find_messages(&mut self, piece: &[u8]) {
        if self.read > READ {
            return;
        }
        let keep = ROLE.len() - 1;
        // What begins in the piece before: the seam, with as much of this one as can belong to it.
        let seam: Vec<u8> = self.tail.iter().chain(piece.iter().take(keep)).copied().collect();
        let begins = self.read.saturating_sub(keep);
        let ahead = keep.saturating_sub(self.read);
        let in_seam = memmem::find_iter(&seam, ROLE).map(|at| begins + at.saturating_sub(ahead));
        let in_piece = memmem::find_iter(piece, ROLE).map(|at| self.read + at);
        let found: Vec<u32> = in_seam.chain(in_piece).filter_map(|at| u32::try_from(at).ok()).collect();
        let room = MESSAGES.saturating_sub(self.messages.len());
        self.messages.extend(found.into_iter().take(room));
        self.read += piece.len();
        let rest = seam.len().min(keep + piece.len());
        let last: Vec<u8> = match piece.len() >= keep {
            true => piece.get(piece.len() - keep..).unwrap_or_default().to_vec(),
            false => seam.get(rest - keep..rest).unwrap_or_default().to_vec(),
        };
        if let Ok(last) = last.try_into() {
            self.tail = last;
        }
    }

    fn block(&mut self, block: &[u8]) {
        if !self.is_full() {
            // Always whole blocks: a hasher may tell one write from two.
            self.hasher.write(block);
            self.blocks.push(self.hasher.finish());
        }
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// Bytes of a body that whoever was sent this one has cached: what both begin with, and the answer, if the body goes on
    /// where this one ended.
    fn cached(&self, body: &Self) -> usize {
        let common = self.common(body) * BLOCK;
        // Into its last message, if that is long enough to tell: others may share all before it.
        let goes_on = self.messages.last().is_some_and(|last| {
            let (last, whole) = (*last as usize, self.blocks.len() * BLOCK);
            common + BLOCK > if whole > last + 2 * BLOCK { last + BLOCK } else { last }
        });
        let behind_the_answer = body.messages.get(self.messages.len() + 1).filter(|_| goes_on && common > 0);
        behind_the_answer.map_or(common, |at| common.max(*at as usize))
    }

    /// Blocks that both begin with.
    fn common(&self, other: &Self) -> usize {
        let pairs = || self.blocks.iter().zip(other.blocks.iter());
        // Mostly nothing at all is common.
        if pairs().next().is_none_or(|(one, other)| one != other) {
            return 0;
        }
        let (mut equal, mut unequal) = (1, pairs().len());
        while equal < unequal {
            let middle = equal + (unequal - equal) / 2;
            if self.blocks.get(middle) == other.blocks.get(middle) {
                equal = middle + 1;
            } else {
                unequal = middle;
            }
        }
        equal
    }
}

// === impl Runner ===

impl Runner {
    fn record(&mut self, new: Fingerprint, recorded: u64, begun: u32) {
        let (of, whole) = CONTINUES;
        self.conversations.retain(|old| new.common(&old.fingerprint) * whole < old.fingerprint.blocks.len() * of);
        self.sent = self.sent.wrapping_add(1);
        self.conversations.push_back(Conversation { fingerprint: new, recorded, sent: self.sent, begun });
        while self.conversations.len() > self.most {
            self.conversations.pop_front();
        }
    }

    /// What is still in its cache, once it has begun so many requests: that which fewer conversations came after than it
    /// holds.
    fn held(&self, begun: u32) -> impl Iterator<Item = &Conversation> {
        self.conversations.iter().rev().zip(0u32..).filter_map(move |(known, ours)| {
            // A gate that was started again counts from nothing, and its Ollama may have all it had.
            let others = begun.saturating_sub(known.begun).saturating_sub(self.sent.wrapping_sub(known.sent));
            let after = f64::from(ours) + OTHERS * f64::from(others);
            (after < f64::from(u32::try_from(self.most).unwrap_or(u32::MAX))).then_some(known)
        })
    }

    /// What it counts, in hashes.
    fn size(&self) -> usize {
        self.conversations.iter().map(Conversation::size).sum()
    }
}

impl Conversation {
    fn size(&self) -> usize {
        // Two beginnings of messages take the room of a hash.
        self.fingerprint.blocks.len() + self.fingerprint.messages.len() / 2 + OVERHEAD
    }
}

#[cfg(test)]
#[path = "prefix_tests.rs"]
mod tests;
