//! The settings by name, and the layers they come from.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use super::{ConfigError, Environment, File};

/// One setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "`about` says it, once for the code and for people")]
pub enum Key {
    Name,
    Mode,
    Listen,
    ListenOpen,
    Ollama,
    Mesh,
    Discovery,
    Peer,
    Status,
    StateDir,
    LogFormat,
    Daemon,
    Drain,
    Origins,
    LendPush,
    LendMaxContext,
    TrustInbound,
    TrustOutbound,
    TrustFirstUseWindow,
    InvitationFile,
}

/// What kind of value a key takes, and so how it is written to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A text.
    Text,
    /// `true` or `false`.
    Boolean,
    /// Several texts; in an environment variable and in `config set` separated by commas.
    List,
}

// === impl Key ===

impl Key {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 20] = [
        Self::Name,
        Self::Mode,
        Self::Listen,
        Self::ListenOpen,
        Self::Ollama,
        Self::Mesh,
        Self::Discovery,
        Self::Peer,
        Self::Status,
        Self::StateDir,
        Self::LogFormat,
        Self::Daemon,
        Self::Drain,
        Self::Origins,
        Self::LendPush,
        Self::LendMaxContext,
        Self::TrustInbound,
        Self::TrustOutbound,
        Self::TrustFirstUseWindow,
        Self::InvitationFile,
    ];

    /// Its name in `config.toml`: the flag's, with `_` for `-`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Mode => "mode",
            Self::Listen => "listen",
            Self::ListenOpen => "listen_open",
            Self::Ollama => "ollama",
            Self::Mesh => "mesh",
            Self::Discovery => "discovery",
            Self::Peer => "peer",
            Self::Status => "status",
            Self::StateDir => "state_dir",
            Self::LogFormat => "log_format",
            Self::Daemon => "daemon",
            Self::Drain => "drain",
            Self::Origins => "origins",
            Self::LendPush => "lend.push",
            Self::LendMaxContext => "lend.max_context",
            Self::TrustInbound => "trust.inbound",
            Self::TrustOutbound => "trust.outbound",
            Self::TrustFirstUseWindow => "trust.first_use_window",
            Self::InvitationFile => "invitation_file",
        }
    }

    /// Its environment variable. The origins are Ollama's own, and mean here what they mean there.
    pub fn variable(self) -> String {
        match self {
            Self::Origins => "OLLAMA_ORIGINS".to_owned(),
            key => format!("OLLANA_{}", key.name().replace('.', "_").to_ascii_uppercase()),
        }
    }

    /// What it is for, in a line.
    pub const fn about(self) -> &'static str {
        match self {
            Self::Name => "what people call this node",
            Self::Mode => "auto, client (lends nothing) or server (no listener)",
            Self::Listen => "where applications find it",
            Self::ListenOpen => "allow a listener beyond loopback",
            Self::Ollama => "where the local Ollama is",
            Self::Mesh => "UDP address for other nodes",
            Self::Discovery => "find other nodes by multicast",
            Self::Peer => "addresses to dial where multicast does not reach",
            Self::Status => "where the status page is, or off",
            Self::StateDir => "where key, trust book, socket and log are",
            Self::LogFormat => "text or json",
            Self::Daemon => "go on in the background",
            Self::Drain => "how long running answers may take to end at a stop",
            Self::Origins => "web origins let in beside Ollama's own",
            Self::LendPush => "let peers with scope manage push, signed as you",
            Self::LendMaxContext => "longest context that peers may ask for, in tokens; 0: theirs does not count",
            Self::TrustInbound => "who may use this Ollama: first-use or paired",
            Self::TrustOutbound => "whose Ollama is used: first-use or paired",
            Self::TrustFirstUseWindow => "how long new providers are used as they are met",
            Self::InvitationFile => "an invitation to redeem, or - for standard input",
        }
    }

    /// What it is when nobody says anything, as text for people.
    pub const fn default_text(self) -> &'static str {
        match self {
            Self::Name => "(the host name)",
            Self::Mode => "auto",
            Self::Listen => "127.0.0.1:11434",
            Self::ListenOpen | Self::Daemon | Self::LendPush => "false",
            Self::Ollama => "(OLLAMA_HOST, else http://127.0.0.1:11434)",
            Self::Mesh => "[::]:11435",
            Self::LendMaxContext => "(as long as the model's)",
            Self::Discovery => "true",
            Self::Peer | Self::Origins | Self::InvitationFile => "",
            Self::Status => "127.0.0.1:11437",
            Self::StateDir => "(the user's data directory)",
            Self::LogFormat => "text",
            Self::Drain => "30s",
            Self::TrustInbound | Self::TrustOutbound => "first-use",
            Self::TrustFirstUseWindow => "24h",
        }
    }

    /// What kind of value it takes.
    pub(super) const fn shape(self) -> Shape {
        match self {
            Self::ListenOpen | Self::Discovery | Self::Daemon | Self::LendPush => Shape::Boolean,
            Self::Peer | Self::Origins => Shape::List,
            _ => Shape::Text,
        }
    }

    /// Whether it takes several values.
    pub const fn is_list(self) -> bool {
        matches!(self.shape(), Shape::List)
    }

    /// The key that a misspelt one was probably meant to be.
    pub fn nearest(text: &str) -> Option<Self> {
        let text = text.replace('-', "_").to_ascii_lowercase();
        let (distance, key) = Self::ALL.iter().map(|key| (distance(&text, key.name()), *key)).min()?;
        // More than a third of it wrong is not a slip any more but another word.
        (distance <= key.name().len() / 3 + 1).then_some(key)
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wanted = text.replace('-', "_");
        Self::ALL.into_iter().find(|key| key.name() == wanted).ok_or_else(|| match Self::nearest(text) {
            Some(near) => format!("there is no key {text:?}; did you mean {:?}?", near.name()),
            None => format!("there is no key {text:?}; `ollana config show` lists them"),
        })
    }
}

