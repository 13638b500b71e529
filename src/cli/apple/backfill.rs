//! `attesto apple backfill`: fetches the notifications that did not arrive.

use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::super::backfill::{
    Since, choose_tenants, fail_with, load_kept_since, new_recorder, parse_since,
};
use super::super::context::{CommandContext, CommandError};
use super::super::progress::ProgressBar;
use super::super::verify::VerifyDependencies;
use super::credentials::{describe_api_error, no_credentials_error};
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::stores::apple::AppleBackfill;
use crate::stores::apple::account::{AppleCredentials, AppleEnvironment};
use crate::stores::apple::backfill::{
    BackfillError, BackfillMode, BackfillReport, HistoryPeriod, backfill_environments,
};
use crate::stores::apple::error::AppleNotificationError;
use crate::stores::apple::store;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  attesto apple backfill --since 3d\n  attesto apple backfill --tenant tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E \\\n    --since 2026-04-01 --dry-run"
)]
pub(crate) struct AppleBackfillArgs {
    /// Only this tenant [default: every active tenant with App Store credentials]
    #[arg(long, value_name = "TENANT")]
    tenant: Option<TenantId>,

    /// How far back: 12h, 7d, or from 2026-04-01 or 2026-04-01T14:22:10Z [default: as far as Apple keeps notifications, 180
    /// days, 30 in the sandbox, and events are kept here]
    #[arg(long, value_name = "DURATION|DATE", value_parser = parse_since)]
    since: Option<Since>,

    /// Count what is missing, and store nothing
    #[arg(long)]
    dry_run: bool,
}

/// The output for an environment of a tenant.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct BackfillRow<'a> {
    tenant_id: &'a TenantId,
    bundle_id: &'a str,
    environment: AppleEnvironment,
    dry_run: bool,
    /// Whether everything was read.
    complete: bool,
    #[serde(flatten)]
    report: &'a BackfillReport,
    /// Why not everything was read.
    error: Option<String>,
}

impl BackfillRow<'_> {
    fn to_text(&self) -> String {
        let Self { report, .. } = self;
        let (what, of) = (self.tenant_id, self.environment.as_str());
        let stored = if self.dry_run { "missing" } else { "recovered" };
        let mut lines = vec![format!(
            "{what}, {of}, from {} to {}: {} read, {} already known, {} {stored}, {} refused.",
            report.since, report.until, report.read, report.known, report.recovered, report.refused
        )];
        lines.extend(report.refusals.iter().map(|refused| {
            format!(
                "  refused {} ({}): {}",
                refused.notification_uuid.as_deref().unwrap_or("-"),
                refused.notification_type.as_deref().unwrap_or("-"),
                refused.reason
            )
        }));
        let unnamed = report.refused - report.refusals.len() as u64;
        if unnamed > 0 {
            lines.push(format!("  and {unnamed} more"));
        }
        if !self.complete && self.error.is_none() {
            lines.push(format!(
                "  Stopped. To continue: --since {}",
                report.read_until
            ));
        }
        if let Some(error) = &self.error {
            lines.push(format!("  Failed: {error}"));
        }
        lines.join("\n")
    }
}

/// What one run of the command needs.
struct BackfillRun<'a> {
    backfill: AppleBackfill,
    context: &'a CommandContext,
    since: Option<Timestamp>,
    /// From when on all events are kept.
    kept_since: Option<Timestamp>,
    mode: BackfillMode,
    stop: CancellationToken,
}

pub(super) async fn backfill_notifications(
    arguments: AppleBackfillArgs,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let dependencies = VerifyDependencies::load(context).await?;
    let database = &dependencies.database;
    let active = store::list_active_tenants(database);
    let tenants = choose_tenants(database, arguments.tenant, active).await?;
    let (recorder, wake) = new_recorder(database, context);
    let (stop, _waiting) = context.cancel_on_signal()?;
    let now = context.clock.now();
    let run = BackfillRun {
        backfill: AppleBackfill::new(&dependencies.build_apple(context)?, recorder),
        context,
        since: arguments.since.map(|since| since.to_time(now)),
        kept_since: load_kept_since(database, context).await?,
        mode: if arguments.dry_run {
            BackfillMode::Count
        } else {
            BackfillMode::Store
        },
        stop: stop.clone(),
    };
    let mut failures = Vec::new();
    tokio::select! {
        done = run.backfill_tenants(&tenants) => failures.extend(done?),
        // Wakes the dispatchers of the service. It ends only when the command is stopped, which ends the other branch too.
        () = wake.run_remote_notifications(database, CancellationToken::new()) => {}
    }
    if tenants.is_empty() {
        context
            .output
            .write_note("No active tenant has App Store credentials.")?;
    }
    if stop.is_cancelled() {
        failures.push("Stopped before everything was read. Run it again to continue.".to_owned());
    }
    fail_with(&failures)
}

