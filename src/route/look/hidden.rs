//! Keys that the server must not know, so that what a peer says by them counts for nothing: how long a model stays in memory,
//! and how it is loaded. One byte of such a key is changed, and it is one that no server knows, of the same length.

use crate::route::options::{Effect, OPTIONS, option};

/// Most of them in one body. Honest clients send a handful; a body of nothing else would make a long list.
const MAX_HIDDEN: usize = 256;
/// Longest number that is read: beyond 32 characters it is no context that anybody means.
const MAX_NUMBER: usize = 32;

/// A key that may have to be hidden.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hidden {
    /// Where its last byte is, as it is written, counted from the body's start.
    pub at: u64,
    /// The byte to put there.
    pub spoiled: u8,
    /// Whether it is `num_ctx`, which counts where the owner shares a context.
    pub is_context: bool,
}

/// The hidden keys that were found, and the context that is asked for.
#[derive(Debug, Default)]
pub(super) struct HiddenKeys {
    keys: Vec<Hidden>,
    too_many: bool,
    /// A bit for each of [`OPTIONS`] that came.
    seen: u64,
    doubled: Option<&'static str>,
    /// Whether the value under way is that of `num_ctx`.
    in_context: bool,
    number: String,
    context: Option<f64>,
}

const _: () = assert!(OPTIONS.len() <= 64, "a bit for each");

// === impl HiddenKeys ===

impl HiddenKeys {
    /// A key that counts for nothing, whoever shares what; `spoiled` is what to put in place of its last byte, if it may be
    /// known to any server at all.
    pub(super) fn hide(&mut self, at: u64, spoiled: Option<u8>) {
        self.keep(at, spoiled, false);
    }

    /// A key of `options`; not its text if that is too long for any.
    pub(super) fn option(&mut self, name: Option<&str>, at: u64, spoiled: Option<u8>) {
        self.number.clear();
        let known = name.and_then(option);
        self.in_context = matches!(known, Some((_, Effect::Context)));
        match known {
            Some((_, Effect::Answer)) => return,
            Some((index, Effect::Context | Effect::Load)) => {
                let bit = 1 << index;
                if self.seen & bit != 0 {
                    self.doubled = OPTIONS.get(index).map(|(name, _)| *name);
                }
                self.seen |= bit;
            }
            None => {}
        }
        self.keep(at, spoiled, self.in_context);
    }

    fn keep(&mut self, at: u64, spoiled: Option<u8>, is_context: bool) {
        let Some(spoiled) = spoiled else { return };
        if self.keys.len() < MAX_HIDDEN {
            self.keys.push(Hidden { at, spoiled, is_context });
        } else {
            self.too_many = true;
        }
    }

    /// A byte between strings; of a number, it matters.
    pub(super) fn digit(&mut self, byte: u8) {
        let of_number = byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        if of_number && self.in_context && self.number.len() <= MAX_NUMBER {
            self.number.push(char::from(byte));
        }
    }

    /// The value turned out to be a number.
    pub(super) fn number(&mut self) {
        if self.in_context {
            let short = Some(&*self.number).filter(|number| number.len() <= MAX_NUMBER);
            self.context = Some(short.and_then(|number| number.parse().ok()).unwrap_or(f64::INFINITY));
        }
    }

    pub(super) fn keys(&self) -> &[Hidden] {
        &self.keys
    }

    pub(super) fn too_many(&self) -> bool {
        self.too_many
    }

    pub(super) fn doubled(&self) -> Option<&'static str> {
        self.doubled
    }

    pub(super) fn context(&self) -> Option<f64> {
        self.context
    }
}
