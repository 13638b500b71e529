//! `attesto google backfill`: fetches the refunds whose notification did not arrive, and reads the subscriptions again of which Google
//! should have told something.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::super::backfill::{
    Since, choose_tenants, fail_with, load_kept_since, new_recorder, parse_since,
};
use super::super::context::{CommandContext, CommandError};
use super::super::verify::VerifyDependencies;
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::stores::google::{
    GoogleBackfill, GoogleBackfillError, RefundsReport, RereadReport, store,
};

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto google backfill --since 3d\n  attesto google backfill --tenant tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --since 2026-04-01 --dry-run"
)]
pub(crate) struct GoogleBackfillArgs {
    /// Only this tenant [default: every active tenant with Google Play credentials]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,

    /// How far back: 12h, 7d, or from 2026-04-01 or 2026-04-01T14:22:10Z [default: as far as Google lists refunds, 30 days, and
    /// events are kept here]
    #[arg(long, value_name = "DURATION|DATE", value_parser = parse_since)]
    since: Option<Since>,

    /// Count what is missing, and store nothing
    #[arg(long)]
    dry_run: bool,
}

/// The output for a tenant.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackfillRow<'a> {
    tenant_id: &'a TenantId,
    dry_run: bool,
    #[serde(flatten)]
    report: &'a RefundsReport,
    subscriptions: &'a RereadReport,
}

pub(super) async fn backfill_refunds(
    arguments: GoogleBackfillArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let dependencies = VerifyDependencies::load(context).await?;
    let database = &dependencies.database;
    let active = store::list_active_tenants(database);
    let tenants = choose_tenants(database, arguments.tenant, active).await?;
    let (recorder, wake) = new_recorder(database, context);
    let backfill = GoogleBackfill::new(&dependencies.build_google(context), recorder);
    let until = context.clock.now();
    let since = arguments.since.map(|since| since.to_time(until));
    let kept_since = load_kept_since(database, context).await?;
    let is_dry_run = arguments.dry_run;
    let reading = async {
        let mut failures = Vec::new();
        for tenant in &tenants {
            let read = async {
                let refunds = backfill.read_refunds(tenant, since, until, kept_since, is_dry_run);
                let refunds = refunds.await?;
                let never = CancellationToken::new();
                let states = backfill.reread_subscriptions(tenant, is_dry_run, &never);
                Ok::<_, GoogleBackfillError>((refunds, states.await?))
            };
            match read.await {
                Ok((refunds, states)) => {
                    write_report(tenant, &refunds, &states, is_dry_run, context)?;
                }
                Err(error) => failures.push(to_sentence(format!("{tenant}: {error}"))),
            }
        }
        Ok::<_, CommandError>(failures)
    };
    let (stop, _waiting) = context.cancel_on_signal()?;
    let failures = tokio::select! {
        failures = reading => failures?,
        // Wakes the dispatchers of the service.
        () = wake.run_remote_notifications(database, CancellationToken::new()) => Vec::new(),
        () = stop.cancelled() => vec!["Stopped before everything was read. Run it again.".to_owned()],
    };
    if tenants.is_empty() {
        context
            .output
            .write_note("No active tenant has Google Play credentials.")?;
    }
    fail_with(&failures)
}

fn write_report(
    tenant: &TenantId,
    report: &RefundsReport,
    states: &RereadReport,
    is_dry_run: bool,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let stored = if is_dry_run { "missing" } else { "recovered" };
    let text = format!(
        "{tenant}, refunds from {} to {}: {} read, {} already known, {} {stored}. Subscriptions that should have changed: {} read, {} {stored}, {} not readable.",
        report.since,
        report.until,
        report.read,
        report.known,
        report.recovered,
        states.read,
        states.recovered,
        states.failed
    );
    let row = BackfillRow {
        tenant_id: tenant,
        dry_run: is_dry_run,
        report,
        subscriptions: states,
    };
    Ok(context.output.write_json_or_text(&row, &text)?)
}