/// Levenshtein's distance in bytes; keys are ASCII and short.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = i;
        let mut left = i + 1;
        for (y, cell) in b.bytes().zip(row.iter_mut().skip(1)) {
            let best = (corner + usize::from(x != y)).min(left + 1).min(*cell + 1);
            corner = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

/// What one layer says: the flags of `serve`, before anything is parsed.
#[derive(Debug, Clone, Default)]
pub struct Layer(BTreeMap<Key, Vec<String>>);

impl Layer {
    /// Adds a value, if there is one.
    pub fn set(&mut self, key: Key, value: Option<impl Into<String>>) {
        if let Some(value) = value {
            self.0.insert(key, vec![value.into()]);
        }
    }

    /// Adds a switch, if it was given.
    pub fn switch(&mut self, key: Key, on: bool) {
        self.set(key, on.then_some("true"));
    }

    /// Adds a list, if anything is in it.
    pub fn list(&mut self, key: Key, values: Vec<String>) {
        if !values.is_empty() {
            self.0.insert(key, values);
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// The environment variable of this name.
    Variable(String),
    /// The file, at a line counted from 1.
    File {
        /// Which file.
        path: PathBuf,
        /// Which line of it.
        line: usize,
    },
}

/// A value as it was given.
#[derive(Debug, Clone)]
pub struct Raw {
    /// One text, or a list's several.
    pub values: Vec<String>,
    /// Where it was given.
    pub source: Source,
}

impl Raw {
    /// The one text of a setting that is no list.
    pub fn text(&self) -> &str {
        self.values.first().map_or("", String::as_str)
    }

    pub(super) fn error(&self, key: Key, problem: String) -> ConfigError {
        let text = self.values.join(",");
        let place = match &self.source {
            Source::Flag => format!("--{} {text}", key.name().replace('_', "-")),
            Source::Variable(name) => format!("{name}={text}"),
            Source::File { path, line } => format!("{}:{line}: {} = {text:?}", path.display(), key.name()),
        };
        ConfigError::Value { key, flag: self.source == Source::Flag, place, problem }
    }
}

/// Every setting that somebody made, from the topmost layer that has it.
#[derive(Debug, Clone, Default)]
pub struct Settings(BTreeMap<Key, Raw>);

impl Settings {
    /// Lays flags over variables over the file.
    ///
    /// # Errors
    /// If a variable is not text.
    pub fn gather(flags: &Layer, environment: &Environment, file: Option<&File>) -> Result<Self, ConfigError> {
        let mut settings = BTreeMap::new();
        for key in Key::ALL {
            let variable = key.variable();
            let raw = if let Some(values) = flags.0.get(&key) {
                Some(Raw { values: values.clone(), source: Source::Flag })
            } else if let Some(text) = environment.text(&variable)? {
                let values = if key.shape() == Shape::List { split(&text) } else { vec![text] };
                Some(Raw { values, source: Source::Variable(variable) })
            } else {
                file.and_then(|file| file.value(key))
            };
            if let Some(raw) = raw {
                settings.insert(key, raw);
            }
        }
        Ok(Self(settings))
    }

    /// What was said of a key, if anything.
    pub fn raw(&self, key: Key) -> Option<&Raw> {
        self.0.get(&key)
    }

    pub(super) fn parse<T>(
        &self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        self.raw(key).map(|raw| parse(raw.text()).map_err(|problem| raw.error(key, problem))).transpose()
    }

    pub(super) fn parse_list<T>(
        &self,
        key: Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some(raw) = self.raw(key) else { return Ok(Vec::new()) };
        raw.values.iter().map(|text| parse(text).map_err(|problem| raw.error(key, problem))).collect()
    }
}

/// A list in one text: separated by commas, spaces around an entry do not belong to it.
pub(super) fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}
