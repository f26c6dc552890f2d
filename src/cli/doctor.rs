//! `ollana doctor`: the checks that `serve` makes before it starts, and what else goes wrong most, each with what to do.

mod machine;
mod node;
mod peers;

use serde::Serialize;

use super::output::{columns, print, print_json, shown, wrapped};
use super::{Failure, Place, block_on};
use crate::app::checks::{self, Check, CheckResult};
use crate::config::{Config, Layer};
use crate::control::StateDir;
use node::Node;

/// Columns before the text of a finding.
const INDENT: usize = 18;

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    /// What was looked at.
    check: &'static str,
    /// How it is.
    level: Level,
    /// What was found.
    found: String,
    /// What to do about it.
    #[serde(rename = "do", skip_serializing_if = "Option::is_none")]
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing; it may be meant so.
    Hint,
    /// Something will not work.
    Problem,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, found: found.into(), advice: None }
    }

    fn hint(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { check, level: Level::Hint, found: found.into(), advice: Some(advice.into()) }
    }

    fn problem(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::hint(check, found, advice) }
    }

    /// A problem whose description says what to do.
    fn fatal(check: &'static str, found: impl Into<String>) -> Self {
        Self { level: Level::Problem, ..Self::ok(check, found) }
    }
}

/// A check of `serve`, as a finding.
impl From<Check> for Finding {
    fn from(Check { name, result }: Check) -> Self {
        match result {
            CheckResult::Fine(found) => Self::ok(name, found),
            CheckResult::Warning { found, advice, serious: true } => Self::problem(name, found, advice),
            CheckResult::Warning { found, advice, serious: false } => Self::hint(name, found, advice),
            CheckResult::Fatal(error) => Self::fatal(name, error.to_string()),
        }
    }
}

impl Finding {
    /// For a terminal with so many columns.
    fn render(&self, columns: Option<usize>) -> String {
        let mark = match self.level {
            Level::Ok => "ok  ",
            Level::Hint => "hint",
            Level::Problem => "BAD ",
        };
        let mut text = format!("{mark}  {:<10}  {}\n", self.check, wrapped(&shown(&self.found), INDENT, columns));
        if let Some(advice) = &self.advice {
            text += &format!("{:INDENT$}→ {}\n", "", wrapped(&shown(advice), INDENT + 2, columns));
        }
        text
    }
}

/// Runs all checks. Fails if something will not work.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let findings = block_on(look(place))?;
    if json {
        print_json(&findings)?;
    } else {
        let columns = columns();
        print(&findings.iter().map(|finding| finding.render(columns)).collect::<String>())?;
    }
    match findings.iter().filter(|finding| finding.level == Level::Problem).count() {
        0 => Ok(()),
        1 => Err(Failure::new("there is a problem; the finding above says what to do")),
        problems => Err(Failure::new(format!("there are {problems} problems; the findings above say what to do"))),
    }
}

async fn look(place: &Place) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    let node = node::look(place, &mut findings).await?;
    let config = config(place, &node, &mut findings)?;
    let config = match &node {
        Node::Runs(_, client) => Config { state_dir: client.state_dir().to_owned(), ..config },
        _ => config,
    };
    if let (Node::None, Some(held)) = (&node, StateDir::holder(&config.state_dir)) {
        findings.push(Finding::fatal("node", held.to_string()));
    }
    findings.extend(checks::files(&config).into_iter().map(Finding::from));
    if !matches!(&node, Node::Runs(_, client) if client.other_user().is_some()) {
        findings.extend(checks::invitation_file(&config).map(Finding::from));
    }
    if matches!(node, Node::None) {
        findings.extend(checks::free_ports(&config).await.into_iter().map(Finding::from));
        node::ollama(&config, &mut findings).await;
    }
    let info = match &node {
        Node::Runs(status, _) => Some(&status.info),
        Node::Foreign | Node::None => None,
    };
    machine::files(info, &mut findings);
    machine::multicast(&config, &mut findings);
    machine::buffers(&mut findings);
    Ok(findings)
}

/// Parses the configuration that a node starts with: the file that the running node reads, if one runs, else this user's.
fn config(place: &Place, node: &Node, findings: &mut Vec<Finding>) -> Result<Config, Failure> {
    let (own, named) = place.config_path()?;
    let (path, named_by) = match node {
        Node::Runs(status, client) if !named => match status.info.config.clone() {
            Some(path) => (path, client.other_user()),
            None => (own, None),
        },
        _ => (own, None),
    };
    let there = path.exists();
    let place = place.reading(path.clone(), named_by);
    match place.load(Layer::default()) {
        Ok(config) => {
            let found = match there {
                true => format!("{} is good", path.display()),
                false => format!("no file at {}; the defaults are in effect", path.display()),
            };
            findings.push(Finding::ok("config", found));
            Ok(config)
        }
        Err(failure) => {
            findings.push(match named_by {
                Some(_) => Finding::hint("config", failure.line, "the settings of that node were not looked at"),
                None => Finding::problem("config", failure.line, "correct it; no node starts with it"),
            });
            // The settings in the file are lost, not the rest of the examination.
            Ok(Config::load(&Layer::default(), &place.environment.only_paths(), None)?)
        }
    }
}
