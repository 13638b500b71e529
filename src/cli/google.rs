//! `attesto google`: a tenant's access to Google Play.

use super::context::{Context, Failure};

/// The commands of `attesto google`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print everything but the secret
    GetCredentials {
        /// Whose
        tenant: String,
    },
    /// Store what Attesto needs to ask the store
    SetCredentials {
        /// Whose
        tenant: String,
    },
}

/// Runs one of them.
#[expect(clippy::unused_async, reason = "every command is run alike")]
pub async fn run(_command: Command, _context: &Context) -> Result<(), Failure> {
    Err(Failure::refused("this command is not there yet."))
}
