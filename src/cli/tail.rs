//! `attesto tail`: what happens to a tenant, as it happens.

use std::time::Duration;

use tokio::time::sleep;

use super::context::{Context, Failure};
use crate::id::TenantId;
use crate::tail::Watcher;
use crate::tenants::store::{ChangeError, find_tenant};

/// How often the database is looked at.
const EVERY: Duration = Duration::from_secs(1);

/// Arguments of `tail`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Verifications are seen while the service runs with ENABLE_VALIDATION_AUDIT_LOG=true. Ctrl-C ends it."
)]
pub struct Args {
    /// Whose: the tenant's id
    #[arg(long, value_name = "ID")]
    tenant: TenantId,
    /// How much of what already happened is shown first
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(0..=500))]
    last: u16,
    /// Show only that, and end
    #[arg(long)]
    no_follow: bool,
}

/// Shows what happens until it is interrupted.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let database = context.database().await?;
    if find_tenant(&database, &args.tenant).await?.is_none() {
        return Err(ChangeError::NoTenant(args.tenant).into());
    }
    let (stop, _listening) = context.interruption()?;
    let mut watcher = Watcher::new(args.tenant);
    let mut lines = watcher.look(&database).await?;
    let first_shown = lines.len().saturating_sub(usize::from(args.last));
    lines.drain(..first_shown);
    loop {
        for line in lines {
            context.output.sentence(&line, &line.prose())?;
        }
        if args.no_follow {
            return Ok(());
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = sleep(EVERY) => {}
        }
        lines = match watcher.look(&database).await {
            Ok(lines) => lines,
            // It is worth waiting for: whoever watches wants to see what happens then.
            Err(error) if crate::db::is_unavailable(&error) => {
                eprintln!("attesto: the database cannot be reached; trying again.");
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
    }
}
