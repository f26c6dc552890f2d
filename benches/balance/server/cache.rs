//! What a runner keeps of the conversations that it has evaluated.

/// Conversations that are kept beyond those that run, in the memory of the host.
const BEYOND_SLOTS: usize = 8;

/// The last conversations of a runner.
#[derive(Debug, Default)]
pub(super) struct Cache(Vec<Kept>);

#[derive(Debug)]
struct Kept {
    conversation: u32,
    tokens: f64,
    used: f64,
    /// Whether it runs at present.
    busy: bool,
}

// === impl Cache ===

impl Cache {
    /// The conversation begins to run: how many of its tokens are evaluated already. It has a place from now on, that of
    /// the one used least recently.
    pub(super) fn take(&mut self, now: f64, conversation: u32, slots: usize) -> f64 {
        if let Some(kept) = self.0.iter_mut().find(|kept| kept.conversation == conversation && !kept.busy) {
            kept.busy = true;
            return kept.tokens;
        }
        if self.0.len() >= slots + BEYOND_SLOTS {
            let idle = self.0.iter().enumerate().filter(|(_, kept)| !kept.busy);
            let oldest = idle.min_by(|(_, one), (_, other)| one.used.total_cmp(&other.used)).map(|(index, _)| index);
            if let Some(oldest) = oldest {
                self.0.swap_remove(oldest);
            }
        }
        self.0.push(Kept { conversation, tokens: 0.0, used: now, busy: true });
        0.0
    }

    /// It has run; so many tokens are evaluated now.
    pub(super) fn give_back(&mut self, now: f64, conversation: u32, tokens: f64) {
        if let Some(kept) = self.find(conversation) {
            kept.tokens = tokens;
            kept.used = now;
            kept.busy = false;
        }
    }

    /// It was given up; what is known of it stays.
    pub(super) fn release(&mut self, conversation: u32) {
        if let Some(kept) = self.find(conversation) {
            kept.busy = false;
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    fn find(&mut self, conversation: u32) -> Option<&mut Kept> {
        self.0.iter_mut().find(|kept| kept.conversation == conversation)
    }
}
