//! `webhook list-events` and `webhook list-deliveries`.

use super::super::context::{CommandContext, CommandError, ensure_tenant_exists};
use crate::base::id::{CallbackNumber, TenantId};
use crate::deliveries::history;
use crate::deliveries::redelivery::EventStatus;

/// The arguments of both lists.
#[derive(Debug, clap::Args)]
pub(crate) struct HistoryListArgs {
    /// The tenant's id, `tenant_…`
    tenant: TenantId,
    /// Maximum number of rows
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Only rows with this delivery status
    #[arg(long, value_enum)]
    status: Option<EventStatus>,
    /// Only deliveries to this callback, and events with such a delivery
    #[arg(long, value_name = "N")]
    callback: Option<CallbackNumber>,
}

pub(super) async fn list_events(
    listing: &HistoryListArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let HistoryListArgs {
        tenant,
        limit,
        status,
        callback,
    } = listing;
    let events = history::store::list_events(&database, tenant, *status, *callback, *limit).await?;
    if events.is_empty() {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let columns = [
        "id",
        "event",
        "reason",
        "source",
        "environment",
        "subject",
        "sequence",
        "state.status",
        "state.entitled",
        "state.entitledUntil",
        "receivedAt",
        "status",
    ];
    context.output.write_rows(&events, &columns, "No events.")?;
    Ok(())
}

pub(super) async fn list_deliveries(
    listing: &HistoryListArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let HistoryListArgs {
        tenant,
        limit,
        status,
        callback,
    } = listing;
    let deliveries =
        history::store::list_deliveries(&database, tenant, *status, *callback, None, *limit)
            .await?;
    if deliveries.is_empty() {
        ensure_tenant_exists(&database, tenant).await?;
    }
    let columns = [
        "id",
        "eventId",
        "event",
        "callback",
        "status",
        "attemptCount",
        "lastResponseCode",
        "lastError",
        "nextAttemptAt",
        "createdAt",
    ];
    context
        .output
        .write_rows(&deliveries, &columns, "No deliveries.")?;
    Ok(())
}
