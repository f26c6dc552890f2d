//! `ollana config`.

use clap::Subcommand;

use super::output::{Table, print};
use super::{Failure, Place, source_text};
use crate::config::{Config, ConfigError, File, Key, Layer, Settings};

const EXAMPLES: &str = "\
Examples:
  ollana config show                       every key, its value, and where that comes from
  ollana config set ollama http://127.0.0.1:11500
  ollana config set peer gpu1 10.0.0.7:11435
  ollana config set trust.inbound paired
  ollana config unset peer

A change takes effect at the next start of the node. Comments in the file stay.";

/// Flags of `config`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every key, its value, and where that comes from
    Show,
    /// Print the value of a key as it is in effect
    Get {
        /// Which key, such as listen or trust.inbound
        key: String,
    },
    /// Write a value to the file
    Set {
        /// Which key
        key: String,
        /// The value; a list takes several
        #[arg(required = true, allow_hyphen_values = true)]
        values: Vec<String>,
    },
    /// Take a key out of the file
    Unset {
        /// Which key
        key: String,
    },
    /// Print where the file is
    Path,
}

/// Shows or changes the configuration.
pub(super) fn run(args: Args, place: &Place) -> Result<(), Failure> {
    match args.action {
        Action::Show => show(place),
        Action::Get { key } => get(&key, place),
        Action::Set { key, values } => set(&key, &values, place),
        Action::Unset { key } => unset(&key, place),
        Action::Path => print(&format!("{}\n", place.config_path()?.0.display())),
    }
}

fn show(place: &Place) -> Result<(), Failure> {
    let settings = place.settings(Layer::default())?;
    let config = Config::from_settings(&settings, &place.environment)?;
    let mut table = Table::new(&["KEY", "VALUE", "FROM", "VARIABLE", "WHAT"]);
    for key in Key::ALL {
        let from = settings.raw(key).map_or("default".to_owned(), |raw| source_text(&raw.source));
        let value = value_text(key, &settings, &config);
        table.row([key.name().to_owned(), value, from, key.variable(), key.about().to_owned()]);
    }
    print(&table.render())
}

fn get(key: &str, place: &Place) -> Result<(), Failure> {
    let key: Key = key.parse().map_err(Failure::usage)?;
    let settings = place.settings(Layer::default())?;
    let config = Config::from_settings(&settings, &place.environment)?;
    print(&format!("{}\n", value_text(key, &settings, &config)))
}

/// What was said of a key, else what the default comes to on this machine.
fn value_text(key: Key, settings: &Settings, config: &Config) -> String {
    match (settings.raw(key), key) {
        (Some(raw), _) => raw.values.join(","),
        (None, Key::Name) => config.name.to_string(),
        (None, Key::StateDir) => config.state_dir.display().to_string(),
        (None, Key::Ollama) => config.ollama.url.to_string(),
        (None, key) => key.default_text().to_owned(),
    }
}

/// The file that is going to be changed, which need not be there yet.
fn file(place: &Place) -> Result<File, Failure> {
    let (path, _) = place.config_path()?;
    Ok(File::read_if_there(&path).map_err(ConfigError::from)?.unwrap_or_else(|| File::empty(&path)))
}

fn set(key: &str, values: &[String], place: &Place) -> Result<(), Failure> {
    let key: Key = key.parse().map_err(Failure::usage)?;
    if values.len() > 1 && !key.is_list() {
        return Err(Failure::usage(format!("{} takes one value, not {}", key.name(), values.len())));
    }
    let before = file(place)?;
    let file = before.with(key, values).map_err(ConfigError::from)?;
    // A slip elsewhere in the file is for another day; one in this value is not written.
    let settings = Settings::gather(&Layer::default(), &place.environment.only_paths(), Some(&file))?;
    match Config::from_settings(&settings, &place.environment) {
        Err(ConfigError::Value { key: wrong, problem, .. }) if wrong == key => {
            return Err(Failure::usage(format!("{} {}: {problem}", key.name(), values.join(","))));
        }
        _ => {}
    }
    if before.same_value(&file, key) {
        return print(&format!("unchanged: {} = {} in {}\n", key.name(), values.join(","), file.path().display()));
    }
    file.write().map_err(ConfigError::from)?;
    print(&format!(
        "{} = {} in {}; in effect from the next start of the node\n",
        key.name(),
        values.join(","),
        file.path().display()
    ))
}

fn unset(key: &str, place: &Place) -> Result<(), Failure> {
    let key: Key = key.parse().map_err(Failure::usage)?;
    let file = file(place)?;
    match file.without(key).map_err(ConfigError::from)? {
        Some(changed) => {
            changed.write().map_err(ConfigError::from)?;
            let default = match key.default_text() {
                "" => String::new(),
                text => format!(" ({text})"),
            };
            print(&format!(
                "{} removed from {}; default{default} from the next start of the node\n",
                key.name(),
                changed.path().display()
            ))
        }
        None => print(&format!("unchanged: {} is not set in {}\n", key.name(), file.path().display())),
    }
}


