//! `ollana trust`, and what it shares with `revoke`.

mod ask;
mod list;

use std::io::{self, IsTerminal as _};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use http::StatusCode;

use super::output::print;
use super::{Failure, Place, block_on};
use crate::config::Layer;
use crate::control::{
    Candidate, Changed, Client, ClientError, PeerRequest, StateDir, StateError, TrustRequest, Unresolved, candidates,
    resolve, revoke_advice, trust_text,
};
use crate::id::{Id, ParseIdError, Scope, Use};
use crate::trust::{Book, TrustPolicy};

/// How long whoever has the state directory may take to answer or to go: a node that starts or ends, and some commands at
/// once, take a fraction of that.
const PATIENCE: Duration = Duration::from_secs(3);
const AGAIN: Duration = Duration::from_millis(20);

const EXAMPLES: &str = "\
<PEER> is a name, an ID, at least 8 characters of an ID, or an address. Before anything changes, name, whole \
ID and address are shown. Compare the ID with what `ollana id` says on that machine; or type `ollana trust` on \
both machines within five minutes, and compare the six digits that both show then.

Examples:
  ollana trust gpu1                      use gpu1, and let it use this node's Ollama
  ollana trust gpu1 --scope manage       let it also pull and delete models here
  ollana trust laptop --no-use           let it use this node, and send it nothing
  ollana trust gpu1 --voucher            also use the servers that gpu1's administrator vouches for
  ollana trust <ID> --yes                from a script, with the whole ID
  ollana trust export > trusted.toml     what was decided here, for other nodes
  ollana trust import trusted.toml       take that over";

/// Flags of `trust`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct Args {
    /// Which peer
    #[arg(required = true)]
    peer: Option<String>,

    #[command(subcommand)]
    list: Option<list::Command>,

    /// Its permission here: nothing (none), run models (infer), or also pull and delete them (manage)
    #[arg(long, value_enum, default_value = "infer")]
    scope: ScopeArg,

    /// Send it no prompts
    #[arg(long)]
    no_use: bool,

    /// Also use the servers that its administrator vouches for (`ollana vouch` there)
    #[arg(long)]
    voucher: bool,

    /// No longer use servers because it vouches for them
    #[arg(long, conflicts_with = "voucher")]
    no_voucher: bool,

    /// Ask nothing; the peer has to be named by its whole ID then
    #[arg(long)]
    yes: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum ScopeArg {
    None,
    Infer,
    Manage,
}

impl From<ScopeArg> for Scope {
    fn from(arg: ScopeArg) -> Self {
        match arg {
            ScopeArg::None => Self::None,
            ScopeArg::Infer => Self::Infer,
            ScopeArg::Manage => Self::Manage,
        }
    }
}

/// Shows who is meant, asks, and writes it down.
pub(super) fn run(args: Args, place: &Place) -> Result<(), Failure> {
    if let Some(command) = args.list {
        return list::run(command, place);
    }
    let named = args.peer.unwrap_or_default();
    if let Some(error) = named.parse::<Id>().err().filter(|_| args.yes) {
        return Err(Failure::usage(match error {
            ParseIdError::Check(_) | ParseIdError::Alphabet => Unresolved::Slip(error).to_string(),
            ParseIdError::Length(_) => format!(
                "--yes wants the whole ID of the peer, as `ollana peers --json` or `ollana id` on that machine shows it: {error}"
            ),
        }));
    }
    if !args.yes && !io::stdin().is_terminal() {
        return Err(Failure::usage("there is no terminal to ask on; add --yes and give the peer's whole ID"));
    }
    block_on(async {
        let book = open(place).await?;
        let peer = book.find(&named).await?;
        let voucher = match (args.voucher, args.no_voucher) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            // It stays as it is.
            _ => None,
        };
        let word = Word { scope: args.scope.into(), use_: !args.no_use, voucher };
        let answer = match args.yes {
            true => None,
            false => Some(ask::confirm(&book, &peer, word).await?),
        };
        if answer.as_ref().is_some_and(|answer| !answer.yes) {
            return Err(Failure::new("nothing was changed"));
        }
        let changed = book.trust(peer, word).await?;
        print(&describe(&changed))
    })
}

