//! The file's form.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{DigestsError, Entry, Holder, Kept, MAX, MAX_DIGEST, MAX_HOLDERS, MAX_NAME};
use crate::private_file::{self, FileError};
use crate::route::ModelName;

/// A larger file is none of ours: 1024 names, each with less than 2 KB.
const LIMIT: u64 = 2 * 1024 * 1024;
/// Raised when an older ollana would misread the file.
const VERSION: u32 = 1;
const HEAD: &str =
    "# Which weights each model's name stands for on this node. `ollana models --keep NAME@PEER` changes it.\n";

/// Where the digests are written.
#[derive(Debug)]
pub(super) struct Store {
    path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u32,
    #[serde(default, rename = "model")]
    models: Vec<Model>,
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Model {
    /// In full, as Ollama compares names.
    name: String,
    digest: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    chosen: bool,
    /// In seconds since 1970.
    used: u64,
    from: Vec<Holder>,
}

// === impl Store ===

impl Store {
    pub(super) fn open(path: &Path) -> Result<(Self, HashMap<ModelName, Entry>), DigestsError> {
        let store = Self { path: path.to_owned() };
        let content = match private_file::read(path, LIMIT) {
            Ok(None) => return Ok((store, HashMap::new())),
            Ok(Some(content)) => content,
            Err(FileError::TooLarge { .. }) => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let text = String::from_utf8_lossy(&content);
        if let Ok(Version { version }) = toml::from_str(&text)
            && version > VERSION
        {
            return Err(DigestsError::Newer { path: path.to_owned(), version });
        }
        match toml::from_str::<Document>(&text) {
            Ok(document) => Ok((store, document.models.into_iter().filter_map(Model::entry).take(MAX).collect())),
            Err(error) => {
                store.put_aside(error.message())?;
                Ok((store, HashMap::new()))
            }
        }
    }

    /// Keeps a damaged file for whoever wants to mend it.
    fn put_aside(&self, reason: &str) -> Result<(), DigestsError> {
        let mut aside = self.path.clone().into_os_string();
        aside.push(".damaged");
        let aside = PathBuf::from(aside);
        std::fs::rename(&self.path, &aside)
            .map_err(|source| DigestsError::Stuck { path: self.path.clone(), source })?;
        tracing::error!(
            "{} is damaged ({reason}) and now called {}: which weights a model's name stands for is decided anew by what \
             is used first, where servers differ",
            self.path.display(),
            aside.display()
        );
        Ok(())
    }

    pub(super) fn write(&self, entries: &HashMap<ModelName, Entry>) -> Result<(), FileError> {
        let by_name: BTreeMap<&ModelName, &Entry> = entries.iter().filter(|(_, entry)| entry.answered).collect();
        let models = by_name.into_iter().map(|(name, entry)| Model {
            name: name.canonical().to_owned(),
            digest: entry.kept.digest.clone(),
            chosen: entry.kept.chosen,
            used: entry.used,
            from: entry.kept.holders.clone(),
        });
        let document = Document { version: VERSION, models: models.collect() };
        // These are texts and numbers: there is nothing in them that TOML could not hold.
        let text = toml::to_string(&document).unwrap_or_default();
        private_file::replace(&self.path, format!("{HEAD}{text}").as_bytes())
    }
}

// === impl Model ===

impl Model {
    fn entry(self) -> Option<(ModelName, Entry)> {
        let Self { name, digest, chosen, used, mut from } = self;
        let fits = name.len() <= MAX_NAME && digest.len() <= MAX_DIGEST && !digest.is_empty() && !from.is_empty();
        from.truncate(MAX_HOLDERS);
        fits.then(|| {
            let kept = Kept { digest, holders: from, chosen };
            (ModelName::new(&name), Entry { kept, answered: true, used })
        })
    }
}
