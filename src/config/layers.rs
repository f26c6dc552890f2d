//! The layers that settings come from: flags over variables over the file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{ConfigError, Environment, File, Key};

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
                let values = if key.is_list() { split(&text) } else { vec![text] };
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

    /// For a list whose entries are read together. A text in the file that holds several is taken apart, as elsewhere.
    pub(super) fn parse_all<T>(
        &self,
        key: Key,
        parse: impl FnOnce(&[String]) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(raw) = self.raw(key) else { return Ok(None) };
        let entries: Vec<String> = raw.values.iter().flat_map(|text| split(text)).collect();
        parse(&entries).map(Some).map_err(|problem| raw.error(key, problem))
    }
}

/// A list in one text: separated by commas, spaces around an entry do not belong to it.
pub(super) fn split(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(str::to_owned).collect()
}
