//! `ollana trust export` and `ollana trust import`.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::super::output::print;
use super::{Access, Failure, Place, block_on, open};
use crate::control::ImportRequest;
use crate::trust::{Imported, List};

/// As much as the trust book itself may be.
const MAX_LIST: u64 = 8 * 1024 * 1024;

/// What to do with a list.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Print the list of trusted and revoked peers, for other nodes
    Export,
    /// Import such a list; keys that are revoked here stay revoked
    Import {
        /// The list, or - for standard input
        file: PathBuf,
        /// Stop trusting peers that the list does not name
        #[arg(long)]
        replace: bool,
    },
}

/// Exports or imports.
pub(super) fn run(command: Command, place: &Place) -> Result<(), Failure> {
    let failed = |error: &dyn std::error::Error| Failure::new(error.to_string());
    block_on(async {
        match command {
            Command::Export => {
                let list: List = match open(place).await? {
                    Access::Node(client) => client.get("/trusted").await?,
                    Access::File { book, .. } => book.export(),
                };
                print(&list.to_text().map_err(|error| failed(&error))?)
            }
            Command::Import { file, replace } => {
                let text = read(&file)?;
                let list = List::parse(&text).map_err(|error| failed(&error))?;
                let imported = match open(place).await? {
                    Access::Node(client) => client.post("/import", &ImportRequest { list, replace }).await?,
                    // Its own ID in the list is a key like any other to a node that does not run; it never meets itself.
                    Access::File { book, .. } => {
                        book.import(list, None, replace).await.map_err(|error| failed(&error))?
                    }
                };
                print(&describe(&imported))
            }
        }
    })
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = match path.to_str() {
        Some("-") => io::stdin().lock().take(MAX_LIST + 1).read_to_string(&mut text),
        _ => File::open(path).and_then(|file| file.take(MAX_LIST + 1).read_to_string(&mut text)),
    };
    read.map_err(|error| Failure::new(format!("cannot read {}: {error}", path.display())))?;
    if text.len() as u64 > MAX_LIST {
        return Err(Failure::new(format!("{} is too long to be a list of trusted peers", path.display())));
    }
    Ok(text)
}

fn describe(imported: &Imported) -> String {
    let Imported { trusted, revoked, unchanged, stay_revoked, dropped } = imported;
    let mut text = format!("{trusted} trusted, {revoked} revoked, {unchanged} unchanged\n");
    if *dropped > 0 {
        text += &format!("{dropped} no longer trusted, since the list does not name them\n");
    }
    if *stay_revoked > 0 {
        text += &format!("note: {stay_revoked} stay revoked here; `ollana trust <ID>` trusts one again\n");
    }
    text
}
