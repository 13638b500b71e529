//! `attesto migrate`: brings the database's tables to this release.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use crate::db::migrations::{Planned, Step, Touched};
use crate::db::upgrade::Touch;
use crate::db::{MigrationProblem, MigrationReport};
use crate::replicas::{Company, WouldStop};

use super::context::{Context, Failure};

/// The arguments of `attesto migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
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
struct Checked {
    pending: Vec<Planned>,
    may_migrate: bool,
    /// Of the processes that serve now.
    running_releases: BTreeSet<String>,
    /// Whether they go on working on the changed tables.
    running_releases_keep_working: bool,
    /// Whether a process of the release before this one could be started on the changed tables.
    previous_release_works: bool,
}

impl Checked {
    fn prose(&self) -> String {
        let mut lines = Vec::new();
        for planned in &self.pending {
            let Step { version, name } = &planned.step;
            lines.push(format!("to apply: {version:04} {name}"));
            if !planned.purpose.is_empty() {
                lines.push(format!("  {}", planned.purpose));
            }
            lines.extend(planned.tables.iter().map(|it| format!("  {}", line(it))));
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
fn line(touched: &Touched) -> String {
    let mut text = format!("{} {}", touched.table, touched.touch.words());
    if touched.touch != Touch::Creates
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

async fn check(context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    let pending = database.planned().await?;
    let may_migrate = database.may_migrate().await?;
    let lead = context.clock.lead();
    // Tables that are not there yet name nobody.
    let company = Company::present(&database, lead).await;
    let running_releases: BTreeSet<String> = company
        .map(|company| company.replicas.into_iter().map(|it| it.version).collect())
        .unwrap_or_default();
    let obstacle = WouldStop::look(&database, lead).await?.err();
    let is_stuck = !pending.is_empty() && !may_migrate;
    let stops = |it: &Planned| it.promise.as_ref().is_some_and(|it| !it.previous_works);
    let checked = Checked {
        previous_release_works: !pending.iter().any(stops),
        pending,
        may_migrate,
        running_releases,
        running_releases_keep_working: obstacle.is_none(),
    };
    context.output.sentence(&checked, &checked.prose())?;
    if is_stuck {
        return Err(Failure::refused(
            "the database's role may not create tables: let the owner of the database run `grant create on schema public to <role>`.",
        ));
    }
    obstacle.map_or(Ok(()), |obstacle| Err(obstacle.into()))
}

/// Runs the command.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    if args.check {
        return check(context).await;
    }
    let database = context.database().await?;
    if !args.dry_run {
        WouldStop::look(&database, context.clock.lead()).await??;
    }
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

impl From<WouldStop> for Failure {
    fn from(problem: WouldStop) -> Self {
        Self::refused(format!("{problem}."))
    }
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
