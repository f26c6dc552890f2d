//! `ollana forget`.

use super::output::{print, print_json};
use super::trust::{Access, open};
use super::{Failure, Place, block_on};
use crate::control::{ForgetRequest, Unresolved, candidates, resolve};
use crate::id::NodeName;
use crate::trust::{Book, Forgotten, Trust, TrustError};

const EXAMPLES: &str = "\
<PEER> is a name, an ID, at least 8 characters of an ID, or an address. A peer that is forgotten is as new as any when it is \
met again. One that is connected is not forgotten, and a key that was revoked stays revoked.

A name is kept for the key that was known by it, also if that was revoked: another key with that name waits for a person. \
--name lets other keys have it.

Examples:
  ollana forget gpu1               gpu1 is gone and does not come back
  ollana forget --name laptop      laptop was set up anew, or another machine gets its name";

/// Flags of `forget`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which peer
    #[arg(required_unless_present = "name")]
    peer: Option<String>,

    /// Forget all peers that are known by this name and not connected, and let other keys have it
    #[arg(long, value_name = "NAME", conflicts_with = "peer")]
    name: Option<NodeName>,

    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// Forgets a peer, or frees a name.
pub(super) fn run(args: Args, place: &Place) -> Result<(), Failure> {
    let json = args.json;
    let gone = block_on(async {
        let (access, wanted) = (open(place).await?, wanted(args));
        match access {
            Access::Node(client) => Ok(client.post("/forget", &wanted).await?),
            Access::File { book, .. } => in_file(&book, wanted).await,
        }
    })?;
    if json { print_json(&gone) } else { print(&describe(&gone)) }
}

fn wanted(args: Args) -> ForgetRequest {
    match args.name {
        Some(name) => ForgetRequest::Name(name.to_string()),
        None => ForgetRequest::Peer(args.peer.unwrap_or_default()),
    }
}

/// Where no node runs nobody is connected.
async fn in_file(book: &Book, wanted: ForgetRequest) -> Result<Forgotten, Failure> {
    let failed = |error: TrustError| Failure::new(error.to_string());
    match wanted {
        ForgetRequest::Name(name) => book.forget_name(NodeName::lossy(&name)).await.map_err(failed),
        ForgetRequest::Peer(text) => {
            let peer = match resolve(&text, &candidates(&[], book.snapshot().pins())) {
                Ok(peer) => peer,
                Err(Unresolved::UnknownId(_) | Unresolved::Unknown { nearest: None, .. }) => {
                    return Err(failed(TrustError::NotKnown(text)));
                }
                Err(error) => return Err(Failure::new(error.to_string())),
            };
            book.forget(peer.id).await.map_err(failed)
        }
    }
}

fn describe(gone: &Forgotten) -> String {
    let mut text = String::new();
    for pin in &gone.forgotten {
        let was = if pin.trust == Trust::Trusted { ", which was trusted," } else { "" };
        text += &format!("{} ({}){was} is forgotten; when it is met again it is new\n", pin.name, pin.id);
    }
    for pin in &gone.freed {
        text += &format!("{} stays revoked, as {}; its name is free\n", pin.id, pin.name);
    }
    for pin in &gone.kept {
        text += &format!("note: {} ({}) is connected and keeps the name\n", pin.name, pin.id);
    }
    text
}
