//! `ollana id`.

use super::output::{print, print_json};
use super::{Failure, Place, block_on};
use crate::config::{Key, Layer};
use crate::control::{Client, ClientError, IdView};
use crate::identity::{Identity, KEY_FILE};

/// Shows the ID of the node that runs, or of the key that is there for it.
pub(super) fn run(json: bool, place: &Place) -> Result<(), Failure> {
    let dirs = place.state_dirs()?;
    let running: Result<IdView, ClientError> =
        block_on(async { Ok(async { Client::find(&dirs).await?.get("/id").await }.await) })?;
    let id = match running {
        Err(ClientError::NotRunning(_)) => at_rest(place)?,
        asked => asked?,
    };
    if json { print_json(&id) } else { print(&format!("{}\n", id.id)) }
}

fn at_rest(place: &Place) -> Result<IdView, Failure> {
    let dir = place.own_state_dir()?;
    // Made at the first start and not by asking: `sudo ollana id` would leave a key that the node may not read.
    if !dir.join(KEY_FILE).exists() {
        return Err(Failure::new(format!(
            "there is no key in {} yet; the first `ollana serve` makes it",
            dir.display()
        )));
    }
    let identity = Identity::load_or_create(&dir).map_err(|error| Failure::new(error.to_string()))?;
    let mut flags = Layer::default();
    flags.set(Key::StateDir, dir.to_str());
    Ok(IdView { id: identity.id(), name: place.load(flags)?.name })
}
