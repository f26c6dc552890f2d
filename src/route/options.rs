//! The fields of a request that decide how an Ollama loads its model. One that asks for it otherwise than the model was
//! loaded makes Ollama load it anew, and everybody waits (`needsReload` in its `server/sched.go`).
//!
//! Read from `Options` and `Runner` in `api/types.go`, and from `needsReload`, of Ollama 0.1.20, 0.3.14, 0.5.7, 0.9.6, 0.24.0,
//! 0.30.0, 0.32.15 and 0.33.0-rc2. `tests/real` compares with the source of another one that is at hand.

/// The effect of an entry of a request's `options`. `options` is a map to Go: its keys are matched exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It is one answer's own: how a token is chosen, or when to stop.
    Answer,
    /// `num_ctx`: how much of a conversation the model sees. The model is loaded anew for it, and the answer depends on it.
    Context,
    /// The model is loaded anew for it.
    Load,
}

/// The newest version that the table was read from: major and minor.
pub const NEWEST: (u32, u32) = (0, 33);

/// All options that are known. One that is not here may load a model anew in some version.
pub const OPTIONS: &[(&str, Effect)] = &[
    ("num_ctx", Effect::Context),
    ("num_batch", Effect::Load),
    ("num_gpu", Effect::Load),
    ("main_gpu", Effect::Load),
    ("use_mmap", Effect::Load),
    ("num_thread", Effect::Load),
    // Since 0.30.
    ("draft_num_predict", Effect::Load),
    ("num_keep", Effect::Answer),
    ("seed", Effect::Answer),
    ("num_predict", Effect::Answer),
    ("top_k", Effect::Answer),
    ("top_p", Effect::Answer),
    ("min_p", Effect::Answer),
    ("typical_p", Effect::Answer),
    ("repeat_last_n", Effect::Answer),
    ("temperature", Effect::Answer),
    ("repeat_penalty", Effect::Answer),
    ("presence_penalty", Effect::Answer),
    ("frequency_penalty", Effect::Answer),
    ("stop", Effect::Answer),
    // Until 0.9.
    ("mirostat", Effect::Answer),
    ("mirostat_tau", Effect::Answer),
    ("mirostat_eta", Effect::Answer),
    // Until 0.5.
    ("penalize_newline", Effect::Answer),
    ("tfs_z", Effect::Answer),
];

/// Keys of the top level for which a model is loaded anew, since 0.30. Go matches them without case.
pub const LOADING_KEYS: &[&str] = &["shift"];

/// Whether an Ollama of this version may load a model anew for what the table does not know.
pub fn is_newer(version: &str) -> bool {
    let mut numbers = version.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) > NEWEST,
        // Of a build of one's own, which says no number, nothing is known.
        _ => false,
    }
}

/// The option of this name, and where it stands in the table.
pub(super) fn option(name: &str) -> Option<(usize, Effect)> {
    OPTIONS.iter().enumerate().find(|(_, (known, _))| *known == name).map(|(at, (_, effect))| (at, *effect))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_newer_by_its_numbers() {
        for (version, newer) in [
            ("0.24.0", false),
            ("0.33.9-rc2", false),
            ("0.34.0-rc0", true),
            ("0.100.0", true),
            ("1.0", true),
            ("0.0.0", false),
            ("main", false),
            ("", false),
        ] {
            assert_eq!(is_newer(version), newer, "{version}");
        }
    }

    #[test]
    fn no_name_ends_in_a_letter_that_go_folds_from_another() {
        // See `Kept::spoiled`: a byte is put in the place of the last one.
        for name in LOADING_KEYS.iter().chain(&["keep_alive"]) {
            assert!(!name.ends_with(['s', 'k']) && name.is_ascii(), "{name}");
        }
        assert!(OPTIONS.iter().all(|(name, _)| name.is_ascii()));
    }
}