impl BackfillRun<'_> {
    /// Reads the histories of tenants, one after the other. Returns what failed, a sentence for each.
    async fn backfill_tenants(&self, tenants: &[TenantId]) -> Result<Vec<String>, CommandError> {
        let mut failures = Vec::new();
        for tenant in tenants {
            if self.stop.is_cancelled() {
                break;
            }
            match self.backfill.get_credentials(tenant).await {
                Ok(credentials) => {
                    failures.extend(self.backfill_tenant(tenant, &credentials).await?);
                }
                Err(AppleNotificationError::NoCredentials) => {
                    failures.push(no_credentials_error(tenant).message);
                }
                Err(error) => failures.push(to_sentence(format!("{tenant}: {error}"))),
            }
        }
        Ok(failures)
    }

    async fn backfill_tenant(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
    ) -> Result<Vec<String>, CommandError> {
        let environments = backfill_environments(credentials);
        if environments.is_empty() {
            return Ok(vec![format!(
                "{tenant} has no app Apple ID, without which nothing of production can be verified. Add it with `attesto apple set-credentials --app-apple-id`."
            )]);
        }
        let mut failures = Vec::new();
        let mut is_app_known = false;
        for environment in &environments {
            match self.read_history(tenant, credentials, *environment).await? {
                Ok(()) => is_app_known = true,
                Err(error) => failures.push((*environment, error)),
            }
        }
        // Of an app that was never released, production knows nothing.
        if is_app_known {
            failures.retain(|(environment, error)| {
                *environment == AppleEnvironment::Sandbox || !error.is_app_unknown()
            });
        }
        let described = failures.iter().map(|(environment, error)| {
            let why = describe_error(credentials, *environment, error);
            format!("{tenant}, {}: {why}", environment.as_str())
        });
        Ok(described.collect())
    }

    async fn read_history(
        &self,
        tenant: &TenantId,
        credentials: &Arc<AppleCredentials>,
        environment: AppleEnvironment,
    ) -> Result<Result<(), BackfillError>, CommandError> {
        let clock = &self.context.clock;
        let period = HistoryPeriod::new(self.since, environment, self.kept_since, clock.now());
        let mut reader =
            self.backfill
                .open_history(tenant, credentials, environment, period, self.mode);
        let bar = ProgressBar::for_output(&self.context.output);
        let total = period.until.duration_since(period.since).as_secs();
        let what = format!("seconds of {tenant}, {}", environment.as_str());
        let read = reader
            .read_to_end(clock, &self.stop, |report| {
                let done = report.read_until.duration_since(period.since).as_secs();
                bar.draw_progress(done, total, &what);
            })
            .await;
        bar.clear();
        let row = BackfillRow {
            tenant_id: tenant,
            bundle_id: &credentials.bundle_id,
            environment,
            dry_run: self.mode == BackfillMode::Count,
            complete: reader.is_complete(),
            report: reader.report(),
            error: read
                .as_ref()
                .err()
                .map(|error| describe_error(credentials, environment, error)),
        };
        let output = &self.context.output;
        output.write_json_or_text(&row, &row.to_text())?;
        Ok(read)
    }
}

fn describe_error(
    credentials: &AppleCredentials,
    environment: AppleEnvironment,
    error: &BackfillError,
) -> String {
    match error {
        BackfillError::Api(error) => describe_api_error(
            &credentials.bundle_id,
            environment,
            error,
            "set-credentials --environment",
        ),
        BackfillError::UnknownApp => format!(
            "Apple knows no app {} there: the bundle id is wrong, or it was never released.",
            credentials.bundle_id
        ),
        BackfillError::Database(error) => crate::db::describe_command_error(error),
        BackfillError::Notification(AppleNotificationError::Database(error)) => {
            crate::db::describe_command_error(error)
        }
        other @ BackfillError::Notification(_) => format!("{other}."),
    }
}
