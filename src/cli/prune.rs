//! `attesto prune`: what is older than it is to be kept, removed now.

use serde::Serialize;

use super::context::{CommandContext, CommandError};
use super::jobs;
use crate::retention::{self, RetentionKind};

/// The arguments of `attesto prune`.
#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Only count what would go
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PruneRow {
    kind: &'static str,
    /// `null`: for ever.
    kept_days: Option<u64>,
    /// What went, or would go.
    rows: u64,
    dry_run: bool,
}

/// Runs the command.
pub(crate) async fn run(args: PruneArgs, context: &CommandContext) -> Result<(), CommandError> {
    let tools = jobs::build_job_context(context).await?;
    let ran = if args.dry_run {
        None
    } else {
        Some(jobs::run_job(&tools, "retention", context).await?)
    };
    let mut shown = Vec::new();
    for kind in RetentionKind::ALL {
        let kept = kind.retention_period(&tools.retention);
        let gone = ran.as_ref().and_then(|ran| ran.result.as_ref().ok());
        let rows = match (gone, kept) {
            (Some(gone), _) => gone[kind.as_str()].as_u64().unwrap_or(0),
            (None, Some(kept)) if args.dry_run => {
                retention::count_expired(&tools.database, kind, kept).await?
            }
            (None, _) => 0,
        };
        shown.push(PruneRow {
            kind: kind.as_str(),
            kept_days: kept.map(|kept| kept.as_secs() / 86_400),
            rows,
            dry_run: args.dry_run,
        });
    }
    let output = &context.output;
    match &ran {
        Some(ran) if ran.result.is_err() => {}
        _ => output.write_rows(&shown, &["kind", "keptDays", "rows"], "")?,
    }
    if args.dry_run {
        output.write_note("\nNothing was removed.")?;
    }
    ran.as_ref().map_or(Ok(()), jobs::check_job_outcome)
}
