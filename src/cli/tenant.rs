//! `attesto tenant`: the teams whose apps Attesto answers for.

use super::context::{Context, Failure};

/// The commands of `attesto tenant`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List tenants, newest first
    List,
}

/// Runs one of them.
#[expect(clippy::unused_async, reason = "every command is run alike")]
pub async fn run(_command: Command, _context: &Context) -> Result<(), Failure> {
    Err(Failure::refused("this command is not there yet."))
}
