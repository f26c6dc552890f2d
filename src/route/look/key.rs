//! The keys that matter, and how Go matches them.

use crate::route::options::LOADING_KEYS;

/// The keys of the top level that decide what a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// `model`
    Model,
    /// `name`: the model, where `model` is absent or empty.
    Name,
    /// `keep_alive`
    KeepAlive,
    /// `options`
    Options,
    /// `tools`
    Tools,
    /// `from`: what a model is created from.
    From,
    /// `source`: what a model is copied from.
    Source,
    /// `prompt`
    Prompt,
    /// `messages`
    Messages,
    /// `remote_host`: where a model that is created runs.
    RemoteHost,
    /// One of [`LOADING_KEYS`].
    Loading,
}

// === impl Key ===

impl Key {
    /// All of them.
    pub(super) const ALL: [Self; 11] = [
        Self::Model,
        Self::Name,
        Self::KeepAlive,
        Self::Options,
        Self::Tools,
        Self::From,
        Self::Source,
        Self::Prompt,
        Self::Messages,
        Self::RemoteHost,
        Self::Loading,
    ];

    /// As it is usually written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Name => "name",
            Self::KeepAlive => "keep_alive",
            Self::Options => "options",
            Self::Tools => "tools",
            Self::From => "from",
            Self::Source => "source",
            Self::Prompt => "prompt",
            Self::Messages => "messages",
            Self::RemoteHost => "remote_host",
            Self::Loading => "shift",
        }
    }

    /// Whether it must not come twice, since it decides what is run or for how long it stays.
    pub(super) const fn is_single(self) -> bool {
        matches!(self, Self::Model | Self::Name | Self::KeepAlive | Self::Options | Self::Tools)
    }

    /// The one that Go would take this text for.
    pub(super) fn matching(key: &str) -> Option<Self> {
        // Keys of at most eleven characters, of at most three bytes each.
        if key.len() > 33 {
            return None;
        }
        let key = folded(key);
        if LOADING_KEYS.contains(&&*key) {
            return Some(Self::Loading);
        }
        Self::ALL.into_iter().find(|k| k.as_str() == key)
    }
}

/// A key as `encoding/json` compares it: simple case folding, by which the long s is an s and the kelvin sign a k.
pub(super) fn folded(key: &str) -> String {
    key.chars()
        .map(|c| match c {
            '\u{17f}' => 's',
            '\u{212a}' => 'k',
            c => c.to_ascii_lowercase(),
        })
        .collect()
}
