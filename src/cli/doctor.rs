//! `ollana doctor`.
use super::{Failure, Place};
pub(super) fn run(_json: bool, _place: &Place) -> Result<(), Failure> {
    Ok(())
}
