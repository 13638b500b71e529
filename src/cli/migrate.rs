//! `attesto migrate`: migrates the database's tables to this release.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use crate::db::migration_header::TableImpact;
use crate::db::migrations::{AffectedTable, MigrationInfo, PlannedMigration};
use crate::db::{MigrationError, MigrationReport};
use crate::replicas::{LiveReplicas, MigrationBlockedError};

use super::context::{CommandContext, CommandError};

#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    /// Show the pending migrations, and apply none
    #[arg(long)]
    dry_run: bool,

    /// Show the pending migrations and their effect on the tables, whether this database role may apply them, and whether
    /// the running releases keep working; exit 1 when the migration would be refused
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MigrationCheckView {
    pending: Vec<PlannedMigration>,
    may_migrate: bool,
    /// Releases of the live replicas.
    running_releases: BTreeSet<String>,
    /// Whether they keep working on the migrated tables.
    running_releases_keep_working: bool,
    /// Whether the previous release could be started on the migrated tables.
    previous_release_works: bool,
}

impl MigrationCheckView {
    fn to_prose(&self) -> String {
        let mut lines = Vec::new();
        for planned in &self.pending {
            let MigrationInfo { version, name } = &planned.step;
            lines.push(format!("to apply: {version:04} {name}"));
            if !planned.purpose.is_empty() {
                lines.push(format!("  {}", planned.purpose));
            }
            lines.extend(
                planned
                    .tables
                    .iter()
                    .map(|it| format!("  {}", format_table_change(it))),
            );
            lines.extend(planned.promise.as_ref().map(|promise| {
                let why = promise.why.as_deref();
                let why = why.map_or(String::new(), |why| format!(": {why}"));
                if promise.previous_works {
                    format!("  The previous release keeps working{why}.")
                } else {
                    format!("  The previous release stops working{why}.")
                }
            }));
        }
        if lines.is_empty() {
            lines.push("The tables are up to date.".to_owned());
        }
        let releases: Vec<_> = self.running_releases.iter().map(String::as_str).collect();
        lines.push(match releases.as_slice() {
            [] => "No replica is running.".to_owned(),
            _ if self.running_releases_keep_working => format!(
                "The running replicas (release {}) keep working.",
                releases.join(", ")
            ),
            _ => format!(
                "Of the running replicas (release {}), some would stop working.",
                releases.join(", ")
            ),
        });
        lines.join("\n")
    }
}

/// The effect on one table, with its size unless the table is new.
fn format_table_change(touched: &AffectedTable) -> String {
    let mut text = format!("{} {}", touched.table, touched.touch.describe_impact());
    if touched.touch != TableImpact::Creates
        && let Some(bytes) = touched.bytes
    {
        let rows = match touched.rows {
            Some(rows) => format!("about {rows} rows"),
            None => "rows not counted yet".to_owned(),
        };
        let _ = write!(text, " ({rows}, {} MB)", (bytes + 999_999) / 1_000_000);
    }
    text + "."
}

async fn check_migrations(context: &CommandContext) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    let pending = database.plan_migrations().await?;
    let may_migrate = database.can_migrate().await?;
    // Before the first migration there is no table of replicas.
    let replicas = LiveReplicas::load(&database).await;
    let running_releases: BTreeSet<String> = replicas
        .map(|live| live.replicas.into_iter().map(|it| it.version).collect())
        .unwrap_or_default();
    let obstacle = MigrationBlockedError::check_replicas(&database)
        .await?
        .err();
    let is_stuck = !pending.is_empty() && !may_migrate;
    let stops = |it: &PlannedMigration| it.promise.as_ref().is_some_and(|it| !it.previous_works);
    let checked = MigrationCheckView {
        previous_release_works: !pending.iter().any(stops),
        pending,
        may_migrate,
        running_releases,
        running_releases_keep_working: obstacle.is_none(),
    };
    context
        .output
        .write_json_or_text(&checked, &checked.to_prose())?;
    if is_stuck {
        return Err(CommandError::failed(
            "the database role may not create tables: have the owner of the database run `grant create on schema public to <role>`.",
        ));
    }
    obstacle.map_or(Ok(()), |obstacle| Err(obstacle.into()))
}

pub(crate) async fn run(args: MigrateArgs, context: &CommandContext) -> Result<(), CommandError> {
    if args.check {
        return check_migrations(context).await;
    }
    let database = context.open_database().await?;
    if !args.dry_run {
        MigrationBlockedError::check_replicas(&database).await??;
    }
    let report = database.migrate(args.dry_run).await?;
    context
        .output
        .write_json_or_text(&report, &format_migration_report(&report))?;
    Ok(())
}

fn format_migration_report(report: &MigrationReport) -> String {
    let mut lines = Vec::new();
    for (word, steps) in [("applied", &report.applied), ("to apply", &report.pending)] {
        lines.extend(
            steps
                .iter()
                .map(|step| format!("{word}: {:04} {}", step.version, step.name)),
        );
    }
    if lines.is_empty() {
        lines.push(format!(
            "The tables are up to date ({} migrations).",
            report.already_applied
        ));
    }
    lines.join("\n")
}

impl From<MigrationBlockedError> for CommandError {
    fn from(error: MigrationBlockedError) -> Self {
        Self::from_cause(error)
    }
}

impl From<MigrationError> for CommandError {
    fn from(problem: MigrationError) -> Self {
        match problem {
            MigrationError::Database(error) => error.into(),
            problem => Self::from_cause(problem),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_each_migration() {
        let step = |version, name: &str| MigrationInfo {
            version,
            name: name.into(),
        };
        let mut report = MigrationReport {
            applied: vec![step(3, "signing keys")],
            pending: vec![],
            already_applied: 2,
        };
        assert_eq!(
            format_migration_report(&report),
            "applied: 0003 signing keys"
        );
        report.pending = std::mem::take(&mut report.applied);
        assert_eq!(
            format_migration_report(&report),
            "to apply: 0003 signing keys"
        );
        report.pending.clear();
        assert_eq!(
            format_migration_report(&report),
            "The tables are up to date (2 migrations)."
        );
    }
}
