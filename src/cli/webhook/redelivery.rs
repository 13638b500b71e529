//! `webhook redeliver` and `webhook stop-redelivery`.

use std::time::Duration;

use serde_json::json;

use super::super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::super::duration;
use crate::base::id::{EventId, RedeliveryId, TenantId};
use crate::deliveries::history;
use crate::deliveries::redelivery::{
    self, EventStatus, Redeliveries, RedeliveryError, RedeliveryFilter, RedeliveryRequest,
};

/// How far back a redelivery may be asked for, in days.
const MAX_REDELIVERY_SINCE_DAYS: u64 = 3650;

/// Arguments of `redeliver`.
#[derive(Debug, clap::Args)]
pub(crate) struct RedeliverArgs {
    /// One event: `evt_…`
    #[arg(conflicts_with_all = ["status", "since", "event_type", "tenant"], required_unless_present = "tenant")]
    event: Option<EventId>,
    /// Or of this tenant, every event that the other arguments leave
    #[arg(long)]
    tenant: Option<TenantId>,
    /// Only those that stand here, all of their deliveries considered
    #[arg(long, value_enum)]
    status: Option<EventStatus>,
    /// Only those received within this time: 90s, 30m, 24h, 7d
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_up_to(MAX_REDELIVERY_SINCE_DAYS))]
    since: Option<Duration>,
    /// Only those with this word, such as subscription.renewed
    #[arg(long, value_name = "WORD")]
    event_type: Option<String>,
    /// Why, to be kept with the deliveries
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Say how many that are, and do nothing
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
            let result =
                json!({ "tenantId": tenant, "eventId": event, "count": 1, "dryRun": true });
            let prose = format!("{event} would be delivered again.");
            output.write_json_or_text(&result, &prose)?;
            return Ok(());
        }
        let delivery = redeliveries.redeliver_event(&event, &request).await?;
        let result = json!({ "tenantId": tenant, "eventId": event, "deliveryId": delivery });
        let prose = format!("{event} is delivered again: {delivery}.");
        output.write_json_or_text(&result, &prose)?;
        return Ok(());
    }
    let tenant = arguments
        .tenant
        .ok_or_else(|| CommandError::usage_error("which event, or which --tenant?"))?;
    ensure_tenant_exists(&database, &tenant).await?;
    let filter = RedeliveryFilter {
        tenant: tenant.clone(),
        status: arguments.status,
        event_type: arguments.event_type,
        received_within: arguments.since,
    };
    let found = redeliveries.preview_matching(&filter).await?;
    let (count, oldest) = (found.count, found.oldest);
    let since = oldest.map_or(String::new(), |oldest| format!(", the first of {oldest}"));
    if arguments.dry_run || count == 0 {
        let result = json!({
            "tenantId": tenant, "count": count, "oldest": oldest, "dryRun": arguments.dry_run,
        });
        let prose = match count {
            0 => "No event is like that.".to_owned(),
            count => format!("{count} events would be delivered again{since}."),
        };
        output.write_json_or_text(&result, &prose)?;
        return Ok(());
    }
    let id = redeliveries.redeliver_matching(&filter, &request).await?;
    let result = json!({
        "tenantId": tenant, "count": count, "oldest": oldest, "redeliveryId": id,
    });
    let prose = format!(
        "{count} events are delivered again{since}: {id}. Whoever serves works them off, {} a second.",
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
            let prose = format!("{id} is stopped; {enqueued} events had been enqueued by then.");
            context.output.write_json_or_text(&result, &prose)?;
            Ok(())
        }
        None => Err(CommandError::failed(format!(
            "there is no redelivery {id} that is still going on."
        ))),
    }
}

impl From<RedeliveryError> for CommandError {
    fn from(refused: RedeliveryError) -> Self {
        match refused {
            RedeliveryError::Database(error) => error.into(),
            told => Self::failed(format!("{told}.")),
        }
    }
}
