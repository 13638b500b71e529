//! `attesto serve`: runs the service.

use super::context::{Context, Failure};

/// The arguments of `attesto serve`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
#[expect(clippy::unused_async, reason = "every command is run alike")]
pub async fn run(_args: Args, _context: &Context) -> Result<(), Failure> {
    Err(Failure::refused("this command is not there yet."))
}
