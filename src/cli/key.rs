//! `attesto key`: API keys of a tenant.

use super::context::{Context, Failure};

/// The commands of `attesto key`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List keys, newest first
    List {
        /// Whose
        tenant: String,
    },
}

/// Runs one of them.
#[expect(clippy::unused_async, reason = "every command is run alike")]
pub async fn run(_command: Command, _context: &Context) -> Result<(), Failure> {
    Err(Failure::refused("this command is not there yet."))
}
