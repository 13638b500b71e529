//! `attesto prune`: deletes the data whose retention period has ended.

use std::sync::Arc;

use serde::Serialize;
use strum::VariantArray as _;

use super::context::{CommandContext, CommandError};
use super::jobs;
use super::progress::ProgressBar;
use crate::retention::{self, RetentionKind};

#[derive(Debug, clap::Args)]
pub(crate) struct PruneArgs {
    /// Count the rows, and delete nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PruneRow {
    kind: &'static str,
    /// `null`: kept forever.
    kept_days: Option<u64>,
    /// Deleted rows; with `dry_run`, rows that would be deleted.
    rows: u64,
    dry_run: bool,
}

pub(crate) async fn run(args: PruneArgs, context: &CommandContext) -> Result<(), CommandError> {
    let mut job_context = jobs::build_job_context(context).await?;
    let bar = Arc::new(ProgressBar::for_output(&context.output));
    let shown_bar = bar.clone();
    job_context.report =
        Arc::new(move |done, total, what| shown_bar.draw_progress(done, total, what));
    let ran = if args.dry_run {
        None
    } else {
        Some(jobs::run_job(&job_context, "retention", context).await?)
    };
    bar.clear();
    let mut shown = Vec::new();
    for &kind in RetentionKind::VARIANTS {
        let kept = kind.retention_period(&job_context.retention);
        let deleted = ran.as_ref().and_then(|ran| ran.result.as_ref().ok());
        let rows = match (deleted, kept) {
            (Some(deleted), _) => deleted[kind.as_str()].as_u64().unwrap_or(0),
            (None, Some(kept)) if args.dry_run => {
                retention::count_expired(&job_context.database, kind, kept).await?
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
        output.write_note("\nNothing was deleted.")?;
    }
    ran.as_ref().map_or(Ok(()), jobs::check_job_outcome)
}
