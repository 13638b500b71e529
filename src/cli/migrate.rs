//! `attesto migrate`: brings the database's tables to this release.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use crate::db::migration_header::TableImpact;
use crate::db::migrations::{AffectedTable, MigrationInfo, PlannedMigration};
use crate::db::{MigrationError, MigrationReport};
use crate::replicas::{LiveReplicas, MigrationBlockedError};

use super::context::{CommandContext, CommandError};

/// The arguments of `attesto migrate`.
#[derive(Debug, clap::Args)]
pub(crate) struct MigrateArgs {
    /// Only say what would be applied
    #[arg(long)]
    dry_run: bool,

    /// Only say what would be applied and what it does to the tables, whether this role may, and whether the releases that
    /// serve now go on working; exit 1 when it would be refused
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MigrationCheckView {
    pending: Vec<PlannedMigration>,
    may_migrate: bool,
    /// Of the processes that serve now.
    running_releases: BTreeSet<String>,
    /// Whether they go on working on the changed tables.
    running_releases_keep_working: bool,
    /// Whether a process of the release before this one could be started on the changed tables.
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
                    format!("  The release before goes on working{why}.")
                } else {
                    format!("  The release before stops working{why}.")
                }
            }));
        }
        if lines.is_empty() {
            lines.push("The tables are up to date.".to_owned());
        }
        let releases: Vec<_> = self.running_releases.iter().map(String::as_str).collect();
        lines.push(match releases.as_slice() {
            [] => "No process serves.".to_owned(),
            _ if self.running_releases_keep_working => format!(
                "Processes of release {} go on working meanwhile.",
                releases.join(", ")
            ),
            _ => format!(
                "Processes of release {} serve now, and some would stop working.",
                releases.join(", ")
            ),
        });
        lines.join("\n")
    }
}

/// What is done to one table, with its size where that matters.
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
    // Tables that are not there yet name nobody.
    let company = LiveReplicas::load(&database).await;
    let running_releases: BTreeSet<String> = company
        .map(|company| company.replicas.into_iter().map(|it| it.version).collect())
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
            "the database's role may not create tables: let the owner of the database run `grant create on schema public to <role>`.",
        ));
    }
    obstacle.map_or(Ok(()), |obstacle| Err(obstacle.into()))
}

/// Runs the command.
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
    fn from(problem: MigrationBlockedError) -> Self {
        Self::failed(format!("{problem}."))
    }
}

impl From<MigrationError> for CommandError {
    fn from(problem: MigrationError) -> Self {
        match problem {
            MigrationError::Database(error) => error.into(),
            problem => Self::failed(format!("{problem}.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_told_in_a_few_lines() {
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
