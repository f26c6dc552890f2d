//! The options that decide how a model is loaded. A request that asks for others than the model was loaded with makes
//! Ollama load it anew (`needsReload` in its `server/sched.go`): these are `Runner` in its `api/types.go`.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerOption {
    /// `num_ctx`: how much of a conversation the model sees. The only one that an answer depends on.
    NumCtx,
    /// `num_batch`
    NumBatch,
    /// `num_gpu`
    NumGpu,
    /// `main_gpu`
    MainGpu,
    /// `use_mmap`
    UseMmap,
    /// `num_thread`
    NumThread,
}

/// Longest number that is read: beyond 32 characters it is no context that anybody means.
const MAX_NUMBER: usize = 32;

/// What is known of them, of the top level's `options`.
#[derive(Debug, Default)]
pub(super) struct RunnerOptions {
    at: [Option<u64>; RunnerOption::ALL.len()],
    doubled: Option<RunnerOption>,
    /// The one whose value is under way.
    current: Option<RunnerOption>,
    number: String,
    context: Option<f64>,
}

// === impl RunnerOption ===

impl RunnerOption {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::NumCtx, Self::NumBatch, Self::NumGpu, Self::MainGpu, Self::UseMmap, Self::NumThread];

    /// As it is written. Unlike the keys of the top level it is matched exactly: `options` is a map to Go.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NumCtx => "num_ctx",
            Self::NumBatch => "num_batch",
            Self::NumGpu => "num_gpu",
            Self::MainGpu => "main_gpu",
            Self::UseMmap => "use_mmap",
            Self::NumThread => "num_thread",
        }
    }

    pub(super) fn matching(key: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|option| option.as_str() == key)
    }
}

// === impl RunnerOptions ===

impl RunnerOptions {
    /// A key of `options` was read; the last byte of its name is at `at`.
    pub(super) fn begin(&mut self, option: Option<RunnerOption>, at: u64) {
        self.current = option;
        self.number.clear();
        let Some((option, known)) = option.and_then(|option| Some((option, self.at.get_mut(option as usize)?))) else {
            return;
        };
        if known.replace(at).is_some() {
            self.doubled = Some(option);
        }
    }

    /// A byte between strings; of a number, it matters.
    pub(super) fn digit(&mut self, byte: u8) {
        let of_number = byte.is_ascii_digit() || b"+-.eE".contains(&byte);
        if of_number && self.current == Some(RunnerOption::NumCtx) && self.number.len() <= MAX_NUMBER {
            self.number.push(char::from(byte));
        }
    }

    /// The value turned out to be a number.
    pub(super) fn number(&mut self) {
        if self.current == Some(RunnerOption::NumCtx) {
            let short = Some(&*self.number).filter(|number| number.len() <= MAX_NUMBER);
            self.context = Some(short.and_then(|number| number.parse().ok()).unwrap_or(f64::INFINITY));
        }
    }

    pub(super) fn at(&self, option: RunnerOption) -> Option<u64> {
        self.at.get(option as usize).copied().flatten()
    }

    pub(super) fn doubled(&self) -> Option<RunnerOption> {
        self.doubled
    }

    pub(super) fn context(&self) -> Option<f64> {
        self.context
    }
}
