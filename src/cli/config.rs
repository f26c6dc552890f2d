//! `ollana config`.

use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::output::{Table, columns, print, shown};
use super::{Failure, Place, block_on, source_text};
use crate::config::{Config, ConfigError, ETC_CONFIG, File, Hours, Key, Layer, Settings};
use crate::control::{Client, ClientError, StatusView, quoted};

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
    let writes = matches!(args.action, Action::Set { .. } | Action::Unset { .. });
    let (path, named_by) = target(place, writes)?;
    match args.action {
        Action::Show => show(&place.reading(path, named_by)),
        Action::Get { key } => get(&key, &place.reading(path, named_by)),
        Action::Set { key, values } => set(&key, &values, &file(&path)?, place),
        Action::Unset { key } => unset(&key, &file(&path)?),
        Action::Path => print(&format!("{}\n", path.display())),
    }
}

fn show(place: &Place) -> Result<(), Failure> {
    let settings = place.settings(Layer::default())?;
    let config = Config::from_settings(&settings, &place.environment)?;
    let mut table = Table::new(&["KEY", "VALUE", "FROM", "VARIABLE", "WHAT"]);
    let mut narrow = String::new();
    for key in Key::ALL {
        let from = settings.raw(key).map_or("default".to_owned(), |raw| source_text(&raw.source));
        let value = value_text(key, &settings, &config);
        narrow += &shown(&format!("{} = {value}  ({from})", key.name()));
        narrow += &format!("\n    {}; {}\n", key.about(), key.variable());
        table.row([key.name().to_owned(), value, from, key.variable(), key.about().to_owned()]);
    }
    let wide = table.render();
    let fits = columns().is_none_or(|columns| wide.lines().all(|line| line.chars().count() <= columns));
    print(if fits { &wide } else { &narrow })
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

/// The file to show or change, which need not be there yet: the one that the running node reads, if one runs, since a
/// service reads another than the user who types this, with `sudo` or without. And the user whose node names it, if that
/// is another's.
fn target(place: &Place, writes: bool) -> Result<(PathBuf, Option<u32>), Failure> {
    let (own, named) = place.config_path()?;
    match running(place)? {
        // By this user's name for it: a link of another user's may lead elsewhere by the time that the file is written.
        Running::Reads { file, .. } if same(&file, &own) => Ok((own, None)),
        Running::Reads { file, .. } if named => {
            note(&format!("the running node reads {}, not {}", file.display(), own.display()));
            Ok((own, None))
        }
        // Another user's node must not choose the file that root writes, except the one that is meant for it.
        Running::Reads { file, user: Some(_) } if writes && file != Path::new(ETC_CONFIG) => {
            Err(Failure::new(format!(
                "the running node reads {}, not {}; name the file to change: --config {}",
                file.display(),
                own.display(),
                quoted(&file)
            )))
        }
        Running::Reads { file, user } => Ok((file, user)),
        Running::Denied(socket) if writes => {
            let dir = socket.parent().unwrap_or(&socket).display();
            note(&format!("the node of another user, in {dir}, may read another file; `sudo` changes that one"));
            Ok((own, None))
        }
        Running::Other(dir) if writes => {
            note(&format!("a node of another user runs in {} and does not read this file", dir.display()));
            Ok((own, None))
        }
        Running::Denied(_) | Running::Other(_) | Running::None => Ok((own, None)),
    }
}

fn file(path: &Path) -> Result<File, Failure> {
    Ok(File::read_if_there(path).map_err(ConfigError::from)?.unwrap_or_else(|| File::empty(path)))
}

/// The node whose configuration a person probably means.
enum Running {
    None,
    /// It says which file it reads; `user` is whom it runs as, if that is another.
    Reads {
        file: PathBuf,
        user: Option<u32>,
    },
    /// It belongs to another user.
    Denied(PathBuf),
    /// None of this user's, but one of another user's.
    Other(PathBuf),
}

fn running(place: &Place) -> Result<Running, Failure> {
    let dirs = place.state_dirs_leniently()?;
    block_on(async {
        let client = match Client::find(&dirs).await {
            Ok(client) => client,
            Err(ClientError::Denied(socket)) => return Ok(Running::Denied(socket)),
            Err(ClientError::NotRunning(searched)) => {
                return Ok(searched.others.into_iter().next().map_or(Running::None, Running::Other));
            }
            Err(_) => return Ok(Running::None),
        };
        // A node that is just stopping, or is of an older version, says nothing.
        let status = client.get::<StatusView>("/status").await.ok();
        Ok(match status.and_then(|status| status.info.config) {
            Some(file) => Running::Reads { file, user: client.other_user() },
            None => Running::None,
        })
    })
}

fn same(a: &Path, b: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(a) == real(b)
}

fn note(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "note: {}", shown(text));
}

fn set(key: &str, values: &[String], before: &File, place: &Place) -> Result<(), Failure> {
    let key: Key = key.parse().map_err(Failure::usage)?;
    if values.len() > 1 && !key.is_list() {
        return Err(Failure::usage(format!("{} takes one value, not {}", key.name(), values.len())));
    }
    let hours;
    let values = match key {
        // Typed without quotes, days and times are arguments of their own.
        Key::LendHours => match values.join(" ").parse::<Hours>() {
            Ok(parsed) => {
                hours = parsed.entries();
                &hours
            }
            Err(_) => values,
        },
        _ => values,
    };
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

fn unset(key: &str, file: &File) -> Result<(), Failure> {
    let key: Key = key.parse().map_err(Failure::usage)?;
    match file.without(key).map_err(ConfigError::from)? {
        Some(changed) => {
            changed.write().map_err(ConfigError::from)?;
            let default = match key.default_text() {
                "" => String::new(),
                text => format!(" {text}"),
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
