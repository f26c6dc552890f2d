//! The settings by name.

use std::str::FromStr;

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
    LendParallel,
    LendMaxLoaded,
    LendReserve,
    LendQueue,
    LendWeights,
    LendHours,
    LendIdle,
    BalancePreferLocal,
    BalanceMaxWait,
    BalanceWaiting,
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
    /// A number, whole or not.
    Number,
    /// Several texts; in an environment variable and in `config set` separated by commas.
    List,
    /// A number for each of several names: a table in the file, elsewhere `name=number` separated by commas.
    Map,
}

// === impl Key ===

impl Key {
    /// All of them, in the order they are shown.
    pub const ALL: [Self; 30] = [
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
        Self::LendParallel,
        Self::LendMaxLoaded,
        Self::LendReserve,
        Self::LendQueue,
        Self::LendWeights,
        Self::LendHours,
        Self::LendIdle,
        Self::BalancePreferLocal,
        Self::BalanceMaxWait,
        Self::BalanceWaiting,
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
            Self::LendParallel => "lend.parallel",
            Self::LendMaxLoaded => "lend.max_loaded",
            Self::LendReserve => "lend.reserve",
            Self::LendQueue => "lend.queue",
            Self::LendWeights => "lend.weights",
            Self::LendHours => "lend.hours",
            Self::LendIdle => "lend.idle",
            Self::BalancePreferLocal => "balance.prefer_local",
            Self::BalanceMaxWait => "balance.max_wait",
            Self::BalanceWaiting => "balance.waiting",
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
            Self::Name => "name of this node",
            Self::Mode => "auto, client (use only) or server (share only)",
            Self::Listen => "HTTP address for applications",
            Self::ListenOpen => "allow a listener beyond loopback",
            Self::Ollama => "URL of the local Ollama",
            Self::Mesh => "UDP address for other nodes",
            Self::Discovery => "find other nodes by multicast",
            Self::Peer => "nodes that multicast does not reach",
            Self::Status => "address of the status page, or off",
            Self::StateDir => "directory of key, trust book, socket and log",
            Self::LogFormat => "text or json",
            Self::Daemon => "run in the background",
            Self::Drain => "time for running answers to finish at a stop",
            Self::Origins => "allowed web origins, besides Ollama's own",
            Self::LendPush => "let peers with scope manage push, signed as you",
            Self::LendMaxContext => "longest context for peers, in tokens; 0: ignore theirs",
            Self::LendParallel => "requests per model that the Ollama runs at a time",
            Self::LendMaxLoaded => "models that the Ollama keeps in memory at a time",
            Self::LendReserve => "slots of each model reserved for you",
            Self::LendQueue => "requests of peers that may wait here for a slot",
            Self::LendWeights => "share of the queue by peer: gpu1=2,ID=0.5",
            Self::LendHours => "when to share: Mon-Fri 18:00-08:00, Sat-Sun",
            Self::LendIdle => "share only while the machine is unused for this long",
            Self::BalancePreferLocal => "how many times faster another node must be",
            Self::BalanceMaxWait => "longest expected wait for a slot",
            Self::BalanceWaiting => "your requests that may wait for a slot at once",
            Self::TrustInbound => "who may use this Ollama: first-use or paired",
            Self::TrustOutbound => "whose Ollama is used: first-use or paired",
            Self::TrustFirstUseWindow => "how long new providers are used without asking",
            Self::InvitationFile => "file with an invitation, or - for standard input",
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
            Self::LendParallel | Self::LendMaxLoaded => "(detected)",
            Self::LendReserve => "0",
            Self::LendQueue => "4096",
            Self::LendWeights => "(1 for everyone)",
            Self::LendHours => "(always)",
            Self::LendIdle => "(used or not)",
            Self::BalancePreferLocal => "1.2",
            Self::BalanceMaxWait => "(no bound)",
            Self::BalanceWaiting => "1024",
            Self::TrustInbound | Self::TrustOutbound => "first-use",
            Self::TrustFirstUseWindow => "24h",
        }
    }

    /// What kind of value it takes.
    pub(super) const fn shape(self) -> Shape {
        match self {
            Self::ListenOpen | Self::Discovery | Self::Daemon | Self::LendPush => Shape::Boolean,
            Self::Peer | Self::Origins | Self::LendHours => Shape::List,
            Self::LendParallel
            | Self::LendMaxLoaded
            | Self::LendReserve
            | Self::LendQueue
            | Self::BalancePreferLocal
            | Self::BalanceWaiting => Shape::Number,
            Self::LendWeights => Shape::Map,
            _ => Shape::Text,
        }
    }

    /// Whether it takes several values.
    pub const fn is_list(self) -> bool {
        matches!(self.shape(), Shape::List | Shape::Map)
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
