//! `ollana revoke`.

use super::output::print;
use super::trust::{describe, open};
use super::{Failure, Place, block_on};

const EXAMPLES: &str = "\
<PEER> is a name, an ID, at least 8 characters of an ID, or an address. The
key is refused at once and for good, until `ollana trust` says otherwise.";

/// Flags of `revoke`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Which peer
    peer: String,
}

/// Revokes; it can be taken back, so nothing is asked.
pub(super) fn run(args: &Args, place: &Place) -> Result<(), Failure> {
    block_on(async {
        let book = open(place).await?;
        let peer = book.find(&args.peer).await?;
        print(&describe(&book.revoke(peer).await?))
    })
}
