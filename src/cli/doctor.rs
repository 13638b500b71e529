//! `attesto doctor`: is this installation well, and what is to be done if not.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::context::{CommandContext, CommandError};
use crate::base::clock::Timestamp;
use crate::checks::{CheckContext, CheckResult, CheckStatus, run_checks};
use crate::config::{self, RawSettings};

/// The arguments of `attesto doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Call nobody outside: not the stores
    #[arg(long)]
    offline: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DoctorOutput<'a> {
    #[serde(flatten)]
    check: &'a CheckResult,
    version: &'static str,
    checked_at: Timestamp,
}

/// Runs the command: exit 0 when all is well, 1 when something should not stay as it is, 2 when something does not work.
pub(crate) async fn run(args: DoctorArgs, context: &CommandContext) -> Result<(), CommandError> {
    let lookup = |name: &str| context.environment_variable(name);
    let given = context
        .database_url()
        .map(|url| ("DATABASE_URL".to_owned(), url.to_owned()));
    let patient = CheckContext {
        raw: RawSettings::new(BTreeMap::from_iter(given), &lookup),
        variable_names: config::list_env_vars(),
        database: context
            .open_database()
            .await
            .map_err(|failure| failure.message),
        keyring: context
            .find_configured_keyring()
            .ok()
            .flatten()
            .map(Arc::new),
        clock: context.clock.clone(),
        is_online: !args.offline,
    };
    let found = run_checks(&patient).await;
    if let Ok(database) = &patient.database {
        database.close_connections().await;
    }
    let shown = DoctorOutput {
        check: &found,
        version: crate::VERSION,
        checked_at: context.clock.now(),
    };
    context
        .output
        .write_json_or_text(&shown, &found.to_text())?;
    match found.status {
        CheckStatus::Ok | CheckStatus::Skipped => Ok(()),
        // Everything was said.
        CheckStatus::Warn => Err(CommandError::failed("")),
        CheckStatus::Fail => Err(CommandError::usage_error("")),
    }
}
