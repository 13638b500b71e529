//! `attesto migrate`: brings the database's tables to this release.

use crate::db::{MigrationProblem, MigrationReport};

use super::context::{Context, Failure};

/// The arguments of `attesto migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only say what would be applied
    #[arg(long)]
    dry_run: bool,
}

/// Runs the command.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
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
