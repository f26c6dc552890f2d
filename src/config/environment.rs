//! The environment, taken once, and the directories that follow from it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::ConfigError;

/// Where a system service keeps its file.
pub const ETC_CONFIG: &str = "/etc/ollana/config.toml";
/// Where a system service keeps its state, and so the last place where the command line looks for a socket.
pub const SYSTEM_STATE_DIR: &str = "/var/lib/ollana";

/// The environment variables of a process, or of a test.
#[derive(Debug, Clone, Default)]
pub struct Environment(BTreeMap<OsString, OsString>);

impl Environment {
    /// Those of this process.
    pub fn of_process() -> Self {
        Self(std::env::vars_os().collect())
    }

    /// Without what makes settings: only where things are.
    pub fn only_paths(&self) -> Self {
        let paths = ["HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"];
        Self(
            self.0
                .iter()
                .filter(|(name, _)| paths.iter().any(|path| name == path))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect(),
        )
    }

    /// A variable as text, with the quotes and spaces around it taken off as Ollama takes them off; an empty one is none.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn text(&self, name: &str) -> Result<Option<String>, ConfigError> {
        let Some(value) = self.0.get(OsStr::new(name)) else { return Ok(None) };
        let text = value.to_str().ok_or_else(|| ConfigError::NotText(name.to_owned()))?;
        let text = text.trim().trim_matches(['"', '\'']);
        Ok((!text.is_empty()).then(|| text.to_owned()))
    }

    /// A variable that holds an absolute path. The XDG specification says to ignore the others.
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.0.get(OsStr::new(name)).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    fn home(&self) -> Option<PathBuf> {
        self.path("HOME")
    }

    /// A path as people write it in a file or a variable, where no shell has replaced `~/`.
    pub fn expand(&self, text: &str) -> PathBuf {
        match (text.strip_prefix("~/"), self.home()) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(text),
        }
    }

    /// The state directory if nobody names one: systemd's `$STATE_DIRECTORY` (the first of several), else the user's.
    pub fn state_dir(&self) -> Option<PathBuf> {
        self.systemd_state_dir()
            .or_else(|| Some(self.path("XDG_DATA_HOME")?.join("ollana")))
            .or_else(|| Some(self.home()?.join(".local/share/ollana")))
    }

    /// Where systemd puts the credentials of a service (systemd.exec(5)).
    pub fn credentials(&self) -> Option<PathBuf> {
        self.path("CREDENTIALS_DIRECTORY")
    }

    fn systemd_state_dir(&self) -> Option<PathBuf> {
        let dirs = self.0.get(OsStr::new("STATE_DIRECTORY"))?;
        std::env::split_paths(dirs).next().filter(|dir| dir.is_absolute())
    }

    /// The user's own `config.toml`, whether it is there or not.
    pub fn user_config(&self) -> Option<PathBuf> {
        let dir = self.path("XDG_CONFIG_HOME").or_else(|| Some(self.home()?.join(".config")))?;
        Some(dir.join("ollana/config.toml"))
    }

    /// The file that counts if no flag names one, and whether it must be there.
    ///
    /// # Errors
    /// If `OLLANA_CONFIG` is not UTF-8.
    pub fn config(&self) -> Result<(PathBuf, bool), ConfigError> {
        if let Some(named) = self.text("OLLANA_CONFIG")? {
            return Ok((self.expand(&named), true));
        }
        let etc = Path::new(ETC_CONFIG);
        Ok(match self.user_config() {
            Some(user) if user.exists() || !etc.exists() => (user, false),
            _ => (etc.to_owned(), false),
        })
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}
