//! `ollana vouch`.

use std::time::{Duration, SystemTime};

use super::invite::end;
use super::output::{Table, print, print_json};
use super::trust::{Access, open};
use super::{Failure, Place, block_on};
use crate::control::{Candidate, PeerRequest, VouchRequest, VouchView, no_vouch, span};
use crate::trust::{VOUCH_SPAN, Vouch};

const EXAMPLES: &str = "\
Whoever said `ollana trust <this node> --voucher` then uses that peer too, as long as this node says so. It lets nobody \
use anything more of theirs. Only a peer that was trusted here by hand can be vouched for; one that is revoked here is not \
any more.

Examples:
  ollana vouch gpu2                  for 90 days
  ollana vouch gpu2 --until 365d     for longer, or from today on again
  ollana vouch --list                for whom, and how long still
  ollana vouch gpu2 --withdraw       no longer";

/// Flags of `vouch`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which peer
    #[arg(required_unless_present = "list")]
    peer: Option<String>,

    /// How long, such as 30d, or until when: 2026-12-31. 90 days if not said, a year at most
    #[arg(long, value_name = "DATE|DURATION")]
    until: Option<String>,

    /// Take it back
    #[arg(long, alias = "revoke", conflicts_with = "until")]
    withdraw: bool,

    /// Show for whom this node vouches
    #[arg(long, conflicts_with_all = ["peer", "until", "withdraw"])]
    list: bool,

    /// Print JSON for programs, with --list
    #[arg(long, requires = "list", conflicts_with = "peer")]
    json: bool,
}

/// Vouches for a peer, shows for whom this node vouches, or takes it back. It can be taken back, so nothing is asked.
pub(super) fn run(args: &Args, place: &Place) -> Result<(), Failure> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let until = match &args.until {
        Some(text) => end(text, now).map_err(|error| Failure::usage(format!("--until {text}: {error}")))?,
        None => (now + VOUCH_SPAN).as_secs(),
    };
    block_on(async {
        let book = open(place).await?;
        let Some(named) = &args.peer else {
            let vouches = list(&book).await?;
            return if args.json { print_json(&vouches) } else { print(&render(&vouches, now)) };
        };
        let peer = book.find(named).await?;
        let (name, id) = (peer.name.clone(), peer.id);
        if args.withdraw {
            withdraw(&book, peer).await?;
            return print(&format!("{name} ({id}): this node no longer vouches for it\n"));
        }
        let until = vouch(&book, peer, until).await?;
        let left = span(until.saturating_sub(now.as_secs()));
        print(&format!(
            "{name} ({id}): this node vouches for it, for {left}; `ollana vouch {named} --withdraw` ends it\n"
        ))
    })
}

async fn list(book: &Access) -> Result<Vec<VouchView>, Failure> {
    match book {
        Access::Node(client) => Ok(client.get("/vouches").await?),
        Access::File { book, .. } => Ok(book.snapshot().vouches().iter().map(VouchView::from).collect()),
    }
}

/// Says until when it holds.
async fn vouch(book: &Access, peer: Candidate, until: u64) -> Result<u64, Failure> {
    match book {
        Access::Node(client) => {
            // By its ID: who bears the name may have changed since it was found.
            let request = VouchRequest { peer: peer.id.to_string(), until };
            Ok(client.post::<VouchView>("/vouch", &request).await?.until)
        }
        Access::File { book, .. } => {
            book.vouch(Vouch { id: peer.id, until }).await.map_err(|error| Failure::new(error.to_string()))
        }
    }
}

async fn withdraw(book: &Access, peer: Candidate) -> Result<(), Failure> {
    match book {
        Access::Node(client) => Ok(client.post("/unvouch", &PeerRequest { peer: peer.id.to_string() }).await?),
        Access::File { book, .. } => match book.unvouch(peer.id).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::new(no_vouch(&peer))),
            Err(error) => Err(Failure::new(error.to_string())),
        },
    }
}

fn render(vouches: &[VouchView], now: Duration) -> String {
    if vouches.is_empty() {
        return "this node vouches for nobody; `ollana vouch <peer>` does\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "LEFT", "ID"]);
    for vouch in vouches {
        table.row([vouch.name.to_string(), span(vouch.until.saturating_sub(now.as_secs())), vouch.id.to_string()]);
    }
    table.render()
}
