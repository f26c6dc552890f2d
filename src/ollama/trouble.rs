//! Why what is at an address cannot be shared, and what is wrong with a server that can.

use std::collections::BTreeMap;
use std::fmt;

use http::{StatusCode, Uri};

use super::client::says_ollana;
use super::meet::Late;
use crate::exchange::ExchangeError;
use crate::wire::control::printable;

/// Examples of a flaw are names that the server made up: this much of one is shown.
const SHOWN: usize = 80;

/// Why what is at an address cannot be shared.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The address is none that can be asked.
    #[error("{0} is no http:// address; a server behind TLS cannot be shared yet")]
    Address(Uri),
    /// Another machine's server is not this one's to share, unless its owner says so.
    #[error(
        "OLLAMA_HOST names {0}, which is not on this machine: it is shared once this machine has that address; to share \
         another machine's Ollama, name it: --ollama {0}"
    )]
    Elsewhere(Uri),
    /// It may be this machine's or another's.
    #[error(
        "OLLAMA_HOST names {0}, and the name of that machine cannot be resolved: it is shared once it stands for this one"
    )]
    Unresolved(Uri),
    /// The connection is refused, or nobody takes it.
    #[error("nothing answers at {0}")]
    Nothing(Uri),
    /// Connections are taken, and questions are not answered.
    #[error("what is at {0} takes connections but does not answer")]
    Silent(Uri),
    /// It says itself that it cannot answer yet.
    #[error("the server at {0} is not ready yet: it answers 503")]
    NotReady(Uri),
    /// It wants a key.
    #[error(
        "the server at {url} wants an API key ({path} is answered {status}), and there is no setting for one: start it \
         without a key, on loopback so that only this machine reaches it"
    )]
    NeedsKey {
        /// Where it is.
        url: Uri,
        /// The path of the question.
        path: &'static str,
        /// The status of its answer.
        status: StatusCode,
    },
    /// It speaks HTTP, and it is no server of models.
    #[error("the program at {url} is neither an Ollama nor a server of the OpenAI API ({})", Answers(.answers))]
    Other {
        /// Where it is.
        url: Uri,
        /// The path of each question, and the answer to it.
        answers: Vec<(&'static str, String)>,
    },
    /// It is a node.
    #[error("what answers at {0} is an Ollana, not an Ollama")]
    Ollana(Uri),
    /// It broke off, or speaks something else than HTTP.
    #[error("what is at {url} gives no answer that can be used: {why}")]
    Broken {
        /// Where it is.
        url: Uri,
        /// The failure.
        why: String,
    },
}

/// The flaws of a server that can be shared all the same, by the path of the question.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Flaws(BTreeMap<&'static str, Vec<String>>);

/// The faults of one answer: each fault with the first entry that has it, and how many there are.
#[derive(Debug, Default)]
pub(super) struct Faults(Vec<(&'static str, String, usize)>);

/// How something that is no server of models answered.
struct Answers<'a>(&'a [(&'static str, String)]);

// === impl Trouble ===

impl Trouble {
    /// A word for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Address(_) => "address",
            Self::Elsewhere(_) => "elsewhere",
            Self::Unresolved(_) => "unresolved",
            Self::Nothing(_) => "nothing",
            Self::Silent(_) => "silent",
            Self::NotReady(_) => "not-ready",
            Self::NeedsKey { .. } => "needs-key",
            Self::Other { .. } => "other-program",
            Self::Ollana(_) => "ollana",
            Self::Broken { .. } => "broken",
        }
    }

    pub(super) fn of(url: &Uri, error: &ExchangeError) -> Self {
        let url = url.clone();
        match error {
            error if says_ollana(error) => Self::Ollana(url),
            ExchangeError::Ollama(_, why) if why.is::<Late>() => Self::Silent(url),
            // The address is said already.
            ExchangeError::Ollama(_, why) => Self::Broken { url, why: printable(&why.to_string()) },
            error => Self::Broken { url, why: printable(&error.to_string()) },
        }
    }
}

impl fmt::Display for Answers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (path, answer)) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{path}: {answer}")?;
        }
        Ok(())
    }
}

// === impl Flaws ===

impl Flaws {
    /// A sentence for each.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.values().flatten().map(String::as_str)
    }

    /// Replaces the flaws of the answer to a question by those of the latest answer.
    pub(super) fn set(&mut self, path: &'static str, faults: Faults) {
        let sentences: Vec<String> = faults.0.into_iter().map(|fault| sentence(path, fault)).collect();
        match sentences.is_empty() {
            true => self.0.remove(path),
            false => self.0.insert(path, sentences),
        };
    }

    /// That there is no answer which could be used, and what follows.
    pub(super) fn unanswered(&mut self, path: &'static str, how: &impl fmt::Display, so: &'static str) {
        let how: String = printable(&how.to_string()).chars().take(2 * SHOWN).collect();
        self.0.insert(path, vec![format!("{path} is {how}: {so}")]);
    }

    /// The same beside what else is wrong with it.
    pub(super) fn add(&mut self, path: &'static str, what: &'static str) {
        let sentences = self.0.entry(path).or_default();
        let sentence = format!("{path} {what}");
        if !sentences.contains(&sentence) {
            sentences.push(sentence);
        }
    }

    /// Takes that back.
    pub(super) fn take(&mut self, path: &'static str, what: &'static str) {
        if let Some(sentences) = self.0.get_mut(path) {
            sentences.retain(|sentence| *sentence != format!("{path} {what}"));
            if sentences.is_empty() {
                self.0.remove(path);
            }
        }
    }
}

fn sentence(path: &str, (what, first, count): (&str, String, usize)) -> String {
    let others = count.saturating_sub(1);
    match (first.is_empty(), others) {
        (true, 0) => format!("{path}: {what}"),
        (true, _) => format!("{path}: {what} ({count} times)"),
        (false, 0) => format!("{path}: {what} ({first:?})"),
        (false, _) => format!("{path}: {what} ({first:?} and {others} more)"),
    }
}

// === impl Faults ===

impl Faults {
    /// An entry has this fault; `name` is what it calls itself, if anything.
    pub(super) fn note(&mut self, what: &'static str, name: &str) {
        self.times(what, name, 1);
    }

    /// So many have.
    pub(super) fn times(&mut self, what: &'static str, name: &str, count: usize) {
        if count == 0 {
            return;
        }
        match self.0.iter_mut().find(|(known, _, _)| *known == what) {
            Some((_, _, known)) => *known += count,
            None => self.0.push((what, printable(name).chars().take(SHOWN).collect(), count)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flaw_is_a_short_sentence_whatever_the_server_wrote() {
        let mut flaws = Flaws::default();
        let mut faults = Faults::default();
        faults.note("an entry has no name", "");
        for n in 0..9000 {
            faults.note("a size is no number of bytes", &format!("\u{1b}[2J{n}{}", "x".repeat(9000)));
        }
        flaws.set("/api/tags", faults);
        let said: Vec<&str> = flaws.iter().collect();
        assert_eq!(said[0], "/api/tags: an entry has no name");
        assert!(said[1].starts_with("/api/tags: a size is no number of bytes (\"[2J0xx"), "{}", said[1]);
        assert!(said[1].ends_with("and 8999 more)"), "{}", said[1]);
        assert!(said.iter().all(|said| said.len() < 300 && !said.contains('\u{1b}')));
        flaws.set("/api/tags", Faults::default());
        assert_eq!(flaws, Flaws::default());
    }
}
