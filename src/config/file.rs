//! `config.toml`: read with the line of every value, edited with its comments kept.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use toml_edit::{Array, Document, DocumentMut, InlineTable, Item, TableLike, Value, value};

use super::key::Shape;
use super::layers::split;
use super::{ETC_CONFIG, Key, Raw, Source};

/// Most bytes of a configuration file: a page of settings and what a person writes about them.
const MAX_FILE: u64 = 1024 * 1024;
/// Permission of everybody to read.
const OTHERS_READ: u32 = 0o004;

/// The settings of one file.
#[derive(Debug, Clone)]
pub struct File {
    path: PathBuf,
    text: String,
    values: BTreeMap<Key, Raw>,
}

// === impl File ===

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, is not TOML, or has a key or a kind of value that does not belong there.
    pub fn read(path: &Path) -> Result<Self, FileError> {
        Self::read_open(path, fs::File::open(path))
    }

    /// Reads a file that a process of another user names, as root does where that user's node runs: nothing that blocks
    /// or is no file, and only what is that user's own or what everybody may read.
    ///
    /// # Errors
    /// As [`File::read`], and for every other file.
    pub fn read_of(path: &Path, user: u32) -> Result<Self, FileError> {
        // Root made it what it is.
        if path == Path::new(ETC_CONFIG) {
            return Self::read(path);
        }
        let open = || -> io::Result<fs::File> {
            let refused = |why| Err(io::Error::other(why));
            // To open a device may do something already.
            if !fs::symlink_metadata(path)?.is_file() {
                return refused(
                    "another user's node names it, and it is a link or no regular file; to read it, name it: --config",
                );
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = fs::File::from(rustix::fs::open(path, flags, Mode::empty())?);
            // Of the open file: the name may lead to another by now.
            let found = file.metadata()?;
            let is_public = found.uid() == 0 && found.mode() & OTHERS_READ != 0;
            match found.is_file() && (found.uid() == user || is_public) {
                true => Ok(file),
                false => refused(
                    "another user's node names it, and it does not belong to that user; to read it, name it: --config",
                ),
            }
        };
        Self::read_open(path, open())
    }

    fn read_open(path: &Path, opened: io::Result<fs::File>) -> Result<Self, FileError> {
        let read = || -> io::Result<String> {
            let mut text = String::new();
            opened?.take(MAX_FILE + 1).read_to_string(&mut text)?;
            match text.len() as u64 > MAX_FILE {
                true => Err(io::Error::other("it has more than 1 MiB and so is no configuration")),
                false => Ok(text),
            }
        };
        let text = read().map_err(|source| FileError::Read { path: path.to_owned(), source })?;
        Self::parse(path, text)
    }

    /// Reads a file, or finds that it is not there.
    ///
    /// # Errors
    /// As [`File::read`].
    pub fn read_if_there(path: &Path) -> Result<Option<Self>, FileError> {
        match Self::read(path) {
            Ok(file) => Ok(Some(file)),
            Err(FileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A file that is not there yet.
    pub fn empty(path: &Path) -> Self {
        Self { path: path.to_owned(), text: String::new(), values: BTreeMap::new() }
    }

    fn parse(path: &Path, text: String) -> Result<Self, FileError> {
        let mut reader = Reader { path, text: &text, values: BTreeMap::new() };
        let document = Document::parse(text.as_str()).map_err(|error| {
            reader.error(error.span(), error.message().lines().next().unwrap_or_default().to_owned())
        })?;
        reader.table(document.as_table(), "")?;
        let values = reader.values;
        Ok(Self { path: path.to_owned(), values, text })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn value(&self, key: Key) -> Option<Raw> {
        self.values.get(&key).cloned()
    }

    /// Whether both files give a key the same value.
    pub fn same_value(&self, other: &Self, key: Key) -> bool {
        let values = |file: &Self| file.value(key).map(|raw| raw.values);
        values(self).is_some() && values(self) == values(other)
    }

    /// The file with a setting made or changed; nothing is written yet.
    ///
    /// # Errors
    /// If the file as it stands cannot take it.
    pub fn with(&self, key: Key, values: &[String]) -> Result<Self, FileError> {
        let mut document = self.document()?;
        let (table, leaf) = place(&mut document, key);
        let Some(table) = table else { return Err(self.no_table(key)) };
        let mut new = to_value(key, values);
        if let Some(old) = table.get(leaf).and_then(Item::as_value) {
            *new.decor_mut() = old.decor().clone();
        }
        match table.get_mut(leaf) {
            Some(item) if item.is_value() => *item = Item::Value(new),
            // Nothing, or a section of its own, whose head is no name of a value.
            _ => {
                table.remove(leaf);
                table.insert(leaf, value(new));
            }
        }
        Self::parse(&self.path, document.to_string())
    }

    /// The file without a setting, or nothing if it has none; nothing is written yet.
    ///
    /// # Errors
    /// As [`File::with`].
    pub fn without(&self, key: Key) -> Result<Option<Self>, FileError> {
        if !self.values.contains_key(&key) {
            return Ok(None);
        }
        let mut document = self.document()?;
        let (table, leaf) = place(&mut document, key);
        let Some(table) = table else { return Ok(None) };
        // What stands above the key, a head line of the file perhaps, stays where it is.
        let above = table.key(leaf).and_then(|key| key.leaf_decor().prefix()?.as_str().map(str::to_owned));
        let next = table.iter().skip_while(|(name, _)| *name != leaf).nth(1).map(|(name, _)| name.to_owned());
        table.remove(leaf);
        let above = above.unwrap_or_default();
        match next.as_deref().and_then(|next| table.key_mut(next)) {
            Some(mut next) => {
                let own = next.leaf_decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default().to_owned();
                next.leaf_decor_mut().set_prefix(format!("{above}{own}"));
            }
            None if !above.trim().is_empty() => {
                let own = document.trailing().as_str().unwrap_or_default().to_owned();
                document.set_trailing(format!("{above}{own}"));
            }
            None => {}
        }
        Ok(Some(Self::parse(&self.path, document.to_string())?))
    }

    /// Writes the file in one step: a reader sees the old one or the new one. What a link points to is what changes.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self) -> Result<(), FileError> {
        let write = || -> io::Result<()> {
            let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
            let dir = path.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(dir)?;
            let mut new = tempfile::NamedTempFile::new_in(dir)?;
            new.write_all(self.text.as_bytes())?;
            let mode = fs::metadata(&path).map(|old| old.permissions());
            new.as_file().set_permissions(mode.unwrap_or(std::os::unix::fs::PermissionsExt::from_mode(0o644)))?;
            new.persist(&path)?;
            Ok(())
        };
        write().map_err(|source| FileError::Write { path: self.path.clone(), source })
    }

    fn document(&self) -> Result<DocumentMut, FileError> {
        self.text.parse().map_err(|_| self.no_table(Key::Name))
    }

    fn no_table(&self, key: Key) -> FileError {
        let problem = format!("there is no place for {} in it", key.name());
        FileError::Content { path: self.path.clone(), line: 1, problem }
    }
}

/// The table that holds a key, made if need be, and the key's name in it.
fn place(document: &mut DocumentMut, key: Key) -> (Option<&mut dyn TableLike>, &'static str) {
    match key.name().split_once('.') {
        Some((outer, leaf)) => {
            let item = document.as_table_mut().entry(outer).or_insert_with(toml_edit::table);
            (item.as_table_like_mut(), leaf)
        }
        None => (Some(document.as_table_mut()), key.name()),
    }
}

fn to_value(key: Key, values: &[String]) -> Value {
    let text = values.first().map_or("", String::as_str);
    match key.shape() {
        Shape::Text => text.into(),
        Shape::Boolean => super::value::boolean(text).map_or_else(|_| text.into(), Value::from),
        Shape::Number => number(text),
        Shape::List => values.iter().flat_map(|text| split(text)).collect::<Array>().into(),
        // What makes no table is written as it is, so that who reads it can say what is wrong with it.
        Shape::Map => map(values).map_or_else(|| values.join(",").into(), Value::from),
    }
}

/// A text as the number that it is, if it is one.
fn number(text: &str) -> Value {
    let whole = text.parse::<i64>().map(Value::from);
    whole.or_else(|_| text.parse::<f64>().map(Value::from)).unwrap_or_else(|_| text.into())
}

fn map(values: &[String]) -> Option<InlineTable> {
    let mut table = InlineTable::new();
    for entry in values.iter().flat_map(|text| split(text)) {
        let (name, value) = entry.rsplit_once('=')?;
        if table.insert(name.trim(), number(value.trim())).is_some() {
            return None;
        }
    }
    Some(table)
}

/// Walks a parsed document, and knows the lines.
struct Reader<'a> {
    path: &'a Path,
    text: &'a str,
    values: BTreeMap<Key, Raw>,
}

impl Reader<'_> {
    fn table(&mut self, table: &dyn TableLike, prefix: &str) -> Result<(), FileError> {
        for (name, item) in table.iter() {
            let span = table.key(name).and_then(|key| key.span()).or_else(|| item.span());
            let full = format!("{prefix}{name}");
            let known = Key::ALL.into_iter().find(|key| key.name() == full);
            let inside = format!("{full}.");
            match (known, item.as_table_like()) {
                (Some(key), _) => {
                    let values = texts(key, item).ok_or_else(|| self.error(span.clone(), wrong_kind(key)))?;
                    let source = Source::File { path: self.path.to_owned(), line: self.line(span) };
                    self.values.insert(key, Raw { values, source });
                }
                (None, Some(inner)) if Key::ALL.iter().any(|key| key.name().starts_with(&inside)) => {
                    self.table(inner, &inside)?;
                }
                (None, _) => {
                    let problem = match Key::nearest(&full) {
                        Some(near) => format!("there is no key {full:?}; did you mean {:?}?", near.name()),
                        None => format!("there is no key {full:?}; `ollana config show` lists those there are"),
                    };
                    return Err(self.error(span, problem));
                }
            }
        }
        Ok(())
    }

    fn error(&self, span: Option<std::ops::Range<usize>>, problem: String) -> FileError {
        FileError::Content { path: self.path.to_owned(), line: self.line(span), problem }
    }

    fn line(&self, span: Option<std::ops::Range<usize>>) -> usize {
        let start = span.map_or(0, |span| span.start);
        1 + self.text.bytes().take(start).filter(|byte| *byte == b'\n').count()
    }
}

/// What a value says, as the text that a flag would give.
fn texts(key: Key, item: &Item) -> Option<Vec<String>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.value().clone()),
        Value::Integer(number) => Some(number.value().to_string()),
        Value::Float(number) => Some(number.value().to_string()),
        Value::Boolean(boolean) => Some(boolean.value().to_string()),
        _ => None,
    };
    if let (Shape::Map, Some(table)) = (key.shape(), item.as_table_like()) {
        return table.iter().map(|(name, item)| Some(format!("{name}={}", one(item.as_value()?)?))).collect();
    }
    match item.as_value()? {
        Value::Array(array) if key.shape() == Shape::List => array.iter().map(one).collect(),
        value => one(value).map(|text| vec![text]),
    }
}

fn wrong_kind(key: Key) -> String {
    let wanted = match key.shape() {
        Shape::Text => "a text in quotes",
        Shape::Boolean => "true or false",
        Shape::Number => "a number",
        Shape::List => "a list of texts",
        Shape::Map => "a table of numbers such as { gpu1 = 2 }",
    };
    format!("{} takes {wanted}", key.name())
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What is in it is wrong.
    #[error("{}:{line}: {problem}", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong there.
        problem: String,
    },
}
