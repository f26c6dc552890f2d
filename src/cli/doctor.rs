//! `ollana doctor`: what can be seen from outside of what goes wrong most, each with what to do.

mod machine;
mod node;
mod ports;

use std::fmt;

use serde::Serialize;

use super::output::{print, print_json, shown};
use super::{Failure, Place, block_on};
use crate::config::{Config, Layer};

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
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.level {
            Level::Ok => "ok  ",
            Level::Hint => "hint",
            Level::Problem => "BAD ",
        };
        writeln!(f, "{mark}  {:<10}  {}", self.check, shown(&self.found))?;
        match &self.advice {
            Some(advice) => writeln!(f, "{:18}→ {}", "", shown(advice)),
            None => Ok(()),
        }
    }
}

/// Looks around. Fails if something will not work.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let findings = block_on(look(place))?;
    if json {
        print_json(&findings)?;
    } else {
        print(&findings.iter().map(ToString::to_string).collect::<String>())?;
    }
    match findings.iter().filter(|finding| finding.level == Level::Problem).count() {
        0 => Ok(()),
        1 => Err(Failure::new("there is a problem; the finding above says what to do")),
        problems => Err(Failure::new(format!("there are {problems} problems; the findings above say what to do"))),
    }
}

async fn look(place: &Place) -> Result<Vec<Finding>, Failure> {
    let mut findings = Vec::new();
    let config = match place.load(Layer::default()) {
        Ok(config) => config,
        Err(failure) => {
            findings.push(Finding::problem("config", failure.line, "mend it; nothing starts with it"));
            // What the file says is lost, not the rest of the examination.
            Config::load(&Layer::default(), &place.environment.only_paths(), None)?
        }
    };
    let status = node::look(place, &mut findings).await?;
    let runs = status.is_some();
    if !runs {
        ports::look(&config, &mut findings).await;
        node::ollama(&config, &mut findings).await;
    }
    machine::files(status.as_ref().map(|status| &status.info), &mut findings);
    let state_dir = status.map_or_else(|| config.state_dir.clone(), |status| status.info.state_dir);
    machine::state(&state_dir, &mut findings);
    machine::multicast(&config, &mut findings);
    machine::buffers(&mut findings);
    Ok(findings)
}