/// What a person reads after a change.
pub(super) fn describe(changed: &Changed) -> String {
    let peer = &changed.peer;
    let advice = changed.advice.as_ref().map(|advice| format!("note: {advice}\n")).unwrap_or_default();
    let trust = trust_text(peer.trust, peer.voucher, &peer.vouched_by);
    let scope = match peer.scope {
        Scope::None => "may not use this node's Ollama",
        Scope::Infer => "may run models here",
        Scope::Manage => "may run, pull and delete models here",
    };
    let use_ = match peer.use_ {
        Use::Yes => "used as a provider",
        Use::Pending => "not used until it is trusted",
        Use::No => "not used as a provider",
    };
    format!("{} is now {trust} ({scope}; {use_})\n  ID {}\n{advice}", peer.name, peer.id)
}

/// What a person says of a peer.
#[derive(Debug, Clone, Copy)]
struct Word {
    scope: Scope,
    use_: bool,
    /// Whether it is a voucher; nothing leaves that as it is.
    voucher: Option<bool>,
}

/// The book of a node that runs, or the file of one that does not.
pub(super) enum Access {
    Node(Client),
    // The directory is held until the change is written, so that no node starts meanwhile.
    File { book: Book, policy: TrustPolicy, _held: StateDir },
}

/// Finds the node, or takes its files. Who has those and does not answer is about to start, to end, or a command like this
/// one: that is waited for.
pub(super) async fn open(place: &Place) -> Result<Access, Failure> {
    let patience_ends = Instant::now() + PATIENCE;
    let held = loop {
        match Client::find(&place.state_dirs()?).await {
            Ok(client) => return Ok(Access::Node(client)),
            Err(ClientError::NotRunning(_)) => {}
            Err(error) => return Err(error.into()),
        }
        let dir = place.own_state_dir()?;
        StateDir::make(&dir)?;
        match StateDir::lock(&dir) {
            Err(StateError::Held { .. }) if Instant::now() < patience_ends => tokio::time::sleep(AGAIN).await,
            held => break held?,
        }
    };
    let policy = place.load(Layer::default())?.trust;
    let book = Book::open(&held.trust(), policy).map_err(|error| Failure::new(error.to_string()))?;
    Ok(Access::File { book, policy, _held: held })
}

impl Access {
    /// Whom a text means. A whole ID may be of a key that was never met.
    pub(super) async fn find(&self, text: &str) -> Result<Candidate, Failure> {
        match self {
            Self::Node(client) => match client.post("/resolve", &PeerRequest { peer: text.to_owned() }).await {
                Err(ClientError::Refused { status: StatusCode::NOT_FOUND, view }) => {
                    text.parse().map(Candidate::stranger).map_err(|_| Failure::new(view.error))
                }
                found => Ok(found?),
            },
            Self::File { book, .. } => {
                let known = candidates(&[], book.snapshot().pins());
                match resolve(text, &known) {
                    Err(Unresolved::UnknownId(id)) => Ok(Candidate::stranger(id)),
                    Err(Unresolved::Unknown { nearest: None, .. }) => Err(Failure::new(format!(
                        "no peer {text:?} is in the trust book, and no node runs that could have seen it; give its whole \
                         ID, or start the node with `ollana serve -d`"
                    ))),
                    found => found.map_err(|error| Failure::new(error.to_string())),
                }
            }
        }
    }

    async fn trust(&self, peer: Candidate, Word { scope, use_, voucher }: Word) -> Result<Changed, Failure> {
        match self {
            Self::Node(client) => {
                // By its ID: who bears the name may have changed while the question stood there.
                let request = TrustRequest { peer: peer.id.to_string(), scope, use_, voucher };
                Ok(client.post("/trust", &request).await?)
            }
            Self::File { book, .. } => {
                let (name, address) = (peer.plain_name(), peer.address.clone());
                let written = book.trust_voucher(peer.id, name, address, scope, use_, voucher).await;
                written.map_err(|error| Failure::new(error.to_string()))?;
                Ok(Changed { peer: standing(book, peer), advice: None })
            }
        }
    }

    /// Revokes a peer's key.
    pub(super) async fn revoke(&self, peer: Candidate) -> Result<Changed, Failure> {
        match self {
            Self::Node(client) => Ok(client.post("/revoke", &PeerRequest { peer: peer.id.to_string() }).await?),
            Self::File { book, policy, .. } => {
                let advice = Some(revoke_advice(policy, &peer));
                book.revoke(peer.id).await.map_err(|error| Failure::new(error.to_string()))?;
                Ok(Changed { peer: standing(book, peer), advice })
            }
        }
    }
}

/// The peer as the book has it now.
fn standing(book: &Book, mut peer: Candidate) -> Candidate {
    let snapshot = book.snapshot();
    let known = candidates(&[], snapshot.pins());
    peer = known.into_iter().find(|known| known.id == peer.id).unwrap_or(peer);
    peer.stands_in(&snapshot);
    peer
}
