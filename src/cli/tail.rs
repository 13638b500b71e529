//! `attesto tail`: follows a tenant's verifications, events and deliveries.

use std::time::Duration;

use tokio::time::sleep;

use super::context::{CommandContext, CommandError, ensure_tenant_exists};
use super::output::is_stdout_closed;
use crate::base::id::TenantId;
use crate::tail::TailWatcher;

const POLL_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Verifications appear only while the service runs with ENABLE_VALIDATION_AUDIT_LOG=true. Ctrl-C stops the command."
)]
pub(crate) struct TailArgs {
    /// The tenant's id, `tenant_…`
    #[arg(long, value_name = "ID")]
    tenant: TenantId,
    /// Number of earlier lines to show first
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=500))]
    last: u16,
    /// Show the earlier lines, and exit
    #[arg(long)]
    no_follow: bool,
}

pub(crate) async fn run(args: TailArgs, context: &CommandContext) -> Result<(), CommandError> {
    let database = context.open_database().await?;
    ensure_tenant_exists(&database, &args.tenant).await?;
    let (stop, _listening) = context.cancel_on_signal()?;
    let mut watcher = TailWatcher::new(args.tenant);
    let mut lines = watcher.poll_lines(&database).await?;
    let first_shown = lines.len().saturating_sub(usize::from(args.last));
    lines.drain(..first_shown);
    loop {
        for line in lines {
            context.output.write_json_or_text(&line, &line.to_text())?;
        }
        // A closed pipe is noticed here also when nothing happens that could be written.
        if args.no_follow || is_stdout_closed() {
            return Ok(());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(POLL_INTERVAL) => {}
        }
        lines = match watcher.poll_lines(&database).await {
            Ok(lines) => lines,
            // The operator wants to see what happens when the database is back.
            Err(error) if crate::db::is_unavailable(&error) => {
                eprintln!("attesto: the database cannot be reached; retrying.");
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
    }
}
