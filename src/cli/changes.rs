//! `attesto changes`: announces changes that were made in the database by hand.

use serde::Serialize;

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use crate::base::id::TenantId;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ChangesCommand {
    /// Tell every replica to read again what it caches, after rows were changed with psql on a database distributed by Citus; on
    /// one Postgres, triggers do it
    Announce {
        /// Only what is cached of this tenant [default: of every tenant]
        #[arg(long, value_name = "ID")]
        tenant: Option<TenantId>,
    },
}

#[derive(Serialize)]
struct Announcement {
    tenant: Option<TenantId>,
}

pub(crate) async fn run(
    command: ChangesCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let ChangesCommand::Announce { tenant } = command;
    let database = context.open_database().await?;
    if let Some(tenant) = &tenant {
        ensure_tenant_exists(&database, tenant).await?;
    }
    database.announce_changes(tenant.as_ref()).await?;
    let whose = tenant.as_ref().map_or_else(
        || "of all tenants".to_owned(),
        |tenant| format!("of {tenant}"),
    );
    let text = format!("Every replica reads the cached rows {whose} again.");
    context
        .output
        .write_json_or_text(&Announcement { tenant }, &text)?;
    Ok(())
}
