//! `attesto migrate`: brings the database's tables to this release.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::db::{MigrationProblem, MigrationReport};
use crate::replicas::Company;

use super::context::{Context, Failure};

/// The arguments of `attesto migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be applied
    #[arg(long)]
    dry_run: bool,

    /// Only say what would be applied, whether this role may, and which releases are running meanwhile; exit 1 when it
    /// would be refused
    #[arg(long, conflicts_with = "dry_run")]
    check: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Checked<'a> {
    #[serde(flatten)]
    report: &'a MigrationReport,
    may_migrate: bool,
    /// Of the processes that serve now.
    running_releases: BTreeSet<String>,
    /// Migrations only ever add: what an older release reads and writes stays.
    running_releases_keep_working: bool,
}

async fn check(context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let report = database.migrate(true).await?;
    let may_migrate = database.may_migrate().await?;
    // Tables that are not there yet name nobody.
    let company = Company::present(&database, context.clock.lead()).await;
    let running_releases: BTreeSet<String> = company
        .map(|company| company.replicas.into_iter().map(|it| it.version).collect())
        .unwrap_or_default();
    let running = match running_releases.len() {
        0 => "No process serves.".to_owned(),
        _ => format!(
            "Processes of release {} go on working meanwhile.",
            running_releases
                .iter()
                .cloned()
                .collect::<Vec<_>>()
                .join(", ")
        ),
    };
    let said = format!("{}\n{running}", prose(&report));
    let is_stuck = !report.pending.is_empty() && !may_migrate;
    let checked = Checked {
        report: &report,
        may_migrate,
        running_releases,
        running_releases_keep_working: true,
    };
    context.output.sentence(&checked, &said)?;
    if is_stuck {
        return Err(Failure::refused(
            "the database's role may not create tables: let the owner of the database run `grant create on schema public to <role>`.",
        ));
    }
    Ok(())
}

/// Runs the command.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if args.check {
        return check(context).await;
    }
    let database = context.database().await?;
    let report = database.migrate(args.dry_run).await?;
    context.output.sentence(&report, &prose(&report))?;
    Ok(())
}

fn prose(report: &MigrationReport) -> String {
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

impl From<MigrationProblem> for Failure {
    fn from(problem: MigrationProblem) -> Self {
        match problem {
            MigrationProblem::Database(error) => error.into(),
            problem => Self::refused(format!("{problem}.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::migrations::Step;

    #[test]
    fn a_run_is_told_in_a_few_lines() {
        let step = |version, name: &str| Step {
            version,
            name: name.into(),
        };
        let mut report = MigrationReport {
            applied: vec![step(3, "signing keys")],
            pending: vec![],
            already_applied: 2,
        };
        assert_eq!(prose(&report), "applied: 0003 signing keys");
        report.pending = std::mem::take(&mut report.applied);
        assert_eq!(prose(&report), "to apply: 0003 signing keys");
        report.pending.clear();
        assert_eq!(prose(&report), "The tables are up to date (2 migrations).");
    }
}
