//! `attesto migrate`: brings the database's tables to this release.

use super::context::{Context, Failure};

/// The arguments of `attesto migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
#[expect(clippy::unused_async, reason = "every command is run alike")]
pub async fn run(_args: Args, _context: &Context) -> Result<(), Failure> {
    Err(Failure::refused("this command is not there yet."))
}
