//! The question that `ollana trust` asks on the terminal, and the code that may come while it stands there.

use std::io::{self, BufRead as _, Write as _};

use tokio::sync::mpsc;

use super::super::output::shown;
use super::{Access, Failure, Word};
use crate::control::{Candidate, Client, ClientError, IdView, Lines, PeerRequest};
use crate::id::Scope;
use crate::pairing::{Code, News, WINDOW};
use crate::trust::Trust;

/// What a person said.
pub(super) struct Answer {
    pub(super) yes: bool,
    /// To be kept until the answer is acted upon: going away before would withdraw.
    _pairing: Option<Lines>,
}

/// Shows who is meant and asks until there is an answer. A yes that was typed before a code came is one to the ID, which
/// stands there too and says as much: so neither answer can be taken for more than it was.
pub(super) async fn confirm(access: &Access, peer: &Candidate, word: Word) -> Result<Answer, Failure> {
    say(&describe(peer, word))?;
    let node = if let Access::Node(client) = access { Some(client) } else { None };
    let mut pairing = match node {
        Some(client) => pair(client, peer).await?,
        None => None,
    };
    say("Trust it? [y/N] ")?;
    let mut answers = answers();
    let mut code_shown = false;
    loop {
        let news = tokio::select! {
            answer = answers.recv() => {
                let answer = answer.transpose().map_err(|error| Failure::new(format!("cannot ask on the terminal: {error}")))?;
                let yes = answer.is_some_and(|line| matches!(line.trim().to_ascii_lowercase().as_str(), "y" | "yes"));
                if let (false, true, Some(client)) = (yes, code_shown, node) {
                    client.post::<()>("/deny", &request(peer)).await?;
                }
                return Ok(Answer { yes, _pairing: pairing });
            }
            news = next(&mut pairing) => news?,
        };
        match news {
            Some(News::Code(code)) => {
                code_shown = true;
                say(&format!(
                    "\n  code     {}\n  If {} shows the same code, the connection is authentic.\nTrust it? [y/N] ",
                    grouped(&code),
                    peer.name
                ))?;
            }
            Some(News::Confirmed) => say("\n  The other side has confirmed.\nTrust it? [y/N] ")?,
            Some(News::Failed(failure)) => {
                say("\n")?;
                return Err(Failure::new(format!("{failure}. Nothing was changed")));
            }
            Some(News::Over) if code_shown => {
                say("\n")?;
                return Err(Failure::new("no answer in time; nothing was changed"));
            }
            Some(News::Over) => {
                pairing = None;
                say("\n  No code will be shown any more; compare the whole ID instead.\nTrust it? [y/N] ")?;
            }
            None => pairing = None,
        }
    }
}

fn describe(peer: &Candidate, Word { scope, use_, voucher }: Word) -> String {
    let may = match scope {
        Scope::None => "may not use this node's Ollama",
        Scope::Infer => "may run models on this node",
        Scope::Manage => "may run, pull and delete models on this node",
    };
    let gets = if use_ { "prompts may be sent to it" } else { "no prompts are sent to it" };
    let revoked = if peer.trust == Trust::Revoked { "\n  This key was revoked." } else { "" };
    let others = match voucher.unwrap_or(peer.voucher) {
        true => "\n  Prompts may also be sent to the servers that its administrator vouches for, without asking you.",
        false => "",
    };
    format!(
        "  name     {}\n  ID       {}\n  address  {}{revoked}\n  It {may}; {gets}.{others}\n",
        peer.name,
        peer.id,
        peer.address.as_deref().map_or("never seen".to_owned(), shown),
    )
}

/// Asks the node to pair, and says what the person can do meanwhile.
async fn pair(client: &Client, peer: &Candidate) -> Result<Option<Lines>, Failure> {
    let own: IdView = client.get("/id").await?;
    match client.follow("/pair", &request(peer)).await {
        Ok(lines) => {
            say(&format!(
                "Compare the ID with what `ollana id` prints there. Or type `ollana trust {}` there within {} minutes: \
                 then both\nshow the same six digits.\n",
                own.name,
                WINDOW.as_secs() / 60
            ))?;
            Ok(Some(lines))
        }
        Err(ClientError::Refused { view, .. }) => {
            say(&format!("Compare the ID with what `ollana id` prints there ({}).\n", view.error))?;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn request(peer: &Candidate) -> PeerRequest {
    // By its ID: who bears the name may have changed since it was shown.
    PeerRequest { peer: peer.id.to_string() }
}

async fn next(pairing: &mut Option<Lines>) -> Result<Option<News>, Failure> {
    match pairing {
        Some(lines) => Ok(lines.next().await?),
        None => std::future::pending().await,
    }
}

/// `123 456`: what people read aloud.
fn grouped(code: &Code) -> String {
    let (first, second) = code.digits().split_at_checked(3).unwrap_or((code.digits(), ""));
    format!("{first} {second}")
}

/// What is typed. A thread of its own and not the runtime's: nothing can wake a read from a terminal, and the command must
/// end without an answer too.
fn answers() -> mpsc::Receiver<io::Result<String>> {
    let (send, answers) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut line = String::new();
        let read = io::stdin().lock().read_line(&mut line);
        let _ = send.blocking_send(read.map(|_| line));
    });
    answers
}

fn say(text: &str) -> Result<(), Failure> {
    let said = io::stderr().write_all(text.as_bytes()).and_then(|()| io::stderr().flush());
    said.map_err(|error| Failure::new(format!("cannot write to the terminal: {error}")))
}
