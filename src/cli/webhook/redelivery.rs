//! `webhook redeliver` and `webhook stop-redelivery`.

use std::time::Duration;

use serde_json::json;

use super::super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::super::duration;
use crate::base::id::{CallbackNumber, EventId, RedeliveryId, TenantId};
use crate::deliveries::history;
use crate::deliveries::redelivery::{
    self, EventStatus, Redeliveries, RedeliveryError, RedeliveryFilter, RedeliveryRequest,
};

const MAX_REDELIVERY_SINCE_DAYS: u64 = 3650;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto webhook redeliver evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E\n  attesto webhook redeliver --tenant tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --status failed --since 24h --dry-run"
)]
pub(crate) struct RedeliverArgs {
    /// The event's id, `evt_…`
    #[arg(conflicts_with_all = ["status", "since", "event_type", "previous_callback", "tenant"], required_unless_present = "tenant")]
    event: Option<EventId>,
    /// Redeliver the events of this tenant that match the filters below
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only events with this delivery status
    #[arg(long, value_enum)]
    status: Option<EventStatus>,
    /// Only events received within this time: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(MAX_REDELIVERY_SINCE_DAYS))]
    since: Option<Duration>,
    /// Only events of this type, such as subscription.renewed
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// Redeliver to this callback only [default: those that had the event; if none had it, those that are sent such events]
    #[arg(long, value_name = "N")]
    callback: Option<CallbackNumber>,
    /// Only events that wait for, or failed at, a URL that their callback had before
    #[arg(long)]
    previous_callback: bool,
    /// Reason, stored with the deliveries
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Count the events, and redeliver nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn redeliver_events(
    arguments: RedeliverArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let redeliveries = Redeliveries::new(&database, &context.clock);
    let user = context.environment_variable("USER").unwrap_or_default();
    let by = match user.to_string_lossy().as_ref() {
        "" => "attesto webhook redeliver".to_owned(),
        user => format!("attesto webhook redeliver ({user})"),
    };
    let request = RedeliveryRequest {
        requested_by: by,
        reason: arguments.reason,
    };
    let output = &context.output;
    if let Some(event) = arguments.event {
        let tenant = history::store::find_event_tenant(&database, &event).await?;
        let tenant = tenant.ok_or_else(|| RedeliveryError::EventNotFound(event.clone()))?;
        if arguments.dry_run {
            let deliveries = redeliveries
                .preview_event(&tenant, &event, arguments.callback)
                .await?;
            let result = json!({
                "tenantId": tenant, "eventId": event, "count": 1, "deliveries": deliveries, "dryRun": true,
            });
            let prose = match deliveries {
                1 => format!("{event} would be redelivered."),
                count => format!("{event} would be redelivered to {count} callbacks."),
            };
            output.write_json_or_text(&result, &prose)?;
            return Ok(());
        }
        let deliveries = redeliveries
            .redeliver_event(&tenant, &event, arguments.callback, &request)
            .await?;
        let result = json!({
            "tenantId": tenant, "eventId": event, "deliveryId": deliveries[0].delivery_id, "deliveries": deliveries,
        });
        let prose = match deliveries.as_slice() {
            [only] => format!("{event} will be redelivered, as {}.", only.delivery_id),
            several => {
                let each = several.iter().map(|delivery| {
                    format!("callback {} as {}", delivery.callback, delivery.delivery_id)
                });
                let each = each.collect::<Vec<_>>().join(", ");
                format!("{event} will be redelivered to {each}.")
            }
        };
        output.write_json_or_text(&result, &prose)?;
        return Ok(());
    }
    let tenant = arguments
        .tenant
        .ok_or_else(|| CommandError::usage_error("give an event id, or --tenant TENANT."))?;
    ensure_tenant_exists(&database, &tenant).await?;
    let filter = RedeliveryFilter {
        tenant: tenant.clone(),
        status: arguments.status,
        event_type: arguments.event_type,
        received_within: arguments.since,
        callback: arguments.callback,
        is_for_previous_callback: arguments.previous_callback,
    };
    let found = redeliveries.preview_matching(&filter).await?;
    let (count, oldest) = (found.count, found.oldest);
    let since = oldest.map_or(String::new(), |oldest| format!(", the oldest of {oldest}"));
    if arguments.dry_run || count == 0 {
        let result = json!({
            "tenantId": tenant, "count": count, "oldest": oldest, "dryRun": arguments.dry_run,
        });
        let prose = match count {
            0 => "No event matches.".to_owned(),
            count => format!("{count} events would be redelivered{since}."),
        };
        output.write_json_or_text(&result, &prose)?;
        return Ok(());
    }
    let id = redeliveries.redeliver_matching(&filter, &request).await?;
    let result = json!({
        "tenantId": tenant, "count": count, "oldest": oldest, "redeliveryId": id,
    });
    let prose = format!(
        "{count} events will be redelivered{since}, as {id}, at {} a second.",
        redelivery::REDELIVERIES_PER_SECOND
    );
    output.write_json_or_text(&result, &prose)?;
    Ok(())
}

pub(super) async fn stop_redelivery(
    id: &RedeliveryId,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let redeliveries = Redeliveries::new(&database, &context.clock);
    match redeliveries.stop_redelivery(id).await? {
        Some(enqueued) => {
            let result = json!({ "redeliveryId": id, "enqueued": enqueued, "stopped": true });
            let prose = format!("{id} is stopped; {enqueued} events were enqueued before.");
            context.output.write_json_or_text(&result, &prose)?;
            Ok(())
        }
        None => Err(CommandError::failed(format!(
            "there is no running redelivery {id}."
        ))),
    }
}

impl From<RedeliveryError> for CommandError {
    fn from(error: RedeliveryError) -> Self {
        match error {
            RedeliveryError::Database(error) => error.into(),
            error => Self::from_cause(error),
        }
    }
}
